//! A fault's migration: the same phases for one folio, in one straight line.
//!
//! A fault-back moves one folio that, nearly always, one entry maps. The general machinery would spend more instructions on
//! its batch than the move itself takes, so this does each phase once, with the general one's own parts. Whatever is out of
//! the ordinary (other mappings, no whole folio free or wanted) is handed to the general machinery ([`FaultMigration::batch`]).

use crate::counters::Event;
use crate::cursor::Cursor;
use crate::device::{CopyOp, Device};
use crate::entry::{Entry, SoftKind, SoftLeaf};
use crate::error::FaultError;
use crate::folio::LockedFolio;
use crate::machine::Machine;
use crate::migrate::collect::take_entries;
use crate::migrate::names::{put_back_source, rename_elsewhere};
use crate::migrate::{Cause, Collected, Collecting, Migration};
use crate::space::Space;
use crate::stats::fault_stayed;
use crate::table::Table;
use crate::tlb::TlbGather;
use crate::trace::{Outcome, Phase, mark};
use crate::types::{Frame, Level, Order, Place, Vaddr};
use crate::zone::Need;

/// How often a fault looks whether it is alone with its folio, before it lets go of the folio and begins again.
const ALONE_LOOKS: u32 = 64;

/// A faulting folio, locked, with migration entries in its place. Dropping it puts it back.
#[must_use = "dropping a migration puts everything back"]
pub struct FaultMigration<M: Machine> {
    source: LockedFolio<M>,
    space: &'static Space<M>,
    /// The table that its entries are in.
    table: &'static Table<M>,
    /// The device that it lies on.
    device: &'static Device<M>,
    level: MarkedLevel,
    /// The entry that maps all of the folio and its word now; 0 when there are several.
    word: u64,
    addr: Vaddr,
    fault: Vaddr,
}

/// The level of the entries, and whether the fault is recorded: one look tells the commonest case, a PTE and no record.
#[derive(Clone, Copy, PartialEq, Eq)]
struct MarkedLevel(u8);

impl MarkedLevel {
    const TRACED: u8 = 1 << 7;
    const PTE: Self = Self::new::<false>(Level::Pte);
    const TRACED_PTE: Self = Self::new::<true>(Level::Pte);

    #[inline(always)]
    const fn new<const TRACED: bool>(level: Level) -> Self {
        Self(level as u8 | if TRACED { Self::TRACED } else { 0 })
    }

    const fn is_traced(self) -> bool {
        self.0 & Self::TRACED != 0
    }

    /// A fault's entry is one of the two lowest levels.
    const fn level(self) -> Level {
        if self.0 & !Self::TRACED == Level::Pte as u8 { Level::Pte } else { Level::Pmd }
    }
}

impl<M: Machine> FaultMigration<M> {
    /// Takes a folio that is wholly mapped from `addr` in the cursor's table, maybe as a `run` ([`Extent`]): device-private
    /// entries become migration entries.
    #[inline(always)]
    pub(crate) fn take<const TRACED: bool>(
        cursor: &mut Cursor<M>,
        table: &'static Table<M>,
        device: &'static Device<M>,
        folio: LockedFolio<M>,
        (addr, run): (Vaddr, bool),
        fault: Vaddr,
    ) -> Self {
        take_entries(cursor, &folio, addr, run, &mut None);
        let level = MarkedLevel::new::<TRACED>(cursor.level());
        Self { source: folio, space: cursor.space(), table, device, level, word: 0, addr, fault }
    }

    /// As [`FaultMigration::take`], for a folio that the cursor's entry maps all by itself.
    #[inline(always)]
    pub(crate) fn take_one<const TRACED: bool>(
        cursor: &mut Cursor<M>,
        table: &'static Table<M>,
        device: &'static Device<M>,
        folio: LockedFolio<M>,
        fault: Vaddr,
    ) -> Self {
        TlbGather::settle(None, cursor.space());
        let word = cursor.set_soft_kind(SoftKind::Migration);
        folio.maps_to_migs(1);
        Self {
            source: folio,
            space: cursor.space(),
            table,
            device,
            level: MarkedLevel::new::<TRACED>(cursor.level()),
            word,
            addr: cursor.addr(),
            fault,
        }
    }

    /// The address that was touched.
    #[must_use]
    pub const fn fault_addr(&self) -> Vaddr {
        self.fault
    }

    /// The same as a batch of one unit, for an owner that goes through the phases by itself.
    ///
    /// # Errors
    /// [`FaultError::Oom`] without memory for the batch; the folio is put back.
    pub fn batch(self) -> Result<Migration<M, Collected>, FaultError> {
        let Ok(mut collecting) = Collecting::new(Place::RAM, Need::Reserve) else {
            M::count(Event::AllocFail, 1);
            return Err(self.failed(FaultError::Oom(self.fault)));
        };
        if !collecting.reserve() {
            M::count(Event::AllocFail, 1);
            return Err(self.failed(FaultError::Oom(self.fault)));
        }
        let (space, addr, fault) = (self.space, self.addr, self.fault);
        collecting.push_taken(space, self.into_source(), addr);
        Ok(collecting.collected(fault))
    }

