//! Other machines: two devices, small and large ones, little RAM and much.

use farpage_mm::{
    BATCH_PAGES, Cause, HugeAdvice, Machine as _, MigrateFlags, MigrateOptions, Order, PAGE_SIZE, PMD_SIZE,
    Place, Prot, Sources, VaRange, Verdict,
};

use super::support::{
    BASE, DEV0, Held, Kinds, check, check_zero, fill, frame_at, in_space, kinds, map, pages, pattern,
    resident,
};
use crate::testing::Unmet;
use crate::vm::user::user_read_u64;
use crate::vm::{Machine, devmem, mm};

const DEV1: Place = Place::device(1);
/// The first page frame number above 4 GiB.
const ABOVE_4G: u32 = 1 << 20;

crate::ktest! {
    needs(devices = 2)
    fn two_devices_hold_their_own_pages_and_do_not_take_each_others() {
        in_space(|space| {
            let range = map(space, 4 * PMD_SIZE, HugeAdvice::Huge)?;
            let (first, second) = (pages(range, 0, 1024), pages(range, 1024, 1024));
            fill(range, 91)?;
            space.space().migrate(first, DEV0)?;
            space.space().migrate(second, DEV1)?;
            crate::check_eq!((resident(0), resident(1)), (1024, 1024));
            // Each one's bytes are in its own BAR.
            for (part, number) in [(first, 0), (second, 1)] {
                let (Some(device), Some(frame)) = (devmem::device(number), frame_at(space, part.start.0)) else {
                    crate::fail!("no device {number}")
                };
                crate::check_eq!(frame.place(), Place::device(number));
                let at = farpage_device::DeviceAddr(u64::from(frame.index()) * PAGE_SIZE);
                crate::check_eq!(device.read(at), Some(pattern(part.start.0, 91)));
            }
            let refused = space.space().migrate(range, DEV1)?;
            crate::check_eq!((refused.pages, refused.failed[Cause::Foreign as usize]), (0, 1024));
            crate::check_eq!((resident(0), resident(1)), (1024, 1024));
            check(range, 91)?;
            crate::check_eq!((resident(0), resident(1)), (0, 0));
            // By way of RAM it goes.
            crate::check_eq!(space.space().migrate(range, DEV1)?.pages, 2048);
            check(range, 91)
        })?;
    }
}

crate::ktest! {
    needs(devices = 2)
    fn pages_go_from_one_device_straight_to_the_other() {
        in_space(|space| {
            let range = map(space, 3 * PMD_SIZE, HugeAdvice::Huge)?;
            let small = pages(range, 1024, 512);
            space.space().advise_huge(small, HugeAdvice::NoHuge)?;
            fill(range, 93)?;
            space.space().migrate(range, DEV0)?;
            let ram = mm().zone(Place::RAM).stat().free;
            let options = MigrateOptions::to(DEV1).from(Sources::of(DEV0));
            let mut moved = 0;
            let report = space.space().migrate_with(range, DEV1, &options, &mut |unit| {
                moved += if unit.verdict == Verdict::Moved { unit.pages } else { 0 };
            })?;
            crate::check_eq!((report.units, report.pages, report.failed_pages(), moved), (514, 1536, 0, 1536));
            crate::check_eq!((resident(0), resident(1)), (0, 1536));
            crate::check!(mm().zone(Place::RAM).stat().free >= ram - 64, "nothing goes through RAM");
            // Word for word in the other BAR.
            let (Some(device), Some(frame)) = (devmem::device(1), frame_at(space, small.start.0 + PAGE_SIZE)) else {
                crate::fail!("no second device")
            };
            let at = farpage_device::DeviceAddr(u64::from(frame.index()) * PAGE_SIZE + 8);
            crate::check_eq!(device.read(at), Some(pattern(small.start.0 + PAGE_SIZE + 8, 93)));
            check(range, 93)?;
            crate::check_eq!((resident(0), resident(1)), (0, 0));
            Ok(())
        })?;
    }
}

