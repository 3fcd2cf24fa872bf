//! What a device, an address space and the machine did and own: counters that add up, and counts made on reading.
//!
//! A path that is run for every page pays one add here, whatever it tells: a fault-back adds to the folios that came back by
//! order, and faults, folios and pages are worked out when somebody asks. What is rare, or done once per batch, has counters
//! of its own. Who lies where is counted on reading, from the frame map and the page tables, which cannot be wrong.
//!
//! ```text
//!   per device:   in - out - dropped = resident = allocated - freed
//!   per machine:  each of in, out, dropped = its sum over the devices;  faults = sum of their outcomes
//! ```

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::counters::Event;
use crate::device::Device;
use crate::entry::{Entry, Leaf};
use crate::machine::Machine;
use crate::migrate::{Cause, Report};
use crate::mm::Mm;
use crate::space::Space;
use crate::types::{Frame, MAX_DEVICES, Order, Place};

/// Orders of folios.
const ORDERS: usize = Order::PMD.get() as usize + 1;

type ByOrder = [AtomicU64; ORDERS];

fn read(counters: &[AtomicU64]) -> [u64; ORDERS] {
    core::array::from_fn(|order| counters[order].load(Relaxed))
}

fn clear(counters: &[AtomicU64]) {
    counters.iter().for_each(|counter| counter.store(0, Relaxed));
}

/// Pages that stayed where they were, by cause.
#[derive(Debug)]
pub(crate) struct Stayed([AtomicU64; Cause::COUNT]);

impl Stayed {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Cause::COUNT])
    }

    pub(crate) fn add(&self, cause: Cause, pages: u64) {
        self.0[cause as usize].fetch_add(pages, Relaxed);
    }

    fn add_all(&self, failed: &[u64; Cause::COUNT]) {
        for (counter, &pages) in self.0.iter().zip(failed) {
            if pages != 0 {
                counter.fetch_add(pages, Relaxed);
            }
        }
    }

    pub(crate) fn read(&self) -> [u64; Cause::COUNT] {
        core::array::from_fn(|cause| self.0[cause].load(Relaxed))
    }
}

/// Folios counted by order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Folios(pub [u64; ORDERS]);

impl Folios {
    /// How many folios.
    #[must_use]
    pub fn folios(&self) -> u64 {
        self.0.iter().sum()
    }
    /// How many base pages they have.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.0.iter().enumerate().map(|(order, n)| n << order).sum()
    }
}

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
    batch_faults: AtomicU64,
    stayed: Stayed,
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
    pub(crate) fn left(&self, order: Order) {
        self.counters.left[order.get() as usize].fetch_add(1, Relaxed);
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
        RESIDENT_NAMES.iter().zip(folios.0).for_each(|(name, n)| f(name, n));
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

/// Folios resident, by order.
const RESIDENT_NAMES: [&str; ORDERS] = [
    "nr_folios_4kB",
    "nr_folios_8kB",
    "nr_folios_16kB",
    "nr_folios_32kB",
    "nr_folios_64kB",
    "nr_folios_128kB",
    "nr_folios_256kB",
    "nr_folios_512kB",
    "nr_folios_1024kB",
    "nr_folios_2048kB",
];

fn write_failed(failed: &[u64; Cause::COUNT], f: &mut dyn FnMut(&'static str, u64)) {
    Cause::ALL.iter().zip(failed).for_each(|(cause, &pages)| f(cause.stat_name(), pages));
}

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
    pages_in: AtomicU64,
    pages_out: AtomicU64,
    stayed: Stayed,
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

/// Where the pages lie that a space maps. Base pages by the order of their folio; a page that is mapped twice counts twice,
/// zero pages do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Resident {
    /// In RAM.
    pub ram: [u64; ORDERS],
    /// On each device.
    pub devices: [[u64; ORDERS]; MAX_DEVICES],
}

impl Resident {
    /// All of them: the resident set, which has pages on devices in it (Linux: anonymous rss).
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.ram.iter().chain(self.devices.iter().flatten()).sum()
    }
    /// Those on a device.
    #[must_use]
    pub fn on_device(&self, number: usize) -> u64 {
        self.devices[number].iter().sum()
    }
}

impl<M: Machine> Space<M> {
    /// Where the pages lie that it maps, counted from its page tables. The VMA lock is held shared; exact while nothing moves.
    #[must_use]
    pub fn resident(&self) -> Resident {
        let mm = M::mm();
        let _vmas = self.vmas.read();
        let mut resident = Resident::default();
        let mut note = |frame: Frame, pages: u32| {
            let index = mm.zone(frame.place()).folio_index(frame.index());
            let order = index.map_or(Order::BASE, |index| mm.folios.get(index).order());
            let here = match frame.place().device_number() {
                None => &mut resident.ram,
                Some(number) => &mut resident.devices[number],
            };
            here[usize::from(order.get())] += u64::from(pages);
        };
        self.for_each_entry(
            &mut |_, level, word| match Entry::decode(word, level) {
                Entry::Leaf(Leaf { frame, special: false, .. }) => note(frame, level.order().pages()),
                Entry::NonPresent(soft) => note(soft.frame, level.order().pages()),
                _ => {}
            },
            &mut |_, _, _| {},
        );
        resident
    }

