//! Migrations, whole and parked, and what keeps memory from others.

use alloc::format;
use alloc::vec::Vec;

use crate::entry::Entry;
use crate::error::RangeError;
use crate::exercise::actions::Action;
use crate::exercise::runner::Runner;
use crate::exercise::world::World;
use crate::folio::FolioRef;
use crate::migrate::{Cause, Migration, Report};
use crate::types::{Order, PAGE_SHIFT, PAGE_SIZE, Place, Prot, VaRange, Vaddr};
use crate::zone::Need;

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
        if calm {
            self.check_moved(n, space, range, to);
        }
    }

    pub(super) fn park(&self, action: Action, range: VaRange) {
        let Action::Park { space: number, to, phases, what, gone, finish, .. } = action else { return };
        let (n, space) = self.space(number);
        let to = self.place(to);
        let expected = self.migratable(n, range, Prot::READ);
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
        let meanwhile = || {
            if gone.1 != 0 {
                // Relative to what is on its way.
                let start = range.start.0 + u64::from(gone.0) % range.nr_pages() * PAGE_SIZE;
                let part = VaRange::new(start, u64::from(gone.1) * PAGE_SIZE);
                match what {
                    0 => self.unmap(number, part),
                    1 => self.protect(number, part, 0),
                    2 => self.protect(number, part, Prot::READ.bits()),
                    3 => self.protect(number, part, Prot::RW.bits()),
                    what => self.contents(number, part, what - 4),
                }
            }
        };
        match phases {
            0 => {
                meanwhile();
                end(finish, collected, |m| m.unmap().copy().commit().finalize());
            }
            1 => {
                let m = collected.unmap();
                meanwhile();
                end(finish, m, |m| m.copy().commit().finalize());
            }
            2 => {
                let m = collected.unmap().copy();
                meanwhile();
                end(finish, m, |m| m.commit().finalize());
            }
            _ => {
                let m = collected.unmap().copy().commit();
                meanwhile();
                end(finish, m, Migration::finalize);
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

fn end<M: crate::Machine, P>(finish: bool, m: Migration<M, P>, end: impl FnOnce(Migration<M, P>) -> Report) {
    if finish {
        let _ = end(m);
    } else {
        drop(m);
    }
}
