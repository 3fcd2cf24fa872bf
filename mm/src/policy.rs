//! Policies: what the memory manager chooses among where more than one way is right, as values that can be changed while it
//! runs (Linux: `/sys/kernel/mm/transparent_hugepage`, `tlb_single_page_flush_ceiling`).
//!
//! They are atomics with the defaults of a memory manager that nobody has touched. Each is read once in an operation, where a
//! constant would stand otherwise; what takes one page of 4 KiB reads none. A change holds for what begins after it and undoes
//! nothing: huge pages that are there stay. What follows from two of them together (huge pages take a folio of order 9; the flush
//! policy is a number of pages) is worked out when one is set, not when they are used.
//!
//! None of them changes what programs see, with one exception that says so: without break before make, a mapping of another size
//! or frame is made while the old translation may live on.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};

use crate::machine::FlushScope;
use crate::migrate::MAX_UNITS;
use crate::types::Order;
use crate::vma::HugeAdvice;

/// Where 2 MiB pages are wanted (Linux: `transparent_hugepage/enabled`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum HugePages {
    /// Where one fits, unless the mapping says no.
    Always,
    /// Where one fits and the mapping asks for it.
    #[default]
    Madvise,
    /// Nowhere.
    Never,
}

/// How a range leaves the TLBs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum FlushPolicy {
    /// Page by page up to the threshold, beyond it all translations of the space at once.
    #[default]
    Auto,
    /// Page by page, up to [`MAX_FLUSH_PAGES`].
    Ranged,
    /// All translations of the space at once, always.
    Full,
}

/// Most units of a batch, and how many there are unless somebody wants fewer.
pub const MAX_BATCH_UNITS: u32 = MAX_UNITS as u32;
/// Pages that are flushed one by one at most, whatever the policy: 1 GiB of 4 KiB pages. More would take seconds.
pub const MAX_FLUSH_PAGES: u32 = 1 << 18;
/// Pages beyond which all translations go at once, unless somebody wants another number.
pub(crate) const FLUSH_THRESHOLD: u32 = 32;

/// The policies of one memory manager.
#[derive(Debug)]
pub struct Policy {
    /// What was asked for, and what it comes to with the largest order.
    huge: AtomicU8,
    huge_now: AtomicU8,
    max_order: AtomicU8,
    granule: AtomicU8,
    batch_units: AtomicU32,
    flush: AtomicU8,
    flush_threshold: AtomicU32,
    /// What these two come to: pages of a range that are flushed one by one.
    flush_pages: AtomicU32,
    break_before_make: AtomicBool,
}

impl Policy {
    pub(crate) const fn new() -> Self {
        Self {
            huge: AtomicU8::new(HugePages::Madvise as u8),
            huge_now: AtomicU8::new(HugePages::Madvise as u8),
            max_order: AtomicU8::new(Order::PMD.get()),
            granule: AtomicU8::new(Order::PMD.get()),
            batch_units: AtomicU32::new(MAX_BATCH_UNITS),
            flush: AtomicU8::new(FlushPolicy::Auto as u8),
            flush_threshold: AtomicU32::new(FLUSH_THRESHOLD),
            flush_pages: AtomicU32::new(FLUSH_THRESHOLD),
            break_before_make: AtomicBool::new(true),
        }
    }

    /// Sets where faults and migrations of holes want 2 MiB pages. A collapse is a wish of its own.
    pub fn set_huge(&self, huge: HugePages) {
        self.huge.store(huge as u8, Relaxed);
        self.settle_huge();
    }

    /// Where 2 MiB pages are wanted, as it was set.
    #[must_use]
    pub fn huge(&self) -> HugePages {
        match self.huge.load(Relaxed) {
            0 => HugePages::Always,
            1 => HugePages::Madvise,
            _ => HugePages::Never,
        }
    }

    /// Sets the largest order of a folio that a fault or a migration makes. What is larger arrives in pieces.
    pub fn set_max_order(&self, order: Order) {
        self.max_order.store(order.get(), Relaxed);
        self.settle_huge();
    }

