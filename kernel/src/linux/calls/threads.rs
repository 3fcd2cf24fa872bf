//! Threads: futexes, and what a thread asks of its CPU.

use core::sync::atomic::Ordering::Relaxed;

use super::{Answer, time, write_u32};
use crate::arch::x86_64::uaccess::copy_to_user;
use crate::linux::errno::Errno;
use crate::linux::thread::Caller;
use crate::linux::{futex, sleep};
use crate::task::{self, timer};

pub(super) fn sched_yield() -> Answer {
    task::yield_now();
    Ok(0)
}

pub(super) fn set_tid_address(caller: &Caller, at: u64) -> Answer {
    caller.thread.clear_tid.store(at, Relaxed);
    Ok(u64::from(caller.thread.tid))
}

/// One CPU.
pub(super) fn sched_getaffinity(_pid: u64, len: u64, to: u64) -> Answer {
    const WORD: u64 = 8;
    if len < WORD || !len.is_multiple_of(WORD) {
        return Err(Errno::EINVAL);
    }
    copy_to_user(to, &1_u64.to_le_bytes())?;
    Ok(WORD)
}

pub(super) fn getcpu(cpu: u64, node: u64) -> Answer {
    for at in [cpu, node].into_iter().filter(|at| *at != 0) {
        write_u32(at, 0)?;
    }
    Ok(0)
}

/// The list is not walked: a lock whose holder has died stays locked.
pub(super) fn set_robust_list(len: u64) -> Answer {
    const HEAD: u64 = 24; // struct robust_list_head
    if len == HEAD { Ok(0) } else { Err(Errno::EINVAL) }
}

/// Operations on futexes (`uapi/linux/futex.h`).
mod op {
    pub(super) const WAIT: u64 = 0;
    pub(super) const WAKE: u64 = 1;
    pub(super) const REQUEUE: u64 = 3;
    pub(super) const CMP_REQUEUE: u64 = 4;
    pub(super) const WAIT_BITSET: u64 = 9;
    pub(super) const WAKE_BITSET: u64 = 10;
    pub(super) const PRIVATE: u64 = 128;
    pub(super) const REALTIME: u64 = 256;
}

/// Address, operation, value, timeout or second value, second address, third value.
pub(super) fn futex(caller: &Caller, [at, operation, value, timeout, at2, value3]: [u64; 6]) -> Answer {
    let memory = &caller.memory;
    let private = operation & op::PRIVATE != 0;
    let command = operation & 0xffff_ffff & !(op::PRIVATE | op::REALTIME);
    if operation & op::REALTIME != 0 && command != op::WAIT_BITSET {
        return Err(Errno::ENOSYS);
    }
    let deadline = || {
        Ok::<_, Errno>(match (timeout, command) {
            (0, _) => timer::NEVER,
            (_, op::WAIT) => sleep::after(time::read(timeout)?),
            _ => time::deadline(time::read(timeout)?),
        })
    };
    let (value, bits) = (value as u32, value3 as u32);
    match command {
        op::WAIT => futex::wait(memory, at, value, futex::ANY, private, deadline()?),
        op::WAIT_BITSET => futex::wait(memory, at, value, bits, private, deadline()?),
        op::WAKE => futex::wake(memory, at, value, futex::ANY, private),
        op::WAKE_BITSET => futex::wake(memory, at, value, bits, private),
        op::REQUEUE => futex::requeue(memory, [at, at2], [value, timeout as u32], private, None),
        op::CMP_REQUEUE => futex::requeue(memory, [at, at2], [value, timeout as u32], private, Some(bits)),
        _ => Err(Errno::ENOSYS),
    }
}
