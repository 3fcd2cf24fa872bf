//! Last phase, and its mirror image: entries get a name again, the destination's or, where a unit failed, the source's.

use crate::counters::Event;
use crate::device::{Device, PagemapOps};
use crate::entry::Attrs;
use crate::folio::{Folio, FolioRef, LockedFolio};
use crate::frames::{FrameBin, Frames};
use crate::machine::Machine;
use crate::migrate::names::{Names, To, name_everywhere};
use crate::migrate::options::{UnitReport, Verdict};
use crate::migrate::unit::{Batch, Dest, Source, State, Unit};
use crate::migrate::{Cause, Report};
use crate::space::Space;
use crate::stats::{batch_fault, batch_moved, batch_stayed, stayed_on};
use crate::table::TableStash;
use crate::trace::{BatchFacts, Marks, Outcome, UnitFacts, unit_stayed};
use crate::types::{Frame, Level, Order, PAGE_SIZE, PMD_SIZE, Place, Vaddr};

/// Gives every migration entry of the unit's source a name: at the place where it was found, then wherever the reverse map
/// leads. Afterwards no migration entry names the source.
#[inline(always)]
fn replace_all<M: Machine>(unit: &mut Unit<M>) {
    let mut tables = match &mut unit.dest {
        Dest::Pieces(first) => core::mem::replace(&mut first.tables, TableStash::new()),
        _ => TableStash::new(),
    };
    let Some(source) = unit.folio() else { return };
    if matches!(unit.source, Source::Shared(_)) && unit.is_committed() {
        return; // its entries name the copy
    }
    let (from, to) = match &unit.dest {
        Dest::Frames(old) if unit.is_committed() => (old.first(), To::Source),
        Dest::Pieces(first) => (source.frame(), To::Pieces(first)),
        _ => (source.frame(), To::Source),
    };
    // A unit that was found by its frames has no space of its own.
    let evicted = unit.is_committed() && unit.space.is_none();
    let names = Names { source, from, to, grant: Attrs::empty(), evicted };
    name_everywhere(&names, unit.space, unit.addr, &mut tables);
}

/// Puts a unit back that cannot go, and notes why.
#[cold]
pub(crate) fn fail<M: Machine>(unit: &mut Unit<M>, cause: Cause, report: &mut Report) {
    report.fail(cause, unit.order.pages());
    if let Some(folio) = unit.folio() {
        stayed_on::<M>(folio.place(), cause, unit.order.pages());
    }
    M::count(Event::MigrateFail, 1);
    unit.dest.release();
    replace_all(unit);
    unit_stayed::<M>(&facts(unit), Outcome::of_unit(Verdict::Stayed(cause)));
    unit.note = 0;
    release_source(unit);
    unit.state = State::Ended(Verdict::Stayed(cause));
}

/// What a record says of a unit.
#[cold]
fn facts<M: Machine>(unit: &Unit<M>) -> UnitFacts {
    let lay = |folio: &LockedFolio<M>| folio.frame();
    let (from, to) = match (&unit.source, &unit.dest) {
        (Source::Folio(folio), Dest::Frames(old)) if unit.is_committed() => (old.first(), lay(folio)),
        (source, dest) => {
            let mut to = None;
            dest.for_each_folio(|folio, page| to = if page == 0 { Some(lay(folio)) } else { to });
            let from = match source {
                Source::Folio(folio) | Source::Shared(folio) => Some(lay(folio)),
                Source::Hole { .. } | Source::Gone => None,
            };
            let to = to.or(from).unwrap_or(Frame::ram(0));
            (from.unwrap_or(Frame::ram(0)), to)
        }
    };
    UnitFacts { taken: unit.note, addr: unit.addr, order: unit.order, from: from.place(), to }
}

/// What a record says of a batch, but for how many units moved.
#[cold]
fn batch_facts<M: Machine>(batch: &mut Batch<M>) -> BatchFacts {
    let (to, fault) = (batch.to, batch.fault);
    let none =
        UnitFacts { taken: 0, addr: Vaddr(0), order: Order::BASE, from: Place::RAM, to: Frame::new(to, 0) };
    let first = if batch.units.len() == 0 { none } else { facts(batch.units.get_mut(0)) };
    let UnitFacts { addr, order, from, to: first, .. } = first;
    BatchFacts { fault, addr, order, from, to, first, units: 0 }
}

