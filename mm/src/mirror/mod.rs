//! A device's view of an address space: one secondary MMU.
//!
//! The device has a page table of its own ([`table`]) for the space. It is filled from [range faults](crate::hmm) and emptied by
//! an interval notifier, with the sequence protocol of [`crate::notifier`] in between: an entry is entered only under the
//! mirror's lock, after `read_retry` has said under the same lock that what was found still stands. A device's access goes
//! through an entry with that lock held, so when a callback returns, no access is under way.
//!
//! Pages in the device's own private memory are the exception: their entries are not dropped when a page leaves. A use of one looks at
//! the CPU's entry, whose table stays locked meanwhile: it must name the same frame and allow as much. No page leaves without a change
//! of that entry, so who changes it need tell nobody, and a fault that brings a page back costs what it costs without a device
//! that looks on ([`NotifierOps::hears_of_returns`]).
//!
//! [`dmirror`] is the command set of a device that is driven by tests.

pub mod dmirror;
mod snap;
mod table;

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use crate::entry::{Attrs, Entry, SoftKind};
use crate::error::{OutOfMemory, RangeError};
use crate::exclusive::ExclusiveGuard;
use crate::hmm::{HmmError, HmmPfn, HmmWant, RangeFault};
use crate::machine::Machine;
use crate::migrate::{MigrateFlags, MigrateOptions, Report};
use crate::notifier::{NotifierOps, NotifierRef, NotifyEvent, Owner};
use crate::slab::{Slot, SlotHeader};
use crate::space::{Space, SpaceUser};
use crate::sync::SpinLock;
use crate::types::{Access, Frame, Level, Order, PAGE_SIZE, Place, USER_END, VaRange, Vaddr};

pub(crate) use table::MirrorNode;
use table::MirrorTable;
pub use table::{MirrorAttrs, MirrorEntry};

/// The shared part of a mirror: what the notifier's callback reaches.
#[repr(align(64))]
pub(crate) struct Mirror<M: Machine> {
    header: SlotHeader,
    /// The space while it is mirrored, for the audit; the key of its slot.
    space: AtomicU32,
    /// The place of the device's own memory, as a number.
    device: AtomicU8,
    table: SpinLock<M, MirrorTable>,
}

impl<M: Machine> Default for Mirror<M> {
    fn default() -> Self {
        Self {
            header: SlotHeader::default(),
            space: AtomicU32::new(crate::slab::NIL),
            device: AtomicU8::new(0),
            table: SpinLock::default(),
        }
    }
}

impl<M: Machine> Slot for Mirror<M> {
    const KIND: u8 = 9;
    fn header(&self) -> &SlotHeader {
        &self.header
    }
}

impl<M: Machine> NotifierOps<M> for Mirror<M> {
    /// The copies go, to be found again when they are needed. Only what this mirror itself has moved stays until it is known which
    /// pages go ([`MirrorRef::migrate`]).
    fn invalidate(&self, range: VaRange, event: NotifyEvent) {
        if event == (NotifyEvent::Migrate { owner: Some(self.as_owner()) }) {
            return;
        }
        self.table.lock().clear::<M>(range);
        if event == NotifyEvent::Release {
            self.space.store(crate::slab::NIL, Relaxed);
        }
    }

    fn hears_of_returns(&self) -> bool {
        false
    }
}

impl<M: Machine> Mirror<M> {
    /// What tells its own migrations from all others: those of other mirrors on the same device, and faults.
    fn as_owner(&self) -> Owner {
        Owner::holder(Place::from_raw(self.device.load(Relaxed)), self.header.key())
    }

    /// The key of the space that is mirrored, and its entries.
    pub(crate) fn for_each(&self, f: &mut dyn FnMut(u32, Vaddr, MirrorEntry)) {
        let space = self.space.load(Relaxed);
        self.table.lock().for_each::<M>(&mut |addr, entry| f(space, addr, entry));
    }
}

