//! The work record of a migration: units, in a batch that comes from a pool.

use crate::device::Device;
use crate::error::OutOfMemory;
use crate::folio::{FolioRef, LockedFolio};
use crate::frames::Frames;
use crate::machine::{FlushReason, Machine};
use crate::migrate::options::{Fast, MigrateOptions, Sources, UnitReport, Verdict};
use crate::migrate::{Cause, Report};
use crate::mm::Mm;
use crate::slab::{NIL, Pool, PoolBox, Pooled};
use crate::space::Space;
use crate::table::TableStash;
use crate::tlb::TlbGather;
use crate::trace::Marks;
use crate::types::{Order, Place, Vaddr};
use crate::zone::Need;

/// What a unit moves.
pub(crate) enum Source<M: Machine> {
    /// A folio, with migration entries where it was mapped.
    Folio(LockedFolio<M>),
    /// Nothing yet: an empty entry, or one of the zero page. The anonymous set that it belongs to.
    Hole { anon: u32 },
    /// A folio that others map too and that stays with them: this mapping gets a copy. Migration entries stand in this mapping
    /// alone.
    Shared(LockedFolio<M>),
    /// The unit is done with.
    Gone,
}

/// How far a unit is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Its source lies where it lay.
    Taken,
    /// Zero pages of the hole became migration entries that name `dest`; their flush is owed.
    Marked,
    /// Its folio has moved: `dest` is what it moved out of, which its migration entries still name. Or it is a hole that has been
    /// filled, or a copy that is mapped.
    Committed,
    /// It has ended. A unit whose commit nothing followed up, as the quickest way has it, has moved.
    Ended(Verdict),
    /// It never was a unit: [`Unit::pages`] pages that stayed.
    Skipped(Cause),
}

/// Where a unit goes.
pub(crate) enum Dest<M: Machine> {
    None,
    /// Memory for the folio to move to; after the commit, what it moved out of.
    Frames(Frames<M>),
    /// The folio that fills a hole.
    Folio(LockedFolio<M>),
    /// Smaller folios that fill it, first page to last; the first chunk has the tables that PMD entries become.
    Pieces(PoolBox<M, PieceChunk<M>>),
}

/// One folio or hole on its way.
pub(crate) struct Unit<M: Machine> {
    pub(crate) source: Source<M>,
    pub(crate) dest: Dest<M>,
    /// Where it was found: a hint.
    pub(crate) space: Option<&'static Space<M>>,
    pub(crate) addr: Vaddr,
    pub(crate) order: Order,
    pub(crate) state: State,
    /// Of what was skipped: how many pages. Of a unit in a batch that is recorded: when it was taken, the low half. Else 0, also
    /// in the pool.
    pub(crate) note: u32,
}

impl<M: Machine> Unit<M> {
    /// A unit that is taken now.
    #[inline(always)]
    pub(crate) const fn taken(
        source: Source<M>,
        space: &'static Space<M>,
        addr: Vaddr,
        order: Order,
        note: u32,
    ) -> Self {
        Self { source, dest: Dest::None, space: Some(space), addr, order, state: State::Taken, note }
    }

    #[inline(always)]
    pub(crate) fn is_committed(&self) -> bool {
        self.state == State::Committed
    }

    /// The locked folio that its migration entries are for.
    #[inline(always)]
    pub(crate) const fn folio(&self) -> Option<&LockedFolio<M>> {
        match &self.source {
            Source::Folio(folio) | Source::Shared(folio) => Some(folio),
            Source::Hole { .. } | Source::Gone => None,
        }
    }

    /// What became of it, at the end.
    pub(crate) fn report(&self) -> UnitReport {
        let (verdict, pages) = match self.state {
            State::Ended(verdict) => (verdict, self.order.pages()),
            State::Skipped(cause) => (Verdict::Stayed(cause), self.note),
            State::Committed | State::Taken | State::Marked => (Verdict::Moved, self.order.pages()),
        };
        UnitReport { addr: self.addr, order: self.order, pages, verdict }
    }
}

impl<M: Machine> Default for Unit<M> {
    fn default() -> Self {
        Self {
            source: Source::Gone,
            dest: Dest::None,
            space: None,
            addr: Vaddr(0),
            order: Order::BASE,
            state: State::Taken,
            note: 0,
        }
    }
}

const PIECES: usize = 128;

/// Destinations of a unit that arrives in pieces.
pub(crate) struct PieceChunk<M: Machine> {
    pub(crate) len: usize,
    /// What the PMD entries of the unit become, a table for each.
    pub(crate) tables: TableStash<M>,
    pub(crate) folios: [Option<LockedFolio<M>>; PIECES],
    pub(crate) next: Option<PoolBox<M, Self>>,
}

impl<M: Machine> Default for PieceChunk<M> {
    fn default() -> Self {
        Self { len: 0, tables: TableStash::new(), folios: [const { None }; PIECES], next: None }
    }
}

