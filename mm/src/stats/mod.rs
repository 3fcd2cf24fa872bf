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

mod device;
mod resident;
mod space;
mod vma;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::counters::Event;
use crate::device::Device;
use crate::machine::Machine;
use crate::migrate::{Cause, Report};
use crate::mm::Mm;
use crate::slab::NIL;
use crate::space::Space;
use crate::types::{Order, Place};

pub(crate) use device::DeviceCounters;
pub use device::DeviceStat;
pub use resident::Resident;
pub(crate) use space::SpaceCounters;
pub use space::SpaceStat;
pub use vma::VmaUse;

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

/// The name of a count for every order: a stem, and the size of a folio.
macro_rules! by_order {
    ($stem:literal) => {
        [
            concat!($stem, "_4kB"),
            concat!($stem, "_8kB"),
            concat!($stem, "_16kB"),
            concat!($stem, "_32kB"),
            concat!($stem, "_64kB"),
            concat!($stem, "_128kB"),
            concat!($stem, "_256kB"),
            concat!($stem, "_512kB"),
            concat!($stem, "_1024kB"),
            concat!($stem, "_2048kB"),
        ]
    };
}
use by_order;

/// Folios in RAM, and folios on all devices.
const RAM_FOLIOS: [&str; ORDERS] = by_order!("nr_ram_folios");
const DEVICE_FOLIOS: [&str; ORDERS] = by_order!("nr_device_folios");

fn write_by_order(
    names: &[&'static str; ORDERS],
    counts: &[u64; ORDERS],
    f: &mut dyn FnMut(&'static str, u64),
) {
    names.iter().zip(counts).for_each(|(name, &n)| f(name, n));
}

fn write_failed(failed: &[u64; Cause::COUNT], f: &mut dyn FnMut(&'static str, u64)) {
    Cause::ALL.iter().zip(failed).for_each(|(cause, &pages)| f(cause.stat_name(), pages));
}

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

    /// Folios in RAM now, by order, whoever has them, but not the zero pages. Counted from the frame map, without locks: exact
    /// on a machine at rest.
    #[must_use]
    pub fn folios_in_ram(&self) -> Folios {
        let mut folios = self.folios_in(Place::RAM);
        for zero in self.zero_frames().into_iter().flatten() {
            if let Some(folio) = self.try_get_folio(zero) {
                folios.0[usize::from(folio.order().get())] -= 1;
            }
        }
        folios
    }

    /// Folios on all devices now, by order; as [`Device::folios`].
    #[must_use]
    pub fn folios_on_devices(&self) -> Folios {
        let mut all = Folios::default();
        for zone in self.zones().filter(|zone| !zone.place().is_ram()) {
            let here = self.folios_in(zone.place());
            all.0.iter_mut().zip(here.0).for_each(|(all, n)| *all += n);
        }
        all
    }

    /// Pages of mapped folios that no object has, wherever they lie. Counted from the descriptors, without locks.
    fn anon_pages(&self) -> u64 {
        let mut pages = 0;
        self.folios.for_each(self, &mut |folio| {
            let set = folio.link().anon;
            if folio.refs() != 0
                && folio.map_count() != 0
                && set != NIL
                && !self.anons.get(set).is_of_object()
            {
                pages += u64::from(folio.order().pages());
            }
        });
        pages
    }

    /// Calls `f` with every counter of the machine, by a name that `/proc/vmstat` has or could have. Each device has its own
    /// ([`Device::vmstat`]), and so has each address space ([`Space::vmstat`]).
    pub fn vmstat(&self, f: &mut dyn FnMut(&'static str, u64)) {
        f("nr_free_pages", u64::from(self.ram.stat().free));
        f("nr_anon_pages", self.anon_pages());
        f("nr_page_table_pages", u64::from(self.tables.live()));
        for &event in Event::ALL {
            f(event.name(), M::counted(event));
        }
        f("pgmigrate_success", M::counted(Event::DevicePagesIn) + M::counted(Event::DevicePagesOut));
        write_failed(&self.stayed.read(), f);
        write_by_order(&RAM_FOLIOS, &self.folios_in_ram().0, f);
        write_by_order(&DEVICE_FOLIOS, &self.folios_on_devices().0, f);
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
pub(crate) fn batch_fault<M: Machine>(space: Option<&Space<M>>, device: &Device<M>) {
    if let Some(space) = space {
        space.counters.batch_faults.fetch_add(1, Relaxed);
    }
    device.counters.batch_faults.fetch_add(1, Relaxed);
}
