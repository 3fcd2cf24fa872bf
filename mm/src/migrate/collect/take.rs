//! A batch that is being filled, and how a folio's entries become migration entries.

use crate::counters::Event;
use crate::cursor::{Cursor, Peek};
use crate::entry::{Attrs, Entry, SoftKind, SoftLeaf};
use crate::error::OutOfMemory;
use crate::folio::{Folio, LockedFolio, put_many};
use crate::machine::{FlushReason, Machine};
use crate::migrate::options::{Fast, MigrateOptions};
use crate::migrate::unit::{Batch, Source, State, Unit};
use crate::migrate::{BATCH_PAGES, Cause, Collected, Migration, Work};
use crate::notifier::Owner;
use crate::slab::NIL;
use crate::space::Space;
use crate::stats::stayed_on;
use crate::tlb::TlbGather;
use crate::trace::Phase;
use crate::types::{Frame, Level, Order, PAGE_SIZE, PMD_SIZE, Place, USER_END, VaRange, Vaddr};
use crate::vma::Vma;
use crate::zone::Need;

/// A batch that is being filled.
pub(crate) struct Collecting<M: Machine>(Work<M>);

/// How a folio lies in the page table around an entry that names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Extent {
    /// All of it is mapped, in order, from `start`; in one table, or in two that lie side by side. As a `run`: in one table, by
    /// several device-private entries and nothing else.
    Whole { start: Vaddr, run: bool },
    /// It is not; a cut before this page of it brings it nearer.
    Cut(u32),
}

impl<M: Machine> Collecting<M> {
    #[inline(always)]
    pub(crate) fn new(to: Place, need: Need) -> Result<Self, OutOfMemory> {
        Self::with(to, M::mm().generation(to), need, &MigrateOptions::to(to))
    }

    /// A batch for the device at `to` as it was registered in `generation` ([`crate::mm::Mm::generation`]).
    pub(crate) fn with(
        to: Place,
        generation: u32,
        need: Need,
        options: &MigrateOptions,
    ) -> Result<Self, OutOfMemory> {
        let mut batch = M::mm().batches.alloc(M::mm())?;
        debug_assert_eq!(batch.units.len(), 0);
        batch.to = to;
        batch.generation = generation;
        batch.need = need;
        batch.options = *options;
        batch.from = options.sources(to);
        batch.fast = Fast::of(options, to);
        batch.observed = false;
        batch.limit = M::mm().policy.batch_units();
        batch.pages = 0;
        batch.shared = false;
        batch.busy = (NIL, Vaddr(0));
        batch.report = crate::migrate::Report::default();
        batch.marks.begin::<M>();
        Ok(Self(Work(batch)))
    }

    /// Whether somebody wants to hear of what stays, too.
    pub(crate) fn observe(&mut self, observed: bool) {
        self.batch().observed = observed;
    }

    /// Whose copies the notifiers need not drop.
    pub(crate) fn name_owner(&mut self, owner: Owner) {
        self.batch().options.owner = Some(owner);
    }

    /// The batch is full enough.
    #[inline(always)]
    pub(crate) fn collected(mut self, fault: Vaddr) -> Migration<M, Collected> {
        self.0.0.fault = fault;
        if self.0.0.marks.is_traced() {
            self.collected_traced();
        }
        Migration::from_work(self.0)
    }

    #[cold]
    fn collected_traced(&mut self) {
        let Batch { marks, units, fault, .. } = self.batch();
        marks.mark::<M>(Phase::Collect);
        if *fault != Vaddr(0) {
            // The fault's own record tells of its unit.
            units.for_each(|unit| unit.note = 0);
        }
    }

    /// Nothing is in it yet.
    pub(crate) fn is_empty(&mut self) -> bool {
        self.batch().units.len() == 0
    }

    /// Makes room for one more unit; false without memory for it.
    pub(crate) fn reserve(&mut self) -> bool {
        self.batch().units.reserve()
    }

    pub(super) fn batch(&mut self) -> &mut Batch<M> {
        &mut self.0.0
    }

    /// Notes that `range`, in a folio of `order`, stays.
    #[cold]
    pub(super) fn skip(&mut self, cause: Cause, range: VaRange, order: Order) {
        M::count(Event::MigrateFail, 1);
        self.note(cause, range, order);
    }

    #[cold]
    pub(super) fn note(&mut self, cause: Cause, range: VaRange, order: Order) {
        let pages = range.nr_pages() as u32;
        let batch = self.batch();
        batch.report.fail(cause, pages);
        if batch.observed && batch.units.reserve() {
            batch.units.push(Unit {
                addr: range.start,
                order,
                state: State::Skipped(cause),
                note: pages,
                ..Unit::default()
            });
        }
    }

    /// Locks a folio that the entry at `addr` maps, unless it is one that was busy a page before: its pages stay together.
    #[inline(always)]
    pub(super) fn try_lock(&mut self, folio: &'static Folio, addr: Vaddr) -> Option<LockedFolio<M>> {
        if self.batch().busy == (folio.slab_index(), addr) {
            return None;
        }
        LockedFolio::try_lock_mapped(folio)
    }

