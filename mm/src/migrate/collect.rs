//! First phase: walk the range once, lock what can be locked, put migration entries in its place. Never waits.

use crate::counters::Event;
use crate::cursor::{Cursor, Peek};
use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf, word};
use crate::error::OutOfMemory;
use crate::folio::{Folio, LockedFolio, put_many};
use crate::machine::{FlushReason, Machine};
use crate::migrate::unit::{Batch, Dest, Source, Unit};
use crate::migrate::{BATCH_PAGES, Cause, Collected, Migration, Work};
use crate::notifier::NotifyEvent;
use crate::slab::NIL;
use crate::space::Space;
use crate::split::{SplitError, split_pmd};
use crate::stats::stayed_on;
use crate::tlb::{TlbGather, UnflushedRun};
use crate::types::{Frame, Level, Order, PAGE_SIZE, PMD_SIZE, PUD_SIZE, Place, VaRange, Vaddr};
use crate::vma::{Vma, VmaKind};
use crate::zone::Need;

/// A batch that is being filled.
pub(crate) struct Collecting<M: Machine>(Work<M>);

/// How a folio lies in the page table around an entry that names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Extent {
    /// All of it is mapped, in order, from this address, in one table.
    Whole(Vaddr),
    /// It is not; a cut before this page of it brings it nearer.
    Cut(u32),
}

impl<M: Machine> Collecting<M> {
    #[inline(always)]
    pub(crate) fn new(to: Place, need: Need) -> Result<Self, OutOfMemory> {
        let mut batch = M::mm().batches.alloc(M::mm())?;
        debug_assert_eq!(batch.units.len(), 0);
        batch.to = to;
        batch.need = need;
        batch.pages = 0;
        batch.shared = false;
        batch.busy = (NIL, Vaddr(0));
        batch.report = crate::migrate::Report::default();
        Ok(Self(Work(batch)))
    }

    /// The batch is full enough.
    #[inline(always)]
    pub(crate) fn collected(mut self, fault: Vaddr) -> Migration<M, Collected> {
        self.0.0.fault = fault;
        Migration::from_work(self.0)
    }

    /// Makes room for one more unit; false without memory for it.
    pub(crate) fn reserve(&mut self) -> bool {
        self.batch().units.reserve()
    }

    fn batch(&mut self) -> &mut Batch<M> {
        &mut self.0.0
    }

    /// Notes pages that a non-present entry names and that do not go: busy, foreign, or there already.
    fn leave(&mut self, soft: &SoftLeaf, pages: u32) {
        match soft.kind {
            SoftKind::Migration => self.skip(Cause::Busy, pages),
            SoftKind::DevicePrivate if soft.frame.place() != self.batch().to => {
                self.skip(Cause::Foreign, pages);
            }
            SoftKind::DevicePrivate | SoftKind::DeviceExclusive | SoftKind::ProtNone => {}
        }
    }

    /// Notes pages that a present entry maps and that do not go: there already, or in another device's coherent memory.
    fn leave_leaf(&mut self, leaf: &Leaf, pages: u32) {
        let to = self.batch().to;
        if !to.is_ram() && !leaf.special && leaf.frame.place() != to {
            self.skip(Cause::Foreign, pages);
        }
    }

    fn skip(&mut self, cause: Cause, pages: u32) {
        self.batch().report.fail(cause, pages);
        M::count(Event::MigrateFail, 1);
    }

    /// Locks a folio that the entry at `addr` maps, unless it is one that was busy a page before: its pages stay together.
    #[inline(always)]
    fn try_lock(&mut self, folio: &'static Folio, addr: Vaddr) -> Option<LockedFolio<M>> {
        if self.batch().busy == (folio.slab_index(), addr) {
            return None;
        }
        LockedFolio::try_lock_mapped(folio)
    }

    /// Notes that a folio is busy, with its pages at `range`. One that goes on after the end of a table is counted as one unit.
    fn leave_busy(&mut self, folio: &Folio, range: VaRange) {
        let key = folio.slab_index();
        let batch = self.batch();
        batch.report.fail(Cause::Busy, range.nr_pages() as u32);
        stayed_on::<M>(folio.place(), Cause::Busy, range.nr_pages() as u32);
        if batch.busy != (key, range.start) {
            M::count(Event::MigrateFail, 1);
        }
        batch.busy = (key, range.end);
    }

