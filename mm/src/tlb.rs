//! Flush obligations.
//!
//! A change that leaves a translation possibly alive in a TLB yields an [`Unflushed`]. It can only be handed to a
//! [`TlbGather`], which keeps what lay behind it alive until its one flush; dropped by mistake, it flushes there and then.
//! Changes that need no flush (not-present to present, more permission, non-present to non-present when nothing is owed)
//! yield nothing.
//!
//! Flushes that are owed are known to everyone: between clearing an entry and the gather's flush a writable translation may
//! live on while the entry is already non-present. Clearing raises the space's sequence of obligations under the table lock;
//! whoever then meets a non-present entry and finds more owed than its own gather explains calls [`TlbGather::settle`] first
//! (Linux: `flush_tlb_batched_pending`). That flush is remembered as a number of the sequence, so a walk over many such
//! entries pays once, and the next one finds that all is done.

use core::cell::Cell;
use core::mem;
use core::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};

use crate::counters::Event;
use crate::folio::{FolioRef, put_many};
use crate::machine::{FlushReason, FlushRequest, FlushScope, Machine};
use crate::mm::Mm;
use crate::slab::{Pool, PoolBox, Pooled};
use crate::space::Space;
use crate::table::SpareTable;
use crate::trace::{Kind, Step, Tracing};
use crate::types::{Frame, Level, Order, Place, VaRange, Vaddr};

/// A space's side of flushing: who may hold its translations and what is still owed.
#[derive(Debug, Default)]
pub(crate) struct FlushState {
    /// CPUs that have the space loaded (bit n is CPU n).
    pub(crate) cpus: AtomicU64,
    /// Entries cleared whose flush has not happened yet.
    pending: AtomicU64,
    /// Entries cleared since boot: each obligation has a number.
    raised: AtomicU64,
    /// All obligations up to this number were covered by a flush of the whole space, whether their gathers have paid or not.
    settled: AtomicU64,
}

impl FlushState {
    #[inline(always)]
    pub(crate) fn pending(&self) -> u64 {
        self.pending.load(Acquire)
    }

    /// One more obligation. With the lock of the table whose entry was cleared: who meets that entry sees both numbers.
    #[inline(always)]
    fn raise(&self) {
        self.raised.fetch_add(1, AcqRel);
        self.pending.fetch_add(1, AcqRel);
    }

    /// `n` obligations were met.
    #[inline(always)]
    fn pay(&self, n: u64) {
        self.pending.fetch_sub(n, AcqRel);
    }
}

/// A value behind a translation that may still be in a TLB.
#[must_use = "a flush is owed: hand it to a gather"]
pub(crate) struct Unflushed<M: Machine, T: Copy> {
    space: &'static Space<M>,
    addr: Vaddr,
    level: Level,
    value: T,
}

impl<M: Machine, T: Copy> Unflushed<M, T> {
    /// Owes the flush of the page at `addr`. Called with the lock of the table that held the entry.
    #[inline(always)]
    pub(crate) fn new(space: &'static Space<M>, addr: Vaddr, level: Level, value: T) -> Self {
        space.flush.raise();
        Self { space, addr, level, value }
    }

    /// The value, while the flush is still owed.
    #[inline(always)]
    pub(crate) const fn peek(&self) -> &T {
        &self.value
    }

    /// Flushes now.
    pub(crate) fn flush(self, reason: FlushReason) -> T {
        let mut gather = TlbGather::new(reason);
        let value = gather.defer(self);
        gather.flush();
        value
    }

    /// Flushes now: break before make. Unless the policy wants it the wrong way round; then what comes back with the value does,
    /// when it is dropped, which is after something else was mapped there and before the table's lock is free.
    #[inline(always)]
    pub(crate) fn flush_before_make(self, reason: FlushReason) -> (T, Option<TlbGather<M>>) {
        if M::mm().policy.breaks_before_make() { (self.flush(reason), None) } else { self.flush_late(reason) }
    }

