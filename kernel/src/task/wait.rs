//! Sleep and wake-up, by key.
//!
//! A key is an address that is unique to what is waited for. Sleepers stand in one of a fixed number of buckets. Whether
//! there is still something to wait for is asked under the bucket's lock, which the waker takes after it has changed what is
//! asked for: so either the sleeper sees the change or the waker sees the sleeper.
//!
//! A sleep may have an end of its own, and may be one that a notice ends ([`notify`]): those are the sleeps of programs.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use kernel_logic::fifo::Fifo;
use spin::Mutex;
use x86_64::instructions::interrupts;

use super::{MAX_THREADS, Named, THREADS, make_runnable, preempt, schedule, timer};
use crate::arch::x86_64::{percpu, tsc};

const BUCKETS: usize = 64;

static BUCKET: [Mutex<Fifo<MAX_THREADS>>; BUCKETS] = [const { Mutex::new(Fifo::new()) }; BUCKETS];

/// The bucket of a key. Objects are 64-byte aligned, or nearly so.
fn bucket(key: usize) -> &'static Mutex<Fifo<MAX_THREADS>> {
    let hash = (key as u64 >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    &BUCKET[(hash >> 58) as usize % BUCKETS]
}

/// Why a sleep has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Woken {
    /// There was nothing to wait for, or somebody called [`wake`].
    ByKey = 0,
    /// Its time was up.
    TimedOut = 1,
    /// The thread has a notice.
    Noticed = 2,
}

/// Sleeps until a [`wake`] of `key`, if `still()` says that there is something to wait for.
///
/// # Panics
/// With preemption off. When nobody is left who could ever wake anybody.
pub(crate) fn wait(key: usize, still: &dyn Fn() -> bool) {
    interrupts::without_interrupts(|| {
        let me = percpu::current_thread();
        if sleep(me, key, still) {
            schedule();
        }
    });
}

/// As [`wait`], but until `deadline` at most (a value of the time-stamp counter, or [`timer::NEVER`]), and not while the thread
/// has a notice.
///
/// # Panics
/// As [`wait`].
pub(crate) fn wait_until(key: usize, deadline: u64, still: &dyn Fn() -> bool) -> Woken {
    interrupts::without_interrupts(|| {
        let me = percpu::current_thread();
        let thread = &THREADS[me];
        if thread.noticed.load(Relaxed) {
            return Woken::Noticed;
        }
        if tsc::now() >= deadline {
            return if still() { Woken::TimedOut } else { Woken::ByKey };
        }
        if !sleep(me, key, still) {
            return Woken::ByKey;
        }
        thread.woken.store(Woken::ByKey as u8, Relaxed);
        thread.can_be_noticed.store(true, Relaxed);
        if deadline != timer::NEVER {
            timer::add(me, deadline);
        }
        schedule();
        thread.can_be_noticed.store(false, Relaxed);
        if deadline != timer::NEVER {
            timer::remove(me);
        }
        match thread.woken.load(Relaxed) {
            1 => Woken::TimedOut,
            2 => Woken::Noticed,
            _ => Woken::ByKey,
        }
    })
}

/// Puts the running thread among the sleepers, unless there is nothing to wait for.
fn sleep(me: usize, key: usize, still: &dyn Fn() -> bool) -> bool {
    assert_eq!(percpu::preempt_count(), 0, "{} sleeps with preemption off", Named(me));
    let mut bucket = bucket(key).lock();
    let sleeps = still();
    if sleeps {
        bucket.push(me);
        THREADS[me].sleeps_on.store(key, Relaxed);
    }
    sleeps
}

/// Wakes all sleepers on `key`, in the order in which they came.
pub(crate) fn wake(key: usize) {
    interrupts::without_interrupts(|| {
        let mut bucket = bucket(key).lock();
        while let Some(number) = bucket.take_first(|n| THREADS[n].sleeps_on.load(Relaxed) == key) {
            THREADS[number].sleeps_on.store(0, Relaxed);
            make_runnable(number);
        }
    });
}

/// Wakes one thread, if it sleeps. With interrupts off.
pub(super) fn wake_one(number: usize, why: Woken) {
    let key = THREADS[number].sleeps_on.load(Relaxed);
    if key != 0 && bucket(key).lock().take_first(|n| n == number).is_some() {
        THREADS[number].sleeps_on.store(0, Relaxed);
        THREADS[number].woken.store(why as u8, Relaxed);
        make_runnable(number);
    }
}

/// Tells a thread that there is something for it to look at: it leaves its program, and a sleep that can be left, soon. What it
/// is must be known before. Only for threads that will ask ([`take_notice`]).
pub(crate) fn notify(number: usize) {
    interrupts::without_interrupts(|| {
        let thread = &THREADS[number];
        thread.noticed.store(true, Relaxed);
        if number == percpu::current_thread() {
            percpu::set_notice(true);
        }
        if thread.can_be_noticed.load(Relaxed) {
            wake_one(number, Woken::Noticed);
        }
        preempt::start();
    });
}

/// Has the running thread a notice?
#[inline(always)]
pub(crate) fn has_notice() -> bool {
    percpu::has_notice()
}

/// Takes the running thread's notice; what it is about must be looked at after.
pub(crate) fn take_notice() -> bool {
    interrupts::without_interrupts(|| {
        percpu::set_notice(false);
        THREADS[percpu::current_thread()].noticed.swap(false, Relaxed)
    })
}

/// The running thread sleeps or has ended, no other can run, and nothing that could wake one is expected: that is the end.
#[cold]
pub(super) fn nobody_can_run() -> ! {
    panic!("deadlock: no thread can run and nobody is left to wake one: {Sleepers}");
}

/// Who sleeps on what.
struct Sleepers;

impl fmt::Display for Sleepers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (number, thread) in THREADS.iter().enumerate() {
            let key = thread.sleeps_on.load(Relaxed);
            if key != 0 {
                write!(f, "{separator}{} sleeps on {key:#x}", Named(number))?;
                separator = ", ";
            }
        }
        Ok(())
    }
}