/// Pages of one range fault: as few as fit on the stack.
const WINDOW: usize = 32;
/// Rounds after which a range that does not come to rest is given up.
const ROUNDS: u32 = 10_000;

/// A mirror of an address space; dropping it ends the mirroring.
pub struct MirrorRef<M: Machine> {
    notifier: Option<NotifierRef<M>>,
    mirror: &'static Mirror<M>,
    owner: Place,
}

impl<M: Machine> fmt::Debug for MirrorRef<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mirror of {:?} on {}", self.notifier, self.owner)
    }
}

impl<M: Machine> MirrorRef<M> {
    /// Begins to mirror `space` for the device whose private memory is `owner`. The table is empty at first.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(space: &'static Space<M>, owner: Place) -> Result<Self, OutOfMemory> {
        let mirror = M::mm().mirrors.alloc(M::mm())?;
        mirror.space.store(space.slab_index(), Relaxed);
        mirror.device.store(owner.raw(), Relaxed);
        // From here on its drop gives the mirror back.
        let mut made = Self { notifier: None, mirror, owner };
        made.notifier = Some(space.register_notifier(VaRange::between(Vaddr(0), Vaddr(USER_END)), mirror)?);
        Ok(made)
    }

    fn notifier(&self) -> &NotifierRef<M> {
        match &self.notifier {
            Some(notifier) => notifier,
            None => unreachable!("set before the mirror is handed out"),
        }
    }

    /// The device's own private memory.
    #[must_use]
    pub const fn owner(&self) -> Place {
        self.owner
    }

    /// The space, kept from ending; `None` when it has ended.
    #[must_use]
    pub fn space(&self) -> Option<SpaceUser<M>> {
        self.notifier().space_user()
    }

    /// The entry for the page at `addr`, if it stands.
    #[must_use]
    pub fn entry(&self, addr: Vaddr) -> Option<MirrorEntry> {
        let entry = self.mirror.table.lock().get::<M>(addr)?;
        let write = entry.attrs.contains(MirrorAttrs::WRITE);
        let stands = !is_own(entry.frame) || self.use_own(entry.frame, addr, 1, write, &mut |_| {}) == 1;
        stands.then_some(entry)
    }

    /// An access of the device: calls `f` with the frame of the page at `addr`, with a lock held, so that the page stays while
    /// `f` runs. `None` when there is no entry, or one that does not allow it.
    pub fn access<R>(&self, addr: Vaddr, access: Access, f: impl FnOnce(Frame) -> R) -> Option<R> {
        let (mut f, mut result) = (Some(f), None);
        let page = VaRange::new(addr.align_down(PAGE_SIZE).0, PAGE_SIZE);
        self.access_range(page, access, &mut |frame, _, _| result = f.take().map(|f| f(frame)));
        result
    }

    /// Is there an entry in `range` of which `f` says so?
    pub(crate) fn any(&self, range: VaRange, f: &dyn Fn(MirrorEntry) -> bool) -> bool {
        let mut found = false;
        self.mirror.table.lock().for_each_in::<M>(range, &mut |_, entry| found |= f(entry));
        found
    }

    /// An access of the device to the pages of `range`: calls `f`, with a lock held so that they stay, with each run of frames that
    /// follow each other, the number of its first page in the range, and how many pages they are. Ends before the first page that
    /// has no entry, or one that does not allow it; how many pages were accessed.
    pub fn access_range(&self, range: VaRange, access: Access, f: &mut dyn FnMut(Frame, u64, u64)) -> u64 {
        let write = access == Access::Write;
        let (mut done, pages) = (0, range.nr_pages());
        while done < pages {
            let at = range.start.add(done * PAGE_SIZE);
            let table = self.mirror.table.lock();
            let Some((frame, count)) = table.run::<M>(at, pages - done, write) else { break };
            if !is_own(frame) {
                f(frame, done, count);
                done += count;
                continue;
            }
            drop(table);
            let stands = self.use_own(frame, at, count, write, &mut |count| f(frame, done, count));
            done += stands;
            if stands < count {
                break;
            }
        }
        done
    }

    /// Uses `count` pages of the device's own private memory from `frame` on, which the CPU's table names at `addr`, all in one table:
    /// calls `f` with how many of them it still names and lets be used, with that table locked, if there are any.
    fn use_own(&self, frame: Frame, addr: Vaddr, count: u64, write: bool, f: &mut dyn FnMut(u64)) -> u64 {
        let Some(user) = self.space() else { return 0 };
        let Some(cursor) = user.space().walk(addr) else { return 0 };
        // A write is noted before it is allowed.
        let written = Attrs::WRITE | Attrs::DIRTY | Attrs::SOFT_DIRTY;
        let stands = |page: u32| {
            let at = addr.add(u64::from(page) * PAGE_SIZE);
            let Entry::NonPresent(soft) = cursor.entry_at(at) else { return false };
            let inside = (at.0 & (cursor.level().size() - 1)) / PAGE_SIZE;
            soft.kind == SoftKind::DevicePrivate
                && soft.frame.offset(inside as u32) == frame.offset(page)
                && !soft.attrs.contains(Attrs::NO_ACCESS)
                && (!write || soft.attrs.contains(written) && !soft.attrs.contains(Attrs::UFFD_WP))
        };
        let found = if cursor.level() == Level::Pmd {
            if stands(0) { count } else { 0 }
        } else {
            (0..count).take_while(|&page| stands(page as u32)).count() as u64
        };
        if found != 0 {
            f(found);
        }
        found
    }

    /// Makes the pages of `range` accessible: faults in what is missing and enters it. With nothing wanted, enters what is there.
    ///
    /// # Errors
    /// [`HmmError`]; pages before its address are entered.
    pub fn fault(&self, range: VaRange, want: HmmWant) -> Result<(), HmmError> {
        self.fault_in(range, want, None)
    }

    fn fault_in(&self, range: VaRange, want: HmmWant, only: Option<Place>) -> Result<(), HmmError> {
        let user = self.space().ok_or(HmmError::Fault(range.start))?;
        let mut pfns = [HmmPfn::NONE; WINDOW];
        let mut at = range.start;
        while at < range.end {
            let window = VaRange::new(at.0, WINDOW as u64 * PAGE_SIZE).intersect(range);
            let pfns = &mut pfns[..window.nr_pages() as usize];
            at = self.fault_window(user.space(), window, want, only, pfns)?;
        }
        Ok(())
    }

    /// One window; the address after what was entered.
    fn fault_window(
        &self,
        space: &'static Space<M>,
        range: VaRange,
        want: HmmWant,
        only: Option<Place>,
        pfns: &mut [HmmPfn],
    ) -> Result<Vaddr, HmmError> {
        let notifier = self.notifier();
        for _ in 0..ROUNDS {
            let count = notifier.read_begin().ok_or(HmmError::Fault(range.start))?;
            let owner = Some(self.owner);
            let request = RangeFault { range, want, per_page: false, owner, under: Some((notifier, count)) };
            match space.range_fault(&request, pfns) {
                Ok(()) => {}
                Err(HmmError::Busy) => continue,
                Err(error) => return Err(error),
            }
            let mut table = self.mirror.table.lock();
            if !notifier.read_retry(count) {
                return enter::<M>(&mut table, range, pfns, only);
            }
        }
        Err(HmmError::Busy)
    }

    /// Moves the pages of `range` to `to`, as [`Space::migrate`] does. Its own entries for what goes are dropped once that is
    /// locked and before it is copied; those of pages that stay where they are stand.
    ///
    /// # Errors
    /// As [`Space::migrate`]; [`RangeError::NotMapped`] when the space has ended.
    pub fn migrate(&self, range: VaRange, to: Place) -> Result<Report, RangeError> {
        self.migrate_with(range, to, &mut MigrateFlags::empty())
    }

    /// The same with flags, without [`MigrateFlags::REFUSE_HUGE`] afterwards if that had its turn.
    pub(crate) fn migrate_with(
        &self,
        range: VaRange,
        to: Place,
        flags: &mut MigrateFlags,
    ) -> Result<Report, RangeError> {
        let user = self.space().ok_or(RangeError::NotMapped(range.start))?;
        let mut options = MigrateOptions::to(to).by(self.mirror.as_owner()).with(*flags);
        let mut drop_copies = |taken| self.mirror.table.lock().clear::<M>(taken);
        // Where it has copies of nothing but its own memory, there is nothing to drop.
        let must_drop = self.mirror.table.lock().has_others();
        let taken: Option<&mut dyn FnMut(VaRange)> = if must_drop { Some(&mut drop_copies) } else { None };
        let report = user.space().migrate_batches(range, to, &mut options, None, taken);
        *flags = options.flags;
        report
    }

    /// Enters those pages of `range` that lie in the device's own memory, without faults.
    ///
    /// # Errors
    /// [`HmmError`].
    pub fn enter_own(&self, range: VaRange) -> Result<(), HmmError> {
        self.fault_in(range, HmmWant::empty(), Some(self.owner))
    }

    /// Enters pages that are lent to the device for atomic access. False when they were taken back meanwhile.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn enter_exclusive(&self, lent: &ExclusiveGuard<M>) -> Result<bool, OutOfMemory> {
        let notifier = self.notifier();
        for _ in 0..ROUNDS {
            let Some(count) = notifier.read_begin() else { return Ok(false) };
            if !lent.stands() {
                return Ok(false);
            }
            let mut table = self.mirror.table.lock();
            if !notifier.read_retry(count) {
                let attrs = MirrorAttrs::WRITE | MirrorAttrs::ATOMIC;
                table.put::<M>(lent.addr(), lent.level(), lent.frame(), attrs)?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Is it private memory? A mirror has entries of its own device's alone.
const fn is_own(frame: Frame) -> bool {
    frame.place().private_device().is_some()
}

/// Enters what a range fault has found, in all places or in one only; the address after it.
fn enter<M: Machine>(
    table: &mut MirrorTable,
    range: VaRange,
    pfns: &[HmmPfn],
    only: Option<Place>,
) -> Result<Vaddr, HmmError> {
    let mut at = range.start;
    let mut small = None;
    while at < range.end {
        let pfn = pfns[((at.0 - range.start.0) / PAGE_SIZE) as usize];
        let Some(frame) = pfn.frame().filter(|frame| only.is_none_or(|place| frame.place() == place)) else {
            at = at.add(PAGE_SIZE);
            continue;
        };
        let level = if pfn.map_order() == Order::PMD { Level::Pmd } else { Level::Pte };
        let start = at.align_down(level.size());
        let first = Frame::new(frame.place(), frame.index() - ((at.0 - start.0) / PAGE_SIZE) as u32);
        // A write is noted before it is allowed.
        let mut attrs = MirrorAttrs::empty();
        attrs.set(MirrorAttrs::WRITE, pfn.is_writable() && pfn.is_written());
        let oom = |_| HmmError::Oom(at);
        if level == Level::Pte {
            // Neighbours share a node: its way is gone once.
            let base = at.align_down(Level::Pmd.size());
            let node = match small {
                Some((start, node)) if start == base => node,
                _ => table.small_node::<M>(at).map_err(oom)?,
            };
            small = Some((base, node));
            table.put_small::<M>(node, at, first, attrs);
        } else {
            table.put::<M>(start, level, first, attrs).map_err(oom)?;
            small = None;
        }
        at = start.add(level.size());
    }
    Ok(at)
}

impl<M: Machine> Drop for MirrorRef<M> {
    fn drop(&mut self) {
        // No callback comes after this.
        self.notifier = None;
        self.mirror.table.lock().clear::<M>(VaRange::between(Vaddr(0), Vaddr(u64::MAX)));
        self.mirror.space.store(crate::slab::NIL, Relaxed);
        M::mm().mirrors.free(self.mirror);
    }
}
