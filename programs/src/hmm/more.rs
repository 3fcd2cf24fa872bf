//! What the field's scenarios leave out: commands that are wrong, the life of an opening, and mappings of the device file.

use farpage_programs::area::{Area, Errno, HUGE, PAGE};
use farpage_programs::dmirror::{Command, snap};

use crate::kit::{
    Fixture, Outcome, RW, check, check_zero, device_writes, equal, fill, holds, snapshot_is, to_device,
};
use crate::process::fork;

const DATA: [Command; 4] = [Command::Read, Command::Write, Command::MigrateToDevice, Command::Exclusive];

/// Memory to exchange data with that is not there, or not all of it, or the kernel's: EFAULT. What was to be written is not, what was
/// to move has moved.
pub(crate) fn bad_pointers(on: Fixture) -> Outcome {
    let fault = Err(Errno(libc::EFAULT));
    let device = on.open(0)?;
    let area = Area::anon(64 * PAGE, RW)?;
    fill(area);
    // The last page of what data goes through is not there.
    let short = Area::anon(64 * PAGE, RW)?;
    short.page(63).unmap()?;
    let wild = [0, 8, short.start(), 1 << 46, (1 << 47) - PAGE, 1 << 47, usize::MAX << 47, usize::MAX - 7];
    for command in DATA.into_iter().chain([Command::Snapshot]) {
        for pointer in wild {
            // A snapshot is shorter than its pages.
            if command != Command::Snapshot || pointer != short.start() {
                equal(
                    device.raw(command, area.start(), pointer, 64),
                    fault,
                    &format!("{command:?} {pointer:#x}"),
                )?;
            }
        }
        check(area)?;
    }
    to_device(&device, area)?;
    equal(device.raw(Command::MigrateToDevice, area.start(), 0, 64), fault, "what has moved is read")?;
    snapshot_is(&device, area, on.local() | snap::WRITE)?;
    for words in [0, 1 << 47, usize::MAX - 7, short.page(63).start() - 8] {
        equal(device.raw_at(Command::Read, words), fault, "the command itself")?;
    }
    check(area)
}

/// Ranges that cannot be: EINVAL; and those that can, with nothing there.
pub(crate) fn bad_ranges(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let (invalid, fault) = (Err(Errno(libc::EINVAL)), Err(Errno(libc::EFAULT)));
    let area = Area::anon(PAGE, RW)?;
    let all = DATA.into_iter().chain([
        Command::MigrateToSystem,
        Command::Snapshot,
        Command::CheckExclusive,
        Command::Release,
        Command::Flags,
    ]);
    for command in all {
        for (addr, pages) in [
            (area.start() + 1, 1),
            (area.start() + 8, 1),
            (area.start(), 0),
            (area.start(), 1 << 52),
            (area.start(), u64::MAX),
            (usize::MAX - PAGE + 1, 1),
            (usize::MAX - PAGE + 1, 2),
        ] {
            let answer = device.raw(command, addr, area.start(), pages);
            equal(answer, invalid, &format!("{command:?} of {pages} pages at {addr:#x}"))?;
        }
    }
    // Nothing is mapped at the beginning, and nothing beyond the end.
    for addr in [PAGE, usize::MAX << 47] {
        equal(device.raw(Command::Read, addr, area.start(), 1), fault, "a read of nothing")?;
        equal(device.raw(Command::Write, addr, area.start(), 1), fault, "a write to nothing")?;
        equal(device.raw(Command::MigrateToDevice, addr, area.start(), 1), invalid, "nothing to the device")?;
        equal(device.raw(Command::MigrateToSystem, addr, area.start(), 1), invalid, "nothing to RAM")?;
    }
    equal(device.raw_number(9, area), invalid, "a command that is none")?;
    equal(device.raw_number(255, area), invalid, "another one")
}

/// An opening ends with its last descriptor, whoever has it; until then it is that of the process that made it.
pub(crate) fn closing(on: Fixture) -> Outcome {
    let area = Area::huge(HUGE, RW)?;
    area.advise(libc::MADV_HUGEPAGE)?;
    fill(area);
    let device = on.open(0)?;
    to_device(&device, area)?;
    // A child has the descriptor too, and its end is not the opening's.
    fork(|| Ok(()))?.join()?;
    snapshot_is(&device, area, on.local() | snap::READ | snap::PMD)?;
    // In the child it shows the memory of the parent, also where the child has changed its own.
    let child = fork(|| {
        fill_other(area);
        let to = crate::kit::bounce(area)?;
        equal(device.read(area, to)?.cpages, 512, "pages read")?;
        check(to)
    })?;
    child.join()?;
    let other = on.open(0)?;
    drop(device);
    snapshot_is(&other, area, snap::READ | snap::PMD)?;
    check(area)
}

fn fill_other(area: Area) {
    crate::kit::fill_part(area, area, 99);
}

/// The device file, mapped: zeros, shared or each its own.
pub(crate) fn mapping(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let shared = Area::map(4 * PAGE, RW, libc::MAP_SHARED, device.fd())?;
    let private = Area::map(4 * PAGE, RW, libc::MAP_PRIVATE, device.fd())?;
    for area in [shared, private] {
        check_zero(area)?;
        fill(area);
        check(area)?;
        snapshot_is(&device, area, snap::WRITE)?;
    }
    fork(|| {
        check(private)?;
        crate::kit::fill_part(shared, shared, 1);
        crate::kit::fill_part(private, private, 2);
        Ok(())
    })?
    .join()?;
    crate::kit::check_part(shared, shared, 1)?;
    check(private)?;
    // A driver's pages stay where they are.
    let answer = crate::kit::try_to_device(&device, shared)?;
    equal(answer.is_err(), true, "a driver's pages to the device")?;
    equal(device_writes(&device, private, 7)?.map(|done| done.cpages), Ok(4), "a write to the copies")?;
    holds(private, |word| crate::kit::numbers(word, 7))
}
