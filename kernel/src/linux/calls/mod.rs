//! System calls: number to function, result to RAX.

mod files;
mod memory;
mod other;
mod present;
mod process;
mod signals;
mod threads;
mod time;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::errno::Errno;
use super::thread::{Caller, Next};
use crate::arch::x86_64::uaccess::{copy_from_user, copy_to_user};
use crate::vm::user::UserFault;

/// What a call gives: what RAX will hold, or an error.
pub(super) type Answer = Result<u64, Errno>;

/// Does the call that the registers ask for.
pub(super) fn call(caller: &mut Caller) -> Next {
    let regs = &caller.context.regs;
    let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
    let number = regs.rax;
    caller.number = number;
    // In the way of every call: a few instructions more are measured.
    let answer = match number {
        15 | 56..=60 | 231 | 435 => match special(caller, args) {
            Ok(Done::Answer(value)) => Ok(value),
            Ok(Done::Next(next)) => return next,
            Err(errno) => Err(errno),
        },
        _ => ordinary(caller, number, args),
    };
    caller.context.regs.rax = match answer {
        Ok(value) => value,
        Err(errno) => errno.to_rax(),
    };
    Next::Go
}

/// What a call does that has the thread itself in its hands.
enum Done {
    Answer(u64),
    Next(Next),
}

/// The calls that may change registers, or do not come back.
#[cold]
fn special(caller: &mut Caller, [a, b, c, d, e, _]: [u64; 6]) -> Result<Done, Errno> {
    Ok(match caller.number {
        15 => {
            signals::rt_sigreturn(caller);
            Done::Next(Next::Go)
        }
        56 => Done::Answer(process::clone(caller, &process::CloneArgs::of_clone([a, b, c, d, e]))?),
        57 => Done::Answer(process::fork(caller)?),
        58 => Done::Answer(process::vfork(caller)?),
        59 => Done::Next(process::execve(caller, a, b, c)?),
        60 => Done::Next(process::exit(caller, a as u8)),
        231 => Done::Next(process::exit_group(caller, a as u8)),
        _ => Done::Answer(process::clone3(caller, a, b)?),
    })
}

/// The others, by their numbers in `arch/x86/entry/syscalls/syscall_64.tbl`.
#[inline]
fn ordinary(caller: &Caller, number: u64, [a, b, c, d, e, f]: [u64; 6]) -> Answer {
    let memory = &caller.memory;
    let process = caller.process();
    match number {
        9 => {
            let placed = memory.placing(|| memory::mmap(process, [a, b, c, d, e, f]))?;
            if d & present::MAP_POPULATE != 0 {
                present::populate(memory, placed, b);
            }
            Ok(placed)
        }
        10 => memory::mprotect(memory, a, b, c),
        11 => memory::munmap(memory, a, b),
        12 => memory.placing(|| memory::brk(memory, a)),
        13 => signals::rt_sigaction(process, a, b, c, d),
        14 => signals::rt_sigprocmask(caller, a, b, c, d),
        24 => threads::sched_yield(),
        25 => memory.placing(|| memory::mremap(memory, a, b, c, d, e)),
        26 => present::msync(memory, a, b, c),
        27 => present::mincore(memory, a, b, c),
        28 => memory::madvise(memory, a, b, c),
        34 => signals::pause(),
        35 => time::nanosleep(a, b),
        36 => time::getitimer(process.pid, a, b),
        37 => time::alarm(process.pid, a),
        38 => time::setitimer(process.pid, a, b, c),
        39 => Ok(u64::from(process.pid)),
        61 => process::wait4(caller, a, b, c, d),
        62 => signals::kill(caller, a, b),
        63 => other::uname(a),
        96 => time::gettimeofday(a, b),
        97 => other::getrlimit(process, a, b),
        98 => other::getrusage(a, b),
        99 => other::sysinfo(a),
        100 => time::times(a),
        102 | 104 | 107 | 108 => Ok(0), // getuid, getgid, geteuid, getegid: there is one user
        109 => process::setpgid(process, a, b),
        110 => Ok(u64::from(process.ppid.load(Relaxed))),
        111 => process::getpgid(process, 0),
        112 => process::setsid(process),
        121 => process::getpgid(process, a),
        124 => process::getsid(process, a),
        127 => signals::rt_sigpending(caller, a, b),
        128 => signals::rt_sigtimedwait(caller, a, b, c, d),
        130 => signals::rt_sigsuspend(caller, a, b),
        131 => signals::sigaltstack(caller, a, b),
        149 => present::mlock(memory, a, b),
        150 => present::munlock(memory, a, b),
        157 => other::prctl(a),
        158 => other::arch_prctl(a, b),
        160 => other::setrlimit(process, a, b),
        186 => Ok(u64::from(caller.thread.tid)),
        200 => signals::tkill(caller, a, b),
        201 => time::time(a),
        202 => threads::futex(caller, [a, b, c, d, e, f]),
        204 => threads::sched_getaffinity(a, b, c),
        218 => threads::set_tid_address(caller, a),
        228 => time::clock_gettime(a, b),
        229 => time::clock_getres(a, b),
        230 => time::clock_nanosleep(a, b, c, d),
        234 => signals::tgkill(caller, a, b, c),
        247 => process::waitid(caller, a, b, c, d),
        273 => threads::set_robust_list(b),
        302 => other::prlimit64(process, a, b, c, d),
        325 => present::mlock2(memory, a, b, c),
        309 => threads::getcpu(a, b),
        318 => other::getrandom(a, b, c),
        334 => Err(Errno::ENOSYS), // rseq: programs try it at their start, and do without
        424 => process::pidfd_send_signal(caller, a, b, c, d),
        434 => process::pidfd_open(process, a, b),
        number => files::call(caller, number, [a, b, c, d, e]).unwrap_or_else(|| {
            name_once(number);
            Err(Errno::ENOSYS)
        }),
    }
}

/// Says of each call that is not here, once, that somebody wants it.
fn name_once(number: u64) {
    static NAMED: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
    let seen = usize::try_from(number / 64).ok().and_then(|word| NAMED.get(word));
    let bit = 1 << (number % 64);
    // Numbers that there are none of at all share one bit.
    let seen = seen.unwrap_or(&NAMED[NAMED.len() - 1]);
    let bit = if number / 64 < NAMED.len() as u64 { bit } else { 1 << 63 };
    if seen.fetch_or(bit, Relaxed) & bit == 0 {
        log::warn!("system call {number} is not here: it answers ENOSYS");
    }
}

/// Nanoseconds since the machine's start.
pub(super) fn now() -> u64 {
    time::now()
}

/// Reads a word of 32 bits of the program's.
///
/// # Errors
/// It cannot be read.
pub(super) fn read_u32(at: u64) -> Result<u32, UserFault> {
    let mut bytes = [0; 4];
    copy_from_user(&mut bytes, at)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Writes a word of 32 bits of the program's.
///
/// # Errors
/// It cannot be written.
pub(super) fn write_u32(at: u64, value: u32) -> Result<(), UserFault> {
    copy_to_user(at, &value.to_le_bytes())
}
