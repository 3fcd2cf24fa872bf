//! Interval notifiers: who has copies of translations elsewhere (a device's page table) hears of every change before it is made.
//!
//! Whoever changes entries of a range brackets the change with an [`Invalidation`]; while one lives, readers of the interval
//! know that what they find may be stale (Linux: `mmu_interval_notifier`, `invalidate_range_start` and `_end`).
//!
//! ```text
//!   who changes                              who copies (a device)
//!   active += 1; sequence += 1               s = read_begin()        sleeps while something is active
//!   callback: lock, drop copies, unlock      look at the entries, fault in what is missing
//!   change the entries                       lock; read_retry(s)? unlock and begin again
//!   active -= 1; wake                        fill in the copies; unlock
//! ```
//!
//! The lock is the copier's own, the same in both columns. Either the copier fills first, and the callback drops what it
//! filled; or the callback comes first, and the copier sees the new sequence.
//!
//! A change begins once for all that it is about to touch. A migration begins once for what a batch takes, once more for the holes
//! that it fills, and once for each mapping of a taken page that the reverse map finds elsewhere. Who moves pages by itself may leave out
//! what it is told of that and drop its copies when it knows which pages go ([`Owner`]); the sequence moves for it too, so what it
//! finds meanwhile is not copied.
//!
//! A space without notifiers pays one load and one branch for an invalidation. So invalidations that began before the first
//! notifier came are counted nowhere, and [`Space::register_notifier`] waits for them: each is made and dropped in one hold of
//! the space's VMA lock, or of a reverse-map set's lock, and those it takes, one after the other, once the notifier can be seen.

use core::ptr;
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use crate::error::OutOfMemory;
use crate::machine::{Machine, WaitKey};
use crate::slab::{NIL, Slot, SlotHeader};
use crate::space::{Space, SpaceUser};
use crate::sync::{SpinGuard, SpinLock};
use crate::types::{Place, USER_END, VaRange, Vaddr};

/// Who has pages moved, and looks after its own copies of their translations (Linux: the owner in an event). It is compared as a
/// whole, so each of several holders of copies on one device can be told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    device: Place,
    holder: u32,
}

impl Owner {
    /// The driver of the device whose memory is `device`: what its own operations are told of ([`crate::PagemapOps`]), and what
    /// it has evicted.
    #[must_use]
    pub const fn device(device: Place) -> Self {
        Self { device, holder: NIL }
    }
    /// One holder of copies on that device. The number is the driver's choice, but the largest there is.
    #[must_use]
    pub const fn holder(device: Place, holder: u32) -> Self {
        Self { device, holder }
    }
    /// The device's memory.
    #[must_use]
    pub const fn place(self) -> Place {
        self.device
    }
}

/// Why entries of a range change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotifyEvent {
    /// They go (`munmap`, a remap's old place).
    Unmap,
    /// They get other contents or another frame (copy-on-write, `MADV_DONTNEED`).
    Clear,
    /// They allow less.
    Protection,
    /// Soft-dirty or write-protect tracking takes their write permission.
    SoftDirty,
    /// The address space ends.
    Release,
    /// Their pages move. Who is named here has caused it and may ignore this, if it drops its copies by itself before the contents
    /// are copied; everybody else drops them now. Named is
    /// - who asked for a walk over these addresses ([`crate::MigrateOptions::owner`]), and only for what the walk takes: what goes
    ///   with it elsewhere, found by the reverse map, and memory for holes, which is told of with all between the first hole and the last, name nobody;
    /// - the driver of the device that a fault brings a page back from: [`crate::PagemapOps::migrate_to_ram`] comes next;
    /// - the driver of the device whose frames are evicted.
    Migrate {
        /// Nobody: everybody drops.
        owner: Option<Owner>,
    },
    /// Their pages are lent to the owner of this place for atomic access.
    Exclusive(Place),
}

