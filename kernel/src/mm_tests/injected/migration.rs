//! Moves between RAM and devices, by call, by fault and by eviction.

use farpage_mm::{Frame, MigrateFlags, MigrateOptions, Order, Place, Sources, VaRange};

use super::memory::touch;
use super::{
    Operation, PMD, PTE, SIZES, every_allocation_fails, filled, on_device, read, still_filled, untouched,
};
use crate::mm_tests::support::{DEV0, Space, check_zero, fill, frame_at, pages, resident};
use crate::testing::Unmet;
use crate::vm::mm;

const DEV1: Place = Place::device(1);

crate::ktest! {
    needs(memory_mib = 64)
    fn faults_on_device_memory_bear_every_failure() {
        for memory in SIZES {
            every_allocation_fails(memory, 1, on_device, touch, still_filled)?;
        }
    }
}

/// A migration is never refused: what could not go is in the report.
fn migrate(space: &Space, range: VaRange, to: Place) -> Result<bool, Unmet> {
    let report = space.space().migrate(range, to)?;
    crate::check!(report.pages + report.failed_pages() <= range.nr_pages(), "{report:?}");
    Ok(report.failed_pages() != 0)
}

crate::ktest! {
    needs(memory_mib = 64)
    fn migrations_bear_every_failure_in_both_directions() {
        for (memory, pages) in [(PTE, super::SMALL), (PMD, 1)] {
            // Memory for each, and for the batch and its units.
            every_allocation_fails(memory, pages + 2, filled, |s, r| migrate(s, r, DEV0), still_filled)?;
            every_allocation_fails(memory, pages + 2, on_device, |s, r| migrate(s, r, Place::RAM), still_filled)?;
            every_allocation_fails(memory, pages + 2, read, |s, r| migrate(s, r, DEV0), check_zero)?;
            every_allocation_fails(memory, pages + 2, untouched, |s, r| migrate(s, r, DEV0), check_zero)?;
        }
    }
}

crate::ktest! {
    needs(memory_mib = 64)
    fn migrations_of_parts_bear_every_failure() {
        let there: Operation = |space, range| migrate(space, pages(range, 100, 200), DEV0);
        let back: Operation = |space, range| migrate(space, pages(range, 100, 200), Place::RAM);
        every_allocation_fails(PMD, 20, filled, there, still_filled)?;
        every_allocation_fails(PMD, 5, on_device, back, still_filled)?;
    }
}

crate::ktest! {
    needs(memory_mib = 64)
    fn migrations_that_fault_bear_every_failure() {
        let write: Operation = |space, range| {
            let flags = MigrateFlags::FAULT | MigrateFlags::WRITE;
            let options = MigrateOptions { hole_order: Order::new(3), ..MigrateOptions::to(DEV0).with(flags) };
            let mut units = 0;
            let report = space.space().migrate_with(range, DEV0, &options, &mut |_| units += 1)?;
            crate::check!(units > 0 || report.pages == 0, "{report:?}");
            Ok(report.failed_pages() != 0)
        };
        for memory in SIZES {
            every_allocation_fails(memory, 3, filled, write, still_filled)?;
            every_allocation_fails(memory, 3, read, write, check_zero)?;
            every_allocation_fails(memory, 3, untouched, write, check_zero)?;
        }
    }
}

crate::ktest! {
    needs(devices = 2)
    fn moves_from_device_to_device_bear_every_failure() {
        let over: Operation = |space, range| {
            let options = MigrateOptions::to(DEV1).from(Sources::of(DEV0));
            let report = space.space().migrate_with(range, DEV1, &options, &mut |_| {})?;
            crate::check_eq!((resident(0), resident(0) + resident(1)), (report.failed_pages(), range.nr_pages()));
            Ok(report.failed_pages() != 0)
        };
        for (memory, pages) in [(PTE, super::SMALL), (PMD, 1)] {
            every_allocation_fails(memory, pages + 2, on_device, over, still_filled)?;
        }
    }
}

/// A huge page and small ones, all on the device.
fn of_both_sizes(space: &Space, range: VaRange) -> Result<(), Unmet> {
    fill(range, 81)?;
    space.space().migrate(range, DEV0)?;
    space.space().migrate(pages(range, 3, 2), Place::RAM)?;
    space.space().migrate(range, DEV0)?;
    crate::check_eq!(resident(0), range.nr_pages());
    Ok(())
}

crate::ktest! {
    needs(memory_mib = 64)
    fn evictions_bear_every_failure() {
        let all: Operation = |_, _| Ok(mm().evict_range(DEV0, 0..u32::MAX).failed_pages() != 0);
        let scattered: Operation = |space, range| {
            let page = |n| frame_at(space, pages(range, n, 1).start.0).unwrap_or(Frame::ram(0));
            // Of a huge page one frame is enough; those that have gone already are passed over.
            let frames = [page(9), page(3), page(4), page(range.nr_pages() - 1), page(3)];
            let report = mm().evict_frames(&frames);
            let left = [3, 4, 9, range.nr_pages() - 1].into_iter().filter(|&n| page(n).place() == DEV0).count();
            crate::check_eq!(left == 0, report.failed_pages() == 0, "{report:?}");
            Ok(left != 0)
        };
        for (memory, pages) in [(PTE, super::SMALL), (PMD, 1)] {
            every_allocation_fails(memory, pages + 2, on_device, all, still_filled)?;
            every_allocation_fails(memory, 3, on_device, scattered, still_filled)?;
            every_allocation_fails(memory, 5, of_both_sizes, scattered, still_filled)?;
        }
    }
}
