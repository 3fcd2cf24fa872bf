//! Page faults: from a touched address to a mapped page.
//!
//! ```text
//!  handle_fault ── VMA (shared lock), permission
//!      │
//!      ├─ peek the entry, no lock: what will be needed?
//!      │      None ................. allocate and clear, then lock, look again, install
//!      │      present, no write .... lock, look again: grant the write, or replace the zero page, or copy ([`cow`])
//!      │      device-private ....... lock, look again, lock the folio, put a migration entry there,
//!      │                             and hand it all to the owner: migrate_to_ram ([`crate::migrate`])
//!      │      migration ............ sleep on the folio
//!      └─ the entry changed meanwhile? once more from the top
//! ```
//!
//! It never looks at the current CR3 or task: a device, or one day a guest's #NPF, calls it for another space.
//!
//! The hot paths have two bodies: with `TRACED` they mark the ends of their phases ([`crate::trace`]).

mod again;
mod cow;
mod cut;
mod hugetlb;
mod object;

use core::sync::atomic::Ordering::Relaxed;

use crate::counters::Event;
use crate::cursor::Peek;
use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf, word};
use crate::error::FaultError;
use crate::exclusive::take_back;
use crate::folio::{Folio, FolioRef, LockedFolio, RmapLink};
use crate::group::NoPage;
use crate::machine::Machine;
use crate::migrate::{Extent, FaultMigration, large_extent};
use crate::notifier::{NotifyEvent, Owner};
use crate::space::Space;

use crate::table::Table;
use crate::trace::{Open, Outcome, Phase, Tracing, mark};
use crate::types::{Access, Frame, Level, Order, PMD_SIZE, Place, Prot, VaRange, Vaddr};
use crate::vma::{Vma, VmaKind};
use crate::zone::Need;

bitflags::bitflags! {
    /// What else is known of a fault.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct FaultBits: u8 {
        /// The CPU saw a present entry (a protection fault).
        const PRESENT = 1 << 0;
        /// From ring 3.
        const USER = 1 << 2;
        /// The CPU saw a reserved bit set.
        const RSVD = 1 << 3;
    }
}

/// A page fault, free of any architecture's error code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultInfo {
    /// The address touched.
    pub addr: Vaddr,
    /// How.
    pub access: Access,
    /// What else the CPU said.
    pub bits: FaultBits,
}

impl FaultInfo {
    /// A plain fault at `addr`.
    #[must_use]
    pub const fn new(addr: Vaddr, access: Access) -> Self {
        Self { addr, access, bits: FaultBits::empty() }
    }
}

/// How a fault was resolved. The instruction can be run again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultOutcome {
    /// The entry was as wanted already: a stale translation, or another CPU was faster.
    Spurious,
    /// The shared zero page (order 0) or zero folio (order 9) was mapped.
    ZeroPage(Order),
    /// A fresh page was mapped.
    Allocated(Order),
    /// The write was granted in place.
    Upgraded,
    /// A shared page was copied.
    Copied(Order),
    /// A page of an object was mapped.
    Mapped,
    /// A page came back from its device.
    Returned,
    /// A page that was lent to a device for atomic access was taken back.
    TakenBack,
}

/// Where an entry stands, and the word that was read there without a lock.
struct Seen<M: Machine> {
    table: &'static Table<M>,
    level: Level,
    word: u64,
}

/// What one attempt led to.
enum Step {
    Done(FaultOutcome),
    /// Look again from the top.
    Again,
    /// Sleep on the folio first. No lock is held any more.
    Sleep(&'static Folio),
}

impl<M: Machine> Space<M> {
    /// Resolves a fault. May sleep; the caller holds no lock.
    ///
    /// # Errors
    /// [`FaultError`], with the address.
    pub fn handle_fault(&'static self, fault: &FaultInfo) -> Result<FaultOutcome, FaultError> {
        if M::tracing() == Tracing::Off {
            self.handle_fault_as::<false>(fault)
        } else {
            self.handle_fault_as::<true>(fault)
        }
    }