/// What a holder of copies does when it is told to drop some.
pub trait NotifierOps<M: Machine>: Sync {
    /// *Atomic.* Entries of `range` are about to change: drop the copies of them before the return. Any lock of the memory
    /// manager may be held, so take leaf spin locks only, do not sleep and do not fault. After [`NotifyEvent::Release`] nothing
    /// more comes, and nothing may be copied any more.
    fn invalidate(&self, range: VaRange, event: NotifyEvent);

    /// Must it hear of pages that a fault brings back from private device memory? Not who looks at the entry again, with its table
    /// locked, whenever it uses a copy that names such memory: then such faults cost the space nothing.
    fn hears_of_returns(&self) -> bool {
        true
    }
}

/// The two words of the protocol. `active` goes up before `count` and is read after it: who reads a `count` sees every change
/// that raised it, either still active or done.
#[derive(Debug, Default)]
pub(crate) struct Sequence {
    active: AtomicU32,
    count: AtomicU64,
}

impl Sequence {
    fn reset(&self, active: u32) {
        self.active.store(active, Relaxed);
        self.count.store(1, Release);
    }
    #[inline]
    fn raise(&self) {
        self.active.fetch_add(1, AcqRel);
    }
    #[inline]
    fn advance(&self) {
        self.count.fetch_add(1, AcqRel);
    }
    /// A change begins.
    pub(crate) fn begin(&self) {
        self.raise();
        self.advance();
    }
    /// A change is done; true when none is active any more.
    pub(crate) fn end(&self) -> bool {
        self.active.fetch_sub(1, AcqRel) == 1
    }
    /// The count to read under.
    #[inline]
    pub(crate) fn current(&self) -> u64 {
        self.count.load(Acquire)
    }
    /// True while a change is under way.
    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Acquire) != 0
    }
    /// True when something changed since `count` was read.
    #[inline]
    pub(crate) fn has_moved(&self, count: u64) -> bool {
        self.count.load(Acquire) != count
    }
}

/// One registration. Its link and its attachment are guarded by the lock of its space's [`Notifiers`].
#[repr(align(64))]
pub(crate) struct Notifier<M: Machine> {
    header: SlotHeader,
    start: AtomicU64,
    end: AtomicU64,
    /// The first invalidation that counted it by its range; older ones were counted when it came, whatever their range.
    born: AtomicU64,
    /// 1 while it is in its space's list.
    attached: AtomicU32,
    sequence: Sequence,
    ops: SpinLock<M, Option<&'static dyn NotifierOps<M>>>,
}

impl<M: Machine> Default for Notifier<M> {
    fn default() -> Self {
        Self {
            header: SlotHeader::default(),
            start: AtomicU64::new(0),
            end: AtomicU64::new(0),
            born: AtomicU64::new(0),
            attached: AtomicU32::new(0),
            sequence: Sequence::default(),
            ops: SpinLock::new(None),
        }
    }
}

impl<M: Machine> Slot for Notifier<M> {
    const KIND: u8 = 7;
    fn header(&self) -> &SlotHeader {
        &self.header
    }
}

impl<M: Machine> Notifier<M> {
    fn range(&self) -> VaRange {
        VaRange::between(Vaddr(self.start.load(Relaxed)), Vaddr(self.end.load(Relaxed)))
    }
    fn key(&self) -> WaitKey {
        WaitKey(ptr::from_ref(self).addr())
    }
    fn is_attached(&self) -> bool {
        self.attached.load(Acquire) != 0
    }
}

/// The notifiers of a space, and its changes under way.
pub(crate) struct Notifiers<M: Machine> {
    /// How many there are, and how many of them must hear of returns: what the fast paths look at.
    count: AtomicU32,
    returns: AtomicU32,
    list: SpinLock<M, List>,
}

/// A list rather than a tree: a device has one notifier for all of a space.
struct List {
    head: u32,
    /// Invalidations under way.
    active: u32,
    /// Number of the next one.
    serial: u64,
}

impl<M: Machine> Default for Notifiers<M> {
    fn default() -> Self {
        let list = List { head: NIL, active: 0, serial: 0 };
        Self { count: AtomicU32::new(0), returns: AtomicU32::new(0), list: SpinLock::new(list) }
    }
}

