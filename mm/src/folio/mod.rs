//! Folios: the unit in which memory is owned, mapped, moved and freed.
//!
//! A descriptor of one cache line is allocated on demand (the "memdesc" pattern), for 4 KiB and 2 MiB alike. Reference
//! rules:
//! - `refs` = entries that map it (present, device-private, exclusive) + handles ([`FolioRef`]);
//! - `maps` = entries that map it; a PMD entry counts once;
//! - `migs` = migration entries that name it; they hold no reference, the migration's handle does.
//!
//! [`FolioRef`] is the counted handle. A frame cannot be freed while one exists, and freeing runs exactly once: at the drop
//! that takes `refs` to zero. A frame freed at one order may come back at another; every field is set anew at allocation.

mod handle;

use core::ptr;
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use farpage_lock::BitLock;

use crate::counters::Event;
use crate::error::OutOfMemory;
use crate::frames::Frames;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::slab::{NIL, Slot, SlotHeader};
use crate::sync::OnMachine;
use crate::types::{Frame, Order, Place};
use crate::zone::{Need, Zone};

pub(crate) use handle::put_many;
pub use handle::{FolioRef, LockedFolio};

/// A folio's descriptor. Read through a [`FolioRef`], or under the lock of a table whose entry names it.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Folio {
    header: SlotHeader,
    refs: AtomicU32,
    maps: AtomicU32,
    migs: AtomicU32,
    lock: BitLock,
    /// First frame.
    frame: AtomicU64,
    /// Order in the low byte, [`DIRTY`], [`RESIDENT`], [`PARTIAL`] and [`POOLED`] above, and the number of the group that pays for it.
    meta: AtomicU32,
    /// Reverse map: the index of the set of VMAs that may map it.
    anon: AtomicU32,
    /// Reverse map: its page index in that set.
    index: AtomicU64,
    /// For the device that owns it.
    driver: AtomicU64,
    /// For the audit to count in.
    scratch: AtomicU32,
    /// Pins (Linux: `FOLL_PIN`): each has a reference too, and says that its holder reads or writes the contents.
    pins: AtomicU32,
}

const DIRTY: u32 = 1 << 8;
/// Counted as having moved to its device, so its end must be counted too.
const RESIDENT: u32 = 1 << 9;
/// Mapped only in part, and to be split when that can be done.
const PARTIAL: u32 = 1 << 10;
/// Its memory is the pool's of huge pages, and goes back there.
const POOLED: u32 = 1 << 11;
/// The number of the group that it is charged to; 0 for none.
const GROUP_SHIFT: u32 = 16;
const GROUP: u32 = 0xff << GROUP_SHIFT;

impl Slot for Folio {
    const KIND: u8 = 1;
    #[inline(always)]
    fn header(&self) -> &SlotHeader {
        &self.header
    }
}

/// Where the reverse map finds the mappings of a folio.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RmapLink {
    /// The set of VMAs.
    pub(crate) anon: u32,
    /// Page index of the folio's first page in the set.
    pub(crate) index: u64,
}

impl RmapLink {
    pub(crate) const NONE: Self = Self { anon: NIL, index: 0 };
}

