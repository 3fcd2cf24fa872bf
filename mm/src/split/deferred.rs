//! Folios that are mapped only in part and could not be split when that became so: somebody held them.
//!
//! The folio itself notes it, and its zone that there may be such folios. They are split at the next chance: by the next fault
//! that meets them, or when their memory is wanted ([`Mm::split_deferred`]), which looks through the zone's frames for them: by
//! an eviction, and by whoever would be out of memory otherwise ([`Mm::relieve`]).
//! No list has to be kept in step with folios that are freed or move.

use crate::counters::Event;
use crate::folio::{Folio, LockedFolio};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::split::folio::mapped_frame;
use crate::split::general::{self, for_each_table};
use crate::split::{Pieces, SplitError};
use crate::types::{Frame, Level, Order, Place};

/// One bit per page of a folio: mapped somewhere.
type Pages = [u64; 8];

impl<M: Machine> Mm<M> {
    /// Notes a folio as one to be split when that can be done.
    pub(crate) fn defer_split(&self, folio: &Folio) {
        if folio.set_partial() {
            M::count(Event::ThpDeferredSplit, 1);
        }
        self.zone(folio.place()).set_partial(true);
    }

    /// Splits what was noted in `place`, so that the parts that nobody maps are free. The number of cuts made; what is still
    /// held stays noted. The caller holds no spin lock; folios that it has locked are passed over.
    #[cold]
    pub fn split_deferred(&self, place: Place) -> u32 {
        let zone = self.zone(place);
        if !zone.set_partial(false) {
            return 0;
        }
        let mut cuts = 0;
        let mut at = zone.frames().start;
        while at < zone.frames().end {
            let Some(folio) = self.try_get_folio(Frame::new(place, at)) else {
                at += 1;
                continue;
            };
            let (first, order) = (folio.frame(), folio.order());
            at = first.index() + order.pages();
            if folio.is_partial() {
                drop(folio);
                match self.split_dead(first, order) {
                    Ok(n) => cuts += n,
                    Err(_) => drop(zone.set_partial(true)),
                }
            }
        }
        cuts
    }

    /// Memory of `place` has run out: gives back what folios keep that are mapped only in part. True when there was some, so that
    /// it is worth to try again, once. Never so while failures are injected. The caller holds no spin lock; folios that
    /// it has locked, or has frozen, are passed over. It does not help who wants 2 MiB: no 2 MiB get free by a cut.
    #[cold]
    #[inline(never)]
    pub(crate) fn relieve(&self, place: Place) -> bool {
        !self.inject.is_armed() && self.split_deferred(place) != 0
    }

    /// Cuts dead parts off whatever lies in these frames; the number of cuts.
    fn split_dead(&self, first: Frame, order: Order) -> Result<u32, SplitError> {
        let (mut page, mut cuts) = (0, 0);
        while page < order.pages() {
            let Some(folio) = self.try_get_folio(first.offset(page)) else {
                page += 1;
                continue;
            };
            let after = folio.frame().index() + folio.order().pages() - first.index();
            let locked = LockedFolio::try_lock(folio).map_err(|_| SplitError::Busy)?;
            match first_border(&self.mapped_pages(&locked), locked.order()) {
                Some(at) => {
                    let pieces = Pieces::alloc(self, locked.order(), at)?;
                    let done = general::split(&locked, pieces);
                    M::count(if done.is_ok() { Event::ThpSplitPage } else { Event::ThpSplitPageFailed }, 1);
                    done?;
                    cuts += 1;
                }
                None => {
                    locked.clear_partial();
                    page = after;
                }
            }
            drop(locked.unlock());
        }
        Ok(cuts)
    }

    /// The pages of a folio that something maps.
    fn mapped_pages(&self, folio: &LockedFolio<M>) -> Pages {
        let (first, order) = (folio.frame(), folio.order());
        let mut pages = [0; 8];
        self.for_each_mapping(folio, &mut |place| {
            for_each_table(&place, |cursor, end| {
                loop {
                    if let Some(frame) = mapped_frame(cursor.entry()).filter(|f| f.is_within(first, order)) {
                        if cursor.level() == Level::Pmd {
                            pages = [!0; 8];
                            return;
                        }
                        let page = frame.index() - first.index();
                        pages[page as usize / 64] |= 1 << (page % 64);
                    }
                    if !cursor.next() || cursor.addr() >= end {
                        return;
                    }
                }
            });
            true
        });
        pages
    }
}

/// The first page that is mapped while the one before is not, or the other way round.
fn first_border(pages: &Pages, order: Order) -> Option<u32> {
    let bit = |page: u32| pages[page as usize / 64] >> (page % 64) & 1;
    (1..order.pages()).find(|&page| bit(page) != bit(page - 1))
}