    #[cold]
    fn flush_late(self, reason: FlushReason) -> (T, Option<TlbGather<M>>) {
        let mut late = TlbGather::new(reason);
        (late.defer(self), Some(late))
    }
}

impl<M: Machine, T: Copy> Drop for Unflushed<M, T> {
    fn drop(&mut self) {
        let range = VaRange::between(self.addr, self.addr.add(self.level.size()));
        let scope = FlushScope::Range { range, stride: self.level.size() };
        flush_space(self.space, scope, false, FlushReason::Owed);
        self.space.flush.pay(1);
    }
}

fn flush_space<M: Machine>(space: &Space<M>, scope: FlushScope, tables: bool, reason: FlushReason) {
    M::count(Event::TlbFlush, 1);
    space.count_flush();
    let cpus = space.flush.cpus.load(Relaxed);
    let scope = M::mm().policy.flush_scope(scope);
    let root = space.root_pfn();
    if M::tracing() == Tracing::Steps {
        return flush_recorded::<M>(FlushRequest { root, cpus, scope, tables, reason });
    }
    // A request of its own: who is not recorded has it in registers.
    M::flush(&FlushRequest { root, cpus, scope, tables, reason });
}

/// [`Machine::flush`], as a step of a trace. By value: by reference the request would stand in the caller's memory.
#[cold]
#[inline(never)]
fn flush_recorded<M: Machine>(request: FlushRequest) {
    let step = Step::begin::<M>();
    M::flush(&request);
    let (addr, pages, stride) = match request.scope {
        FlushScope::Range { range, stride } => (range.start, range.len() / stride, stride),
        FlushScope::All => (Vaddr(0), 0, 0),
    };
    let order = if stride == Level::Pmd.size() { Order::PMD } else { Order::BASE };
    step.end::<M>(Kind::Flush, true, addr, order, Place::RAM, Frame::ram(pages as u32));
}

/// Obligations for pages of one size that lie one after the other, near enough: what a loop over a table owes.
#[must_use = "flushes are owed: hand them to a gather"]
pub(crate) struct UnflushedRun<M: Machine> {
    space: &'static Space<M>,
    level: Level,
    range: VaRange,
    entries: u64,
}

impl<M: Machine> UnflushedRun<M> {
    /// An empty run of pages from `start` on.
    pub(crate) const fn new(space: &'static Space<M>, level: Level, start: Vaddr) -> Self {
        Self { space, level, range: VaRange { start, end: start }, entries: 0 }
    }

    /// Owes the flush of the page at `addr`, which lies after those owed before. Called with the lock of the table that held
    /// the entry.
    #[inline(always)]
    pub(crate) fn add(&mut self, addr: Vaddr) {
        self.space.flush.raise();
        self.range.end = addr;
        self.entries += 1;
    }
}

impl<M: Machine> Drop for UnflushedRun<M> {
    fn drop(&mut self) {
        if self.entries != 0 {
            TlbGather::new(FlushReason::Owed).defer_run(self);
        }
    }
}

/// Proof that a gather's flush happened: contents behind the cleared entries are stable.
#[derive(Debug)]
pub(crate) struct Flushed(());

/// What a gather keeps alive until its flush.
enum Held<M: Machine> {
    /// `extra` references besides the handle's own.
    Folio {
        folio: FolioRef<M>,
        extra: u32,
    },
    Table(SpareTable<M>),
}

impl<M: Machine> Held<M> {
    fn release(self) {
        match self {
            Self::Folio { folio, extra } => {
                if extra > 0 {
                    put_many::<M>(folio.folio(), extra);
                }
                drop(folio);
            }
            Self::Table(table) => drop(table),
        }
    }
}

const HELD: usize = 160;
/// A gather holds at most this many pages full: what 10,000 small pages need. Then it pays in between.
const HELD_CHUNKS: u32 = 64;

/// A page full of what a gather holds.
pub(crate) struct HeldChunk<M: Machine> {
    len: usize,
    items: [Option<Held<M>>; HELD],
    /// The one that was full before.
    next: Option<PoolBox<M, Self>>,
}

