//! Eviction: device memory is emptied by where it lies, with no address space and no VMA lock.
//!
//! A folio is found by its frames, locked (tried, never waited for), and its mappings by the reverse map; from there on it is
//! a migration like any other. It works where no 2 MiB frame of RAM is free too: the folio then arrives in pieces, with a table
//! for each of its PMD mappings.

use crate::counters::Event;
use crate::folio::{Folio, LockedFolio};
use crate::machine::Machine;
use crate::migrate::{Cause, Collecting, Migration, Report};
use crate::mm::Mm;
use crate::notifier::Owner;
use crate::trace::{Kind, Step};
use crate::types::{Frame, FrameRange, Order, Place, Vaddr};
use crate::zone::Need;

/// How often folios that could not be had are tried again.
const TRIES: u32 = 3;

impl<M: Machine> Mm<M> {
    /// Moves everything in the frames `range` of `place`, the memory of a device, to RAM. A folio that reaches over an end of
    /// the range goes as a whole. May sleep in the copy engine; the caller holds no lock.
    ///
    /// Folios that are locked or referenced are tried a few times; what stays is in the report, with causes: a folio that
    /// nobody maps but somebody holds is [`Cause::Pinned`].
    pub fn evict_range(&self, place: Place, range: FrameRange) -> Report {
        self.evict_for(place, range, Need::User)
    }

    pub(crate) fn evict_for(&self, place: Place, range: FrameRange, need: Need) -> Report {
        // Dead parts need not be copied.
        self.split_deferred(place);
        let zone = self.zone(place).frames();
        let range = range.start.max(zone.start)..range.end.min(zone.end);
        let frames = || range.clone().map(|index| Frame::new(place, index)).enumerate();
        self.evict(&frames, &|_, _| false, need)
    }

    /// As [`Mm::evict_range`], for the folios of scattered frames, of any devices. Frames of RAM and free ones are passed over, and a
    /// folio counts once however many of its frames there are. Quickest for frames in ascending order.
    pub fn evict_frames(&self, frames: &[Frame]) -> Report {
        let sorted = frames.is_sorted_by_key(|frame| frame.raw());
        // In order, the frames of a folio stand beside each other.
        let seen = |i, folio: &Folio| !sorted && frames[..i].iter().any(|&frame| folio.covers(frame));
        let on_devices = || frames.iter().copied().enumerate().filter(|(_, frame)| !frame.place().is_ram());
        self.evict(&on_devices, &seen, Need::User)
    }

    /// Frames come with their numbers in the list; `seen` says whether a folio had its turn before that.
    fn evict<I: Iterator<Item = (usize, Frame)>>(
        &self,
        frames: &impl Fn() -> I,
        seen: &dyn Fn(usize, &Folio) -> bool,
        need: Need,
    ) -> Report {
        let (mut report, step) = (Report::default(), Step::begin::<M>());
        for _ in 0..TRIES {
            // What failed counts once: as it failed last.
            report.failed = [0; Cause::COUNT];
            evict_once::<M>(frames(), seen, need, &mut report);
            if report.failed[Cause::Busy as usize] + report.failed[Cause::Pinned as usize] == 0 {
                break;
            }
        }
        M::count(Event::DeviceEvict, report.pages);
        let from = frames().next().map_or(Place::RAM, |(_, frame)| frame.place());
        let done = report.failed_pages() == 0;
        step.end::<M>(Kind::Evict, done, Vaddr(0), Order::BASE, from, Frame::ram(report.pages as u32));
        report
    }
}

/// Tries every folio once, in batches.
fn evict_once<M: Machine>(
    frames: impl Iterator<Item = (usize, Frame)>,
    seen: &dyn Fn(usize, &Folio) -> bool,
    need: Need,
    report: &mut Report,
) {
    let mut frames = frames.peekable();
    while frames.peek().is_some() {
        let Ok(mut batch) = Migration::begin(Place::RAM, need) else {
            return report.fail(Cause::NoMemory, pages_left::<M>(frames, seen));
        };
        let place = fill::<M>(&mut batch, &mut frames, seen, report);
        let done = batch.collected(Vaddr(0)).unmap().copy().commit().finalize();
        if let Some(number) = place.and_then(Place::device_number) {
            M::mm().device(number).evicted(done.pages);
        }
        report.add(&done);
    }
}

/// The pages of the folios in a list.
fn pages_left<M: Machine>(
    frames: impl Iterator<Item = (usize, Frame)>,
    seen: &dyn Fn(usize, &Folio) -> bool,
) -> u32 {
    let mut last = (Frame::ram(0), Order::BASE);
    let new = frames.filter_map(|(number, frame)| {
        if frame.is_within(last.0, last.1) {
            return None;
        }
        let folio = M::mm().try_get_folio(frame)?;
        last = (folio.frame(), folio.order());
        if seen(number, &folio) { None } else { Some(last.1.pages()) }
    });
    new.sum()
}

/// Locks folios of one place, which is returned, until the batch is full. At least one frame is worked off.
fn fill<M: Machine>(
    batch: &mut Collecting<M>,
    frames: &mut core::iter::Peekable<impl Iterator<Item = (usize, Frame)>>,
    seen: &dyn Fn(usize, &Folio) -> bool,
    report: &mut Report,
) -> Option<Place> {
    let mut last = (Frame::ram(0), Order::BASE);
    let mut of = None;
    while let Some(&(number, frame)) = frames.peek() {
        if frame.is_within(last.0, last.1) && last.0.place() == frame.place() {
            frames.next();
            continue; // of the folio before
        }
        if batch.is_full() || of.is_some_and(|place| place != frame.place()) {
            return of;
        }
        if of.is_none() {
            of = Some(frame.place());
            batch.name_owner(Owner::device(frame.place()));
        }
        let room = batch.reserve();
        if !room && !batch.is_empty() {
            // Those go first; then there is room again, perhaps.
            return of;
        }
        frames.next();
        let Some(folio) = M::mm().try_get_folio(frame) else {
            // Free, or held with its references frozen, for a merge: then it is there, and stays for now.
            if let Some(held) = frozen_folio::<M>(frame).filter(|held| !seen(number, held)) {
                last = (held.frame(), held.order());
                report.fail(Cause::Busy, held.order().pages());
            }
            continue;
        };
        last = (folio.frame(), folio.order());
        if seen(number, &folio) {
            continue;
        }
        if !room {
            report.fail(Cause::NoMemory, folio.order().pages());
            continue;
        }
        match LockedFolio::try_lock(folio) {
            // Somebody has freed it just now, all but this handle.
            Ok(locked) if locked.refs() == 1 => drop(locked),
            Ok(locked) => batch.push_found(locked),
            Err(busy) => report.fail(Cause::Busy, busy.order().pages()),
        }
    }
    of
}

/// The folio that owns `frame` and that somebody holds locked, with its references frozen.
fn frozen_folio<M: Machine>(frame: Frame) -> Option<&'static Folio> {
    let mm = M::mm();
    let zone = mm.zone(frame.place());
    if !zone.contains(frame.index()) {
        return None;
    }
    let folio = mm.folios.get(zone.folio_index(frame.index())?);
    if folio.covers(frame) && folio.is_locked() { Some(folio) } else { None }
}
