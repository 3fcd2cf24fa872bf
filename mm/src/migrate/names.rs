//! Giving migration entries a name: where they were found, and wherever the reverse map leads.

use core::sync::atomic::Ordering::Relaxed;

use crate::cursor::Cursor;
use crate::entry::{Attrs, Entry, SoftKind, SoftLeaf};
use crate::folio::{Folio, LockedFolio};
use crate::machine::Machine;
use crate::migrate::options::written;
use crate::migrate::unit::PieceChunk;
use crate::space::Space;
use crate::table::{SpareTable, TableStash};
use crate::types::{Frame, Level, PMD_SIZE, VaRange, Vaddr};

/// How migration entries get their names.
pub(crate) struct Names<'a, M: Machine> {
    /// The folio that the entries belong to (its migration entries count down).
    pub(crate) source: &'a LockedFolio<M>,
    /// The first frame that the entries name: where the source lies, or lay before the commit.
    pub(crate) from: Frame,
    pub(crate) to: To<'a, M>,
    /// What the entries get besides: a copy that was made for a write, or nothing.
    pub(crate) grant: Attrs,
    /// The folio moves because of an eviction: each space hears of its own pages.
    pub(crate) evicted: bool,
}

/// The owner of the pages from now on.
#[derive(Clone, Copy)]
pub(crate) enum To<'a, M: Machine> {
    /// The source itself, where it lies now.
    Source,
    /// A copy.
    Copy(&'static Folio),
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

    /// The attributes of an entry from now on.
    #[inline(always)]
    fn attrs(&self, attrs: Attrs) -> Attrs {
        if self.grant.is_empty() { attrs } else { written(attrs) }
    }

    /// The folio that `page` belongs to, and that folio's first page in the unit.
    fn folio(&self, page: u32) -> (&'static Folio, u32) {
        let first = match self.to {
            To::Source => return (self.source.folio(), 0),
            To::Copy(folio) => return (folio, 0),
            To::Pieces(first) => first,
        };
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
pub(crate) fn replace_run<M: Machine>(
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
                replace_by_table(cursor, names, tables, names.attrs(attrs));
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
            cursor.replace_soft(Entry::mapping(folio.frame().offset(page - start), names.attrs(attrs)));
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
pub(crate) fn replace_by_table<M: Machine>(
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
pub(crate) fn fill_pieces_table<M: Machine>(spare: &mut SpareTable<M>, first: &PieceChunk<M>, attrs: Attrs) {
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

/// Names all migration entries of the source: those at `addr` of `space`, where it was found, then those that the reverse map
/// finds.
#[inline(always)]
pub(crate) fn name_everywhere<M: Machine>(
    names: &Names<'_, M>,
    space: Option<&'static Space<M>>,
    addr: Vaddr,
    tables: &mut TableStash<M>,
) {
    let source = names.source;
    // Without entries to name, there is nothing to look for.
    if let Some(space) = space.filter(|_| source.migration_entries() != 0) {
        replace_in(space, VaRange::new(addr.0, source.order().bytes()), names, tables);
    }
    if source.migration_entries() != 0 {
        replace_elsewhere(names, tables);
    }
    // Its frames are free in a moment: an entry that still names them would be a way into somebody else's memory.
    assert_eq!(source.migration_entries(), 0, "a migration entry was lost");
}

/// The entries moved (a remap), or there are more than one.
#[cold]
pub(crate) fn replace_elsewhere<M: Machine>(names: &Names<'_, M>, tables: &mut TableStash<M>) {
    M::mm().for_each_mapping(names.source, &mut |place| {
        let pages = replace_in(place.space, place.range, names, tables);
        if names.evicted {
            place.space.counters.evicted(pages);
        }
        names.source.migration_entries() != 0
    });
}

/// Replaces the source's migration entries in `range` of `space`; how many pages they were for.
#[inline(always)]
pub(crate) fn replace_in<M: Machine>(
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

/// Puts the folio of a fault back under its migration entries, which are at `addr` or where the reverse map finds them.
#[cold]
pub(crate) fn put_back_source<M: Machine>(source: &LockedFolio<M>, space: &'static Space<M>, addr: Vaddr) {
    let names = Names { source, from: source.frame(), to: To::Source, grant: Attrs::empty(), evicted: false };
    replace_in(space, VaRange::new(addr.0, source.order().bytes()), &names, &mut TableStash::new());
    if source.migration_entries() != 0 {
        replace_elsewhere(&names, &mut TableStash::new());
    }
}

/// Names the migration entries of `source` that the reverse map finds and that name `from`, where it lay.
#[cold]
pub(crate) fn rename_elsewhere<M: Machine>(source: &LockedFolio<M>, from: Frame) {
    replace_elsewhere(
        &Names { source, from, to: To::Source, grant: Attrs::empty(), evicted: false },
        &mut TableStash::new(),
    );
    assert_eq!(source.migration_entries(), 0, "a migration entry was lost");
}