impl<M: Machine> Notifiers<M> {
    /// True when somebody is to be told of changes.
    #[inline(always)]
    pub(crate) fn any(&self) -> bool {
        self.count.load(Relaxed) != 0
    }

    /// True when somebody is to be told of pages that faults bring back ([`NotifierOps::hears_of_returns`]).
    #[inline(always)]
    pub(crate) fn any_for_returns(&self) -> bool {
        self.returns.load(Relaxed) != 0
    }
}

impl List {
    fn each<M: Machine>(&self, mut f: impl FnMut(&'static Notifier<M>)) {
        let mut at = self.head;
        while at != NIL {
            let notifier = M::mm().notifiers.get(at);
            at = notifier.header.link.load(Relaxed);
            f(notifier);
        }
    }

    fn unlink<M: Machine>(&mut self, notifier: &Notifier<M>) {
        let next = notifier.header.link.load(Relaxed);
        if self.head == notifier.header.key() {
            self.head = next;
        } else {
            let before = |n: &Notifier<M>| n.header.link.load(Relaxed) == notifier.header.key();
            self.each::<M>(|n| {
                if before(n) {
                    n.header.link.store(next, Relaxed);
                }
            });
        }
        notifier.attached.store(0, Release);
    }
}

/// A range is being changed while this lives. It is made and dropped in one hold of the VMA lock, shared or alone, or of a
/// reverse-map set's lock.
#[must_use = "the change is bracketed by this value's life"]
pub(crate) struct Invalidation<M: Machine> {
    /// The space, when somebody was told.
    told: Option<&'static Space<M>>,
    range: VaRange,
    ticket: u64,
}

impl<M: Machine> Drop for Invalidation<M> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(space) = self.told {
            space.tell_end(self.range, self.ticket);
        }
    }
}

impl<M: Machine> Space<M> {
    /// Tells everybody who has copies of translations of `range`, and returns when they are gone. May be called with any lock of
    /// the memory manager but a notifier's own: callbacks take only leaf spin locks. With the VMA lock or a reverse-map set's
    /// lock held at least, and not beyond that hold (see the module).
    #[inline(always)]
    pub(crate) fn invalidate(&'static self, range: VaRange, event: NotifyEvent) -> Invalidation<M> {
        if self.notifiers.any() {
            self.tell_begin(range, event)
        } else {
            Invalidation { told: None, range, ticket: 0 }
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_begin(&'static self, range: VaRange, event: NotifyEvent) -> Invalidation<M> {
        let mut list = self.notifiers.list.lock();
        let ticket = list.serial;
        list.serial += 1;
        list.active += 1;
        list.each::<M>(|notifier| {
            let part = notifier.range().intersect(range);
            if part.is_empty() {
                return;
            }
            notifier.sequence.begin();
            let ops = *notifier.ops.lock();
            if let Some(ops) = ops {
                ops.invalidate(part, event);
            }
        });
        Invalidation { told: Some(self), range, ticket }
    }

    #[cold]
    #[inline(never)]
    fn tell_end(&'static self, range: VaRange, ticket: u64) {
        let mut list = self.notifiers.list.lock();
        list.active -= 1;
        list.each::<M>(|notifier| {
            let counted =
                ticket < notifier.born.load(Relaxed) || !notifier.range().intersect(range).is_empty();
            if counted && notifier.sequence.end() {
                M::wake(notifier.key());
            }
        });
    }

    /// Registers `ops` for changes of `range`. Callbacks may come before this returns. May sleep; the caller holds no lock.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn register_notifier(
        &'static self,
        range: VaRange,
        ops: &'static dyn NotifierOps<M>,
    ) -> Result<NotifierRef<M>, OutOfMemory> {
        let mm = M::mm();
        let notifier = mm.notifiers.alloc(mm)?;
        notifier.start.store(range.start.0, Relaxed);
        notifier.end.store(range.end.0, Relaxed);
        *notifier.ops.lock() = Some(ops);
        let vmas = self.vmas.write();
        // Under the VMA lock held alone: no fault is under way, and none that comes takes the way that tells nobody.
        self.notifiers.count.fetch_add(1, Release);
        self.notifiers.returns.fetch_add(u32::from(ops.hears_of_returns()), Release);
        self.forget_last_pte_table();
        let mut list = self.notifiers.list.lock();
        notifier.sequence.reset(list.active);
        notifier.born.store(list.serial, Relaxed);
        notifier.attached.store(1, Release);
        notifier.header.link.store(list.head, Relaxed);
        list.head = notifier.header.key();
        drop(list);
        // Walks of the reverse map that began before it could be seen.
        vmas.iter().for_each(|vma| self.wait_for_walks(vma));
        drop(vmas);
        Ok(NotifierRef { notifier, space: self })
    }

    /// The space ends: everybody is told, and forgotten. With the VMA lock held alone.
    pub(crate) fn release_notifiers(&'static self) {
        if !self.notifiers.any() {
            return;
        }
        let everything = VaRange::between(Vaddr(0), Vaddr(USER_END));
        let _end = self.invalidate(everything, NotifyEvent::Release);
        let mut list = self.notifiers.list.lock();
        list.each::<M>(|notifier| {
            notifier.attached.store(0, Release);
            M::wake(notifier.key());
        });
        list.head = NIL;
        self.notifiers.count.store(0, Relaxed);
        self.notifiers.returns.store(0, Relaxed);
    }
}

/// A registration; its end is that of this value.
pub struct NotifierRef<M: Machine> {
    notifier: &'static Notifier<M>,
    space: &'static Space<M>,
}

impl<M: Machine> core::fmt::Debug for NotifierRef<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "notifier of {} in {:?}", self.notifier.range(), self.space)
    }
}

