//! Device memory as the memory manager sees it: a zone of frames with an owner and its operations (Linux: `dev_pagemap`).

use core::fmt;
use core::sync::atomic::{
    AtomicU32,
    Ordering::{Acquire, Release},
};

use farpage_lock::StaticRef;
use spin::Once;

use crate::error::{FaultError, RangeError};
use crate::folio::Folio;
use crate::machine::Machine;
use crate::migrate::FaultMigration;
use crate::mm::Mm;
use crate::stats::DeviceCounters;
use crate::types::{Frame, FrameRange, Order, Place};
use crate::zone::{Need, Zone};

/// One copy or clear for a [`CopyEngine`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyOp {
    /// `order.pages()` pages from `src` to `dst`; at least one of them lies on the device.
    Copy {
        /// First frame read.
        src: Frame,
        /// First frame written.
        dst: Frame,
        /// How much.
        order: Order,
    },
    /// Clears device memory.
    Zero {
        /// First frame written.
        dst: Frame,
        /// How much.
        order: Order,
    },
}

/// Most operations in one list given to [`CopyEngine::submit`].
pub const COPY_LIST: usize = 32;

/// A list of copies that was handed to an engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fence {
    /// It is finished; bit n is set when operation n failed.
    Done {
        /// Failed operations.
        failed: u32,
    },
    /// The engine is at work on it.
    Pending(u64),
}

/// Moves data between RAM and device memory. May sleep in [`CopyEngine::wait`]; is called with no lock held but folio
/// locks and the VMA lock.
pub trait CopyEngine: Sync {
    /// Does one operation and waits for it; true when it went well.
    fn run(&self, op: &CopyOp) -> bool {
        match self.submit(core::slice::from_ref(op)) {
            Fence::Done { failed } => failed == 0,
            fence @ Fence::Pending(_) => self.wait(fence) == 0,
        }
    }
    /// Starts the operations (at most [`COPY_LIST`]).
    fn submit(&self, ops: &[CopyOp]) -> Fence;
    /// The failed operations, once the list is finished.
    fn poll(&self, fence: Fence) -> Option<u32>;
    /// Waits until the list is finished; the failed operations.
    fn wait(&self, fence: Fence) -> u32;
    /// Stops what has not started and waits for what has; the failed (or never started) operations. Afterwards the
    /// engine touches none of the list's memory.
    fn cancel(&self, fence: Fence) -> u32;
}

/// What the owner of device memory does. Callbacks marked *atomic* may run under page-table locks and must not sleep.
pub trait PagemapOps<M: Machine>: Sync {
    /// A CPU touched a page of this device. The migration holds the faulting folio, locked, with a migration entry in
    /// its place already, so there is no way to forget that it is locked. Bring it to RAM, or drop the migration to
    /// leave it where it is.
    ///
    /// # Errors
    /// [`FaultError::Oom`] or [`FaultError::Device`]; the fault is then an error for the toucher.
    /// [`FaultError::Held`] likewise, after the fault has looked again for a while.
    fn migrate_to_ram(&self, fault: FaultMigration<M>) -> Result<(), FaultError> {
        fault.back_to_ram()
    }
    /// *Atomic.* `order.pages()` pages from `first` are about to be free: their folio has moved away or is no more. The
    /// driver's word of that folio is passed on (0: it had none); the memory must not be touched after the return.
    fn folio_free(&self, _first: Frame, _order: Order, _driver_word: u64) {}
    /// *Atomic.* A migration with a driver's word ([`crate::MigrateOptions::driver_word`]) has brought `folio` here, which has the
    /// word now; called once for each folio that arrives, before anybody else can lock it. A merge that copies
    /// folios into a new one tells of that one too, before it is mapped.
    ///
    /// Words are counted right by: one more when a folio arrives, one more for each tail of a split, one fewer for the tail of a
    /// merge, one fewer when a folio is freed.
    fn folio_arrived(&self, _folio: &Folio) {}
    /// *Atomic.* `tail` was split off `head` (which is smaller now) and has its driver's word; called once per piece, then once
    /// with no tail.
    fn folio_split(&self, _head: &Folio, _tail: Option<&Folio>) {}
    /// *Atomic.* `tail` is about to become a part of `head`, whose neighbour it is on the device, and ends, with its word and without
    /// [`PagemapOps::folio_free`]. `head` keeps its own word.
    fn folio_merge(&self, _head: &Folio, _tail: &Folio) {}
    /// The engine that copies for this device; asked once, when the device is registered.
    fn engine(&self) -> &dyn CopyEngine;
}

