//! Unmapping.
//!
//! What the cuts at the two ends take is set aside first ([`crate::cut`]); then nothing can fail, and out of memory means that
//! nothing was changed. Unmapping whole VMAs, and exit, never split and never allocate.

use core::sync::atomic::Ordering::Relaxed;

use crate::counters::Event;
use crate::cursor::Cursor;
use crate::entry::{Attrs, Entry, SoftKind, SoftLeaf, word};
use crate::error::RangeError;
use crate::folio::{Folio, FolioRef, put_many};
use crate::machine::{FlushReason, Machine};
use crate::notifier::NotifyEvent;
use crate::space::Space;
use crate::table::SpareTable;
use crate::tlb::TlbGather;
use crate::types::{Level, PAGE_SIZE, PMD_SIZE, PUD_SIZE, VaRange, Vaddr};
use crate::vma::VmaIndex;

/// Entries of one folio that were emptied one after the other, to be accounted for at once.
struct Run {
    folio: Option<&'static Folio>,
    present: bool,
    n: u32,
}

impl Run {
    const fn new() -> Self {
        Self { folio: None, present: false, n: 0 }
    }

    #[inline(always)]
    fn add<M: Machine>(&mut self, folio: &'static Folio, present: bool, gather: &mut TlbGather<M>) {
        if !self.folio.is_some_and(|f| core::ptr::eq(f, folio)) {
            self.end(gather);
            *self = Self { folio: Some(folio), present, n: 0 };
        }
        // One present entry among them is enough: all of the run's references wait for the flush.
        self.present |= present;
        self.n += 1;
    }

    /// As `n` calls of [`Run::add`], for entries that were not present.
    fn add_many<M: Machine>(&mut self, folio: &'static Folio, n: u32, gather: &mut TlbGather<M>) {
        self.add(folio, false, gather);
        self.n += n - 1;
    }

    #[inline(always)]
    fn end<M: Machine>(&mut self, gather: &mut TlbGather<M>) {
        if let Some(folio) = self.folio.take() {
            folio.remove_maps(self.n);
            if self.present {
                gather.hold(FolioRef::from_owned(folio), self.n - 1);
            } else {
                // No TLB can hold it: it goes at once.
                put_many::<M>(folio, self.n);
            }
        }
    }
}

impl<M: Machine> Space<M> {
    /// Unmaps `range` (`munmap`). Holes in it are fine. A huge page cut by an end is split there, its mapping and, if nobody
    /// else holds it, the folio too, so that the dead part's memory is free at once.
    ///
    /// # Errors
    /// [`RangeError::Invalid`]; [`RangeError::Oom`], and nothing was changed.
    pub fn unmap(&'static self, range: VaRange) -> Result<(), RangeError> {
        if !range.is_user_pages() {
            return Err(RangeError::Invalid(range));
        }
        let mut vmas = self.vmas.write();
        self.unmap_locked(&mut vmas, range)
    }

    /// As [`Space::unmap`], with the VMA lock held alone.
    pub(crate) fn unmap_locked(
        &'static self,
        vmas: &mut VmaIndex<M>,
        range: VaRange,
    ) -> Result<(), RangeError> {
        let cuts = self.cut_vmas_at_ends(vmas, range)?;
        self.unreserve_huge(vmas, range);
        let change = self.invalidate(range, NotifyEvent::Unmap);
        let left = self.cut_mappings_and_drop(cuts);
        self.unmap_left(vmas, range, left);
        drop(change);
        self.split_cut_folios(range);
        Ok(())
    }

    /// Unmaps a range whose ends cut no VMA and no huge mapping. Cannot fail.
    pub(crate) fn unmap_cut(&'static self, vmas: &mut VmaIndex<M>, range: VaRange) {
        self.unreserve_huge(vmas, range);
        let change = self.invalidate(range, NotifyEvent::Unmap);
        self.unmap_left(vmas, range, range);
        drop(change);
        self.split_cut_folios(range);
    }

    /// Unmaps `range`, of which only `left` may have entries.
    fn unmap_left(&'static self, vmas: &mut VmaIndex<M>, range: VaRange, left: VaRange) {
        let mut gather = TlbGather::new(FlushReason::Unmap);
        self.zap(left, &mut gather);
        gather.flush();
        // Only now: a driver's pages are not counted, and may go with the VMAs.
        self.drop_vmas_in(vmas, range);
        if left.is_empty() {
            return;
        }
        let mut gather = TlbGather::new(FlushReason::FreeTables);
        self.free_empty_tables(vmas, left, &mut gather);
        gather.flush();
    }

    /// With no reference held by a gather any more, a folio that an end of `range` cut can be split and its dead part freed.
    fn split_cut_folios(&'static self, range: VaRange) {
        self.split_cut_folio(range.start, Vaddr(range.start.0.wrapping_sub(PAGE_SIZE)));
        self.split_cut_folio(range.end, range.end);
    }

    fn drop_vmas_in(&self, vmas: &mut VmaIndex<M>, range: VaRange) {
        while let Some(vma) = vmas.take_first_in(range) {
            self.free_vma(vma);
        }
    }

