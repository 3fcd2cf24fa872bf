//! The middle phases but for the last: unmap what else maps the folios, allocate and copy.

use crate::counters::Event;
use crate::cursor::Cursor;
use crate::device::CopyOp;
use crate::entry::{Entry, Leaf, SoftKind};
use crate::error::OutOfMemory;
use crate::folio::LockedFolio;
use crate::frames::FrameSource;
use crate::machine::Machine;
use crate::migrate::collect::to_migration;
use crate::migrate::list::List;
use crate::migrate::options::MigrateFlags;
use crate::migrate::unit::{Batch, Dest, PieceChunk, Source, Unit, Units};
use crate::migrate::{Cause, Report, finalize};
use crate::notifier::{NotifyEvent, Owner};
use crate::slab::PoolBox;
use crate::table::TableStash;
use crate::tlb::TlbGather;
use crate::trace::Phase;
use crate::types::{Order, PAGE_SIZE, PMD_SIZE, Place, Vaddr};
use crate::zone::Need;

/// Other mappings, the flush, the pin check.
pub(crate) fn unmap<M: Machine>(batch: &mut Batch<M>) {
    let Batch { to, units, gather, report, shared, options, marks, .. } = batch;
    if *shared {
        units.for_each(|unit| {
            if let Source::Folio(folio) = &unit.source
                && folio.map_count() != 0
            {
                // Who named frames meant all that maps them; who named addresses, only those.
                let owner = if unit.space.is_none() { options.owner } else { None };
                unmap_others(folio, owner, gather);
            }
        });
    }
    marks.mark::<M>(Phase::Unmap);
    if gather.owes() {
        // One round for all; it is the device's at the other end.
        let from = units.first_source().unwrap_or(Place::RAM);
        if let Some(number) = to.device_number().or(from.device_number()) {
            M::mm().device(number).flushed();
        }
    }
    let _flushed = gather.flush();
    units.for_each(|unit| {
        if let Source::Folio(folio) = &unit.source
            && folio.refs() != 1
        // the unit's own; a mapping would hold another
        {
            finalize::fail(unit, Cause::Pinned, report);
        }
    });
    marks.mark::<M>(Phase::Flush);
}

/// Turns what the reverse map still finds into migration entries. A huge mapping of the folio is one entry; a mapping of
/// another shape than the walk expects is left, and the unit fails the pin check. Each mapping is told of by itself: they are of
/// many spaces, and what is told in one must be over before the set's lock is free.
fn unmap_others<M: Machine>(folio: &LockedFolio<M>, owner: Option<Owner>, gather: &mut TlbGather<M>) {
    M::mm().for_each_mapping(folio, &mut |place| {
        let _change = place.space.invalidate(place.range, NotifyEvent::Migrate { owner });
        let mut at = place.range.start;
        while at < place.range.end {
            let next = at.align_down(PMD_SIZE).add(PMD_SIZE).min(place.range.end);
            if let Some(mut cursor) = place.space.cursor(at) {
                let n = unmap_run(&mut cursor, folio, next, gather);
                if n != 0 {
                    folio.maps_to_migs(n);
                    crate::folio::put_many::<M>(folio.folio(), n);
                }
            }
            at = next;
        }
        folio.map_count() != 0
    });
}

fn unmap_run<M: Machine>(
    cursor: &mut Cursor<M>,
    folio: &LockedFolio<M>,
    end: Vaddr,
    gather: &mut TlbGather<M>,
) -> u32 {
    let mut n = 0;
    loop {
        let names = match cursor.entry() {
            Entry::Leaf(Leaf { special: false, frame, .. }) => folio.covers(frame),
            Entry::NonPresent(soft) if soft.kind != SoftKind::Migration => folio.covers(soft.frame),
            _ => false,
        };
        if names {
            to_migration(cursor, folio, &mut Some(&mut *gather));
            n += 1;
        }
        if !cursor.next() || cursor.addr() >= end {
            return n;
        }
    }
}