    /// Counts a migration that failed, as a batch does.
    #[cold]
    fn failed(&self, error: FaultError) -> FaultError {
        M::count(Event::MigrateFail, 1);
        let cause = match error {
            FaultError::Oom(_) => Cause::NoMemory,
            FaultError::Held(_) => Cause::Pinned,
            _ => Cause::CopyFailed,
        };
        fault_stayed(self.space, self.device, cause, self.source.order().pages());
        error
    }

    /// Somebody has got a reference since the folio was unmapped. Waits a little for it to go, so that the fault does not copy
    /// for nothing when it looks again; with the folio locked, so not for long.
    #[cold]
    fn wait_alone(&self) -> FaultError {
        for _ in 0..ALONE_LOOKS {
            if self.source.refs() == 1 {
                break;
            }
            M::relax();
        }
        FaultError::Held(self.fault)
    }

    /// The folio, with its migration entries left where they are.
    fn into_source(self) -> LockedFolio<M> {
        let source = self.source.take_over();
        core::mem::forget(self);
        source
    }

    /// All phases: the folio comes to RAM.
    ///
    /// # Errors
    /// [`FaultError::Oom`] without a free page; [`FaultError::Held`] when somebody else holds the folio; [`FaultError::Device`]
    /// when the copy failed. It is put back then.
    #[inline]
    pub fn back_to_ram(self) -> Result<(), FaultError> {
        // A body of its own for the single page: most of what depends on order and level is known there.
        match self.source.order() {
            Order::BASE if self.level == MarkedLevel::PTE => {
                self.move_to_ram::<false>(Order::BASE, Level::Pte)
            }
            Order::BASE if self.level == MarkedLevel::TRACED_PTE => {
                self.move_to_ram::<true>(Order::BASE, Level::Pte)
            }
            order => {
                let level = self.level.level();
                if self.level.is_traced() {
                    self.move_to_ram::<true>(order, level)
                } else {
                    self.move_to_ram::<false>(order, level)
                }
            }
        }
    }

    #[inline(always)]
    fn move_to_ram<const TRACED: bool>(self, order: Order, level: Level) -> Result<(), FaultError> {
        debug_assert_eq!((self.source.order(), self.level.level()), (order, level));
        let source = &self.source;
        let pages = order.pages();
        // Unmapped: nothing else maps it. No flush is owed, since no TLB can hold a device-private page.
        if source.map_count() != 0 || order != Order::BASE && order > M::mm().policy.max_order() {
            return self.batch()?.back_to_ram();
        }
        let Ok(to) = M::mm().alloc_frames(Place::RAM, order, Need::Reserve) else {
            return self.batch()?.back_to_ram();
        };
        mark::<M, TRACED>(Phase::Alloc);
        // Copied.
        let op = CopyOp::Copy { src: source.frame(), dst: to.first(), order };
        if !self.device.engine().run(&op) {
            return Err(self.failed(FaultError::Device(self.fault)));
        }
        mark::<M, TRACED>(Phase::Copy);
        if !source.freeze(1) {
            return Err(self.failed(self.wait_alone()));
        }
        // Committed.
        let old = source.relocate(&M::mm().ram, order, to);
        source.unfreeze(1);
        source.clear_resident();
        mark::<M, TRACED>(Phase::Commit);
        // Finalized.
        if let Some(mut cursor) = self.space.cursor_hint(self.table, level, self.addr) {
            if self.word != 0 && cursor.is_still(self.word) {
                cursor.name_word(self.word, Frame::ram(source.frame().index()));
                source.migs_to_maps(1);
            } else {
                rename_entries(&mut cursor, source, old.first());
            }
        }
        if source.migration_entries() != 0 {
            // Moved or split meanwhile: the reverse map finds them.
            rename_elsewhere(source, old.first());
        }
        if TRACED {
            let now = Frame::ram(source.frame().index());
            M::open().about(Outcome::Returned, order, old.first().place(), now);
        }
        M::count_one::<{ Event::DeviceOut as usize }>();
        M::count(Event::DevicePagesOut, u64::from(pages));
        let (first, _) = old.into_inner();
        self.device.ops().folio_free(first, order, source.take_driver_word());
        self.device.returned(order);
        self.space.counters.returned(order);
        self.device.zone.free_frames(first, order);
        Ok(())
    }
}

/// Names the migration entries of `source` from the cursor on, in its table, that name `from`, where it lay.
#[inline(never)]
fn rename_entries<M: Machine>(cursor: &mut Cursor<M>, source: &LockedFolio<M>, from: Frame) {
    let to = source.frame();
    let entries = if cursor.level() == Level::Pmd { 1 } else { source.order().pages() };
    if entries > 1 && cursor.name_run(cursor.addr(), entries, from, to) {
        return source.migs_to_maps(entries);
    }
    let mut n = 0;
    for page in 0..entries {
        if let Entry::NonPresent(SoftLeaf { kind: SoftKind::Migration, frame, attrs }) = cursor.entry()
            && frame == from.offset(page)
        {
            cursor.replace_soft(Entry::mapping(to.offset(page), attrs));
            n += 1;
        }
        if !cursor.next() {
            break;
        }
    }
    source.migs_to_maps(n);
}

impl<M: Machine> Drop for FaultMigration<M> {
    #[inline(always)]
    fn drop(&mut self) {
        // Names what is still without one; the folio's own drop unlocks it.
        if self.source.migration_entries() != 0 {
            put_back_source(&self.source, self.space, self.addr);
        }
    }
}
