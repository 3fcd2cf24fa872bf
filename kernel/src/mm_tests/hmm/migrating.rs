//! Memory that goes to the device and comes back.

use alloc::sync::Arc;

use farpage_mm::dmirror::DmirrorError;
use farpage_mm::{Event, HugeAdvice, Prot};

use super::kit::{
    Fixture, PAGES, TIMES, buffer, check, check_from, device_expects, fill, fill_from, ints, map, part,
    to_device, try_to_device,
};
use crate::mm_tests::support::{Space, counting, frame_at};
use crate::testing::Unmet;
use crate::vm::user::user_read_u64;

/// Everything moves; unmapping frees the device's pages.
pub(super) fn migrate(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, PAGES, HugeAdvice::Default)?;
    fill(range)?;
    to_device(&device, range)?;
    crate::check_eq!(on.resident(0), PAGES);
    space.space().unmap(range)?;
    crate::check_eq!(on.resident(0), 0);
    Ok(())
}

/// A touch brings single pages back; then the mixed range moves again.
pub(super) fn migrate_fault(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, PAGES, HugeAdvice::Default)?;
    fill(range)?;
    to_device(&device, range)?;
    let half = part(range, 0, PAGES / 2);
    let (read, faults) = counting(Event::DeviceFault, || check(half));
    read?;
    let (back, left) = if on.is_coherent() { (0, PAGES) } else { (PAGES / 2, PAGES / 2) };
    crate::check_eq!((faults, on.resident(0)), (back, left));
    to_device(&device, range)?;
    crate::check_eq!(on.resident(0), PAGES);
    check(range)
}

/// The driver takes back all that is on its device, without being told where it is mapped.
pub(super) fn migrate_release(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, PAGES, HugeAdvice::Default)?;
    fill(range)?;
    to_device(&device, range)?;
    device.release()?;
    crate::check_eq!(on.resident(0), 0);
    let (read, faults) = counting(Event::DeviceFault, || check(part(range, 0, PAGES / 2)));
    read?;
    crate::check_eq!(faults, 0);
    check(range)
}

/// Ten round trips leave nothing behind.
pub(super) fn migrate_multiple(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    for _ in 0..TIMES {
        let range = map(space, PAGES, HugeAdvice::Default)?;
        fill(range)?;
        to_device(&device, range)?;
        if on.is_coherent() {
            crate::check_eq!(device.migrate_to_system(range)?.cpages, PAGES);
        }
        check(range)?;
        crate::check_eq!(on.resident(0), 0);
        space.space().unmap(range)?;
    }
    Ok(())
}

/// Holes, protections, zero pages, and a page of another device.
pub(super) fn migrate_mixed(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let (first, second) = (on.open(0, space)?, on.open(1, space)?);
    let range = buffer(6);
    let page = |n| part(range, n, 1);
    space.space().map_anon(range, Prot::empty(), HugeAdvice::Default)?;
    crate::check_eq!(try_to_device(&second, range), Err(DmirrorError::Invalid), "not to be read");
    space.space().unmap(page(1))?;
    crate::check_eq!(try_to_device(&second, part(range, 0, 3)), Err(DmirrorError::Invalid), "a hole");
    space.space().protect(page(2), Prot::READ)?;
    crate::check_eq!(user_read_u64(page(2).start.0)?, 0);
    space.space().protect(page(3), Prot::RW)?;
    fill_from(range.start.0, page(3), 0)?;
    space.space().protect(page(3), Prot::READ)?;
    space.space().protect(part(range, 4, 2), Prot::RW)?;
    fill_from(range.start.0, part(range, 4, 2), 0)?;
    // Pages 2 to 5 go to the second device: several mappings, one of them of the zero page.
    let moving = part(range, 2, 4);
    let expected = |at| if at < page(3).start.0 { 0 } else { ints((at - range.start.0) / 8, 0) };
    let done = device_expects(moving, expected, |to| second.migrate_to_device(moving.start, to))?;
    crate::check_eq!(done.cpages, 4);
    crate::check_eq!((on.resident(0), on.resident(1)), (0, 4));
    // The first does not take what is the second's.
    crate::check_eq!(try_to_device(&first, page(5)), Err(DmirrorError::NotThere));
    crate::check_eq!(frame_at(space, page(5).start.0).map(|f| f.place()), Some(on.place(1)));
    check_from(range.start.0, part(range, 3, 3), 0)
}
