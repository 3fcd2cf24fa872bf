//! Device memory is emptied by where it lies, and small pages become huge ones.

use farpage_mm::{Cause, Frame, HugeAdvice, Level, Need, Order, PMD_SIZE, Place};

use super::support::{DEV0, Held, check, fill, frame_at, in_space, map, pages, resident};
use crate::vm::mm;

const DEV1: Place = Place::device(1);

crate::ktest! {
    fn everything_on_the_device_comes_back_by_its_frames() {
        in_space(|space| {
            let range = map(space, 4 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 81)?;
            space.space().migrate(range, DEV0)?;
            let report = mm().evict_range(DEV0, 0..u32::MAX);
            crate::check_eq!((report.huge_pages, report.failed_pages(), resident(0)), (2048, 0, 0));
            check(range, 81)
        })?;
    }
}

crate::ktest! {
    fn eviction_goes_on_in_pieces_where_no_large_page_of_ram_is_free() {
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 82)?;
            space.space().migrate(range, DEV0)?;
            let held = Held::every_second(Place::RAM, Order::new(3));
            let report = mm().evict_range(DEV0, 0..u32::MAX);
            drop(held);
            crate::check_eq!((report.torn, report.failed_pages(), resident(0)), (1024, 0, 0));
            check(range, 82)
        })?;
    }
}

crate::ktest! {
    needs(devices = 2)
    fn every_frame_of_a_list_is_reported_as_what_it_is() {
        in_space(|space| {
            let range = map(space, 3 * PMD_SIZE, HugeAdvice::Huge)?;
            space.space().advise_huge(pages(range, 1024, 512), HugeAdvice::NoHuge)?;
            let used = pages(range, 0, 1040);
            fill(used, 84)?;
            space.space().migrate(pages(range, 0, 1030), DEV0)?;
            space.space().migrate(pages(range, 1030, 10), DEV1)?;
            let frame = |page| frame_at(space, pages(range, page, 1).start.0).unwrap_or(Frame::ram(0));
            let get = |page| mm().try_get_folio(frame(page));
            let held = (get(512), get(1031));
            let (busy, _) = space.space().migrate_collect(pages(range, 1026, 1), Place::RAM)?;
            let free = mm().alloc_folio(DEV0, Order::BASE, Need::User)?.frame();
            // In no order: tails before heads, everything twice or more, from one device and the other.
            let mut frames = [700, 1031, 1026, 1024, 1030, 512, 1026, 700, 1031, 3, 1024, 1031, 0, 800].map(frame).to_vec();
            frames.extend([free, Frame::ram(600), Frame::new(DEV0, u32::MAX), Frame::new(Place::coherent(0), 5)]);
            let report = mm().evict_frames(&frames);
            let stayed = [Cause::Pinned, Cause::Busy].map(|cause| report.failed[cause as usize]);
            crate::check_eq!((report.pages, report.huge_pages, stayed, report.failed_pages()), (514, 512, [513, 1], 514));
            crate::check_eq!((resident(0), resident(1)), (512 + 5, 9));
            drop((held, busy));
            // The same list again: what has gone is passed over.
            let report = mm().evict_frames(&frames);
            crate::check_eq!((report.pages, report.failed_pages()), (514, 0));
            crate::check_eq!((resident(0), resident(1)), (4, 8));
            check(used, 84)
        })?;
    }
}

crate::ktest! {
    fn small_pages_collapse_in_ram_and_merge_on_the_device() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Default)?;
            fill(range, 83)?;
            crate::check_eq!(space.space().collapse(range)?.copied, 1);
            crate::check_eq!(space.entry_at(range.start).0, Level::Pmd);
            check(range, 83)?;
            space.space().migrate(pages(range, 100, 7), DEV0)?;
            space.space().migrate(range, DEV0)?;
            let report = space.space().merge_device(range)?;
            crate::check_eq!(report.copied + report.in_place, 1);
            crate::check_eq!((space.entry_at(range.start).0, resident(0)), (Level::Pmd, 512));
            check(range, 83)
        })?;
    }
}
