//! Migration between RAM and device memory, in phases that are types.
//!
//! ```text
//!  Migration<Collected>   folios locked, migration entries in their place; what could not be had is skipped, never waited for
//!      │ unmap()          other mappings too; one flush round for the batch; pins checked
//!  Migration<Unmapped>    contents are stable from here
//!      │ copy()           destinations allocated (a list of smaller folios where no whole one is free), data copied
//!  Migration<Copied>
//!      │ commit()         references frozen for a moment: the last point of refusal; identity moves to the destination
//!  Migration<Committed>
//!      │ finalize()       entries name the new folios, all is unlocked, sources are freed
//!   Report
//! ```
//!
//! Each step consumes the last. Dropping a migration in any phase puts everything back; after the commit, a hole that was
//! filled stays filled, and a folio that somebody has got a reference to since then stays where it is. Between phases it holds folio
//! references and folio locks as `Send` values and borrows nothing: it can be parked and finished by another thread.
//!
//! A *unit* is a folio with the entries that map it, or a hole. Each unit has its own verdict: one that fails is put back
//! alone.

mod collect;
mod commit;
mod evict;
mod finalize;
mod holes;
mod list;
mod names;
mod options;
mod single;
mod transfer;
mod unit;

use core::marker::PhantomData;

use crate::error::{FaultError, OutOfMemory, RangeError};
use crate::machine::Machine;
use crate::slab::PoolBox;
use crate::space::Space;
use crate::stats::batch_stayed;
use crate::types::{Order, Place, Prot, VaRange, Vaddr};
use crate::zone::Need;

pub(crate) use collect::{Collecting, Extent, large_extent, to_migration};
pub(crate) use finalize::note_arrived;
pub use options::{MigrateFlags, MigrateOptions, Sources, UnitReport, Verdict};
pub use single::FaultMigration;
pub(crate) use unit::{Batch, MAX_UNITS, PieceChunk, UnitChunk};

/// Why a unit stayed where it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Cause {
    /// Its folio was locked by somebody else.
    Busy,
    /// Somebody else holds references: pinned.
    Pinned,
    /// No memory at the destination, or none for the work itself.
    NoMemory,
    /// The copy engine failed.
    CopyFailed,
    /// The hole was filled by somebody else meanwhile.
    Raced,
    /// The folio reaches out of the range and could not be split.
    NotSplit,
    /// It lies on a device that the caller did not ask for.
    Foreign,
    /// It belongs to an object or a driver: only anonymous memory moves to a device.
    NotAnon,
    /// It needs a page of its own (a hole, or a copy), and the space's group may have no more.
    Limit,
}

impl Cause {
    /// All of them, in order.
    pub const ALL: [Self; 9] = [
        Self::Busy,
        Self::Pinned,
        Self::NoMemory,
        Self::CopyFailed,
        Self::Raced,
        Self::NotSplit,
        Self::Foreign,
        Self::NotAnon,
        Self::Limit,
    ];
    /// Number of causes.
    pub const COUNT: usize = Self::ALL.len();

    /// The name of the counter of pages that stayed for this cause.
    #[must_use]
    pub const fn stat_name(self) -> &'static str {
        match self {
            Self::Busy => "pgmigrate_fail_busy",
            Self::Pinned => "pgmigrate_fail_pinned",
            Self::NoMemory => "pgmigrate_fail_no_memory",
            Self::CopyFailed => "pgmigrate_fail_copy",
            Self::Raced => "pgmigrate_fail_raced",
            Self::NotSplit => "pgmigrate_fail_not_split",
            Self::Foreign => "pgmigrate_fail_foreign",
            Self::NotAnon => "pgmigrate_fail_not_anon",
            Self::Limit => "pgmigrate_fail_limit",
        }
    }
}

/// What a migration did. Counts are base pages unless said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Units moved.
    pub units: u64,
    /// Pages moved, new pages for holes included.
    pub pages: u64,
    /// Pages moved as part of a 2 MiB unit that arrived as one.
    pub huge_pages: u64,
    /// Pages of holes and zero pages that got memory.
    pub holes: u64,
    /// Pages that others share and that were copied for this mapping.
    pub copied: u64,
    /// Pages that arrived in smaller pieces than they left.
    pub torn: u64,
    /// Pages that stayed, by [`Cause`].
    pub failed: [u64; Cause::COUNT],
    /// Batches worked off.
    pub batches: u64,
}

