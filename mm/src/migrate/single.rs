//! A fault's migration: the same phases for one folio, in one straight line.
//!
//! A fault-back moves one folio that, nearly always, one entry maps. The general machinery would spend more instructions on
//! its batch than the move itself takes, so this does each phase once, with the general one's own parts. Whatever is out of
//! the ordinary (other mappings, no whole folio free) is handed to the general machinery ([`FaultMigration::batch`]).

use crate::cursor::Cursor;
use crate::device::CopyOp;
use crate::entry::{Entry, SoftKind, SoftLeaf};
use crate::error::FaultError;
use crate::folio::LockedFolio;
use crate::machine::Machine;
use crate::migrate::collect::take_entries;
use crate::migrate::finalize::{count_moved, entry_for, put_back_source, rename_elsewhere};
use crate::migrate::{Collected, Collecting, Migration};
use crate::space::Space;
use crate::table::Table;
use crate::tlb::TlbGather;
use crate::types::{Frame, Level, Place, Vaddr};
use crate::zone::Need;

/// A faulting folio, locked, with migration entries in its place. Dropping it puts it back.
#[must_use = "dropping a migration puts everything back"]
pub struct FaultMigration<M: Machine> {
    source: Option<LockedFolio<M>>,
    space: &'static Space<M>,
    /// The table that its entries are in.
    table: &'static Table<M>,
    level: Level,
    addr: Vaddr,
    fault: Vaddr,
}

impl<M: Machine> FaultMigration<M> {
    /// Takes a folio that is wholly mapped from `addr` in the cursor's table: device-private entries become migration
    /// entries.
    #[inline(always)]
    pub(crate) fn take(
        cursor: &mut Cursor<M>,
        table: &'static Table<M>,
        folio: LockedFolio<M>,
        addr: Vaddr,
        fault: Vaddr,
    ) -> Self {
        let mut gather = None;
        take_entries(cursor, &folio, addr, &mut gather);
        Self { source: Some(folio), space: cursor.space(), table, level: cursor.level(), addr, fault }
    }

    /// As [`FaultMigration::take`], for a folio that the cursor's entry, whose contents are `soft`, maps all by itself.
    #[inline(always)]
    pub(crate) fn take_one(
        cursor: &mut Cursor<M>,
        table: &'static Table<M>,
        folio: LockedFolio<M>,
        soft: SoftLeaf,
        fault: Vaddr,
    ) -> Self {
        TlbGather::settle(None, cursor.space());
        cursor.replace_soft(Entry::NonPresent(SoftLeaf { kind: SoftKind::Migration, ..soft }));
        folio.maps_to_migs(1);
        Self {
            source: Some(folio),
            space: cursor.space(),
            table,
            level: cursor.level(),
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
    pub fn batch(mut self) -> Result<Migration<M, Collected>, FaultError> {
        let oom = FaultError::Oom(self.fault);
        let mut collecting = Collecting::new(Place::RAM, Need::Reserve).map_err(|_| oom)?;
        if let Some(source) = self.source.take() {
            collecting.push_taken(self.space, source, self.addr);
        }
        Ok(collecting.collected(self.fault))
    }

    /// All phases: the folio comes to RAM.
    ///
    /// # Errors
    /// [`FaultError::Oom`] without a free page; [`FaultError::Device`] when the copy failed or the folio is held by somebody
    /// else. It is put back then.
    #[inline]
    pub fn back_to_ram(mut self) -> Result<(), FaultError> {
        let mm = M::mm();
        let Some(source) = &self.source else { return Err(FaultError::Device(self.fault)) };
        let order = source.order();
        // Unmapped: nothing else maps it. No flush is owed, since no TLB can hold a device-private page.
        if source.map_count() != 0 {
            return self.batch()?.back_to_ram();
        }
        let Ok(to) = mm.alloc_frames(Place::RAM, order, Need::Reserve) else {
            return self.batch()?.back_to_ram();
        };
        // Copied.
        let op = CopyOp::Copy { src: source.frame(), dst: to.first(), order };
        if !copy_one::<M>(source, op) || !source.freeze(1) {
            return Err(FaultError::Device(self.fault));
        }
        // Committed.
        let old = source.relocate(to);
        source.unfreeze(1);
        source.clear_resident();
        // Finalized.
        if let Some(mut cursor) = self.space.cursor_hint(self.table, self.level, self.addr) {
            rename_entries(&mut cursor, source, old.first());
        }
        if source.migration_entries() != 0 {
            // Moved or split meanwhile: the reverse map finds them.
            rename_elsewhere(source, old.first());
        }
        count_moved::<M>(Place::RAM, 1, u64::from(order.pages()));
        if let Some(source) = self.source.take() {
            drop(source.unlock());
        }
        drop(old);
        Ok(())
    }
}

/// One copy by the engine of the device that the source lies on.
#[inline(always)]
fn copy_one<M: Machine>(source: &LockedFolio<M>, op: CopyOp) -> bool {
    let Some(device) = source.place().device_number() else { return false };
    M::mm().device(device).ops().engine().run(&op)
}

/// Names the migration entries of `source` from the cursor on, in its table, that name `from`, where it lay.
#[inline(always)]
fn rename_entries<M: Machine>(cursor: &mut Cursor<M>, source: &LockedFolio<M>, from: Frame) {
    let to = source.frame();
    let rename = |cursor: &mut Cursor<M>, page: u32| {
        if let Entry::NonPresent(SoftLeaf { kind: SoftKind::Migration, frame, attrs }) = cursor.entry()
            && frame == from.offset(page)
        {
            cursor.replace_soft(entry_for(to.offset(page), attrs));
            1
        } else {
            0
        }
    };
    let mut n = rename(cursor, 0);
    if cursor.level().order() != source.order() {
        for page in 1..source.order().pages() {
            if !cursor.next() {
                break;
            }
            n += rename(cursor, page);
        }
    }
    source.migs_to_maps(n);
}

impl<M: Machine> Drop for FaultMigration<M> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(source) = self.source.take() {
            put_back_source(source, self.space, self.addr);
        }
    }
}