/// Destinations for every unit, and the data, in lists.
pub(crate) fn copy<M: Machine>(batch: &mut Batch<M>) {
    let (to, need, generation) = (batch.to, batch.need, batch.generation);
    let Batch { units, report, options, marks, .. } = batch;
    let refuse_huge = options.flags.contains(MigrateFlags::REFUSE_HUGE);
    let mut list = List::<M>::new(to, generation, refuse_huge, marks.is_traced());
    let mut pages = FrameSource::new(to, need);
    let n = units.len();
    let mut i = 0;
    units.for_each(|unit| {
        let number = i;
        i += 1;
        let Source::Folio(folio) = &unit.source else {
            return copy_new(unit, number, to, need, &mut list, report);
        };
        let place = if to.is_ram() { folio.place() } else { to };
        // The commonest case, in one piece: a single page to a single page.
        if unit.order == Order::BASE
            && let Ok(frames) = pages.take((n - number) as u32)
        {
            let op = CopyOp::Copy { src: folio.frame(), dst: frames.first(), order: Order::BASE };
            // A unit that is not done with has no destination yet: nothing to drop.
            core::mem::forget(core::mem::replace(&mut unit.dest, Dest::Frames(frames)));
            return list.push(op, number, place);
        }
        if unit.order == Order::BASE && !list.relieve(to) {
            M::count(Event::AllocFail, 1);
            return finalize::fail(unit, Cause::NoMemory, report);
        }
        copy_large(unit, number, place, to, need, &mut list, report);
    });
    if list.gone {
        return other_device(units, report);
    }
    list.run();
    options.flags.set(MigrateFlags::REFUSE_HUGE, list.refuse_huge);
    if list.any_failed {
        let mut i = 0;
        units.for_each(|unit| {
            let failed = list.failed[i / 64] & 1 << (i % 64) != 0;
            i += 1;
            if failed && !matches!(unit.source, Source::Gone) {
                finalize::fail(unit, Cause::CopyFailed, report);
            }
        });
    }
    if list.traced {
        marks.copied::<M>(list.copying);
    }
}

/// The device was taken out since the walk, and its number is another's: all that would go there stays.
#[cold]
#[inline(never)]
fn other_device<M: Machine>(units: &mut Units<M>, report: &mut Report) {
    units.for_each(|unit| {
        if !matches!(unit.source, Source::Gone) {
            finalize::fail(unit, Cause::NoMemory, report);
        }
    });
}

/// A hole gets cleared memory, a shared page a copy.
#[inline(never)]
fn copy_new<M: Machine>(
    unit: &mut Unit<M>,
    number: usize,
    to: Place,
    need: Need,
    list: &mut List<M>,
    report: &mut Report,
) {
    match &unit.source {
        Source::Gone => {}
        Source::Shared(folio) if to.is_ram() => {
            let place = folio.place();
            copy_large(unit, number, place, to, need, list, report);
        }
        _ => copy_large(unit, number, to, to, need, list, report),
    }
}

/// A unit of more than one page, or a hole, or one that is tried again.
fn copy_large<M: Machine>(
    unit: &mut Unit<M>,
    number: usize,
    engine: Place,
    to: Place,
    need: Need,
    list: &mut List<M>,
    report: &mut Report,
) {
    let refused = unit.order == Order::PMD && core::mem::take(&mut list.refuse_huge);
    let largest = if refused { Order::BASE } else { M::mm().policy.max_order() };
    let alloc = || {
        if unit.order > largest {
            alloc_pieces(to, unit.order, largest, need, &unit.source)
        } else {
            alloc_dest(to, unit.order, need, &unit.source)
        }
    };
    let mut dest = alloc();
    while dest.is_err() && list.relieve(to) {
        dest = alloc();
    }
    match dest {
        Ok(dest) => unit.dest = dest,
        Err(OutOfMemory { .. }) => {
            M::count(Event::AllocFail, 1);
            return finalize::fail(unit, Cause::NoMemory, report);
        }
    }
    let mut add = |op: CopyOp| {
        if engine.is_ram() { by_cpu::<M>(&op) } else { list.push(op, number, engine) }
    };
    if let Some(op) = single_op(unit) {
        return add(op);
    }
    let mut at = 0;
    while let Some(op) = piece_op(unit, &mut at) {
        add(op);
    }
}

