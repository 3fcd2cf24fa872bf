//! Splitting: of a mapping (one PMD entry into 512 PTEs) and of a folio (into smaller folios). Two operations, as in Linux.
//!
//! A mapping's split leaves the folio whole. A folio's split is *non-uniform*: only as far as needed. To cut 2 MiB in the
//! middle takes two folios of order 8; to cut off one page takes at most ten.
//!
//! ```text
//!   cut at page 3 of 16:   |0 1|2|3|4 5 6 7|8 9 10 11 12 13 14 15|
//!                           o1  o0 o0  o2            o3
//! ```
//!
//! Entries name frames, not folios, so a folio split rewrites none. It holds the lock of the table that maps the folio,
//! freezes the reference count, counts the entries of every piece in one pass, and gives each its own counts.

use core::array;

use crate::counters::Event;
use crate::cursor::{Cursor, Peek};
use crate::entry::{Entry, Leaf, SoftKind, SoftLeaf};
use crate::error::OutOfMemory;
use crate::folio::{Folio, FolioRef, LockedFolio, RmapLink};
use crate::machine::{FlushReason, Machine};
use crate::mm::Mm;
use crate::space::Space;
use crate::table::SpareTable;
use crate::types::{Level, Order, PAGE_SIZE, PMD_SIZE, Vaddr};

/// Most pieces that one cut makes of a folio of order 9.
const PIECES: usize = 10;

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

/// Descriptors for the pieces of a cut, taken before anything is changed.
struct Pieces<M: Machine> {
    folios: [Option<&'static Folio>; PIECES],
    machine: core::marker::PhantomData<fn() -> M>,
}

impl<M: Machine> Pieces<M> {
    fn alloc(mm: &Mm<M>, n: usize) -> Result<Self, OutOfMemory> {
        let mut pieces = Self { folios: [None; PIECES], machine: core::marker::PhantomData };
        for folio in &mut pieces.folios[..n] {
            *folio = Some(mm.folios.alloc(mm)?);
        }
        Ok(pieces)
    }
}

impl<M: Machine> Drop for Pieces<M> {
    fn drop(&mut self) {
        for folio in self.folios.iter_mut().filter_map(Option::take) {
            M::mm().folios.free(folio);
        }
    }
}

/// The orders, first page to last, into which a folio of `order` falls when it is cut before page `at`.
fn cut(order: Order, at: u32) -> impl Iterator<Item = (u32, Order)> + Clone {
    let mut page = 0;
    core::iter::from_fn(move || {
        if page >= order.pages() {
            return None;
        }
        // The largest aligned piece from here that the cut does not go through and that is smaller than the whole.
        let mut piece = Order::largest(page, order.pages() - page);
        while piece > Order::BASE && (page < at && at < page + piece.pages() || piece >= order) {
            piece = Order::new(piece.get() - 1);
        }
        let here = page;
        page += piece.pages();
        Some((here, piece))
    })
}

impl<M: Machine> Space<M> {
    /// Splits `folio` so that a border lies before its page `at`, and frees the pieces that nobody maps. `addr` is an
    /// address, in the caller's hands, at which one of its pages is mapped by a PTE.
    ///
    /// False when it cannot be done now: somebody else holds a reference, its entries are not all in one table, or there is
    /// no memory for descriptors. Nothing is changed then.
    pub(crate) fn split_folio(&'static self, folio: &LockedFolio<M>, addr: Vaddr, at: u32) -> bool {
        debug_assert!(at > 0 && at < folio.order().pages(), "a cut goes through a folio");
        let done = self.try_split_folio(folio, addr, at).is_some();
        M::count(if done { Event::ThpSplitPage } else { Event::ThpSplitPageFailed }, 1);
        done
    }

    fn try_split_folio(&'static self, head: &LockedFolio<M>, addr: Vaddr, at: u32) -> Option<()> {
        let mm = M::mm();
        let order = head.order();
        let mut pieces = Pieces::alloc(mm, cut(order, at).count()).ok()?;
        let Peek::Pte(table, _) = self.peek(addr) else { return None };
        // With the table locked nobody can map or unmap it, so the counts are those of this moment.
        let mut cursor = self.cursor_in(table, Level::Pte, addr);
        let (first, maps) = (head.frame(), head.map_count());
        let mut counts = [0_u32; PIECES];
        if head.migration_entries() != 0 || count_entries(&mut cursor, head, at, &mut counts) != maps {
            return None;
        }
        if !head.freeze(maps + 1) {
            return None;
        }
        let link = head.link();
        // The owner of a device hears of the tails one by one, and sees a head that is smaller already.
        let head_order = cut(order, at).next().map_or(order, |(_, o)| o);
        head.set_order(head_order);
        let mut dead: [Option<FolioRef<M>>; PIECES] = array::from_fn(|_| None);
        for (i, (page, piece)) in cut(order, at).enumerate().skip(1) {
            let Some(tail) = pieces.folios[i].take() else { continue };
            let link = RmapLink { index: link.index + u64::from(page), ..link };
            mm.init_folio(tail, first.offset(page), piece, link);
            tail.inherit(head);
            tail.set_maps(counts[i]);
            mm.zone(first.place()).rename(first.offset(page), piece.pages(), tail.slab_index());
            if let Some(device) = first.place().device_number() {
                mm.device(device).ops().folio_split(head, Some(tail));
            }
            tail.unfreeze(counts[i].max(1));
            if counts[i] == 0 {
                dead[i] = Some(FolioRef::from_owned(tail));
            }
        }
        mm.zone(first.place()).rename(first, head_order.pages(), head.slab_index());
        if order == Order::PMD {
            mm.zone(first.place()).block_to_small(first);
        }
        head.set_maps(counts[0]);
        head.unfreeze(counts[0] + 1);
        if let Some(device) = first.place().device_number() {
            mm.device(device).split();
            mm.device(device).ops().folio_split(head, None);
        }
        drop(cursor);
        drop(dead);
        Some(())
    }