impl<M: Machine> Pooled<M> for PieceChunk<M> {
    fn pool(mm: &Mm<M>) -> &Pool<M, Self> {
        &mm.pieces
    }
}

impl<M: Machine> PieceChunk<M> {
    pub(crate) fn alloc(mm: &Mm<M>) -> Result<PoolBox<M, Self>, OutOfMemory> {
        let mut chunk = mm.pieces.alloc(mm)?;
        chunk.len = 0;
        chunk.tables = TableStash::new();
        chunk.next = None;
        Ok(chunk)
    }

    /// Appends a folio to the chain.
    pub(crate) fn push(&mut self, folio: LockedFolio<M>) -> Result<(), OutOfMemory> {
        let mut at = self;
        while at.len == PIECES {
            if at.next.is_none() {
                at.next = Some(Self::alloc(M::mm())?);
            }
            match &mut at.next {
                Some(next) => at = next,
                None => return Err(OutOfMemory { order: 0 }),
            }
        }
        at.folios[at.len] = Some(folio);
        at.len += 1;
        Ok(())
    }

    /// The folios, first page to last.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &LockedFolio<M>> {
        let mut chunk = Some(self);
        core::iter::from_fn(move || {
            let here = chunk?;
            chunk = here.next.as_deref();
            Some(here.folios[..here.len].iter().flatten())
        })
        .flatten()
    }

    /// Unlocks all of them and drops their handles.
    ///
    /// The chain is taken apart chunk by chunk: one that goes back to its pool keeps what it holds, so it must hold none.
    pub(crate) fn release(&mut self) {
        self.release_own();
        let mut next = self.next.take();
        while let Some(mut chunk) = next {
            chunk.release_own();
            next = chunk.next.take();
        }
    }

    fn release_own(&mut self) {
        for folio in self.folios[..self.len].iter_mut().filter_map(Option::take) {
            drop(folio.unlock());
        }
        self.len = 0;
    }
}

impl<M: Machine> Dest<M> {
    /// Calls `f` for every new folio, with its first page in the unit.
    pub(crate) fn for_each_folio(&self, mut f: impl FnMut(&LockedFolio<M>, u32)) {
        match self {
            Self::None | Self::Frames(_) => {}
            Self::Folio(folio) => f(folio, 0),
            Self::Pieces(first) => {
                let mut page = 0;
                for folio in first.iter() {
                    f(folio, page);
                    page += folio.order().pages();
                }
            }
        }
    }

    /// Unlocks and drops what it holds: the folios stay if something maps them, and are freed if not.
    pub(crate) fn release(&mut self) {
        match core::mem::replace(self, Self::None) {
            Self::None => {}
            Self::Frames(frames) => drop(frames),
            Self::Folio(folio) => drop::<FolioRef<M>>(folio.unlock()),
            Self::Pieces(mut pieces) => {
                pieces.release();
                pieces.tables = TableStash::new();
            }
        }
    }
}

const CHUNK: usize = 64;
const CHUNKS: usize = 64;
/// Most units of a batch.
pub(crate) const MAX_UNITS: usize = CHUNK * CHUNKS;

/// A page full of units.
pub(crate) struct UnitChunk<M: Machine> {
    units: [Unit<M>; CHUNK],
}

impl<M: Machine> Default for UnitChunk<M> {
    fn default() -> Self {
        Self { units: core::array::from_fn(|_| Unit::default()) }
    }
}

impl<M: Machine> Pooled<M> for UnitChunk<M> {
    fn pool(mm: &Mm<M>) -> &Pool<M, Self> {
        &mm.units
    }
}

/// The units of a batch, in the order in which they were collected.
pub(crate) struct Units<M: Machine> {
    len: usize,
    chunks: [Option<PoolBox<M, UnitChunk<M>>>; CHUNKS],
}

impl<M: Machine> Units<M> {
    fn new() -> Self {
        Self { len: 0, chunks: [const { None }; CHUNKS] }
    }

    #[inline(always)]
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Makes sure that the next push has room. False when the batch is full or memory is.
    #[inline(always)]
    pub(crate) fn reserve(&mut self) -> bool {
        !self.len.is_multiple_of(CHUNK) || self.reserve_chunk()
    }

    #[cold]
    fn reserve_chunk(&mut self) -> bool {
        let Some(chunk) = self.chunks.get_mut(self.len / CHUNK) else { return false };
        if chunk.is_none() {
            *chunk = M::mm().units.alloc(M::mm()).ok();
        }
        chunk.is_some()
    }

    /// Room for one more unit, if there is any; [`Units::taken`] makes it one of them.
    #[inline(always)]
    pub(crate) fn room(&mut self) -> Option<&mut Unit<M>> {
        if self.len.is_multiple_of(CHUNK) && !self.reserve_chunk() {
            return None;
        }
        match &mut self.chunks[self.len / CHUNK % CHUNKS] {
            Some(chunk) => Some(&mut chunk.units[self.len % CHUNK]),
            None => None,
        }
    }