    /// Takes a folio that is wholly mapped from `addr`: its entries become migration entries.
    #[inline(always)]
    pub(crate) fn take(&mut self, cursor: &mut Cursor<M>, folio: LockedFolio<M>, addr: Vaddr) {
        take_entries(cursor, &folio, addr, &mut Some(&mut self.batch().gather));
        self.push_taken(cursor.space(), folio, addr);
    }

    /// Makes a unit of a folio whose entries from `addr` are migration entries already.
    #[inline(always)]
    pub(crate) fn push_taken(&mut self, space: &'static Space<M>, folio: LockedFolio<M>, addr: Vaddr) {
        let order = folio.order();
        let batch = self.batch();
        batch.pages += order.pages();
        batch.shared |= folio.map_count() != 0;
        batch.units.push(Unit {
            source: Source::Folio(folio),
            dest: Dest::None,
            space: Some(space),
            addr,
            order,
            committed: false,
        });
    }

    /// Pages collected so far.
    pub(crate) fn pages(&mut self) -> u32 {
        self.batch().pages
    }

    /// Makes a unit of a folio that was found by its frames: the next phase finds its mappings.
    pub(crate) fn push_found(&mut self, folio: LockedFolio<M>) {
        let order = folio.order();
        let batch = self.batch();
        batch.pages += order.pages();
        batch.shared = true;
        batch.units.push(Unit {
            source: Source::Folio(folio),
            dest: Dest::None,
            space: None,
            addr: Vaddr(0),
            order,
            committed: false,
        });
    }

    fn take_hole(&mut self, space: &'static Space<M>, vma: &Vma, addr: Vaddr, order: Order) {
        let batch = self.batch();
        batch.pages += order.pages();
        batch.units.push(Unit {
            source: Source::Hole { anon: vma.anon() },
            dest: Dest::None,
            space: Some(space),
            addr,
            order,
            committed: false,
        });
    }
}

/// How `folio`, one of whose frames the cursor's entry names, is mapped around it; `limits` are the addresses that may be
/// taken.
#[inline(always)]
fn extent<M: Machine>(
    cursor: &Cursor<M>,
    folio: &LockedFolio<M>,
    frame: Frame,
    limits: Option<VaRange>,
) -> Extent {
    if cursor.level() == Level::Pmd || folio.order() == Order::BASE {
        return Extent::Whole(cursor.addr());
    }
    large_extent(cursor, folio, frame, limits)
}

/// Turns the entries of a folio that is wholly mapped from `addr`, in the cursor's table, into migration entries. One of the
/// mappings' references becomes the handle's, which must not have taken one; the others go.
#[inline(always)]
pub(crate) fn take_entries<M: Machine>(
    cursor: &mut Cursor<M>,
    folio: &LockedFolio<M>,
    addr: Vaddr,
    gather: &mut Option<&mut TlbGather<M>>,
) {
    let n = if cursor.level() == Level::Pmd { 1 } else { folio.order().pages() };
    cursor.seek(addr);
    if n > 1 && cursor.is_device_private_run(addr, n, folio.frame()) {
        take_device_run(cursor, addr, n, gather);
    } else {
        for i in 0..n {
            to_migration(cursor, folio, gather);
            if i + 1 < n {
                cursor.next();
            }
        }
    }
    folio.maps_to_migs(n);
    if n > 1 {
        put_many::<M>(folio.folio(), n - 1);
    }
}

/// As [`take_entries`], when all `n` entries from `addr` on are device-private.
#[inline(never)]
fn take_device_run<M: Machine>(
    cursor: &mut Cursor<M>,
    addr: Vaddr,
    n: u32,
    gather: &mut Option<&mut TlbGather<M>>,
) {
    TlbGather::settle(gather.as_deref(), cursor.space());
    cursor.device_private_run_to_migration(addr, n);
}

