//! Migrations, whole and parked, and what keeps memory from others.

use alloc::format;
use alloc::vec::Vec;

use crate::entry::Entry;
use crate::error::RangeError;
use crate::exercise::actions::{Action, PAGES, range};
use crate::exercise::model::{OBJECT_PAGES, pages};
use crate::exercise::reports::Watched;
use crate::exercise::rng::Rng;
use crate::exercise::runner::Runner;
use crate::exercise::world::World;
use crate::folio::FolioRef;
use crate::migrate::{Cause, Committed, MigrateOptions, Migration, Report, Sources, UnitReport};
use crate::types::{Order, PAGE_SHIFT, PAGE_SIZE, Place, Prot, USER_END, VaRange, Vaddr};
use crate::zone::Need;

/// What happens while a migration is parked, by the number in the action.
pub(super) const MEANWHILE: [&str; 18] = [
    "parked: unmap",
    "parked: forbid all",
    "parked: forbid writes",
    "parked: allow writes",
    "parked: DontNeed",
    "parked: Free",
    "parked: track writes",
    "parked: clear soft-dirty",
    "parked: end tracking",
    "parked: clone",
    "parked: remap",
    "parked: exit",
    "parked: evict",
    "parked: snapshot",
    "parked: migrate",
    "parked: collapse",
    "parked: replug",
    "parked: object unmap",
];