    /// As [`Space::handle_fault`], for a caller that knows whether faults are recorded: a CPU's handler of page faults, of which
    /// there may be two.
    ///
    /// # Errors
    /// As [`Space::handle_fault`].
    #[inline(always)]
    pub fn handle_fault_as<const TRACED: bool>(
        &'static self,
        fault: &FaultInfo,
    ) -> Result<FaultOutcome, FaultError> {
        if TRACED {
            M::open().begin(fault.addr, M::now());
        }
        M::count_one::<{ Event::PgFault as usize }>();
        self.faults.fetch_add(1, Relaxed);
        if fault.bits.contains(FaultBits::RSVD) {
            return self.fault_again::<TRACED>(fault, FaultError::Reserved(fault.addr));
        }
        // Nearly every fault is done at the first look. That one stands outside of any loop, so that the compiler prepares nothing
        // for others.
        match self.resolve::<TRACED>(fault) {
            Ok(Step::Done(outcome)) => {
                if TRACED {
                    Open::end_resolved::<M>(outcome);
                }
                Ok(outcome)
            }
            Ok(step) => self.fault_later::<TRACED>(fault, step),
            Err(error) => self.fault_again::<TRACED>(fault, error),
        }
    }

    /// One attempt, with the VMA lock held shared.
    #[inline(always)]
    fn resolve<const TRACED: bool>(&'static self, fault: &FaultInfo) -> Result<Step, FaultError> {
        let vmas = self.vmas.read();
        let vma = self.find_vma(&vmas, fault.addr).ok_or(FaultError::NoVma(fault.addr))?;
        if !vma.prot().allows(fault.access) {
            return Err(FaultError::Access(fault.addr, fault.access));
        }
        self.attempt::<TRACED>(vma, fault)
    }

    #[inline(always)]
    fn attempt<const TRACED: bool>(
        &'static self,
        vma: &'static Vma,
        fault: &FaultInfo,
    ) -> Result<Step, FaultError> {
        if let Some(table) = self.last_pte_table(fault.addr) {
            let word = table.words()[fault.addr.index(Level::Pte)].load(Relaxed);
            let seen = Seen { table, level: Level::Pte, word };
            // The hot path knows what it is looking for, and that there is nobody to be told: a space where somebody is has no
            // table that was used last.
            if let Some(frame) = word::device_private(word) {
                return self.fault_device::<false, false, TRACED>(fault, &seen, frame);
            }
            return match Entry::decode(word, Level::Pte) {
                Entry::None => self.fault_pte::<TRACED>(vma, fault, table),
                entry => self.fault_entry::<TRACED>(vma, fault, &seen, entry),
            };
        }
        self.attempt_from_the_top::<TRACED>(vma, fault)
    }

    #[inline(never)]
    fn attempt_from_the_top<const TRACED: bool>(
        &'static self,
        vma: &'static Vma,
        fault: &FaultInfo,
    ) -> Result<Step, FaultError> {
        let seen = |table, level, entry: Entry| Seen { table, level, word: entry.encode(level) };
        match self.peek(fault.addr) {
            Peek::NoTable => self.fault_none::<TRACED>(vma, fault, None),
            Peek::Pmd(table, Entry::None) => self.fault_none::<TRACED>(vma, fault, Some(table)),
            Peek::Pmd(table, entry) => {
                self.fault_entry::<TRACED>(vma, fault, &seen(table, Level::Pmd, entry), entry)
            }
            Peek::Pte(table, entry) => {
                self.set_last_pte_table(table);
                match entry {
                    Entry::None => self.fault_pte::<TRACED>(vma, fault, table),
                    entry => self.fault_entry::<TRACED>(vma, fault, &seen(table, Level::Pte, entry), entry),
                }
            }
        }
    }

