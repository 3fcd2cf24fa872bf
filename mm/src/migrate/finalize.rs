//! Last phase, and its mirror image: entries get a name again, the destination's or, where a unit failed, the source's.

use core::sync::atomic::Ordering::Relaxed;

use crate::counters::Event;
use crate::cursor::{Cursor, Peek};
use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf};
use crate::folio::{Folio, FolioRef, LockedFolio, RmapLink};
use crate::frames::{FrameBin, Frames};
use crate::machine::{FlushReason, Machine};
use crate::migrate::unit::{Batch, Dest, PieceChunk, Source, Unit};
use crate::migrate::{Cause, Report};
use crate::notifier::NotifyEvent;
use crate::space::Space;
use crate::stats::{batch_fault, batch_moved, batch_stayed, stayed_on};
use crate::table::{SpareTable, TableStash};
use crate::types::{Frame, Level, Order, PAGE_SIZE, PMD_SIZE, Place, VaRange, Vaddr};
use crate::zone::Need;

/// How migration entries get their names.
struct Names<'a, M: Machine> {
    /// The folio that the entries belong to (its migration entries count down).
    source: &'a LockedFolio<M>,
    /// The first frame that the entries name: where the source lies, or lay before the commit.
    from: Frame,
    to: To<'a, M>,
}

/// The owner of the pages from now on.
#[derive(Clone, Copy)]
enum To<'a, M: Machine> {
    /// The source itself, where it lies now.
    Source,
    /// The pieces.
    Pieces(&'a PieceChunk<M>),
}

impl<M: Machine> Names<'_, M> {
    /// The page of the unit that a migration entry for `frame` stands for.
    #[inline(always)]
    fn page(&self, frame: Frame) -> Option<u32> {
        if frame.is_within(self.from, self.source.order()) {
            Some(frame.index() - self.from.index())
        } else {
            None
        }
    }

    /// The folio that `page` belongs to, and that folio's first page in the unit.
    fn folio(&self, page: u32) -> (&'static Folio, u32) {
        let To::Pieces(first) = self.to else { return (self.source.folio(), 0) };
        let mut at = 0;
        for folio in first.iter() {
            let pages = folio.order().pages();
            if page < at + pages {
                return (folio.folio(), at);
            }
            at += pages;
        }
        unreachable!("the pieces fill the unit")
    }
}

