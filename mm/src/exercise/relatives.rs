//! Clones, moves, and mappings of objects.

use alloc::format;
use alloc::rc::Rc;

use crate::error::RangeError;
use crate::exercise::model::{Backing, OBJECT_PAGES, OBJECTS, pages};
use crate::exercise::runner::Runner;
use crate::exercise::world::World;
use crate::object::Object;
use crate::remap::{RemapFlags, RemapTarget};
use crate::types::{PAGE_SHIFT, PAGE_SIZE, Prot, USER_END, VaRange};
use crate::vma::HugeAdvice;

impl<W: World> Runner<'_, W> {
    /// Space `to` ends, and a clone of space `from` takes its place.
    pub(super) fn fork(&mut self, from: u8, to: u8) {
        let (from, to) = (self.space(from).0, self.space(to).0);
        if from == to {
            return;
        }
        self.end(to);
        if !self.pins.is_empty() {
            // A pinned page is copied in the middle of the clone, and stays writable for the parent: a write at that moment is
            // in both, or in one.
            self.world.model().borrow_mut().flux = Some((from, VaRange::new(0, USER_END)));
        }
        let clone = self.world.clone_space(self.owner(from));
        self.world.model().borrow_mut().flux = None;
        match clone {
            Ok(clone) => {
                self.spaces[to] = Some(Rc::new(clone));
                let mut model = self.world.model().borrow_mut();
                model.spaces[from].is_related = true;
                let contents = model.spaces[from].clone();
                model.spaces[to] = contents;
                // What is pinned was copied.
                model.spaces[to].unsettle(None, |_| !self.pins.is_empty());
            }
            Err(_) if self.may_be_oom() => self.replace_ended(),
            Err(e) => {
                self.fail(|| format!("clone of space {from}: {e:?}"));
                self.replace_ended();
            }
        }
    }

    pub(super) fn map_object(
        &self,
        space: u8,
        range: VaRange,
        prot: u8,
        object: u8,
        index: u16,
        shared: bool,
    ) {
        let (n, space) = self.space(space);
        let prot = Prot::from_bits_truncate(prot);
        let object = usize::from(object) % OBJECTS;
        let index = u64::from(index) % OBJECT_PAGES;
        let range = VaRange::new(range.start.0, range.nr_pages().min(OBJECT_PAGES - index) * PAGE_SIZE);
        let Some(handle) = &self.objects[object] else { return };
        let result = if shared {
            space.map_shared(range, prot, handle, index)
        } else {
            space.map_private(range, prot, handle, index, HugeAdvice::Huge)
        };
        let model = &mut *self.world.model().borrow_mut();
        let object = model.current[object];
        let backing = if shared { Backing::Shared(object) } else { Backing::Private(object) };
        let model = &mut model.spaces[n];
        match result {
            Ok(()) if !model.overlaps(range) => model.map(range, prot, backing, index),
            Err(RangeError::Exists(_)) if model.overlaps(range) => {}
            Err(RangeError::Oom(_)) if self.may_be_oom() => {}
            other => self.fail(|| format!("{backing:?} at {range} in space {n}: {other:?}")),
        }
    }

    /// A new object takes the place of an old one, which lives as long as somebody maps it.
    pub(super) fn renew(&mut self, object: u8) {
        let object = usize::from(object) % OBJECTS;
        let made = if object == 0 { Object::anon_shared(OBJECT_PAGES) } else { Object::file(OBJECT_PAGES) };
        match made {
            Ok(new) => {
                self.objects[object] = Some(new);
                self.world.model().borrow_mut().renew(object);
            }
            Err(_) if self.may_be_oom() => {}
            Err(e) => self.fail(|| format!("a new object: {e:?}")),
        }
    }

    pub(super) fn remap(&self, space: u8, old: VaRange, to: VaRange, keep: bool) {
        let (n, space) = self.space(space);
        let mut to = if keep { VaRange::new(to.start.0, old.len()) } else { to };
        let vma = self.world.model().borrow().spaces[n].vma(old.start.0 >> PAGE_SHIFT).copied();
        if vma.is_some_and(|vma| vma.backing != Backing::Anon) {
            to = VaRange::new(to.start.0, to.len().min(old.len()));
        }
        let real = space.vma_at(old.start).map(|(range, ..)| range);
        let in_place = to.start == old.start;
        let overlap = old.start < to.end && to.start < old.end;
        let more = VaRange::between(old.end.min(to.end), to.end);
        let is_blocked = in_place && !more.is_empty() && self.world.model().borrow().spaces[n].overlaps(more);
        self.world.model().borrow_mut().flux = Some((n, to));
        let flags = if keep { RemapFlags::KEEP_OLD } else { RemapFlags::empty() };
        let result = space.remap(old, RemapTarget { addr: to.start, len: to.len() }, flags);
        let model = &mut *self.world.model().borrow_mut();
        model.flux = None;
        let invalid = !to.is_user_pages() || (overlap && !in_place) || (keep && in_place);
        let fine = match result {
            Ok(()) => {
                let fine = !invalid && !is_blocked && real.is_some_and(|vma| vma.covers(old));
                model.spaces[n].remap(old, to, keep);
                fine
            }
            Err(RangeError::Invalid(_)) => invalid,
            Err(RangeError::NotMapped(at)) => {
                real.map_or(at == old.start, |vma| at == vma.end && vma.end < old.end)
            }
            Err(RangeError::Exists(_)) => is_blocked,
            Err(RangeError::Oom(_)) => self.may_be_oom(),
            Err(_) => false,
        };
        if !fine {
            self.fail(|| format!("remap of {old} to {to} (keep {keep}) in space {n}: {result:?}"));
        } else if result.is_ok() && !in_place && !keep {
            self.world.unmapped(space, old);
        }
    }

    /// Objects hold what the model says.
    pub(super) fn check_objects(&self) {
        let model = self.world.model().borrow();
        for (object, handle) in self.objects.iter().enumerate() {
            let (Some(handle), Some(content)) = (handle, model.objects.get(model.current[object])) else {
                continue;
            };
            for index in 0..OBJECT_PAGES {
                let expected = content.get(&index);
                match handle.page(index) {
                    Some(page) => {
                        let found = self.peek(page.frame());
                        if found != expected.copied().unwrap_or_default() {
                            self.fail(|| {
                                format!("object {object}: page {index} holds {found:x?}, not {expected:x?}")
                            });
                        }
                    }
                    None if expected.is_some() => {
                        self.fail(|| format!("object {object}: page {index}, which was written, is gone"));
                    }
                    None => {}
                }
            }
        }
    }

    /// The part of a range that the model has in one mapping.
    pub(super) fn in_one(&self, space: u8, range: VaRange) -> VaRange {
        let (n, _) = self.space(space);
        let wanted = pages(range);
        let vma = self.world.model().borrow().spaces[n].vma(wanted.start).copied();
        let end = vma.map_or(wanted.end, |vma| vma.end.min(wanted.end));
        VaRange::new(range.start.0, (end - wanted.start) << PAGE_SHIFT)
    }
}