impl Report {
    /// Pages that stayed, for whatever cause.
    #[must_use]
    pub fn failed_pages(&self) -> u64 {
        self.failed.iter().sum()
    }

    fn fail(&mut self, cause: Cause, pages: u32) {
        self.failed[cause as usize] += u64::from(pages);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.units += other.units;
        self.pages += other.pages;
        self.huge_pages += other.huge_pages;
        self.holes += other.holes;
        self.copied += other.copied;
        self.torn += other.torn;
        for (sum, n) in self.failed.iter_mut().zip(other.failed) {
            *sum += n;
        }
        self.batches += 1;
    }
}

/// Phase: folios locked, migration entries installed, flushes owed.
#[derive(Debug)]
pub struct Collected(());
/// Phase: nothing maps the folios any more and no TLB remembers them.
#[derive(Debug)]
pub struct Unmapped(());
/// Phase: destinations hold the data.
#[derive(Debug)]
pub struct Copied(());
/// Phase: the destinations are the folios now.
#[derive(Debug)]
pub struct Committed(());

/// A migration on its way. See the module's picture.
#[must_use = "dropping a migration puts everything back"]
pub struct Migration<M: Machine, P> {
    work: Work<M>,
    phase: PhantomData<P>,
}

/// The batch, and the promise to put back what is left in it.
pub(crate) struct Work<M: Machine>(pub(crate) PoolBox<M, Batch<M>>);

impl<M: Machine> Drop for Work<M> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.0.units.len() != 0 {
            finalize::put_back(&mut self.0);
        } else {
            self.0.units.clear();
        }
    }
}

impl<M: Machine, P> Migration<M, P> {
    fn into<Q>(self) -> Migration<M, Q> {
        Migration { work: self.work, phase: PhantomData }
    }

    /// Where it goes.
    #[must_use]
    pub fn target(&self) -> Place {
        self.work.0.to
    }

    /// The address whose fault began it (0 for one that was asked for).
    #[must_use]
    pub fn fault_addr(&self) -> Vaddr {
        self.work.0.fault
    }

    /// Units on their way.
    #[must_use]
    pub fn nr_units(&self) -> usize {
        self.work.0.units.len()
    }
}

impl<M: Machine> Migration<M, Collected> {
    /// Begins to collect units that go to `to`.
    pub(crate) fn begin(to: Place, need: Need) -> Result<Collecting<M>, OutOfMemory> {
        Collecting::new(to, need)
    }

    fn from_work(work: Work<M>) -> Self {
        Self { work, phase: PhantomData }
    }

    /// Calls `f` with the addresses of all units that were taken where an address space was walked, those of neighbours in one.
    pub fn for_each_taken(&mut self, mut f: impl FnMut(VaRange)) {
        let (mut start, mut end) = (0, 0);
        self.work.0.units.for_each(|unit| {
            if unit.state == unit::State::Taken && unit.space.is_some() {
                if unit.addr.0 != end {
                    if start != end {
                        f(VaRange::between(Vaddr(start), Vaddr(end)));
                    }
                    start = unit.addr.0;
                }
                end = unit.addr.0 + unit.order.bytes();
            }
        });
        if start != end {
            f(VaRange::between(Vaddr(start), Vaddr(end)));
        }
    }

    /// Unmaps, flushes once, and checks for pins.
    pub fn unmap(mut self) -> Migration<M, Unmapped> {
        transfer::unmap(&mut self.work.0);
        self.into()
    }

    /// All remaining phases, for a fault: the pages come to RAM.
    ///
    /// # Errors
    /// [`FaultError::Oom`] without a free page; [`FaultError::Held`] when somebody holds the page; [`FaultError::Device`] when
    /// the copy failed.
    pub fn back_to_ram(self) -> Result<(), FaultError> {
        let addr = self.fault_addr();
        let report = self.unmap().copy().commit().finalize();
        if report.units != 0 {
            Ok(())
        } else if report.failed[Cause::NoMemory as usize] != 0 {
            Err(FaultError::Oom(addr))
        } else if report.failed[Cause::Pinned as usize] != 0 {
            Err(FaultError::Held(addr))
        } else {
            Err(FaultError::Device(addr))
        }
    }
}

