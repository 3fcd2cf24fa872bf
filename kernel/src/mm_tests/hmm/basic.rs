//! Devices that read and write what a process has, with nothing moving.

use alloc::sync::Arc;

use farpage_mm::dmirror::{DmirrorError, Done};
use farpage_mm::{Cause, HugeAdvice, Level, Prot, Vaddr};

use super::kit::{
    Fixture, PAGES, TIMES, buffer, check, check_zero, device_expects, device_finds, device_finds_zeros,
    device_writes, fill, fill_from, ints, map, part, with_bounce,
};
use crate::mm_tests::support::{Space, frame_at, kinds};
use crate::testing::Unmet;
use crate::vm::mm;
use crate::vm::user::user_read_u64;

/// All pages of the usual buffer, with one round of faults.
pub(super) const ALL: Done = Done { cpages: PAGES, faults: 1 };

/// Opens the device and closes it: with nothing there, and with pages that come back.
pub(super) fn open_close(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    crate::check_eq!(on.open(0, space)?.close()?.pages, 0);
    let device = on.open(0, space)?;
    let range = map(space, PAGES, HugeAdvice::Default)?;
    fill_from(range.start.0, range, 0)?;
    space.space().migrate(range, device.device())?;
    crate::check_eq!(on.resident(0), PAGES);
    crate::check_eq!(device.close()?.pages, PAGES);
    crate::check_eq!(on.resident(0), 0);
    Ok(())
}

/// The device reads a mapping whose first page is untouched and whose second is the zero page.
pub(super) fn anon_read(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, PAGES, HugeAdvice::Default)?;
    fill_from(range.start.0, part(range, 2, PAGES - 2), 0)?;
    space.space().protect(range, Prot::READ)?;
    check_zero(part(range, 1, 1))?;
    let expected = |at| {
        let word = (at - range.start.0) / 8;
        if word < 1024 { 0 } else { ints(word, 0) }
    };
    let done = device_expects(range, expected, |to| device.read(range.start, to))?;
    crate::check_eq!(done, ALL);
    Ok(())
}

/// The device may not read what the process may not, and its buffer stays as it was.
pub(super) fn anon_read_prot(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, PAGES, HugeAdvice::Default)?;
    fill(range)?;
    space.space().protect(range, Prot::empty())?;
    let untouched = with_bounce(PAGES, |words| {
        words.fill(0xabcd);
        let result = device.read(range.start, words);
        (result, words.iter().all(|&word| word == 0xabcd))
    });
    crate::check_eq!(untouched, (Err(DmirrorError::Fault), true));
    space.space().protect(range, Prot::READ)?;
    check(range)
}

/// The device writes where nothing is yet.
pub(super) fn anon_write(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, PAGES, HugeAdvice::Default)?;
    crate::check_eq!(device_writes(&device, range, 0)?, Ok(ALL));
    check(range)
}

/// The device may not write what the process may only read, and may when that changes.
pub(super) fn anon_write_prot(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = buffer(PAGES);
    space.space().map_anon(range, Prot::READ, HugeAdvice::Default)?;
    let first = part(range, 0, 1);
    let done = device_finds_zeros(first, |to| device.read(first.start, to))?;
    crate::check_eq!(done, Done { cpages: 1, faults: 1 });
    crate::check_eq!(device_writes(&device, range, 0)?, Err(DmirrorError::Perm));
    check_zero(range)?;
    space.space().protect(range, Prot::RW)?;
    crate::check_eq!(device_writes(&device, range, 0)?, Ok(ALL));
    check(range)
}

/// The device's first write makes a 2 MiB page.
pub(super) fn anon_write_huge(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, 512, HugeAdvice::Huge)?;
    crate::check_eq!(device_writes(&device, range, 0)?, Ok(Done { cpages: 512, faults: 1 }));
    crate::check_eq!(space.entry_at(range.start).0, Level::Pmd);
    crate::check_eq!(kinds(space, range).huge_present, 1);
    check(range)
}

/// The device writes a huge page of the pool, which stays where it is.
pub(super) fn anon_write_hugetlbfs(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    crate::check_eq!(mm().resize_huge_pool(1), 1);
    let range = buffer(512);
    space.space().map_hugetlb(range, Prot::RW)?;
    crate::check_eq!(device_writes(&device, range, 0)?, Ok(Done { cpages: 512, faults: 1 }));
    let frame = frame_at(space, range.start.0);
    crate::check!(frame.is_some());
    let report = space.space().migrate(range, on.place(0))?;
    crate::check_eq!((report.pages, report.failed[Cause::NotAnon as usize]), (0, 512));
    crate::check_eq!(frame_at(space, range.start.0), frame, "it is where it was");
    check(range)?;
    space.space().unmap(range)?;
    crate::check_eq!(mm().resize_huge_pool(0), 0);
    Ok(())
}

/// A mapping that goes takes its translations in the device along: what comes after it is not read through them.
pub(super) fn anon_read_multiple(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    for round in 0..TIMES as u32 {
        let range = map(space, PAGES, HugeAdvice::Default)?;
        fill_from(range.start.0, range, round)?;
        let done = device_finds(range.start.0, range, round, |to| device.read(range.start, to))?;
        crate::check_eq!(done, ALL);
        space.space().unmap(range)?;
        crate::check!(user_read_u64(range.start.0).is_err());
        crate::check_eq!(device.mirror().entry(Vaddr(range.start.0)), None);
    }
    Ok(())
}