/// Unlocks the folio of a unit that is done with.
fn release_source<M: Machine>(unit: &mut Unit<M>) {
    if let Source::Folio(folio) | Source::Shared(folio) = core::mem::replace(&mut unit.source, Source::Gone) {
        drop(folio.unlock());
    }
}

/// A migration was dropped: every folio goes back to where it lay. A hole that commit has filled stays filled; nobody can tell
/// it from one that a touch filled.
#[cold]
pub(crate) fn put_back<M: Machine>(batch: &mut Batch<M>) {
    batch.gather.flush();
    let space = batch.space();
    if batch.marks.is_traced() {
        let facts = batch_facts(batch);
        batch.marks.end::<M>(Outcome::PutBack, &facts);
    }
    let Batch { units, to, report, options, .. } = batch;
    let mut unused = Report::default();
    let mut ending = Ending::new(*to, options.driver_word);
    units.for_each(|unit| {
        unit.note = 0;
        if matches!(unit.source, Source::Gone) {
            return;
        }
        move_back(unit);
        if !unit.is_committed() {
            unit.dest.release();
        }
        replace_all(unit);
        if unit.is_committed() {
            ending.mark(unit);
            finish::<M, false>(unit, &mut unused, &mut ending, &Marks::NONE);
        } else {
            release_source(unit);
        }
    });
    ending.count(space, &unused);
    drop(ending);
    batch_stayed(*to, space, report);
    units.clear();
}

/// Undoes the commit of a unit: the folio goes back to where it lay, and what it moved to is the destination again. A folio that
/// somebody has got a reference to since then stays where it is now, and so does a hole that was filled.
fn move_back<M: Machine>(unit: &mut Unit<M>) {
    if !unit.is_committed() {
        return;
    }
    let Source::Folio(folio) = &unit.source else { return };
    match &mut unit.dest {
        Dest::Frames(frames) if folio.freeze(1) => {
            frames.replace(|old| folio.relocate(M::mm().zone(old.first().place()), unit.order, old));
            folio.unfreeze(1);
            unit.state = State::Taken;
        }
        // Nothing maps the pieces yet, and nobody knows them.
        Dest::Pieces(_) => unit.state = State::Taken,
        _ => {}
    }
}

/// What is added up while units end.
struct Ending<M: Machine> {
    to: Place,
    /// For the driver at the destination; 0 for nothing.
    word: u64,
    /// What the folios left behind, given back range by range.
    bin: FrameBin<M>,
    /// Units and pages that did not come from anywhere: holes that were filled, and copies.
    new: (u64, u64),
    /// Units and pages that came from another device.
    between: (u64, u64),
    /// The device that the last folio came from, and single pages that have left it since it was told.
    from: Option<Leaving<M>>,
}

/// A device that folios leave: what is asked of it for each is looked up once.
struct Leaving<M: Machine> {
    place: Place,
    device: &'static Device<M>,
    ops: &'static dyn PagemapOps<M>,
    singles: u64,
}

impl<M: Machine> Ending<M> {
    const fn new(to: Place, driver_word: u64) -> Self {
        let word = if to.is_ram() { 0 } else { driver_word };
        Self { to, word, bin: FrameBin::new(), new: (0, 0), between: (0, 0), from: None }
    }

    /// Gives the folios of a committed unit the driver's word, while they are locked. One that comes from another device has that
    /// one's word until it has left there.
    #[cold]
    fn mark(&self, unit: &Unit<M>) {
        if self.word == 0 || !unit.is_committed() {
            return;
        }
        match (&unit.source, &unit.dest) {
            (Source::Folio(folio), Dest::Frames(old)) if old.first().place().is_ram() => {
                note_arrived::<M>(folio, self.word);
            }
            (_, dest) => dest.for_each_folio(|folio, _| note_arrived::<M>(folio, self.word)),
        }
    }