/// Turns the entry under the cursor into a migration entry.
#[inline(always)]
pub(crate) fn to_migration<M: Machine>(
    cursor: &mut Cursor<M>,
    folio: &LockedFolio<M>,
    gather: &mut Option<&mut TlbGather<M>>,
) {
    match cursor.entry() {
        Entry::Leaf(_) => {
            let owed = cursor.leaf_to_soft(|leaf| SoftLeaf::new(SoftKind::Migration, leaf.frame, leaf.attrs));
            let leaf = match gather {
                Some(gather) => gather.defer(owed),
                None => owed.flush(FlushReason::Migrate),
            };
            if leaf.attrs.contains(Attrs::DIRTY) {
                folio.set_dirty();
            }
        }
        Entry::NonPresent(soft) => {
            TlbGather::settle(gather.as_deref(), cursor.space());
            cursor.replace_soft(Entry::NonPresent(SoftLeaf { kind: SoftKind::Migration, ..soft }));
        }
        Entry::None | Entry::Table(_) => unreachable!("taken entries were looked at under this lock"),
    }
}

/// As [`extent`], for a folio of several PTEs.
#[inline(never)]
pub(crate) fn large_extent<M: Machine>(
    cursor: &Cursor<M>,
    folio: &LockedFolio<M>,
    frame: Frame,
    limits: Option<VaRange>,
) -> Extent {
    let first = folio.frame();
    let pages = folio.order().pages();
    let page = frame.index() - first.index();
    let start = Vaddr(cursor.addr().0.wrapping_sub(u64::from(page) * PAGE_SIZE));
    let table = cursor.addr().align_down(PMD_SIZE);
    let table = VaRange::between(table, table.add(PMD_SIZE));
    let limits = limits.map_or(table, |limits| limits.intersect(table));
    // Pages of the folio before and after what may be taken. `start` may lie below zero: compare offsets, not addresses.
    let room_before = ((cursor.addr().0 - limits.start.0) / PAGE_SIZE) as u32;
    let room_after = ((limits.end.0 - cursor.addr().0) / PAGE_SIZE) as u32;
    if room_before < page {
        return Extent::Cut(page - room_before);
    }
    if room_after < pages - page {
        return Extent::Cut(page + room_after);
    }
    if cursor.is_device_private_run(start, pages, first) {
        return Extent::Whole(start);
    }
    let wanted = |i: u32| match cursor.entry_at(start.add(u64::from(i) * PAGE_SIZE)) {
        Entry::Leaf(leaf) => !leaf.special && leaf.frame == first.offset(i),
        Entry::NonPresent(SoftLeaf {
            kind: SoftKind::DevicePrivate | SoftKind::DeviceExclusive,
            frame,
            ..
        }) => frame == first.offset(i),
        _ => false,
    };
    let at_start = wanted(0);
    match (1..pages).find(|&i| wanted(i) != at_start) {
        Some(i) => Extent::Cut(i),
        None => Extent::Whole(start),
    }
}

impl<M: Machine> Space<M> {
    /// Collects from the start of `range` until the batch is full; the address to go on at.
    pub(crate) fn collect(&'static self, range: VaRange, collecting: &mut Collecting<M>) -> Vaddr {
        let vmas = self.vmas.read();
        let mut at = range.start;
        while at < range.end && collecting.batch().pages < BATCH_PAGES {
            let Some(vma) = vmas.find(at) else {
                // Unmapped since it was checked; nothing to move.
                at = vmas.first_after(at).map_or(range.end, |vma| vma.start().min(range.end));
                continue;
            };
            let part = VaRange::between(at, range.end).intersect(vma.range());
            if matches!(vma.kind(), VmaKind::Shared | VmaKind::Device) {
                if !collecting.batch().to.is_ram() {
                    collecting.skip(Cause::NotAnon, part.nr_pages() as u32);
                }
                at = part.end;
                continue;
            }
            match self.collect_step(vma, part, collecting) {
                Some(next) => at = next,
                None if collecting.batch().units.len() == 0 => {
                    // Not even one unit: without memory for the work the rest of the range stays.
                    collecting.skip(Cause::NoMemory, VaRange::between(at, range.end).nr_pages() as u32);
                    return range.end;
                }
                None => return at,
            }
        }
        at.min(range.end)
    }

