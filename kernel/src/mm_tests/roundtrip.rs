//! To the device and back, at both sizes, with every word checked.

use farpage_device::DeviceAddr;
use farpage_mm::{Entry, HugeAdvice, PAGE_SIZE, PMD_SIZE, Place, VaRange, Vaddr};

use super::support::{DEV0, Kinds, check, fill, in_space, kinds, map, on_the_usual_machine, pattern};
use crate::vm::devmem;
use crate::vm::user::{user_read_u64, user_write_u64};

crate::ktest! {
    fn huge_pages_move_as_one_unit_and_come_back_by_fault() {
        on_the_usual_machine()?;
        in_space(|space| {
            let range = map(space, 4 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 1)?;
            crate::check_eq!(kinds(space, range), Kinds { huge_present: 4, ..Kinds::default() });
            let report = space.space().migrate(range, DEV0)?;
            crate::check_eq!((report.units, report.huge_pages, report.failed_pages()), (4, 2048, 0));
            crate::check_eq!(kinds(space, range), Kinds { huge_device: 4, ..Kinds::default() });
            // A read brings one back, a write another; the rest stays.
            crate::check_eq!(user_read_u64(range.start.0 + 8), Ok(pattern(range.start.0 + 8, 1)));
            let written = range.start.0 + PMD_SIZE + PAGE_SIZE;
            user_write_u64(written, 7)?;
            crate::check_eq!(kinds(space, range), Kinds { huge_present: 2, huge_device: 2, ..Kinds::default() });
            crate::check_eq!(user_read_u64(written), Ok(7));
            user_write_u64(written, pattern(written, 1))?;
            check(range, 1)
        })?;
    }
}

crate::ktest! {
    fn small_pages_move_in_one_call_and_come_back_one_by_one() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::NoHuge)?;
            fill(range, 2)?;
            let report = space.space().migrate(range, DEV0)?;
            crate::check_eq!((report.units, report.pages, report.huge_pages), (512, 512, 0));
            crate::check_eq!(kinds(space, range), Kinds { device: 512, ..Kinds::default() });
            crate::check_eq!(user_read_u64(range.start.0), Ok(pattern(range.start.0, 2)));
            crate::check_eq!(kinds(space, range), Kinds { present: 1, device: 511, ..Kinds::default() });
            check(range, 2)
        })?;
    }
}

crate::ktest! {
    fn the_devices_own_memory_holds_the_bytes() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 3)?;
            space.space().migrate(range, DEV0)?;
            let Entry::NonPresent(soft) = space.entry_at(range.start).1 else { crate::fail!("not on the device") };
            let Some(device) = devmem::device(0) else { crate::fail!("no device") };
            for offset in (0..PMD_SIZE).step_by(8) {
                let at = u64::from(soft.frame.index()) * PAGE_SIZE + offset;
                crate::check_eq!(device.read(DeviceAddr(at)), Some(pattern(range.start.0 + offset, 3)));
            }
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn a_mix_of_sizes_and_holes_is_one_call() {
        on_the_usual_machine()?;
        in_space(|space| {
            let range = map(space, 4 * PMD_SIZE, HugeAdvice::Huge)?;
            let huge = VaRange::new(range.start.0, PMD_SIZE);
            let small = VaRange::new(range.start.0 + PMD_SIZE, PMD_SIZE);
            space.space().advise_huge(small, HugeAdvice::NoHuge)?;
            fill(huge, 4)?;
            let touched = VaRange::new(small.start.0, 16 * PAGE_SIZE);
            fill(touched, 4)?;
            // One zero page, one zero folio, one hole of 2 MiB.
            crate::check_eq!(user_read_u64(touched.end.0), Ok(0));
            crate::check_eq!(user_read_u64(small.end.0), Ok(0));
            let report = space.space().migrate(range, DEV0)?;
            crate::check_eq!(report.failed_pages(), 0);
            crate::check_eq!((report.pages, report.holes), (2048, 2048 - 512 - 16));
            crate::check_eq!(kinds(space, range), Kinds { huge_device: 3, device: 512, ..Kinds::default() });
            let back = space.space().migrate(range, Place::RAM)?;
            crate::check_eq!((back.pages, back.failed_pages()), (2048, 0));
            check(huge, 4)?;
            check(touched, 4)?;
            for page in (touched.end.0..range.end.0).step_by(PAGE_SIZE as usize) {
                crate::check_eq!(user_read_u64(page), Ok(0), "{page:#x}");
            }
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn half_of_a_huge_device_page_is_freed_when_it_is_unmapped() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 5)?;
            space.space().migrate(range, DEV0)?;
            let half = VaRange::new(range.start.0, PMD_SIZE / 2);
            let rest = VaRange::new(half.end.0, PMD_SIZE / 2);
            space.space().unmap(half)?;
            crate::check_eq!(crate::vm::mm().device(0).stat().resident, 256);
            crate::check_eq!(kinds(space, rest), Kinds { device: 256, ..Kinds::default() });
            crate::check!(user_read_u64(half.start.0).is_err());
            // One fault brings the order-8 folio back as one unit.
            crate::check_eq!(user_read_u64(rest.start.0), Ok(pattern(rest.start.0, 5)));
            crate::check_eq!(kinds(space, rest), Kinds { present: 256, ..Kinds::default() });
            check(rest, 5)
        })?;
    }
}

crate::ktest! {
    fn a_part_of_a_huge_page_moves_without_the_rest() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 6)?;
            let part = VaRange::between(Vaddr(range.start.0 + 16 * PAGE_SIZE), Vaddr(range.start.0 + 48 * PAGE_SIZE));
            let report = space.space().migrate(part, DEV0)?;
            crate::check_eq!((report.pages, report.failed_pages()), (32, 0));
            crate::check_eq!(kinds(space, range), Kinds { present: 480, device: 32, ..Kinds::default() });
            check(range, 6)
        })?;
    }
}
