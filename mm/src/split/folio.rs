//! A folio is split: the short way, when all its entries are in one table, and the choice between that and the general one.

use core::array;

use crate::counters::Event;
use crate::cursor::{Cursor, Peek};
use crate::entry::{Entry, Leaf, SoftKind, SoftLeaf, word};
use crate::folio::{Folio, FolioRef, LockedFolio};
use crate::machine::Machine;
use crate::space::Space;
use crate::split::{PIECES, Pieces, SplitError, divide, general};
use crate::trace::{Kind, Step};
use crate::types::{Frame, Level, Order, PAGE_SIZE, PMD_SIZE, PTRS, USER_END, Vaddr};

impl<M: Machine> Space<M> {
    /// Splits `folio` so that a border lies before its page `at`, and frees the pieces that nobody maps. `addr` is an
    /// address, in the caller's hands, at which one of its pages is mapped. The caller holds no table.
    ///
    /// # Errors
    /// [`SplitError`]. Contents, counts and permissions are as before then.
    pub(crate) fn split_folio(
        &'static self,
        folio: &LockedFolio<M>,
        addr: Vaddr,
        at: u32,
    ) -> Result<(), SplitError> {
        debug_assert!(at > 0 && at < folio.order().pages(), "a cut goes through a folio");
        let (step, order, head) = (Step::begin::<M>(), folio.order(), folio.frame());
        let done = self.try_split_folio(folio, addr, at);
        step.end::<M>(Kind::Split, done.is_ok(), addr, order, head.place(), head);
        M::count(if done.is_ok() { Event::ThpSplitPage } else { Event::ThpSplitPageFailed }, 1);
        if done.is_ok() {
            self.counters.split();
        }
        done
    }

    #[inline(never)]
    fn try_split_folio(&'static self, head: &LockedFolio<M>, addr: Vaddr, at: u32) -> Result<(), SplitError> {
        let mut pieces = Pieces::alloc(M::mm(), head.order(), at)?;
        if let Peek::Pte(table, _) = self.peek(addr) {
            let mut cursor = self.cursor_in(table, Level::Pte, addr);
            // With the table locked nobody can map or unmap what it maps, so the counts are those of this moment.
            let mut counts = [0; PIECES];
            if head.migration_entries() == 0
                && (count_side(&cursor, head, at, &pieces, &mut counts)
                    || count_entries(&mut cursor, head, &pieces, &mut counts) == head.map_count())
            {
                return split_here(head, &mut pieces, &counts);
            }
        }
        general::split(head, pieces)
    }
}

/// Splits a folio all of whose entries are in a table that the caller has locked: `counts` of them for each piece.
fn split_here<M: Machine>(
    head: &LockedFolio<M>,
    pieces: &mut Pieces<M>,
    counts: &[u32; PIECES],
) -> Result<(), SplitError> {
    if !head.freeze(counts.iter().sum::<u32>() + 1) {
        return Err(SplitError::Busy);
    }
    let mut dead: [Option<FolioRef<M>>; PIECES] = array::from_fn(|_| None);
    divide(
        head,
        pieces,
        |i| counts[i] == 0,
        |i, tail| {
            tail.set_maps(counts[i]);
            tail.unfreeze(counts[i].max(1));
            let tail = LockedFolio::born(FolioRef::from_owned(tail)).unlock();
            if counts[i] == 0 {
                dead[i] = Some(tail);
            } else {
                tail.into_owned(); // the mappings'
            }
        },
    );
    head.set_maps(counts[0]);
    head.unfreeze(counts[0] + 1);
    Ok(())
}

