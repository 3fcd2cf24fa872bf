//! Pages for others than the CPU: got, pinned, lent to a device, used by its commands.

use alloc::vec;

use farpage_mm::dmirror::PAGE_WORDS;
use farpage_mm::{Dmirror, DmirrorError, FaultError, HmmError, PinError, PinFlags, Pinned, Place, VaRange};

use super::{
    PMD, PTE, SIZES, SMALL, every_allocation_fails, every_allocation_fails_beside, filled, holds, on_device,
    read, still_filled, untouched,
};
use crate::mm_tests::support::{DEV0, Space, check_zero, fill, frame_at, kinds, pages, pattern};
use crate::testing::Unmet;
use crate::vm::{Machine, clone_space};

const COH2: Place = Place::coherent(2);

/// The last pages of a range, as many as a small one has.
fn tail(range: VaRange) -> VaRange {
    pages(range, range.nr_pages() - SMALL, SMALL)
}

/// Pins pages; while they are pinned, each lies where the pin says, and in RAM if the pin is for long.
fn pin(space: &Space, range: VaRange, flags: PinFlags) -> Result<bool, Unmet> {
    let mut taken: [Option<Pinned<Machine>>; SMALL as usize] = [const { None }; _];
    match space.space().pin_pages(tail(range), flags, &mut taken) {
        Ok(()) => {}
        Err(PinError::NoMemory(_) | PinError::Fault(FaultError::Oom(_))) => return Ok(true),
        Err(error) => crate::fail!("{error}"),
    }
    for (n, pinned) in (0..).zip(taken.iter().flatten()) {
        crate::check_eq!(frame_at(space, pages(tail(range), n, 1).start.0), Some(pinned.frame()));
        crate::check!(pinned.place() == Place::RAM || !flags.contains(PinFlags::LONGTERM));
    }
    Ok(false)
}

fn pin_to_write(space: &Space, range: VaRange) -> Result<bool, Unmet> {
    pin(space, range, PinFlags::WRITE)
}

fn pin_for_long(space: &Space, range: VaRange) -> Result<bool, Unmet> {
    pin(space, range, PinFlags::WRITE | PinFlags::LONGTERM)
}

crate::ktest! {
    needs(memory_mib = 64)
    fn pins_bear_every_failure() {
        for (memory, [fresh, zeros, back]) in [(PTE, [2 * SMALL + 2, 2 * SMALL, SMALL]), (PMD, [4, 2, 1])] {
            every_allocation_fails(memory, fresh, untouched, pin_to_write, check_zero)?;
            every_allocation_fails(memory, zeros, read, pin_to_write, check_zero)?;
            every_allocation_fails(memory, back, on_device, pin_to_write, still_filled)?;
            every_allocation_fails(memory, back, on_device, pin_for_long, still_filled)?;
            every_allocation_fails(memory, 0, filled, pin_for_long, still_filled)?;
        }
    }
}

fn cloned(space: &Space, range: VaRange) -> Result<Space, Unmet> {
    fill(range, 81)?;
    Ok(clone_space(space)?)
}

/// The child's pages are as they were.
fn both_filled(_: &Space, range: VaRange, child: &Space) -> Result<(), Unmet> {
    still_filled(range)?;
    holds(child, range, 81)
}

crate::ktest! {
    needs(memory_mib = 64)
    fn pins_of_shared_pages_bear_every_failure() {
        for (memory, least) in [(PTE, 2 * SMALL), (PMD, 2)] {
            // To read, too: what others share is copied.
            for flags in [PinFlags::empty(), PinFlags::WRITE | PinFlags::FAST] {
                let pin = |space: &Space, range, _: &Space| pin(space, range, flags);
                every_allocation_fails_beside(memory, least, cloned, pin, both_filled)?;
            }
        }
    }
}

fn on_coherent(space: &Space, range: VaRange) -> Result<(), Unmet> {
    fill(range, 81)?;
    crate::check_eq!(space.space().migrate(range, COH2)?.pages, range.nr_pages());
    Ok(())
}

crate::ktest! {
    needs(devices = 4, coherent = 2)
    fn long_pins_of_coherent_memory_bear_every_failure() {
        for (memory, least) in [(PTE, 3 * SMALL), (PMD, 3)] {
            every_allocation_fails(memory, least, on_coherent, pin_for_long, still_filled)?;
            every_allocation_fails(memory, 0, on_coherent, pin_to_write, still_filled)?;
        }
    }
}