    /// Nothing is there, not even a PTE table.
    #[inline(never)]
    fn fault_none<const TRACED: bool>(
        &'static self,
        vma: &'static Vma,
        fault: &FaultInfo,
        pmd: Option<&'static Table<M>>,
    ) -> Result<Step, FaultError> {
        let oom = |_| FaultError::Oom(fault.addr);
        let pmd = match pmd {
            Some(pmd) => pmd,
            None => self.pmd_table_or_alloc(fault.addr, Need::User).map_err(oom)?,
        };
        if let Some(start) = vma.huge_range(fault.addr, &M::mm().policy) {
            if let Some(step) = self.fault_huge::<TRACED>(vma, fault, pmd, start) {
                return Ok(step);
            }
            M::count(Event::ThpFaultFallback, 1);
        } else if vma.kind() == VmaKind::Hugetlb {
            return self.fault_hugetlb(vma, fault, pmd);
        }
        let spare = M::mm().spare_pte_table(fault.addr, Need::User).map_err(oom)?;
        let mut cursor = self.cursor_in(pmd, Level::Pmd, fault.addr);
        if cursor.is_still(0) {
            let table = spare.table();
            cursor.hook(spare);
            drop(cursor);
            self.set_last_pte_table(table);
            return self.fault_pte::<TRACED>(vma, fault, table);
        }
        Ok(Step::Again)
    }

    /// A 2 MiB page, or the zero folio, into an empty PMD entry. `None` when there is no memory for it.
    fn fault_huge<const TRACED: bool>(
        &'static self,
        vma: &'static Vma,
        fault: &FaultInfo,
        pmd: &'static Table<M>,
        start: Vaddr,
    ) -> Option<Step> {
        let mm = M::mm();
        if fault.access != Access::Write {
            let leaf = zero_leaf(vma, mm.zero_folio().ok()?);
            let mut cursor = self.cursor_in(pmd, Level::Pmd, start);
            if !cursor.is_still(0) {
                return Some(Step::Again);
            }
            cursor.install(leaf);
            M::count(Event::ThpZeroPageMapped, 1);
            return Some(Step::Done(FaultOutcome::ZeroPage(Order::PMD)));
        }
        let folio = self.fresh_folio::<TRACED>(vma, start, Order::PMD).ok()?;
        let mut cursor = self.cursor_in(pmd, Level::Pmd, start);
        if !cursor.is_still(0) {
            return Some(Step::Again);
        }
        cursor.install(map_fresh(vma, folio));
        M::count(Event::ThpFaultAlloc, 1);
        Some(Step::Done(FaultOutcome::Allocated(Order::PMD)))
    }

    /// A 4 KiB page, or the zero page, into an empty PTE.
    #[inline(never)]
    fn fault_pte<const TRACED: bool>(
        &'static self,
        vma: &'static Vma,
        fault: &FaultInfo,
        pte: &'static Table<M>,
    ) -> Result<Step, FaultError> {
        let mm = M::mm();
        if vma.kind() != VmaKind::Anon {
            return self.fault_object(vma, fault, pte);
        }
        if fault.access != Access::Write {
            let mut cursor = self.cursor_in(pte, Level::Pte, fault.addr);
            if !cursor.is_still(0) {
                return Ok(Step::Again);
            }
            cursor.install(zero_leaf(vma, mm.zero_page()));
            M::count(Event::ZeroPageMapped, 1);
            return Ok(Step::Done(FaultOutcome::ZeroPage(Order::BASE)));
        }
        let folio =
            self.fresh_folio::<TRACED>(vma, fault.addr, Order::BASE).map_err(|no| no.at(fault.addr))?;
        let mut cursor = self.cursor_in(pte, Level::Pte, fault.addr);
        if !cursor.is_still(0) {
            return Ok(Step::Again);
        }
        cursor.install(map_fresh(vma, folio));
        M::count(Event::AnonFaultAlloc, 1);
        Ok(Step::Done(FaultOutcome::Allocated(Order::BASE)))
    }