/// Who can reach a device's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// The device alone: entries for it are not present, and a CPU's touch brings the page back.
    Private,
    /// CPUs too: pages are mapped where they lie and move on request only.
    Coherent {
        /// The physical page frame number of the first page, a multiple of 512.
        base_pfn: u32,
    },
}

/// Why a device cannot be taken out: a page on it that stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StillInUse {
    /// Its folio's first frame.
    pub frame: Frame,
    /// References: mappings, and handles somewhere.
    pub refs: u32,
    /// Entries that map it.
    pub maps: u32,
    /// Somebody holds its lock.
    pub locked: bool,
    /// References that are pins.
    pub pins: u32,
}

impl fmt::Display for StillInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frame, refs, maps, locked, pins } = *self;
        write!(f, "{frame} stays: {refs} references, {maps} of them mappings and {pins} pins")?;
        if locked { f.write_str(", and it is locked") } else { Ok(()) }
    }
}

/// How often a teardown evicts what is there: a page may come back from a failed migration in between.
const TEARDOWN_ROUNDS: u32 = 3;

/// Who owns a device's memory, and the engine that it was asked for.
struct OwnerRecord<M: Machine> {
    ops: &'static dyn PagemapOps<M>,
    engine: &'static dyn CopyEngine,
}

/// Owners that a number may have, one after the other: they are read without a lock, so none is ever forgotten.
const OWNERS: usize = 8;

/// A registered device.
pub struct Device<M: Machine> {
    pub(crate) zone: Zone<M>,
    /// The owner of today, who is one of `owners`.
    owner: StaticRef<OwnerRecord<M>>,
    owners: [Once<OwnerRecord<M>>; OWNERS],
    /// How often it was registered: who was on the way to an earlier one's memory is not to get this one's.
    generation: AtomicU32,
    pub(crate) counters: DeviceCounters,
}

impl<M: Machine> Device<M> {
    pub(crate) const fn new(number: usize) -> Self {
        Self {
            zone: Zone::new(Place::device(number)),
            owner: StaticRef::empty(),
            owners: [const { Once::new() }; OWNERS],
            generation: AtomicU32::new(0),
            counters: DeviceCounters::new(),
        }
    }

    /// # Panics
    /// For a device that was never registered.
    #[inline(always)]
    fn owner(&self) -> &'static OwnerRecord<M> {
        match self.owner.get() {
            Some(owner) => owner,
            None => panic!("device without an owner"),
        }
    }

    /// The record of an owner: from before, or a new one while there is room.
    fn record(&'static self, ops: &'static dyn PagemapOps<M>) -> Option<&'static OwnerRecord<M>> {
        // One that is taken for another costs a record; two that are taken for one would be wrong.
        let is_it = |owner: &&OwnerRecord<M>| core::ptr::eq(owner.ops, ops);
        self.owners.iter().find_map(|place| {
            Some(place.call_once(|| OwnerRecord { ops, engine: ops.engine() })).filter(is_it)
        })
    }

    /// # Panics
    /// For a device that was never registered.
    #[inline(always)]
    pub(crate) fn ops(&self) -> &'static dyn PagemapOps<M> {
        self.owner().ops
    }

    /// # Panics
    /// For a device that was never registered.
    #[inline(always)]
    pub(crate) fn engine(&self) -> &'static dyn CopyEngine {
        self.owner().engine
    }

    /// True when it is registered, and of the kind that `place` names.
    pub(crate) fn is_at(&self, place: Place) -> bool {
        self.zone.is_registered() && self.zone.place() == place
    }

    /// Where its memory lies: [`Place::device`] or [`Place::coherent`] of its number.
    #[must_use]
    pub fn place(&self) -> Place {
        self.zone.place()
    }

    /// Free device memory.
    #[must_use]
    pub fn memory(&self) -> crate::zone::ZoneStat {
        self.zone.stat()
    }
}

