//! `MADV_COLLAPSE`: small pages of RAM become one of 2 MiB.
//!
//! ```text
//!   all folios locked ──► migration entries ──► one flush ──► nobody else holds them? ──► copied to a fresh 2 MiB folio
//!        ──► entries dropped, the table unhooked ──► flush ──► one huge entry            (break before make)
//! ```
//!
//! The VMA lock is held alone, so no fault, clone or migration of this space comes in between; what finds pages by the reverse
//! map needs a folio lock. Holes and zero pages become zeros. A page that others map too stays theirs: this space gets its own
//! copy. Device-private pages are not dragged back: their 2 MiB are left as they are. A failure puts every entry back.

use core::ops::Range;

use crate::counters::Event;
use crate::cursor::Cursor;
use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf};
use crate::error::RangeError;
use crate::folio::{Folio, FolioRef, LockedFolio, RmapLink, put_many};
use crate::machine::{FlushReason, Machine};
use crate::migrate::to_migration;
use crate::notifier::NotifyEvent;
use crate::space::Space;
use crate::stats::merged;
use crate::table::Table;
use crate::tlb::TlbGather;
use crate::trace::{Kind, Step};
use crate::types::{Frame, Level, Order, PAGE_SIZE, PMD_SIZE, PTRS, Place, Prot, VaRange, Vaddr};
use crate::vma::{HugeAdvice, Vma, VmaKind};
use crate::zone::Need;

/// Why 2 MiB stayed in small pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum MergeCause {
    /// No VMA of anonymous memory that allows huge pages covers them.
    NotHuge,
    /// There is nothing, or nothing but zero pages.
    Empty,
    /// A page lies where this does not look: on a device for a collapse, off it for a merge there.
    Elsewhere,
    /// The entries do not allow the same, or a tracker watches single pages.
    Mixed,
    /// A folio is locked, or on its way.
    Busy,
    /// Somebody holds a page, or (on a device) another space maps it.
    Pinned,
    /// No 2 MiB are free, or the group may not have them besides what they replace.
    NoMemory,
    /// The copy engine failed.
    CopyFailed,
}

/// What a collapse or a merge did, in units of 2 MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MergeReport {
    /// Became one by copying.
    pub copied: u64,
    /// Became one where they lie.
    pub in_place: u64,
    /// Were one already.
    pub already: u64,
    /// Stayed, by [`MergeCause`].
    pub failed: [u64; 8],
}

/// How 2 MiB became one.
pub(crate) enum Merged {
    Already,
    InPlace,
    Copied,
}

/// A space's PTE table over 2 MiB, and what is above it.
pub(crate) struct Small<M: Machine> {
    pub(crate) space: &'static Space<M>,
    pub(crate) pmd: &'static Table<M>,
    pub(crate) pte: &'static Table<M>,
    pub(crate) base: Vaddr,
}

impl<M: Machine> Space<M> {
    /// Puts the small pages of every whole 2 MiB in `range` together into fresh huge pages of RAM.
    ///
    /// # Errors
    /// [`RangeError::Invalid`]. That some 2 MiB stayed as they were is in the report.
    pub fn collapse(&'static self, range: VaRange) -> Result<MergeReport, RangeError> {
        self.for_each_huge(
            range,
            |vma, base| self.merging(Kind::Collapse, base, || self.collapse_one(vma, base)),
            &mut |_, _| {},
        )
    }

    /// As [`Space::collapse`], for who asks for all or nothing and hears of the first 2 MiB that stayed; those after it are tried
    /// too.
    ///
    /// # Errors
    /// [`RangeError::Oom`], [`RangeError::Busy`]; [`RangeError::Invalid`] with the 2 MiB for every cause that does not pass by
    /// itself, or with `range`.
    pub(crate) fn collapse_all(&'static self, range: VaRange) -> Result<(), RangeError> {
        let mut first = None;
        let mut note = |base, cause| first = first.or(Some((base, cause)));
        self.for_each_huge(
            range,
            |vma, base| self.merging(Kind::Collapse, base, || self.collapse_one(vma, base)),
            &mut note,
        )?;
        match first {
            None => Ok(()),
            Some((base, MergeCause::NoMemory)) => Err(RangeError::Oom(base)),
            Some((base, MergeCause::Busy | MergeCause::Pinned)) => Err(RangeError::Busy(base)),
            Some((base, _)) => Err(RangeError::Invalid(VaRange::new(base.0, PMD_SIZE))),
        }
    }

