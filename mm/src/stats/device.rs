//! What a device did, and what is done to its counters.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::device::Device;
use crate::machine::Machine;
use crate::migrate::Cause;
use crate::stats::{ByOrder, Folios, ORDERS, Stayed, by_order, read, write_by_order, write_failed};
use crate::types::Order;

/// Folios that lie here.
const FOLIOS: [&str; ORDERS] = by_order!("nr_folios");

/// What can be counted per device. Counts are since boot; pages are base pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceStat {
    /// Pages allocated now.
    pub resident: u64,
    /// Folios allocated, by order (fresh ones: not the pieces of a split).
    pub allocated: [u64; ORDERS],
    /// Pages freed.
    pub freed_pages: u64,
    /// Units that arrived.
    pub units_in: u64,
    /// Pages that arrived, new ones for holes included.
    pub pages_in: u64,
    /// Folios that left, by fault or by call.
    pub out: Folios,
    /// Pages freed here without having left.
    pub pages_dropped: u64,
    /// Faults that brought a folio back.
    pub faults: u64,
    /// Pages that were to come here, or to leave, and stayed where they were, by [`Cause`].
    pub failed: [u64; Cause::COUNT],
    /// Pages moved away to make room, or because the device goes.
    pub pages_evicted: u64,
    /// Folio splits.
    pub splits: u64,
    /// Folios merged from smaller ones.
    pub merges: u64,
    /// Flush rounds that migrations here or from here took.
    pub flushes: u64,
}

/// The counters behind a [`DeviceStat`].
#[derive(Debug)]
pub(crate) struct DeviceCounters {
    allocated: ByOrder,
    /// Not counting what faults brought back.
    freed_pages: AtomicU64,
    units_in: AtomicU64,
    pages_in: AtomicU64,
    /// Folios that faults brought back by themselves, and whose memory was freed. A folio's whole story in one add; there are
    /// as many as an order has bits, so that the index needs no check.
    returned: [AtomicU64; 16],
    /// Folios that left in a batch.
    left: ByOrder,
    pages_dropped: AtomicU64,
    /// Faults whose folio came back in a batch.
    pub(super) batch_faults: AtomicU64,
    pub(super) stayed: Stayed,
    pages_evicted: AtomicU64,
    splits: AtomicU64,
    merges: AtomicU64,
    flushes: AtomicU64,
}

impl DeviceCounters {
    pub(crate) const fn new() -> Self {
        Self {
            allocated: [const { AtomicU64::new(0) }; ORDERS],
            freed_pages: AtomicU64::new(0),
            units_in: AtomicU64::new(0),
            pages_in: AtomicU64::new(0),
            returned: [const { AtomicU64::new(0) }; 16],
            left: [const { AtomicU64::new(0) }; ORDERS],
            pages_dropped: AtomicU64::new(0),
            batch_faults: AtomicU64::new(0),
            stayed: Stayed::new(),
            pages_evicted: AtomicU64::new(0),
            splits: AtomicU64::new(0),
            merges: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
        }
    }

    fn read(&self) -> DeviceStat {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let (allocated, returned, left) =
            (Folios(read(&self.allocated)), Folios(read(&self.returned)), Folios(read(&self.left)));
        let freed_pages = get(&self.freed_pages) + returned.pages();
        DeviceStat {
            resident: allocated.pages() - freed_pages,
            allocated: allocated.0,
            freed_pages,
            units_in: get(&self.units_in),
            pages_in: get(&self.pages_in),
            out: Folios(core::array::from_fn(|order| returned.0[order] + left.0[order])),
            pages_dropped: get(&self.pages_dropped),
            faults: returned.folios() + get(&self.batch_faults),
            failed: self.stayed.read(),
            pages_evicted: get(&self.pages_evicted),
            splits: get(&self.splits),
            merges: get(&self.merges),
            flushes: get(&self.flushes),
        }
    }
}

/// What happens to a device's memory, to be counted.
impl<M: Machine> Device<M> {
    #[inline(always)]
    pub(crate) fn allocated(&self, order: Order, n: u64) {
        self.counters.allocated[order.get() as usize].fetch_add(n, Relaxed);
    }
    #[inline(always)]
    pub(crate) fn freed(&self, pages: u32) {
        self.counters.freed_pages.fetch_add(u64::from(pages), Relaxed);
    }
    /// A fault brought a folio back, and its memory here is freed. Instead of [`Device::freed`] and [`Device::left`].
    #[inline(always)]
    pub(crate) fn returned(&self, order: Order) {
        self.counters.returned[usize::from(order.get() & 0xf)].fetch_add(1, Relaxed);
    }
    /// A folio left.
    #[inline(always)]
    pub(crate) fn left(&self, order: Order, units: u64) {
        self.counters.left[order.get() as usize].fetch_add(units, Relaxed);
    }
    /// Units arrived.
    pub(crate) fn arrived(&self, units: u64, pages: u64) {
        self.counters.units_in.fetch_add(units, Relaxed);
        self.counters.pages_in.fetch_add(pages, Relaxed);
    }
    /// A folio was freed here.
    pub(crate) fn dropped(&self, pages: u32) {
        self.counters.pages_dropped.fetch_add(u64::from(pages), Relaxed);
    }
    pub(crate) fn stayed(&self, cause: Cause, pages: u64) {
        self.counters.stayed.add(cause, pages);
    }
    pub(crate) fn split(&self) {
        self.counters.splits.fetch_add(1, Relaxed);
    }
    /// Smaller folios became one.
    pub(crate) fn merged(&self) {
        self.counters.merges.fetch_add(1, Relaxed);
    }
    /// A folio was moved away by an eviction.
    pub(crate) fn evicted(&self, pages: u64) {
        self.counters.pages_evicted.fetch_add(pages, Relaxed);
    }
    pub(crate) fn flushed(&self) {
        self.counters.flushes.fetch_add(1, Relaxed);
    }

    /// Counters.
    #[must_use]
    pub fn stat(&self) -> DeviceStat {
        self.counters.read()
    }

    /// Folios that lie here now, by order. Counted from the frame map, without locks: exact on a machine at rest.
    #[must_use]
    pub fn folios(&self) -> Folios {
        M::mm().folios_in(self.place())
    }

    /// Calls `f` with every counter of the device, by a name in the style of `/proc/vmstat`.
    pub fn vmstat(&self, f: &mut dyn FnMut(&'static str, u64)) {
        let (stat, memory) = (self.stat(), self.memory());
        let folios = self.folios();
        f("nr_managed_pages", u64::from(memory.managed));
        f("nr_free_pages", u64::from(memory.free));
        f("nr_resident_pages", stat.resident);
        write_by_order(&FOLIOS, &folios.0, f);
        f("devmem_migrate_in", stat.units_in);
        f("devmem_pages_in", stat.pages_in);
        f("devmem_migrate_out", stat.out.folios());
        f("devmem_pages_out", stat.out.pages());
        f("devmem_pages_dropped", stat.pages_dropped);
        f("devmem_pages_evicted", stat.pages_evicted);
        f("devmem_fault", stat.faults);
        write_failed(&stat.failed, f);
        f("thp_split_page", stat.splits);
        f("thp_merge_page", stat.merges);
        f("nr_tlb_flush", stat.flushes);
    }
}
