//! A huge mapping becomes a table of 512 entries for the same folio.

use crate::counters::Event;
use crate::cursor::Cursor;
use crate::entry::{Entry, Leaf, SoftKind, SoftLeaf};
use crate::folio::LockedFolio;
use crate::machine::{FlushReason, Machine};
use crate::space::Space;
use crate::table::SpareTable;
use crate::tlb::TlbGather;
use crate::types::{Level, Vaddr};

/// Splits the huge mapping over `addr` into 512 PTEs of the same folio, in the table given. Does nothing where the entry is
/// no huge mapping (any more). Cannot fail.
pub(crate) fn split_pmd<M: Machine>(space: &'static Space<M>, addr: Vaddr, spare: SpareTable<M>) {
    let Some(pmd) = space.pmd_table(addr) else { return };
    let mut cursor = space.cursor_in(pmd, Level::Pmd, addr);
    split_pmd_at(&mut cursor, spare);
}

/// As [`split_pmd`], with the PMD table locked already.
pub(crate) fn split_pmd_at<M: Machine>(cursor: &mut Cursor<M>, mut spare: SpareTable<M>) {
    let mm = M::mm();
    match cursor.entry() {
        Entry::Leaf(_) => {
            // Break before make: a 2 MiB and a 4 KiB translation of one address must never live side by side (AMD
            // erratum 383), so the entry goes, its translations go, and only then the table is hooked in.
            let leaf = cursor.clear_leaf().flush(FlushReason::Split);
            let zero = mm.zero_page();
            spare.fill(|i| {
                let frame = if leaf.special { zero } else { leaf.frame.offset(i) };
                Entry::Leaf(Leaf { frame, ..leaf })
            });
            if !leaf.special {
                mm.mapped_folio(leaf.frame).add_maps(511);
            }
            cursor.hook(spare);
        }
        Entry::NonPresent(soft) => {
            spare.fill(|i| Entry::NonPresent(SoftLeaf { frame: soft.frame.offset(i), ..soft }));
            let folio = mm.mapped_folio(soft.frame);
            match soft.kind {
                SoftKind::Migration => folio.add_migs(511),
                _ => folio.add_maps(511),
            }
            cursor.hook_over_soft(spare);
        }
        Entry::None | Entry::Table(_) => return,
    }
    M::count(Event::ThpSplitPmd, 1);
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
    spare.fill(|i| Entry::NonPresent(SoftLeaf { frame: soft.frame.offset(i), ..soft }));
    cursor.hook_over_soft(spare);
    folio.add_migs(511);
    M::count(Event::ThpSplitPmd, 1);
}