    /// Counts what arrived, and what left a device; which device it was is counted folio by folio.
    #[inline(always)]
    fn count(&mut self, space: Option<&Space<M>>, report: &Report) {
        self.told();
        let Some(number) = self.to.device_number() else {
            let (units, pages) = (report.units - self.new.0, report.pages - self.new.1);
            count_out::<M>(units, pages);
            return batch_moved(self.to, space, pages);
        };
        M::mm().device(number).arrived(report.units, report.pages);
        M::count(Event::DeviceIn, report.units);
        M::count(Event::DevicePagesIn, report.pages);
        batch_moved(self.to, space, report.pages);
        if self.between.0 != 0 {
            count_out::<M>(self.between.0, self.between.1);
        }
    }

    /// Notes that a folio of `order` has left `from`.
    #[inline(always)]
    fn left(&mut self, from: Place, order: Order) {
        if from.is_ram() {
            return;
        }
        let leaving = match &mut self.from {
            Some(leaving) if leaving.place == from => leaving,
            _ => return self.left_another(from, order),
        };
        if order == Order::BASE {
            leaving.singles += 1;
        } else {
            leaving.device.left(order, 1);
        }
        if !self.to.is_ram() {
            self.between = (self.between.0 + 1, self.between.1 + u64::from(order.pages()));
        }
    }

    /// The first folio from a device.
    #[inline(never)]
    fn left_another(&mut self, from: Place, order: Order) {
        self.told();
        let Some(number) = from.device_number() else { return };
        let device = M::mm().device(number);
        self.from = Some(Leaving { place: from, device, ops: device.ops(), singles: 0 });
        self.left(from, order);
    }

    /// Tells the device that pages come from of those that it does not know of.
    fn told(&mut self) {
        if let Some(leaving) = &mut self.from {
            leaving.device.left(Order::BASE, core::mem::take(&mut leaving.singles));
        }
    }

    /// Tells the driver where `old` lies, which was noted as left, that the folio has no claim to it any more.
    #[inline(always)]
    fn tell_left(&self, folio: &Folio, old: &Frames<M>) {
        if let Some(leaving) = &self.from {
            leaving.ops.folio_free(old.first(), old.order(), folio.take_driver_word());
        }
    }
}

/// Counts folios that left a device.
#[inline(always)]
fn count_out<M: Machine>(units: u64, pages: u64) {
    M::count(Event::DeviceOut, units);
    M::count(Event::DevicePagesOut, pages);
}

/// The end of a migration that was committed: entries first, then locks and sources. Then `observer` hears of every unit.
#[inline]
pub(crate) fn finalize<M: Machine>(
    batch: &mut Batch<M>,
    observer: Option<&mut dyn FnMut(&UnitReport)>,
) -> Report {
    if batch.marks.is_traced() {
        return finalize_traced(batch, observer);
    }
    end_units::<M, false>(batch, observer)
}

/// As [`finalize`], and tells of it. A fault's own record tells of its unit.
#[cold]
#[inline(never)]
fn finalize_traced<M: Machine>(
    batch: &mut Batch<M>,
    observer: Option<&mut dyn FnMut(&UnitReport)>,
) -> Report {
    let facts = batch_facts(batch);
    let report = if facts.fault == Vaddr(0) {
        end_units::<M, true>(batch, observer)
    } else {
        end_units::<M, false>(batch, observer)
    };
    batch.marks.end::<M>(Outcome::of(report.units != 0), &BatchFacts { units: report.units as u32, ..facts });
    report
}

