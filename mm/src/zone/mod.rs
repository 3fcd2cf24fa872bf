//! A zone: the frames of one place (RAM, or one device), their map, their buddy, and a cache of free frames per CPU.
//!
//! The caches keep single pages away from the buddy's lock and its merging. When a larger chunk is wanted and there is none,
//! they are emptied first, so a cached page never stands between two halves that should be whole.

mod cache;
mod objects;

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};

use spin::Once;

use crate::buddy::{Buddy, ORDERS};
use crate::error::OutOfMemory;
use crate::framemap::{BLOCK, Block, FrameMap, Slot};
use crate::inject::{Inject, Site};
use crate::machine::{MAX_CPUS, Machine};
use crate::split::Deferred;
use crate::sync::SpinLock;
use crate::trace::{Kind, Step};
use crate::types::{Frame, FrameRange, Order, Place, Vaddr};

use cache::{BATCH_ORDER, Cache};

/// How far an allocation may go into the reserve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// User pages and their tables: stops at the low-water mark.
    User,
    /// What a split or a fault-back needs to go on: may take the last frame.
    Reserve,
}

/// A low-water mark that no zone has.
const CLOSED: u32 = u32::MAX / 2;

/// The frames of one place. All methods may be called from any CPU; frame numbers are those of [`Frame::index`].
pub struct Zone<M> {
    /// [`Place::raw`]; which kind of device it is, is known when it is registered.
    place: AtomicU8,
    base: AtomicU32,
    map: Once<FrameMap>,
    buddy: SpinLock<M, Buddy>,
    caches: [SpinLock<M, Cache>; MAX_CPUS],
    /// Frames set aside for descriptors, relative to the first.
    objects: SpinLock<M, FrameRange>,
    low_water: AtomicU32,
    /// Memory is short: no frame goes into a cache that is not asked for at once.
    pressed: AtomicBool,
    /// Folios here that are mapped only in part.
    pub(crate) deferred: Deferred,
    /// Its memory was taken away again.
    gone: AtomicBool,
}

/// Free memory of a zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZoneStat {
    /// Frames that belong to the zone.
    pub managed: u32,
    /// Frames that are free, those in the CPUs' caches included.
    pub free: u32,
    /// Free chunks by order, the caches not included (`/proc/buddyinfo`).
    pub chunks: [u32; ORDERS],
}

impl<M: Machine> Zone<M> {
    pub(crate) const fn new(place: Place) -> Self {
        Self {
            place: AtomicU8::new(place.raw()),
            base: AtomicU32::new(0),
            map: Once::new(),
            buddy: SpinLock::new(Buddy::new()),
            caches: [const { SpinLock::new(Cache::new()) }; MAX_CPUS],
            objects: SpinLock::new(0..0),
            low_water: AtomicU32::new(0),
            pressed: AtomicBool::new(false),
            deferred: Deferred::new(),
            gone: AtomicBool::new(false),
        }
    }

    /// Where its frames lie.
    #[must_use]
    #[inline(always)]
    pub fn place(&self) -> Place {
        Place::from_raw(self.place.load(Relaxed))
    }

    /// Says what kind of memory it is, before it has any.
    pub(crate) fn set_place(&self, place: Place) {
        self.place.store(place.raw(), Relaxed);
    }

    /// Gives the zone its map: `frames` frames from `base`, all reserved until [`Zone::add`] frees some.
    pub(crate) fn set_map(&self, base: u32, map: FrameMap) {
        assert_eq!(base % BLOCK, 0, "a zone starts at a 2 MiB boundary");
        self.base.store(base, Relaxed);
        self.map.call_once(|| map);
        self.gone.store(false, Relaxed);
    }

    /// Adds frames to the zone.
    pub(crate) fn add(&self, range: FrameRange) {
        let base = self.base();
        self.buddy.lock().add(self.map(), range.start - base..range.end - base);
    }

    /// The frames that the map of a former registration has room for.
    pub(crate) fn room(&self) -> Option<u32> {
        self.map.get().map(FrameMap::frames)
    }

    /// From now on nothing is allocated here, and what is freed goes to the buddy. What the low-water mark was.
    pub(crate) fn close(&self) -> u32 {
        let low_water = self.low_water.swap(CLOSED, Relaxed);
        self.pressed.store(true, Relaxed);
        low_water
    }

    /// Undoes [`Zone::close`].
    pub(crate) fn reopen(&self, low_water: u32) {
        self.low_water.store(low_water, Relaxed);
        self.pressed.store(false, Relaxed);
    }

    /// Takes all frames out of the zone, if all are free; it is as before it was registered, but for the storage of its map.
    pub(crate) fn retire(&self) -> bool {
        self.drain();
        let done = self.buddy.lock().retire(self.map());
        if done {
            self.gone.store(true, Relaxed);
            self.reopen(0);
        }
        done
    }