    /// Collects what stands under one PMD entry, at most; the address after it. `None` when there is no room for more units.
    fn collect_step(
        &'static self,
        vma: &Vma,
        part: VaRange,
        collecting: &mut Collecting<M>,
    ) -> Option<Vaddr> {
        let addr = part.start;
        let next = addr.align_down(PMD_SIZE).add(PMD_SIZE);
        let to_device = !collecting.batch().to.is_ram();
        if !collecting.batch().units.reserve() {
            return None;
        }
        let under_entry = VaRange::between(addr, next.min(part.end));
        let _change = self.invalidate(under_entry, NotifyEvent::Migrate(collecting.batch().to));
        match self.peek(addr) {
            // Not to be split for nothing.
            Peek::Pmd(_, Entry::NonPresent(soft)) if !goes(&soft, collecting.batch().to) => {
                let end = next.min(part.end);
                collecting.leave(&soft, VaRange::between(addr, end).nr_pages() as u32);
                Some(end)
            }
            Peek::NoTable if !to_device => Some(addr.align_down(PUD_SIZE).add(PUD_SIZE).min(part.end)),
            Peek::Pmd(_, Entry::None) if !to_device => Some(next.min(part.end)),
            // Where nothing was written, the pages are the object's.
            Peek::NoTable | Peek::Pmd(_, Entry::None) if vma.kind() != VmaKind::Anon => {
                Some(next.min(part.end))
            }
            Peek::NoTable | Peek::Pmd(_, Entry::None) => Some(self.collect_hole(vma, part, collecting)),
            Peek::Pmd(_, Entry::Leaf(leaf)) if !leaf_goes(&leaf, collecting.batch().to) => {
                let end = next.min(part.end);
                collecting.leave_leaf(&leaf, VaRange::between(addr, end).nr_pages() as u32);
                Some(end)
            }
            Peek::Pmd(..) if !addr.is_aligned(PMD_SIZE) || next > part.end => {
                // Only a part of a huge mapping: split it and look at its pieces.
                match M::mm().spare_pte_table(addr, Need::Reserve) {
                    Ok(spare) => split_pmd(self, addr, spare),
                    Err(_) => {
                        let end = next.min(part.end);
                        collecting.skip(Cause::NoMemory, VaRange::between(addr, end).nr_pages() as u32);
                        return Some(end);
                    }
                }
                Some(addr)
            }
            Peek::Pmd(table, _) => {
                let mut cursor = self.cursor_in(table, Level::Pmd, addr);
                if matches!(cursor.entry(), Entry::Table(_)) {
                    return Some(addr); // split meanwhile: look again
                }
                self.collect_entry(vma, &mut cursor, collecting);
                Some(next)
            }
            Peek::Pte(table, _) => self.collect_ptes(vma, table, part, collecting),
        }
    }

    /// A hole where there is no PTE table: one huge unit where the VMA wants huge pages and one fits, else single pages.
    fn collect_hole(&'static self, vma: &Vma, part: VaRange, collecting: &mut Collecting<M>) -> Vaddr {
        let addr = part.start;
        if vma.huge_range(addr) == Some(addr) && addr.0 + PMD_SIZE <= part.end.0 {
            collecting.take_hole(self, vma, addr, Order::PMD);
            return addr.add(PMD_SIZE);
        }
        collecting.take_hole(self, vma, addr, Order::BASE);
        addr.add(PAGE_SIZE)
    }

    fn collect_ptes(
        &'static self,
        vma: &Vma,
        table: &'static crate::table::Table<M>,
        part: VaRange,
        collecting: &mut Collecting<M>,
    ) -> Option<Vaddr> {
        let end = part.start.align_down(PMD_SIZE).add(PMD_SIZE).min(part.end);
        let mut cursor = self.cursor_in(table, Level::Pte, part.start);
        loop {
            let after = match vma.kind() {
                VmaKind::Anon => self.collect_single_pages(&mut cursor, end, collecting),
                _ => cursor.addr(),
            };
            if after >= end {
                return Some(end);
            }
            if !collecting.reserve() {
                return Some(after).filter(|&at| at > part.start);
            }
            let after = match self.collect_pte(vma, &mut cursor, part, collecting) {
                Ok(after) => after,
                Err((folio, at)) => {
                    let addr = cursor.addr();
                    drop(cursor);
                    return Some(self.collect_split(addr, end, &folio, at, collecting));
                }
            };
            if after >= end || !cursor.seek(after) {
                return Some(after.min(end));
            }
        }
    }

