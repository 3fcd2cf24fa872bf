//! Processes that end, or are ended, while their threads move memory to the test devices and back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use farpage_programs::memory::{PRIVATE, RW, mmap, store};
use farpage_programs::task::{Status, child, spawn};
use farpage_programs::{HUGE, PAGE, memory, sys};
use libc::{MAP_FIXED, SIGKILL};

use super::{must, wait_or_kill};

/// Five words of the test device's commands.
fn device(fd: u64, number: u64, at: u64, bounce: u64, pages: u64) -> sys::Ret {
    let mut words = [at, bounce, pages, 0, 0];
    sys!(SYS_ioctl, fd, 3_u64 << 30 | 40 << 16 | u64::from(b'H') << 8 | number, words.as_mut_ptr())
}

fn open_device(number: usize) -> Result<u64, String> {
    let path =
        [c"/dev/hmm_dmirror0", c"/dev/hmm_dmirror1", c"/dev/hmm_dmirror2", c"/dev/hmm_dmirror3"][number];
    let fd = sys!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDWR);
    if fd.is_ok() { Ok(fd.0 as u64) } else { Err(format!("no device: {fd}")) }
}

const TO_DEVICE: u64 = 2;
const TO_SYSTEM: u64 = 3;

/// Threads that move memory to a device and back for ever, and one that touches it; `end` runs meanwhile, in their process.
fn migrating(number: usize, end: &(dyn Fn() + Sync)) -> i32 {
    let Ok(fd) = open_device(number) else { return 9 };
    let base = memory::reserve(4 * HUGE);
    let _ = mmap(base, 4 * HUGE, RW, PRIVATE | MAP_FIXED);
    (0..2048).for_each(|page| store(base + page * PAGE, page).expect("a page"));
    let bounce = memory::anon(4 * HUGE);
    let rounds = AtomicU64::new(0);
    thread::scope(|scope| {
        for mover in 0..2_u64 {
            let rounds = &rounds;
            scope.spawn(move || {
                loop {
                    let at = base + mover * 2 * HUGE;
                    let _ = device(fd, TO_DEVICE, at, bounce + mover * 2 * HUGE, 1024);
                    let _ = device(fd, TO_SYSTEM, at, bounce, 700);
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(move || {
            loop {
                (0..2048).step_by(17).for_each(|page| store(base + page * PAGE, page).expect("a page"));
            }
        });
        while rounds.load(Ordering::Relaxed) < 2 {
            thread::yield_now();
        }
        end();
    });
    8
}

/// Does this with every device; each child has to end in this way.
fn with_devices(wanted: impl Fn(Status) -> bool, end: &(dyn Fn() + Sync)) -> Result<String, String> {
    for number in 0..4 {
        for _ in 0..3 {
            let (status, late) = wait_or_kill(spawn(|| migrating(number, end)));
            must(!late && wanted(status), &format!("device {number}: {status}"))?;
        }
    }
    Ok("12 processes, 4 devices".into())
}

pub(super) fn exits_in_a_migration() -> Result<String, String> {
    with_devices(|status| status == Status(4 << 8), &|| std::process::exit(4))
}

pub(super) fn kills_in_a_migration() -> Result<String, String> {
    with_devices(|status| libc::WIFSIGNALED(status.0), &|| {
        let _ = sys!(SYS_kill, sys!(SYS_getpid).0, SIGKILL);
    })
}

pub(super) fn forks_in_a_migration() -> Result<String, String> {
    with_devices(|status| status == Status(7 << 8), &|| {
        for _ in 0..5 {
            // Not `spawn`: the child must not run what it has of the other threads' locks.
            let pid = sys!(SYS_fork).0;
            if pid == 0 {
                let _ = sys!(SYS_exit_group, 7);
            }
            let mut status = 0;
            let _ = sys!(SYS_wait4, pid, &raw mut status, 0, 0);
        }
        let _ = sys!(SYS_exit_group, 7);
    })
}

/// Pages stay in a device's memory while their process goes.
pub(super) fn a_device_left_open() -> Result<String, String> {
    for number in 0..4 {
        let status = child(|| {
            let Ok(fd) = open_device(number) else { return 9 };
            let base = memory::reserve(2 * HUGE);
            let _ = mmap(base, HUGE, RW, PRIVATE | MAP_FIXED);
            (0..512).for_each(|page| store(base + page * PAGE, page).expect("a page"));
            let bounce = memory::anon(HUGE);
            let moved = device(fd, TO_DEVICE, base, bounce, 512);
            i32::from(!moved.is_ok())
        });
        must(status == Status(0), &format!("device {number}: {status}"))?;
    }
    Ok("4 devices".into())
}