impl Folio {
    /// First frame.
    #[must_use]
    #[inline(always)]
    pub fn frame(&self) -> Frame {
        Frame::from_raw(self.frame.load(Relaxed))
    }
    /// Where it lies.
    #[must_use]
    #[inline(always)]
    pub fn place(&self) -> Place {
        self.frame().place()
    }
    /// Its order.
    #[must_use]
    #[inline(always)]
    pub fn order(&self) -> Order {
        Order::from_bits(self.meta.load(Relaxed))
    }
    /// References: mappings and handles.
    #[must_use]
    #[inline(always)]
    pub fn refs(&self) -> u32 {
        self.refs.load(Acquire)
    }
    /// Entries that map it.
    #[must_use]
    #[inline(always)]
    pub fn map_count(&self) -> u32 {
        self.maps.load(Acquire)
    }
    /// Migration entries that name it.
    #[must_use]
    #[inline(always)]
    pub fn migration_entries(&self) -> u32 {
        self.migs.load(Acquire)
    }
    /// True while somebody holds its lock.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.lock.is_locked()
    }
    /// True when its contents changed since they were last written back; kept over migration.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.meta.load(Relaxed) & DIRTY != 0
    }
    /// The owner's own word.
    #[must_use]
    pub fn driver_word(&self) -> u64 {
        self.driver.load(Relaxed)
    }
    /// Sets the owner's own word.
    pub fn set_driver_word(&self, word: u64) {
        self.driver.store(word, Relaxed);
    }
    /// True when `frame` is one of its frames.
    #[must_use]
    #[inline(always)]
    pub fn covers(&self, frame: Frame) -> bool {
        frame.is_within(self.frame(), self.order())
    }

    /// Pins: handles whose holder may read or write the contents at any moment.
    #[must_use]
    #[inline(always)]
    pub fn pins(&self) -> u32 {
        self.pins.load(Acquire)
    }
    pub(crate) fn add_pins(&self, n: u32) {
        self.pins.fetch_add(n, AcqRel);
    }
    pub(crate) fn remove_pins(&self, n: u32) {
        self.pins.fetch_sub(n, Release);
    }

    pub(crate) fn scratch(&self) -> &AtomicU32 {
        &self.scratch
    }
    /// It was written, by somebody whose writes no CPU notes in an entry.
    pub fn set_dirty(&self) {
        self.meta.fetch_or(DIRTY, Relaxed);
    }
    pub(crate) fn clear_dirty(&self) {
        self.meta.fetch_and(!DIRTY, Relaxed);
    }
    #[inline(always)]
    pub(crate) fn set_resident(&self) {
        self.meta.fetch_or(RESIDENT, Relaxed);
    }
    #[inline(always)]
    pub(crate) fn clear_resident(&self) {
        self.meta.fetch_and(!RESIDENT, Relaxed);
    }
    #[cfg(test)]
    pub(crate) fn is_resident(&self) -> bool {
        self.meta.load(Relaxed) & RESIDENT != 0
    }
    /// Notes that it is mapped only in part; true when that was not known.
    pub(crate) fn set_partial(&self) -> bool {
        self.meta.fetch_or(PARTIAL, AcqRel) & PARTIAL == 0
    }
    /// Who clears it sees what was unmapped before it was noted.
    pub(crate) fn clear_partial(&self) {
        self.meta.fetch_and(!PARTIAL, AcqRel);
    }
    pub(crate) fn is_partial(&self) -> bool {
        self.meta.load(Relaxed) & PARTIAL != 0
    }
    /// The number of the group that it is charged to; 0 for none.
    pub(crate) fn group(&self) -> u32 {
        (self.meta.load(Relaxed) & GROUP) >> GROUP_SHIFT
    }
    /// Of a folio that has none.
    pub(crate) fn set_group(&self, number: u32) {
        debug_assert_eq!(self.group(), 0, "one group pays for a folio");
        self.meta.fetch_or(number << GROUP_SHIFT, Relaxed);
    }
    /// The number of its group, which is none from now on.
    pub(crate) fn take_group(&self) -> u32 {
        (self.meta.fetch_and(!GROUP, Relaxed) & GROUP) >> GROUP_SHIFT
    }
    /// A tail of a split takes over what is known of its head, its share of the charge included. So does the head of a merge, which
    /// is charged where its tail is.
    pub(crate) fn inherit(&self, head: &Self) {
        // A single page has no parts.
        let partial = if self.order() == Order::BASE { 0 } else { PARTIAL };
        self.meta.fetch_or(head.meta.load(Relaxed) & (DIRTY | RESIDENT | partial | GROUP), Relaxed);
    }
    /// Is its memory the pool's of huge pages?
    pub(crate) fn is_pooled(&self) -> bool {
        self.meta.load(Relaxed) & POOLED != 0
    }
    pub(crate) fn link(&self) -> RmapLink {
        RmapLink { anon: self.anon.load(Relaxed), index: self.index.load(Relaxed) }
    }
    #[inline(always)]
    pub(crate) fn set_link(&self, link: RmapLink) {
        self.anon.store(link.anon, Relaxed);
        self.index.store(link.index, Relaxed);
    }
    pub(crate) fn slab_index(&self) -> u32 {
        self.header.key()
    }
    fn wait_key(&self) -> usize {
        ptr::from_ref(self).addr()
    }

    /// `n` more entries map it; their references are added too.
    #[inline(always)]
    pub(crate) fn add_maps(&self, n: u32) {
        self.refs.fetch_add(n, Relaxed);
        self.maps.fetch_add(n, Relaxed);
    }
    /// `n` entries fewer map it; the caller now owns their references.
    #[inline(always)]
    pub(crate) fn remove_maps(&self, n: u32) {
        self.maps.fetch_sub(n, Release);
    }
    /// `n` mappings became migration entries; the caller now owns the mappings' references.
    #[inline(always)]
    pub(crate) fn maps_to_migs(&self, n: u32) {
        self.migs.fetch_add(n, Relaxed);
        self.maps.fetch_sub(n, Release);
    }
    /// `n` migration entries became mappings again, each with a reference of its own.
    #[inline(always)]
    pub(crate) fn migs_to_maps(&self, n: u32) {
        self.refs.fetch_add(n, Relaxed);
        self.maps.fetch_add(n, Relaxed);
        self.migs.fetch_sub(n, Release);
    }
    /// A migration entry became a mapping that takes over the migration's own reference, which the caller must not drop. True
    /// when it was the last; otherwise the mapping has got a reference of its own, and the migration keeps its.
    #[inline(always)]
    pub(crate) fn last_mig_to_map(&self) -> bool {
        self.maps.fetch_add(1, Relaxed);
        if self.migs.fetch_sub(1, Release) == 1 {
            return true;
        }
        self.refs.fetch_add(1, Relaxed);
        false
    }
    /// `n` migration entries fewer name it.
    #[inline(always)]
    pub(crate) fn remove_migs(&self, n: u32) {
        self.migs.fetch_sub(n, Release);
    }
    /// A PMD entry became 512 PTEs (or migration entries likewise).
    pub(crate) fn add_migs(&self, n: u32) {
        self.migs.fetch_add(n, Relaxed);
    }

    /// The count of migration entries, which is 0 from now on. For a split, at its end.
    pub(crate) fn take_migs(&self) -> u32 {
        self.migs.swap(0, AcqRel)
    }

    /// Takes the references from `expected` to none, so that nobody can get a new one; false when there were others.
    #[inline(always)]
    pub(crate) fn freeze(&self, expected: u32) -> bool {
        self.refs.compare_exchange(expected, 0, AcqRel, Relaxed).is_ok()
    }
    /// Undoes [`Folio::freeze`], with the references that are there now.
    #[inline(always)]
    pub(crate) fn unfreeze(&self, refs: u32) {
        self.refs.store(refs, Release);
    }
    pub(crate) fn set_maps(&self, maps: u32) {
        self.maps.store(maps, Relaxed);
    }
    pub(crate) fn set_order(&self, order: Order) {
        // At once: somebody may note at this moment that it is mapped only in part.
        self.meta.fetch_xor(u32::from(self.order().get() ^ order.get()), Relaxed);
    }

    #[inline(always)]
    fn try_get(&self) -> bool {
        let mut refs = self.refs.load(Relaxed);
        while refs != 0 {
            match self.refs.compare_exchange_weak(refs, refs + 1, Acquire, Relaxed) {
                Ok(_) => return true,
                Err(now) => refs = now,
            }
        }
        false
    }

    /// Locks a folio that nobody can find yet.
    #[inline(always)]
    pub(crate) fn lock_new(&self) {
        let locked = self.lock.try_lock();
        debug_assert!(locked, "nobody can find it");
    }

    #[inline(always)]
    fn try_lock_raw(&self) -> bool {
        self.lock.try_lock()
    }

    #[inline(always)]
    fn unlock_raw<M: Machine>(&self) {
        self.lock.unlock::<OnMachine<M>>(|| self.wait_key());
    }

    /// Sleeps until the folio is unlocked. The caller holds no spin lock and no reference is needed: descriptors are
    /// type-stable, and a folio that was freed meanwhile is not locked.
    pub(crate) fn wait_unlocked<M: Machine>(&self) {
        self.lock.wait_free::<OnMachine<M>>(self.wait_key());
    }
}

