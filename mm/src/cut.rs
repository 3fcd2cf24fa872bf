//! What range operations share: cuts at the two ends, and the walk over what lies between.
//!
//! A range operation needs at most two tables and two VMAs, for its ends. It sets them aside first; then nothing can fail, and out
//! of memory means that nothing was changed.

use crate::cursor::{Cursor, Peek};
use crate::entry::Entry;
use crate::error::RangeError;
use crate::machine::Machine;
use crate::space::Space;
use crate::split::{split_pmd, split_pmd_without};
use crate::table::SpareTable;
use crate::types::{PAGE_SIZE, PMD_SIZE, PUD_SIZE, VaRange, Vaddr};
use crate::vma::{VmaIndex, VmaSpares};
use crate::zone::Need;

/// Tables for the huge mappings that the ends of a range cut.
pub(crate) struct Cuts<M: Machine> {
    range: VaRange,
    tables: [Option<SpareTable<M>>; 2],
}

impl<M: Machine> Space<M> {
    /// Sets aside what cutting huge mappings at the ends of `range` takes. With the VMA lock held alone, so that no huge mapping
    /// appears until then.
    pub(crate) fn reserve_cuts(&self, range: VaRange) -> Result<Cuts<M>, RangeError> {
        let first = self.spare_for_cut(range.start)?;
        let same = range.start.align_down(PMD_SIZE) == range.end.align_down(PMD_SIZE);
        // One table serves both ends when they cut the same mapping.
        let last = if first.is_some() && same { None } else { self.spare_for_cut(range.end)? };
        Ok(Cuts { range, tables: [first, last] })
    }

    /// Splits the huge mappings that the ends cut.
    pub(crate) fn cut_mappings(&'static self, cuts: Cuts<M>) {
        for (end, spare) in [cuts.range.start, cuts.range.end].into_iter().zip(cuts.tables) {
            if let Some(spare) = spare {
                split_pmd(self, end, spare);
            }
        }
    }

    /// As [`Space::cut_mappings`], and what lies in the range is not mapped any more, where it was of those mappings: nothing is
    /// written that would be emptied next. What of the range is left to empty; with the VMA lock held alone, so that nothing
    /// appears in the rest.
    pub(crate) fn cut_mappings_and_drop(&'static self, cuts: Cuts<M>) -> VaRange {
        let range = cuts.range;
        let mut left = range;
        for (end, spare) in [range.start, range.end].into_iter().zip(cuts.tables) {
            if let Some(spare) = spare {
                let base = end.align_down(PMD_SIZE);
                let page =
                    |addr: Vaddr| ((addr.0.clamp(base.0, base.0 + PMD_SIZE) - base.0) / PAGE_SIZE) as u32;
                if split_pmd_without(self, end, spare, page(range.start)..page(range.end)) {
                    if range.start.0 >= base.0 {
                        left.start = base.add(PMD_SIZE).min(range.end);
                    } else {
                        left.end = base;
                    }
                }
            }
        }
        left
    }

    /// Both at once: VMAs and huge mappings are cut at the ends of `range`. Out of memory changes nothing.
    pub(crate) fn cut_at_ends(
        &'static self,
        vmas: &mut VmaIndex<M>,
        range: VaRange,
    ) -> Result<(), RangeError> {
        let cuts = self.cut_vmas_at_ends(vmas, range)?;
        self.cut_mappings(cuts);
        Ok(())
    }

    /// Cuts the VMAs at the ends of `range`, and sets aside what cutting the mappings takes. Out of memory changes nothing.
    pub(crate) fn cut_vmas_at_ends(
        &'static self,
        vmas: &mut VmaIndex<M>,
        range: VaRange,
    ) -> Result<Cuts<M>, RangeError> {
        if self.cuts_hugetlb(vmas, range) {
            return Err(RangeError::Invalid(range));
        }
        let mut spares = VmaSpares::for_cuts(vmas, &[range.start, range.end], 0)
            .map_err(|_| RangeError::Oom(range.start))?;
        let cuts = self.reserve_cuts(range)?;
        self.split_vma(vmas, range.start, &mut spares);
        self.split_vma(vmas, range.end, &mut spares);
        Ok(cuts)
    }

    /// A PTE table, when a cut at `at` goes through a huge mapping.
    fn spare_for_cut(&self, at: Vaddr) -> Result<Option<SpareTable<M>>, RangeError> {
        if at.is_aligned(PMD_SIZE) {
            return Ok(None);
        }
        match self.peek(at) {
            Peek::Pmd(_, Entry::Leaf(_) | Entry::NonPresent(_)) => {
                let spare = M::mm().spare_pte_table(at, Need::Reserve).map_err(|_| RangeError::Oom(at))?;
                Ok(Some(spare))
            }
            _ => Ok(None),
        }
    }

    /// Calls `f` with a cursor on every entry of `range` that is not empty, a huge one once. With the VMA lock held, so that no
    /// table goes away. The cursor holds the table's lock; `f` leaves it where it is.
    pub(crate) fn for_each_mapped(&'static self, range: VaRange, mut f: impl FnMut(&mut Cursor<M>)) {
        let mut addr = range.start;
        while addr < range.end {
            let Some(mut cursor) = self.cursor(addr) else {
                addr = addr.align_down(PUD_SIZE).add(PUD_SIZE);
                continue;
            };
            let end = addr.align_down(PMD_SIZE).add(PMD_SIZE).min(range.end);
            loop {
                if !cursor.is_still(0) {
                    f(&mut cursor);
                }
                if !cursor.next() || cursor.addr() >= end {
                    break;
                }
            }
            addr = end;
        }
    }

    /// How far VMAs cover `range` without a hole: the address of the first hole, or the range's end.
    pub(crate) fn covered_until(&self, vmas: &VmaIndex<M>, range: VaRange) -> Vaddr {
        let mut at = range.start;
        while at < range.end {
            match vmas.find(at) {
                Some(vma) => at = vma.range().end,
                None => return at,
            }
        }
        range.end
    }
}
