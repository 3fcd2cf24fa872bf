//! 2 MiB pages for which there is no room in one piece, and the sizes that the benchmark goes through.

use alloc::sync::Arc;

use farpage_mm::{Event, HugeAdvice, Level, PMD_SIZE, VaRange};

use super::kit::{
    Fixture, buffer, check, check_zero, device_finds, device_finds_zeros, fill, map, to_device,
};
use crate::mm_tests::support::{Space, counting, kinds, order_at};
use crate::testing::Unmet;
use crate::vm::user::user_read_u64;

/// No huge page at the destination, once each way: 512 single ones take its place, whatever the source was.
pub(super) fn migrate_anon_huge_err(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, 512, HugeAdvice::Huge)?;
    fill(range)?;
    device.fail_next_huge();
    let (moved, torn) = counting(Event::MigrateSplit, || to_device(&device, range));
    moved?;
    crate::check_eq!((torn, on.resident(0)), (1, 512));
    crate::check_eq!(order_at(space, range.start.0), Some(0));
    // Number 2048, which is in page 2.
    crate::check_eq!(user_read_u64(range.start.0 + 2048 * 4)? as u32, 2048);
    space.space().unmap(range)?;

    let range = map(space, 512, HugeAdvice::Huge)?;
    fill(range)?;
    to_device(&device, range)?;
    crate::check_eq!(order_at(space, range.start.0), Some(9));
    device.fail_next_huge();
    let done = device.migrate_to_system(range)?;
    crate::check_eq!((done.cpages, on.resident(0)), (512, 0));
    crate::check_eq!((kinds(space, range).present, order_at(space, range.start.0)), (512, Some(0)));
    crate::check_eq!(user_read_u64(range.start.0 + 2048 * 4)? as u32, 2048);
    check(range)
}

/// The same for a huge hole, and for the zero folio.
pub(super) fn migrate_anon_huge_zero_err(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    for touched in [false, true] {
        let range = map(space, 512, HugeAdvice::Huge)?;
        if touched {
            crate::check_eq!(user_read_u64(range.start.0)?, 0);
            crate::check_eq!(kinds(space, range).huge_zero, 1);
        }
        device.fail_next_huge();
        let done = device_finds_zeros(range, |to| device.migrate_to_device(range.start, to))?;
        crate::check_eq!((done.cpages, on.resident(0)), (512, 512));
        crate::check_eq!(
            (space.entry_at(range.start).0, order_at(space, range.start.0)),
            (Level::Pte, Some(0))
        );
        check_zero(range)?;
        space.space().unmap(range)?;
    }
    Ok(())
}

/// The round trips that the benchmark times, in small: both ways by command, data and counts right each time. `cargo run --
/// bench` has the figures.
pub(super) fn benchmark_thp_migration(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    for bytes in [PMD_SIZE / 4, PMD_SIZE / 2, PMD_SIZE, 2 * PMD_SIZE] {
        for advice in [HugeAdvice::Huge, HugeAdvice::NoHuge] {
            let range = VaRange::new(buffer(0).start.0, bytes);
            space.space().map_anon(range, farpage_mm::Prot::RW, advice)?;
            fill(range)?;
            let huge = advice == HugeAdvice::Huge && bytes >= PMD_SIZE;
            for _ in 0..2 {
                to_device(&device, range)?;
                crate::check_eq!(on.resident(0), range.nr_pages());
                let done = device.migrate_to_system(range)?;
                let units = if huge { bytes / PMD_SIZE } else { range.nr_pages() };
                crate::check_eq!((done.cpages, on.resident(0)), (units, 0));
                let found = kinds(space, range);
                let expected = if huge { (units as u32, 0) } else { (0, units as u32) };
                crate::check_eq!((found.huge_present, found.present), expected);
            }
            device_finds(range.start.0, range, 0, |to| device.read(range.start, to))?;
            check(range)?;
            space.space().unmap(range)?;
        }
    }
    Ok(())
}
