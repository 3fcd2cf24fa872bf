//! Sleep and wake-up, by key.
//!
//! A key is an address that is unique to what is waited for. Sleepers stand in one of a fixed number of buckets. Whether
//! there is still something to wait for is asked under the bucket's lock, which the waker takes after it has changed what is
//! asked for: so either the sleeper sees the change or the waker sees the sleeper.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use kernel_logic::fifo::Fifo;
use spin::Mutex;
use x86_64::instructions::interrupts;

use super::{MAX_THREADS, Named, THREADS, make_runnable, schedule};
use crate::arch::x86_64::percpu;

const BUCKETS: usize = 64;

static BUCKET: [Mutex<Fifo<MAX_THREADS>>; BUCKETS] = [const { Mutex::new(Fifo::new()) }; BUCKETS];

/// The bucket of a key. Objects are 64-byte aligned, or nearly so.
fn bucket(key: usize) -> &'static Mutex<Fifo<MAX_THREADS>> {
    let hash = (key as u64 >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    &BUCKET[(hash >> 58) as usize % BUCKETS]
}

/// Sleeps until a [`wake`] of `key`, if `still()` says that there is something to wait for.
///
/// # Panics
/// With preemption off. When nobody is left who could ever wake anybody.
pub(crate) fn wait(key: usize, still: &dyn Fn() -> bool) {
    interrupts::without_interrupts(|| {
        let me = percpu::current_thread();
        assert_eq!(percpu::preempt_count(), 0, "{} sleeps with preemption off", Named(me));
        let mut bucket = bucket(key).lock();
        if !still() {
            return;
        }
        bucket.push(me);
        drop(bucket);
        THREADS[me].sleeps_on.store(key, Relaxed);
        schedule();
    });
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

/// The running thread sleeps or has ended, and no other can run: nothing but a thread wakes threads, so that is the end.
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