    /// A zeroed folio for `addr` of `vma`, not mapped yet.
    #[inline(always)]
    fn fresh_folio<const TRACED: bool>(
        &self,
        vma: &'static Vma,
        addr: Vaddr,
        order: Order,
    ) -> Result<FolioRef<M>, NoPage> {
        let folio = self.charge(M::mm().alloc_folio(Place::RAM, order, Need::User)?)?;
        mark::<M, TRACED>(Phase::Alloc);
        M::zero(folio.frame(), order);
        if TRACED {
            mark::<M, TRACED>(Phase::Copy);
            M::open().about(Outcome::Allocated, order, Place::RAM, folio.frame());
        }
        folio.set_link(RmapLink { anon: vma.anon(), index: vma.page_index(addr.align_down(order.bytes())) });
        Ok(folio)
    }

    /// Something is there.
    #[inline(always)]
    fn fault_entry<const TRACED: bool>(
        &'static self,
        vma: &'static Vma,
        fault: &FaultInfo,
        seen: &Seen<M>,
        entry: Entry,
    ) -> Result<Step, FaultError> {
        match entry {
            Entry::NonPresent(soft) => match soft.kind {
                SoftKind::DevicePrivate => self.fault_device::<true, false, TRACED>(fault, seen, soft.frame),
                SoftKind::Migration => Ok(self.fault_migration(fault, seen, soft)),
                SoftKind::DeviceExclusive => Ok(self.fault_exclusive(vma, fault, seen, &soft)),
                SoftKind::ProtNone => Err(FaultError::Device(fault.addr)),
            },
            Entry::Leaf(leaf) if fault.access == Access::Write && !leaf.attrs.contains(Attrs::WRITE) => {
                self.fault_write(vma, fault, seen, leaf)
            }
            Entry::Leaf(_) => {
                M::count(Event::PgFaultSpurious, 1);
                Ok(Step::Done(FaultOutcome::Spurious))
            }
            Entry::None | Entry::Table(_) => Ok(Step::Again),
        }
    }

    /// Being moved: sleep until the mover lets go of the folio. The table lock is held while the folio is found, so that it
    /// cannot vanish under our feet.
    #[cold]
    fn fault_migration(&'static self, fault: &FaultInfo, seen: &Seen<M>, soft: SoftLeaf) -> Step {
        let cursor = self.cursor_in(seen.table, seen.level, fault.addr);
        if cursor.is_still(seen.word) { Step::Sleep(M::mm().mapped_folio(soft.frame)) } else { Step::Again }
    }

    /// Lent to a device for atomic access: taken back, once the folio's lock says that it may be.
    #[cold]
    fn fault_exclusive(&'static self, vma: &Vma, fault: &FaultInfo, seen: &Seen<M>, soft: &SoftLeaf) -> Step {
        let mut cursor = self.cursor_in(seen.table, seen.level, fault.addr);
        if !cursor.is_still(seen.word) {
            return Step::Again;
        }
        let folio = M::mm().mapped_folio(soft.frame);
        let Ok(_locked) = LockedFolio::<M>::try_lock(FolioRef::get(folio)) else { return Step::Sleep(folio) };
        let range = VaRange::new(cursor.addr().0, seen.level.size());
        let _change = self.invalidate(range, NotifyEvent::Clear);
        take_back(&mut cursor, soft, vma);
        M::count(Event::ExclusiveFault, 1);
        Step::Done(FaultOutcome::TakenBack)
    }

