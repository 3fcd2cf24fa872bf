//! Deadlines: sleeps that end by themselves.
//!
//! A thread has at most one, that of its present [`wait`](super::wait::wait_until). The list is short (those who sleep with a
//! timeout) and not ordered; the soonest is kept beside it, so that the scheduler reads one word. Changed with interrupts off.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use kernel_logic::fifo::Fifo;
use spin::Mutex;

use super::{MAX_THREADS, THREADS, wait};
use crate::arch::x86_64::{apic, tsc};

/// No deadline.
pub(crate) const NEVER: u64 = u64::MAX;

/// Who has one.
static SLEEPERS: Mutex<Fifo<MAX_THREADS>> = Mutex::new(Fifo::new());
/// The soonest, in ticks of the time-stamp counter.
static SOONEST: AtomicU64 = AtomicU64::new(NEVER);

/// The soonest deadline of all.
#[inline(always)]
pub(super) fn soonest() -> u64 {
    SOONEST.load(Relaxed)
}

/// The running thread's sleep ends at `deadline`.
pub(super) fn add(number: usize, deadline: u64) {
    THREADS[number].deadline.store(deadline, Relaxed);
    SLEEPERS.lock().push(number);
    SOONEST.fetch_min(deadline, Relaxed);
}

/// It has ended; so its deadline is forgotten.
pub(super) fn remove(number: usize) {
    let mut sleepers = SLEEPERS.lock();
    let _ = sleepers.take_first(|n| n == number);
    THREADS[number].deadline.store(NEVER, Relaxed);
    find_soonest(&sleepers);
}

fn find_soonest(sleepers: &Fifo<MAX_THREADS>) {
    let deadlines = sleepers.iter().map(|n| THREADS[n].deadline.load(Relaxed));
    SOONEST.store(deadlines.min().unwrap_or(NEVER), Relaxed);
}

/// Wakes those whose deadline has come. They take themselves off the list when they run.
pub(super) fn expire() {
    let now = tsc::now();
    if now < soonest() {
        return;
    }
    let mut sleepers = SLEEPERS.lock();
    while let Some(number) = sleepers.take_first(|n| THREADS[n].deadline.load(Relaxed) <= now) {
        wait::wake_one(number, wait::Woken::TimedOut);
    }
    find_soonest(&sleepers);
}

/// Ticks of the APIC timer until the soonest deadline: at least one.
pub(super) fn ticks_to_soonest() -> u32 {
    let rates = apic::rates();
    let left = soonest().saturating_sub(tsc::now());
    let ticks = u128::from(left) * u128::from(rates.apic_hz) / u128::from(rates.tsc_hz.max(1)) + 1;
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// The deadline that is so many nanoseconds away.
pub(crate) fn after_nanoseconds(nanoseconds: u64) -> u64 {
    let ticks = u128::from(nanoseconds) * u128::from(apic::rates().tsc_hz) / 1_000_000_000;
    u64::try_from(ticks).map_or(NEVER - 1, |ticks| tsc::now().saturating_add(ticks).min(NEVER - 1))
}