impl<M: Machine> Default for HeldChunk<M> {
    fn default() -> Self {
        Self { len: 0, items: [const { None }; HELD], next: None }
    }
}

impl<M: Machine> Pooled<M> for HeldChunk<M> {
    fn pool(mm: &Mm<M>) -> &Pool<M, Self> {
        &mm.held
    }
}

/// What is owed to one space.
struct Owed<M: Machine> {
    space: &'static Space<M>,
    range: VaRange,
    /// Smallest page among them, which is the stride of a range flush.
    stride: u64,
    entries: u64,
    /// How much of the space's sequence was settled when the gather last looked, and how many of `entries` are not newer than
    /// that look.
    looked: Cell<(u64, u64)>,
}

impl<M: Machine> Owed<M> {
    /// The first entry that a gather owes to a space.
    #[inline(always)]
    fn first(space: &'static Space<M>, range: VaRange, stride: u64) -> Self {
        // The entry may be older than this look.
        let looked = Cell::new((space.flush.settled.load(Relaxed), 1));
        Self { space, range, stride, entries: 1, looked }
    }
}

/// Address spaces that one gather can owe flushes to; one more flushes what there is.
const SPACES: usize = 4;

/// Collects flush obligations and what must outlive them; one round of flushes pays for all. Dropping it flushes.
pub(crate) struct TlbGather<M: Machine> {
    owed: [Option<Owed<M>>; SPACES],
    held: Option<PoolBox<M, HeldChunk<M>>>,
    held_chunks: u32,
    tables: bool,
    reason: FlushReason,
}

impl<M: Machine> TlbGather<M> {
    #[inline(always)]
    pub(crate) const fn new(reason: FlushReason) -> Self {
        Self { owed: [const { None }; SPACES], held: None, held_chunks: 0, tables: false, reason }
    }

    /// Takes over an obligation. The value may be used for everything that needs no stable contents.
    #[inline(always)]
    pub(crate) fn defer<T: Copy>(&mut self, unflushed: Unflushed<M, T>) -> T {
        let (space, addr, level, value) = (unflushed.space, unflushed.addr, unflushed.level, unflushed.value);
        mem::forget(unflushed);
        let end = addr.add(level.size());
        for owed in &mut self.owed {
            match owed {
                Some(o) if core::ptr::eq(o.space, space) => {
                    o.range = VaRange::between(o.range.start.min(addr), o.range.end.max(end));
                    o.stride = o.stride.min(level.size());
                    o.entries += 1;
                    return value;
                }
                Some(_) => {}
                None => {
                    *owed = Some(Owed::first(space, VaRange::between(addr, end), level.size()));
                    return value;
                }
            }
        }
        self.pay();
        self.owed[0] = Some(Owed::first(space, VaRange::between(addr, end), level.size()));
        value
    }

    /// Takes over what a run owes; the run is empty then.
    pub(crate) fn defer_run(&mut self, run: &mut UnflushedRun<M>) {
        let entries = mem::take(&mut run.entries);
        if entries == 0 {
            return;
        }
        let size = run.level.size();
        for addr in [run.range.start, run.range.end] {
            // The run has counted its entries as pending; these two count here, to be paid together.
            let first = Unflushed { space: run.space, addr, level: run.level, value: () };
            self.defer(first);
        }
        if let Some(owed) = self.owed.iter_mut().flatten().find(|o| core::ptr::eq(o.space, run.space)) {
            owed.entries = owed.entries + entries - 2;
            // Nobody knows which of them are older than the last look.
            let (settled, before) = owed.looked.get();
            owed.looked.set((settled, before + entries));
            owed.stride = owed.stride.min(size);
        }
    }

    /// Keeps `1 + extra` references of a folio until the flush. With no memory to note it down, flushes now.
    #[inline]
    pub(crate) fn hold(&mut self, folio: FolioRef<M>, extra: u32) {
        self.push(Held::Folio { folio, extra });
    }

