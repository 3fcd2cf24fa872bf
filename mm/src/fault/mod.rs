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

mod cow;
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
use crate::split::{SplitError, split_pmd};
use crate::table::Table;
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

/// How often a fault looks again at a page that somebody holds.
const HELD_LOOKS: u32 = 256;

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
    #[inline(always)]
    pub fn handle_fault(&'static self, fault: &FaultInfo) -> Result<FaultOutcome, FaultError> {
        M::count_one::<{ Event::PgFault as usize }>();
        self.faults.fetch_add(1, Relaxed);
        if fault.bits.contains(FaultBits::RSVD) {
            return Err(refused::<M>(FaultError::Reserved(fault.addr)));
        }
        // Nearly every fault is done at the first look. That one stands outside of any loop, so that the compiler prepares nothing
        // for others.
        match self.resolve(fault) {
            Ok(Step::Done(outcome)) => Ok(outcome),
            Ok(step) => self.fault_later(fault, step),
            Err(error) => self.fault_again(fault, error),
        }
    }

    /// After a first look that resolved nothing yet.
    #[cold]
    #[inline(never)]
    fn fault_later(&'static self, fault: &FaultInfo, mut step: Step) -> Result<FaultOutcome, FaultError> {
        loop {
            match step {
                Step::Done(outcome) => return Ok(outcome),
                Step::Again => {}
                Step::Sleep(folio) => {
                    M::count(Event::FaultWait, 1);
                    folio.wait_unlocked::<M>();
                }
            }
            step = match self.resolve_later(fault) {
                Ok(step) => step,
                Err(error) => return self.fault_again(fault, error),
            };
        }
    }

    /// [`Space::resolve`], out of line.
    #[cold]
    #[inline(never)]
    fn resolve_later(&'static self, fault: &FaultInfo) -> Result<Step, FaultError> {
        self.resolve(fault)
    }

    /// An error, unless it is only that somebody holds the page for a moment: a look-up without locks, say. Nobody tells when
    /// a reference goes, so this looks again, with no lock held in between. Without memory it looks again for as long as some
    /// is found that nobody uses. A look that only says to look again is no error, whatever the one before said.
    #[cold]
    #[inline(never)]
    fn fault_again(&'static self, fault: &FaultInfo, first: FaultError) -> Result<FaultOutcome, FaultError> {
        let (mut looks, mut error) = (0, Some(first));
        loop {
            match error {
                None => {}
                Some(FaultError::Held(_)) if looks < HELD_LOOKS => {
                    looks += 1;
                    M::relax();
                }
                Some(FaultError::Oom(_)) if M::mm().relieve(Place::RAM) => {}
                Some(error) => return Err(refused::<M>(error)),
            }
            error = match self.resolve_later(fault) {
                Ok(Step::Done(outcome)) => return Ok(outcome),
                Ok(Step::Again) => None,
                Ok(Step::Sleep(folio)) => {
                    M::count(Event::FaultWait, 1);
                    folio.wait_unlocked::<M>();
                    None
                }
                Err(next) => Some(next),
            };
        }
    }

    /// One attempt, with the VMA lock held shared.
    #[inline(always)]
    fn resolve(&'static self, fault: &FaultInfo) -> Result<Step, FaultError> {
        let vmas = self.vmas.read();
        let vma = self.find_vma(&vmas, fault.addr).ok_or(FaultError::NoVma(fault.addr))?;
        if !vma.prot().allows(fault.access) {
            return Err(FaultError::Access(fault.addr, fault.access));
        }
        self.attempt(vma, fault)
    }

    #[inline(always)]
    fn attempt(&'static self, vma: &'static Vma, fault: &FaultInfo) -> Result<Step, FaultError> {
        if let Some(table) = self.last_pte_table(fault.addr) {
            let word = table.words()[fault.addr.index(Level::Pte)].load(Relaxed);
            let seen = Seen { table, level: Level::Pte, word };
            // The hot path knows what it is looking for, and that there is nobody to be told: a space with notifiers has no
            // table that was used last.
            if let Some(frame) = word::device_private(word) {
                return self.fault_device::<false, false>(fault, &seen, frame);
            }
            return match Entry::decode(word, Level::Pte) {
                Entry::None => self.fault_pte(vma, fault, table),
                entry => self.fault_entry(vma, fault, &seen, entry),
            };
        }
        self.attempt_from_the_top(vma, fault)
    }

    #[inline(never)]
    fn attempt_from_the_top(&'static self, vma: &'static Vma, fault: &FaultInfo) -> Result<Step, FaultError> {
        let seen = |table, level, entry: Entry| Seen { table, level, word: entry.encode(level) };
        match self.peek(fault.addr) {
            Peek::NoTable => self.fault_none(vma, fault, None),
            Peek::Pmd(table, Entry::None) => self.fault_none(vma, fault, Some(table)),
            Peek::Pmd(table, entry) => self.fault_entry(vma, fault, &seen(table, Level::Pmd, entry), entry),
            Peek::Pte(table, entry) => {
                self.set_last_pte_table(table);
                match entry {
                    Entry::None => self.fault_pte(vma, fault, table),
                    entry => self.fault_entry(vma, fault, &seen(table, Level::Pte, entry), entry),
                }
            }
        }
    }

    /// Nothing is there, not even a PTE table.
    #[inline(never)]
    fn fault_none(
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
            if let Some(step) = self.fault_huge(vma, fault, pmd, start) {
                return Ok(step);
            }
            M::count(Event::ThpFaultFallback, 1);
        }
        let spare = M::mm().spare_pte_table(fault.addr, Need::User).map_err(oom)?;
        let mut cursor = self.cursor_in(pmd, Level::Pmd, fault.addr);
        if cursor.is_still(0) {
            let table = spare.table();
            cursor.hook(spare);
            drop(cursor);
            self.set_last_pte_table(table);
            return self.fault_pte(vma, fault, table);
        }
        Ok(Step::Again)
    }

    /// A 2 MiB page, or the zero folio, into an empty PMD entry. `None` when there is no memory for it.
    fn fault_huge(
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
        let folio = self.fresh_folio(vma, start, Order::PMD).ok()?;
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
    fn fault_pte(
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
        let folio = self.fresh_folio(vma, fault.addr, Order::BASE).map_err(|no| no.at(fault.addr))?;
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
    fn fresh_folio(&self, vma: &'static Vma, addr: Vaddr, order: Order) -> Result<FolioRef<M>, NoPage> {
        let folio = self.charge(M::mm().alloc_folio(Place::RAM, order, Need::User)?)?;
        M::zero(folio.frame(), order);
        folio.set_link(RmapLink { anon: vma.anon(), index: vma.page_index(addr.align_down(order.bytes())) });
        Ok(folio)
    }

    /// Something is there.
    #[inline(always)]
    fn fault_entry(
        &'static self,
        vma: &'static Vma,
        fault: &FaultInfo,
        seen: &Seen<M>,
        entry: Entry,
    ) -> Result<Step, FaultError> {
        match entry {
            Entry::NonPresent(soft) => match soft.kind {
                SoftKind::DevicePrivate => self.fault_device::<true, false>(fault, seen, soft.frame),
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
    /// were looked at again, and the owner gets a migration that is under way. With `TELL`, the notifiers are told.
    ///
    /// A folio larger than the policy's granule is cut first, unless `WHOLE` says that this was tried: before its entries change,
    /// so that nothing is to be undone and the owner is asked for what is to come, no more. Pages of 4 KiB pay nothing for it.
    #[inline(always)]
    fn fault_device<const TELL: bool, const WHOLE: bool>(
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
            TELL.then(|| self.invalidate(range, NotifyEvent::Migrate { owner }))
        };
        let (_change, migration) = if locked.order() == seen.level.order() {
            if seen.level == Level::Pmd && !WHOLE && Order::PMD > mm.policy.granule() {
                drop(cursor);
                return self.fault_granule(fault, seen.level, locked, fault.addr.index(Level::Pte) as u32);
            }
            let change = tell(cursor.addr(), seen.level.order());
            (change, FaultMigration::take_one(&mut cursor, seen.table, device, locked, fault.addr))
        } else {
            match large_extent(&cursor, &locked, frame, None) {
                Extent::Whole { .. } if !WHOLE && locked.order() > mm.policy.granule() => {
                    let page = frame.index() - locked.frame().index();
                    drop(cursor);
                    return self.fault_granule(fault, seen.level, locked, page);
                }
                Extent::Whole { start: addr, run } => {
                    let change = tell(addr, locked.order());
                    let taken = FaultMigration::take(
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
        device.ops().migrate_to_ram(migration)?;
        M::count_one::<{ Event::DeviceFault as usize }>();
        Ok(Step::Done(FaultOutcome::Returned))
    }

    /// A folio larger than what a touch brings back, of which page `page` was touched: a cut closer around that page's granule, then
    /// look again at what is left. At most two cuts leave the granule; the rest of the folio stays in as few pieces as it can.
    /// Where it cannot be cut, all of it comes.
    #[cold]
    #[inline(never)]
    fn fault_granule(
        &'static self,
        fault: &FaultInfo,
        level: Level,
        folio: LockedFolio<M>,
        page: u32,
    ) -> Result<Step, FaultError> {
        let folio = folio.with_reference();
        let cut = self.cut_granule(fault.addr, level, &folio, page);
        drop(folio.unlock());
        if cut.is_ok() {
            return Ok(Step::Again);
        }
        let (table, level, entry) = match self.peek(fault.addr) {
            Peek::Pmd(table, entry) => (table, Level::Pmd, entry),
            Peek::Pte(table, entry) => (table, Level::Pte, entry),
            Peek::NoTable => return Ok(Step::Again),
        };
        match entry {
            Entry::NonPresent(soft) if soft.kind == SoftKind::DevicePrivate => {
                let seen = Seen { table, level, word: entry.encode(level) };
                self.fault_device::<true, true>(fault, &seen, soft.frame)
            }
            _ => Ok(Step::Again),
        }
    }

    /// One cut: before the granule of page `page`, or behind it when it is the folio's first.
    fn cut_granule(
        &'static self,
        addr: Vaddr,
        level: Level,
        folio: &LockedFolio<M>,
        page: u32,
    ) -> Result<(), SplitError> {
        let mm = M::mm();
        let granule = mm.policy.granule().pages();
        let start = page & !(granule - 1);
        if level == Level::Pmd {
            split_pmd(self, addr, mm.spare_pte_table(addr, Need::Reserve)?);
        }
        self.split_folio(folio, addr, if start != 0 { start } else { granule })
    }

    /// A folio that is mapped only in part: split as far as that goes, then look again at what is left.
    #[cold]
    fn fault_cut(
        &'static self,
        fault: &FaultInfo,
        folio: &LockedFolio<M>,
        at: u32,
    ) -> Result<Step, FaultError> {
        match self.split_folio(folio, fault.addr, at) {
            Ok(()) => Ok(Step::Again),
            Err(SplitError::Busy) => Err(FaultError::Held(fault.addr)),
            Err(SplitError::Oom) => Err(FaultError::Oom(fault.addr)),
        }
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
