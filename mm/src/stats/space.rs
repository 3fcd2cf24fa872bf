//! What one address space did.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::migrate::Cause;
use crate::stats::{Folios, Stayed, clear, read};
use crate::types::Order;

/// What one address space did. Counts are since it was made; pages are base pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpaceStat {
    /// Faults handled.
    pub faults: u64,
    /// Those of them that brought a folio back from a device.
    pub device_faults: u64,
    /// Flush rounds.
    pub flushes: u64,
    /// Pages that its migrations moved to a device.
    pub pages_in: u64,
    /// Pages that its migrations and faults moved to RAM.
    pub pages_out: u64,
    /// Pages that its migrations and faults left where they were, by [`Cause`].
    pub failed: [u64; Cause::COUNT],
    /// Pages of it that an eviction moved to RAM.
    pub pages_evicted: u64,
    /// Folio splits that its operations made.
    pub splits: u64,
    /// Folios that its operations merged from smaller ones.
    pub merges: u64,
}

/// The counters behind a [`SpaceStat`], but for faults and flushes.
#[derive(Debug)]
pub(crate) struct SpaceCounters {
    pub(super) pages_in: AtomicU64,
    /// Not counting what faults brought back by themselves.
    pub(super) pages_out: AtomicU64,
    /// Folios that faults brought back by themselves, by order: the fault, the folio and its pages in one add.
    returned: [AtomicU64; 16],
    /// Faults whose folio came back in a batch.
    pub(super) batch_faults: AtomicU64,
    pub(super) stayed: Stayed,
    pages_evicted: AtomicU64,
    splits: AtomicU64,
    merges: AtomicU64,
}

impl Default for SpaceCounters {
    fn default() -> Self {
        Self {
            pages_in: AtomicU64::new(0),
            pages_out: AtomicU64::new(0),
            returned: [const { AtomicU64::new(0) }; 16],
            batch_faults: AtomicU64::new(0),
            stayed: Stayed::new(),
            pages_evicted: AtomicU64::new(0),
            splits: AtomicU64::new(0),
            merges: AtomicU64::new(0),
        }
    }
}

impl SpaceCounters {
    /// For a new space.
    pub(crate) fn clear(&self) {
        let Self { pages_in, pages_out, returned, batch_faults, stayed, pages_evicted, splits, merges } =
            self;
        for counter in [pages_in, pages_out, batch_faults, pages_evicted, splits, merges] {
            counter.store(0, Relaxed);
        }
        clear(returned);
        clear(&stayed.0);
    }

    /// A fault brought a folio to RAM.
    #[inline(always)]
    pub(crate) fn returned(&self, order: Order) {
        self.returned[usize::from(order.get() & 0xf)].fetch_add(1, Relaxed);
    }
    pub(crate) fn split(&self) {
        self.splits.fetch_add(1, Relaxed);
    }
    /// Smaller folios became one.
    pub(crate) fn merged(&self) {
        self.merges.fetch_add(1, Relaxed);
    }
    /// Pages were moved away by an eviction.
    pub(crate) fn evicted(&self, pages: u64) {
        self.pages_evicted.fetch_add(pages, Relaxed);
    }

    pub(crate) fn read(&self, faults: u64, flushes: u64) -> SpaceStat {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let returned = Folios(read(&self.returned));
        SpaceStat {
            faults,
            device_faults: returned.folios() + get(&self.batch_faults),
            flushes,
            pages_in: get(&self.pages_in),
            pages_out: get(&self.pages_out) + returned.pages(),
            failed: self.stayed.read(),
            pages_evicted: get(&self.pages_evicted),
            splits: get(&self.splits),
            merges: get(&self.merges),
        }
    }
}