    /// Empties all entries of `range`, whose ends cut no huge mapping. With the VMA lock held alone.
    pub(crate) fn zap(&'static self, range: VaRange, gather: &mut TlbGather<M>) {
        let mut addr = range.start;
        while addr < range.end {
            let Some(pmd) = self.pmd_table(addr) else {
                addr = addr.align_down(PUD_SIZE).add(PUD_SIZE);
                continue;
            };
            let next = addr.align_down(PMD_SIZE).add(PMD_SIZE);
            let word = pmd.words()[addr.index(Level::Pmd)].load(Relaxed);
            match Entry::decode(word, Level::Pmd) {
                Entry::None => {}
                Entry::Table(pfn) => {
                    let mut cursor = self.cursor_in(M::mm().table(pfn), Level::Pte, addr);
                    zap_run(&mut cursor, range.end.min(next), gather);
                }
                Entry::Leaf(_) | Entry::NonPresent(_) => {
                    let mut cursor = self.cursor_in(pmd, Level::Pmd, addr);
                    if matches!(cursor.entry(), Entry::Table(_)) {
                        continue; // a migration arrived in pieces meanwhile: look again
                    }
                    zap_run(&mut cursor, next, gather);
                }
            }
            addr = next;
        }
    }

    /// Frees the PTE tables of `range` that have no entry. With the VMA lock held alone. A walk of the reverse map holds the lock of
    /// its set instead: one that has found a table before it was unhooked has ended before the table goes.
    pub(crate) fn free_empty_tables(
        &'static self,
        vmas: &VmaIndex<M>,
        range: VaRange,
        gather: &mut TlbGather<M>,
    ) {
        let mut addr = range.start.align_down(PMD_SIZE);
        while addr < range.end {
            let Some(pmd) = self.pmd_table(addr) else {
                addr = addr.align_down(PUD_SIZE).add(PUD_SIZE);
                continue;
            };
            let mut cursor = self.cursor_in(pmd, Level::Pmd, addr);
            if let Some(table) = cursor.unhook() {
                drop(cursor);
                vmas.iter_in(VaRange::new(addr.0, PMD_SIZE)).for_each(|vma| self.wait_for_walks(vma));
                gather.hold_table(self, table);
            }
            addr = addr.add(PMD_SIZE);
        }
    }

    /// At exit: unhooks every table of the user half but the root.
    pub(crate) fn free_all_tables(&'static self, gather: &mut TlbGather<M>) {
        self.free_below(self.root(), Level::Pgd, 256, gather);
    }

    fn free_below(
        &'static self,
        table: &'static crate::table::Table<M>,
        level: Level,
        entries: usize,
        gather: &mut TlbGather<M>,
    ) {
        for word in &table.words()[..entries] {
            let Entry::Table(pfn) = Entry::decode(word.load(Relaxed), level) else { continue };
            let below = M::mm().table(pfn);
            match level {
                Level::Pgd => self.free_below(below, Level::Pud, 512, gather),
                Level::Pud => self.free_below(below, Level::Pmd, 512, gather),
                Level::Pmd | Level::Pte => {}
            }
            word.store(0, Relaxed);
            below.set_unhooked(&below.lock.lock());
            gather.hold_table(self, SpareTable::unhooked(below));
        }
    }
}

/// Empties the entries from the cursor to `end` (in its table).
fn zap_run<M: Machine>(cursor: &mut Cursor<M>, end: Vaddr, gather: &mut TlbGather<M>) {
    let mut run = Run::new();
    let mut pages = 0;
    while cursor.skip_empty() && cursor.addr() < end {
        let n = zap_device_run(cursor, end, &mut run, gather);
        if n != 0 {
            pages += u64::from(n);
            if !cursor.seek(cursor.addr().add(u64::from(n) * PAGE_SIZE)) {
                break;
            }
            continue;
        }
        if zap_entry(cursor, &mut run, gather) {
            pages += u64::from(cursor.level().order().pages());
        }
        if !cursor.next() || cursor.addr() >= end {
            break;
        }
    }
    run.end(gather);
    M::count(Event::PgUnmapped, pages);
}

/// Empties the PTEs from the cursor on that are device-private and name the pages of one folio one after the other; how many,
/// and 0 where there is only one or something else.
#[inline(always)]
fn zap_device_run<M: Machine>(
    cursor: &mut Cursor<M>,
    end: Vaddr,
    run: &mut Run,
    gather: &mut TlbGather<M>,
) -> u32 {
    if cursor.level() != Level::Pte {
        return 0;
    }
    let Some(frame) = word::device_private(cursor.word()) else { return 0 };
    let folio = M::mm().mapped_folio(frame);
    let addr = cursor.addr();
    let room = (end.0 - addr.0).min(addr.align_down(PMD_SIZE).0 + PMD_SIZE - addr.0) / PAGE_SIZE;
    let n = (folio.order().pages() - (frame.index() - folio.frame().index())).min(room as u32);
    if n == 1 || !cursor.is_device_private_run(addr, n, frame) {
        return 0;
    }
    TlbGather::settle(Some(gather), cursor.space());
    cursor.clear_soft_run(n);
    run.add_many(folio, n, gather);
    n
}

#[inline(always)]
fn zap_entry<M: Machine>(cursor: &mut Cursor<M>, run: &mut Run, gather: &mut TlbGather<M>) -> bool {
    let mm = M::mm();
    match cursor.entry() {
        Entry::None => return false,
        Entry::Table(_) => unreachable!("a cursor stands on the lowest table"),
        Entry::Leaf(_) => {
            let leaf = gather.defer(cursor.clear_leaf());
            if !leaf.special {
                let folio = mm.mapped_folio(leaf.frame);
                if leaf.attrs.contains(Attrs::DIRTY) {
                    folio.set_dirty();
                }
                run.add(folio, true, gather);
            }
        }
        Entry::NonPresent(SoftLeaf { kind, frame, .. }) => {
            TlbGather::settle(Some(gather), cursor.space());
            cursor.clear_soft();
            let folio = mm.mapped_folio(frame);
            match kind {
                SoftKind::Migration => folio.remove_migs(1),
                _ => run.add(folio, false, gather),
            }
        }
    }
    true
}
