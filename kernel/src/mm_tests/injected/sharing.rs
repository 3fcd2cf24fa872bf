//! What several have: clones and their copies on write, shared memory, files, a driver's pages.

use farpage_mm::{HugeAdvice, Object, ObjectRef, PAGE_SIZE, Prot, VaRange};

use super::{
    ELSEWHERE, PMD, PTE, SIZES, SMALL, every_allocation_fails, every_allocation_fails_beside, filled, holds,
    is_readable, middle, on_device, oom, refused, still_filled, untouched,
};
use crate::mm_tests::support::{Space, check, check_zero, fill, pages};
use crate::testing::Unmet;
use crate::vm::user::{user_read_u64, user_write_u64};
use crate::vm::{Machine, clone_space};

crate::ktest! {
    needs(memory_mib = 64)
    fn clones_bear_every_failure() {
        for memory in SIZES {
            // The space, its tables, its mapping and the set that it joins.
            every_allocation_fails(memory, 6, filled, |space, _| Ok(clone_space(space).is_err()), still_filled)?;
            every_allocation_fails(memory, 5, on_device, |space, _| Ok(clone_space(space).is_err()), still_filled)?;
        }
    }
}

/// Filled memory, and who shares it.
fn cloned(space: &Space, range: VaRange) -> Result<Space, Unmet> {
    fill(range, 81)?;
    Ok(clone_space(space)?)
}

fn cloned_on_device(space: &Space, range: VaRange) -> Result<Space, Unmet> {
    on_device(space, range)?;
    Ok(clone_space(space)?)
}

/// A word of every page is written; the other one sees none of it.
fn write_all(_: &Space, range: VaRange, child: &Space) -> Result<bool, Unmet> {
    let written = oom(fill(range, 82))?;
    holds(child, range, 81)?;
    Ok(written)
}

fn each_has_its_own(_: &Space, range: VaRange, child: &Space) -> Result<(), Unmet> {
    check(range, 82)?;
    holds(child, range, 81)
}

crate::ktest! {
    needs(memory_mib = 64)
    fn copies_on_write_bear_every_failure() {
        for (memory, [copies, back]) in [(PTE, [2 * SMALL, 3 * SMALL]), (PMD, [2, 3])] {
            every_allocation_fails_beside(memory, copies, cloned, write_all, each_has_its_own)?;
            every_allocation_fails_beside(memory, back, cloned_on_device, write_all, each_has_its_own)?;
        }
    }
}

crate::ktest! {
    needs(memory_mib = 64)
    fn unmapping_a_part_of_what_others_share_bears_every_failure() {
        let unmap = |space: &Space, range: VaRange, child: &Space| {
            let refused = refused(space.space().unmap(middle(range)))?;
            crate::check_eq!(is_readable(middle(range).start.0), refused);
            holds(child, range, 81)?;
            Ok(refused)
        };
        let verify = |_: &Space, range: VaRange, child: &Space| {
            check(pages(range, 0, 3), 81)?;
            check(pages(range, 9, range.nr_pages() - 9), 81)?;
            holds(child, range, 81)
        };
        for (memory, least) in [(PTE, 1), (PMD, 2)] {
            every_allocation_fails_beside(memory, least, cloned, unmap, verify)?;
        }
        // A touch afterwards brings the page back for both, so the child is looked at where it lies.
        every_allocation_fails_beside(PMD, 2, cloned_on_device, unmap, verify)?;
    }
}

/// The pages of an object, mapped elsewhere.
const THERE: VaRange = VaRange::new(ELSEWHERE, SMALL * PAGE_SIZE);

crate::ktest! {
    needs(memory_mib = 64)
    fn shared_memory_bears_every_failure() {
        every_allocation_fails(PTE, 2 * SMALL + 4, untouched, |space, _| {
            if space.space().vma_at(THERE.start).is_none() {
                let Ok(object) = Object::<Machine>::anon_shared(SMALL) else { return Ok(true) };
                if refused(space.space().map_shared(THERE, Prot::RW, &object, 0))? {
                    return Ok(true);
                }
            }
            oom(fill(THERE, 83))
        }, |_| check(THERE, 83))?;
    }
}