    /// Calls `f` with every counter of the space, by a name in the style of `/proc/vmstat`.
    pub fn vmstat(&self, f: &mut dyn FnMut(&'static str, u64)) {
        let (stat, resident) = (self.stat(), self.resident());
        f("pgfault", stat.faults);
        f("nr_tlb_flush", stat.flushes);
        f("nr_rss_pages", resident.pages());
        f("nr_ram_pages", resident.ram.iter().sum());
        for (number, name) in DEVICE_NAMES.iter().enumerate() {
            f(name, resident.on_device(number));
        }
        f("devmem_pages_in", stat.pages_in);
        f("devmem_pages_out", stat.pages_out);
        f("devmem_pages_evicted", stat.pages_evicted);
        write_failed(&stat.failed, f);
        f("thp_split_page", stat.splits);
        f("thp_merge_page", stat.merges);
    }
}

const DEVICE_NAMES: [&str; MAX_DEVICES] =
    ["nr_device0_pages", "nr_device1_pages", "nr_device2_pages", "nr_device3_pages"];

impl<M: Machine> Mm<M> {
    /// The folios of `place`, by order, from its frame map.
    pub(crate) fn folios_in(&self, place: Place) -> Folios {
        let mut folios = Folios::default();
        self.zone(place).for_each_folio(&mut |frame, index| {
            let folio = self.folios.get(index);
            if folio.refs() == 0 || folio.frame() != frame {
                return 1;
            }
            folios.0[usize::from(folio.order().get())] += 1;
            folio.order().pages()
        });
        folios
    }

    /// Calls `f` with every counter of the machine, by a name that `/proc/vmstat` has or could have. Each device has its own
    /// ([`Device::vmstat`]), and so has each address space ([`Space::vmstat`]).
    pub fn vmstat(&self, f: &mut dyn FnMut(&'static str, u64)) {
        f("nr_free_pages", u64::from(self.ram.stat().free));
        for &event in Event::ALL {
            f(event.name(), M::counted(event));
        }
        f("pgmigrate_success", M::counted(Event::DevicePagesIn) + M::counted(Event::DevicePagesOut));
        write_failed(&self.stayed.read(), f);
    }
}

/// Counts what a batch has left where it was: for the machine, its space, and the device that it was to come to. Pages that were
/// to leave a device are counted there when they are left ([`stayed_on`]).
pub(crate) fn batch_stayed<M: Machine>(to: Place, space: Option<&Space<M>>, report: &Report) {
    if report.failed_pages() == 0 {
        return;
    }
    M::mm().stayed.add_all(&report.failed);
    if let Some(space) = space {
        space.counters.stayed.add_all(&report.failed);
    }
    if let Some(number) = to.device_number() {
        M::mm().device(number).counters.stayed.add_all(&report.failed);
    }
}

/// Counts 2 MiB in a space that became one folio, in `place`.
pub(crate) fn merged<M: Machine>(space: &Space<M>, place: Place) {
    space.counters.merged();
    if let Some(number) = place.device_number() {
        M::mm().device(number).merged();
    }
}

/// Counts pages that were to leave `from` and stayed, if that is a device.
pub(crate) fn stayed_on<M: Machine>(from: Place, cause: Cause, pages: u32) {
    if let Some(number) = from.device_number() {
        M::mm().device(number).stayed(cause, u64::from(pages));
    }
}

/// Counts what a batch has moved, for the space whose it was.
pub(crate) fn batch_moved<M: Machine>(to: Place, space: Option<&Space<M>>, pages: u64) {
    if let Some(space) = space {
        let counter = if to.is_ram() { &space.counters.pages_out } else { &space.counters.pages_in };
        counter.fetch_add(pages, Relaxed);
    }
}

/// Counts a fault's folio that stayed on its device.
#[cold]
pub(crate) fn fault_stayed<M: Machine>(space: &Space<M>, device: &Device<M>, cause: Cause, pages: u32) {
    let pages = u64::from(pages);
    M::mm().stayed.add(cause, pages);
    space.counters.stayed.add(cause, pages);
    device.stayed(cause, pages);
}

/// Counts a fault whose folio came back in a batch.
#[cold]
pub(crate) fn batch_fault<M: Machine>(device: &Device<M>) {
    device.counters.batch_faults.fetch_add(1, Relaxed);
}
