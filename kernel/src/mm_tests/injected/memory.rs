//! One address space on its own: touches, mappings, protection, advice, moves.

use farpage_mm::{
    Advice, HmmError, HmmPfn, HmmWant, HugeAdvice, PAGE_SIZE, PMD_SIZE, Place, Prot, RangeFault, RemapFlags,
    RemapTarget, Site, VaRange, Vaddr,
};

use super::{
    ELSEWHERE, Operation, PMD, PTE, SIZES, every_allocation_fails, filled, is_readable, middle, on_device,
    oom, read, refused, still_filled, untouched,
};
use crate::mm_tests::support::{DEV0, Space, check, check_zero, fill, in_space, map, pages, pattern};
use crate::testing::Unmet;
use crate::vm::mm;
use crate::vm::user::{user_read_u64, user_write_u64};

fn one_word_written(range: VaRange) -> Result<(), Unmet> {
    crate::check_eq!(user_read_u64(range.start.0), Ok(7));
    user_write_u64(range.start.0, 0)?;
    check_zero(range)
}

fn write(_: &Space, range: VaRange) -> Result<bool, Unmet> {
    oom(user_write_u64(range.start.0, 7))
}

/// A touch of one page, or of the huge page that it is in.
pub(super) fn touch(_: &Space, range: VaRange) -> Result<bool, Unmet> {
    oom(user_read_u64(range.start.0 + PAGE_SIZE).map(drop))
}

crate::ktest! {
    needs(memory_mib = 64)
    fn first_touches_bear_every_failure() {
        for memory in SIZES {
            // Tables, a folio and its descriptor; for a reader the tables.
            every_allocation_fails(memory, 4, untouched, write, one_word_written)?;
            every_allocation_fails(memory, 2, untouched, touch, check_zero)?;
            every_allocation_fails(memory, 2, read, write, one_word_written)?;
        }
    }
}

/// Runs an operation on filled memory of both sizes, in RAM and on the device; `least` are the allocations in this order.
fn on_filled_memory(
    least: [[u64; 2]; 2],
    operation: Operation,
    verify: fn(VaRange) -> Result<(), Unmet>,
) -> Result<(), Unmet> {
    for (memory, [in_ram, there]) in SIZES.into_iter().zip(least) {
        every_allocation_fails(memory, in_ram, filled, operation, verify)?;
        every_allocation_fails(memory, there, on_device, operation, verify)?;
    }
    Ok(())
}

crate::ktest! {
    needs(memory_mib = 64)
    fn mappings_bear_every_failure() {
        let verify: fn(VaRange) -> Result<(), Unmet> = |range| {
            let elsewhere = VaRange::new(ELSEWHERE, range.len());
            fill(elsewhere, 82)?;
            check(elsewhere, 82)?;
            still_filled(range)
        };
        let one: Operation =
            |space, range| refused(space.space().map_anon(VaRange::new(ELSEWHERE, range.len()), Prot::RW, HugeAdvice::Default));
        every_allocation_fails(PTE, 1, filled, one, verify)?;
        // So many that the index of the mappings grows.
        let many: Operation = |space, range| {
            for at in (ELSEWHERE..ELSEWHERE + 400 * PAGE_SIZE).step_by(2 * PAGE_SIZE as usize) {
                let page = VaRange::new(at, PAGE_SIZE);
                if space.space().vma_at(page.start).is_none()
                    && refused(space.space().map_anon(page, Prot::READ, HugeAdvice::Default))?
                {
                    return Ok(true);
                }
            }
            still_filled(range)?;
            Ok(false)
        };
        every_allocation_fails(PTE, 200, filled, many, still_filled)?;
    }
}

/// Out of memory leaves all as it was; otherwise the part is gone and nothing else.
fn unmap_part(space: &Space, part: VaRange) -> Result<bool, Unmet> {
    let refused = refused(space.space().unmap(part))?;
    // Whatever the failure was, it came before the first change.
    for page in [part.start.0, part.end.0 - PAGE_SIZE] {
        crate::check_eq!(is_readable(page), refused, "{page:#x}");
    }
    Ok(refused)
}

crate::ktest! {
    needs(memory_mib = 64)
    fn unmapping_a_part_bears_every_failure() {
        on_filled_memory([[1, 1], [2, 2]], |space, range| unmap_part(space, middle(range)), |range| {
            check(pages(range, 0, 3), 81)?;
            check(pages(range, 9, range.nr_pages() - 9), 81)
        })?;
    }
}

crate::ktest! {
    needs(memory_mib = 64)
    fn huge_pages_fall_back_when_only_they_are_refused() {
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            mm().inject.arm(Site::ALL, 9, 0, u64::MAX);
            let all = fill(range, 82)
                .map(|()| space.space().migrate(range, DEV0))
                .map(|report| (report, check(range, 82)));
            let asked = mm().inject.disarm();
            let (report, checked) = all?;
            checked?;
            crate::check_eq!((report?.pages, asked), (1024, 2));
            Ok(())
        })?;
    }
}