    /// Notes that a folio is busy, with its pages at `range`. One that goes on after the end of a table is counted as one unit.
    pub(super) fn leave_busy(&mut self, folio: &Folio, range: VaRange) {
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
    pub(crate) fn take(&mut self, cursor: &mut Cursor<M>, folio: LockedFolio<M>, addr: Vaddr, run: bool) {
        take_entries(cursor, &folio, addr, run, &mut Some(&mut self.batch().gather));
        self.push_taken(cursor.space(), folio, addr);
    }

    /// Makes a unit of a folio whose entries from `addr` are migration entries already.
    #[inline(always)]
    pub(crate) fn push_taken(&mut self, space: &'static Space<M>, folio: LockedFolio<M>, addr: Vaddr) {
        let order = folio.order();
        let batch = self.batch();
        batch.pages += order.pages();
        batch.shared |= folio.map_count() != 0;
        let note = batch.marks.unit_taken::<M>();
        batch.units.push(Unit::taken(Source::Folio(folio), space, addr, order, note));
    }

    /// As [`Collecting::take`], for a folio that stays with those who share it: only this mapping becomes migration entries.
    #[cold]
    pub(super) fn take_shared(&mut self, cursor: &mut Cursor<M>, folio: LockedFolio<M>, addr: Vaddr) {
        take_entries(cursor, &folio, addr, false, &mut Some(&mut self.batch().gather));
        let (space, order) = (cursor.space(), folio.order());
        let batch = self.batch();
        batch.pages += order.pages();
        let note = batch.marks.unit_taken::<M>();
        batch.units.push(Unit::taken(Source::Shared(folio), space, addr, order, note));
    }

    /// True when no more belongs in this batch: pages enough, or as many units as it has room for. Not a want of memory.
    pub(crate) fn is_full(&mut self) -> bool {
        let batch = self.batch();
        batch.pages >= BATCH_PAGES || batch.units.len() >= batch.limit
    }

    /// Units that it has room for still.
    pub(super) fn room(&mut self) -> usize {
        let batch = self.batch();
        batch.limit.saturating_sub(batch.units.len())
    }

    /// Makes a unit of a folio that was found by its frames: the next phase finds its mappings.
    pub(crate) fn push_found(&mut self, folio: LockedFolio<M>) {
        let order = folio.order();
        let batch = self.batch();
        batch.pages += order.pages();
        batch.shared = true;
        let note = batch.marks.unit_taken::<M>();
        batch.units.push(Unit { source: Source::Folio(folio), order, note, ..Unit::default() });
    }

    pub(super) fn take_hole(&mut self, space: &'static Space<M>, vma: &Vma, addr: Vaddr, order: Order) {
        let batch = self.batch();
        batch.pages += order.pages();
        let note = batch.marks.unit_taken::<M>();
        batch.units.push(Unit::taken(Source::Hole { anon: vma.anon() }, space, addr, order, note));
    }
}

/// How `folio`, one of whose frames the cursor's entry names, is mapped around it; `limits` are the addresses that may be
/// taken.
#[inline(always)]
pub(super) fn extent<M: Machine>(
    cursor: &Cursor<M>,
    folio: &LockedFolio<M>,
    frame: Frame,
    limits: Option<VaRange>,
) -> Extent {
    if cursor.level() == Level::Pmd || folio.order() == Order::BASE {
        return Extent::Whole { start: cursor.addr(), run: false };
    }
    large_extent(cursor, folio, frame, limits)
}

/// Turns the entries of a folio that is wholly mapped from `addr` into migration entries, as far as they are in the cursor's
/// table; under the lock under which its [`Extent`] was found, if that said `run`. One of the mappings' references becomes the handle's, which must not have taken one; the others go. Entries in the
/// table beside are found by the reverse map when the batch is unmapped: two tables are never locked at once.
#[inline(always)]
pub(crate) fn take_entries<M: Machine>(
    cursor: &mut Cursor<M>,
    folio: &LockedFolio<M>,
    addr: Vaddr,
    run: bool,
    gather: &mut Option<&mut TlbGather<M>>,
) {
    let order = folio.order();
    let single = cursor.level() == Level::Pmd || order == Order::BASE;
    let n = if single { 1 } else { seek_run(cursor, addr, order) };
    let start = cursor.addr();
    let first = folio.frame().offset(((start.0 - addr.0) / PAGE_SIZE) as u32);
    debug_assert!(!run || cursor.is_device_private_run(start, order.pages(), first));
    if run || n > 1 && cursor.is_device_private_run(start, n, first) {
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
pub(super) fn take_device_run<M: Machine>(
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
        return Extent::Whole { start, run: true };
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
        None => Extent::Whole { start, run: false },
    }
}

/// The PTE at an address, without a lock.
pub(super) fn entry_beside<M: Machine>(space: &Space<M>, addr: Vaddr) -> Entry {
    match space.peek(addr) {
        Peek::Pte(_, entry) => entry,
        Peek::NoTable | Peek::Pmd(..) => Entry::None,
    }
}
