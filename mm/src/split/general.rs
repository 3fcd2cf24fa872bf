//! A folio is split that is mapped from several tables or spaces.
//!
//! ```text
//!   lock, count huge mappings, reserve a table for each
//!   every mapping ──► migration entries       (reverse map; a huge one becomes a table of them)
//!   one flush                                 (none, if nothing was present)
//!   freeze: the caller's reference is the only one; divide the metadata
//!   every migration entry ──► a mapping again (reverse map; the frame map says of which piece)
//!   counts settled, pieces unlocked; one that nothing maps is freed by that
//! ```
//!
//! **Why the counts come out right.** Unmaps and clones of other spaces go on all the time. Who drops or copies a migration
//! entry changes the count of the folio that the frame map names *at that moment*: the head before the division, a piece
//! after it. So one folio's count may be too high and another's too low, below zero even; their *sum* is at every moment the
//! number of migration entries for these frames, give or take those whose table is locked by somebody right now. At the end
//! the sum is zero, because the last walk goes through *all* of the set's list, under its lock: an entry that is copied or
//! moved while the walk is under way goes to a mapping that stands later in the list, so it is found there, or it had its name
//! already when it was copied. No new migration entry comes into being, since all pieces are locked. So each count is set
//! to zero, and the sum is checked. Map counts need no such care: they are counted as entries get names, under the lock of
//! the table, and a mapping cannot be dropped before that lock is free.

use core::array;

use crate::cursor::Cursor;
use crate::entry::{Entry, SoftKind, SoftLeaf};
use crate::folio::{Folio, FolioRef, LockedFolio, RmapLink, put_many};
use crate::machine::{FlushReason, Machine};
use crate::mm::Mm;
use crate::notifier::NotifyEvent;
use crate::rmap::Mapped;
use crate::split::folio::mapped_frame;
use crate::split::mapping::split_pmd_to_migration;
use crate::split::{PIECES, Pieces, SplitError, divide};
use crate::table::TableStash;
use crate::tlb::TlbGather;
use crate::types::{Frame, Level, Order, PMD_SIZE, Vaddr};
use crate::zone::Need;

/// How often huge mappings are counted anew when there were more than were counted.
const TRIES: usize = 4;

/// Splits `head` into `pieces`. The caller holds no table, and the only handle.
pub(super) fn split<M: Machine>(head: &LockedFolio<M>, mut pieces: Pieces<M>) -> Result<(), SplitError> {
    if head.refs() != head.map_count() + 1 {
        return Err(SplitError::Busy); // held by somebody: nothing needs to be touched to see that
    }
    let mut tables = TableStash::new();
    for _ in 0..TRIES {
        tables.fill(M::mm().huge_entries(head), Need::Reserve)?;
        let mut gather = TlbGather::new(FlushReason::Split);
        let all = unmap_everywhere(head, &mut tables, &mut gather);
        gather.flush();
        if !all {
            Division::none(head).name_everywhere();
        } else if head.freeze(1) {
            return divide_unmapped(head, &mut pieces);
        } else {
            Division::none(head).name_everywhere();
            return Err(SplitError::Busy);
        }
    }
    Err(SplitError::Busy)
}

impl<M: Machine> Mm<M> {
    /// PMD entries that name the folio, whatever their kind. More may be cloned as soon as this returns, unless they are
    /// migration entries, of which clones get a table.
    pub(crate) fn huge_entries(&self, folio: &LockedFolio<M>) -> u32 {
        let mut n = 0;
        if folio.order() == Order::PMD {
            self.for_each_mapping(folio, &mut |place| {
                for_each_table(&place, |cursor, _| {
                    n += u32::from(cursor.level() == Level::Pmd && names(cursor.entry(), folio));
                });
                true
            });
        }
        n
    }
}

fn names<M: Machine>(entry: Entry, folio: &LockedFolio<M>) -> bool {
    match entry {
        Entry::Leaf(leaf) => !leaf.special && folio.covers(leaf.frame),
        Entry::NonPresent(soft) => folio.covers(soft.frame),
        Entry::None | Entry::Table(_) => false,
    }
}

/// Every mapping becomes migration entries, a huge one a table of them; false when there were more of those than tables.
fn unmap_everywhere<M: Machine>(
    head: &LockedFolio<M>,
    tables: &mut TableStash<M>,
    gather: &mut TlbGather<M>,
) -> bool {
    let mut enough = true;
    M::mm().for_each_mapping(head, &mut |place| {
        let _change = place.space.invalidate(place.range, NotifyEvent::Clear);
        for_each_table(&place, |cursor, end| {
            if cursor.level() == Level::Pte {
                unmap_run(cursor, head, end, gather);
            } else if mapped_frame(cursor.entry()).is_some_and(|frame| head.covers(frame)) {
                match tables.take(cursor.addr()) {
                    Some(spare) => {
                        split_pmd_to_migration(cursor, head, spare, gather);
                        head.maps_to_migs(1);
                        put_many::<M>(head.folio(), 1);
                    }
                    None => enough = false,
                }
            }
        });
        enough && head.map_count() != 0
    });
    enough
}