/// What has both its ends in RAM needs no engine.
fn by_cpu<M: Machine>(op: &CopyOp) {
    match *op {
        CopyOp::Copy { src, dst, order } => M::copy(src, dst, order),
        CopyOp::Zero { dst, order } => M::zero(dst, order),
    }
}

/// The one operation of a unit that arrives as it left.
#[inline(always)]
fn single_op<M: Machine>(unit: &Unit<M>) -> Option<CopyOp> {
    match (&unit.source, &unit.dest) {
        (Source::Folio(src), Dest::Frames(dst)) => {
            Some(CopyOp::Copy { src: src.frame(), dst: dst.first(), order: unit.order })
        }
        (Source::Shared(src), Dest::Folio(dst)) => {
            Some(CopyOp::Copy { src: src.frame(), dst: dst.frame(), order: unit.order })
        }
        (Source::Hole { .. }, Dest::Folio(dst)) => Some(CopyOp::Zero { dst: dst.frame(), order: unit.order }),
        _ => None,
    }
}

/// The operation for the piece at page `at` of a unit in pieces; `at` moves on.
fn piece_op<M: Machine>(unit: &Unit<M>, at: &mut u32) -> Option<CopyOp> {
    let Dest::Pieces(first) = &unit.dest else { return None };
    let mut page = 0;
    let folio = first.iter().find(|folio| {
        let here = page == *at;
        page += folio.order().pages();
        here
    })?;
    let (dst, order, from) = (folio.frame(), folio.order(), *at);
    *at += order.pages();
    match &unit.source {
        Source::Folio(src) | Source::Shared(src) => {
            Some(CopyOp::Copy { src: src.frame().offset(from), dst, order })
        }
        Source::Hole { .. } => Some(CopyOp::Zero { dst, order }),
        Source::Gone => None,
    }
}

/// Memory of `order` (as a folio, for a hole or a copy); or, where there is none free, smaller folios that fill it, and the tables that
/// its PMD entries become.
#[inline(always)]
fn alloc_dest<M: Machine>(
    to: Place,
    order: Order,
    need: Need,
    source: &Source<M>,
) -> Result<Dest<M>, OutOfMemory> {
    let mm = M::mm();
    let whole = if !matches!(source, Source::Folio(_)) {
        mm.alloc_locked_folio(to, order, need).map(Dest::Folio)
    } else {
        mm.alloc_frames(to, order, need).map(Dest::Frames)
    };
    match whole {
        Ok(dest) => Ok(dest),
        Err(oom) if order == Order::BASE => Err(oom),
        Err(_) => alloc_pieces(to, order, Order::new(order.get() - 1), need, source),
    }
}

/// Folios of `largest` at most that fill `order` together.
#[cold]
fn alloc_pieces<M: Machine>(
    to: Place,
    order: Order,
    largest: Order,
    need: Need,
    source: &Source<M>,
) -> Result<Dest<M>, OutOfMemory> {
    let mm = M::mm();
    // Nothing maps the source any more, and migration entries of a PMD table never multiply.
    let entries = match source {
        Source::Folio(folio) => mm.huge_entries(folio),
        _ => u32::from(order == Order::PMD),
    };
    let mut tables = TableStash::new();
    tables.fill(entries, need)?;
    let mut first = PieceChunk::alloc(mm)?;
    match fill_pieces(&mut first, to, order, largest, need) {
        Ok(()) => {
            first.tables = tables;
            Ok(Dest::Pieces(first))
        }
        Err(oom) => {
            first.release();
            Err(oom)
        }
    }
}

fn fill_pieces<M: Machine>(
    first: &mut PoolBox<M, PieceChunk<M>>,
    to: Place,
    order: Order,
    mut largest: Order,
    need: Need,
) -> Result<(), OutOfMemory> {
    let mm = M::mm();
    let mut at = 0;
    while at < order.pages() {
        let want = largest.min(Order::largest(at, order.pages() - at));
        match mm.alloc_locked_folio(to, want, need) {
            Ok(folio) => {
                at += want.pages();
                first.push(folio)?;
            }
            Err(oom) if want == Order::BASE => return Err(oom),
            Err(_) => largest = Order::new(want.get() - 1),
        }
    }
    Ok(())
}

const _: () = assert!(PMD_SIZE / PAGE_SIZE == 512);
