//! First phase: walk the range once, lock what can be locked, put migration entries in its place. Never waits.

mod take;

use crate::cursor::{Cursor, Peek};
use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf, word};
use crate::folio::{Folio, LockedFolio};
use crate::machine::Machine;
use crate::migrate::options::{Fast, Pick, WRITTEN, written};
use crate::migrate::unit::{Batch, Source, State};
use crate::migrate::{BATCH_PAGES, Cause};
use crate::notifier::{Invalidation, NotifyEvent};
use crate::space::Space;
use crate::split::{SplitError, split_pmd};
use crate::stats::stayed_on;
use crate::tlb::{TlbGather, UnflushedRun};
use crate::types::{Level, Order, PAGE_SIZE, PMD_SIZE, PUD_SIZE, VaRange, Vaddr};
use crate::vma::{Vma, VmaKind};
use crate::zone::Need;

use take::extent;
pub(crate) use take::{Collecting, Extent, large_extent, seek_run, take_entries, to_migration};

impl<M: Machine> Space<M> {
    /// Collects from the start of `range` until the batch is full; the address to go on at, which is the start
    /// when there is no memory for even one unit.
    pub(crate) fn collect(&'static self, range: VaRange, collecting: &mut Collecting<M>) -> Vaddr {
        let vmas = self.vmas.read();
        let mut at = range.start;
        let (mut change, mut told) = self.tell_of_walk(range, collecting);
        while at < range.end && !collecting.is_full() {
            if at >= told {
                (change, told) = self.tell_of_walk(VaRange::between(at, range.end), collecting);
            }
            let Some(vma) = vmas.find(at) else {
                // Unmapped since it was checked; nothing to move.
                at = vmas.first_after(at).map_or(range.end, |vma| vma.start().min(range.end));
                continue;
            };
            let part = VaRange::between(at, range.end).intersect(vma.range());
            if matches!(vma.kind(), VmaKind::Shared | VmaKind::Device | VmaKind::Hugetlb) {
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
        drop(change);
        at.min(range.end)
    }

    /// Tells the notifiers once of all that a batch takes from the start of `range` on, if it is all there; a walk over holes is
    /// told of in parts of that size. Also returns where that ends. A folio may reach beyond, by less than 2 MiB: it is taken as
    /// a whole, with entries in the next VMA, and in the next table.
    fn tell_of_walk(
        &'static self,
        range: VaRange,
        collecting: &mut Collecting<M>,
    ) -> (Invalidation<M>, Vaddr) {
        let end = range.start.align_down(PMD_SIZE).add(u64::from(BATCH_PAGES) * PAGE_SIZE);
        let told = VaRange::between(range.start, end.add(PMD_SIZE).min(range.end));
        let owner = collecting.batch().options.owner;
        (self.invalidate(told, NotifyEvent::Migrate { owner }), end)
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
        if vma.huge_range(addr, &M::mm().policy) == Some(addr) && addr.0 + PMD_SIZE <= part.end.0 {
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
            // Single pages are a unit each: no more of them than the batch has room for.
            let room = cursor.addr().add(collecting.room() as u64 * PAGE_SIZE).min(end);
            let after = match vma.kind() {
                VmaKind::Anon => match (collecting.batch().fast, collecting.batch().marks.is_traced()) {
                    (Fast::Nothing, _) => cursor.addr(),
                    (Fast::Private, false) => {
                        self.collect_single_pages::<true, false>(&mut cursor, room, collecting)
                    }
                    (Fast::Private, true) => {
                        self.collect_single_pages::<true, true>(&mut cursor, room, collecting)
                    }
                    (Fast::Ram, false) => {
                        self.collect_single_pages::<false, false>(&mut cursor, room, collecting)
                    }
                    (Fast::Ram, true) => {
                        self.collect_single_pages::<false, true>(&mut cursor, room, collecting)
                    }
                },
                _ => cursor.addr(),
            };
            if after >= room {
                return Some(room);
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
            if after >= end || collecting.room() == 0 || !cursor.seek(after) {
                return Some(after);
            }
        }
    }

    /// The commonest case in a loop of its own: takes single pages, one after the other, that lie where they are wanted. Ends
    /// at the first entry that is anything else and returns its address (the cursor is there), or an address from `end` on.
    #[inline(never)]
    fn collect_single_pages<const PRIVATE: bool, const TRACED: bool>(
        &'static self,
        cursor: &mut Cursor<M>,
        end: Vaddr,
        collecting: &mut Collecting<M>,
    ) -> Vaddr {
        let mm = M::mm();
        let Batch { from, units, gather, pages, shared, marks, .. } = collecting.batch();
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
            if TRACED {
                unit.note = marks.unit_taken::<M>();
            }
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
            Extent::Whole { start, run } => {
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
                collecting.take(cursor, locked, start, run);
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