impl<M: Machine> NotifierRef<M> {
    /// The sequence number to look at entries under. Sleeps while an invalidation of the interval is active. `None` when the
    /// address space has ended.
    #[must_use]
    pub fn read_begin(&self) -> Option<u64> {
        let Notifier { sequence, .. } = self.notifier;
        loop {
            // The count first: one that was raised after it makes `read_retry` say so.
            let count = sequence.current();
            if !self.notifier.is_attached() {
                return None;
            }
            if !sequence.is_active() {
                return Some(count);
            }
            M::wait(self.notifier.key(), &|| sequence.is_active() && self.notifier.is_attached());
        }
    }

    /// True when what was found under `count` may be stale by now. To be asked under the lock that the callback takes.
    #[must_use]
    pub fn read_retry(&self, count: u64) -> bool {
        self.notifier.sequence.has_moved(count)
    }

    #[cfg(test)]
    pub(crate) fn is_active(&self) -> bool {
        self.notifier.sequence.is_active()
    }

    /// Keeps the address space from ending while it is worked with (Linux: `mmget_not_zero`). `None` when it has ended.
    #[must_use]
    pub fn space_user(&self) -> Option<SpaceUser<M>> {
        let _list: SpinGuard<'_, M, List> = self.space.notifiers.list.lock();
        // While it is attached the slot is still the space that it was registered with.
        if self.notifier.is_attached() { self.space.try_use() } else { None }
    }
}

impl<M: Machine> Drop for NotifierRef<M> {
    fn drop(&mut self) {
        let mut list = self.space.notifiers.list.lock();
        if self.notifier.is_attached() {
            list.unlink(self.notifier);
            self.space.notifiers.count.fetch_sub(1, Release);
            let hears = self.notifier.ops.lock().is_some_and(NotifierOps::hears_of_returns);
            self.space.notifiers.returns.fetch_sub(u32::from(hears), Release);
        }
        drop(list);
        M::mm().notifiers.free(self.notifier);
    }
}

#[cfg(test)]
pub(crate) mod steps {
    //! The protocol in single atomic steps, for a test that tries all their orders.
    use super::Sequence;

    impl Sequence {
        pub(crate) fn step_raise(&self) {
            self.raise();
        }
        pub(crate) fn active_now(&self) -> u32 {
            self.active.load(super::Acquire)
        }
        pub(crate) fn step_advance(&self) {
            self.advance();
        }
    }
}
