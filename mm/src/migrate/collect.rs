//! First phase: walk the range once, lock what can be locked, put migration entries in its place. Never waits.

use crate::counters::Event;
use crate::cursor::{Cursor, Peek};
use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf, word};
use crate::error::OutOfMemory;
use crate::folio::{Folio, LockedFolio, put_many};
use crate::machine::{FlushReason, Machine};
use crate::migrate::options::{Fast, MigrateOptions, Pick, WRITTEN, written};
use crate::migrate::unit::{Batch, MAX_UNITS, Source, State, Unit};
use crate::migrate::{BATCH_PAGES, Cause, Collected, Migration, Work};
use crate::notifier::NotifyEvent;
use crate::slab::NIL;
use crate::space::Space;
use crate::split::{SplitError, split_pmd};
use crate::stats::stayed_on;
use crate::tlb::{TlbGather, UnflushedRun};
use crate::types::{Frame, Level, Order, PAGE_SIZE, PMD_SIZE, PUD_SIZE, Place, USER_END, VaRange, Vaddr};
use crate::vma::{Vma, VmaKind};
use crate::zone::Need;

/// A batch that is being filled.
pub(crate) struct Collecting<M: Machine>(Work<M>);

/// How a folio lies in the page table around an entry that names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Extent {
    /// All of it is mapped, in order, from this address; in one table, or in two that lie side by side.
    Whole(Vaddr),
    /// It is not; a cut before this page of it brings it nearer.
    Cut(u32),
}

impl<M: Machine> Collecting<M> {
    #[inline(always)]
    pub(crate) fn new(to: Place, need: Need) -> Result<Self, OutOfMemory> {
        Self::with(to, need, &MigrateOptions::to(to))
    }

    pub(crate) fn with(to: Place, need: Need, options: &MigrateOptions) -> Result<Self, OutOfMemory> {
        let mut batch = M::mm().batches.alloc(M::mm())?;
        debug_assert_eq!(batch.units.len(), 0);
        batch.to = to;
        batch.need = need;
        batch.options = *options;
        batch.from = options.sources(to);
        batch.fast = Fast::of(options, to);
        batch.observed = false;
        batch.pages = 0;
        batch.shared = false;
        batch.busy = (NIL, Vaddr(0));
        batch.report = crate::migrate::Report::default();
        Ok(Self(Work(batch)))
    }