/// Lends all of it to the device, page by page or as the huge page that it is.
fn lend(space: &Space, range: VaRange) -> Result<bool, Unmet> {
    let mut at = range.start;
    while at < range.end {
        match space.space().make_exclusive(at, DEV0) {
            Ok(guard) => {
                crate::check!(guard.stands());
                at = guard.range().end;
            }
            Err(HmmError::Oom(_)) => return Ok(true),
            Err(error) => crate::fail!("{error:?}"),
        }
    }
    Ok(false)
}

crate::ktest! {
    needs(memory_mib = 64)
    fn loans_bear_every_failure() {
        for (memory, [fresh, zeros, back, shared]) in
            [(PTE, [2 * SMALL + 2, 2 * SMALL, SMALL, 2 * SMALL]), (PMD, [4, 2, 1, 2])]
        {
            every_allocation_fails(memory, fresh, untouched, lend, check_zero)?;
            every_allocation_fails(memory, zeros, read, lend, check_zero)?;
            every_allocation_fails(memory, back, on_device, lend, still_filled)?;
            every_allocation_fails(memory, 0, filled, lend, still_filled)?;
            every_allocation_fails_beside(memory, shared, cloned, |space, range, _| lend(space, range), both_filled)?;
        }
    }
}

/// Was a command refused, and for want of memory?
fn refused<T>(result: Result<T, DmirrorError>) -> Result<bool, Unmet> {
    match result.map(drop) {
        Ok(()) => Ok(false),
        Err(DmirrorError::NoMemory) => Ok(true),
        Err(error) => crate::fail!("{error:?}"),
    }
}

/// The first two pages are read and written.
fn use_by_device(space: &Space, range: VaRange) -> Result<bool, Unmet> {
    let mut words = [0; 2 * PAGE_WORDS];
    let Ok(device) = Dmirror::open(DEV0, space) else { return Ok(true) };
    if refused(device.read(range.start, &mut words))? {
        return Ok(true);
    }
    for (i, word) in words.into_iter().enumerate() {
        crate::check_eq!(word, pattern(range.start.0 + i as u64 * 8, 81));
    }
    refused(device.write(range.start, &words))
}

/// A migration to the device whose 2 MiB page is refused besides.
fn move_there(space: &Space, range: VaRange) -> Result<bool, Unmet> {
    let mut words = vec![0; range.nr_pages() as usize * PAGE_WORDS];
    let Ok(device) = Dmirror::open(DEV0, space) else { return Ok(true) };
    device.fail_next_huge();
    match device.migrate_to_device(range.start, &mut words) {
        Ok(done) => crate::check_eq!(done.cpages, range.nr_pages()),
        // A page did not move: what a driver sees of it.
        Err(DmirrorError::NoMemory | DmirrorError::NotThere) => return Ok(true),
        Err(error) => crate::fail!("{error:?}"),
    }
    let wrong = (range.start.0..).step_by(8).zip(words).find(|&(at, word)| word != pattern(at, 81));
    crate::check_eq!(wrong, None);
    Ok(false)
}

/// The same on the way back.
fn move_back(space: &Space, range: VaRange) -> Result<bool, Unmet> {
    let Ok(device) = Dmirror::open(DEV0, space) else { return Ok(true) };
    device.fail_next_huge();
    let done = match device.migrate_to_system(range) {
        Ok(done) => done,
        Err(DmirrorError::NoMemory) => return Ok(true),
        Err(error) => crate::fail!("{error:?}"),
    };
    let found = kinds(space, range);
    let left = u64::from(found.device + found.huge_device * 512);
    crate::check!(done.cpages + left <= range.nr_pages(), "{done:?}, and {left} are left");
    Ok(left != 0)
}

crate::ktest! {
    needs(memory_mib = 64)
    fn commands_of_a_device_bear_every_failure() {
        for memory in SIZES {
            every_allocation_fails(memory, 4, filled, use_by_device, still_filled)?;
            every_allocation_fails(memory, 4, on_device, use_by_device, still_filled)?;
        }
        for (memory, least) in [(PTE, SMALL + 2), (PMD, 2 * 512)] {
            every_allocation_fails(memory, least, filled, move_there, still_filled)?;
            every_allocation_fails(memory, least, on_device, move_back, still_filled)?;
        }
        every_allocation_fails(PMD, 2 * 512, untouched, |space, range| {
            let Ok(device) = Dmirror::open(DEV0, space) else { return Ok(true) };
            device.fail_next_huge();
            let mut words = vec![1; range.nr_pages() as usize * PAGE_WORDS];
            match device.migrate_to_device(range.start, &mut words) {
                Ok(_) => crate::check!(words.iter().all(|&word| word == 0)),
                Err(DmirrorError::NoMemory | DmirrorError::NotThere) => return Ok(true),
                Err(error) => crate::fail!("{error:?}"),
            }
            Ok(false)
        }, check_zero)?;
    }
}