    /// Keeps an unhooked table of `space` until the flush, which then drops paging-structure caches too.
    pub(crate) fn hold_table(&mut self, space: &'static Space<M>, table: SpareTable<M>) {
        let base = table.table().base();
        let owed = Unflushed::new(space, base, Level::Pmd, ());
        self.defer(owed);
        self.tables = true; // after what is owed was noted, which may have paid what was owed before
        self.push(Held::Table(table));
    }

    /// Owes what it takes to forget that a table of `space` mapped addresses from `base` on. It maps others now.
    pub(crate) fn moved_table(&mut self, space: &'static Space<M>, base: Vaddr) {
        let owed = Unflushed::new(space, base, Level::Pmd, ());
        self.defer(owed);
        self.tables = true; // after what is owed was noted, as above
    }

    fn push(&mut self, item: Held<M>) {
        if self.held.as_ref().is_none_or(|held| held.len == HELD) && !self.add_chunk() {
            self.pay();
            return item.release();
        }
        if let Some(held) = &mut self.held {
            let len = held.len;
            held.items[len] = Some(item);
            held.len = len + 1;
        }
    }

    /// Room for more; false when there is no memory for it, or too much is held already.
    fn add_chunk(&mut self) -> bool {
        if self.held_chunks == HELD_CHUNKS {
            self.pay();
        }
        let Ok(mut chunk) = M::mm().held.alloc(M::mm()) else { return false };
        chunk.next = self.held.take();
        self.held = Some(chunk);
        self.held_chunks += 1;
        true
    }

    /// To be called before a non-present entry of `space` loses permission, moves or goes: flushes the whole space when
    /// somebody else's flush is still owed there and nobody has done that since.
    #[inline(always)]
    pub(crate) fn settle(gather: Option<&Self>, space: &Space<M>) {
        if space.flush.pending() != 0 {
            Self::settle_pending(gather.and_then(|gather| gather.owed_to(space)), space);
        }
    }

    #[inline(never)]
    fn settle_pending(own: Option<&Owed<M>>, space: &Space<M>) {
        if own.is_some_and(|own| own.entries == space.flush.pending()) {
            return; // all of it is this gather's
        }
        // Obligations after the last settling: are they this gather's own?
        let (newest, settled) = (space.flush.raised.load(Acquire), space.flush.settled.load(Acquire));
        let own_since = own.map_or(Some(0), |own| {
            let (looked, before) = own.looked.get();
            (looked == settled).then(|| own.entries.saturating_sub(before))
        });
        if own_since.is_some_and(|own| newest.saturating_sub(settled) == own) {
            return;
        }
        M::count(Event::TlbFlushOwed, 1);
        flush_space(space, FlushScope::All, false, FlushReason::Owed);
        space.flush.settled.fetch_max(newest, AcqRel);
        if let Some(own) = own {
            own.looked.set((newest, own.entries));
        }
    }

    fn owed_to(&self, space: &Space<M>) -> Option<&Owed<M>> {
        self.owed.iter().flatten().find(|o| core::ptr::eq(o.space, space))
    }

    /// True when a flush is owed.
    pub(crate) const fn owes(&self) -> bool {
        self.owed[0].is_some()
    }

    /// Flushes every space touched, once, and lets go of what was held.
    #[inline]
    pub(crate) fn flush(&mut self) -> Flushed {
        if self.owed[0].is_some() || self.held.is_some() {
            self.pay();
        }
        Flushed(())
    }

    fn pay(&mut self) {
        for owed in &mut self.owed {
            if let Some(o) = owed.take() {
                flush_space(
                    o.space,
                    FlushScope::Range { range: o.range, stride: o.stride },
                    self.tables,
                    self.reason,
                );
                o.space.flush.pay(o.entries);
            }
        }
        self.tables = false;
        while let Some(mut held) = self.held.take() {
            let len = mem::take(&mut held.len);
            for item in held.items[..len].iter_mut().filter_map(Option::take) {
                item.release();
            }
            self.held = held.next.take();
        }
        self.held_chunks = 0;
    }
}

impl<M: Machine> Drop for TlbGather<M> {
    #[inline]
    fn drop(&mut self) {
        self.flush();
    }
}
