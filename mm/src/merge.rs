//! Device-private pages grow together again: 512 small ones under one PMD entry become one folio of 2 MiB and one entry.
//!
//! Where their frames are neighbours already (a 2 MiB page that was split), nothing moves: the descriptors become one. Otherwise
//! the device's engine copies them into a fresh chunk, and what they leave behind grows together in the buddy. Linux does neither.
//!
//! The VMA lock is held alone; every folio is locked and its references are frozen, so entries and contents stand still. No
//! entry is present, so nothing but the table's end is flushed.

use crate::collapse::{MergeCause, MergeReport, Merged, Small, named, unlock};
use crate::counters::Event;
use crate::cursor::Cursor;
use crate::device::CopyOp;
use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf};
use crate::error::RangeError;
use crate::folio::{Folio, FolioRef, RmapLink};
use crate::machine::Machine;
use crate::migrate::note_arrived;
use crate::notifier::NotifyEvent;
use crate::space::Space;
use crate::stats::merged;
use crate::trace::Kind;
use crate::types::{Frame, Level, Order, PMD_SIZE, PTRS, VaRange, Vaddr};
use crate::vma::Vma;
use crate::zone::Need;

/// What all entries must agree on.
const ALIKE: Attrs =
    Attrs::WRITE.union(Attrs::EXCLUSIVE).union(Attrs::EXEC).union(Attrs::UFFD_WP).union(Attrs::NO_ACCESS);

/// What was found in a table.
struct Found {
    /// The first page's frame.
    first: Frame,
    /// What all entries allow, and what any of them remembers.
    attrs: Attrs,
    /// The frames are neighbours, in whole folios, where one folio of 2 MiB could be.
    in_place: bool,
}

impl<M: Machine> Space<M> {
    /// Makes one device-private page of 2 MiB out of every whole 2 MiB of `range` whose pages are all on one device. May sleep
    /// in the copy engine.
    ///
    /// # Errors
    /// [`RangeError::Invalid`]. That some 2 MiB stayed as they were is in the report.
    pub fn merge_device(&'static self, range: VaRange) -> Result<MergeReport, RangeError> {
        self.for_each_huge(
            range,
            |vma, base| self.merging(Kind::Merge, base, || self.merge_one(vma, base)),
            &mut |_, _| {},
        )
    }

    fn merge_one(&'static self, vma: &Vma, base: Vaddr) -> Result<Merged, MergeCause> {
        let pmd = self.pmd_table(base).ok_or(MergeCause::Empty)?;
        let entry = self.cursor_in(pmd, Level::Pmd, base).entry();
        let pte = match entry {
            Entry::Table(pfn) => M::mm().table(pfn),
            Entry::NonPresent(SoftLeaf { kind: SoftKind::DevicePrivate, .. }) => return Ok(Merged::Already),
            Entry::NonPresent(SoftLeaf { kind: SoftKind::Migration, .. }) => return Err(MergeCause::Busy),
            Entry::None | Entry::Leaf(Leaf { special: true, .. }) => return Err(MergeCause::Empty),
            Entry::Leaf(_) | Entry::NonPresent(_) => return Err(MergeCause::Elsewhere),
        };
        let small = Small { space: self, pmd, pte, base };
        let owner = small.look_for_merge(&mut small.cursor(), vma)?.first.place();
        let _change = self.invalidate(VaRange::new(base.0, PMD_SIZE), NotifyEvent::Migrate { owner: None });
        let found = small.freeze(vma)?;
        if found.in_place {
            small.join(vma, &found);
            M::count(Event::DeviceMerge, 1);
            merged(self, owner);
            return Ok(Merged::InPlace);
        }
        match small.copy_on_device(vma, &found) {
            Ok(copy) => {
                small.move_in(vma, &found, copy);
                M::count(Event::DeviceMerge, 1);
                merged(self, owner);
                Ok(Merged::Copied)
            }
            Err(cause) => {
                small.thaw(PTRS as u32);
                Err(cause)
            }
        }
    }
}

impl<M: Machine> Small<M> {
    fn look_for_merge(&self, cursor: &mut Cursor<M>, vma: &Vma) -> Result<Found, MergeCause> {
        let mut found: Option<Found> = None;
        for i in 0..PTRS as u32 {
            let (frame, attrs) = match cursor.entry_at(self.addr(i)) {
                Entry::NonPresent(SoftLeaf { kind: SoftKind::DevicePrivate, frame, attrs }) => (frame, attrs),
                Entry::NonPresent(SoftLeaf { kind: SoftKind::Migration, .. }) => {
                    return Err(MergeCause::Busy);
                }
                _ => return Err(MergeCause::Elsewhere),
            };
            let folio = M::mm().mapped_folio(frame);
            let link = folio.link();
            let page = u64::from(frame.index() - folio.frame().index());
            let linked = link.anon == vma.anon() && link.index + page == vma.page_index(self.addr(i));
            let found = found.get_or_insert(Found {
                first: frame,
                attrs,
                in_place: frame.index().is_multiple_of(PTRS as u32),
            });
            if frame.place() != found.first.place() {
                return Err(MergeCause::Elsewhere);
            }
            if attrs & ALIKE != found.attrs & ALIKE {
                return Err(MergeCause::Mixed);
            }
            found.attrs |= attrs;
            found.in_place &= linked && frame == found.first.offset(i);
        }
        found.ok_or(MergeCause::Empty)
    }