#[inline(always)]
fn end_units<M: Machine, const TRACED: bool>(
    batch: &mut Batch<M>,
    observer: Option<&mut dyn FnMut(&UnitReport)>,
) -> Report {
    let (space, fault_of) = (batch.space(), batch.fault_of());
    let Batch { units, report, gather, to, options, marks, observed, .. } = batch;
    let mut ending = Ending::new(*to, options.driver_word);
    if ending.word != 0 {
        units.for_each(|unit| ending.mark(unit));
    }
    let mut arrived = 0;
    units.for_each_slice(|units| {
        let mut i = 0;
        while i < units.len() {
            let units = &mut units[i..];
            // A body for each direction: most of what differs between entries is known there.
            let (named, finished) = if ending.to.is_ram() {
                name_run::<M, true, TRACED>(units, report, &mut ending, marks)
            } else {
                name_run::<M, false, TRACED>(units, report, &mut ending, marks)
            };
            i += named;
            arrived += finished;
        }
    });
    if arrived != units.len() {
        units.for_each(|unit| finish::<M, TRACED>(unit, report, &mut ending, marks));
    }
    ending.count(space, report);
    drop(ending);
    if let Some(device) = fault_of {
        batch_fault(space, device);
    }
    gather.flush();
    batch_stayed(*to, space, report);
    if let Some(observer) = observer {
        units.for_each(|unit| observer(&unit.report()));
    }
    if *observed {
        units.for_each(|unit| unit.note = 0);
    }
    units.clear();
    *report
}

/// Replaces the migration entries of the first unit and of as many after it as lie in the same table: they share one hold of
/// its lock. Those that one entry maps are finished there and then. How many units have names, and how many are finished.
#[inline(never)]
fn name_run<M: Machine, const TO_RAM: bool, const TRACED: bool>(
    units: &mut [Unit<M>],
    report: &mut Report,
    ending: &mut Ending<M>,
    marks: &Marks,
) -> (usize, usize) {
    let Some(Unit { space: Some(space), addr, source: Source::Folio(source), dest: Dest::Frames(_), .. }) =
        units.first()
    else {
        if let Some(unit) = units.first_mut() {
            replace_all(unit);
        }
        return (1, 0);
    };
    if source.migration_entries() == 0 {
        return (1, 0); // all unmapped meanwhile
    }
    let mut done = 0;
    let space: &'static Space<M> = space;
    let to = if TO_RAM { Place::RAM } else { ending.to };
    if let Some(mut cursor) = space.walk(*addr) {
        let order = cursor.level().order();
        let pages_each = order.pages();
        let small = cursor.level() == Level::Pte;
        for unit in &mut *units {
            let (Source::Folio(source), Dest::Frames(old)) = (&unit.source, &unit.dest) else { break };
            let here = unit.order == order && unit.space.is_some_and(|s| core::ptr::eq(s, space));
            let here = here && if small { cursor.seek_pte(unit.addr) } else { cursor.seek(unit.addr) };
            debug_assert_eq!(source.place(), to);
            if !here || !cursor.name_migration(old.first(), Frame::new(to, source.frame().index())) {
                break;
            }
            // The table's lock is held until the folio is unlocked, so the mapping cannot go before the handle is given up.
            if !source.last_mig_to_map() {
                break;
            }
            // Both are taken over; what stands in the unit afterwards has nothing to drop.
            let (source, old) = (source.take_over(), old.take_over());
            core::mem::forget(core::mem::replace(&mut unit.source, Source::Gone));
            core::mem::forget(core::mem::replace(&mut unit.dest, Dest::None));
            let places = if TRACED { Some((old.first().place(), source.frame())) } else { None };
            arrive(source, old, order, to, ending).into_owned();
            if let Some((from, to)) = places {
                let taken = core::mem::take(&mut unit.note);
                let facts = UnitFacts { taken, addr: unit.addr, order, from, to };
                marks.unit_arrived::<M>(&facts, Outcome::Moved);
            }
            done += 1;
        }
        let pages = done as u64 * u64::from(pages_each);
        report.units += done as u64;
        report.pages += pages;
        if order == Order::PMD {
            report.huge_pages += pages;
        }
    }
    if done == 0 {
        // Elsewhere, or in several places.
        if let Some(unit) = units.first_mut() {
            replace_all(unit);
        }
        return (1, 0);
    }
    (done, done)
}

