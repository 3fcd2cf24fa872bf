//! A device with a page table of its own, over real memory: the direct map for what lies in RAM, the BAR for what does not.

use alloc::vec;
use alloc::vec::Vec;

use farpage_mm::dmirror::{Done, PAGE_WORDS, Snap};
use farpage_mm::{
    AddressSpace, Dmirror, DmirrorError, Entry, Event, HugeAdvice, PAGE_SIZE, PMD_SIZE, Place, Prot,
    SoftKind, VaRange, Vaddr,
};

use super::support::{DEV0, Space, check, counting, fill, in_space, map, pages, pattern, resident};
use crate::testing::Unmet;
use crate::vm::Machine;
use crate::vm::user::{user_read_u64, user_write_u64};

fn open(space: &AddressSpace<Machine>, device: Place) -> Result<Dmirror<Machine>, DmirrorError> {
    Dmirror::open(device, space)
}

fn buffer(range: VaRange) -> Vec<u64> {
    vec![0xee; range.nr_pages() as usize * PAGE_WORDS]
}

/// Compares what the device has read with the pattern, word by word.
fn compare(range: VaRange, words: &[u64], seed: u64) -> Result<(), Unmet> {
    for (i, word) in words.iter().enumerate() {
        let addr = range.start.0 + i as u64 * 8;
        crate::check!(*word == pattern(addr, seed), "{addr:#x}: the device has read {word:#x}");
    }
    Ok(())
}

fn kind(space: &Space, addr: u64) -> Option<SoftKind> {
    match space.entry_at(Vaddr(addr)).1 {
        Entry::NonPresent(soft) => Some(soft.kind),
        _ => None,
    }
}

crate::ktest! {
    fn the_device_reads_and_writes_memory_wherever_it_lies() {
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            let small = VaRange::new(range.end.0 + PMD_SIZE, 64 * PAGE_SIZE);
            space.space().map_anon(small, Prot::RW, HugeAdvice::Default)?;
            fill(range, 31)?;
            fill(small, 31)?;
            let device = open(space, DEV0)?;
            for part in [range, small] {
                let pages = part.nr_pages();
                let mut words = buffer(part);
                crate::check_eq!(device.read(part.start, &mut words)?, Done { cpages: pages, faults: 1 });
                compare(part, &words, 31)?;
                // On the device: the same words, read from the BAR, and no fault.
                words.fill(0);
                crate::check_eq!(device.migrate_to_device(part.start, &mut words)?, Done { cpages: pages, faults: 0 });
                compare(part, &words, 31)?;
                crate::check_eq!(resident(0), pages);
                // A word of the first page changes there; the CPU's touch brings it back.
                words[3] = 0xabcd;
                crate::check_eq!(device.write(part.start, &words[..PAGE_WORDS])?, Done { cpages: 1, faults: 0 });
                crate::check_eq!(resident(0), pages);
                crate::check_eq!(user_read_u64(part.start.0 + 24), Ok(0xabcd));
                user_write_u64(part.start.0 + 24, pattern(part.start.0 + 24, 31))?;
                device.migrate_to_system(part)?;
                crate::check_eq!(resident(0), 0);
                check(part, 31)?;
            }
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn what_is_unmapped_or_protected_is_not_the_devices_any_more() {
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 32)?;
            let device = open(space, DEV0)?;
            let mut words = buffer(range);
            device.read(range.start, &mut words)?;
            let gone = pages(range, 100, 300);
            space.space().unmap(gone)?;
            let mut page = vec![0; PAGE_WORDS];
            crate::check_eq!(device.read(gone.start, &mut page), Err(DmirrorError::Fault));
            crate::check_eq!(device.read(pages(range, 99, 1).start, &mut page)?, Done { cpages: 1, faults: 0 });
            compare(pages(range, 99, 1), &page, 32)?;
            let readable = pages(range, 512, 512);
            space.space().protect(readable, Prot::READ)?;
            crate::check_eq!(device.write(readable.start, &page), Err(DmirrorError::Perm));
            space.space().protect(readable, Prot::RW)?;
            check(readable, 32)
        })?;
    }
}

crate::ktest! {
    fn a_page_that_is_lent_comes_back_to_the_cpu_that_touches_it() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 33)?;
            let device = open(space, DEV0)?;
            let mut words = buffer(range);
            crate::check_eq!(device.exclusive(range.start, &mut words)?, Done { cpages: 512, faults: 0 });
            compare(range, &words, 33)?;
            crate::check_eq!(kind(space, range.start.0), Some(SoftKind::DeviceExclusive));
            crate::check_eq!(device.check_exclusive(range), Err(DmirrorError::Perm));
            // One touch takes all of the huge page back.
            let (read, faults) = counting(Event::ExclusiveFault, || user_read_u64(range.start.0 + PAGE_SIZE));
            crate::check_eq!((read, faults), (Ok(pattern(range.start.0 + PAGE_SIZE, 33)), 1));
            crate::check_eq!(kind(space, range.start.0), None);
            device.check_exclusive(range)?;
            check(range, 33)
        })?;
    }
}

crate::ktest! {
    needs(devices = 2)
    fn a_page_of_another_device_is_fetched_and_a_snapshot_leaves_it() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 34)?;
            let (first, second) = (open(space, DEV0)?, open(space, Place::device(1))?);
            let mut words = buffer(range);
            second.migrate_to_device(range.start, &mut words)?;
            let mut bytes = [0xee; 512];
            first.snapshot(range.start, &mut bytes)?;
            crate::check!(bytes.iter().all(|byte| *byte == 0));
            second.snapshot(range.start, &mut bytes)?;
            let own = (Snap::DEV_PRIVATE_LOCAL | Snap::WRITE | Snap::PMD).bits();
            crate::check!(bytes.iter().all(|byte| *byte == own));
            crate::check_eq!(first.read(range.start, &mut words)?, Done { cpages: 512, faults: 1 });
            compare(range, &words, 34)?;
            crate::check_eq!(resident(1), 0);
            check(range, 34)
        })?;
    }
}
