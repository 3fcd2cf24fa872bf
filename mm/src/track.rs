//! Finding out what was written: soft-dirty (`clear_refs`) and asynchronous write protection (userfaultfd's `WP_ASYNC`).
//!
//! Both take the write permission, so that the next write faults and is noted. They differ in what is noted where: a write *sets*
//! soft-dirty, and *clears* uffd-wp. Two rules keep every write in the books, wherever the page has been in between:
//! - what may be written without a fault is soft-dirty already, so clearing that bit takes the write from every kind of entry, not
//!   from present ones alone: a page must not come back from a device writable and clean;
//! - an entry with uffd-wp is never writable, whatever grants writes.

use crate::cursor::Cursor;
use crate::entry::{Attrs, Entry, SoftLeaf};
use crate::error::RangeError;
use crate::machine::{FlushReason, Machine};
use crate::notifier::NotifyEvent;
use crate::space::Space;
use crate::table::Table;
use crate::tlb::TlbGather;
use crate::types::{Level, VaRange, Vaddr};
use crate::vma::{VmaFlags, VmaKind};

impl<M: Machine> Space<M> {
    /// Begins a new period of soft-dirty tracking in `range`: no page there is soft-dirty until it is written, by a program or a
    /// device, or mapped anew ([`Space::pagemap`] tells). Holes are fine; a driver's own pages are passed over. Huge mappings are
    /// cut at the ends of the range; one flush round, if something was writable.
    ///
    /// # Errors
    /// [`RangeError::Invalid`]; [`RangeError::Oom`], and nothing was changed.
    pub fn clear_soft_dirty(&'static self, range: VaRange) -> Result<(), RangeError> {
        if !range.is_user_pages() {
            return Err(RangeError::Invalid(range));
        }
        let vmas = self.vmas.write();
        self.cut_mappings(self.reserve_cuts(range)?);
        let _change = self.invalidate(range, NotifyEvent::SoftDirty);
        let mut gather = TlbGather::new(FlushReason::Protect);
        for vma in vmas.iter_in(range).filter(|vma| vma.kind() != VmaKind::Device) {
            self.for_each_mapped(vma.range().intersect(range), |cursor| {
                mark_entry(cursor, Attrs::empty(), Attrs::SOFT_DIRTY | Attrs::WRITE, &mut gather);
            });
        }
        gather.flush();
        Ok(())
    }

    /// Write-protects what is mapped in `range` now and tracks it: a write clears the uffd-wp bit of its page and goes on, so that
    /// a page that has it ([`Space::pagemap`] tells) was not written since. `on` again begins anew; off ends it. The bit goes with
    /// the page: to a device and back, through splits, clones, remaps and changes of protection. Holes have no bit, so what is
    /// mapped there later counts as written.
    ///
    /// # Errors
    /// [`RangeError::NotMapped`] with the first address that no VMA covers, [`RangeError::Invalid`] (also for a driver's own
    /// pages), [`RangeError::Oom`]. Nothing was changed then.
    pub fn write_protect(&'static self, range: VaRange, on: bool) -> Result<(), RangeError> {
        if !range.is_user_pages() {
            return Err(RangeError::Invalid(range));
        }
        let mut vmas = self.vmas.write();
        let covered = self.covered_until(&vmas, range);
        if covered != range.end {
            return Err(RangeError::NotMapped(covered));
        }
        if vmas.iter_in(range).any(|vma| vma.kind() == VmaKind::Device) {
            return Err(RangeError::Invalid(range));
        }
        self.cut_at_ends(&mut vmas, range)?;
        for vma in vmas.iter_in(range) {
            let mut flags = vma.flags();
            flags.set(VmaFlags::WP_TRACKED, on);
            vma.set_flags(flags);
        }
        let _change = self.invalidate(range, NotifyEvent::SoftDirty);
        let mut gather = TlbGather::new(FlushReason::Protect);
        let (add, remove) =
            if on { (Attrs::UFFD_WP, Attrs::WRITE) } else { (Attrs::empty(), Attrs::UFFD_WP) };
        self.for_each_mapped(range, |cursor| mark_entry(cursor, add, remove, &mut gather));
        gather.flush();
        self.merge_vmas(&mut vmas, range);
        Ok(())
    }

    /// A write to a present entry with uffd-wp: the bit goes, and the fault looks again. Whether the write is allowed is no
    /// question of this bit.
    #[cold]
    pub(crate) fn note_tracked_write(
        &'static self,
        table: &'static Table<M>,
        level: Level,
        addr: Vaddr,
        seen: u64,
    ) {
        let mut cursor = self.cursor_in(table, level, addr);
        if cursor.is_still(seen) {
            cursor.unmark(Attrs::UFFD_WP);
        }
    }
}

/// Changes the marks of an entry; `remove` may take its write permission.
fn mark_entry<M: Machine>(cursor: &mut Cursor<M>, add: Attrs, remove: Attrs, gather: &mut TlbGather<M>) {
    match cursor.entry() {
        Entry::Leaf(leaf) => {
            if !(add - leaf.attrs).is_empty() {
                cursor.upgrade(add);
            }
            let gone = leaf.attrs & remove;
            if gone.contains(Attrs::WRITE) {
                gather.defer(cursor.restrict(gone));
            } else if !gone.is_empty() {
                cursor.unmark(gone);
            }
        }
        Entry::NonPresent(soft) => {
            if (soft.attrs & remove).contains(Attrs::WRITE) {
                TlbGather::settle(Some(gather), cursor.space());
            }
            let attrs = (soft.attrs - remove) | add;
            cursor.replace_soft(Entry::NonPresent(SoftLeaf { attrs, ..soft }));
        }
        Entry::None | Entry::Table(_) => {}
    }
}
