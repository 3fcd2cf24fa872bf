//! Where the pages lie that a space maps.

use crate::entry::{Entry, Leaf};
use crate::machine::Machine;
use crate::space::Space;
use crate::stats::{ORDERS, by_order, write_by_order, write_failed};
use crate::types::{Frame, MAX_DEVICES, Order};

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
        f("devmem_fault", stat.device_faults);
        f("nr_tlb_flush", stat.flushes);
        f("nr_rss_pages", resident.pages());
        f("nr_ram_pages", resident.ram.iter().sum());
        for (number, name) in DEVICE_NAMES.iter().enumerate() {
            f(name, resident.on_device(number));
        }
        write_by_order(&RAM_PAGES, &resident.ram, f);
        for (names, pages) in DEVICE_PAGES.iter().zip(&resident.devices) {
            write_by_order(names, pages, f);
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

/// Base pages that it maps, by the order of the folio that they are part of.
const RAM_PAGES: [&str; ORDERS] = by_order!("nr_ram_pages");
const DEVICE_PAGES: [[&str; ORDERS]; MAX_DEVICES] = [
    by_order!("nr_device0_pages"),
    by_order!("nr_device1_pages"),
    by_order!("nr_device2_pages"),
    by_order!("nr_device3_pages"),
];
