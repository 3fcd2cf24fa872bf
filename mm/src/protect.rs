//! Changing what a mapping allows (`mprotect`).
//!
//! What loses permission loses it now, present or not: a page on a device, or on its way, must not come back with more than its
//! mapping allows. What gains write permission gets it at its next write fault, which knows whether the page is shared; only a page
//! of this mapping alone that is dirty already needs no fault, since there is nothing left to be noted.
//!
//! Under `PROT_NONE` nothing stays present: ring 0 would reach it. Present leaves become [`SoftKind::ProtNone`], every other
//! entry keeps its kind and gets [`Attrs::NO_ACCESS`], and all of it goes back the same way.

use crate::cursor::Cursor;
use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf};
use crate::error::RangeError;
use crate::machine::{FlushReason, Machine};
use crate::notifier::NotifyEvent;
use crate::slab::NIL;
use crate::space::Space;
use crate::tlb::TlbGather;
use crate::types::{Prot, VaRange, Vaddr};
use crate::vma::{Vma, VmaAttrs, VmaFlags, VmaIndex, VmaKind};

impl<M: Machine> Space<M> {
    /// Sets what the VMAs of `range` allow (`mprotect`). VMAs and huge mappings are cut at its ends; one flush round pays for all
    /// that was present. Pages on a device stay there, and cost none. A page that is lent to a device comes back first.
    ///
    /// # Errors
    /// [`RangeError::NotMapped`] with the first hole: what lies before it was changed, as `mprotect` has it.
    /// [`RangeError::Oom`] and [`RangeError::Invalid`]: nothing was changed. A driver's own pages cannot be hidden, so `PROT_NONE`
    /// is invalid for them.
    pub fn protect(&'static self, range: VaRange, prot: Prot) -> Result<(), RangeError> {
        if !range.is_user_pages() {
            return Err(RangeError::Invalid(range));
        }
        let mut vmas = self.vmas.write();
        let part = VaRange::between(range.start, self.covered_until(&vmas, range));
        if !part.is_empty() {
            self.protect_covered(&mut vmas, part, prot)?;
        }
        if part == range { Ok(()) } else { Err(RangeError::NotMapped(part.end)) }
    }

    /// As [`Space::protect`], for a range without holes.
    fn protect_covered(
        &'static self,
        vmas: &mut VmaIndex<M>,
        range: VaRange,
        prot: Prot,
    ) -> Result<(), RangeError> {
        let mut changes = false;
        let mut at = range.start;
        while let Some(vma) = vmas.find(at).filter(|_| at < range.end) {
            if prot.is_empty() && vma.kind() == VmaKind::Device {
                return Err(RangeError::Invalid(range));
            }
            if vma.flags().contains(VmaFlags::NEVER_WRITE) && prot.contains(Prot::WRITE) {
                return Err(RangeError::Access(vma.start()));
            }
            changes |= vma.prot() != prot;
            at = vma.range().end;
        }
        if !changes {
            return Ok(());
        }
        if let Some(before) = self.grows_by_protect(vmas, range, prot) {
            return self.protect_start(before, range, prot);
        }
        self.cut_at_ends(vmas, range)?;
        let _change = self.invalidate(range, NotifyEvent::Protection);
        let mut gather = TlbGather::new(FlushReason::Protect);
        let mut at = range.start;
        while let Some(vma) = vmas.find(at).filter(|_| at < range.end) {
            at = vma.range().end;
            if vma.prot() != prot {
                vma.set_prot(prot);
                self.for_each_mapped(vma.range(), |cursor| protect_entry(cursor, prot, &mut gather));
            }
        }
        gather.flush();
        self.merge_vmas(vmas, range);
        Ok(())
    }

    /// The commonest change of a part: `range` is the start of a VMA, and will be what the one before it is already. Only their
    /// border moves then.
    fn grows_by_protect(&self, vmas: &VmaIndex<M>, range: VaRange, prot: Prot) -> Option<[&'static Vma; 2]> {
        let vma = vmas.find(range.start).filter(|vma| vma.start() == range.start && vma.object() == NIL)?;
        let before = vmas.find(Vaddr(range.start.0.wrapping_sub(1)))?;
        let grows = range.end < vma.range().end && before.is_continued_by(&VmaAttrs { prot, ..vma.attrs() });
        grows.then_some([before, vma])
    }

