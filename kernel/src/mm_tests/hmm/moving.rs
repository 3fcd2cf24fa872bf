//! Parts that go and mappings that move while their pages are away.

use alloc::sync::Arc;

use farpage_mm::{HugeAdvice, Level, PAGE_SIZE, PMD_SIZE, RemapFlags, RemapTarget, VaRange, Vaddr};

use super::kit::{Fixture, buffer, check_from, fill, map, part, to_device};
use crate::mm_tests::support::Space;
use crate::testing::Unmet;
use crate::vm::user::user_read_u64;

const WITH_AND_WITHOUT: [HugeAdvice; 2] = [HugeAdvice::Huge, HugeAdvice::NoHuge];

/// Half of the buffer is unmapped at three places while all of it is away; what is left can be read.
pub(super) fn migrate_partial_unmap_fault(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    for advice in WITH_AND_WITHOUT {
        for first in [0, 128, 256] {
            let range = map(space, 512, advice)?;
            fill(range)?;
            to_device(&device, range)?;
            let gone = part(range, first, 256);
            space.space().unmap(gone)?;
            crate::check_eq!(on.resident(0), 256, "the dead half is free at once");
            for page in (range.start.0..range.end.0).step_by(PAGE_SIZE as usize) {
                if gone.contains(Vaddr(page)) {
                    crate::check!(user_read_u64(page).is_err());
                } else {
                    check_from(range.start.0, VaRange::new(page, PAGE_SIZE), 0)?;
                }
            }
            space.space().unmap(range)?;
        }
    }
    Ok(())
}

/// A mapping moves before or after its pages do, with and without its old place, as huge and as small pages, to places that are
/// aligned and that are not.
pub(super) fn migrate_remap_fault(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    for before in [true, false] {
        for keep in [false, true] {
            for advice in WITH_AND_WITHOUT {
                for offset in [0, 128, 256] {
                    remap_once(on, space, &device, (before, keep, advice, offset * PAGE_SIZE))?;
                }
            }
        }
    }
    Ok(())
}

fn remap_once(
    on: Fixture,
    space: &Space,
    device: &farpage_mm::Dmirror<crate::vm::Machine>,
    (before, keep, advice, offset): (bool, bool, HugeAdvice, u64),
) -> Result<(), Unmet> {
    let old = map(space, 512, advice)?;
    let new = VaRange::new(buffer(0).start.0 + 4 * PMD_SIZE + offset, PMD_SIZE);
    fill(old)?;
    let remap = || {
        let flags = if keep { RemapFlags::KEEP_OLD } else { RemapFlags::empty() };
        space.space().remap(old, RemapTarget { addr: new.start, len: new.len() }, flags)
    };
    if before {
        remap()?;
        to_device(device, new)?;
    } else {
        to_device(device, old)?;
        remap()?;
        if offset == 0 && advice == HugeAdvice::Huge {
            crate::check_eq!(space.entry_at(new.start).0, Level::Pmd, "moved as one");
        }
    }
    crate::check_eq!(on.resident(0), 512);
    check_from(new.start.0, new, 0)?;
    if keep {
        crate::check_eq!(user_read_u64(old.start.0)?, 0, "the old place is there, and empty");
        space.space().unmap(old)?;
    } else {
        crate::check!(user_read_u64(old.start.0).is_err());
    }
    space.space().unmap(new)?;
    Ok(())
}