impl Folio {
    /// Ends a folio whose references are frozen and which is locked, without its memory: that is another folio's now.
    pub(crate) fn end_frozen<M: Machine>(&'static self) {
        self.set_maps(0);
        self.anon.store(NIL, Relaxed);
        self.unlock_raw::<M>();
        M::mm().folios.free(self);
    }

    /// The driver's word, which is 0 from now on.
    pub(crate) fn take_driver_word(&self) -> u64 {
        self.driver.swap(0, Relaxed)
    }

    /// Tells the device on which `left` lies that the folio has no claim to that memory any more.
    #[inline(always)]
    pub(crate) fn tell_left<M: Machine>(&self, left: &Frames<M>) {
        if let Some(device) = left.first().place().device_number() {
            let word = self.take_driver_word();
            M::mm().device(device).ops().folio_free(left.first(), left.order(), word);
        }
    }

    /// Moves the folio to other memory of its order and returns what it lay in: the folio stays who it is (references, lock,
    /// reverse map, dirt), only its frames change. With its references frozen. Look-ups by the old frames go on to find it
    /// until those are freed, for the migration entries that still name them. [`Folio::tell_left`] comes when there is no way
    /// back. `zone` is the one that `to` lies in, `order` that of all three: callers
    /// that know it save the question.
    #[inline(always)]
    pub(crate) fn relocate<M: Machine>(&self, zone: &Zone<M>, order: Order, to: Frames<M>) -> Frames<M> {
        let old = Frames::own(self.frame(), order);
        debug_assert!(to.order() == order && self.order() == order, "a folio moves to memory of its order");
        let (first, _) = to.into_inner();
        zone.set_owner(first, order, self.slab_index());
        self.frame.store(first.raw(), Relaxed);
        if order != Order::BASE {
            zone.deferred.arrived(self);
        }
        old
    }
}