crate::ktest! {
    needs(devices = 4, coherent = 2)
    fn pages_go_between_devices_of_either_kind() {
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            let small = pages(range, 512, 512);
            space.space().advise_huge(small, HugeAdvice::NoHuge)?;
            fill(range, 95)?;
            let mut from = DEV0;
            space.space().migrate(range, from)?;
            // Private to coherent, coherent to coherent, coherent to private, private to private.
            for to in [Place::coherent(2), Place::coherent(3), DEV1, DEV0] {
                let options = MigrateOptions::to(to).from(Sources::of(from));
                let report = space.space().migrate_with(range, to, &options, &mut |_| {})?;
                crate::check_eq!((report.units, report.pages, report.failed_pages()), (513, 1024, 0));
                let held = [0, 1, 2, 3].map(resident);
                let expected = [0, 1, 2, 3].map(|n| if to.device_number() == Some(n) { 1024 } else { 0 });
                crate::check_eq!(held, expected);
                if to.is_coherent() {
                    check(range, 95)?; // where it lies
                }
                from = to;
            }
            check(range, 95)
        })?;
    }
}

crate::ktest! {
    needs(devices = 2)
    fn what_is_absent_or_elsewhere_is_faulted_in_by_the_migration_itself() {
        in_space(|space| {
            let range = map(space, 4 * PMD_SIZE, HugeAdvice::Huge)?;
            let (filled, zero) = (pages(range, 0, 1024), pages(range, 1024, 1024));
            fill(filled, 94)?;
            user_read_u64(zero.start.0)?;
            space.space().migrate(pages(range, 0, 512), DEV0)?;
            let options = MigrateOptions::to(DEV1).with(MigrateFlags::FAULT | MigrateFlags::WRITE);
            let report = space.space().migrate_with(range, DEV1, &options, &mut |_| {})?;
            crate::check_eq!((report.pages, report.holes, report.failed_pages()), (2048, 1024, 0));
            let expected = Kinds { huge_device: 4, ..Kinds::default() };
            crate::check_eq!((kinds(space, range), resident(0), resident(1)), (expected, 0, 2048));
            check(filled, 94)?;
            check_zero(zero)
        })?;
    }
}

/// To the device and back, by call and by fault, with as many huge pages as the device has room for, and one more.
fn fill_device(huge_pages: u64) -> Result<(), Unmet> {
    in_space(|space| {
        let range = map(space, (huge_pages + 1) * PMD_SIZE, HugeAdvice::Huge)?;
        fill(range, 92)?;
        let report = space.space().migrate(range, DEV0)?;
        crate::check_eq!(
            (report.huge_pages, report.failed[Cause::NoMemory as usize]),
            (huge_pages * 512, 512)
        );
        let expected = Kinds { huge_device: huge_pages as u32, huge_present: 1, ..Kinds::default() };
        crate::check_eq!(kinds(space, range), expected);
        check(range, 92)
    })
}

crate::ktest! {
    needs(device_mib = 4)
    fn a_device_of_four_mebibytes_takes_two_huge_pages() {
        fill_device(2)?;
    }
}

crate::ktest! {
    needs(device_mib = 1024)
    fn a_device_of_a_gibibyte_is_used_to_its_end() {
        let Some(device) = devmem::device(0) else { crate::fail!("no device") };
        let last = (device.len_bytes() / PAGE_SIZE) as u32 - Order::PMD.pages();
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 93)?;
            let mut held = Held::all(DEV0, Order::PMD);
            crate::check_eq!(held.len(), 512);
            held.give_back_those(|frame| frame.index() == last);
            crate::check_eq!(space.space().migrate(range, DEV0)?.huge_pages, 512);
            crate::check_eq!(frame_at(space, range.start.0).map(|frame| frame.index()), Some(last));
            check(range, 93)?;
            drop(held);
            Ok(())
        })?;
    }
}