impl<M: Machine> Space<M> {
    /// After an unmap that ended at `border`: splits the folio mapped at `beside`, just outside, if it reaches over the
    /// border. Where that cannot be done now the folio is noted, to be split later. A multiple of 2 MiB is a border like any
    /// other: a folio that was moved may lie across it, in two tables.
    pub(crate) fn split_cut_folio(&'static self, border: Vaddr, beside: Vaddr) {
        // Beside the first page and the last one there is nothing of this space.
        if beside.0 >= USER_END {
            return;
        }
        let Peek::Pte(table, _) = self.peek(beside) else { return };
        let cursor = self.cursor_in(table, Level::Pte, beside);
        // Folios lie at multiples of their size.
        let is_cut = |frame: Frame, order: Order| {
            let page = frame.index() % order.pages();
            let at = if beside < border { page + 1 } else { page };
            (at != 0 && at < order.pages()).then_some(at)
        };
        let entry = cursor.entry();
        if let Entry::NonPresent(SoftLeaf { kind: SoftKind::Migration, frame, .. }) = entry {
            // The entry, and with it the lock of its table, keeps the folio.
            return note_moving::<M>(frame, |order| is_cut(frame, order).is_some());
        }
        let Some(frame) = mapped_frame(entry) else { return };
        let folio = M::mm().mapped_folio(frame);
        let Some(at) = is_cut(frame, folio.order()) else { return };
        let folio = FolioRef::get(folio);
        drop(cursor);
        match LockedFolio::try_lock(folio) {
            Ok(folio) => {
                if self.split_folio(&folio, beside, at).is_err() {
                    M::mm().defer_split(folio.folio());
                }
            }
            Err(busy) => {
                M::count(Event::ThpSplitPageFailed, 1);
                M::mm().defer_split(busy.folio());
            }
        }
    }
}

/// Notes the folio that a migration entry for `frame` leads to, under the lock of the entry's table, if it reaches over the border:
/// who moves it has its lock. It may be moved or divided just now.
fn note_moving<M: Machine>(frame: Frame, is_cut: impl Fn(Order) -> bool) {
    let mm = M::mm();
    loop {
        let folio = mm.mapped_folio(frame);
        // One that is frozen may be smaller already than what the frame map says.
        let cut = is_cut(folio.order()) || folio.refs() == 0;
        if core::ptr::eq(folio, mm.mapped_folio(frame)) {
            if cut {
                mm.defer_split(folio);
            }
            return;
        }
    }
}

/// The frame that an entry maps, as opposed to what only leads to a folio on its way.
pub(super) fn mapped_frame(entry: Entry) -> Option<Frame> {
    match entry {
        Entry::Leaf(Leaf { special: false, frame, .. }) => Some(frame),
        Entry::NonPresent(SoftLeaf { kind, frame, .. }) if kind != SoftKind::Migration => Some(frame),
        _ => None,
    }
}

/// The commonest case: all that is mapped is one side of the cut, on a device, and all of that side. Then each piece has an
/// entry a page there, and none on the other side. False when it is anything else.
fn count_side<M: Machine>(
    cursor: &Cursor<M>,
    head: &Folio,
    at: u32,
    pieces: &Pieces<M>,
    counts: &mut [u32; PIECES],
) -> bool {
    let (first, order) = (head.frame(), head.order());
    let Some(frame) = word::device_private(cursor.word()).filter(|f| f.is_within(first, order)) else {
        return false;
    };
    let page = frame.index() - first.index();
    let side = if page < at { 0..at } else { at..order.pages() };
    let start = Vaddr(cursor.addr().0.wrapping_sub(u64::from(page - side.start) * PAGE_SIZE));
    let pages = side.end - side.start;
    if head.map_count() != pages
        || start.index(Level::Pte) + pages as usize > PTRS
        || !cursor.is_in_table(start)
        || !cursor.is_device_private_run(start, pages, first.offset(side.start))
    {
        return false;
    }
    for (count, (page, piece)) in counts.iter_mut().zip(pieces.cut()) {
        *count = if side.contains(page) { piece.pages() } else { 0 };
    }
    true
}

/// Counts the entries of the cursor's table that name a frame of `folio`, piece by piece; the sum of all.
fn count_entries<M: Machine>(
    cursor: &mut Cursor<M>,
    folio: &Folio,
    pieces: &Pieces<M>,
    counts: &mut [u32; PIECES],
) -> u32 {
    let (first, order) = (folio.frame(), folio.order());
    let mut ends = [u32::MAX; PIECES];
    for (end, (page, piece)) in ends.iter_mut().zip(pieces.cut()) {
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
