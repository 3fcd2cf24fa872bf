//! Memory for holes, and copies for those who share a page: what a commit maps at once.
//!
//! A zero page is a mapping that TLBs remember, so it must be flushed before the device's page is in its place. All zero pages of a
//! batch share one flush: each becomes a migration entry that names its new folio (a touch sleeps on that folio, an unmap
//! takes it away, a remap moves it, like any other), then comes the flush, then the entries get their names.

use crate::cursor::{Cursor, Peek};
use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf};
use crate::folio::RmapLink;
use crate::machine::{FlushReason, Machine};
use crate::migrate::finalize;
use crate::migrate::names::{Names, To, fill_pieces_table, name_everywhere, replace_in};
use crate::migrate::options::WRITTEN;
use crate::migrate::unit::{Dest, Source, State, Unit, Units};
use crate::migrate::{Cause, Report};
use crate::notifier::NotifyEvent;
use crate::space::Space;
use crate::table::TableStash;
use crate::tlb::TlbGather;
use crate::types::{Frame, Level, Order, PAGE_SIZE, Prot, VaRange, Vaddr};
use crate::vma::{Vma, VmaIndex, VmaKind};
use crate::zone::Need;

/// The holes of a batch, which are of one space: their addresses, with whatever stands between.
pub(crate) type Holes<M> = Option<(&'static Space<M>, VaRange)>;

/// Notes another hole.
#[inline(never)]
pub(crate) fn join<M: Machine>(holes: &mut Holes<M>, unit: &Unit<M>) {
    let Some(space) = unit.space else { return };
    let range = VaRange::new(unit.addr.0, unit.order.bytes());
    let all =
        holes.map_or(range, |(_, all)| VaRange::between(all.start.min(range.start), all.end.max(range.end)));
    *holes = Some((space, all));
}

/// Fills the holes of a batch, which lie in `range`. Notifiers hear of all of them at once, and the VMA lock is held until the last
/// entry has its name: nothing is unmapped in between.
#[inline(never)]
pub(crate) fn fill<M: Machine>(
    units: &mut Units<M>,
    space: &'static Space<M>,
    range: VaRange,
    report: &mut Report,
) {
    let vmas = space.vmas.read();
    // Not the asker's: since the walk its device may have found the zero page here.
    let _change = space.invalidate(range, NotifyEvent::Migrate { owner: None });
    let mut zeros = TlbGather::new(FlushReason::ZeroReplaced);
    let mut marked = false;
    units.for_each(|unit| {
        let Source::Hole { anon } = unit.source else { return };
        match fill_hole(unit, space, &vmas, anon, &mut zeros) {
            Ok(state) => {
                marked |= state == State::Marked;
                unit.state = state;
            }
            Err(cause) => finalize::fail(unit, cause, report),
        }
    });
    if marked {
        let _flushed = zeros.flush();
        units.for_each(|unit| {
            if unit.state == State::Marked {
                match name_marked(unit) {
                    Ok(state) => unit.state = state,
                    Err(cause) => finalize::fail(unit, cause, report),
                }
            }
        });
    }
}

/// Maps the destination of a hole, if the hole is still one: at once where nothing is there, else as [`State::Marked`].
fn fill_hole<M: Machine>(
    unit: &mut Unit<M>,
    space: &'static Space<M>,
    vmas: &VmaIndex<M>,
    anon: u32,
    gather: &mut TlbGather<M>,
) -> Result<State, Cause> {
    let range = VaRange::new(unit.addr.0, unit.order.bytes());
    // The mapping may be another one than when the hole was found: an object's, even, whose page is no zeros. What it allows is
    // asked now.
    let same = |vma: &&Vma| vma.kind() == VmaKind::Anon && vma.anon() == anon && vma.range().covers(range);
    let vma = vmas.find(unit.addr).filter(same);
    let vma = vma.ok_or(Cause::Raced)?;
    let attrs = vma.fresh_attrs();
    charge(space, &unit.dest)?;
    link_pieces(&unit.dest, RmapLink { anon, index: vma.page_index(unit.addr) });
    if unit.order == Order::PMD {
        fill_huge(unit, space, attrs, gather)
    } else {
        fill_small(unit, space, attrs, gather)
    }
}

/// A hole of one PMD entry.
fn fill_huge<M: Machine>(
    unit: &mut Unit<M>,
    space: &'static Space<M>,
    mut attrs: Attrs,
    gather: &mut TlbGather<M>,
) -> Result<State, Cause> {
    let spare = match &mut unit.dest {
        Dest::Pieces(first) => first.tables.take(unit.addr),
        _ => None,
    };
    let mut cursor = hole_cursor(space, unit.addr, Order::PMD)?;
    let _late;
    match (cursor.entry(), &unit.dest) {
        (Entry::None, _) => {}
        (Entry::Leaf(Leaf { special: true, .. }), Dest::Folio(folio)) => {
            folio.add_migs(1);
            mark(&mut cursor, folio.frame(), attrs, gather);
            return Ok(State::Marked);
        }
        // A table takes its place: not before the 2 MiB translation is gone.
        (Entry::Leaf(leaf @ Leaf { special: true, .. }), _) => {
            attrs = over_zero(attrs, &leaf);
            _late = cursor.clear_leaf().flush_before_make(FlushReason::ZeroReplaced).1;
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
    Ok(State::Committed)
}

/// A hole of PTEs, which lie in one table.
fn fill_small<M: Machine>(
    unit: &Unit<M>,
    space: &'static Space<M>,
    attrs: Attrs,
    gather: &mut TlbGather<M>,
) -> Result<State, Cause> {
    let mut cursor = hole_cursor(space, unit.addr, Order::BASE)?;
    let at = |page: u32| unit.addr.add(u64::from(page) * PAGE_SIZE);
    let mut zeros = false;
    for page in 0..unit.order.pages() {
        match cursor.entry_at(at(page)) {
            Entry::None => {}
            Entry::Leaf(Leaf { special: true, .. }) => zeros = true,
            _ => return Err(Cause::Raced),
        }
    }
    unit.dest.for_each_folio(|folio, first| {
        let pages = folio.order().pages();
        if zeros {
            folio.add_migs(pages);
        } else {
            folio.add_maps(pages);
        }
        for i in 0..pages {
            cursor.seek(at(first + i));
            let frame = folio.frame().offset(i);
            if zeros {
                mark(&mut cursor, frame, attrs, gather);
            } else {
                cursor.install(Entry::mapping(frame, attrs));
            }
        }
    });
    Ok(if zeros { State::Marked } else { State::Committed })
}

/// A migration entry that names the new folio, where nothing is or the zero page.
fn mark<M: Machine>(cursor: &mut Cursor<M>, frame: Frame, attrs: Attrs, gather: &mut TlbGather<M>) {
    if cursor.entry() == Entry::None {
        cursor.install(Entry::NonPresent(SoftLeaf::new(SoftKind::Migration, frame, attrs)));
    } else {
        let soft = |zero: Leaf| SoftLeaf::new(SoftKind::Migration, frame, over_zero(attrs, &zero));
        gather.defer(cursor.leaf_to_soft(soft));
    }
}

/// The attributes of a new page that takes the place of a zero page: one that a tracker has write-protected has not been written.
fn over_zero(attrs: Attrs, zero: &Leaf) -> Attrs {
    if zero.attrs.contains(Attrs::UFFD_WP) { (attrs - Attrs::WRITE) | Attrs::UFFD_WP } else { attrs }
}

/// After the flush: the entries of a marked hole become mappings. An error when all of them were unmapped meanwhile.
fn name_marked<M: Machine>(unit: &Unit<M>) -> Result<State, Cause> {
    let mut mapped = 0;
    unit.dest.for_each_folio(|folio, first| {
        let addr = unit.addr.add(u64::from(first) * PAGE_SIZE);
        let names = Names {
            source: folio,
            from: folio.frame(),
            to: To::Source,
            grant: Attrs::empty(),
            evicted: false,
        };
        name_everywhere(&names, unit.space, addr, &mut TableStash::new());
        mapped += folio.map_count();
    });
    if mapped == 0 { Err(Cause::Raced) } else { Ok(State::Committed) }
}

/// Maps the copy of a shared page where the page was mapped. Entries that have moved since, or were cloned, go back to the page.
pub(crate) fn map_copy<M: Machine>(unit: &mut Unit<M>) -> Result<State, Cause> {
    let Some(space) = unit.space else { return Err(Cause::Raced) };
    let vmas = space.vmas.read();
    let range = VaRange::new(unit.addr.0, unit.order.bytes());
    let link = link_to_write(&vmas, range).ok_or(Cause::Raced)?;
    // Another part of the page may have been moved here meanwhile: then the reverse map would look for the copy beside it.
    if unit.folio().is_none_or(|source| source.link().index != link.index) {
        return Err(Cause::Raced);
    }
    charge(space, &unit.dest)?;
    link_pieces(&unit.dest, link);
    let mut tables = match &mut unit.dest {
        Dest::Pieces(first) => core::mem::replace(&mut first.tables, TableStash::new()),
        _ => TableStash::new(),
    };
    let (Source::Shared(source), dest) = (&unit.source, &unit.dest) else { return Err(Cause::Raced) };
    let to = match dest {
        Dest::Folio(folio) => To::Copy(folio.folio()),
        Dest::Pieces(first) => To::Pieces(first),
        Dest::None | Dest::Frames(_) => return Err(Cause::NoMemory),
    };
    // What became of it here: its entries elsewhere come and go meanwhile, with clones and unmaps.
    let mapped = replace_in(
        space,
        range,
        &Names { source, from: source.frame(), to, grant: WRITTEN, evicted: false },
        &mut tables,
    );
    drop(vmas);
    if mapped != 0 && mapped < range.nr_pages() {
        // The rest was unmapped meanwhile.
        dest.for_each_folio(|folio, _| M::mm().note_partial(folio));
    }
    let names = Names { source, from: source.frame(), to: To::Source, grant: Attrs::empty(), evicted: false };
    name_everywhere(&names, None, unit.addr, &mut TableStash::new());
    if mapped == 0 { Err(Cause::Raced) } else { Ok(State::Committed) }
}

/// Where the reverse map is to find a folio that is mapped in `range`, for writing: one VMA is enough, but it may have been cut (by
/// advice, say), and its parts go on as one.
fn link_to_write<M: Machine>(vmas: &VmaIndex<M>, range: VaRange) -> Option<RmapLink> {
    let mut link: Option<RmapLink> = None;
    let mut at = range.start;
    while at < range.end {
        let vma = vmas.find(at).filter(|vma| vma.prot().contains(Prot::WRITE))?;
        let first = vma.page_index(at).wrapping_sub((at.0 - range.start.0) / PAGE_SIZE);
        let here = RmapLink { anon: vma.anon(), index: first };
        if *link.get_or_insert(here) != here {
            return None;
        }
        at = vma.range().end;
    }
    link
}

/// Charges the new folios to the group of the space that gets them. What was charged before one was refused, its release uncharges.
fn charge<M: Machine>(space: &Space<M>, dest: &Dest<M>) -> Result<(), Cause> {
    let mut allowed = Ok(());
    dest.for_each_folio(|folio, _| {
        if allowed.is_ok() {
            allowed = space.try_charge(folio).map_err(|_| Cause::Limit);
        }
    });
    allowed
}

/// Tells the new folios where the reverse map finds them.
fn link_pieces<M: Machine>(dest: &Dest<M>, link: RmapLink) {
    dest.for_each_folio(|folio, page| {
        folio.set_link(RmapLink { index: link.index + u64::from(page), ..link });
    });
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
