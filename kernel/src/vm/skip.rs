//! An experiment: the flushes of one kind are left out, to see what breaks.
//!
//! Off unless a test turns it on; then [`Machine::flush`](farpage_mm::Machine::flush) passes over requests of that
//! [`FlushReason`]. It is how the kernel's tests know that they would notice: each flush that matters under QEMU is left out
//! once, and stale data must be seen.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use farpage_mm::FlushReason;

use crate::arch::x86_64::tlb;

const NONE: usize = usize::MAX;
static REASON: AtomicUsize = AtomicUsize::new(NONE);
static SKIPPED: AtomicU64 = AtomicU64::new(0);

/// Is a flush for this reason to be left out?
#[inline(always)]
pub(super) fn skips(reason: FlushReason) -> bool {
    let skips = REASON.load(Relaxed) == reason as usize;
    if skips {
        SKIPPED.fetch_add(1, Relaxed);
    }
    skips
}

/// While it lives, flushes of one kind are left out. Its end drops every translation that has become stale.
#[must_use = "flushes are left out only while this lives"]
#[derive(Debug)]
pub(crate) struct Skipping {
    /// What was left out before, and is again afterwards.
    before: usize,
}

/// Leaves out the flushes for `reason`, instead of others while it lasts. For tests and experiments.
pub(crate) fn skip_flushes(reason: FlushReason) -> Skipping {
    SKIPPED.store(0, Relaxed);
    Skipping { before: REASON.swap(reason as usize, Relaxed) }
}

impl Skipping {
    /// How many flushes were left out so far.
    pub(crate) fn skipped(&self) -> u64 {
        SKIPPED.load(Relaxed)
    }
}

impl Drop for Skipping {
    fn drop(&mut self) {
        REASON.store(self.before, Relaxed);
        tlb::flush();
    }
}

crate::ktest! {
    fn what_was_left_out_before_is_left_out_again() {
        use FlushReason::{Protect, Unmap};
        let outer = skip_flushes(Protect);
        drop(skip_flushes(Unmap));
        crate::check!(skips(Protect) && !skips(Unmap));
        drop(outer);
        crate::check!(!skips(Protect));
    }
}
