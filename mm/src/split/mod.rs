//! Splitting: of a mapping (one PMD entry into 512 PTEs) and of a folio (into smaller folios). Two operations, as in Linux.
//!
//! A mapping's split leaves the folio whole ([`mapping`]). A folio's split is *non-uniform*: only as far as needed. To cut
//! 2 MiB in the middle takes two folios of order 8; to cut off one page takes at most ten.
//!
//! ```text
//!   cut at page 3 of 16:   |0 1|2|3|4 5 6 7|8 9 10 11 12 13 14 15|
//!                           o1  o0 o0  o2            o3
//! ```
//!
//! Entries name frames, not folios, so a folio split rewrites none. What it must know is how many entries every piece has,
//! and for that nobody may map or unmap it meanwhile. Where all entries are in one table, that table's lock sees to it
//! ([`folio`]). Where they are in several tables or spaces, every entry becomes a migration entry first ([`general`]).

mod deferred;
mod folio;
mod general;
mod mapping;

use core::marker::PhantomData;

use crate::error::OutOfMemory;
use crate::folio::{Folio, LockedFolio, RmapLink};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::types::{Order, PAGE_SIZE, PMD_SIZE};

pub(crate) use deferred::Deferred;
pub(crate) use mapping::{split_pmd, split_pmd_at, split_pmd_without};

/// Why a folio was not split. Nothing was changed but that huge mappings of it may be tables now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SplitError {
    /// Somebody else holds a reference, or it was mapped again and again meanwhile.
    Busy,
    /// No memory for descriptors or tables.
    Oom,
}

impl From<OutOfMemory> for SplitError {
    fn from(_: OutOfMemory) -> Self {
        Self::Oom
    }
}

/// Most pieces that one cut makes of a folio of order 9.
const PIECES: usize = 10;

/// A cut, and descriptors for its pieces, taken before anything is changed.
struct Pieces<M: Machine> {
    /// First page and order of each, the first `len` of them.
    cut: [(u32, Order); PIECES],
    len: usize,
    folios: [Option<&'static Folio>; PIECES],
    machine: PhantomData<fn() -> M>,
}

impl<M: Machine> Pieces<M> {
    /// For a cut of a folio of `order` before page `at`; the first piece is the folio itself.
    #[inline(always)]
    fn alloc(mm: &Mm<M>, order: Order, at: u32) -> Result<Self, OutOfMemory> {
        let mut pieces =
            Self { cut: [(0, order); PIECES], len: 0, folios: [None; PIECES], machine: PhantomData };
        for (to, piece) in pieces.cut.iter_mut().zip(cut(order, at)) {
            *to = piece;
            pieces.len += 1;
        }
        for folio in &mut pieces.folios[1..pieces.len] {
            *folio = Some(mm.folios.alloc(mm)?);
        }
        Ok(pieces)
    }

    /// First page and order of each.
    fn cut(&self) -> &[(u32, Order)] {
        &self.cut[..self.len]
    }
}

impl<M: Machine> Drop for Pieces<M> {
    fn drop(&mut self) {
        for folio in self.folios.iter_mut().filter_map(Option::take) {
            M::mm().folios.free(folio);
        }
    }
}

/// Splits the metadata of a folio whose references are frozen. `publish(i, tail)` is called for piece `i` when it has
/// everything but counts, and sets them and unfreezes it; it is born locked. The head is left frozen, at its new order.
///
/// A piece that `is_dead` is freed right after: only its first slot in the frame map is written, which the buddy looks at.
/// No entry names its frames, and a look-up by frame checks what the slot leads to.
fn divide<M: Machine>(
    head: &LockedFolio<M>,
    pieces: &mut Pieces<M>,
    is_dead: impl Fn(usize) -> bool,
    mut publish: impl FnMut(usize, &'static Folio),
) {
    let mm = M::mm();
    let (first, order, link) = (head.frame(), head.order(), head.link());
    let zone = mm.zone(first.place());
    let owner = first.place().device_number().map(|n| mm.device(n));
    // The owner of a device hears of the tails one by one, and sees a head that is smaller already.
    let head_order = pieces.cut[0].1;
    head.set_order(head_order);
    for i in 1..pieces.len {
        let (page, piece) = pieces.cut[i];
        let Some(tail) = pieces.folios[i].take() else { continue };
        mm.init_folio(
            tail,
            first.offset(page),
            piece,
            RmapLink { index: link.index + u64::from(page), ..link },
        );
        tail.inherit(head);
        tail.set_driver_word(head.driver_word());
        tail.lock_new();
        let named = if is_dead(i) { 1 } else { piece.pages() };
        zone.rename(first.offset(page), named, tail.slab_index());
        if let Some(owner) = owner {
            owner.ops().folio_split(head, Some(tail));
        }
        publish(i, tail);
    }
    zone.rename(first, if is_dead(0) { 1 } else { head_order.pages() }, head.slab_index());
    if order == Order::PMD {
        zone.block_to_small(first);
    }
    if let Some(owner) = owner {
        owner.split();
        owner.ops().folio_split(head, None);
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
