//! Pages that are lent to a device for atomic access.

use alloc::sync::Arc;

use farpage_mm::dmirror::DmirrorError;
use farpage_mm::{HugeAdvice, Prot, VaRange};

use super::kit::{Fixture, PAGES, check_from, device_finds, device_writes, fill, map};
use crate::mm_tests::support::Space;
use crate::testing::Unmet;
use crate::vm::user::{user_read_u64, user_write_u64};

/// Adds one to every number of a range, as a program does.
pub(super) fn increment(range: VaRange) -> Result<(), Unmet> {
    for at in (range.start.0..range.end.0).step_by(8) {
        let two = user_read_u64(at)?;
        let (low, high) = ((two as u32).wrapping_add(1), ((two >> 32) as u32).wrapping_add(1));
        user_write_u64(at, u64::from(low) | u64::from(high) << 32)?;
    }
    Ok(())
}

/// The device borrows all pages; a program's next touch takes each back.
pub(super) fn exclusive(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, PAGES, HugeAdvice::Default)?;
    fill(range)?;
    let done = device_finds(range.start.0, range, 0, |to| device.exclusive(range.start, to))?;
    crate::check_eq!(done.cpages, PAGES);
    crate::check_eq!(device.check_exclusive(range), Err(DmirrorError::Perm), "they are lent");
    increment(range)?;
    check_from(range.start.0, range, 1)?;
    device.check_exclusive(range)?;
    Ok(())
}

/// A change of protection takes the pages back.
pub(super) fn exclusive_mprotect(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, PAGES, HugeAdvice::Default)?;
    fill(range)?;
    let done = device_finds(range.start.0, range, 0, |to| device.exclusive(range.start, to))?;
    crate::check_eq!(done.cpages, PAGES);
    space.space().protect(range, Prot::READ)?;
    device.check_exclusive(range)?;
    crate::check_eq!(device_writes(&device, range, 9)?, Err(DmirrorError::Perm));
    check_from(range.start.0, range, 0)
}