    /// The commonest case in a loop of its own: takes single pages, one after the other, that lie where they are wanted. Ends
    /// at the first entry that is anything else and returns its address (the cursor is there), or an address from `end` on.
    #[inline(always)]
    fn collect_single_pages(
        &'static self,
        cursor: &mut Cursor<M>,
        end: Vaddr,
        collecting: &mut Collecting<M>,
    ) -> Vaddr {
        let Batch { to, units, gather, pages, shared, .. } = collecting.batch();
        let to_ram = to.is_ram();
        let mut run = UnflushedRun::new(self, Level::Pte, cursor.addr());
        let before = units.len();
        let mut others = 0;
        let after = loop {
            let addr = cursor.addr();
            let word = cursor.word();
            let frame = if to_ram { word::device_private(word) } else { word::plain_ram(word) };
            let Some(frame) = frame else { break addr };
            let folio = M::mm().mapped_folio(frame);
            if folio.order() != Order::BASE {
                break addr;
            }
            let Some(unit) = units.room() else { break addr };
            let Some(locked) = LockedFolio::try_lock_mapped(folio) else { break addr };
            if to_ram {
                TlbGather::settle(Some(gather), self);
                cursor.set_soft_kind(SoftKind::Migration);
            } else if word::is_dirty(cursor.leaf_to_migration(&mut run)) {
                locked.set_dirty();
            }
            locked.maps_to_migs(1);
            others |= locked.map_count();
            // What stands there is done with: nothing to drop.
            core::mem::forget(core::mem::replace(&mut unit.source, Source::Folio(locked)));
            unit.space = Some(self);
            unit.addr = addr;
            unit.order = Order::BASE;
            unit.committed = false;
            units.taken();
            if !cursor.next_pte() || cursor.addr() >= end {
                break end;
            }
        };
        gather.defer_run(&mut run);
        *pages += (units.len() - before) as u32;
        *shared |= others != 0;
        after
    }

    /// Splits a folio that reaches out of the range; the address to go on at. The caller holds no table.
    #[cold]
    fn collect_split(
        &'static self,
        addr: Vaddr,
        end: Vaddr,
        folio: &LockedFolio<M>,
        at: u32,
        collecting: &mut Collecting<M>,
    ) -> Vaddr {
        let cause = match self.split_folio(folio, addr, at) {
            Ok(()) => return addr,
            Err(SplitError::Busy) => Cause::NotSplit,
            Err(SplitError::Oom) => Cause::NoMemory,
        };
        let page = folio_page(self, addr, folio);
        let skip = VaRange::between(addr, end).nr_pages().min(u64::from(folio.order().pages() - page));
        collecting.skip(cause, skip as u32);
        stayed_on::<M>(folio.place(), cause, skip as u32);
        addr.add(skip * PAGE_SIZE)
    }

    /// One PTE, or all PTEs of the folio that it names; the address after them. An error is a folio to be split first.
    #[inline(always)]
    fn collect_pte(
        &'static self,
        vma: &Vma,
        cursor: &mut Cursor<M>,
        part: VaRange,
        collecting: &mut Collecting<M>,
    ) -> Result<Vaddr, (LockedFolio<M>, u32)> {
        let addr = cursor.addr();
        let Some(frame) = self.wanted(vma, cursor, collecting) else { return Ok(addr.add(PAGE_SIZE)) };
        let folio = M::mm().mapped_folio(frame);
        let Some(locked) = collecting.try_lock(folio, addr) else {
            return Ok(self.leave_busy(cursor, folio, part, collecting));
        };
        match extent(cursor, &locked, frame, Some(part)) {
            Extent::Whole(start) => {
                let after = start.add(locked.order().bytes());
                collecting.take(cursor, locked, start);
                Ok(after)
            }
            Extent::Cut(at) => Err((locked.with_reference(), at)),
        }
    }

