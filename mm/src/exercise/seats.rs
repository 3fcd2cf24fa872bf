//! Where pages lie, as far as the model can say.
//!
//! The model learns it at each check, when all entries are looked at, and then follows what is done: a page that nothing moves stays
//! where it is, a migration that has all it needs brings every page to where it goes, a touch brings a page home, a device does not
//! move what is its own. What an operation *may* move (other parts of a large folio, other mappings of a page, anything where memory
//! is short) is not known until the next check. So a page that moves for no reason is found, and one that does not move for
//! one.

use alloc::vec::Vec;

use crate::exercise::model::{Model, ModelSpace, pages};
use crate::types::{Place, VaRange};

/// True for memory that no CPU reaches.
pub(super) const fn is_private(place: Place) -> bool {
    !place.is_mappable()
}

/// True for the memory of a device.
pub(super) const fn is_device(place: Place) -> bool {
    !place.is_ram()
}

impl ModelSpace {
    /// Pages of the range that lie in `from` may lie elsewhere by now.
    pub fn unsettle(&mut self, range: Option<VaRange>, from: impl Fn(Place) -> bool) {
        self.settle(range, |place| Some(place).filter(|&place| !from(place)));
    }

    /// Pages of the range (all, without one) lie where `now` says of the place that they lay in.
    pub fn settle(&mut self, range: Option<VaRange>, now: impl Fn(Place) -> Option<Place>) {
        let range = range.map_or(0..u64::MAX, pages);
        for (_, page) in self.content.range_mut(range) {
            page.place = page.place.and_then(&now);
        }
    }
}

impl Model {
    /// The situation has come up.
    pub fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    /// A space begins that no other is related to.
    pub fn found_family(&mut self, n: usize) {
        self.families += 1;
        self.spaces[n].family = self.families;
    }

    /// Pages in `from` of the spaces that are related to this one may lie elsewhere by now: they may be this one's too.
    pub fn unsettle_relatives(&mut self, n: usize, from: impl Fn(Place) -> bool) {
        let family = self.spaces[n].family;
        for (other, space) in self.spaces.iter_mut().enumerate() {
            if other != n && space.family == family {
                space.unsettle(None, &from);
            }
        }
    }

    /// As [`Model::unsettle_relatives`], and pages of the space itself; all of them, as large folios may be mapped anywhere.
    pub fn unsettle_family(&mut self, n: usize, from: impl Fn(Place) -> bool) {
        self.spaces[n].unsettle(None, &from);
        self.unsettle_relatives(n, from);
    }

    /// Pages in `from`, of whatever space, may lie elsewhere by now.
    pub fn unsettle_all(&mut self, from: impl Fn(Place) -> bool) {
        self.spaces.iter_mut().for_each(|space| space.unsettle(None, &from));
    }

    /// Where a written page lies, if it is known.
    #[must_use]
    pub fn place(&self, n: usize, page: u64) -> Option<Place> {
        self.spaces[n].content.get(&page).and_then(|page| page.place)
    }

    /// A page was found in a place.
    pub fn found(&mut self, n: usize, page: u64, place: Option<Place>) {
        if let Some(page) = self.spaces[n].content.get_mut(&page) {
            page.place = place;
        }
    }

    /// Pages were found in these places.
    pub(super) fn found_all(&mut self, n: usize, found: Vec<(u64, Place)>) {
        for (page, place) in found {
            self.found(n, page, Some(place));
        }
    }

    /// A program touches a page that lay in `before`. Only a page that no CPU reaches moves, with the rest of its folio; and what is
    /// written in memory that CPUs reach may be a copy then, in RAM.
    pub fn touched(&mut self, n: usize, page: u64, before: Option<Place>, write: bool, done: bool) {
        match before {
            Some(Place::RAM) => return,
            Some(place) if place.is_mappable() => {
                if write {
                    self.spaces[n].unsettle(None, |place| place.is_coherent());
                }
                return;
            }
            Some(place) => self.unsettle_family(n, |other| other == place),
            None => {
                self.unsettle_family(n, is_private);
                if write {
                    self.spaces[n].unsettle(None, |place| place.is_coherent());
                }
            }
        }
        if done && before.is_some() {
            self.found(n, page, Some(Place::RAM));
        }
    }
}