/// Replaces the source's migration entries from the cursor to `end`, in its table. How many there were.
fn replace_run<M: Machine>(
    cursor: &mut Cursor<M>,
    names: &Names<'_, M>,
    tables: &mut TableStash<M>,
    end: Vaddr,
) -> u32 {
    let (mut n, mut of_folio) = (0, 0);
    let mut current: Option<(&'static Folio, u32)> = None;
    loop {
        if let Entry::NonPresent(SoftLeaf { kind: SoftKind::Migration, frame, attrs }) = cursor.entry()
            && let Some(page) = names.page(frame)
        {
            if cursor.level() == Level::Pmd && matches!(names.to, To::Pieces(_)) {
                replace_by_table(cursor, names, tables, attrs);
                return 1;
            }
            let (folio, start) = match current {
                Some((folio, start)) if page.wrapping_sub(start) < folio.order().pages() => (folio, start),
                _ => {
                    if let Some((folio, _)) = current {
                        folio.add_maps(of_folio);
                    }
                    of_folio = 0;
                    let next = names.folio(page);
                    current = Some(next);
                    next
                }
            };
            cursor.replace_soft(Entry::mapping(folio.frame().offset(page - start), attrs));
            n += 1;
            of_folio += 1;
        }
        if !cursor.next() || cursor.addr() >= end {
            break;
        }
    }
    if let Some((folio, _)) = current {
        folio.add_maps(of_folio);
    }
    n
}

/// A PMD entry whose unit arrived in pieces becomes a table of 512 entries.
#[cold]
fn replace_by_table<M: Machine>(
    cursor: &mut Cursor<M>,
    names: &Names<'_, M>,
    tables: &mut TableStash<M>,
    attrs: Attrs,
) {
    let Some(mut spare) = tables.take(cursor.addr()) else {
        unreachable!("a table was set aside for each of the unit's PMD entries, and those never multiply");
    };
    if let To::Pieces(pieces) = names.to {
        fill_pieces_table(&mut spare, pieces, attrs);
    }
    cursor.hook_over_soft(spare);
}

/// Fills a table with entries for the pieces of a destination and counts them as mappings.
fn fill_pieces_table<M: Machine>(spare: &mut SpareTable<M>, first: &PieceChunk<M>, attrs: Attrs) {
    let words = spare.table().words();
    let mut at = 0;
    for folio in first.iter() {
        for i in 0..folio.order().pages() {
            let entry = Entry::mapping(folio.frame().offset(i), attrs);
            words[at].store(entry.encode(Level::Pte), Relaxed);
            at += 1;
        }
        folio.add_maps(folio.order().pages());
    }
    spare.set_live(at as u32);
}

/// Gives every migration entry of the unit's source a name: at the place where it was found, then wherever the reverse map
/// leads. Afterwards no migration entry names the source.
#[inline(always)]
fn replace_all<M: Machine>(unit: &mut Unit<M>) {
    let Source::Folio(source) = &unit.source else { return };
    let mut tables = match &mut unit.dest {
        Dest::Pieces(first) => core::mem::replace(&mut first.tables, TableStash::new()),
        _ => TableStash::new(),
    };
    let (from, to) = match &unit.dest {
        Dest::Frames(old) if unit.committed => (old.first(), To::Source),
        Dest::Pieces(first) => (source.frame(), To::Pieces(first)),
        _ => (source.frame(), To::Source),
    };
    let names = Names { source, from, to };
    // Without entries to name, there is nothing to look for.
    if let Some(space) = unit.space.filter(|_| source.migration_entries() != 0) {
        let range = VaRange::new(unit.addr.0, source.order().bytes());
        replace_in(space, range, &names, &mut tables);
    }
    if source.migration_entries() != 0 {
        // A unit that was found by its frames moves because of an eviction: each space hears of its own pages.
        let evicted = unit.committed && unit.space.is_none();
        replace_elsewhere(&names, &mut tables, &mut |space, pages| {
            if evicted {
                space.counters.evicted(pages);
            }
        });
    }
    // Its frames are free in a moment: an entry that still names them would be a way into somebody else's memory.
    assert_eq!(source.migration_entries(), 0, "a migration entry was lost");
}

/// The entries moved (a remap), or there are more than one. `note` hears how many pages got a name in which space.
#[cold]
fn replace_elsewhere<M: Machine>(
    names: &Names<'_, M>,
    tables: &mut TableStash<M>,
    note: &mut dyn FnMut(&Space<M>, u64),
) {
    M::mm().for_each_mapping(names.source, &mut |place| {
        note(place.space, replace_in(place.space, place.range, names, tables));
        names.source.migration_entries() != 0
    });
}

/// Replaces the source's migration entries in `range` of `space`; how many pages they were for.
#[inline(always)]
fn replace_in<M: Machine>(
    space: &'static Space<M>,
    range: VaRange,
    names: &Names<'_, M>,
    tables: &mut TableStash<M>,
) -> u64 {
    let mut pages = 0;
    let mut at = range.start;
    while at < range.end {
        let next = at.align_down(PMD_SIZE).add(PMD_SIZE).min(range.end);
        if let Some(mut cursor) = space.walk(at) {
            let n = replace_run(&mut cursor, names, tables, next);
            if n != 0 {
                names.source.remove_migs(n);
                pages += u64::from(n) * u64::from(cursor.level().order().pages());
            }
        }
        at = next;
    }
    pages
}

/// Puts a unit back that cannot go, and notes why.
#[cold]
pub(crate) fn fail<M: Machine>(unit: &mut Unit<M>, cause: Cause, report: &mut Report) {
    report.fail(cause, unit.order.pages());
    if let Source::Folio(folio) = &unit.source {
        stayed_on::<M>(folio.place(), cause, unit.order.pages());
    }
    M::count(Event::MigrateFail, 1);
    unit.dest.release();
    replace_all(unit);
    if let Source::Folio(folio) = core::mem::replace(&mut unit.source, Source::Gone) {
        drop(folio.unlock());
    }
}

/// A migration was dropped: every folio goes back to where it lay. A hole that commit has filled stays filled; nobody can tell
/// it from one that a touch filled.
#[cold]
pub(crate) fn put_back<M: Machine>(batch: &mut Batch<M>) {
    batch.gather.flush();
    let space = batch.space();
    let Batch { units, to, report, .. } = batch;
    let mut unused = Report::default();
    let mut bin = FrameBin::new();
    units.for_each(|unit| {
        if matches!(unit.source, Source::Gone) {
            return;
        }
        move_back(unit);
        if !unit.committed {
            unit.dest.release();
        }
        replace_all(unit);
        if unit.committed {
            finish(unit, *to, &mut unused, &mut bin);
        } else if let Source::Folio(folio) = core::mem::replace(&mut unit.source, Source::Gone) {
            drop(folio.unlock());
        }
    });
    drop(bin);
    count_moved(*to, space, unused.units, unused.pages);
    batch_stayed(*to, space, report);
    units.clear();
}

/// Undoes the commit of a unit: the folio goes back to where it lay, and what it moved to is the destination again. A folio that
/// somebody has got a reference to since then stays where it is now, and so does a hole that was filled.
fn move_back<M: Machine>(unit: &mut Unit<M>) {
    if !unit.committed {
        return;
    }
    let Source::Folio(folio) = &unit.source else { return };
    match &mut unit.dest {
        Dest::Frames(frames) if folio.freeze(1) => {
            frames.replace(|old| folio.relocate(M::mm().zone(old.first().place()), unit.order, old));
            folio.unfreeze(1);
            unit.committed = false;
        }
        // Nothing maps the pieces yet, and nobody knows them.
        Dest::Pieces(_) => unit.committed = false,
        _ => {}
    }
}

/// Maps the destination of a hole, if the hole is still one.
pub(crate) fn fill_hole<M: Machine>(unit: &mut Unit<M>, to: Place) -> Result<(), Cause> {
    let (&Source::Hole { anon }, Some(space)) = (&unit.source, unit.space) else { return Ok(()) };
    let vmas = space.vmas.read();
    let range = VaRange::new(unit.addr.0, unit.order.bytes());
    let vma = vmas.find(unit.addr).filter(|vma| vma.anon() == anon && vma.range().covers(range));
    // What it allows is asked now: the mapping may be another one than when the hole was found.
    let vma = vma.ok_or(Cause::Raced)?;
    let link = RmapLink { anon, index: vma.page_index(unit.addr) };
    let mut attrs = vma.fresh_attrs();
    name_pieces(&unit.dest, link);
    let spare = match (&mut unit.dest, unit.order) {
        (Dest::Pieces(first), Order::PMD) => first.tables.take(unit.addr),
        _ => None,
    };
    let _change = space.invalidate(range, NotifyEvent::Migrate(to));
    let mut cursor = hole_cursor(space, unit.addr, unit.order)?;
    match cursor.entry() {
        Entry::None => {}
        Entry::Leaf(Leaf { special: true, attrs: of_zero, .. }) => {
            if of_zero.contains(Attrs::UFFD_WP) {
                attrs = attrs - Attrs::WRITE | Attrs::UFFD_WP; // nobody has written it
            }
            // The CPU reads zeros through this entry: they must be out of every TLB before the device's page is there.
            cursor.clear_leaf().flush(FlushReason::ZeroReplaced);
        }
        _ => return Err(Cause::Raced),
    }
    match (&unit.dest, spare) {
        (Dest::Folio(folio), _) => {
            folio.add_maps(1);
            cursor.install(Entry::mapping(folio.frame(), attrs));
        }
        (Dest::Pieces(first), Some(mut spare)) => {
            fill_pieces_table(&mut spare, first, attrs);
            cursor.hook(spare);
        }
        _ => return Err(Cause::NoMemory),
    }
    unit.committed = true;
    Ok(())
}

fn name_pieces<M: Machine>(dest: &Dest<M>, link: RmapLink) {
    match dest {
        Dest::None | Dest::Frames(_) => {}
        Dest::Folio(folio) => folio.set_link(link),
        Dest::Pieces(first) => {
            let mut page = 0;
            for folio in first.iter() {
                folio.set_link(RmapLink { index: link.index + u64::from(page), ..link });
                page += u64::from(folio.order().pages()) as u32;
            }
        }
    }
}

/// The place for a hole's entry: in the PMD table for 2 MiB, in a PTE table (made if need be) for 4 KiB.
fn hole_cursor<M: Machine>(space: &'static Space<M>, addr: Vaddr, order: Order) -> Result<Cursor<M>, Cause> {
    let no_memory = |_| Cause::NoMemory;
    if let Peek::Pte(table, _) = space.peek(addr) {
        return if order == Order::BASE {
            Ok(space.cursor_in(table, Level::Pte, addr))
        } else {
            Err(Cause::Raced)
        };
    }
    let pmd = space.pmd_table_or_alloc(addr, Need::User).map_err(no_memory)?;
    if order == Order::PMD {
        return Ok(space.cursor_in(pmd, Level::Pmd, addr));
    }
    let spare = M::mm().spare_pte_table(addr, Need::User).map_err(no_memory)?;
    let mut cursor = space.cursor_in(pmd, Level::Pmd, addr);
    let table = match cursor.entry() {
        Entry::None => {
            let table = spare.table();
            cursor.hook(spare);
            table
        }
        Entry::Table(pfn) => M::mm().table(pfn),
        Entry::Leaf(_) | Entry::NonPresent(_) => return Err(Cause::Raced),
    };
    drop(cursor);
    Ok(space.cursor_in(table, Level::Pte, addr))
}

/// The end of a migration that was committed: entries first, then locks and sources.
pub(crate) fn finalize<M: Machine>(batch: &mut Batch<M>) -> Report {
    let to = batch.to;
    let (space, fault_of) = (batch.space(), batch.fault_of());
    let Batch { units, report, gather, .. } = batch;
    let before = (report.units, report.pages);
    let mut bin = FrameBin::new();
    let mut arrived = 0;
    units.for_each_slice(|units| {
        let mut i = 0;
        while i < units.len() {
            let (named, finished) = name_run(&mut units[i..], to, report, &mut bin);
            i += named;
            arrived += finished;
        }
    });
    if arrived != units.len() {
        units.for_each(|unit| finish(unit, to, report, &mut bin));
    }
    drop(bin);
    if let Some(device) = fault_of {
        batch_fault(device);
    }
    units.clear();
    gather.flush();
    count_moved(to, space, report.units - before.0, report.pages - before.1);
    batch_stayed(to, space, report);
    *report
}

/// Counts what arrived in `to`. What left a device is counted there folio by folio.
#[inline(always)]
pub(crate) fn count_moved<M: Machine>(to: Place, space: Option<&Space<M>>, units: u64, pages: u64) {
    let (folios, moved) = match to.device_number() {
        None => (Event::DeviceOut, Event::DevicePagesOut),
        Some(number) => {
            M::mm().device(number).arrived(units, pages);
            (Event::DeviceIn, Event::DevicePagesIn)
        }
    };
    M::count(folios, units);
    M::count(moved, pages);
    batch_moved(to, space, pages);
}

/// Replaces the migration entries of the first unit and of as many after it as lie in the same table: they share one hold of
/// its lock. Those that one entry maps are finished there and then. How many units have names, and how many are finished.
#[inline(always)]
fn name_run<M: Machine>(
    units: &mut [Unit<M>],
    to: Place,
    report: &mut Report,
    bin: &mut FrameBin<M>,
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
    if let Some(mut cursor) = space.walk(*addr) {
        let order = cursor.level().order();
        let pages_each = order.pages();
        let small = cursor.level() == Level::Pte;
        for unit in &mut *units {
            let (Source::Folio(source), Dest::Frames(old)) = (&unit.source, &unit.dest) else { break };
            let here = unit.order == order && unit.space.is_some_and(|s| core::ptr::eq(s, space));
            let here = here && if small { cursor.seek_pte(unit.addr) } else { cursor.seek(unit.addr) };
            if !here || !cursor.name_migration(old.first(), source.frame()) {
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
            arrive(source, old, pages_each, to, bin).into_owned();
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
    pages: u32,
    to: Place,
    bin: &mut FrameBin<M>,
) -> FolioRef<M> {
    if to.is_ram() {
        folio.clear_resident();
        if let Some(number) = old.first().place().device_number() {
            M::mm().device(number).left(old.order());
        }
        folio.tell_left(&old);
    } else {
        folio.set_resident();
    }
    bin.add(old, pages);
    folio.unlock()
}

/// One unit whose entries have their names: locks, then what the folio left behind.
#[inline(always)]
fn finish<M: Machine>(unit: &mut Unit<M>, to: Place, report: &mut Report, bin: &mut FrameBin<M>) {
    let pages = u64::from(unit.order.pages());
    unit.committed = false;
    match core::mem::replace(&mut unit.source, Source::Gone) {
        Source::Gone => return,
        Source::Folio(folio) => {
            match core::mem::replace(&mut unit.dest, Dest::None) {
                Dest::Frames(old) => {
                    drop(arrive(folio, old, unit.order.pages(), to, bin));
                    report.units += 1;
                    report.pages += pages;
                    if unit.order == Order::PMD {
                        report.huge_pages += pages;
                    }
                    return;
                }
                pieces => {
                    if let Some(number) = folio.place().device_number() {
                        M::mm().device(number).left(folio.order());
                    }
                    folio.clear_resident();
                    unit.dest = pieces;
                }
            }
            drop(folio.unlock());
        }
        Source::Hole { .. } => report.holes += pages,
    }
    report.units += 1;
    report.pages += pages;
    let torn = matches!(unit.dest, Dest::Pieces(_));
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

/// Marks a folio that arrived on a device as counted in; one that left as counted out.
#[inline(always)]
pub(crate) fn note_resident(folio: &Folio) {
    if folio.place().is_ram() {
        folio.clear_resident();
    } else {
        folio.set_resident();
    }
}

/// Puts the folio of a fault back under its migration entries, which are at `addr` or where the reverse map finds them.
#[cold]
pub(crate) fn put_back_source<M: Machine>(source: &LockedFolio<M>, space: &'static Space<M>, addr: Vaddr) {
    let names = Names { source, from: source.frame(), to: To::Source };
    replace_in(space, VaRange::new(addr.0, source.order().bytes()), &names, &mut TableStash::new());
    if source.migration_entries() != 0 {
        replace_elsewhere(&names, &mut TableStash::new(), &mut |_, _| {});
    }
}

/// Names the migration entries of `source` that the reverse map finds and that name `from`, where it lay.
#[cold]
pub(crate) fn rename_elsewhere<M: Machine>(source: &LockedFolio<M>, from: Frame) {
    replace_elsewhere(&Names { source, from, to: To::Source }, &mut TableStash::new(), &mut |_, _| {});
    assert_eq!(source.migration_entries(), 0, "a migration entry was lost");
}

const _: () = assert!(PMD_SIZE == 512 * PAGE_SIZE);