    /// On a device: the faulting folio's entries become migration entries in the same hold of the table lock in which they
    /// were looked at again, and the owner gets a migration that is under way. With `TELL`, the notifiers are told that
    /// must hear of it.
    ///
    /// A folio larger than the policy's granule is cut first, unless `WHOLE` says that this was tried: before its entries change,
    /// so that nothing is to be undone and the owner is asked for what is to come, no more. Pages of 4 KiB pay nothing for it.
    #[inline(always)]
    fn fault_device<const TELL: bool, const WHOLE: bool, const TRACED: bool>(
        &'static self,
        fault: &FaultInfo,
        seen: &Seen<M>,
        frame: Frame,
    ) -> Result<Step, FaultError> {
        let mm = M::mm();
        let Some(number) = frame.place().private_device() else {
            return Err(FaultError::Device(fault.addr));
        };
        let device = mm.device(number);
        let mut cursor = self.cursor_in(seen.table, seen.level, fault.addr);
        if !cursor.is_still(seen.word) {
            return Ok(Step::Again);
        }
        let folio = mm.mapped_folio_in(&device.zone, frame);
        let Some(locked) = LockedFolio::try_lock_mapped(folio) else { return Ok(Step::Sleep(folio)) };
        let tell = |addr: Vaddr, order: Order| {
            let range = VaRange::new(addr.0, order.bytes());
            let owner = Some(Owner::device(frame.place()));
            let is_told = TELL && self.notifiers.any_for_returns();
            is_told.then(|| self.invalidate(range, NotifyEvent::Migrate { owner }))
        };
        let (_change, migration) = if locked.order() == seen.level.order() {
            if seen.level == Level::Pmd && !WHOLE && Order::PMD > mm.policy.granule() {
                let locked = locked.with_reference();
                drop(cursor);
                return self.fault_granule::<TRACED>(
                    fault,
                    seen.level,
                    locked,
                    fault.addr.index(Level::Pte) as u32,
                );
            }
            let change = tell(cursor.addr(), seen.level.order());
            (change, FaultMigration::take_one::<TRACED>(&mut cursor, seen.table, device, locked, fault.addr))
        } else {
            match large_extent(&cursor, &locked, frame, None) {
                Extent::Whole { .. } if !WHOLE && locked.order() > mm.policy.granule() => {
                    let page = frame.index() - locked.frame().index();
                    let locked = locked.with_reference();
                    drop(cursor);
                    return self.fault_granule::<TRACED>(fault, seen.level, locked, page);
                }
                Extent::Whole { start: addr, run } => {
                    let change = tell(addr, locked.order());
                    let taken = FaultMigration::take::<TRACED>(
                        &mut cursor,
                        seen.table,
                        device,
                        locked,
                        (addr, run),
                        fault.addr,
                    );
                    (change, taken)
                }
                Extent::Cut(at) => {
                    let locked = locked.with_reference();
                    drop(cursor);
                    return self.fault_cut(fault, &locked, at);
                }
            }
        };
        drop(cursor);
        mark::<M, TRACED>(Phase::Collect);
        device.ops().migrate_to_ram(migration)?;
        M::count_one::<{ Event::DeviceFault as usize }>();
        Ok(Step::Done(FaultOutcome::Returned))
    }
}

/// Counts a fault that failed.
#[cold]
fn refused<M: Machine>(error: FaultError) -> FaultError {
    M::count(Event::PgFaultError, 1);
    error
}

const fn alloc_event(order: Order) -> Event {
    if order.get() == Order::PMD.get() { Event::ThpFaultAlloc } else { Event::AnonFaultAlloc }
}

/// The entry for the zero page or zero folio: read-only, not counted.
#[inline(always)]
fn zero_leaf(vma: &Vma, frame: Frame) -> Entry {
    let attrs = Attrs::YOUNG | exec_of(vma);
    Entry::Leaf(Leaf { special: true, ..Leaf::ram(frame, attrs) })
}

/// The entry for a page that was just allocated for a write; the handle becomes the mapping's reference.
#[inline(always)]
fn map_fresh<M: Machine>(vma: &Vma, folio: FolioRef<M>) -> Entry {
    let write = Attrs::WRITE | Attrs::EXCLUSIVE | Attrs::YOUNG | Attrs::DIRTY | Attrs::SOFT_DIRTY;
    let frame = folio.frame();
    folio.set_maps(1);
    folio.into_owned();
    Entry::Leaf(Leaf::ram(frame, write | exec_of(vma)))
}

#[inline(always)]
fn exec_of(vma: &Vma) -> Attrs {
    if vma.prot().contains(Prot::EXEC) { Attrs::EXEC } else { Attrs::empty() }
}

const _: () = assert!(PMD_SIZE == Order::PMD.bytes());
