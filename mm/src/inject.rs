//! Deterministic allocation failures: "fail the n-th allocation of kind k". Every allocation of the memory manager
//! asks here first, so that a test can walk a failure through every site.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::error::OutOfMemory;

/// What an allocation is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Site {
    /// A folio's frames in RAM.
    RamFolio = 1 << 0,
    /// A folio's frames on a device.
    DeviceFolio = 1 << 1,
    /// A page table.
    Table = 1 << 2,
    /// A descriptor (folio, table, VMA, anon set, space) or a work record (migration unit, gather).
    Object = 1 << 3,
}

impl Site {
    /// Every site.
    pub const ALL: u32 = 0xf;
}

/// The plan in force. Off by default; then an allocation pays one load and one branch.
#[derive(Debug, Default)]
pub struct Inject {
    armed: AtomicU32,
    skip: AtomicU64,
    times: AtomicU64,
    /// The smallest order that fails (so that only huge allocations can be made to fail).
    min_order: AtomicU32,
    seen: AtomicU64,
}

/// Allocations are recorded ([`crate::trace`]); beside the sites, so that an allocation asks for both at once.
const WATCHED: u32 = 1 << 31;

impl Inject {
    pub(crate) const fn new() -> Self {
        Self {
            armed: AtomicU32::new(0),
            skip: AtomicU64::new(0),
            times: AtomicU64::new(0),
            min_order: AtomicU32::new(0),
            seen: AtomicU64::new(0),
        }
    }

    /// After `skip` allocations at one of `sites` (a mask of [`Site`]s) of at least `min_order`, fails the next `times`.
    pub fn arm(&self, sites: u32, min_order: u8, skip: u64, times: u64) {
        self.skip.store(skip, Relaxed);
        self.times.store(times, Relaxed);
        self.min_order.store(u32::from(min_order), Relaxed);
        self.seen.store(0, Relaxed);
        self.armed.store(sites & !WATCHED | self.armed.load(Relaxed) & WATCHED, Relaxed);
    }

    /// Ends the plan. Returns how many matching allocations were asked for while it was in force.
    pub fn disarm(&self) -> u64 {
        self.armed.fetch_and(WATCHED, Relaxed);
        self.seen.load(Relaxed)
    }

    /// A plan is in force. Then nobody tries again what has failed: a failure that was asked for must be one, and count once.
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Relaxed) & !WATCHED != 0
    }

    /// Whether allocations are to be recorded.
    pub(crate) fn watch(&self, on: bool) {
        if on {
            self.armed.fetch_or(WATCHED, Relaxed)
        } else {
            self.armed.fetch_and(!WATCHED, Relaxed)
        };
    }

    /// An allocation at `site` may fail by plan, or is to be recorded.
    #[inline(always)]
    pub(crate) fn is_watched(&self, site: Site) -> bool {
        self.armed.load(Relaxed) & (site as u32 | WATCHED) != 0
    }

    #[inline(always)]
    pub(crate) fn check(&self, site: Site, order: u8) -> Result<(), OutOfMemory> {
        if self.armed.load(Relaxed) & site as u32 == 0 { Ok(()) } else { self.check_armed(order) }
    }

    #[cold]
    fn check_armed(&self, order: u8) -> Result<(), OutOfMemory> {
        if u32::from(order) < self.min_order.load(Relaxed) {
            return Ok(());
        }
        let n = self.seen.fetch_add(1, Relaxed);
        let skip = self.skip.load(Relaxed);
        if n >= skip && n - skip < self.times.load(Relaxed) { Err(OutOfMemory { order }) } else { Ok(()) }
    }
}