crate::ktest! {
    needs(device_mib = 1024)
    fn a_hole_of_a_gibibyte_goes_to_the_device_in_one_call() {
        in_space(|space| {
            // What was there before must not be seen.
            let dirt = VaRange::new(BASE - (1 << 30), 8 * PMD_SIZE);
            space.space().map_anon(dirt, Prot::RW, HugeAdvice::Huge)?;
            fill(dirt, 96)?;
            crate::check_eq!(space.space().migrate(dirt, DEV0)?.huge_pages, 8 * 512);
            let dirty = frame_at(space, dirt.start.0);
            space.space().unmap(dirt)?;

            let range = map(space, 1 << 30, HugeAdvice::Huge)?;
            let (all, ram) = (range.nr_pages(), mm().zone(Place::RAM).stat().free);
            let report = space.space().migrate(range, DEV0)?;
            crate::check_eq!((report.units, report.pages, report.failed_pages()), (512, all, 0));
            crate::check_eq!((report.holes, report.huge_pages, report.batches), (all, all, all / u64::from(BATCH_PAGES)));
            crate::check_eq!(kinds(space, range), Kinds { huge_device: 512, ..Kinds::default() });
            crate::check_eq!((resident(0), mm().device(0).memory().free), (all, 0));
            crate::check!(ram - mm().zone(Place::RAM).stat().free < 64, "one table, and what describes 512 folios");
            // All of it is cleared: first and last words of every page of 64 KiB, where they lie.
            let mut found = false;
            for page in (range.start.0..range.end.0).step_by(16 * PAGE_SIZE as usize) {
                let Some(frame) = frame_at(space, page) else { crate::fail!("nothing at {page:#x}") };
                found |= dirty.is_some_and(|dirty| dirty == frame);
                let mut words = [1; 512];
                Machine::read_frame(frame, 0, &mut words);
                crate::check!(words == [0; 512], "{page:#x}, in {frame}");
            }
            crate::check!(found, "memory that was used before is among it");
            // One comes back, and goes again with the rest in one call.
            let last = pages(range, all - 512, 512);
            fill(last, 97)?;
            crate::check_eq!(space.space().migrate(range, DEV0)?.pages, 512);
            check(last, 97)?;
            space.space().unmap(range)?;
            crate::check_eq!(resident(0), 0);
            Ok(())
        })?;
    }
}

/// Moves pages whose frames are all chosen by `wanted`.
fn round_trip_in(wanted: fn(u32) -> bool) -> Result<(), Unmet> {
    in_space(|space| {
        let mut held = Held::all(Place::RAM, Order::PMD);
        held.give_back_those(|frame| wanted(frame.index()));
        let huge = map(space, 4 * PMD_SIZE, HugeAdvice::Huge)?;
        fill(huge, 94)?;
        for page in (huge.start.0..huge.end.0).step_by(PMD_SIZE as usize) {
            crate::check!(frame_at(space, page).is_some_and(|frame| wanted(frame.index())), "{page:#x}");
        }
        space.space().migrate(huge, DEV0)?;
        crate::check_eq!(user_read_u64(huge.start.0), Ok(pattern(huge.start.0, 94)));
        crate::check!(frame_at(space, huge.start.0).is_some_and(|frame| wanted(frame.index())));
        space.space().migrate(pages(huge, 100, 1000), DEV0)?;
        check(huge, 94)?;
        drop(held);
        Ok(())
    })
}

crate::ktest! {
    needs(memory_mib = 5120)
    fn ram_above_four_gibibytes_is_used() {
        round_trip_in(|pfn| pfn >= ABOVE_4G)?;
    }
}

crate::ktest! {
    needs(memory_mib = 3072)
    fn ram_below_and_above_the_hole_is_used() {
        round_trip_in(|pfn| pfn >= ABOVE_4G)?;
        round_trip_in(|pfn| pfn < ABOVE_4G)?;
    }
}

crate::ktest! {
    needs(memory_mib = 64)
    fn a_machine_of_64_mebibytes_moves_pages_too() {
        in_space(|space| {
            let range = map(space, 8 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 95)?;
            let report = space.space().migrate(range, DEV0)?;
            crate::check_eq!((report.pages, report.failed_pages()), (4096, 0));
            check(range, 95)
        })?;
    }
}