impl<M: Machine> Migration<M, Unmapped> {
    /// Allocates destinations and copies, waiting for the engine. If the device has been taken out since the walk, all stays for
    /// want of memory, though somebody else may have memory there under the same number.
    pub fn copy(mut self) -> Migration<M, Copied> {
        transfer::copy(&mut self.work.0);
        self.into()
    }
}

impl<M: Machine> Migration<M, Copied> {
    /// Moves the folios' identity to the destinations.
    pub fn commit(mut self) -> Migration<M, Committed> {
        commit::commit(&mut self.work.0);
        self.into()
    }
}

impl<M: Machine> Migration<M, Committed> {
    /// Replaces the entries, unlocks, frees the sources.
    pub fn finalize(mut self) -> Report {
        finalize::finalize(&mut self.work.0, None)
    }

    /// As [`Migration::finalize`]; then calls `observer` for every unit, with no lock held, in the order in which they were
    /// found.
    pub fn finalize_with(mut self, observer: &mut dyn FnMut(&UnitReport)) -> Report {
        finalize::finalize(&mut self.work.0, Some(observer))
    }
}

/// Base pages in a batch: no folio stays locked for longer than it takes to move 32 MiB.
pub const BATCH_PAGES: u32 = 8192;

impl<M: Machine> Space<M> {
    /// Moves the anonymous memory of `range` to `to`: RAM, or the private memory of a device. Any mix of 2 MiB and 4 KiB
    /// pages and holes is one call, worked off in batches with one flush round each. Holes and zero pages get cleared
    /// device memory; on the way to RAM they are left alone.
    ///
    /// What cannot be moved stays as it was and is in the report. Pages that are there already are neither moved nor failed.
    ///
    /// # Errors
    /// [`RangeError::Invalid`]; [`RangeError::NotMapped`] or [`RangeError::NotMigratable`] (not readable) with the first such
    /// address, before anything is moved; [`RangeError::NoDevice`]. Running out of memory is not an error but a cause in the
    /// report.
    pub fn migrate(&'static self, range: VaRange, to: Place) -> Result<Report, RangeError> {
        self.migrate_batches(range, to, &mut MigrateOptions::to(to), None, None)
    }

    /// As [`Space::migrate`], with a choice of where pages are taken from (from one device straight to another, for one) and of
    /// what else is done. `observer` hears of every unit when its batch is done; no lock is held then, so it may do anything.
    ///
    /// # Errors
    /// As [`Space::migrate`]; with [`MigrateFlags::WRITE`] also [`RangeError::NotMigratable`] for a mapping that may not be
    /// written.
    pub fn migrate_with(
        &'static self,
        range: VaRange,
        to: Place,
        options: &MigrateOptions,
        observer: &mut dyn FnMut(&UnitReport),
    ) -> Result<Report, RangeError> {
        self.migrate_batches(range, to, &mut { *options }, Some(observer), None)
    }

    /// As [`Space::migrate`], for the holder of copies that `options` name as the owner. `taken` hears of every range whose pages
    /// are about to be copied, after the walk and before the copy: it drops its copies of those, and of nothing else. Copies that
    /// it has of pages that stay, stand. What the walk did not find at these addresses is told as anybody's.
    ///
    /// `taken` runs with no lock held but those of the folios: it may sleep, but not fault.
    ///
    /// # Errors
    /// As [`Space::migrate_with`].
    pub fn migrate_as(
        &'static self,
        range: VaRange,
        to: Place,
        options: &MigrateOptions,
        taken: &mut dyn FnMut(VaRange),
    ) -> Result<Report, RangeError> {
        self.migrate_batches(range, to, &mut { *options }, None, Some(taken))
    }

