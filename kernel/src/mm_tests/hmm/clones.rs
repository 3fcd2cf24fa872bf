//! Two processes: what one of them, or its device, does after a clone is not seen by the other, unless they share on purpose.

use alloc::sync::Arc;

use farpage_mm::dmirror::{Done, Snap};
use farpage_mm::{HugeAdvice, Object, Prot, VaRange};

use super::exclusive::increment;
use super::kit::{
    Fixture, PAGES, all_are, as_process, buffer, check, check_from, device_finds, device_writes, fill,
    fill_from, map, snapshot, to_device,
};
use crate::mm_tests::support::Space;
use crate::testing::Unmet;
use crate::vm::clone_space;

/// What the child adds to every number.
const OTHER: u32 = 0x1000_0000;

/// A child's device writes; the parent keeps what it had, whether it was on a device or not, huge or not.
pub(super) fn anon_write_child(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    for migrate in [false, true] {
        for (pages, advice) in [(PAGES, HugeAdvice::NoHuge), (512, HugeAdvice::Huge)] {
            let range = map(space, pages, advice)?;
            fill(range)?;
            if migrate {
                let device = on.open(0, space)?;
                to_device(&device, range)?;
            }
            as_process(clone_space(space)?, move |child| child_writes(on, child, range)).join()?;
            check(range)?;
            space.space().unmap(range)?;
        }
    }
    Ok(())
}

fn child_writes(on: Fixture, child: &Space, range: VaRange) -> Result<(), Unmet> {
    check(range)?;
    let device = on.open(0, child)?;
    let all = Done { cpages: range.nr_pages(), faults: 1 };
    crate::check_eq!(device_writes(&device, range, OTHER)?, Ok(all));
    check_from(range.start.0, range, OTHER)
}

/// Shared memory is shared: what the child's device writes, the parent reads.
pub(super) fn anon_write_child_shared(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let memory = Object::anon_shared(PAGES)?;
    let range = buffer(PAGES);
    space.space().map_shared(range, Prot::RW, &memory, 0)?;
    fill(range)?;
    as_process(clone_space(space)?, move |child| child_writes(on, child, range)).join()?;
    check_from(range.start.0, range, OTHER)
}

/// Pages that are lent to the device are cloned as if they had come back first: each side sees its own changes.
pub(super) fn exclusive_cow(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, PAGES, HugeAdvice::Default)?;
    fill(range)?;
    let done = device_finds(range.start.0, range, 0, |to| device.exclusive(range.start, to))?;
    crate::check_eq!(done.cpages, PAGES);
    let child = as_process(clone_space(space)?, move |_| {
        increment(range)?;
        check_from(range.start.0, range, 1)
    });
    increment(range)?;
    check_from(range.start.0, range, 1)?;
    child.join()
}

/// A write to what two processes have on the device: it is theirs in RAM then, each its own.
pub(super) fn hmm_cow_in_device(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, 4, HugeAdvice::Default)?;
    fill(range)?;
    to_device(&device, range)?;
    let child = clone_space(space)?;
    fill_from(range.start.0, range, OTHER)?;
    let in_child = as_process(child, move |_| check(range));
    in_child.join()?;
    all_are(&snapshot(&device, range)?, Snap::WRITE)?;
    check_from(range.start.0, range, OTHER)
}
