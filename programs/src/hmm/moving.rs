//! Parts that go and mappings that move while their pages are away.

use farpage_programs::area::{Area, HUGE};
use farpage_programs::dmirror::Device;

use crate::kit::{Fixture, Outcome, RW, check, check_part, check_zero, equal, fill, to_device};
use crate::process::fork;

const WITH_AND_WITHOUT: [i32; 2] = [libc::MADV_HUGEPAGE, libc::MADV_NOHUGEPAGE];

/// Half of the buffer is unmapped at three places while all of it is away; what is left can be read.
pub(crate) fn migrate_partial_unmap_fault(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    for advice in WITH_AND_WITHOUT {
        for first in [0, 128, 256] {
            let area = crate::kit::large(RW, advice)?;
            fill(area);
            to_device(&device, area)?;
            area.part(first, 256).unmap()?;
            for (start, len) in [(0, first), (first + 256, 256 - first)] {
                check_part(area, area.part(start, len), 0)?;
            }
            // Where it was there is nothing.
            let gone = fork(|| equal(area.part(first, 1).read(0), 0, "a word of nothing"))?;
            gone.dies_by(libc::SIGSEGV)?;
            area.unmap()?;
        }
    }
    Ok(())
}

/// A mapping moves before or after its pages do, with and without its old place, as large and as small pages, to places that are
/// aligned and that are not.
pub(crate) fn migrate_remap_fault(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    for before in [true, false] {
        for keep in [false, true] {
            for advice in WITH_AND_WITHOUT {
                for first in [0, 128, 256] {
                    remap_once(&device, (before, keep, advice, first))?;
                }
            }
        }
    }
    Ok(())
}

fn remap_once(device: &Device, (before, keep, advice, first): (bool, bool, i32, usize)) -> Outcome {
    // The buffer, and room behind it for where it goes.
    let all = Area::huge(8 * HUGE, libc::PROT_NONE)?;
    let old = all.part(0, 512);
    let target = all.part(4 * 512 + first, 512);
    old.protect(RW)?;
    old.advise(advice)?;
    fill(old);
    let flags = if keep { libc::MREMAP_DONTUNMAP } else { 0 };
    let new = if before {
        let new = old.move_to(target, flags)?;
        to_device(device, new)?;
        new
    } else {
        to_device(device, old)?;
        old.move_to(target, flags)?
    };
    equal(new, target, "the new place")?;
    check(new)?;
    if keep {
        check_zero(old)?;
    }
    Ok(all.unmap()?)
}
