//! System calls: number to function, result to RAX.

mod files;
mod memory;
mod other;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::End;
use super::errno::Errno;
use super::process::Process;
use crate::arch::x86_64::trap::TrapFrame;

/// What a call gives: what RAX will hold, or an error.
pub(super) type Answer = Result<u64, Errno>;

/// Does the call that the registers ask for; the end of the process, if that was it.
pub(super) fn call(process: &Process, regs: &mut TrapFrame) -> Option<End> {
    let [a, b, c, d, e, f] = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
    let memory = process.memory();
    // Numbers of `arch/x86/entry/syscalls/syscall_64.tbl`.
    let answer = match regs.rax {
        0 => files::read(a, b, c),
        1 => files::write(a, b, c),
        3 => files::close(a),
        5 => files::fstat(a, b),
        7 => Ok(0), // poll: nothing ever waits
        8 => Err(Errno::ESPIPE),
        9 => memory::mmap(&memory, a, b, c, d, e, f),
        10 => memory::mprotect(&memory, a, b, c),
        11 => memory::munmap(&memory, a, b),
        12 => memory::brk(&memory, a),
        13 | 14 | 131 => Ok(0), // rt_sigaction, rt_sigprocmask, sigaltstack: no signal has a handler yet
        16 => Err(Errno::ENOTTY),
        20 => files::writev(a, b, c),
        24 => Ok(0),
        25 => memory::mremap(&memory, a, b, c, d, e),
        28 => memory::madvise(&memory, a, b, c),
        39 | 186 => Ok(1),
        60 | 231 => return Some(End::Exited(a as u8)),
        63 => other::uname(a),
        96 => other::gettimeofday(a),
        102 | 104 | 107 | 108 => Ok(0),
        110 => Ok(0),
        158 => other::arch_prctl(a, b),
        218 => Ok(1),
        228 => other::clock_gettime(b),
        262 => files::newfstatat(a, b, c, d),
        273 => Ok(0),
        302 => other::prlimit64(b, d),
        318 => other::getrandom(a, b),
        number => {
            name_once(number);
            Err(Errno::ENOSYS)
        }
    };
    regs.rax = match answer {
        Ok(value) => value,
        Err(errno) => errno.to_rax(),
    };
    None
}

/// Says of each call that is not here, once, that somebody wants it.
fn name_once(number: u64) {
    static NAMED: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
    let seen = usize::try_from(number / 64).ok().and_then(|word| NAMED.get(word));
    let bit = 1 << (number % 64);
    if seen.is_none_or(|word| word.fetch_or(bit, Relaxed) & bit == 0) {
        log::warn!("system call {number} is not here: it answers ENOSYS");
    }
}
