//! What a migration says of itself, beside what is seen: before it, after it, and unit by unit.

use alloc::format;
use alloc::vec::Vec;

use crate::entry::Entry;
use crate::exercise::model::pages;
use crate::exercise::runner::Runner;
use crate::exercise::world::World;
use crate::migrate::{Cause, Report, UnitReport, Verdict};
use crate::types::{PAGE_SHIFT, PAGE_SIZE, Place, VaRange, Vaddr};

/// A migration that is watched from its beginning to its end.
pub(super) struct Watched {
    n: usize,
    range: VaRange,
    to: Place,
    /// Where the pages lay.
    before: Vec<Option<Place>>,
    /// What was said of the units.
    pub(super) units: Vec<UnitReport>,
    /// Pages that others changed meanwhile: how they end proves nothing.
    pub(super) except: Vec<VaRange>,
    /// Others may have moved what it did not take.
    pub(super) others_moved: bool,
}

impl Watched {
    fn excepts(&self, page: u64) -> bool {
        self.except.iter().any(|range| range.contains(Vaddr(page << PAGE_SHIFT)))
    }

    fn place_before(&self, page: u64) -> Option<Place> {
        let first = self.range.start.0 >> PAGE_SHIFT;
        page.checked_sub(first).and_then(|at| self.before.get(at as usize).copied().flatten())
    }
}

impl<W: World> Runner<'_, W> {
    /// Where a page lies that is more than zeros of everybody's.
    fn place_now(&self, n: usize, page: u64) -> Option<Place> {
        match self.space(n as u8).1.entry_at(Vaddr(page * PAGE_SIZE)).1 {
            Entry::Leaf(leaf) if leaf.special => None,
            Entry::Leaf(leaf) => Some(leaf.frame.place()),
            Entry::NonPresent(soft) => Some(soft.frame.place()),
            Entry::None | Entry::Table(_) => None,
        }
    }

    /// Learns where a written page lies that may lie in several places now, all of which are `fine`.
    pub(super) fn learn(&self, n: usize, page: u64, fine: impl Fn(Place) -> bool) {
        let model = &mut *self.world.model().borrow_mut();
        if model.spaces[n].content.get(&page).is_none_or(|page| page.place.is_some()) {
            return;
        }
        let place = self.place_now(n, page);
        if !place.is_some_and(fine) {
            self.fail(|| format!("space {n}: page {page:#x} lies in {place:?} now"));
        }
        model.found(n, page, place);
    }

    /// A migration of `range` to `to` is about to begin.
    pub(super) fn watch(&self, n: usize, range: VaRange, to: Place) -> Watched {
        let before = pages(range).map(|page| self.place_now(n, page)).collect();
        Watched { n, range, to, before, units: Vec::new(), except: Vec::new(), others_moved: false }
    }

    /// It was dropped: everything is where it was. What it had filled already (`committed`) may stay.
    pub(super) fn check_dropped(&self, watched: &Watched, committed: bool) {
        let n = watched.n;
        if watched.others_moved {
            return;
        }
        for page in pages(watched.range).filter(|&page| !watched.excepts(page)) {
            let (before, now) = (watched.place_before(page), self.place_now(n, page));
            if now != before && !(committed && now == Some(watched.to)) {
                self.fail(|| {
                    format!("space {n}: page {page:#x} was in {before:?} before a migration that was dropped, and is in {now:?} after it")
                });
                return;
            }
        }
    }

    /// It has ended: its report adds up, and says what is seen. What memory it could have (`roomy`) was enough for a note of each unit.
    pub(super) fn check_ended(&self, watched: &Watched, report: &Report, roomy: bool) {
        let Watched { n, range, to, .. } = *watched;
        self.check_report(range, to, report);
        let (mut moved, mut stayed) = (0, [0; Cause::COUNT]);
        for unit in &watched.units {
            match unit.verdict {
                Verdict::Stayed(cause) => stayed[cause as usize] += u64::from(unit.pages),
                _ => moved += u64::from(unit.pages),
            }
            self.check_unit(watched, unit);
        }
        let more = stayed.iter().zip(report.failed).any(|(told, all)| *told > all);
        let all_told = moved == report.pages && stayed == report.failed;
        if more || moved > report.pages || roomy && !all_told {
            self.fail(|| {
                format!("the units of {range} of space {n} to {to} make {moved} and {stayed:?} pages, not {report:?}")
            });
        }
        if watched.except.is_empty() && !watched.others_moved {
            let came = pages(range).filter(|&page| {
                watched.place_before(page) != Some(to) && self.place_now(n, page) == Some(to)
            });
            let came = came.count() as u64;
            if came != report.pages {
                self.fail(|| {
                    format!(
                        "{came} pages of {range} of space {n} came to {to}, and the report says {report:?}"
                    )
                });
            }
        }
    }

    /// What is said of a unit is so.
    fn check_unit(&self, watched: &Watched, unit: &UnitReport) {
        let (n, to) = (watched.n, watched.to);
        let first = unit.addr.0 >> PAGE_SHIFT;
        let range = VaRange::new(unit.addr.0, u64::from(unit.pages) * PAGE_SIZE);
        if !watched.range.covers(range) {
            self.fail(|| format!("a unit of a migration of {} of space {n}: {unit:?}", watched.range));
        }
        for page in (first..first + u64::from(unit.pages)).filter(|&page| !watched.excepts(page)) {
            let (before, now) = (watched.place_before(page), self.place_now(n, page));
            let fine = match unit.verdict {
                Verdict::Filled => before.is_none() && now == Some(to),
                Verdict::Moved | Verdict::InPieces | Verdict::Copied => now == Some(to),
                Verdict::Stayed(Cause::Raced) => true,
                Verdict::Stayed(_) => now == before || watched.others_moved,
            };
            if !fine {
                self.fail(|| {
                    format!("space {n}: page {page:#x} was in {before:?} and is in {now:?}, of a unit to {to} with the report {unit:?}")
                });
                return;
            }
        }
    }
}