impl<M: Machine> Mm<M> {
    /// Allocates a folio of `order` in `place`: one reference, unlocked, contents undefined.
    ///
    /// # Errors
    /// [`OutOfMemory`] when no chunk of this order is free, or no memory for the descriptor.
    #[inline]
    pub fn alloc_folio(&self, place: Place, order: Order, need: Need) -> Result<FolioRef<M>, OutOfMemory> {
        match self.try_alloc_folio(place, order, need, |_| {}) {
            Ok(folio) => Ok(folio),
            Err(oom) => {
                M::count(Event::AllocFail, 1);
                Err(oom)
            }
        }
    }

    /// As [`Mm::alloc_folio`], locked before anybody who looks at frames (an eviction) can find it.
    #[inline(always)]
    pub(crate) fn alloc_locked_folio(
        &self,
        place: Place,
        order: Order,
        need: Need,
    ) -> Result<LockedFolio<M>, OutOfMemory> {
        let lock =
            |folio: &Folio| assert!(folio.try_lock_raw(), "a folio that nobody can reach is not locked");
        match self.try_alloc_folio(place, order, need, lock) {
            Ok(folio) => Ok(LockedFolio(folio)),
            Err(oom) => {
                M::count(Event::AllocFail, 1);
                Err(oom)
            }
        }
    }

    #[inline(always)]
    fn try_alloc_folio(
        &self,
        place: Place,
        order: Order,
        need: Need,
        before: impl FnOnce(&Folio),
    ) -> Result<FolioRef<M>, OutOfMemory> {
        let folio = self.folios.alloc(self)?;
        let (frame, order) = match self.alloc_frames(place, order, need) {
            Ok(frames) => frames.into_inner(),
            Err(oom) => {
                self.folios.free(folio);
                return Err(oom);
            }
        };
        self.init_folio(folio, frame, order, RmapLink::NONE);
        before(folio);
        self.zone(place).set_owner(frame, order, folio.slab_index());
        folio.unfreeze(1);
        Ok(FolioRef::from_owned(folio))
    }

    /// Makes `folio` the owner of a block of the pool of huge pages, with one reference.
    pub(crate) fn folio_of_pool(&self, folio: &'static Folio, block: Frame) -> FolioRef<M> {
        self.init_folio(folio, block, Order::PMD, RmapLink::NONE);
        folio.meta.fetch_or(POOLED, Relaxed);
        self.ram.set_owner(block, Order::PMD, folio.slab_index());
        folio.unfreeze(1);
        FolioRef::from_owned(folio)
    }

    /// Sets every field but the reference count, which the caller stores last.
    #[inline(always)]
    pub(crate) fn init_folio(&self, folio: &Folio, frame: Frame, order: Order, link: RmapLink) {
        folio.maps.store(0, Relaxed);
        folio.migs.store(0, Relaxed);
        folio.lock.reset();
        folio.frame.store(frame.raw(), Relaxed);
        folio.meta.store(u32::from(order.get()), Relaxed);
        folio.driver.store(0, Relaxed);
        debug_assert_eq!(folio.pins(), 0, "pins are references, so a free folio has none");
        folio.set_link(link);
    }

    /// The folio that a mapping names. Only under the lock of the table that holds the mapping.
    ///
    /// # Panics
    /// When the frame map knows no such folio: an entry names memory that is not mapped memory.
    #[inline(always)]
    pub(crate) fn mapped_folio(&self, frame: Frame) -> &'static Folio {
        self.mapped_folio_in(self.zone(frame.place()), frame)
    }

    /// As [`Mm::mapped_folio`], with the frame's zone at hand.
    #[inline(always)]
    pub(crate) fn mapped_folio_in(&self, zone: &Zone<M>, frame: Frame) -> &'static Folio {
        match zone.folio_index(frame.index()) {
            Some(index) => self.folios.get(index),
            None => panic!("an entry names a frame that no folio owns"),
        }
    }

    /// The folio that owns `frame` now, with a reference. Needs no lock.
    #[must_use]
    pub fn try_get_folio(&self, frame: Frame) -> Option<FolioRef<M>> {
        let zone = self.zone(frame.place());
        if !zone.contains(frame.index()) {
            return None;
        }
        let folio = FolioRef::try_get(self.folios.get(zone.folio_index(frame.index())?))?;
        // The descriptor may have been freed and reused between the two reads; the reference holds it still now.
        if folio.covers(frame) { Some(folio) } else { None }
    }
}