    /// Calls `f` for every whole 2 MiB in `range` that a fitting VMA covers, with the VMA lock held alone, and sums up; `stayed`
    /// hears of those that stay.
    pub(crate) fn for_each_huge(
        &'static self,
        range: VaRange,
        f: impl Fn(&Vma, Vaddr) -> Result<Merged, MergeCause>,
        stayed: &mut dyn FnMut(Vaddr, MergeCause),
    ) -> Result<MergeReport, RangeError> {
        if !range.is_user_pages() {
            return Err(RangeError::Invalid(range));
        }
        let mut report = MergeReport::default();
        let mut base = range.start.align_up(PMD_SIZE);
        while base < range.end && base.0 + PMD_SIZE <= range.end.0 {
            let all = VaRange::new(base.0, PMD_SIZE);
            let vmas = self.vmas.write();
            let fits = |vma: &&Vma| {
                vma.range().covers(all) && vma.kind() == VmaKind::Anon && vma.advice() != HugeAdvice::NoHuge
            };
            let done = match vmas.find(base).filter(|vma| fits(&&**vma)) {
                Some(vma) => f(vma, base),
                None => Err(MergeCause::NotHuge),
            };
            drop(vmas);
            match done {
                Ok(Merged::Already) => report.already += 1,
                Ok(Merged::InPlace) => report.in_place += 1,
                Ok(Merged::Copied) => report.copied += 1,
                Err(cause) => {
                    report.failed[cause as usize] += 1;
                    stayed(base, cause);
                }
            }
            base = base.add(PMD_SIZE);
        }
        Ok(report)
    }

    /// Does `work`, which makes one page of 2 MiB at `base`, as a step of a trace.
    pub(crate) fn merging(
        &self,
        kind: Kind,
        base: Vaddr,
        work: impl FnOnce() -> Result<Merged, MergeCause>,
    ) -> Result<Merged, MergeCause> {
        let step = Step::begin::<M>();
        let result = work();
        if step.is_taken() {
            let frame = named(self.entry_at(base).1).map_or(Frame::ram(0), |(frame, _)| frame);
            step.end::<M>(kind, result.is_ok(), base, Order::PMD, frame.place(), frame);
        }
        result
    }

    fn collapse_one(&'static self, vma: &Vma, base: Vaddr) -> Result<Merged, MergeCause> {
        let pmd = self.pmd_table(base).ok_or(MergeCause::Empty)?;
        let entry = self.cursor_in(pmd, Level::Pmd, base).entry();
        let pte = match entry {
            Entry::Table(pfn) => M::mm().table(pfn),
            Entry::None | Entry::Leaf(Leaf { special: true, .. }) => return Err(MergeCause::Empty),
            Entry::Leaf(leaf) if leaf.frame.place().is_ram() => return Ok(Merged::Already),
            Entry::NonPresent(SoftLeaf { kind: SoftKind::Migration, .. }) => return Err(MergeCause::Busy),
            Entry::Leaf(_) | Entry::NonPresent(_) => return Err(MergeCause::Elsewhere),
        };
        let small = Small { space: self, pmd, pte, base };
        // Looked at before memory is taken for it, and once more when it is taken.
        small.look_for_collapse(&mut small.cursor())?;
        let folio = M::mm().alloc_folio(Place::RAM, Order::PMD, Need::User).ok();
        let Some(folio) = folio.and_then(|folio| self.charge(folio).ok()) else {
            M::count(Event::ThpCollapseAllocFailed, 1);
            return Err(MergeCause::NoMemory);
        };
        M::count(Event::ThpCollapseAlloc, 1);
        let _change = self.invalidate(VaRange::new(base.0, PMD_SIZE), NotifyEvent::Clear);
        let mut gather = TlbGather::new(FlushReason::Migrate);
        let attrs = small.take(&mut gather)?;
        gather.flush();
        if !small.is_alone() {
            small.put_back();
            return Err(MergeCause::Pinned);
        }
        small.copy_to(folio.frame());
        folio.set_link(RmapLink { anon: vma.anon(), index: vma.page_index(base) });
        folio.set_dirty();
        folio.set_maps(1);
        let frame = folio.into_owned().frame();
        let huge = Entry::Leaf(Leaf::ram(frame, huge_attrs(vma, attrs)));
        small.replace(vma, huge, |folio, n| {
            folio.remove_migs(n);
            drop(unlock::<M>(folio));
            if n > 1 {
                put_many::<M>(folio, n - 1);
            }
        });
        merged(self, Place::RAM);
        Ok(Merged::Copied)
    }
}