    fn protect_start(
        &'static self,
        [before, vma]: [&'static Vma; 2],
        range: VaRange,
        prot: Prot,
    ) -> Result<(), RangeError> {
        let cuts = self.reserve_cuts(range)?;
        before.set_end(range.end);
        self.set_vma_start(vma, range.end);
        self.cut_mappings(cuts);
        let _change = self.invalidate(range, NotifyEvent::Protection);
        let mut gather = TlbGather::new(FlushReason::Protect);
        self.for_each_mapped(range, |cursor| protect_entry(cursor, prot, &mut gather));
        gather.flush();
        Ok(())
    }
}

/// What an entry with `attrs` has in a mapping that allows `prot`: never more than before, but for fetches, which no fault grants.
fn allowed(mut attrs: Attrs, prot: Prot) -> Attrs {
    if !prot.contains(Prot::WRITE) {
        attrs.remove(Attrs::WRITE);
    }
    attrs.set(Attrs::EXEC, prot.contains(Prot::EXEC));
    attrs.set(Attrs::NO_ACCESS, prot.is_empty());
    attrs
}

/// As [`allowed`], for a leaf that is present, or becomes it: the write too, if there is nothing to be noted or copied at the next.
fn allowed_leaf(attrs: Attrs, prot: Prot) -> Attrs {
    let noted = Attrs::EXCLUSIVE | Attrs::DIRTY | Attrs::SOFT_DIRTY;
    let mut new = allowed(attrs, prot);
    if prot.contains(Prot::WRITE) && attrs & (noted | Attrs::UFFD_WP) == noted {
        new.insert(Attrs::WRITE);
    }
    new
}

fn protect_entry<M: Machine>(cursor: &mut Cursor<M>, prot: Prot, gather: &mut TlbGather<M>) {
    match cursor.entry() {
        Entry::Leaf(leaf) => protect_leaf(cursor, leaf, prot, gather),
        Entry::NonPresent(soft) => {
            let attrs = allowed(soft.attrs, prot);
            if !(soft.attrs - attrs - Attrs::NO_ACCESS).is_empty() || prot.is_empty() {
                TlbGather::settle(Some(gather), cursor.space());
            }
            cursor.replace_soft(match soft.kind {
                SoftKind::Migration | SoftKind::DevicePrivate => {
                    Entry::NonPresent(SoftLeaf { attrs, ..soft })
                }
                // A page that is lent comes back: its borrower has heard of the change by now.
                SoftKind::DeviceExclusive | SoftKind::ProtNone => {
                    Entry::mapping(soft.frame, allowed_leaf(soft.attrs, prot))
                }
            });
        }
        Entry::None | Entry::Table(_) => {}
    }
}

fn protect_leaf<M: Machine>(cursor: &mut Cursor<M>, leaf: Leaf, prot: Prot, gather: &mut TlbGather<M>) {
    if prot.is_empty() {
        if leaf.special {
            // A zero page: a read will map it again, once reads are allowed.
            gather.defer(cursor.clear_leaf());
        } else {
            let hide = |leaf: Leaf| SoftLeaf::new(SoftKind::ProtNone, leaf.frame, allowed(leaf.attrs, prot));
            gather.defer(cursor.leaf_to_soft(hide));
        }
        return;
    }
    let new = allowed_leaf(leaf.attrs, prot);
    let lost = leaf.attrs - new;
    if !lost.is_empty() {
        gather.defer(cursor.restrict(lost));
    }
    let gained = new - leaf.attrs;
    if gained.contains(Attrs::EXEC) {
        cursor.allow_exec();
    }
    if gained.contains(Attrs::WRITE) {
        cursor.upgrade(Attrs::WRITE);
    }
}