    fn settle_huge(&self) {
        let room = self.max_order.load(Relaxed) == Order::PMD.get();
        let huge = if room { self.huge.load(Relaxed) } else { HugePages::Never as u8 };
        self.huge_now.store(huge, Relaxed);
    }

    /// Sets how much of a device folio a CPU's touch brings back, at most: a larger one is cut around the address first, and the
    /// rest stays. Where it cannot be cut (somebody holds it, or there is no memory for the pieces), all of it comes.
    pub fn set_granule(&self, order: Order) {
        self.granule.store(order.get(), Relaxed);
    }

    /// Sets how many units a batch of a migration has at most: as many share one flush round. Out of range is brought into it,
    /// from 1 to [`MAX_BATCH_UNITS`].
    pub fn set_batch_units(&self, units: u32) {
        self.batch_units.store(units.clamp(1, MAX_BATCH_UNITS), Relaxed);
    }

    /// Sets how ranges are flushed.
    pub fn set_flush(&self, flush: FlushPolicy) {
        self.flush.store(flush as u8, Relaxed);
        self.settle_flush();
    }

    /// Sets up to how many pages are flushed one by one with [`FlushPolicy::Auto`]; [`MAX_FLUSH_PAGES`] at most.
    pub fn set_flush_threshold(&self, pages: u32) {
        self.flush_threshold.store(pages.min(MAX_FLUSH_PAGES), Relaxed);
        self.settle_flush();
    }

    /// Pages of a range that are flushed one by one as things stand; of more, all translations of the space go.
    #[must_use]
    pub fn flush_pages(&self) -> u32 {
        self.flush_pages.load(Relaxed)
    }

    fn settle_flush(&self) {
        let flush = self.flush.load(Relaxed);
        let pages = if flush == FlushPolicy::Full as u8 {
            0
        } else if flush == FlushPolicy::Ranged as u8 {
            MAX_FLUSH_PAGES
        } else {
            self.flush_threshold.load(Relaxed)
        };
        self.flush_pages.store(pages, Relaxed);
    }

    /// For experiments: `false` maps the new before the old is flushed, where a mapping changes its size or its frame. The flush
    /// comes right after, under the same lock. In between, one address has two live translations: a CPU that walks just then may
    /// use either, and some CPUs do worse (AMD erratum 383).
    pub fn set_break_before_make(&self, first: bool) {
        self.break_before_make.store(first, Relaxed);
    }

    /// Back to the defaults.
    pub fn reset(&self) {
        self.set_huge(HugePages::default());
        self.set_max_order(Order::PMD);
        self.set_granule(Order::PMD);
        self.set_batch_units(MAX_BATCH_UNITS);
        self.set_flush(FlushPolicy::default());
        self.set_flush_threshold(FLUSH_THRESHOLD);
        self.set_break_before_make(true);
    }

    /// Does a mapping with this advice get 2 MiB pages?
    #[inline(always)]
    pub(crate) fn wants_huge(&self, advice: HugeAdvice) -> bool {
        let now = self.huge_now.load(Relaxed);
        match advice {
            HugeAdvice::Huge => now != HugePages::Never as u8,
            HugeAdvice::Default => now == HugePages::Always as u8,
            HugeAdvice::NoHuge => false,
        }
    }

    #[inline(always)]
    pub(crate) fn max_order(&self) -> Order {
        Order::from_bits(u32::from(self.max_order.load(Relaxed)))
    }

    #[inline(always)]
    pub(crate) fn granule(&self) -> Order {
        Order::from_bits(u32::from(self.granule.load(Relaxed)))
    }

    #[inline(always)]
    pub(crate) fn batch_units(&self) -> usize {
        self.batch_units.load(Relaxed) as usize
    }

    /// What is asked of the machine when `scope` is owed.
    #[inline(always)]
    pub(crate) fn flush_scope(&self, scope: FlushScope) -> FlushScope {
        match scope {
            FlushScope::Range { range, stride }
                if range.len() > u64::from(self.flush_pages.load(Relaxed)) * stride =>
            {
                FlushScope::All
            }
            scope => scope,
        }
    }

    #[inline(always)]
    pub(crate) fn breaks_before_make(&self) -> bool {
        self.break_before_make.load(Relaxed)
    }
}
