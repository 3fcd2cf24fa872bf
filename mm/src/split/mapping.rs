//! A huge mapping becomes a table of 512 entries for the same folio.

use core::ops::Range;

use crate::counters::Event;
use crate::cursor::Cursor;
use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf};
use crate::folio::LockedFolio;
use crate::machine::{FlushReason, Machine};
use crate::notifier::NotifyEvent;
use crate::space::Space;
use crate::split::folio::mapped_frame;
use crate::table::SpareTable;
use crate::tlb::TlbGather;
use crate::trace::{Kind, Step};
use crate::types::{Level, PMD_SIZE, VaRange, Vaddr};

/// Splits the huge mapping over `addr` into 512 PTEs of the same folio, in the table given. Does nothing where the entry is
/// no huge mapping (any more). Cannot fail.
pub(crate) fn split_pmd<M: Machine>(space: &'static Space<M>, addr: Vaddr, spare: SpareTable<M>) {
    split_pmd_without(space, addr, spare, 0..0);
}

/// As [`split_pmd`], but the pages `dead` are not mapped any more, as if they were unmapped right after. True when there was
/// something to split.
pub(crate) fn split_pmd_without<M: Machine>(
    space: &'static Space<M>,
    addr: Vaddr,
    spare: SpareTable<M>,
    dead: Range<u32>,
) -> bool {
    let Some(pmd) = space.pmd_table(addr) else { return false };
    let mut cursor = space.cursor_in(pmd, Level::Pmd, addr);
    let done = split_recorded(&mut cursor, spare, dead.clone());
    if done && !dead.is_empty() {
        M::count(Event::PgUnmapped, u64::from(dead.end - dead.start));
    }
    done
}

/// As [`split_pmd`], with the PMD table locked already.
pub(crate) fn split_pmd_at<M: Machine>(cursor: &mut Cursor<M>, spare: SpareTable<M>) {
    split_recorded(cursor, spare, 0..0);
}

/// [`split_at`], as a step of a trace.
fn split_recorded<M: Machine>(cursor: &mut Cursor<M>, spare: SpareTable<M>, dead: Range<u32>) -> bool {
    let (step, addr) = (Step::begin::<M>(), cursor.addr());
    let frame = if step.is_taken() { mapped_frame(cursor.entry()) } else { None };
    let done = split_at(cursor, spare, dead);
    if let Some(frame) = frame {
        step.end::<M>(Kind::SplitMapping, done, addr, Level::Pmd.order(), frame.place(), frame);
    }
    done
}

/// True when there was something to split.
fn split_at<M: Machine>(cursor: &mut Cursor<M>, mut spare: SpareTable<M>, dead: Range<u32>) -> bool {
    let mm = M::mm();
    let left = 512 - (dead.end - dead.start);
    match cursor.entry() {
        Entry::Leaf(leaf) => {
            // The zero folio gives way to zero pages: to whoever has a copy, other frames.
            let range = VaRange::new(cursor.addr().0, PMD_SIZE);
            let _change = leaf.special.then(|| cursor.space().invalidate(range, NotifyEvent::Clear));
            // Break before make: a 2 MiB and a 4 KiB translation of one address must never live side by side (AMD
            // erratum 383), so the entry goes, its translations go, and only then the table is hooked in.
            let (leaf, _late) = cursor.clear_leaf().flush_before_make(FlushReason::Split);
            let zero = mm.zero_page();
            fill(&mut spare, dead, |i| {
                let frame = if leaf.special { zero } else { leaf.frame.offset(i) };
                Entry::Leaf(Leaf { frame, ..leaf })
            });
            if !leaf.special {
                let folio = mm.mapped_folio(leaf.frame);
                folio.add_maps(left - 1);
                if leaf.attrs.contains(Attrs::DIRTY) {
                    folio.set_dirty();
                }
            }
            cursor.hook(spare);
        }
        Entry::NonPresent(soft) => {
            if !dead.is_empty() {
                TlbGather::settle(None, cursor.space());
            }
            fill(&mut spare, dead, |i| Entry::NonPresent(SoftLeaf { frame: soft.frame.offset(i), ..soft }));
            let folio = mm.mapped_folio(soft.frame);
            match soft.kind {
                SoftKind::Migration => folio.add_migs(left - 1),
                _ => folio.add_maps(left - 1),
            }
            cursor.hook_over_soft(spare);
        }
        Entry::None | Entry::Table(_) => return false,
    }
    M::count(Event::ThpSplitPmd, 1);
    true
}

/// Fills a table with what `make` says of every page that is not dead: before those, and after.
fn fill<M: Machine>(spare: &mut SpareTable<M>, dead: Range<u32>, make: impl Fn(u32) -> Entry) {
    for (from, to) in [(0, dead.start), (dead.end, 512)] {
        if from < to {
            spare.fill_run(from, to - from, make(from));
        }
    }
}

/// A huge mapping of `folio` becomes a table of 512 *migration* entries. The flush that a present one owes joins the gather:
/// nothing of 4 KiB can be in a TLB before the entries get their names, which is after it.
pub(super) fn split_pmd_to_migration<M: Machine>(
    cursor: &mut Cursor<M>,
    folio: &LockedFolio<M>,
    mut spare: SpareTable<M>,
    gather: &mut TlbGather<M>,
) {
    crate::migrate::to_migration(cursor, folio, &mut Some(gather));
    let Entry::NonPresent(soft) = cursor.entry() else { unreachable!("a migration entry was put there") };
    spare.fill_run(0, 512, Entry::NonPresent(soft));
    cursor.hook_over_soft(spare);
    folio.add_migs(511);
    M::count(Event::ThpSplitPmd, 1);
}
