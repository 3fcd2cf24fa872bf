//! Folios that are mapped only in part and could not be split when that became so: somebody held them, or moved them.
//!
//! The folio itself notes it, and its zone that there may be such folios. They are split at the next chance: by a fault or a
//! migration that meets them, or when their memory is wanted ([`Mm::split_deferred`]), which looks through the zone's frames for
//! them. That does an eviction of a range before it begins, and whoever would be out of memory otherwise ([`Mm::relieve`]): a fault,
//! a pin that needs a copy, a clone, a page of an object, and a migration that finds no destination (for its walk, and for the
//! batch itself, it takes what is there). Nobody looks for the sake of a VMA, of a table for an unmap, a remap or advice, or for
//! a whole 2 MiB page: those fail, or do with less.
//! No list has to be kept in step with folios that are freed or move.
//!
//! **No note is lost.** A folio that moves takes its note along, and tells the zone it comes to ([`Deferred::arrived`]); so do
//! those that it becomes. Who looks takes the zone's note first, and the folio's before it looks at its entries. What is noted
//! after that is news; and a folio that cannot be had then (locked, or frozen) makes it set the zone's again.

use core::sync::atomic::{
    AtomicBool, AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed, SeqCst},
    fence,
};

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

/// How often somebody without memory looks whether another's scan has found some.
const SCAN_LOOKS: u32 = 4096;

/// What a zone knows of its folios that are mapped only in part.
pub(crate) struct Deferred {
    /// There may be some.
    noted: AtomicBool,
    /// Scans under way.
    scans: AtomicU32,
    /// Cuts that scans have made.
    cuts: AtomicU32,
}

/// A scan that is under way.
pub(crate) struct Scan<'a>(&'a Deferred);

impl Drop for Scan<'_> {
    fn drop(&mut self) {
        self.0.scans.fetch_sub(1, AcqRel);
    }
}

impl Deferred {
    pub(crate) const fn new() -> Self {
        Self { noted: AtomicBool::new(false), scans: AtomicU32::new(0), cuts: AtomicU32::new(0) }
    }

    /// There may be such a folio.
    pub(crate) fn note(&self) {
        self.noted.store(true, SeqCst);
    }

    /// There may be one that no scan has seen to.
    pub(crate) fn is_noted(&self) -> bool {
        self.noted.load(Relaxed)
    }

    /// A folio has come to the zone. If it is noted, so is the zone: by this, or by who notes it right now and sees where it lies.
    #[inline(always)]
    pub(crate) fn arrived(&self, folio: &Folio) {
        fence(SeqCst);
        if folio.is_partial() {
            self.note();
        }
    }

    /// Takes the note. Whoever finds none after that sees that a scan is under way.
    pub(crate) fn take(&self) -> Option<Scan<'_>> {
        self.scans.fetch_add(1, AcqRel);
        let scan = Scan(self);
        if self.noted.swap(false, AcqRel) { Some(scan) } else { None }
    }

    fn cuts(&self) -> u32 {
        self.cuts.load(Acquire)
    }
}

impl<M: Machine> Mm<M> {
    /// Notes a folio as one to be split when that can be done.
    pub(crate) fn defer_split(&self, folio: &Folio) {
        if folio.set_partial() {
            M::count(Event::ThpDeferredSplit, 1);
        }
        self.tell_zone(folio);
    }

    /// As [`Mm::defer_split`], for a folio that comes of one that was noted.
    pub(crate) fn note_partial(&self, folio: &Folio) {
        if folio.order() != Order::BASE && folio.set_partial() {
            self.tell_zone(folio);
        }
    }

    fn tell_zone(&self, folio: &Folio) {
        // Either this sees where it has moved to, or the mover sees the note ([`Deferred::arrived`]).
        fence(SeqCst);
        self.zone(folio.place()).deferred.note();
    }

    /// Splits what was noted in `place`, so that the parts that nobody maps are free. The number of cuts made; what is still
    /// held stays noted. The caller holds no spin lock; folios that it has locked are passed over.
    #[cold]
    pub fn split_deferred(&self, place: Place) -> u32 {
        let zone = self.zone(place);
        let Some(_scan) = zone.deferred.take() else { return 0 };
        let mut cuts = 0;
        let mut at = zone.frames().start;
        while at < zone.frames().end {
            let frame = Frame::new(place, at);
            let Some(folio) = self.try_get_folio(frame) else {
                self.note_frozen(frame);
                at += 1;
                continue;
            };
            let (first, order) = (folio.frame(), folio.order());
            at = first.index() + order.pages();
            if folio.is_partial() {
                drop(folio);
                if self.split_dead(first, order, &mut cuts).is_err() {
                    zone.deferred.note();
                }
            }
        }
        cuts
    }

    /// Memory of `place` has run out: gives back what folios keep that are mapped only in part. True when there was some, so that
    /// it is worth to try again; also if somebody else found it who is at it already. Never so while failures are injected. The
    /// caller holds no spin lock; folios that it has locked, or has frozen, are passed over. It does not help who wants 2 MiB: no
    /// 2 MiB get free by a cut.
    #[cold]
    #[inline(never)]
    pub(crate) fn relieve(&self, place: Place) -> bool {
        if self.inject.is_armed() {
            return false;
        }
        let deferred = &self.zone(place).deferred;
        let before = deferred.cuts();
        self.split_deferred(place);
        // Not waited for without end: who is at it may have to wait for what the caller holds.
        for _ in 0..SCAN_LOOKS {
            let others = deferred.scans.load(Acquire) != 0;
            if deferred.cuts() != before || !others {
                break;
            }
            M::relax();
        }
        deferred.cuts() != before
    }

    /// A folio that cannot be had, because its references are frozen for a moment or for a merge, stays noted. (A descriptor that
    /// is free has no references and no lock.)
    fn note_frozen(&self, frame: Frame) {
        let zone = self.zone(frame.place());
        let index = if zone.contains(frame.index()) { zone.folio_index(frame.index()) } else { None };
        let Some(folio) = index.map(|index| self.folios.get(index)) else { return };
        // In this order: it has its references again before its lock goes.
        if folio.covers(frame) && folio.is_partial() && (folio.is_locked() || folio.refs() != 0) {
            zone.deferred.note();
        }
    }

    /// Cuts dead parts off whatever lies in these frames, and counts the cuts. After an error, what was not cut is noted still.
    fn split_dead(&self, first: Frame, order: Order, cuts: &mut u32) -> Result<(), SplitError> {
        let mut page = 0;
        while page < order.pages() {
            let frame = first.offset(page);
            let Some(folio) = self.try_get_folio(frame) else {
                self.note_frozen(frame);
                page += 1;
                continue;
            };
            let after = folio.frame().index() + folio.order().pages() - first.index();
            let locked = LockedFolio::try_lock(folio).map_err(|_| SplitError::Busy)?;
            // Before the look: what is noted from here on is not seen by it.
            locked.clear_partial();
            match first_border(&self.mapped_pages(&locked), locked.order()) {
                Some(at) => {
                    // For the pieces, which are to be looked at, and for the whole if it stays one.
                    locked.set_partial();
                    let pieces = Pieces::alloc(self, locked.order(), at)?;
                    let done = general::split(&locked, pieces);
                    M::count(if done.is_ok() { Event::ThpSplitPage } else { Event::ThpSplitPageFailed }, 1);
                    done?;
                    *cuts += 1;
                    self.zone(first.place()).deferred.cuts.fetch_add(1, AcqRel);
                }
                None => page = after,
            }
            drop(locked.unlock());
        }
        Ok(())
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
