//! Coherent devices beside private ones: their pages are mapped where they lie, with the kernel's own memory type.

use farpage_mm::{Cause, Event, FlushReason, HugeAdvice, PAGE_SIZE, PMD_SIZE, Place, Prot, VaRange, Vaddr};

use super::stale::{probes, with_and_without, write_from_elsewhere};
use super::support::{
    DEV0, Held, Kinds, Space, check, check_zero, counting, fill, frame_at, huge_chunks, in_space, kinds, map,
    pages, pattern, resident,
};
use crate::arch::x86_64::tlb;
use crate::arch::x86_64::walk::Walk;
use crate::testing::Unmet;
use crate::vm::devmem;
use crate::vm::user::{user_read_u64, user_write_u64};

const COH2: Place = Place::coherent(2);
const COH3: Place = Place::coherent(3);
/// PWT and PCD; the bit of PAT is another at each size.
const CACHE_BITS: u64 = 1 << 3 | 1 << 4;

/// Every page of `range` lies in `place`, and where the device has memory, what stands in its BAR is the pattern.
fn lies_in(space: &Space, range: VaRange, place: Place, seed: u64) -> Result<(), Unmet> {
    for page in (range.start.0..range.end.0).step_by(PAGE_SIZE as usize) {
        let Some(frame) = frame_at(space, page) else { crate::fail!("nothing at {page:#x}") };
        crate::check_eq!(frame.place(), place, "{page:#x}");
        if let Some(device) = place.device_number().and_then(devmem::device) {
            crate::check_eq!(device.read(device.address_of(frame)), Some(pattern(page, seed)), "{page:#x}");
        }
    }
    Ok(())
}

crate::ktest! {
    needs(devices = 4, coherent = 2)
    fn pages_are_used_in_coherent_memory_without_a_fault_and_come_back_on_request() {
        in_space(|space| {
            let range = map(space, 3 * PMD_SIZE, HugeAdvice::Huge)?;
            let small = pages(range, 1024, 100);
            space.space().advise_huge(pages(range, 1024, 512), HugeAdvice::NoHuge)?;
            let used = pages(range, 0, 1124);
            fill(used, 61)?;
            let (report, flushes) = counting(Event::TlbFlush, || space.space().migrate(used, COH2));
            let report = report?;
            crate::check_eq!((report.pages, report.huge_pages, report.failed_pages(), flushes), (1124, 1024, 0, 1));
            lies_in(space, used, COH2, 61)?;
            let expected = Kinds { huge_present: 2, present: 100, ..Kinds::default() };
            crate::check_eq!(kinds(space, used), expected);
            // The CPU's stores are the device's memory.
            let (done, faults) = counting(Event::PgFault, || {
                check(used, 61)?;
                fill(used, 62)?;
                lies_in(space, used, COH2, 62)
            });
            done?;
            crate::check_eq!(faults, 0);
            let (report, flushes) = counting(Event::TlbFlush, || space.space().migrate(used, Place::RAM));
            crate::check_eq!((report?.pages, flushes), (1124, 1), "{small}");
            lies_in(space, used, Place::RAM, 62)?;
            check(used, 62)?;
            crate::check_eq!(resident(2), 0);
            Ok(())
        })?;
    }
}

crate::ktest! {
    needs(devices = 4, coherent = 2)
    fn users_and_the_kernel_map_coherent_memory_with_one_type() {
        in_space(|space| {
            let range = map(space, PMD_SIZE + PAGE_SIZE, HugeAdvice::Huge)?;
            fill(range, 63)?;
            space.space().migrate(range, COH3)?;
            let root = tlb::root().start_address().as_u64();
            for (page, pat) in [(range.start.0, 1 << 12), (range.start.0 + PMD_SIZE, 1 << 7)] {
                let Some(frame) = frame_at(space, page) else { crate::fail!("nothing at {page:#x}") };
                let phys = u64::from(frame.index()) * PAGE_SIZE;
                let walk = Walk::new(root, page);
                crate::check_eq!(walk.translate(page), Some(phys), "{walk}");
                crate::check_eq!(walk.leaf().map(|leaf| leaf.entry & (CACHE_BITS | pat)), Some(0), "write-back");
                // The kernel's window maps large pages.
                let window = crate::vm::window_of(frame);
                let walk = Walk::current(window);
                crate::check_eq!(walk.translate(window), Some(phys), "{walk}");
                crate::check_eq!(walk.leaf().map(|leaf| leaf.entry & (CACHE_BITS | 1 << 12)), Some(0), "{walk}");
            }
            Ok(())
        })?;
    }
}

crate::ktest! {
    needs(devices = 4, coherent = 2)
    fn holes_and_zero_pages_get_cleared_coherent_memory() {
        in_space(|space| {
            let range = map(space, 3 * PMD_SIZE, HugeAdvice::Huge)?;
            space.space().advise_huge(pages(range, 1024, 512), HugeAdvice::NoHuge)?;
            check_zero(pages(range, 512, 1))?;
            check_zero(pages(range, 1024, 2))?;
            // What was in the device's memory before must not be seen.
            let dirt = VaRange::new(range.end.0 + PMD_SIZE, 4 * PMD_SIZE);
            space.space().map_anon(dirt, Prot::RW, HugeAdvice::Huge)?;
            fill(dirt, 64)?;
            space.space().migrate(dirt, COH2)?;
            space.space().unmap(dirt)?;
            let used = pages(range, 0, 1030);
            let report = space.space().migrate(used, COH2)?;
            crate::check_eq!((report.pages, report.holes, report.huge_pages), (1030, 1030, 1024));
            let (zeros, faults) = counting(Event::PgFault, || check_zero(used));
            zeros?;
            crate::check_eq!(faults, 0);
            fill(used, 65)?;
            lies_in(space, used, COH2, 65)
        })?;
    }
}