    /// Afterwards [`MigrateFlags::REFUSE_HUGE`] is among the options if it was and no 2 MiB unit came.
    pub(crate) fn migrate_batches(
        &'static self,
        range: VaRange,
        to: Place,
        options: &mut MigrateOptions,
        mut observer: Option<&mut dyn FnMut(&UnitReport)>,
        mut taken: Option<&mut dyn FnMut(VaRange)>,
    ) -> Result<Report, RangeError> {
        let generation = self.check_migratable(range, to, options)?;
        let mut report = Report::default();
        let mut at = range.start;
        while at < range.end {
            let rest = VaRange::between(at, range.end);
            let Ok(mut collecting) = Collecting::with(to, generation, Need::User, options) else {
                self.all_stays(rest, to, &mut report, observer);
                break;
            };
            collecting.observe(observer.is_some());
            at = self.collect(rest, &mut collecting);
            if at == rest.start {
                // Not even one unit: without memory for the work the rest of the range stays.
                self.all_stays(rest, to, &mut report, observer);
                break;
            }
            let mut collected = collecting.collected(Vaddr(0));
            if let Some(taken) = &mut taken {
                collected.for_each_taken(taken);
            }
            let committed = collected.unmap().copy().commit();
            options.flags = committed.work.0.options.flags;
            report.add(&match &mut observer {
                Some(observer) => committed.finalize_with(observer),
                None => committed.finalize(),
            });
        }
        Ok(report)
    }

    /// Notes that a range stays for want of memory to work on it.
    #[cold]
    fn all_stays(
        &self,
        range: VaRange,
        to: Place,
        report: &mut Report,
        observer: Option<&mut dyn FnMut(&UnitReport)>,
    ) {
        let pages = range.nr_pages() as u32;
        let mut rest = Report::default();
        rest.fail(Cause::NoMemory, pages);
        batch_stayed(to, Some(self), &rest);
        report.add(&rest);
        if let Some(observer) = observer {
            let verdict = Verdict::Stayed(Cause::NoMemory);
            observer(&UnitReport { addr: range.start, order: Order::BASE, pages, verdict });
        }
    }

    /// The first phase alone, for callers that do the others themselves: collects from the start of `range` at most one
    /// batch. Also returns the address that the next batch starts at.
    ///
    /// # Errors
    /// As [`Space::migrate`], and [`RangeError::Oom`] without memory for the work.
    pub fn migrate_collect(
        &'static self,
        range: VaRange,
        to: Place,
    ) -> Result<(Migration<M, Collected>, Vaddr), RangeError> {
        self.migrate_collect_with(range, to, &MigrateOptions::to(to))
    }

    /// As [`Space::migrate_collect`], with options.
    ///
    /// # Errors
    /// As [`Space::migrate_with`], and [`RangeError::Oom`] without memory for the work.
    pub fn migrate_collect_with(
        &'static self,
        range: VaRange,
        to: Place,
        options: &MigrateOptions,
    ) -> Result<(Migration<M, Collected>, Vaddr), RangeError> {
        let generation = self.check_migratable(range, to, options)?;
        let oom = RangeError::Oom(range.start);
        let mut collecting = Collecting::with(to, generation, Need::User, options).map_err(|_| oom)?;
        collecting.observe(true);
        let next = self.collect(range, &mut collecting);
        if next == range.start { Err(oom) } else { Ok((collecting.collected(Vaddr(0)), next)) }
    }

    /// Which registration of the device the call is for, if there is nothing to be said against it.
    fn check_migratable(
        &self,
        range: VaRange,
        to: Place,
        options: &MigrateOptions,
    ) -> Result<u32, RangeError> {
        let generation = M::mm().generation(to);
        if !range.is_user_pages() {
            return Err(RangeError::Invalid(range));
        }
        if let Some(n) = to.device_number()
            && !M::mm().device(n).is_at(to)
        {
            return Err(RangeError::NoDevice(n));
        }
        let needed = if options.writes() { Prot::RW } else { Prot::READ };
        let vmas = self.vmas.read();
        let mut at = range.start;
        while at < range.end {
            let vma = vmas.find(at).ok_or(RangeError::NotMapped(at))?;
            if !vma.prot().contains(needed) {
                return Err(RangeError::NotMigratable(at));
            }
            at = vma.range().end;
        }
        Ok(generation)
    }
}