    /// After an unmap that ended at `border`: splits the folio mapped at `beside`, just outside, if it reaches over the border.
    pub(crate) fn split_cut_folio(&'static self, border: Vaddr, beside: Vaddr) {
        if border.is_aligned(PMD_SIZE) {
            return;
        }
        let Peek::Pte(table, _) = self.peek(beside) else { return };
        let cursor = self.cursor_in(table, Level::Pte, beside);
        let (Entry::Leaf(Leaf { frame, special: false, .. })
        | Entry::NonPresent(SoftLeaf { kind: SoftKind::DevicePrivate, frame, .. })) = cursor.entry()
        else {
            return;
        };
        let folio = FolioRef::get(M::mm().mapped_folio(frame));
        drop(cursor);
        let page = frame.index() - folio.frame().index();
        let at = if beside < border { page + 1 } else { page };
        if at == 0 || at >= folio.order().pages() {
            return;
        }
        match LockedFolio::try_lock(folio) {
            Ok(folio) => drop(self.split_folio(&folio, beside, at)),
            Err(_busy) => M::count(Event::ThpSplitPageFailed, 1),
        }
    }
}

/// Counts the entries of the cursor's table that name a frame of `folio`, piece by piece; the sum of all.
fn count_entries<M: Machine>(
    cursor: &mut Cursor<M>,
    folio: &Folio,
    at: u32,
    counts: &mut [u32; PIECES],
) -> u32 {
    let (first, order) = (folio.frame(), folio.order());
    let mut ends = [u32::MAX; PIECES];
    for (end, (page, piece)) in ends.iter_mut().zip(cut(order, at)) {
        *end = page + piece.pages();
    }
    cursor.seek(cursor.addr().align_down(PMD_SIZE));
    let (mut all, mut piece, mut last) = (0, 0, 0);
    loop {
        let frame = match cursor.entry() {
            Entry::Leaf(leaf) if !leaf.special => Some(leaf.frame),
            Entry::NonPresent(soft) if soft.kind != SoftKind::Migration => Some(soft.frame),
            _ => None,
        };
        if let Some(frame) = frame.filter(|f| f.is_within(first, order)) {
            let page = frame.index() - first.index();
            if page < last {
                piece = 0; // never in practice: pages of a folio are mapped in order
            }
            while page >= ends[piece] {
                piece += 1;
            }
            last = page;
            counts[piece] += 1;
            all += 1;
        }
        if !cursor.next() {
            return all;
        }
    }
}

const _: () = assert!(PMD_SIZE == 512 * PAGE_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_fills_the_folio_with_aligned_pieces_and_goes_through_none() {
        for n in 1..=9 {
            let order = Order::new(n);
            for at in 1..order.pages() {
                let pieces: Vec<_> = cut(order, at).collect();
                let mut end = 0;
                for &(page, piece) in &pieces {
                    assert_eq!(page, end, "no gap and no overlap: order {n} at {at}");
                    assert_eq!(page % piece.pages(), 0, "aligned: order {n} at {at}");
                    assert!(piece < order, "smaller than the whole: order {n} at {at}");
                    end = page + piece.pages();
                    assert!(end <= at || at <= page, "the cut goes through a piece: order {n} at {at}");
                }
                assert_eq!(end, order.pages());
                assert!(pieces.len() <= PIECES && pieces.len() <= usize::from(n) + 1, "order {n} at {at}");
            }
        }
    }

    #[test]
    fn a_cut_splits_no_further_than_it_must() {
        let orders = |order, at| cut(Order::new(order), at).map(|(_, o)| o.get()).collect::<Vec<_>>();
        assert_eq!(orders(9, 256), [8, 8]);
        assert_eq!(orders(4, 3), [1, 0, 0, 2, 3]);
        assert_eq!(orders(9, 1), [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(orders(9, 511), [8, 7, 6, 5, 4, 3, 2, 1, 0, 0]);
        assert_eq!(orders(1, 1), [0, 0]);
    }
}
