//! 2 MiB pages on their way: empty ones, the zero folio, and advice on what is away.

use alloc::sync::Arc;

use farpage_mm::dmirror::Snap;
use farpage_mm::{Advice, Event, HugeAdvice, Level, Prot};

use super::kit::{
    Fixture, all_are, buffer, check, check_zero, device_finds_zeros, fill, map, snapshot, to_device,
};
use crate::mm_tests::support::{Space, counting, frame_at, kinds};
use crate::testing::Unmet;
use crate::vm::user::user_read_u64;

/// One PMD entry maps the range, in the device's memory.
pub(super) fn is_one_device_page(on: Fixture, space: &Space, addr: u64) -> Result<(), Unmet> {
    crate::check_eq!(space.entry_at(farpage_mm::Vaddr(addr)).0, Level::Pmd);
    crate::check_eq!(frame_at(space, addr).map(|f| f.place()), Some(on.place(0)));
    Ok(())
}

/// A huge hole becomes a huge page of zeros on the device.
pub(super) fn migrate_anon_huge_empty(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = buffer(512);
    space.space().map_anon(range, Prot::READ, HugeAdvice::Huge)?;
    let done = device_finds_zeros(range, |to| device.migrate_to_device(range.start, to))?;
    crate::check_eq!(done.cpages, 512);
    is_one_device_page(on, space, range.start.0)?;
    check_zero(range)
}

/// So does the zero folio, and it comes back as one page.
pub(super) fn migrate_anon_huge_zero(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = buffer(512);
    space.space().map_anon(range, Prot::READ, HugeAdvice::Huge)?;
    crate::check_eq!(user_read_u64(range.start.0)?, 0);
    crate::check_eq!(kinds(space, range).huge_zero, 1);
    let done = device_finds_zeros(range, |to| device.migrate_to_device(range.start, to))?;
    crate::check_eq!(done.cpages, 512);
    is_one_device_page(on, space, range.start.0)?;
    let (read, faults) = counting(Event::DeviceFault, || check_zero(range));
    read?;
    crate::check_eq!(faults, u64::from(!on.is_coherent()));
    crate::check_eq!(space.entry_at(range.start).0, Level::Pmd, "it is one page still");
    Ok(())
}

/// Advice to free what is on the device is taken, and does nothing.
pub(super) fn migrate_anon_huge_free(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, 512, HugeAdvice::Huge)?;
    fill(range)?;
    to_device(&device, range)?;
    space.space().advise(range, Advice::Free)?;
    is_one_device_page(on, space, range.start.0)?;
    crate::check_eq!(on.resident(0), 512);
    space.space().unmap(range)?;
    Ok(())
}

/// Small pages that were put together to one go to the device as one, and come back as one.
pub(super) fn migrate_anon_huge_fault(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, 512, HugeAdvice::Default)?;
    fill(range)?;
    crate::check_eq!(kinds(space, range).present, 512);
    space.space().advise(range, Advice::Huge)?;
    crate::check_eq!(space.space().collapse(range)?.copied, 1);
    crate::check_eq!(kinds(space, range).huge_present, 1);
    to_device(&device, range)?;
    all_are(&snapshot(&device, range)?, on.local() | Snap::WRITE | Snap::PMD)?;
    let mut wrong = 0;
    space.space().pagemap(range, |_, page| {
        // Private memory is away, all of it; coherent memory is there.
        wrong += u64::from((page.is_present(), page.is_swapped()) != (on.is_coherent(), !on.is_coherent()));
    })?;
    crate::check_eq!(wrong, 0);
    let (read, faults) = counting(Event::DeviceFault, || check(range));
    read?;
    crate::check_eq!(faults, u64::from(!on.is_coherent()));
    crate::check_eq!(space.entry_at(range.start).0, Level::Pmd);
    Ok(())
}
