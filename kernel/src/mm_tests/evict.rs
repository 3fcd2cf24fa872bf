//! Device memory is emptied by where it lies, and small pages become huge ones.

use farpage_mm::{HugeAdvice, Level, Order, PMD_SIZE, Place};

use super::support::{DEV0, Held, check, fill, in_space, map, pages, resident};
use crate::vm::mm;

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