/// What the huge entry allows and remembers: the page is this space's own and new. Where a tracker waits for the first write of
/// every page, it waits for that of the huge page.
fn huge_attrs(vma: &Vma, any: Attrs) -> Attrs {
    let mut attrs = any & (Attrs::YOUNG | Attrs::SOFT_DIRTY) | Attrs::EXCLUSIVE | Attrs::DIRTY;
    attrs.set(Attrs::EXEC, vma.prot().contains(Prot::EXEC));
    attrs.set(Attrs::WRITE, vma.prot().contains(Prot::WRITE) && any.contains(Attrs::SOFT_DIRTY));
    attrs
}

/// The frame and the attributes of an entry that names a folio.
pub(crate) fn named(entry: Entry) -> Option<(Frame, Attrs)> {
    match entry {
        Entry::Leaf(Leaf { special: false, frame, attrs, .. }) => Some((frame, attrs)),
        Entry::NonPresent(soft) => Some((soft.frame, soft.attrs)),
        _ => None,
    }
}

/// Unlocks a folio that was locked with [`Small::lock_all`]; the handle is one of the mappings' references.
pub(crate) fn unlock<M: Machine>(folio: &'static Folio) -> FolioRef<M> {
    LockedFolio::born(FolioRef::from_owned(folio)).unlock()
}

impl<M: Machine> Small<M> {
    pub(crate) fn cursor(&self) -> Cursor<M> {
        self.space.cursor_in(self.pte, Level::Pte, self.base)
    }

