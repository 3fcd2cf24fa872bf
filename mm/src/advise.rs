//! Advice (`madvise`).
//!
//! Advice that only concerns VMAs cuts VMAs; advice that concerns contents cuts huge mappings. What lies on a device, is on its way
//! there, or is lent to one, is no business of advice on contents that stay: it is passed over, whatever kind it is.

use crate::cursor::Cursor;
use crate::entry::{Attrs, Entry, Leaf};
use crate::error::RangeError;
use crate::machine::{FlushReason, Machine};
use crate::notifier::NotifyEvent;
use crate::space::Space;
use crate::tlb::TlbGather;
use crate::types::{PAGE_SIZE, VaRange, Vaddr};
use crate::vma::{HugeAdvice, VmaIndex, VmaKind, VmaSpares};

/// What a program says of a range of its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// 2 MiB pages are welcome (`MADV_HUGEPAGE`).
    Huge,
    /// They are not (`MADV_NOHUGEPAGE`).
    NoHuge,
    /// The contents are not needed any more: what was private reads as zeros, and its memory is free at once
    /// (`MADV_DONTNEED`).
    DontNeed,
    /// The contents may be forgotten, until they are written again (`MADV_FREE`): private pages become clean and old. Nothing
    /// here takes clean pages away yet.
    Free,
    /// Not to be used soon (`MADV_COLD`): pages become old.
    Cold,
    /// As [`Advice::Cold`], and to be written out (`MADV_PAGEOUT`): there is no place to write to.
    PageOut,
    /// Small pages of RAM become huge ones now, in every whole 2 MiB of the range (`MADV_COLLAPSE`, [`Space::collapse`]). Pages on
    /// devices stay where they are.
    Collapse,
}

impl<M: Machine> Space<M> {
    /// Takes advice on `range`. Holes are passed over, and told of at the end.
    ///
    /// # Errors
    /// [`RangeError::NotMapped`] with the first hole: the rest was done. [`RangeError::Invalid`] (also for contents of a driver's
    /// own pages) and [`RangeError::Oom`]: nothing was changed. [`Advice::Collapse`] does what can be done, then tells of a hole, or
    /// of the first 2 MiB that stayed small: [`RangeError::Oom`]; [`RangeError::Busy`], which may pass; [`RangeError::Invalid`]
    /// with these 2 MiB, where there is nothing to collapse or it must not be.
    pub fn advise(&'static self, range: VaRange, advice: Advice) -> Result<(), RangeError> {
        if !range.is_user_pages() {
            return Err(RangeError::Invalid(range));
        }
        if advice == Advice::Collapse {
            // It takes the lock for each 2 MiB, not for as long as all of them take.
            let hole = self.covered_until(&self.vmas.read(), range);
            let done = self.collapse_all(range);
            return if hole == range.end { done } else { Err(RangeError::NotMapped(hole)) };
        }
        let mut vmas = self.vmas.write();
        let hole = self.covered_until(&vmas, range);
        if M::mm().huge_pool.is_used() && vmas.iter_in(range).any(|vma| vma.kind() == VmaKind::Hugetlb) {
            return Err(RangeError::Invalid(range));
        }
        match advice {
            Advice::Huge => self.set_advice(&mut vmas, range, HugeAdvice::Huge)?,
            Advice::NoHuge => self.set_advice(&mut vmas, range, HugeAdvice::NoHuge)?,
            Advice::DontNeed | Advice::Free | Advice::Cold | Advice::PageOut | Advice::Collapse => {
                if vmas.iter_in(range).any(|vma| vma.kind() == VmaKind::Device) {
                    return Err(RangeError::Invalid(range));
                }
                self.cut_mappings(self.reserve_cuts(range)?);
                match advice {
                    Advice::DontNeed => self.forget_contents(&vmas, range),
                    Advice::Free => self.free_lazily(range),
                    _ => self.make_old(range),
                }
            }
        }
        if hole == range.end { Ok(()) } else { Err(RangeError::NotMapped(hole)) }
    }

    /// As [`Space::advise`], for huge-page advice by its value.
    ///
    /// # Errors
    /// As [`Space::advise`].
    pub fn advise_huge(&'static self, range: VaRange, advice: HugeAdvice) -> Result<(), RangeError> {
        if !range.is_user_pages() {
            return Err(RangeError::Invalid(range));
        }
        let mut vmas = self.vmas.write();
        self.set_advice(&mut vmas, range, advice)?;
        let hole = self.covered_until(&vmas, range);
        if hole == range.end { Ok(()) } else { Err(RangeError::NotMapped(hole)) }
    }

    /// VMAs are cut at the ends; their mappings are not, until somebody changes a part of one.
    fn set_advice(
        &'static self,
        vmas: &mut VmaIndex<M>,
        range: VaRange,
        advice: HugeAdvice,
    ) -> Result<(), RangeError> {
        let ends = [range.start, range.end];
        let mut spares = VmaSpares::for_cuts(vmas, &ends, 0).map_err(|_| RangeError::Oom(range.start))?;
        self.split_vma(vmas, range.start, &mut spares);
        self.split_vma(vmas, range.end, &mut spares);
        vmas.iter_in(range).for_each(|vma| vma.set_advice(advice));
        self.merge_vmas(vmas, range);
        Ok(())
    }

    fn forget_contents(&'static self, vmas: &VmaIndex<M>, range: VaRange) {
        let _change = self.invalidate(range, NotifyEvent::Clear);
        let mut gather = TlbGather::new(FlushReason::Unmap);
        self.zap(range, &mut gather);
        gather.flush();
        // An empty table would keep the next touch from getting a huge page.
        let mut gather = TlbGather::new(FlushReason::FreeTables);
        self.free_empty_tables(vmas, range, &mut gather);
        gather.flush();
        self.split_cut_folio(range.start, Vaddr(range.start.0.wrapping_sub(PAGE_SIZE)));
        self.split_cut_folio(range.end, range.end);
    }

    fn free_lazily(&'static self, range: VaRange) {
        let _change = self.invalidate(range, NotifyEvent::Clear);
        let mut gather = TlbGather::new(FlushReason::Protect);
        self.for_each_mapped(range, |cursor| clean_entry(cursor, &mut gather));
        gather.flush();
    }

    fn make_old(&'static self, range: VaRange) {
        self.for_each_mapped(range, |cursor| {
            if let Entry::Leaf(Leaf { special: false, .. }) = cursor.entry() {
                cursor.unmark(Attrs::YOUNG);
            }
        });
    }
}

/// A present page of this mapping alone becomes clean and old. The folio's own note that it was written goes if the entry maps all
/// of it; the other pages of a folio that is mapped by many keep it.
fn clean_entry<M: Machine>(cursor: &mut Cursor<M>, gather: &mut TlbGather<M>) {
    let Entry::Leaf(leaf) = cursor.entry() else { return };
    if leaf.special || !leaf.attrs.contains(Attrs::EXCLUSIVE) {
        return;
    }
    let folio = M::mm().mapped_folio(leaf.frame);
    if folio.order() == cursor.level().order() {
        folio.clear_dirty();
    }
    if leaf.attrs.contains(Attrs::DIRTY) {
        gather.defer(cursor.restrict(Attrs::DIRTY | Attrs::YOUNG));
    } else {
        cursor.unmark(Attrs::YOUNG);
    }
}