impl<M: Machine> Mm<M> {
    /// Registers device `number` with `pages` pages of memory, and says what place that is. The map takes 8 bytes of RAM per
    /// page.
    ///
    /// A number that was given back ([`Mm::unregister_device`]) may be taken again, by another owner and as another kind too. Its
    /// map stays the one of the first time, since look-ups without locks may still read that: `map` may then be empty and is not
    /// used. Who wants more memory later gives a larger map at once.
    ///
    /// # Errors
    /// [`RangeError::NoDevice`] when the number is taken or out of range; [`RangeError::Frames`] when coherent memory does not
    /// begin at a 2 MiB boundary, its map reaches beyond the last frame number (16 TiB), or it overlaps other memory that CPUs map;
    /// [`RangeError::NoRoom`] for more pages than the map has room for; [`RangeError::Owners`] for the ninth owner.
    pub fn register_device(
        &self,
        number: usize,
        pages: u32,
        kind: DeviceKind,
        map: crate::mm::MapStorage,
        ops: &'static dyn PagemapOps<M>,
    ) -> Result<Place, RangeError> {
        let device = M::mm().devices.get(number).ok_or(RangeError::NoDevice(number))?;
        if device.zone.is_registered() {
            return Err(RangeError::NoDevice(number));
        }
        let (place, base) = match kind {
            DeviceKind::Private => (Place::device(number), 0),
            DeviceKind::Coherent { base_pfn } => (Place::coherent(number), base_pfn),
        };
        let map = map.into_map();
        let room = device.zone.room().unwrap_or(map.frames());
        // The frames of a zone are all that its map has room for.
        let (Some(end), Some(_)) = (base.checked_add(pages), base.checked_add(room)) else {
            return Err(RangeError::Frames(base));
        };
        if !base.is_multiple_of(Order::PMD.pages()) || place.is_coherent() && self.maps_any_of(base..end) {
            return Err(RangeError::Frames(base));
        }
        if pages > room {
            return Err(RangeError::NoRoom(number, room));
        }
        device.owner.set(device.record(ops).ok_or(RangeError::Owners(number))?);
        device.zone.set_place(place);
        device.zone.set_map(base, map);
        // Before the first frame can be had: who has one sees it.
        device.generation.fetch_add(1, Release);
        device.zone.add(base..end);
        Ok(place)
    }

    /// Takes a device out of the system: nothing is allocated there any more, everything on it moves to RAM, and its number is
    /// free. Nothing is to be done for a number that is not registered. The caller holds no lock.
    ///
    /// # Errors
    /// [`StillInUse`]: a page that cannot go, and why. The device goes on as before, though much of its memory has moved.
    pub fn unregister_device(&self, number: usize) -> Result<(), StillInUse> {
        let Some(device) = self.devices.get(number).filter(|device| device.zone.is_registered()) else {
            return Ok(());
        };
        let (zone, place) = (&device.zone, device.zone.place());
        let low_water = zone.close();
        for _ in 0..TEARDOWN_ROUNDS {
            self.evict_for(place, zone.frames(), Need::Reserve);
            if zone.retire() {
                return Ok(());
            }
        }
        let found = zone.frames().find_map(|frame| self.try_get_folio(Frame::new(place, frame)));
        zone.reopen(low_water);
        Err(match found {
            Some(folio) => StillInUse {
                frame: folio.frame(),
                refs: folio.refs() - 1,
                maps: folio.map_count(),
                locked: folio.is_locked(),
                pins: folio.pins(),
            },
            // Memory that is no folio's yet, or no more: on its way.
            None => StillInUse {
                frame: Frame::new(place, zone.frames().start),
                refs: 0,
                maps: 0,
                locked: false,
                pins: 0,
            },
        })
    }

    /// Which registration the memory at `place` is of; it cannot change while any of that memory is held. Always 0 for RAM.
    pub(crate) fn generation(&self, place: Place) -> u32 {
        place.device_number().map_or(0, |number| self.devices[number].generation.load(Acquire))
    }

    /// True when CPUs map some of these frames already, as RAM or another device's memory.
    fn maps_any_of(&self, frames: FrameRange) -> bool {
        let blocks = || frames.clone().step_by(Order::PMD.pages() as usize);
        self.zones().any(|zone| zone.place().is_mappable() && blocks().any(|pfn| zone.contains(pfn)))
    }

    /// The device of this number.
    ///
    /// # Panics
    /// When the number is not below [`crate::types::MAX_DEVICES`].
    #[must_use]
    #[inline(always)]
    pub fn device(&self, number: usize) -> &Device<M> {
        &self.devices[number]
    }
}