    /// Frames that user allocations leave alone.
    pub(crate) fn set_low_water(&self, frames: u32) {
        self.low_water.store(frames, Relaxed);
    }

    /// True once the zone has memory.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.map.is_completed() && !self.gone.load(Relaxed)
    }

    /// The frames that its map covers.
    pub(crate) fn frames(&self) -> FrameRange {
        let frames = self.map.get().map_or(0, FrameMap::frames);
        self.base()..self.base() + frames
    }

    #[inline(always)]
    fn base(&self) -> u32 {
        self.base.load(Relaxed)
    }

    /// # Panics
    /// Before [`Zone::set_map`].
    #[inline(always)]
    fn map(&self) -> &FrameMap {
        match self.map.get() {
            Some(map) => map,
            None => panic!("zone without memory"),
        }
    }

    /// The index of the folio that owns `index`, if any does at this moment.
    #[inline(always)]
    pub(crate) fn folio_index(&self, index: u32) -> Option<u32> {
        self.map().folio(index.wrapping_sub(self.base()))
    }

    /// The index of the table in frame `pfn`.
    #[inline(always)]
    pub(crate) fn table_index(&self, pfn: u32) -> Option<u32> {
        match self.map().slot(pfn.wrapping_sub(self.base())) {
            Slot::Table(table) => Some(table),
            _ => None,
        }
    }

    /// True when `index` is a frame of this zone's range that is not in a wholly reserved block.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        let Some(map) = self.map.get() else { return false };
        let rel = index.wrapping_sub(self.base());
        rel < map.frames() && map.block(rel) != Block::Reserved
    }

    /// Free memory.
    #[must_use]
    pub fn stat(&self) -> ZoneStat {
        if !self.is_registered() {
            return ZoneStat::default();
        }
        let cached: usize = self.caches.iter().map(|c| c.lock().len).sum();
        let buddy = self.buddy.lock();
        ZoneStat {
            managed: buddy.managed(),
            free: buddy.free_frames() + cached as u32,
            chunks: buddy.counts(),
        }
    }

    /// What the failure plan calls an allocation here.
    #[inline(always)]
    pub(crate) fn site(&self) -> Site {
        if self.place().is_ram() { Site::RamFolio } else { Site::DeviceFolio }
    }

    /// Takes up to 32 adjacent pages (up to 1, when less than twice that is spare), or fewer where there is no chunk of that
    /// size. Each of them is the caller's; none belongs to a chunk any more.
    pub(crate) fn alloc_run(&self, wanted: u32, need: Need) -> Result<FrameRange, OutOfMemory> {
        let map = self.map();
        let mut buddy = self.buddy.lock();
        let keep = if need == Need::User { self.low_water.load(Relaxed) } else { 0 };
        let spare = buddy.free_frames().saturating_sub(keep);
        let largest = if spare < 2 * BATCH_ORDER.pages() {
            Order::BASE
        } else {
            Order::largest(0, wanted).min(BATCH_ORDER)
        };
        let mut order = largest;
        loop {
            if spare != 0
                && let Some(chunk) = buddy.alloc(map, order)
            {
                map.set_cached(chunk, order.pages());
                let first = chunk + self.base();
                return Ok(first..first + order.pages());
            }
            if order == Order::BASE {
                drop(buddy);
                // The caches may still have some.
                let frame = self.alloc_cached(need)? + self.base();
                return Ok(frame..frame + 1);
            }
            order = Order::new(order.get() - 1);
        }
    }

    /// Gives adjacent pages back, whatever chunks they were.
    pub(crate) fn free_run(&self, range: FrameRange) {
        let base = self.base();
        self.buddy.lock().free_range(self.map(), range.start - base..range.end - base);
    }

    /// Takes a chunk. Nobody owns it yet: look-ups find nothing there until [`Zone::set_owner`].
    #[inline(always)]
    pub(crate) fn alloc_frames(
        &self,
        inject: &Inject,
        order: Order,
        need: Need,
    ) -> Result<Frame, OutOfMemory> {
        let chunk = if inject.is_watched(self.site()) {
            self.alloc_watched(inject, order, need)?
        } else {
            self.alloc_unwatched(order, need)?
        };
        Ok(Frame::new(self.place(), chunk + self.base()))
    }

    #[inline(always)]
    fn alloc_unwatched(&self, order: Order, need: Need) -> Result<u32, OutOfMemory> {
        if order == Order::BASE { self.alloc_cached(need) } else { self.alloc_chunk(order, need) }
    }

    /// One that may fail by plan, or is recorded.
    #[cold]
    #[inline(never)]
    fn alloc_watched(&self, inject: &Inject, order: Order, need: Need) -> Result<u32, OutOfMemory> {
        inject.check(self.site(), order.get())?;
        let step = Step::begin::<M>();
        let result = self.alloc_unwatched(order, need);
        let frame = Frame::new(self.place(), result.map_or(0, |chunk| chunk + self.base()));
        step.end::<M>(Kind::Frames, result.is_ok(), Vaddr(0), order, self.place(), frame);
        result
    }

    /// Writes `folio` as the owner of a chunk.
    #[inline(always)]
    pub(crate) fn set_owner(&self, first: Frame, order: Order, folio: u32) {
        let (map, chunk) = (self.map(), first.index() - self.base());
        if order == Order::BASE {
            map.set_slot(chunk, Slot::Folio(folio));
        } else if order == Order::PMD {
            map.set_block(chunk, Block::Huge(folio));
        } else {
            map.set_folio(chunk, order.pages(), folio);
        }
    }

    /// Gives a chunk back.
    #[inline(always)]
    pub(crate) fn free_frames(&self, first: Frame, order: Order) {
        let chunk = first.index() - self.base();
        if order == Order::BASE {
            self.free_cached(chunk);
        } else if order == Order::PMD {
            self.buddy.lock().free_block(self.map(), chunk);
        } else {
            self.buddy.lock().free(self.map(), chunk, order);
        }
    }

    /// Takes a frame for a page table and writes `table` as its owner.
    pub(crate) fn alloc_table(&self, inject: &Inject, need: Need, table: u32) -> Result<u32, OutOfMemory> {
        let chunk = if inject.is_watched(Site::Table) {
            self.alloc_table_watched(inject, need)?
        } else {
            self.alloc_cached(need)?
        };
        self.map().set_slot(chunk, Slot::Table(table));
        Ok(chunk + self.base())
    }

    #[cold]
    #[inline(never)]
    fn alloc_table_watched(&self, inject: &Inject, need: Need) -> Result<u32, OutOfMemory> {
        inject.check(Site::Table, 0)?;
        let step = Step::begin::<M>();
        let result = self.alloc_cached(need);
        let frame = Frame::new(self.place(), result.map_or(0, |chunk| chunk + self.base()));
        step.end::<M>(Kind::Table, result.is_ok(), Vaddr(0), Order::BASE, self.place(), frame);
        result
    }

    /// Splits a folio's ownership: `pages` frames from `first` now belong to `folio`. For a folio split, under its lock.
    pub(crate) fn rename(&self, first: Frame, pages: u32, folio: u32) {
        self.map().set_folio(first.index() - self.base(), pages, folio);
    }

    /// After all slots of the block of `first` were written: look-ups read them from now on.
    pub(crate) fn block_to_small(&self, first: Frame) {
        self.map().set_block(first.index() - self.base(), Block::Small);
    }

    #[inline]
    fn alloc_chunk(&self, order: Order, need: Need) -> Result<u32, OutOfMemory> {
        if let Some(chunk) = self.try_chunk(order, need) {
            return Ok(chunk);
        }
        self.drain();
        self.try_chunk(order, need).ok_or(OutOfMemory { order: order.get() })
    }

    #[inline(always)]
    pub(super) fn try_chunk(&self, order: Order, need: Need) -> Option<u32> {
        let mut buddy = self.buddy.lock();
        let keep = if need == Need::User { self.low_water.load(Relaxed) } else { 0 };
        if buddy.free_frames() < order.pages() + keep {
            None
        } else if order == Order::PMD {
            buddy.alloc_block(self.map())
        } else {
            buddy.alloc(self.map(), order)
        }
    }

    /// Gives back a frame that held a page table.
    pub(crate) fn free_table(&self, pfn: u32) {
        self.free_cached(pfn - self.base());
    }

    /// For the audit: checks the free lists and calls `f` for every free chunk (absolute numbers).
    pub(crate) fn for_each_free(&self, f: &mut dyn FnMut(u32, Order)) {
        let base = self.base();
        for cache in &self.caches {
            let cache = cache.lock();
            for &chunk in &cache.frames[..cache.len] {
                assert_eq!(self.map().slot(chunk), Slot::Cached, "cached frame {chunk:#x}");
                f(chunk + base, Order::BASE);
            }
        }
        self.buddy.lock().for_each_free(self.map(), &mut |chunk, order| f(chunk + base, order));
    }

    /// Calls `f` with frames and the folios that the map names for them, in the order of the frames; `f` says how many pages it
    /// is to the next. A slot may name a folio that is gone: freeing writes only the head of a chunk.
    pub(crate) fn for_each_folio(&self, f: &mut dyn FnMut(Frame, u32) -> u32) {
        let Some(map) = self.map.get() else { return };
        let (place, base) = (self.place(), self.base());
        let mut at = 0;
        while at < map.frames() {
            let frame = Frame::new(place, base + at);
            at += match map.block(at) {
                Block::Huge(folio) => f(frame, folio),
                Block::Small => match map.slot(at) {
                    Slot::Folio(folio) => f(frame, folio),
                    Slot::FreeHead { order, .. } => 1 << order,
                    _ => 1,
                },
                Block::Free | Block::Reserved => BLOCK - at % BLOCK,
            };
        }
    }
}