crate::ktest! {
    needs(memory_mib = 64)
    fn changes_of_protection_and_trackers_bear_every_failure() {
        let protect: Operation = |space, r| refused(space.space().protect(middle(r), Prot::READ));
        on_filled_memory([[2, 2], [3, 3]], protect, still_filled)?;
        let forbid: Operation = |space, r| {
            let refused = refused(space.space().protect(middle(r), Prot::empty()))?;
            crate::check_eq!(is_readable(middle(r).start.0), refused);
            Ok(refused)
        };
        on_filled_memory([[2, 2], [3, 3]], forbid, |range| {
            check(pages(range, 0, 3), 81)?;
            check(pages(range, 9, range.nr_pages() - 9), 81)
        })?;
        on_filled_memory([[2, 2], [3, 3]], |space, r| refused(space.space().write_protect(middle(r), true)), still_filled)?;
        on_filled_memory([[0, 0], [1, 1]], |space, r| refused(space.space().clear_soft_dirty(middle(r))), still_filled)?;
    }
}

crate::ktest! {
    needs(memory_mib = 64)
    fn advice_bears_every_failure() {
        let huge: Operation = |space, r| refused(space.space().advise_huge(middle(r), HugeAdvice::Default));
        on_filled_memory([[2, 2], [2, 2]], huge, still_filled)?;
        on_filled_memory([[0, 0], [0, 0]], |space, r| refused(space.space().advise(middle(r), Advice::Cold)), still_filled)?;
        on_filled_memory([[0, 0], [1, 1]], |space, r| refused(space.space().advise(middle(r), Advice::Free)), still_filled)?;
        let forget: Operation = |space, r| refused(space.space().advise(middle(r), Advice::DontNeed));
        on_filled_memory([[0, 0], [1, 1]], forget, |range| {
            check(pages(range, 0, 3), 81)?;
            check_zero(middle(range))?;
            check(pages(range, 9, range.nr_pages() - 9), 81)
        })?;
    }
}

/// All of it is there, where it was or where it went.
fn here_or_there(range: VaRange) -> Result<(), Unmet> {
    let moved = user_read_u64(ELSEWHERE).is_ok();
    for at in (range.start.0..range.end.0).step_by(PAGE_SIZE as usize) {
        let now = if moved { ELSEWHERE + (at - range.start.0) } else { at };
        crate::check_eq!(user_read_u64(now), Ok(pattern(at, 81)), "{at:#x}, moved: {moved}");
        crate::check!(!moved || user_read_u64(at).is_err(), "{at:#x} is in two places");
    }
    Ok(())
}

crate::ktest! {
    needs(memory_mib = 64)
    fn moves_bear_every_failure() {
        on_filled_memory([[2, 2], [3, 3]], |space, range| {
            let target = RemapTarget { addr: Vaddr(ELSEWHERE), len: range.len() };
            refused(space.space().remap(range, target, RemapFlags::empty()))
        }, here_or_there)?;
    }
}

/// A device that owns none of it wants all of it, to write.
fn range_fault(space: &Space, range: VaRange) -> Result<bool, Unmet> {
    let mut pfns = [HmmPfn::NONE; 512];
    let pfns = &mut pfns[..range.nr_pages() as usize];
    let want = HmmWant::FAULT | HmmWant::WRITE;
    let request = RangeFault { range, want, per_page: false, owner: None, under: None };
    match space.space().range_fault(&request, pfns) {
        Ok(()) => {
            let there = |pfn: &HmmPfn| {
                pfn.is_writable() && pfn.frame().is_some_and(|frame| frame.place() == Place::RAM)
            };
            crate::check!(pfns.iter().all(there));
            Ok(false)
        }
        Err(HmmError::Oom(_)) => Ok(true),
        Err(error) => crate::fail!("{error:?}"),
    }
}

crate::ktest! {
    needs(memory_mib = 64)
    fn range_faults_bear_every_failure() {
        for (memory, [fresh, zeros, back]) in [(PTE, [24, 24, 12]), (PMD, [4, 2, 1])] {
            every_allocation_fails(memory, fresh, untouched, range_fault, check_zero)?;
            every_allocation_fails(memory, zeros, read, range_fault, check_zero)?;
            every_allocation_fails(memory, back, on_device, range_fault, still_filled)?;
        }
        every_allocation_fails(PMD, 0, filled, range_fault, still_filled)?;
    }
}

/// Small pages of a range that wants a huge one.
fn in_small_pages(space: &Space, range: VaRange) -> Result<(), Unmet> {
    fill(range, 81)?;
    Ok(space.space().advise_huge(range, HugeAdvice::Huge)?)
}

fn in_small_pages_on_device(space: &Space, range: VaRange) -> Result<(), Unmet> {
    on_device(space, range)?;
    Ok(space.space().advise_huge(range, HugeAdvice::Huge)?)
}

crate::ktest! {
    needs(memory_mib = 64)
    fn collapses_and_merges_bear_every_failure() {
        // What could not be had is in the report, and no refusal.
        let collapse: Operation = |space, range| refused(space.space().collapse(range).map(drop)).map(|_| false);
        let merge: Operation = |space, range| refused(space.space().merge_device(range).map(drop)).map(|_| false);
        let memory = (HugeAdvice::NoHuge, PMD_SIZE);
        every_allocation_fails(memory, 1, in_small_pages, collapse, still_filled)?;
        every_allocation_fails(memory, 1, in_small_pages_on_device, merge, still_filled)?;
    }
}
