//! futex by itself: values, wakes, bits, timeouts, between threads and between processes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use farpage_programs::memory::{RW, SHARED, mmap};
use farpage_programs::sys::Ret;
use farpage_programs::task::{spawn, wait};
use farpage_programs::{PAGE, fact, sys};
use libc::{
    CLOCK_MONOTONIC, CLOCK_REALTIME, FUTEX_CLOCK_REALTIME, FUTEX_PRIVATE_FLAG, FUTEX_WAIT, FUTEX_WAIT_BITSET,
    FUTEX_WAKE, FUTEX_WAKE_BITSET,
};

/// Any bit.
const ANY: u32 = u32::MAX;

/// Runs the group.
pub(crate) fn run() {
    values();
    timeouts();
    errors();
    threads();
    bits();
    processes();
}

fn futex(word: &AtomicU32, op: i32, value: u32, time: Option<&[i64; 2]>, bits: u32) -> Ret {
    let time = time.map_or(0, |time| time.as_ptr() as u64);
    sys!(SYS_futex, word.as_ptr(), op, value, time, 0, bits)
}

fn values() {
    let word = AtomicU32::new(5);
    fact!("wait for another value", "{}", futex(&word, FUTEX_WAIT, 4, None, 0));
    fact!("and private", "{}", futex(&word, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 4, None, 0));
    fact!("and with bits", "{}", futex(&word, FUTEX_WAIT_BITSET, 4, None, ANY));
    fact!(
        "wake nobody",
        "{} {}",
        futex(&word, FUTEX_WAKE, 1, None, 0),
        futex(&word, FUTEX_WAKE_BITSET, 1, None, ANY)
    );
}

fn now(clock: i32) -> [i64; 2] {
    let mut time = [0; 2];
    sys!(SYS_clock_gettime, clock, time.as_mut_ptr()).value("clock_gettime");
    time
}

fn timeouts() {
    let word = AtomicU32::new(5);
    let before = now(CLOCK_MONOTONIC);
    fact!("a timeout of 2 ms", "{}", futex(&word, FUTEX_WAIT, 5, Some(&[0, 2_000_000]), 0));
    let after = now(CLOCK_MONOTONIC);
    let passed = (after[0] - before[0]) * 1_000_000_000 + after[1] - before[1];
    fact!("took at least as long", "{}", passed >= 2_000_000);
    fact!("none at all", "{}", futex(&word, FUTEX_WAIT, 5, Some(&[0, 0]), 0));
    fact!("a time that is past", "{}", futex(&word, FUTEX_WAIT_BITSET, 5, Some(&[0, 1]), ANY));
    let mut soon = now(CLOCK_MONOTONIC);
    soon[0] += (soon[1] + 2_000_000) / 1_000_000_000;
    soon[1] = (soon[1] + 2_000_000) % 1_000_000_000;
    fact!("a time to come", "{}", futex(&word, FUTEX_WAIT_BITSET, 5, Some(&soon), ANY));
    let mut soon = now(CLOCK_REALTIME);
    soon[0] += (soon[1] + 2_000_000) / 1_000_000_000;
    soon[1] = (soon[1] + 2_000_000) % 1_000_000_000;
    fact!(
        "by the other clock",
        "{}",
        futex(&word, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 5, Some(&soon), ANY)
    );
    fact!("too many nanoseconds", "{}", futex(&word, FUTEX_WAIT, 5, Some(&[0, 1_000_000_000]), 0));
    fact!("negative seconds", "{}", futex(&word, FUTEX_WAIT, 5, Some(&[-1, 0]), 0));
    fact!("another value counts first", "{}", futex(&word, FUTEX_WAIT, 4, Some(&[0, 1_000_000]), 0));
}

fn errors() {
    let word = AtomicU32::new(5);
    let at = word.as_ptr() as u64;
    fact!("no bits to wait for", "{}", futex(&word, FUTEX_WAIT_BITSET, 5, None, 0));
    fact!("no bits to wake", "{}", futex(&word, FUTEX_WAKE_BITSET, 5, None, 0));
    fact!("no such operation", "{}", futex(&word, 77, 5, None, 0));
    fact!("not aligned", "{}", sys!(SYS_futex, at + 1, FUTEX_WAIT, 5, 0));
    fact!("not aligned", "{}", sys!(SYS_futex, at + 2, FUTEX_WAKE, 5, 0));
    fact!("not mapped", "{}", sys!(SYS_futex, 0x1000, FUTEX_WAIT, 5, 0));
    fact!("not mapped, private", "{}", sys!(SYS_futex, 0x1000, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 5, 0));
    fact!("in the kernel", "{}", sys!(SYS_futex, 0xffff_8000_0000_0000_u64, FUTEX_WAIT, 5, 0));
    fact!("a wild timeout", "{}", sys!(SYS_futex, at, FUTEX_WAIT, 5, 0x1000));
}