impl<W: World> Runner<'_, W> {
    pub(super) fn place(&self, to: u8) -> Place {
        if to == 0 {
            Place::RAM
        } else {
            Self::mm().device((usize::from(to) - 1) % self.world.devices()).place()
        }
    }

    /// What the model says about the range as a whole.
    pub(super) fn migratable(&self, n: usize, range: VaRange, needed: Prot) -> Result<(), RangeError> {
        let model = &self.world.model().borrow().spaces[n];
        let hole = model.first(range, |vma| vma.is_none());
        let closed = model.first(range, |vma| vma.is_some_and(|v| !v.prot.contains(needed)));
        match (hole, closed) {
            (Some(h), Some(c)) if c < h => Err(RangeError::NotMigratable(c)),
            (Some(h), _) => Err(RangeError::NotMapped(h)),
            (None, Some(c)) => Err(RangeError::NotMigratable(c)),
            (None, None) => Ok(()),
        }
    }

    pub(super) fn migrate(&self, space: u8, range: VaRange, to: u8) {
        let (n, space) = self.space(space);
        let to = self.place(to);
        let expected = self.migratable(n, range, Prot::READ);
        let roomy = !self.short_of(to, range.nr_pages()) && !self.short_of(Place::RAM, 0);
        let report = match space.migrate(range, to) {
            Ok(report) if expected.is_ok() => report,
            Err(e) if expected == Err(e) => return,
            other => {
                self.fail(|| {
                    format!("migrate {range} of space {n} to {to}: {other:?}, expected {expected:?}")
                });
                return;
            }
        };
        self.check_report(range, to, &report);
        let calm = roomy && !self.has_obstacles();
        let stay = report.failed[Cause::Foreign as usize] + report.failed[Cause::NotAnon as usize];
        if calm && report.failed_pages() != stay {
            self.fail(|| format!("migrate {range} of space {n} to {to} had all it needs: {report:?}"));
        }
        let from = MigrateOptions::to(to).from;
        self.note_moved(n, range, to, from, calm);
        if calm {
            self.check_moved(n, space, range, to);
            // What lay on another device stays there.
            pages(range).for_each(|page| self.learn(n, page, |place| place == to || !from.contains(place)));
        }
    }

    /// The model follows a migration of pages from `from`, which had all that it needed if it was `calm`.
    pub(super) fn note_moved(&self, n: usize, range: VaRange, to: Place, from: Sources, calm: bool) {
        let model = &mut *self.world.model().borrow_mut();
        let went = |place| from.contains(place) && place != to;
        model.unsettle_relatives(n, went);
        model.spaces[n].settle(Some(range), |place| {
            if !went(place) {
                Some(place)
            } else if calm {
                Some(to)
            } else {
                None
            }
        });
    }

    pub(super) fn park(&mut self, action: Action, range: VaRange, rng: &mut Rng) {
        let Action::Park { space: number, to, phases, what, gone, finish, .. } = action else { return };
        let (n, space) = self.space(number);
        let to = self.place(to);
        let expected = self.migratable(n, range, Prot::READ);
        let mut watched = self.watch(n, range, to);
        let collected = match space.migrate_collect(range, to) {
            Ok((migration, next)) if expected.is_ok() => {
                if next > range.end || next < range.start {
                    self.fail(|| format!("collecting {range} ends at {next}"));
                }
                migration
            }
            Err(RangeError::Oom(_)) if self.may_be_oom() => return,
            Err(e) if expected == Err(e) => return,
            other => {
                let other = other.map(|_| ());
                self.fail(|| {
                    format!("collect {range} of space {n} to {to}: {other:?}, expected {expected:?}")
                });
                return;
            }
        };
        let roomy = !self.failing && !self.short_of(Place::RAM, 600);
        self.note_moved(n, range, to, MigrateOptions::to(to).from, false);
        // Relative to what is on its way.
        let start = range.start.0 + u64::from(gone.0) % range.nr_pages() * PAGE_SIZE;
        let part = VaRange::new(start, u64::from(gone.1) * PAGE_SIZE);
        let gone = (!part.is_empty()).then_some((what, part));
        let mut meanwhile = |runner: &mut Self| {
            if let Some((what, part)) = gone {
                runner.parked = true;
                runner.meanwhile(number, what, part, &mut watched, rng);
                runner.parked = false;
            }
        };
        let told = match phases {
            0 => {
                meanwhile(self);
                end(finish, collected, |m| m.unmap().copy().commit())
            }
            1 => {
                let m = collected.unmap();
                meanwhile(self);
                end(finish, m, |m| m.copy().commit())
            }
            2 => {
                let m = collected.unmap().copy();
                meanwhile(self);
                end(finish, m, |m| m.commit())
            }
            _ => {
                let m = collected.unmap().copy().commit();
                meanwhile(self);
                end(finish, m, |m| m)
            }
        };
        match told {
            Some((report, units)) => {
                watched.units = units;
                self.check_ended(&watched, &report, roomy && !self.short_of(Place::RAM, 600));
            }
            None => self.check_dropped(&watched, phases > 2),
        }
    }

    /// What somebody does to `part` of space `number` while pages of it are on their way. Nothing here may wait for them.
    fn meanwhile(&mut self, number: u8, what: u8, part: VaRange, watched: &mut Watched, rng: &mut Rng) {
        let n = self.space(number).0;
        self.world.model().borrow_mut().note(MEANWHILE[usize::from(what) % MEANWHILE.len()]);
        match what {
            0 => {
                watched.except.push(part);
                self.unmap(number, part);
            }
            1 => self.protect(number, part, 0),
            2 => self.protect(number, part, Prot::READ.bits()),
            3 => self.protect(number, part, Prot::RW.bits()),
            4 => {
                watched.except.push(part);
                self.contents(number, part, 0);
            }
            5 => self.contents(number, part, 1),
            6 => self.track(number, part, 1),
            7 => self.track(number, part, 0),
            8 => self.track(number, part, 2),
            9 => self.fork(number, number.wrapping_add(1)),
            10 => {
                let old = self.in_one(number, part);
                let to = range(rng.below(PAGES) as u16, old.nr_pages() as u16);
                watched.except.extend([old, to]);
                self.remap(number, old, to, rng.one_in(4));
            }
            11 => {
                watched.except.push(VaRange::new(0, USER_END));
                self.exit(number);
            }
            12 => {
                watched.others_moved = true;
                self.evict(rng.below(3) as u8, rng.below(512) as u16, part.nr_pages() as u16);
            }
            13 => {
                if let Some(mirror) = &self.mirrors[n] {
                    self.snapshot(n, mirror, part);
                }
            }
            14 => {
                watched.others_moved = true;
                self.migrate(number, part, rng.below(4) as u8);
            }
            15 => {
                // Pages that one process copies are new ones: what was said of the old ones proves nothing.
                watched.except.push(VaRange::new(0, USER_END));
                self.collapse(number, part, rng.one_in(2));
            }
            16 => {
                watched.others_moved = true;
                self.replug(rng.below(3) as u8);
            }
            _ => {
                // The object's pages go, and the place is another object's.
                watched.except.push(part);
                self.unmap(number, part);
                self.map_object(number, part, 3, 0, rng.below(OBJECT_PAGES) as u16, rng.one_in(2));
                self.renew(rng.below(2) as u8);
            }
        }
    }

    pub(super) fn hold(&mut self, place: u8, order: u8, keep: u16, reserve: bool) {
        let place = self.place(place);
        let need = if reserve { Need::Reserve } else { Need::User };
        let order = Order::new(order.min(9));
        while Self::mm().zone(place).stat().free > u32::from(keep) + order.pages() {
            match Self::mm().alloc_folio(place, order, need) {
                Ok(folio) => self.held.push(folio),
                Err(_) => break,
            }
        }
    }

    pub(super) fn pin(&mut self, space: u8, addr: u64) {
        let (_, space) = self.space(space);
        let (level, entry) = space.entry_at(Vaddr(addr));
        let frame = match entry {
            Entry::Leaf(leaf) if !leaf.special => leaf.frame,
            Entry::NonPresent(soft) => soft.frame,
            _ => return,
        };
        let inside = (addr >> PAGE_SHIFT) as u32 & (level.order().pages() - 1);
        match Self::mm().try_get_folio(frame.offset(inside)) {
            Some(folio) => self.held.push(folio),
            None => self.fail(|| format!("the folio of {frame}, mapped at {addr:#x}, is not found")),
        }
        self.pinned = true;
    }

    pub(super) fn release(&mut self) {
        self.pins.clear();
        self.held.0.clear();
        self.pinned = false;
    }
}

/// Folios in chunks: a kernel's small heap cannot double a long list.
pub(super) struct Held<M: crate::Machine>(pub(super) Vec<Vec<FolioRef<M>>>);

impl<M: crate::Machine> Held<M> {
    const CHUNK: usize = 256;

    pub(super) fn push(&mut self, folio: FolioRef<M>) {
        match self.0.last_mut() {
            Some(chunk) if chunk.len() < Self::CHUNK => chunk.push(folio),
            _ => {
                let mut chunk = Vec::with_capacity(Self::CHUNK);
                chunk.push(folio);
                self.0.push(chunk);
            }
        }
    }
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Finishes a migration, or drops it. Its report, and what is said of each unit.
fn end<M: crate::Machine, P>(
    finish: bool,
    m: Migration<M, P>,
    rest: impl FnOnce(Migration<M, P>) -> Migration<M, Committed>,
) -> Option<(Report, Vec<UnitReport>)> {
    if !finish {
        drop(m);
        return None;
    }
    let mut units = Vec::new();
    let report = rest(m).finalize_with(&mut |unit| units.push(*unit));
    Some((report, units))
}
