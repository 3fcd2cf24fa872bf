//! The memory manager of one machine: its zones, its slabs, its zero pages.

use core::sync::atomic::AtomicU64;

use spin::Once;

use crate::counters::Event;
use crate::device::Device;
use crate::error::OutOfMemory;
use crate::folio::{Folio, FolioRef};
use crate::framemap::{BLOCK, FrameMap};
use crate::group::{Group, MAX_GROUPS};
use crate::hugetlb::HugePool;
use crate::inject::Inject;
use crate::machine::Machine;
use crate::migrate::{Batch, PieceChunk, UnitChunk};
use crate::mirror::{Mirror, MirrorNode};
use crate::notifier::Notifier;
use crate::object::{IndexLeaf, IndexMiddle, Object};
use crate::policy::Policy;
use crate::rmap::AnonSet;
use crate::slab::{Pool, Slab};
use crate::space::Space;
use crate::stats::Stayed;
use crate::table::Table;
use crate::tlb::HeldChunk;
use crate::types::{Frame, FrameRange, MAX_DEVICES, Order, Place};
use crate::vma::{Vma, VmaLeaf};
use crate::zone::{Need, Zone};

/// Memory for a frame map, supplied by whoever registers a range. All zero.
#[derive(Debug)]
pub struct MapStorage(&'static [AtomicU64]);

impl MapStorage {
    /// 64-bit words that a map of `frames` frames needs: 8 bytes per 4 KiB and 8 per 2 MiB.
    #[must_use]
    pub const fn words_for(frames: u32) -> usize {
        let blocks = frames.div_ceil(BLOCK) as usize;
        blocks + blocks * BLOCK as usize
    }

    /// Storage over zeroed words, [`MapStorage::words_for`] of them.
    #[must_use]
    pub const fn new(words: &'static [AtomicU64]) -> Self {
        Self(words)
    }

    pub(crate) fn into_map(self) -> FrameMap {
        let blocks = self.0.len() / (BLOCK as usize + 1);
        let (blocks, slots) = self.0.split_at(blocks);
        FrameMap::new(blocks, slots)
    }
}

/// The memory manager. One per [`Machine`]; `const` constructible, so it can be a plain static.
pub struct Mm<M: Machine> {
    /// Deterministic allocation failures, for tests.
    pub inject: Inject,
    /// What it chooses where more than one way is right.
    pub policy: Policy,
    pub(crate) ram: Zone<M>,
    pub(crate) devices: [Device<M>; MAX_DEVICES],
    pub(crate) huge_pool: HugePool<M>,
    pub(crate) folios: Slab<M, Folio>,
    pub(crate) tables: Slab<M, Table<M>>,
    pub(crate) vmas: Slab<M, Vma>,
    pub(crate) anons: Slab<M, AnonSet<M>>,
    pub(crate) spaces: Slab<M, Space<M>>,
    pub(crate) notifiers: Slab<M, Notifier<M>>,
    pub(crate) mirrors: Slab<M, Mirror<M>>,
    pub(crate) mirror_nodes: Slab<M, MirrorNode>,
    pub(crate) batches: Pool<M, Batch<M>>,
    pub(crate) units: Pool<M, UnitChunk<M>>,
    pub(crate) pieces: Pool<M, PieceChunk<M>>,
    pub(crate) held: Pool<M, HeldChunk<M>>,
    pub(crate) vma_leaves: Pool<M, VmaLeaf>,
    pub(crate) objects: Slab<M, Object<M>>,
    pub(crate) index_leaves: Pool<M, IndexLeaf<M>>,
    pub(crate) index_middles: Pool<M, IndexMiddle<M>>,
    /// Pages that migrations left where they were.
    pub(crate) stayed: Stayed,
    pub(crate) groups: [Group; MAX_GROUPS],
    zero_page: Once<FolioRef<M>>,
    zero_folio: Once<FolioRef<M>>,
}

impl<M: Machine> Default for Mm<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Machine> Mm<M> {
    /// A memory manager without memory.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            inject: Inject::new(),
            policy: Policy::new(),
            ram: Zone::new(Place::RAM),
            devices: [Device::new(0), Device::new(1), Device::new(2), Device::new(3)],
            huge_pool: HugePool::new(),
            folios: Slab::new(),
            tables: Slab::new(),
            vmas: Slab::new(),
            anons: Slab::new(),
            spaces: Slab::new(),
            notifiers: Slab::new(),
            mirrors: Slab::new(),
            mirror_nodes: Slab::new(),
            batches: Pool::new(),
            units: Pool::new(),
            pieces: Pool::new(),
            held: Pool::new(),
            vma_leaves: Pool::new(),
            objects: Slab::new(),
            index_leaves: Pool::new(),
            index_middles: Pool::new(),
            stayed: Stayed::new(),
            groups: [const { Group::new() }; MAX_GROUPS],
            zero_page: Once::new(),
            zero_folio: Once::new(),
        }
    }

    /// Whether allocations are recorded, while [`Machine::tracing`] says that steps are ([`crate::trace`]). Off at first: so an
    /// allocation that nobody watches asks once for this and for [`Mm::inject`]'s plan.
    pub fn watch_allocations(&self, on: bool) {
        self.inject.watch(on);
    }

    /// Registers RAM: `map` covers page frame numbers from `base` (a multiple of 512); nothing is free yet.
    pub fn register_ram(&self, base: u32, map: MapStorage) {
        self.ram.set_map(base, map.into_map());
    }

    /// Adds free RAM. Once all is added, [`Mm::start`] makes the zero page and sets the low-water mark.
    pub fn add_ram(&self, frames: FrameRange) {
        self.ram.add(frames);
    }

    /// Sets the low-water mark (1/256 of RAM, at least 32 frames and at most 2048) and makes the shared zero page.
    ///
    /// # Errors
    /// [`OutOfMemory`] when there is not even a page.
    pub fn start(&self) -> Result<(), OutOfMemory> {
        self.ram.set_low_water((self.ram.stat().managed / 256).clamp(32, 2048));
        self.zero_page.try_call_once(|| self.make_zero(Order::BASE))?;
        Ok(())
    }

    fn make_zero(&self, order: Order) -> Result<FolioRef<M>, OutOfMemory> {
        let folio = self.alloc_folio(Place::RAM, order, Need::User)?;
        M::zero(folio.frame(), order);
        Ok(folio)
    }

    /// The shared zero page: never counted, never migrated, a hole to migration.
    ///
    /// # Panics
    /// Before [`Mm::start`].
    pub(crate) fn zero_page(&self) -> Frame {
        match self.zero_page.get() {
            Some(folio) => folio.frame(),
            None => panic!("memory manager not started"),
        }
    }

    /// The shared 2 MiB zero folio, made at its first use.
    pub(crate) fn zero_folio(&self) -> Result<Frame, OutOfMemory> {
        match self.zero_folio.try_call_once(|| self.make_zero(Order::PMD)) {
            Ok(folio) => Ok(folio.frame()),
            Err(oom) => {
                M::count(Event::AllocFail, 1);
                Err(oom)
            }
        }
    }

    /// The zone of a place.
    #[must_use]
    #[inline(always)]
    pub fn zone(&self, place: Place) -> &Zone<M> {
        match place.device_number() {
            None => &self.ram,
            Some(n) => &self.devices[n].zone,
        }
    }

    /// The zones that have memory: RAM, then the devices by number.
    pub fn zones(&self) -> impl Iterator<Item = &Zone<M>> {
        core::iter::once(&self.ram)
            .chain(self.devices.iter().map(|device| &device.zone))
            .filter(|zone| zone.is_registered())
    }

    /// Folios that exist, the zero page and zero folio not included.
    #[must_use]
    pub fn folios_in_use(&self) -> u32 {
        let zeros = u32::from(self.zero_page.is_completed()) + u32::from(self.zero_folio.is_completed());
        self.folios.live() - zeros
    }

    /// The frames of the shared zero page and of the zero folio, where they exist.
    pub(crate) fn zero_frames(&self) -> [Option<Frame>; 2] {
        [self.zero_page.get().map(|f| f.frame()), self.zero_folio.get().map(|f| f.frame())]
    }
}
