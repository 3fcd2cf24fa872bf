//! What belongs to no group: the FS base, limits, names, random bytes.

use alloc::sync::Arc;

use super::{Answer, time};
use crate::arch::x86_64::uaccess::{USER_END, copy_to_user};
use crate::arch::x86_64::{tsc, user};
use crate::linux::errno::Errno;
use crate::linux::fs::copy::put;
use crate::linux::limits::COUNT;
use crate::linux::process::{self, Process};
use crate::vm::mm;
use crate::vm::user::{user_read_u64, user_write_u64};

pub(super) fn arch_prctl(code: u64, value: u64) -> Answer {
    const ARCH_SET_FS: u64 = 0x1002;
    const ARCH_GET_FS: u64 = 0x1003;
    match code {
        ARCH_SET_FS if value >= USER_END => Err(Errno::EPERM),
        ARCH_SET_FS => {
            user::set_fs_base(value);
            Ok(0)
        }
        ARCH_GET_FS => {
            user_write_u64(value, user::fs_base())?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Names of threads are taken and not kept; of the rest nothing is here.
pub(super) fn prctl(option: u64) -> Answer {
    const SET_NAME: u64 = 15;
    if option == SET_NAME { Ok(0) } else { Err(Errno::EINVAL) }
}

pub(super) fn getrlimit(process: &Arc<Process>, resource: u64, to: u64) -> Answer {
    prlimit64(process, 0, resource, 0, to)
}

pub(super) fn setrlimit(process: &Arc<Process>, resource: u64, from: u64) -> Answer {
    prlimit64(process, 0, resource, from, 0)
}

pub(super) fn prlimit64(process: &Arc<Process>, pid: u64, resource: u64, new: u64, old: u64) -> Answer {
    let of = match pid {
        0 => Arc::clone(process),
        pid => process::find(pid as u32).ok_or(Errno::ESRCH)?,
    };
    let resource =
        usize::try_from(resource).ok().filter(|resource| *resource < COUNT).ok_or(Errno::EINVAL)?;
    let new = if new == 0 { None } else { Some((user_read_u64(new)?, user_read_u64(new.wrapping_add(8))?)) };
    if new.is_some_and(|(soft, hard)| soft > hard) {
        return Err(Errno::EINVAL);
    }
    let was = of.limits.lock().0[resource];
    if let Some(new) = new {
        of.limits.lock().0[resource] = new;
    }
    if old != 0 {
        user_write_u64(old, was.0)?;
        user_write_u64(old.wrapping_add(8), was.1)?;
    }
    Ok(0)
}

/// Nothing is counted for each process: all zeros.
pub(super) fn getrusage(who: u64, to: u64) -> Answer {
    if !matches!(who as i32, -1..=1) {
        return Err(Errno::EINVAL);
    }
    copy_to_user(to, &[0; 144])?;
    Ok(0)
}

pub(super) fn sysinfo(to: u64) -> Answer {
    let ram = mm().zone(farpage_mm::Place::RAM).stat();
    let mut info = [0; 112];
    let mut put = |at: usize, value: u64| info[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(0, time::now() / 1_000_000_000);
    put(32, u64::from(ram.managed) * farpage_mm::PAGE_SIZE);
    put(40, u64::from(ram.free) * farpage_mm::PAGE_SIZE);
    put(80, process::all().len() as u64 & 0xffff);
    put(104, 1); // the unit of all sizes
    copy_to_user(to, &info)?;
    Ok(0)
}

/// Under instruction counting the same in every run. Nothing here is secret.
pub(super) fn getrandom(to: u64, len: u64, flags: u64) -> Answer {
    const KNOWN: u64 = 7;
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let len = len.min(256);
    let mut state = tsc::now();
    let mut bytes = [0; 256];
    for byte in &mut bytes {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        *byte = (state >> 56) as u8;
    }
    match put(to, &bytes[..len as usize]) {
        0 if len != 0 => Err(Errno::EFAULT),
        went => Ok(went as u64),
    }
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
