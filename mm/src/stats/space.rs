//! What one address space did.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::migrate::Cause;
use crate::stats::{Stayed, clear};

/// What one address space did. Counts are since it was made; pages are base pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpaceStat {
    /// Faults handled.
    pub faults: u64,
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
    pub(super) pages_out: AtomicU64,
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
        let Self { pages_in, pages_out, stayed, pages_evicted, splits, merges } = self;
        for counter in [pages_in, pages_out, pages_evicted, splits, merges] {
            counter.store(0, Relaxed);
        }
        clear(&stayed.0);
    }

    /// A fault brought these pages to RAM.
    #[inline(always)]
    pub(crate) fn returned(&self, pages: u64) {
        self.pages_out.fetch_add(pages, Relaxed);
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
        SpaceStat {
            faults,
            flushes,
            pages_in: get(&self.pages_in),
            pages_out: get(&self.pages_out),
            failed: self.stayed.read(),
            pages_evicted: get(&self.pages_evicted),
            splits: get(&self.splits),
            merges: get(&self.merges),
        }
    }
}