    /// Locks all folios and freezes their references, which must all be those of the entries here. All or none.
    fn freeze(&self, vma: &Vma) -> Result<Found, MergeCause> {
        let mut cursor = self.cursor();
        let mut found = self.look_for_merge(&mut cursor, vma)?;
        self.lock_all(&mut cursor)?;
        let mut failed = None;
        self.for_each_run(&mut cursor, |_, folio, range| {
            let n = range.end - range.start;
            if folio.map_count() != n || !folio.freeze(n) {
                failed = Some(range.start);
                return false;
            }
            found.in_place &= n == folio.order().pages();
            true
        });
        drop(cursor);
        match failed {
            None => Ok(found),
            Some(at) => {
                self.thaw(at);
                Err(MergeCause::Pinned)
            }
        }
    }

    /// Undoes [`Small::freeze`], which got as far as entry `end`: those after it are only locked.
    fn thaw(&self, end: u32) {
        self.for_each_run(&mut self.cursor(), |_, folio, range| {
            if range.start < end {
                folio.unfreeze(range.end - range.start);
            }
            unlock::<M>(folio).into_owned();
            true
        });
    }

    /// The first folio becomes all of it; the descriptors of the others go.
    fn join(&self, vma: &Vma, found: &Found) {
        let mm = M::mm();
        let zone = mm.zone(found.first.place());
        let head = mm.mapped_folio(found.first);
        let ops = found.first.place().device_number().map(|n| mm.device(n).ops());
        // The entry counts once; it names the head before anybody can find it there.
        self.replace(vma, Entry::mapping(found.first, found.attrs), |folio, _| {
            if core::ptr::eq(folio, head) {
                return;
            }
            if let Some(ops) = ops {
                ops.folio_merge(head, folio);
            }
            mm.charge_like(folio, head);
            head.inherit(folio);
            folio.end_frozen::<M>();
        });
        head.set_order(Order::PMD);
        // Whatever was said of its parts, all of it is mapped.
        head.clear_partial();
        head.set_maps(1);
        zone.set_owner(found.first, Order::PMD, head.slab_index());
        head.unfreeze(1);
        unlock::<M>(head).into_owned(); // the entry's
    }

    /// A folio with all contents, on the same device.
    fn copy_on_device(&self, vma: &Vma, found: &Found) -> Result<FolioRef<M>, MergeCause> {
        let mm = M::mm();
        let place = found.first.place();
        let device = place.private_device().ok_or(MergeCause::Elsewhere)?;
        let copy = mm.alloc_folio(place, Order::PMD, Need::User).map_err(|_| MergeCause::NoMemory)?;
        let mut page = 0;
        while page < PTRS as u32 {
            let entry = self.cursor().entry_at(self.addr(page));
            let Some((src, _)) = named(entry) else { return Err(MergeCause::Busy) };
            let folio = mm.mapped_folio(src);
            let left = folio.order().pages() - (src.index() - folio.frame().index());
            // As much as lies there in one piece and is mapped in one piece.
            let order = Order::largest(page, left);
            let order = if self.is_in_order(page, order, src) { order } else { Order::BASE };
            let op = CopyOp::Copy { src, dst: copy.frame().offset(page), order };
            if !mm.device(device).engine().run(&op) {
                return Err(MergeCause::CopyFailed);
            }
            page += order.pages();
        }
        copy.set_link(RmapLink { anon: vma.anon(), index: vma.page_index(self.base) });
        Ok(copy)
    }

    fn is_in_order(&self, page: u32, order: Order, first: Frame) -> bool {
        self.cursor().is_device_private_run(self.addr(page), order.pages(), first)
    }

    /// The copy takes over; the small pages are free.
    fn move_in(&self, vma: &Vma, found: &Found, copy: FolioRef<M>) {
        copy.set_resident();
        copy.set_maps(1);
        // As where they grow together in place: the first page's word and group stay.
        let first = M::mm().mapped_folio(found.first);
        M::mm().charge_like(&copy, first);
        let word = first.driver_word();
        if word != 0 {
            note_arrived::<M>(&copy, word);
        }
        let copy: &'static Folio = copy.into_owned();
        let mm = M::mm();
        self.replace(vma, Entry::mapping(copy.frame(), found.attrs), |folio, n| {
            // Pages that nobody mapped any more end here.
            let dead = folio.order().pages() - n;
            if let Some(number) = folio.place().device_number().filter(|_| dead != 0) {
                M::count(Event::DevicePagesDropped, u64::from(dead));
                mm.device(number).dropped(dead);
            }
            if folio.is_dirty() {
                copy.set_dirty();
            }
            // Not dropped from the device: the copy is there.
            folio.clear_resident();
            folio.set_maps(0);
            folio.unfreeze(1);
            drop(unlock::<M>(folio));
        });
    }
}

const _: () = assert!(Level::Pmd.size() == PMD_SIZE);
