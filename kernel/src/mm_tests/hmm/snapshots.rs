//! What a device finds without touching anything.

use alloc::sync::Arc;

use farpage_mm::dmirror::{Done, Snap};
use farpage_mm::{Event, HugeAdvice, Prot};

use super::kit::{
    Fixture, all_are, buffer, device_finds, fill, fill_from, map, part, snapshot as snap, to_device,
    try_to_device,
};
use crate::mm_tests::support::{Space, counting};
use crate::testing::Unmet;
use crate::vm::user::user_read_u64;

/// A huge mapping is told of by all its pages.
pub(super) fn compound(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, 512, HugeAdvice::Huge)?;
    fill(range)?;
    all_are(&snap(&device, range)?, Snap::WRITE | Snap::PMD)?;
    space.space().protect(range, Prot::READ)?;
    all_are(&snap(&device, range)?, Snap::READ | Snap::PMD)
}

/// One page of each kind, as the first device sees it.
pub(super) fn snapshot(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let (first, second) = (on.open(0, space)?, on.open(1, space)?);
    let range = buffer(7);
    let page = |n| part(range, n, 1);
    space.space().map_anon(range, Prot::empty(), HugeAdvice::Default)?;
    space.space().unmap(page(1))?;
    space.space().protect(page(2), Prot::READ)?;
    crate::check_eq!(user_read_u64(page(2).start.0)?, 0);
    space.space().protect(page(3), Prot::RW)?;
    fill_from(range.start.0, page(3), 0)?;
    space.space().protect(page(3), Prot::READ)?;
    space.space().protect(part(range, 4, 3), Prot::RW)?;
    fill_from(range.start.0, part(range, 4, 3), 0)?;
    crate::check_eq!(try_to_device(&first, page(5))?.cpages, 1);
    crate::check_eq!(try_to_device(&second, page(6))?.cpages, 1);
    let remote = if on.is_coherent() { Snap::DEV_COHERENT_REMOTE | Snap::WRITE } else { Snap::empty() };
    let expected = [
        Snap::ERROR,
        Snap::ERROR,
        Snap::ZERO | Snap::READ,
        Snap::READ,
        Snap::WRITE,
        on.local() | Snap::WRITE,
        remote,
    ];
    let (found, faults) = counting(Event::PgFault, || snap(&first, range));
    crate::check_eq!((found?, faults), (expected.to_vec(), 0));
    Ok(())
}

/// Two devices map one process; what moves to the second is brought back for the first.
pub(super) fn double_map(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let (first, second) = (on.open(0, space)?, on.open(1, space)?);
    let range = map(space, 6, HugeAdvice::Default)?;
    fill(range)?;
    space.space().protect(range, Prot::READ)?;
    let once = Done { cpages: 6, faults: 1 };
    for device in [&first, &second] {
        let done = device_finds(range.start.0, range, 0, |to| device.read(range.start, to))?;
        crate::check_eq!(done, once);
    }
    to_device(&second, range)?;
    crate::check_eq!(on.resident(1), 6);
    let done = device_finds(range.start.0, range, 0, |to| first.read(range.start, to))?;
    crate::check_eq!(done, once);
    crate::check_eq!(on.resident(1), if on.is_coherent() { 6 } else { 0 });
    Ok(())
}
