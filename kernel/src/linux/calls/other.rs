//! What belongs to no group: the FS base, time, limits, names.

use super::Answer;
use crate::arch::x86_64::uaccess::{USER_END, copy_to_user};
use crate::arch::x86_64::{tsc, user};
use crate::linux::errno::Errno;
use crate::linux::memory::STACK_LEN;
use crate::measure::nanoseconds;
use crate::vm::user::user_write_u64;

pub(super) fn arch_prctl(code: u64, value: u64) -> Answer {
    const ARCH_SET_FS: u64 = 0x1002;
    if code != ARCH_SET_FS {
        return Err(Errno::EINVAL);
    }
    if value >= USER_END {
        return Err(Errno::EFAULT);
    }
    user::set_fs_base(value);
    Ok(0)
}

pub(super) fn clock_gettime(to: u64) -> Answer {
    let now = nanoseconds(tsc::now());
    user_write_u64(to, now / 1_000_000_000)?;
    user_write_u64(to + 8, now % 1_000_000_000)?;
    Ok(0)
}

pub(super) fn gettimeofday(to: u64) -> Answer {
    let now = nanoseconds(tsc::now()) / 1000;
    user_write_u64(to, now / 1_000_000)?;
    user_write_u64(to + 8, now % 1_000_000)?;
    Ok(0)
}

pub(super) fn prlimit64(resource: u64, old: u64) -> Answer {
    const RLIMIT_STACK: u64 = 3;
    if old != 0 {
        let limit = if resource == RLIMIT_STACK { STACK_LEN } else { u64::MAX };
        user_write_u64(old, limit)?;
        user_write_u64(old + 8, u64::MAX)?;
    }
    Ok(0)
}

/// Under instruction counting the same in every run. Nothing here is secret.
pub(super) fn getrandom(to: u64, len: u64) -> Answer {
    let len = len.min(256);
    let mut state = tsc::now();
    let mut bytes = [0; 256];
    for byte in &mut bytes {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        *byte = (state >> 56) as u8;
    }
    copy_to_user(to, &bytes[..len as usize])?;
    Ok(len)
}

pub(super) fn uname(to: u64) -> Answer {
    const FIELD: usize = 65;
    let mut names = [0; 6 * FIELD];
    let texts = ["Linux", "farpage", "7.2.0-farpage", "farpage", "x86_64", "(none)"];
    for (field, text) in names.chunks_exact_mut(FIELD).zip(texts) {
        field[..text.len()].copy_from_slice(text.as_bytes());
    }
    copy_to_user(to, &names)?;
    Ok(0)
}