/// Entries of a PTE table that map the folio become migration entries.
fn unmap_run<M: Machine>(
    cursor: &mut Cursor<M>,
    head: &LockedFolio<M>,
    end: Vaddr,
    gather: &mut TlbGather<M>,
) {
    let mut n = 0;
    loop {
        if mapped_frame(cursor.entry()).is_some_and(|frame| head.covers(frame)) {
            crate::migrate::to_migration(cursor, head, &mut Some(&mut *gather));
            n += 1;
        }
        if !cursor.next() || cursor.addr() >= end {
            break;
        }
    }
    if n != 0 {
        head.maps_to_migs(n);
        put_many::<M>(head.folio(), n);
    }
}

/// Calls `f` for the lowest table over each part of the place, with the cursor at the part's start and the part's end.
pub(super) fn for_each_table<M: Machine>(place: &Mapped<M>, mut f: impl FnMut(&mut Cursor<M>, Vaddr)) {
    let mut at = place.range.start;
    while at < place.range.end {
        let next = at.align_down(PMD_SIZE).add(PMD_SIZE).min(place.range.end);
        if let Some(mut cursor) = place.space.cursor(at) {
            f(&mut cursor, next);
        }
        at = next;
    }
}

/// What became of a folio: its pieces, all locked, and where its pages are mapped.
struct Division<'a, M: Machine> {
    head: &'a LockedFolio<M>,
    first: Frame,
    order: Order,
    link: RmapLink,
    tails: [Option<LockedFolio<M>>; PIECES],
}

fn divide_unmapped<M: Machine>(head: &LockedFolio<M>, pieces: &mut Pieces<M>) -> Result<(), SplitError> {
    let mut division = Division::none(head);
    let tails = &mut division.tails;
    divide(
        head,
        pieces,
        |_| false,
        |i, tail| {
            tail.unfreeze(1);
            // Whoever meets its migration entries sleeps on it.
            tails[i] = Some(LockedFolio::born(FolioRef::from_owned(tail)));
        },
    );
    head.unfreeze(1);
    division.name_everywhere();
    // Who unmapped a part meanwhile may have noted it at the head, after the tails had inherited what it knew.
    if head.is_partial() {
        division.tails.iter().flatten().for_each(|tail| M::mm().note_partial(tail));
    }
    // The handles go; a piece that nothing maps goes with its handle.
    for tail in division.tails.into_iter().flatten() {
        drop(tail.unlock());
    }
    Ok(())
}

impl<'a, M: Machine> Division<'a, M> {
    /// Of a folio that is not divided (yet).
    fn none(head: &'a LockedFolio<M>) -> Self {
        let (first, order, link) = (head.frame(), head.order(), head.link());
        Self { head, first, order, link, tails: array::from_fn(|_| None) }
    }

    /// Every migration entry becomes a mapping of the piece that owns its frame now.
    fn name_everywhere(&self) {
        M::mm().for_each_mapping_of(self.link, self.order, &mut |place| {
            for_each_table(&place, |cursor, end| self.name_run(cursor, end));
            true
        });
        self.settle();
    }

    fn name_run(&self, cursor: &mut Cursor<M>, end: Vaddr) {
        let mut run: Option<(&'static Folio, u32)> = None;
        loop {
            if let Entry::NonPresent(SoftLeaf { kind: SoftKind::Migration, frame, attrs }) = cursor.entry()
                && frame.is_within(self.first, self.order)
            {
                let folio = match run {
                    Some((folio, _)) if folio.covers(frame) => folio,
                    _ => M::mm().mapped_folio(frame),
                };
                cursor.replace_soft(Entry::mapping(frame, attrs));
                run = match run {
                    Some((same, n)) if core::ptr::eq(same, folio) => Some((same, n + 1)),
                    _ => {
                        count_named(run);
                        Some((folio, 1))
                    }
                };
            }
            if !cursor.next() || cursor.addr() >= end {
                return count_named(run);
            }
        }
    }

    /// See the module: every entry has its name, and the counts of the pieces add up to none.
    fn settle(&self) {
        let tails = self.tails.iter().flatten().map(|tail| tail.take_migs());
        let sum = tails.fold(self.head.take_migs(), u32::wrapping_add);
        assert_eq!(sum, 0, "a migration entry was lost");
    }
}

fn count_named(run: Option<(&'static Folio, u32)>) {
    if let Some((folio, n)) = run {
        folio.migs_to_maps(n);
    }
}