    /// Calls `f` for every run of neighbouring entries of one folio, with the numbers of the entries, until it returns false.
    pub(crate) fn for_each_run(
        &self,
        cursor: &mut Cursor<M>,
        mut f: impl FnMut(&mut Cursor<M>, &'static Folio, Range<u32>) -> bool,
    ) {
        let mut run: Option<(&'static Folio, Range<u32>)> = None;
        for i in 0..PTRS as u32 {
            let frame = named(cursor.entry_at(self.addr(i))).map(|(frame, _)| frame);
            run = match (run, frame) {
                (Some((folio, range)), Some(frame)) if folio.covers(frame) => {
                    Some((folio, range.start..i + 1))
                }
                (before, frame) => {
                    if let Some((folio, range)) = before
                        && !f(cursor, folio, range)
                    {
                        return;
                    }
                    frame.map(|frame| (M::mm().mapped_folio(frame), i..i + 1))
                }
            };
        }
        if let Some((folio, range)) = run {
            f(cursor, folio, range);
        }
    }

    pub(crate) fn addr(&self, page: u32) -> Vaddr {
        self.base.add(u64::from(page) * PAGE_SIZE)
    }

    /// Locks every folio; their references stay the mappings'. A folio in two places counts as busy. All or none.
    pub(crate) fn lock_all(&self, cursor: &mut Cursor<M>) -> Result<(), MergeCause> {
        let mut failed = None;
        self.for_each_run(cursor, |_, folio, range| match LockedFolio::<M>::try_lock_mapped(folio) {
            Some(locked) => {
                core::mem::forget(locked); // unlocked run by run
                true
            }
            None => {
                failed = Some(range.start);
                false
            }
        });
        let Some(failed) = failed else { return Ok(()) };
        self.for_each_run(cursor, |_, folio, range| {
            if range.start < failed {
                unlock::<M>(folio).into_owned();
            }
            range.start < failed
        });
        Err(MergeCause::Busy)
    }

    /// True to the caller's wishes: pages of RAM, holes and zero pages only, and at least one page. What any entry remembers.
    fn look_for_collapse(&self, cursor: &mut Cursor<M>) -> Result<Attrs, MergeCause> {
        let (mut any, mut pages) = (Attrs::empty(), 0);
        for i in 0..PTRS as u32 {
            match cursor.entry_at(self.addr(i)) {
                Entry::None => {}
                Entry::Leaf(leaf) if leaf.attrs.contains(Attrs::UFFD_WP) => return Err(MergeCause::Mixed),
                Entry::Leaf(leaf) if leaf.special => {}
                Entry::Leaf(leaf) if leaf.frame.place().is_ram() => {
                    any |= leaf.attrs;
                    pages += 1;
                }
                Entry::NonPresent(soft) if soft.kind == SoftKind::ProtNone => return Err(MergeCause::Mixed),
                Entry::NonPresent(soft) if soft.kind != SoftKind::DevicePrivate => {
                    return Err(MergeCause::Busy);
                }
                _ => return Err(MergeCause::Elsewhere),
            }
        }
        if pages == 0 { Err(MergeCause::Empty) } else { Ok(any) }
    }

    /// Locks all folios and turns their entries into migration entries; what any of them remembers, A and D of this moment
    /// included. The mappings' references are kept.
    fn take(&self, gather: &mut TlbGather<M>) -> Result<Attrs, MergeCause> {
        let mut cursor = self.cursor();
        self.look_for_collapse(&mut cursor)?;
        self.lock_all(&mut cursor)?;
        let mut any = Attrs::empty();
        self.for_each_run(&mut cursor, |cursor, folio, range| {
            let locked = LockedFolio::born(FolioRef::from_owned(folio));
            let n = range.end - range.start;
            for page in range {
                cursor.seek(self.addr(page));
                to_migration(cursor, &locked, &mut Some(&mut *gather));
                any |= named(cursor.entry()).map_or(Attrs::empty(), |(_, attrs)| attrs);
            }
            folio.maps_to_migs(n);
            core::mem::forget(locked); // still locked, still the mappings' references
            true
        });
        Ok(any)
    }

    /// True when every reference is a mapping's elsewhere, or one of those that the entries here had.
    fn is_alone(&self) -> bool {
        let mut alone = true;
        self.for_each_run(&mut self.cursor(), |_, folio, range| {
            alone &= folio.refs() == folio.map_count() + (range.end - range.start);
            alone
        });
        alone
    }

    /// Undoes [`Small::take`].
    fn put_back(&self) {
        self.for_each_run(&mut self.cursor(), |cursor, folio, range| {
            let n = range.end - range.start;
            for page in range {
                cursor.seek(self.addr(page));
                if let Some((frame, attrs)) = named(cursor.entry()) {
                    cursor.replace_soft(Entry::mapping(frame, attrs));
                }
            }
            folio.migs_to_maps(n);
            put_many::<M>(folio, n);
            unlock::<M>(folio).into_owned();
            true
        });
    }

    /// Copies the pages, which nobody can change now. No lock of a table is held.
    fn copy_to(&self, to: Frame) {
        for i in 0..PTRS as u32 {
            let entry = self.cursor().entry_at(self.addr(i));
            match named(entry) {
                Some((frame, _)) => M::copy(frame, to.offset(i), Order::BASE),
                None => M::zero(to.offset(i), Order::BASE),
            }
        }
    }

    /// Empties the table, giving each run of entries to `release` (which owns their references), and puts `huge` in its place.
    /// The set's lock is held, so that no walk of the reverse map stands in the table when it goes.
    pub(crate) fn replace(&self, vma: &Vma, huge: Entry, mut release: impl FnMut(&'static Folio, u32)) {
        let walks = M::mm().anons.get(vma.anon()).hold();
        let mut gather = TlbGather::new(FlushReason::FreeTables);
        let mut pmd = self.space.cursor_in(self.pmd, Level::Pmd, self.base);
        let mut cursor = self.cursor();
        self.for_each_run(&mut cursor, |cursor, folio, range| {
            let n = range.end - range.start;
            cursor.seek(self.addr(range.start));
            cursor.clear_soft_run(n);
            release(folio, n);
            true
        });
        for i in 0..PTRS as u32 {
            cursor.seek(self.addr(i));
            if matches!(cursor.entry(), Entry::Leaf(_)) {
                gather.defer(cursor.clear_leaf()); // a zero page
            }
        }
        drop(cursor);
        let Some(table) = pmd.unhook() else { unreachable!("the table is empty, and nobody can fill it") };
        gather.hold_table(self.space, table);
        gather.flush();
        pmd.install(huge);
        drop(walks);
    }
}
