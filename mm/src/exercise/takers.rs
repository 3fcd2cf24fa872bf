//! Pins, migrations from anywhere, and small pages that become one.

use alloc::format;

use crate::error::RangeError;
use crate::exercise::model::{Backing, ModelPage, pages};
use crate::exercise::runner::Runner;
use crate::exercise::seats::is_device;
use crate::exercise::world::World;
use crate::gup::{PinError, PinFlags, Pinned};
use crate::inject::Site;
use crate::migrate::{Cause, MigrateFlags, MigrateOptions, Sources};
use crate::types::{Access, PAGE_SIZE, Place, Prot, VaRange};

impl<W: World> Runner<'_, W> {
    /// What trackers say of the pages is not known any more.
    fn forget_marks(&self, n: usize, range: VaRange) {
        let model = &mut self.world.model().borrow_mut().spaces[n];
        let (first, end) = (pages(range).start & !511, pages(range).end.next_multiple_of(512));
        model.content.range_mut(first..end).for_each(|(_, page)| (page.soft, page.wp) = (None, None));
    }

    /// Small pages become one, in RAM or on their device. Contents stay what they are.
    pub(super) fn collapse(&self, space: u8, range: VaRange, device: bool) {
        let (n, space) = self.space(space);
        if device && !self.failing {
            // Small pages get there when no large ones are to be had. What stays is told, and no matter.
            Self::mm().inject.arm(Site::DeviceFolio as u32, 1, 0, u64::MAX);
            let _ = space.migrate(range, self.place(1));
            Self::mm().inject.disarm();
        }
        let result = if device { space.merge_device(range) } else { space.collapse(range) };
        self.forget_marks(n, range);
        // A large page is made of what lies in all of its 2 MiB, for this space alone or for all who map it.
        let model = &mut *self.world.model().borrow_mut();
        model.unsettle_family(n, |_| device);
        if !device {
            model.spaces[n].unsettle(None, is_device);
        }
        if let Err(e) = result {
            self.fail(|| format!("merge (device: {device}) of {range} in space {n}: {e:?}"));
        }
    }

    /// Pins pages one by one, so that it is known which.
    pub(super) fn pin_pages(&mut self, space: u8, range: VaRange, write: bool, long: bool) {
        let (n, space) = self.space(space);
        let mut flags = PinFlags::FAST;
        flags.set(PinFlags::WRITE, write);
        flags.set(PinFlags::LONGTERM, long);
        let access = if write { Access::Write } else { Access::Read };
        for page in pages(range) {
            let allowed = self.world.model().borrow().allows(n, page, access) == Some(true);
            let mut pin: [Option<Pinned<W::Machine>>; 1] = [None];
            let range = VaRange::new(page * PAGE_SIZE, PAGE_SIZE);
            let before = self.world.model().borrow().place(n, page);
            let result = space.pin_pages(range, flags, &mut pin);
            self.forget_marks(n, range);
            self.note_pinned(n, page, before, long, result.is_ok());
            match (result, pin) {
                (Ok(()), [Some(pin)]) if allowed => {
                    self.note_pin(n, page, &pin, long);
                    self.pins.push(pin);
                }
                (Err(PinError::NoMemory(_) | PinError::Fault(_)), _) if !allowed || self.may_fail() => {}
                (Err(PinError::Busy(_)), _) if self.has_obstacles() => {}
                (result, _) => {
                    self.fail(|| format!("pin (write: {write}) of page {page:#x} of space {n}: {result:?}"));
                    return;
                }
            }
        }
    }

    /// A pin is a touch, and for reading too it wants a page that nobody shares, which is copied for it. A long one brings the page to
    /// RAM from a device that CPUs reach.
    fn note_pinned(&self, n: usize, page: u64, before: Option<Place>, long: bool, done: bool) {
        let model = &mut *self.world.model().borrow_mut();
        model.touched(n, page, before, true, done);
        if long {
            model.unsettle_family(n, is_device);
        }
        if done {
            model.note(match before {
                Some(place) if place.is_coherent() && long => "pinned for long: was coherent",
                Some(place) if place.is_coherent() => "pinned: coherent",
                Some(place) if is_device(place) && long => "pinned for long: was private",
                Some(place) if is_device(place) => "pinned: was private",
                _ if long => "pinned for long: RAM",
                _ => "pinned: RAM",
            });
        }
    }

    fn may_fail(&self) -> bool {
        self.has_obstacles() || self.short_of(Place::RAM, 600)
    }

    /// A pinned page is the mapping's own, with what the program sees in it.
    fn note_pin(&self, n: usize, page: u64, pin: &Pinned<W::Machine>, long: bool) {
        let model = &mut *self.world.model().borrow_mut();
        let (expected, found) = (model.words(n, page), self.peek(pin.frame()));
        if found != expected || long && !pin.frame().place().is_ram() {
            self.fail(|| {
                format!(
                    "space {n}: page {page:#x} is pinned in {} with {found:x?}, not {expected:x?}",
                    pin.frame()
                )
            });
        }
        let space = &mut model.spaces[n];
        if matches!(space.vma(page).map(|vma| vma.backing), Some(Backing::Private(_))) {
            let copied = ModelPage { words: expected, clean: true, soft: None, wp: None, place: None };
            space.content.entry(page).or_insert(copied);
        }
    }

    /// A migration from everywhere.
    pub(super) fn fetch(&self, space: u8, range: VaRange, to: u8, fault: bool, write: bool) {
        let (n, space) = self.space(space);
        let to = self.place(to);
        // Which pages of an object it copies is not known.
        let private = |page| {
            let model = self.world.model().borrow();
            matches!(model.spaces[n].vma(page).map(|vma| vma.backing), Some(Backing::Private(_)))
        };
        let fault = fault && !pages(range).any(private);
        let mut flags = MigrateFlags::empty();
        flags.set(MigrateFlags::FAULT, fault);
        flags.set(MigrateFlags::WRITE, fault && write);
        let from = Sources::devices().and(Place::RAM).without(to);
        let options = MigrateOptions::to(to).from(from).with(flags);
        let needed = if fault && write { Prot::RW } else { Prot::READ };
        let expected = self.migratable(n, range, needed);
        let roomy = !self.short_of(to, range.nr_pages()) && !self.short_of(Place::RAM, range.nr_pages());
        let mut told = 0;
        let result = space.migrate_with(range, to, &options, &mut |unit| told += u64::from(unit.pages));
        if fault && write {
            self.forget_marks(n, range);
        }
        let report = match result {
            Ok(report) if expected.is_ok() => report,
            Err(e @ (RangeError::NotMapped(_) | RangeError::NotMigratable(_))) if expected == Err(e) => {
                return;
            }
            other => {
                return self.fail(|| {
                    format!("fetch {range} of space {n} to {to}: {other:?}, expected {expected:?}")
                });
            }
        };
        self.check_report(range, to, &report);
        let from = options.sources(to);
        let calm = roomy && !self.has_obstacles();
        self.note_moved(n, range, to, from, calm);
        if fault && write {
            // A copy of what is shared is at the destination, whether it lay there or not.
            self.world.model().borrow_mut().spaces[n].unsettle(Some(range), |place| !calm || place != to);
        }
        let stay = report.failed[Cause::NotAnon as usize] + report.failed[Cause::Foreign as usize];
        if calm && report.failed_pages() != stay {
            self.fail(|| format!("fetch {range} of space {n} to {to} had all it needs: {report:?}"));
        }
        // Without memory for a note of it, what stayed is only counted.
        let all = report.pages + report.failed_pages();
        if told > all || told < all && !self.may_fail() {
            self.fail(|| format!("fetch {range} of space {n} to {to} told of {told} pages: {report:?}"));
        }
    }
}