/// A folio whose entries have their names is where it was to go: what it left behind is free, and its lock too.
#[inline(always)]
fn arrive<M: Machine>(
    folio: LockedFolio<M>,
    old: Frames<M>,
    order: Order,
    to: Place,
    ending: &mut Ending<M>,
) -> FolioRef<M> {
    if to.is_ram() {
        folio.clear_resident();
    } else {
        folio.set_resident();
    }
    if !old.first().place().is_ram() {
        ending.left(old.first().place(), order);
        ending.tell_left(&folio, &old);
        if !to.is_ram() && ending.word != 0 {
            note_arrived::<M>(&folio, ending.word);
        }
    }
    ending.bin.add(old, order.pages());
    folio.unlock()
}

/// One unit whose entries have their names: locks, then what the folio left behind.
#[inline(always)]
fn finish<M: Machine, const TRACED: bool>(
    unit: &mut Unit<M>,
    report: &mut Report,
    ending: &mut Ending<M>,
    marks: &Marks,
) {
    let pages = u64::from(unit.order.pages());
    let recorded = (TRACED && unit.note != 0).then(|| facts(unit));
    let torn = matches!(unit.dest, Dest::Pieces(_));
    let verdict = match core::mem::replace(&mut unit.source, Source::Gone) {
        Source::Gone => return,
        Source::Folio(folio) => {
            match core::mem::replace(&mut unit.dest, Dest::None) {
                Dest::Frames(old) => drop(arrive(folio, old, unit.order, ending.to, ending)),
                pieces => {
                    hand_over(&folio, &pieces);
                    ending.left(folio.place(), folio.order());
                    folio.clear_resident();
                    unit.dest = pieces;
                    drop(folio.unlock());
                }
            }
            if torn { Verdict::InPieces } else { Verdict::Moved }
        }
        Source::Hole { .. } => {
            report.holes += pages;
            ending.new = (ending.new.0 + 1, ending.new.1 + pages);
            Verdict::Filled
        }
        Source::Shared(folio) => {
            report.copied += pages;
            ending.new = (ending.new.0 + 1, ending.new.1 + pages);
            drop(folio.unlock());
            Verdict::Copied
        }
    };
    unit.state = State::Ended(verdict);
    report.units += 1;
    report.pages += pages;
    if unit.order == Order::PMD && !torn {
        report.huge_pages += pages;
    }
    if !matches!(unit.dest, Dest::None) {
        finish_dest(&mut unit.dest);
    }
    if torn {
        report.torn += pages;
        M::count(Event::MigrateSplit, 1);
    }
    if let Some(facts) = recorded {
        unit.note = 0;
        marks.unit_arrived::<M>(&facts, Outcome::of_unit(verdict));
    }
}

/// What a folio was charged becomes the charge of the pieces in which it arrived. They are mapped in part where it was: its entries
/// have their names, so that nobody notes that of it any more.
#[cold]
fn hand_over<M: Machine>(from: &Folio, to: &Dest<M>) {
    let group = from.take_group();
    if group != 0 {
        to.for_each_folio(|piece, _| piece.set_group(group));
    }
    if from.is_partial() {
        to.for_each_folio(|piece, _| M::mm().note_partial(piece));
    }
}

/// Folios that are new: counted in and unlocked.
#[cold]
fn finish_dest<M: Machine>(dest: &mut Dest<M>) {
    match dest {
        Dest::None | Dest::Frames(_) => {}
        Dest::Folio(folio) => note_resident(folio),
        Dest::Pieces(first) => first.iter().for_each(|folio| note_resident(folio)),
    }
    dest.release();
}

/// Gives a folio that has come to a device the word of its driver there, which hears of it.
#[cold]
pub(crate) fn note_arrived<M: Machine>(folio: &Folio, word: u64) {
    folio.set_driver_word(word);
    if let Some(number) = folio.place().device_number() {
        M::mm().device(number).ops().folio_arrived(folio);
    }
}

/// Marks a folio that arrived on a device as counted in; one that left as counted out.
#[inline(always)]
pub(crate) fn note_resident(folio: &Folio) {
    if folio.place().is_ram() {
        folio.clear_resident();
    } else {
        folio.set_resident();
    }
}

const _: () = assert!(PMD_SIZE == 512 * PAGE_SIZE);