    /// Whether somebody wants to hear of what stays, too.
    pub(crate) fn observe(&mut self, observed: bool) {
        self.batch().observed = observed;
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

    /// Notes that `range`, in a folio of `order`, stays.
    #[cold]
    fn skip(&mut self, cause: Cause, range: VaRange, order: Order) {
        M::count(Event::MigrateFail, 1);
        self.note(cause, range, order);
    }

    #[cold]
    fn note(&mut self, cause: Cause, range: VaRange, order: Order) {
        let pages = range.nr_pages() as u32;
        let batch = self.batch();
        batch.report.fail(cause, pages);
        if batch.observed && batch.units.reserve() {
            batch.units.push(Unit {
                addr: range.start,
                order,
                state: State::Skipped(cause),
                pages,
                ..Unit::default()
            });
        }
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
        if self.batch().busy != (key, range.start) {
            M::count(Event::MigrateFail, 1);
        }
        stayed_on::<M>(folio.place(), Cause::Busy, range.nr_pages() as u32);
        self.note(Cause::Busy, range, folio.order());
        self.batch().busy = (key, range.end);
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
        batch.units.push(Unit::taken(Source::Folio(folio), space, addr, order));
    }

    /// As [`Collecting::take`], for a folio that stays with those who share it: only this mapping becomes migration entries.
    #[cold]
    fn take_shared(&mut self, cursor: &mut Cursor<M>, folio: LockedFolio<M>, addr: Vaddr) {
        take_entries(cursor, &folio, addr, &mut Some(&mut self.batch().gather));
        let (space, order) = (cursor.space(), folio.order());
        let batch = self.batch();
        batch.pages += order.pages();
        batch.units.push(Unit::taken(Source::Shared(folio), space, addr, order));
    }

    /// True when no more belongs in this batch: pages enough, or as many units as it has room for. Not a want of memory.
    pub(crate) fn is_full(&mut self) -> bool {
        let batch = self.batch();
        batch.pages >= BATCH_PAGES || batch.units.len() >= MAX_UNITS
    }

    /// Makes a unit of a folio that was found by its frames: the next phase finds its mappings.
    pub(crate) fn push_found(&mut self, folio: LockedFolio<M>) {
        let order = folio.order();
        let batch = self.batch();
        batch.pages += order.pages();
        batch.shared = true;
        batch.units.push(Unit { source: Source::Folio(folio), order, ..Unit::default() });
    }

    fn take_hole(&mut self, space: &'static Space<M>, vma: &Vma, addr: Vaddr, order: Order) {
        let batch = self.batch();
        batch.pages += order.pages();
        batch.units.push(Unit::taken(Source::Hole { anon: vma.anon() }, space, addr, order));
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

/// Turns the entries of a folio that is wholly mapped from `addr` into migration entries, as far as they are in the cursor's
/// table. One of the mappings' references becomes the handle's, which must not have taken one; the others go. Entries in the
/// table beside are found by the reverse map when the batch is unmapped: two tables are never locked at once.
#[inline(always)]
pub(crate) fn take_entries<M: Machine>(
    cursor: &mut Cursor<M>,
    folio: &LockedFolio<M>,
    addr: Vaddr,
    gather: &mut Option<&mut TlbGather<M>>,
) {
    let order = folio.order();
    let single = cursor.level() == Level::Pmd || order == Order::BASE;
    let n = if single { 1 } else { seek_run(cursor, addr, order) };
    let start = cursor.addr();
    let first = folio.frame().offset(((start.0 - addr.0) / PAGE_SIZE) as u32);
    if n > 1 && cursor.is_device_private_run(start, n, first) {
        take_device_run(cursor, start, n, gather);
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

/// Moves the cursor to the first entry in its table of a folio of `order` that is mapped from `addr`; how many there are.
pub(crate) fn seek_run<M: Machine>(cursor: &mut Cursor<M>, addr: Vaddr, order: Order) -> u32 {
    let table = cursor.addr().align_down(PMD_SIZE);
    let table = VaRange::between(table, table.add(PMD_SIZE));
    let here = VaRange::new(addr.0, order.bytes()).intersect(table);
    let found = cursor.seek(here.start);
    debug_assert!(found, "a folio is mapped where the cursor is");
    here.nr_pages() as u32
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
    let limits = limits.unwrap_or(VaRange::new(0, USER_END));
    // Pages of the folio before and after what may be taken. `start` may lie below zero: compare offsets, not addresses.
    let room_before = (cursor.addr().0 - limits.start.0) / PAGE_SIZE;
    let room_after = (limits.end.0 - cursor.addr().0) / PAGE_SIZE;
    if room_before < u64::from(page) {
        return Extent::Cut(page - room_before as u32);
    }
    if room_after < u64::from(pages - page) {
        return Extent::Cut(page + room_after as u32);
    }
    let table = cursor.addr().align_down(PMD_SIZE);
    let table = VaRange::between(table, table.add(PMD_SIZE));
    if table.covers(VaRange::new(start.0, folio.order().bytes()))
        && cursor.is_device_private_run(start, pages, first)
    {
        return Extent::Whole(start);
    }
    let wanted = |i: u32| {
        let at = start.add(u64::from(i) * PAGE_SIZE);
        // In the table beside it, which is not locked, this is a hint. If it is wrong, the folio moves with a page that was unmapped.
        let entry = if table.contains(at) { cursor.entry_at(at) } else { entry_beside(cursor.space(), at) };
        match entry {
            Entry::Leaf(leaf) => !leaf.special && leaf.frame == first.offset(i),
            Entry::NonPresent(SoftLeaf {
                kind: SoftKind::DevicePrivate | SoftKind::DeviceExclusive,
                frame,
                ..
            }) => frame == first.offset(i),
            _ => false,
        }
    };
    let at_start = wanted(0);
    match (1..pages).find(|&i| wanted(i) != at_start) {
        Some(i) => Extent::Cut(i),
        None => Extent::Whole(start),
    }
}

/// The PTE at an address, without a lock.
fn entry_beside<M: Machine>(space: &Space<M>, addr: Vaddr) -> Entry {
    match space.peek(addr) {
        Peek::Pte(_, entry) => entry,
        Peek::NoTable | Peek::Pmd(..) => Entry::None,
    }
}

impl<M: Machine> Space<M> {
    /// Collects from the start of `range` until the batch is full; the address to go on at, which is the start
    /// when there is no memory for even one unit.
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
                    collecting.skip(Cause::NotAnon, part, Order::BASE);
                }
                at = part.end;
                continue;
            }
            match self.collect_step(vma, part, range.end, collecting) {
                Some(next) => at = next,
                None => return at,
            }
        }
        at.min(range.end)
    }

    /// Collects what stands under one PMD entry, at most; the address after it. A folio may reach beyond, to `limit`. `None` when
    /// there is no room for more units.
    fn collect_step(
        &'static self,
        vma: &Vma,
        part: VaRange,
        limit: Vaddr,
        collecting: &mut Collecting<M>,
    ) -> Option<Vaddr> {
        let addr = part.start;
        let next = addr.align_down(PMD_SIZE).add(PMD_SIZE);
        let end = next.min(part.end);
        if !collecting.batch().units.reserve() {
            return None;
        }
        // A folio is taken as a whole: its entries may go on in the next VMA, and in the next table.
        let told = VaRange::between(addr, next.add(PMD_SIZE).min(limit));
        let _change = self.invalidate(told, NotifyEvent::Migrate(collecting.batch().to));
        let fills = collecting.batch().fills(vma);
        match self.peek(addr) {
            Peek::NoTable if !fills => Some(addr.align_down(PUD_SIZE).add(PUD_SIZE).min(part.end)),
            Peek::Pmd(_, Entry::None) if !fills => Some(end),
            Peek::NoTable | Peek::Pmd(_, Entry::None) => Some(self.collect_hole(vma, part, collecting)),
            Peek::Pmd(table, entry) => match collecting.batch().pick(entry, vma) {
                // Not to be split for nothing.
                Pick::Leave => Some(end),
                Pick::Fail(cause) => {
                    collecting.skip(cause, VaRange::between(addr, end), Order::PMD);
                    Some(end)
                }
                _ if !addr.is_aligned(PMD_SIZE) || next > part.end => {
                    // Only a part of a huge mapping: split it and look at its pieces.
                    match M::mm().spare_pte_table(addr, Need::Reserve) {
                        Ok(spare) => split_pmd(self, addr, spare),
                        Err(_) => {
                            collecting.skip(Cause::NoMemory, VaRange::between(addr, end), Order::PMD);
                            return Some(end);
                        }
                    }
                    Some(addr)
                }
                _ => {
                    let mut cursor = self.cursor_in(table, Level::Pmd, addr);
                    if matches!(cursor.entry(), Entry::Table(_)) {
                        return Some(addr); // split meanwhile: look again
                    }
                    // A huge entry is all of its folio: there is nothing to be split first.
                    let taken = self.collect_entry(vma, &mut cursor, part, limit, collecting);
                    Some(taken.unwrap_or(next))
                }
            },
            Peek::Pte(table, _) => self.collect_ptes(vma, table, part, limit, collecting),
        }
    }

    /// A hole where there is no PTE table: one huge unit where the VMA wants huge pages and one fits, else smaller ones.
    fn collect_hole(&'static self, vma: &Vma, part: VaRange, collecting: &mut Collecting<M>) -> Vaddr {
        let addr = part.start;
        if vma.huge_range(addr) == Some(addr) && addr.0 + PMD_SIZE <= part.end.0 {
            collecting.take_hole(self, vma, addr, Order::PMD);
            return addr.add(PMD_SIZE);
        }
        let order = hole_order(collecting.batch().options.hole_order, addr, part.end);
        collecting.take_hole(self, vma, addr, order);
        addr.add(order.bytes())
    }

    fn collect_ptes(
        &'static self,
        vma: &Vma,
        table: &'static crate::table::Table<M>,
        part: VaRange,
        limit: Vaddr,
        collecting: &mut Collecting<M>,
    ) -> Option<Vaddr> {
        let end = part.start.align_down(PMD_SIZE).add(PMD_SIZE).min(part.end);
        let mut cursor = self.cursor_in(table, Level::Pte, part.start);
        loop {
            let after = match vma.kind() {
                VmaKind::Anon => match collecting.batch().fast {
                    Fast::Nothing => cursor.addr(),
                    Fast::Private => self.collect_single_pages::<true>(&mut cursor, end, collecting),
                    Fast::Ram => self.collect_single_pages::<false>(&mut cursor, end, collecting),
                },
                _ => cursor.addr(),
            };
            if after >= end {
                return Some(end);
            }
            if !collecting.reserve() {
                return Some(after).filter(|&at| at > part.start);
            }
            let after = match self.collect_entry(vma, &mut cursor, part, limit, collecting) {
                Ok(after) => after,
                Err((folio, at)) => {
                    let addr = cursor.addr();
                    drop(cursor);
                    return Some(self.collect_split(addr, end, &folio, at, collecting));
                }
            };
            // A folio that goes on in the table beside has been taken with what lies there.
            if after >= end || !cursor.seek(after) {
                return Some(after);
            }
        }
    }

    /// The commonest case in a loop of its own: takes single pages, one after the other, that lie where they are wanted. Ends
    /// at the first entry that is anything else and returns its address (the cursor is there), or an address from `end` on.
    #[inline(never)]
    fn collect_single_pages<const PRIVATE: bool>(
        &'static self,
        cursor: &mut Cursor<M>,
        end: Vaddr,
        collecting: &mut Collecting<M>,
    ) -> Vaddr {
        let mm = M::mm();
        let Batch { from, units, gather, pages, shared, .. } = collecting.batch();
        let from = *from;
        let mut run = UnflushedRun::new(self, Level::Pte, cursor.addr());
        let before = units.len();
        let mut others = 0;
        let after = loop {
            let addr = cursor.addr();
            let word = cursor.word();
            let frame = if PRIVATE { word::device_private(word) } else { word::plain_ram(word) };
            let Some(frame) = frame else { break addr };
            if PRIVATE && !from.contains(frame.place()) {
                break addr;
            }
            let folio = if PRIVATE { mm.mapped_folio(frame) } else { mm.mapped_folio_in(&mm.ram, frame) };
            if folio.order() != Order::BASE {
                break addr;
            }
            let Some(unit) = units.room() else { break addr };
            let Some(locked) = LockedFolio::try_lock_mapped(folio) else { break addr };
            if PRIVATE {
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
            unit.state = State::Taken;
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
        let after = addr.add(skip * PAGE_SIZE);
        collecting.skip(cause, VaRange::between(addr, after), folio.order());
        stayed_on::<M>(folio.place(), cause, skip as u32);
        after
    }

    /// One entry, or all PTEs of the folio that it names; the address after them. An error is a folio to be split first.
    #[inline(always)]
    fn collect_entry(
        &'static self,
        vma: &Vma,
        cursor: &mut Cursor<M>,
        part: VaRange,
        limit: Vaddr,
        collecting: &mut Collecting<M>,
    ) -> Result<Vaddr, (LockedFolio<M>, u32)> {
        let addr = cursor.addr();
        let pick = collecting.batch().pick(cursor.entry(), vma);
        let (Pick::Move(frame) | Pick::Copy(frame)) = pick else {
            return Ok(self.collect_other(pick, vma, cursor, part, collecting));
        };
        let folio = M::mm().mapped_folio(frame);
        if vma.kind() != VmaKind::Anon && matches!(pick, Pick::Move(_)) && folio.link().anon != vma.anon() {
            let next = addr.add(cursor.level().size());
            collecting.skip(Cause::NotAnon, VaRange::between(addr, next), cursor.level().order());
            return Ok(next);
        }
        let Some(locked) = collecting.try_lock(folio, addr) else {
            return Ok(self.leave_busy(cursor, folio, part, collecting));
        };
        match extent(cursor, &locked, frame, Some(VaRange::between(part.start, limit))) {
            Extent::Whole(start) => {
                let after = start.add(locked.order().bytes());
                let (writes, to) = (collecting.batch().options.writes(), collecting.batch().to);
                if matches!(pick, Pick::Copy(_)) {
                    let beside = pages_beside(cursor, start, locked.order());
                    if beside != 0 {
                        return Err((locked.with_reference(), beside));
                    }
                    if !is_sole(cursor, &locked) {
                        collecting.take_shared(cursor, locked, start);
                        return Ok(after);
                    }
                    if frame.place() == to {
                        // It is there already, and nobody shares it any more.
                        let (order, folio) = (locked.order(), locked.with_reference());
                        grant(cursor, start, if cursor.level() == Level::Pmd { Order::BASE } else { order });
                        drop(folio.unlock());
                        return Ok(after);
                    }
                }
                let (level, order) = (cursor.level(), locked.order());
                collecting.take(cursor, locked, start);
                if writes {
                    grant(cursor, start, if level == Level::Pmd { Order::BASE } else { order });
                }
                Ok(after)
            }
            Extent::Cut(at) => Err((locked.with_reference(), at)),
        }
    }

    /// An entry whose page does not go; the address after it.
    #[inline(never)]
    fn collect_other(
        &'static self,
        pick: Pick,
        vma: &Vma,
        cursor: &mut Cursor<M>,
        part: VaRange,
        collecting: &mut Collecting<M>,
    ) -> Vaddr {
        let (addr, order) = (cursor.addr(), cursor.level().order());
        let next = addr.add(order.bytes());
        match pick {
            Pick::Hole => {
                let order = if cursor.level() == Level::Pmd {
                    order
                } else {
                    let most = hole_order(collecting.batch().options.hole_order, addr, part.end);
                    self.empty_order(vma, cursor, most, collecting.batch())
                };
                collecting.take_hole(self, vma, addr, order);
                return addr.add(order.bytes());
            }
            Pick::Fail(cause) => collecting.skip(cause, VaRange::between(addr, next), order),
            Pick::Grant => grant_entry(cursor),
            Pick::Move(_) | Pick::Copy(_) | Pick::Leave => {}
        }
        next
    }

    /// The largest order, up to `most`, of a hole at the cursor.
    fn empty_order(&self, vma: &Vma, cursor: &Cursor<M>, most: Order, batch: &Batch<M>) -> Order {
        let empty = |i: u32| {
            let entry = cursor.entry_at(cursor.addr().add(u64::from(i) * PAGE_SIZE));
            batch.pick(entry, vma) == Pick::Hole
        };
        let run = (1..most.pages()).find(|&i| !empty(i)).unwrap_or(most.pages());
        Order::largest(0, run).min(most)
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
            next = next.add(cursor.level().size());
            if cursor.level() == Level::Pmd || next >= part.end || !cursor.next() {
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
}

/// The largest order, up to `most`, of a hole that begins at `addr` and ends by `end`, smaller than a huge page.
fn hole_order(most: Order, addr: Vaddr, end: Vaddr) -> Order {
    let table_end = addr.align_down(PMD_SIZE).add(PMD_SIZE);
    let pages = VaRange::between(addr, end.min(table_end)).nr_pages() as u32;
    Order::largest(addr.index(Level::Pte) as u32, pages).min(most).min(Order::new(8))
}

/// True when the folio, all of it mapped in the cursor's table, is mapped and held by nobody else: to write it, its mapping needs
/// no copy. With the table and the folio locked.
fn is_sole<M: Machine>(cursor: &Cursor<M>, folio: &LockedFolio<M>) -> bool {
    let entries = if cursor.level() == Level::Pmd { 1 } else { folio.order().pages() };
    folio.map_count() == entries && folio.refs() == entries
}

/// At which page a folio of `order` that is mapped from `start` goes on in another table; 0 when it does not.
fn pages_beside<M: Machine>(cursor: &Cursor<M>, start: Vaddr, order: Order) -> u32 {
    let border = start.align_down(PMD_SIZE).add(PMD_SIZE);
    if cursor.level() == Level::Pmd || start.add(order.bytes()) <= border {
        return 0;
    }
    VaRange::between(start, border).nr_pages() as u32
}

/// Lets the entries of a folio that is mapped from `start` be written, as far as they are in the cursor's table. Without a flush:
/// they allow more.
#[cold]
fn grant<M: Machine>(cursor: &mut Cursor<M>, start: Vaddr, order: Order) {
    let n = if order == Order::BASE { 1 } else { seek_run(cursor, start, order) };
    for _ in 0..n {
        grant_entry(cursor);
        if !cursor.next() {
            break;
        }
    }
}

/// One entry. A present one that a tracker has write-protected is left to a write fault.
fn grant_entry<M: Machine>(cursor: &mut Cursor<M>) {
    match cursor.entry() {
        Entry::NonPresent(soft) if !soft.attrs.contains(Attrs::WRITE) => {
            cursor.replace_soft(Entry::NonPresent(SoftLeaf { attrs: written(soft.attrs), ..soft }));
        }
        Entry::Leaf(leaf) if !leaf.attrs.intersects(Attrs::WRITE | Attrs::UFFD_WP) => cursor.upgrade(WRITTEN),
        _ => {}
    }
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