/// Wakes until `count` have been woken in all.
fn wake_all(word: &AtomicU32, count: i64) -> i64 {
    let mut woken = 0;
    while woken < count {
        woken += futex(word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, None, 0).0;
        thread::yield_now();
    }
    woken
}

fn threads() {
    let word = AtomicU32::new(0);
    thread::scope(|scope| {
        let sleep = || futex(&word, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, None, 0).0;
        let sleepers: Vec<_> = (0..6).map(|_| scope.spawn(sleep)).collect();
        fact!("one by one", "{}", wake_all(&word, 6));
        let answers: Vec<i64> = sleepers.into_iter().map(|t| t.join().unwrap_or(9)).collect();
        fact!("what they were told", "{answers:?}");
        let sleepers: Vec<_> = (0..6).map(|_| scope.spawn(sleep)).collect();
        let mut woken = 0;
        while woken < 6 {
            woken += futex(&word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, i32::MAX as u32, None, 0).0;
            thread::yield_now();
        }
        fact!("all together", "{woken}");
        sleepers.into_iter().for_each(|t| assert_eq!(t.join().unwrap_or(9), 0));
    });
}

fn bits() {
    let word = AtomicU32::new(0);
    thread::scope(|scope| {
        let sleep = |bits| futex(&word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, 0, None, bits).0;
        let first = scope.spawn(move || sleep(1));
        let second = scope.spawn(move || sleep(6));
        let wake = |bits| {
            let mut tries = 0;
            while futex(&word, FUTEX_WAKE_BITSET | FUTEX_PRIVATE_FLAG, 9, None, bits).0 != 1 {
                tries += 1;
                assert!(tries < 10_000_000, "nobody waits for {bits:#x}");
                thread::yield_now();
            }
        };
        wake(4);
        fact!("the one with bit 2", "{}", second.join().unwrap_or(9));
        fact!("nobody has bit 5", "{}", futex(&word, FUTEX_WAKE_BITSET | FUTEX_PRIVATE_FLAG, 9, None, 32));
        wake(ANY);
        fact!("the other one", "{}", first.join().unwrap_or(9));
    });
}

fn processes() {
    let page = mmap(0, PAGE, RW, SHARED).value("shared");
    // SAFETY: a page that stays mapped, in both processes.
    let word = unsafe { AtomicU32::from_ptr(page as *mut u32) };
    let pid = spawn(|| {
        while word.load(Ordering::Acquire) == 0 {
            let _ = futex(word, FUTEX_WAIT, 0, None, 0);
        }
        word.store(2, Ordering::Release);
        let _ = futex(word, FUTEX_WAKE, 1, None, 0);
        0
    });
    word.store(1, Ordering::Release);
    let _ = futex(word, FUTEX_WAKE, 1, None, 0);
    while word.load(Ordering::Acquire) != 2 {
        let _ = futex(word, FUTEX_WAIT, 1, None, 0);
    }
    fact!("between processes", "{} {}", wait(pid), word.load(Ordering::Relaxed));
    let pid = spawn(|| futex(word, FUTEX_WAIT, 2, None, 0).0 as i32 + 20);
    let mut woken = 0;
    while woken == 0 {
        woken = futex(word, FUTEX_WAKE, 5, None, 0).0;
        let _ = sys!(SYS_sched_yield);
    }
    fact!("woken across processes", "{woken} {}", wait(pid));
    let private = AtomicU32::new(0);
    let pid = spawn(|| {
        i32::from(futex(&private, FUTEX_WAIT, 0, Some(&[0, 5_000_000]), 0).errno() == libc::ETIMEDOUT)
    });
    fact!(
        "private memory is not shared by a fork",
        "{} {}",
        futex(&private, FUTEX_WAKE, 5, None, 0),
        wait(pid)
    );
}