    /// The room got a unit.
    #[inline(always)]
    pub(crate) fn taken(&mut self) {
        self.len += 1;
    }

    /// Appends a unit, whose room was reserved.
    #[inline(always)]
    pub(crate) fn push(&mut self, unit: Unit<M>) {
        // What stands there is done with: nothing to drop.
        core::mem::forget(core::mem::replace(self.get_mut(self.len), unit));
        self.len += 1;
    }

    /// Unit `i`.
    #[inline(always)]
    pub(crate) fn get_mut(&mut self, i: usize) -> &mut Unit<M> {
        match &mut self.chunks[i / CHUNK % CHUNKS] {
            Some(chunk) => &mut chunk.units[i % CHUNK],
            None => unreachable!("room is reserved before a unit is made"),
        }
    }

    /// Where the folio of the first unit lies.
    pub(crate) fn first_source(&mut self) -> Option<Place> {
        if self.len == 0 {
            return None;
        }
        match &self.get_mut(0).source {
            Source::Folio(folio) => Some(folio.place()),
            _ => None,
        }
    }

    /// Calls `f` for every unit.
    #[inline(always)]
    pub(crate) fn for_each(&mut self, mut f: impl FnMut(&mut Unit<M>)) {
        self.for_each_slice(|units| units.iter_mut().for_each(&mut f));
    }

    /// Calls `f` for all units, in slices.
    #[inline(always)]
    pub(crate) fn for_each_slice(&mut self, mut f: impl FnMut(&mut [Unit<M>])) {
        let mut left = self.len;
        for chunk in self.chunks[..self.len.div_ceil(CHUNK)].iter_mut().flatten() {
            let here = left.min(CHUNK);
            left -= here;
            f(&mut chunk.units[..here]);
        }
    }

    /// Forgets the units, which are all done with, and gives the chunks back.
    pub(crate) fn clear(&mut self) {
        for chunk in self.chunks.iter_mut().take_while(|chunk| chunk.is_some()) {
            *chunk = None;
        }
        self.len = 0;
    }
}

/// One batch of a migration.
pub(crate) struct Batch<M: Machine> {
    pub(crate) to: Place,
    /// Which registration of that device was meant.
    pub(crate) generation: u32,
    pub(crate) need: Need,
    pub(crate) options: MigrateOptions,
    /// Where pages are really taken from, and which of them without a closer look.
    pub(crate) from: Sources,
    pub(crate) fast: Fast,
    /// Somebody wants to hear of every unit, those included that never became one.
    pub(crate) observed: bool,
    pub(crate) fault: Vaddr,
    /// Units that it has room for.
    pub(crate) limit: usize,
    pub(crate) pages: u32,
    /// Some folio is mapped elsewhere too.
    pub(crate) shared: bool,
    /// The folio that was last found busy, by its key, and the address after those of its pages that were left.
    pub(crate) busy: (u32, Vaddr),
    pub(crate) gather: TlbGather<M>,
    pub(crate) units: Units<M>,
    pub(crate) report: Report,
    pub(crate) marks: Marks,
}

impl<M: Machine> Batch<M> {
    /// The space whose pages it moves, while that is there; the first one, where they are of several.
    pub(crate) fn space(&mut self) -> Option<&'static Space<M>> {
        if self.units.len() == 0 { None } else { self.units.get_mut(0).space.filter(|space| space.is_live()) }
    }

    /// The device whose page a fault touched, if that is what began it and the page goes.
    pub(crate) fn fault_of(&mut self) -> Option<&'static Device<M>> {
        if self.fault == Vaddr(0) || self.units.len() == 0 {
            return None;
        }
        let unit = self.units.get_mut(0);
        let left = match (&unit.source, &unit.dest) {
            (Source::Folio(_), Dest::Frames(old)) => old.first().place(),
            (Source::Folio(folio), Dest::Pieces(_)) => folio.place(),
            _ => return None,
        };
        left.device_number().map(|number| M::mm().device(number))
    }
}

impl<M: Machine> Default for Batch<M> {
    fn default() -> Self {
        Self {
            to: Place::RAM,
            generation: 0,
            need: Need::User,
            options: MigrateOptions::to(Place::RAM),
            from: Sources::NONE,
            fast: Fast::Nothing,
            observed: false,
            fault: Vaddr(0),
            limit: MAX_UNITS,
            pages: 0,
            shared: false,
            busy: (NIL, Vaddr(0)),
            gather: TlbGather::new(FlushReason::Migrate),
            units: Units::new(),
            report: Report::default(),
            marks: Marks::NONE,
        }
    }
}

impl<M: Machine> Pooled<M> for Batch<M> {
    fn pool(mm: &Mm<M>) -> &Pool<M, Self> {
        &mm.batches
    }
}