/// A file whose pages hold the pattern of where [`THERE`] shows them.
fn file(_: &Space, _: VaRange) -> Result<ObjectRef<Machine>, Unmet> {
    let file = Object::file(SMALL)?;
    for page in 0..SMALL {
        file.write(page, 0, &[page, page + 1])?;
    }
    Ok(file)
}

/// The same pages for those who write copies.
const COPIES: VaRange = VaRange::new(ELSEWHERE + (1 << 30), SMALL * PAGE_SIZE);

fn is_free(space: &Space, range: VaRange) -> bool {
    space.space().vma_at(range.start).is_none()
}

crate::ktest! {
    needs(memory_mib = 64)
    fn files_bear_every_failure() {
        let map = |space: &Space, file: &ObjectRef<Machine>| {
            Ok::<_, Unmet>(
                is_free(space, THERE) && refused(space.space().map_shared(THERE, Prot::RW, file, 0))?
                    || is_free(space, COPIES)
                        && refused(space.space().map_private(COPIES, Prot::RW, file, 0, HugeAdvice::Default))?,
            )
        };
        let at = |range: VaRange, page: u64| range.start.0 + page * PAGE_SIZE;
        // Written through the shared mapping, copied from it, or read: a third of the pages each.
        let operation = |space: &Space, _: VaRange, file: &ObjectRef<Machine>| {
            if map(space, file)? {
                return Ok(true);
            }
            for page in 0..SMALL {
                let done = match page % 3 {
                    0 => user_write_u64(at(THERE, page), 100 + page),
                    1 => user_write_u64(at(COPIES, page), 200 + page),
                    _ => user_read_u64(at(COPIES, page)).map(drop),
                };
                if oom(done)? {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let verify = |_: &Space, _: VaRange, file: &ObjectRef<Machine>| {
            for page in 0..SMALL {
                let (shared, copy) = match page % 3 {
                    0 => (100 + page, 100 + page),
                    1 => (page, 200 + page),
                    _ => (page, page),
                };
                let mut word = [0; 2];
                file.read(page, 0, &mut word);
                crate::check_eq!(word, [shared, page + 1]);
                crate::check_eq!(user_read_u64(at(THERE, page))?, shared);
                crate::check_eq!(user_read_u64(at(COPIES, page))?, copy);
                crate::check_eq!(user_read_u64(at(COPIES, page) + 8)?, page + 1);
            }
            Ok(())
        };
        every_allocation_fails_beside(PTE, 2 * SMALL / 3 + 6, file, operation, verify)?;
    }
}

crate::ktest! {
    needs(memory_mib = 64)
    fn what_is_in_no_mapping_bears_every_failure() {
        // Pages of a file far apart need nodes of the index too.
        const FAR: [u64; 4] = [0, 700, 300_000, 300_001];
        let write = |_: &Space, _: VaRange, file: &ObjectRef<Machine>| {
            Ok(FAR.into_iter().any(|page| file.write(page, 5, &[page + 9]).is_err()))
        };
        let verify = |_: &Space, _: VaRange, file: &ObjectRef<Machine>| {
            for page in FAR {
                let mut words = [1; 3];
                file.read(page, 4, &mut words);
                crate::check_eq!(words, [0, page + 9, 0]);
            }
            Ok(())
        };
        every_allocation_fails_beside(PTE, 2 * 4 + 5, |_, _| Ok(Object::file(400_000)?), write, verify)?;
        // A driver's pages are made and mapped at once.
        every_allocation_fails(PTE, 2 * SMALL + 4, untouched, |space, _| {
            let Ok(object) = Object::<Machine>::driver(SMALL) else { return Ok(true) };
            refused(space.space().map_device_pages(THERE, Prot::RW, &object, 0))
        }, |_| {
            check_zero(THERE)?;
            fill(THERE, 84)?;
            check(THERE, 84)
        })?;
    }
}