crate::ktest! {
    needs(devices = 4, coherent = 2)
    fn four_devices_of_both_kinds_keep_their_own_pages() {
        in_space(|space| {
            let range = map(space, 4 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 66)?;
            let places = [DEV0, Place::device(1), COH2, COH3];
            let part = |n: usize| pages(range, n as u64 * 512, 512);
            for (n, place) in places.into_iter().enumerate() {
                crate::check_eq!(space.space().migrate(part(n), place)?.huge_pages, 512);
            }
            crate::check_eq!([0, 1, 2, 3].map(resident), [512; 4]);
            for (n, place) in places.into_iter().enumerate() {
                lies_in(space, part(n), place, 66)?;
                // Nobody takes what is another's.
                let report = space.space().migrate(range, place)?;
                crate::check_eq!((report.pages, report.failed[Cause::Foreign as usize]), (0, 3 * 512), "{place}");
            }
            // Touches bring back what is private, and leave the rest.
            check(range, 66)?;
            crate::check_eq!([0, 1, 2, 3].map(resident), [0, 0, 512, 512]);
            crate::check_eq!(space.space().migrate(range, Place::RAM)?.huge_pages, 1024);
            crate::check_eq!([0, 1, 2, 3].map(resident), [0; 4]);
            check(range, 66)
        })?;
    }
}

crate::ktest! {
    needs(devices = 4, coherent = 2)
    fn a_part_comes_back_and_the_rest_of_a_huge_page_stays_in_coherent_memory() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 67)?;
            space.space().migrate(range, COH2)?;
            crate::check_eq!(space.space().migrate(pages(range, 256, 128), Place::RAM)?.pages, 128);
            lies_in(space, pages(range, 0, 256), COH2, 67)?;
            lies_in(space, pages(range, 256, 128), Place::RAM, 67)?;
            lies_in(space, pages(range, 384, 128), COH2, 67)?;
            check(range, 67)?;
            let free = huge_chunks(COH2);
            space.space().unmap(pages(range, 0, 256))?;
            crate::check_eq!(resident(2), 128);
            check(pages(range, 256, 256), 67)?;
            space.space().unmap(range)?;
            crate::check_eq!((resident(2), huge_chunks(COH2)), (0, free + 1), "the chunks grow together again");
            Ok(())
        })?;
    }
}

crate::ktest! {
    needs(devices = 4, coherent = 2)
    fn pages_arrive_in_pieces_where_no_large_chunk_is_free() {
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 68)?;
            let held = Held::every_second(COH3, farpage_mm::Order::new(3));
            let report = space.space().migrate(range, COH3)?;
            crate::check_eq!((report.pages, report.torn), (1024, 1024));
            lies_in(space, range, COH3, 68)?;
            drop(held);
            crate::check_eq!(space.space().migrate(range, Place::RAM)?.pages, 1024);
            check(range, 68)
        })?;
    }
}

crate::ktest! {
    needs(devices = 4, coherent = 2)
    fn without_the_flush_of_a_migration_out_of_coherent_memory_the_device_is_still_read() {
        with_and_without(FlushReason::Migrate, |space, range, flushing| {
            fill(range, 69)?;
            space.space().migrate(range, COH2)?;
            for at in probes(range) {
                crate::check_eq!(user_read_u64(at), Ok(pattern(at, 69)));
            }
            let mut stale = 0;
            flushing(&mut || {
                space.space().migrate(range, Place::RAM)?;
                for at in probes(range) {
                    write_from_elsewhere(space, at, pattern(at, 70))?;
                }
                stale = probes(range).filter(|&at| user_read_u64(at) != Ok(pattern(at, 70))).count() as u64;
                Ok(())
            })?;
            Ok(stale)
        })?;
    }
}

crate::ktest! {
    needs(devices = 4, coherent = 2)
    fn coherent_frames_are_physical_and_lie_where_no_inverted_number_leads() {
        for device in devmem::devices().filter(|device| device.place().is_coherent()) {
            let (start, end) = (device.phys().as_u64(), device.phys().as_u64() + device.len_bytes());
            crate::check_eq!(u64::from(device.base()) * PAGE_SIZE, start);
            let half = 1_u64 << (crate::arch::x86_64::features::get().phys_bits - 1);
            crate::check!(end <= half, "{start:#x}..{end:#x} is in the upper half of {half:#x}");
            crate::check!(crate::arch::x86_64::memtype::mtrr_allows_caching(start, end));
        }
        in_space(|space| {
            let range = map(space, PAGE_SIZE, HugeAdvice::NoHuge)?;
            space.space().migrate(range, COH2)?;
            user_write_u64(range.start.0, 71)?;
            let (_, entry) = space.entry_at(Vaddr(range.start.0));
            let Some(frame) = frame_at(space, range.start.0) else { crate::fail!("{entry:?}") };
            let device = devmem::device(2).map(|device| device.read(device.address_of(frame)));
            crate::check_eq!(device, Some(Some(71)));
            Ok(())
        })?;
    }
}