    /// A folio that somebody else has locked stays, with all of its pages that are mapped from here on, so that none of them is
    /// looked at again when the lock may be free; the address after them.
    #[cold]
    fn leave_busy(
        &'static self,
        cursor: &mut Cursor<M>,
        folio: &'static Folio,
        part: VaRange,
        collecting: &mut Collecting<M>,
    ) -> Vaddr {
        let start = cursor.addr();
        let mut next = start;
        loop {
            next = next.add(PAGE_SIZE);
            if next >= part.end || !cursor.next() {
                break;
            }
            let (Entry::Leaf(Leaf { frame, special: false, .. })
            | Entry::NonPresent(SoftLeaf { kind: SoftKind::DevicePrivate, frame, .. })) = cursor.entry()
            else {
                break;
            };
            if !folio.covers(frame) {
                break;
            }
        }
        collecting.leave_busy(folio, VaRange::between(start, next));
        next
    }

    /// A whole PMD entry.
    fn collect_entry(&'static self, vma: &Vma, cursor: &mut Cursor<M>, collecting: &mut Collecting<M>) {
        let Some(frame) = self.wanted(vma, cursor, collecting) else { return };
        let folio = M::mm().mapped_folio(frame);
        match LockedFolio::try_lock_mapped(folio) {
            Some(locked) => {
                let addr = cursor.addr();
                collecting.take(cursor, locked, addr);
            }
            None => {
                let pages = cursor.level().order().pages();
                collecting.skip(Cause::Busy, pages);
                stayed_on::<M>(folio.place(), Cause::Busy, pages);
            }
        }
    }

    /// The frame that the entry names, if it is one to be moved. Holes and zero pages are taken here.
    #[inline(always)]
    fn wanted(&'static self, vma: &Vma, cursor: &Cursor<M>, collecting: &mut Collecting<M>) -> Option<Frame> {
        let to = collecting.batch().to;
        match cursor.entry() {
            Entry::None | Entry::Leaf(Leaf { special: true, .. }) if !to.is_ram() => {
                if vma.kind() == VmaKind::Anon {
                    collecting.take_hole(self, vma, cursor.addr(), cursor.level().order());
                }
                None
            }
            Entry::Leaf(leaf) if leaf_goes(&leaf, to) => {
                if vma.kind() != VmaKind::Anon && M::mm().mapped_folio(leaf.frame).link().anon != vma.anon() {
                    collecting.skip(Cause::NotAnon, cursor.level().order().pages());
                    return None;
                }
                Some(leaf.frame)
            }
            Entry::Leaf(leaf) => {
                collecting.leave_leaf(&leaf, cursor.level().order().pages());
                None
            }
            Entry::NonPresent(soft) if goes(&soft, to) => Some(soft.frame),
            Entry::NonPresent(soft) => {
                collecting.leave(&soft, cursor.level().order().pages());
                None
            }
            _ => None,
        }
    }
}

/// True when what a non-present entry names is to be moved by a migration to `to`.
#[inline(always)]
fn goes(soft: &SoftLeaf, to: Place) -> bool {
    match soft.kind {
        SoftKind::DevicePrivate => to.is_ram(),
        // The notifiers were told: no device works on it any more.
        SoftKind::DeviceExclusive => soft.frame.place().is_ram() != to.is_ram(),
        SoftKind::Migration | SoftKind::ProtNone => false,
    }
}

/// True when what a present entry maps is to be moved by a migration to `to`: RAM to a device, coherent memory to RAM. Zero
/// pages are holes, which go to a device.
#[inline(always)]
fn leaf_goes(leaf: &Leaf, to: Place) -> bool {
    if leaf.special { !to.is_ram() } else { leaf.frame.place().is_ram() != to.is_ram() }
}

/// The page of `folio` that is mapped at `addr`, 0 when none is any more.
fn folio_page<M: Machine>(space: &Space<M>, addr: Vaddr, folio: &LockedFolio<M>) -> u32 {
    match space.peek(addr) {
        Peek::Pte(_, Entry::Leaf(Leaf { frame, .. }) | Entry::NonPresent(SoftLeaf { frame, .. }))
            if folio.covers(frame) =>
        {
            frame.index() - folio.frame().index()
        }
        _ => 0,
    }
}
