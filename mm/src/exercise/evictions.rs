//! Devices are emptied: by where their memory lies, frame by frame, and for good.

use alloc::format;
use alloc::vec::Vec;

use crate::exercise::rng::Rng;
use crate::exercise::runner::Runner;
use crate::exercise::world::World;
use crate::types::{Frame, Order, Place};

impl<W: World> Runner<'_, W> {
    /// Device memory is emptied by where it lies.
    pub(super) fn evict(&self, device: u8, start: u16, len: u16) {
        let place = self.place(1 + device);
        let zone = Self::mm().zone(place).frames();
        let pages = u64::from(zone.end - zone.start);
        let first = zone.start + (u64::from(start) * 7 % pages) as u32;
        let range = first..(first + u32::from(len)).min(zone.end);
        let calm = !self.has_obstacles() && !self.short_of(Place::RAM, u64::from(len) + 600);
        let report = Self::mm().evict_range(place, range.clone());
        self.world.model().borrow_mut().unsettle_all(|other| other == place);
        if !calm {
            return;
        }
        let left = range.clone().find(|&index| Self::mm().try_get_folio(Frame::new(place, index)).is_some());
        if report.failed_pages() != 0 || left.is_some() {
            self.fail(|| format!("eviction of {range:x?} of {place}: {report:?}, left: {left:x?}"));
        }
    }

    /// A frame, mostly of `place`: with a folio or without, of another device, of RAM, of nobody, or one that is in the list.
    fn draw(&self, place: Place, list: &[Frame], rng: &mut Rng) -> Frame {
        let zone = Self::mm().zone(place).frames();
        let pages = u64::from(zone.end - zone.start);
        match rng.below(16) {
            0 if !list.is_empty() => rng.pick(list),
            1 => self.draw_in(self.place(rng.below(4) as u8), rng),
            2 => Frame::new(place, zone.end + rng.below(1024) as u32),
            // The end of a block, then its beginning: a folio by its tail, then by its head.
            3 => Frame::new(place, zone.start + (rng.below(pages) as u32 | 511).min(pages as u32 - 1)),
            4 => Frame::new(place, zone.start + (rng.below(pages) as u32 & !511)),
            _ => self.draw_in(place, rng),
        }
    }

    fn draw_in(&self, place: Place, rng: &mut Rng) -> Frame {
        let zone = Self::mm().zone(place).frames();
        Frame::new(place, zone.start + rng.below(u64::from(zone.end - zone.start)) as u32)
    }

    /// The folios of these frames that lie on a device.
    fn folios_of(list: &[Frame]) -> Vec<(Frame, Order)> {
        let on_devices = list.iter().filter(|frame| !frame.place().is_ram());
        let found = on_devices.filter_map(|&frame| Self::mm().try_get_folio(frame));
        let mut folios: Vec<_> = found.map(|folio| (folio.frame(), folio.order())).collect();
        folios.sort_unstable();
        folios.dedup();
        folios
    }

    /// Folios are evicted by some frame of theirs: these, and no others.
    pub(super) fn evict_frames(&self, device: u8, count: u8, rng: &mut Rng) {
        let place = self.place(1 + device);
        let mut list: Vec<Frame> = Vec::new();
        for _ in 0..count {
            list.push(self.draw(place, &list, rng));
        }
        let folios = Self::folios_of(&list);
        let pages: u64 = folios.iter().map(|(_, order)| u64::from(order.pages())).sum();
        let calm = !self.has_obstacles() && !self.short_of(Place::RAM, pages + 600);
        let free = || {
            let each = (0..self.world.devices()).map(|n| u64::from(Self::mm().device(n).memory().free));
            each.sum::<u64>()
        };
        let before = free();
        let report = Self::mm().evict_frames(&list);
        let freed = free() - before;
        let model = &mut *self.world.model().borrow_mut();
        model.unsettle_all(|other| folios.iter().any(|(frame, _)| frame.place() == other));
        if freed > pages {
            self.fail(|| format!("eviction of {list:?} frees {freed} pages, of {folios:?}"));
        }
        if !calm {
            return;
        }
        model.note(if folios.iter().any(|(_, order)| *order == Order::PMD) {
            "evicted: 2 MiB by frames"
        } else {
            "evicted: small pages by frames"
        });
        let left = Self::folios_of(&list);
        if report.failed_pages() != 0 || !left.is_empty() || freed != pages {
            self.fail(|| {
                format!("eviction of {list:?} frees {freed} pages, of {folios:?}: {report:?}, left: {left:?}")
            });
        }
    }

    /// A device is taken out, and comes back empty; or a page on it stays, and it is said why.
    pub(super) fn replug(&self, device: u8) {
        let place = self.place(1 + device);
        let number = usize::from(device) % self.world.devices();
        let used =
            u64::from(Self::mm().device(number).memory().managed - Self::mm().device(number).memory().free);
        let calm = !self.has_obstacles() && !self.short_of(Place::RAM, used + 600);
        let Some(result) = self.world.replug(number) else { return };
        let model = &mut *self.world.model().borrow_mut();
        model.unsettle_all(|other| other == place);
        let memory = Self::mm().device(number).memory();
        match result {
            Ok(()) => {
                model.note("replugged");
                if memory.free != memory.managed || Self::mm().device(number).place() != place {
                    self.fail(|| format!("device {number} came back with {memory:?}"));
                }
            }
            Err(why) => {
                model.note("not replugged");
                let reason = why.refs > why.maps || why.locked || why.pins > 0;
                // Memory may be nobody's for a moment: taken for a migration, or held before it is mapped.
                let reason = reason || self.parked || !self.held.is_empty();
                if calm
                    || !reason
                        && !self.failing
                        && !self.failing_copies
                        && !self.short_of(Place::RAM, used + 600)
                {
                    self.fail(|| format!("device {number} cannot be taken out: {why}"));
                }
            }
        }
    }
}
