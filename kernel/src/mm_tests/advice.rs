//! Advice on contents, with real page tables and a real device.

use farpage_mm::{Advice, Attrs, Entry, HugeAdvice, Level, PAGE_SIZE, PMD_SIZE, Place, RangeError, Vaddr};

use super::support::{DEV0, Kinds, Space, check, check_zero, fill, in_space, kinds, map, pages, resident};
use crate::testing::Unmet;
use crate::vm::mm;
use crate::vm::user::{user_touch_write, user_write_u64};

fn is_dirty(space: &Space, addr: u64) -> Result<bool, Unmet> {
    match space.entry_at(Vaddr(addr)).1 {
        Entry::Leaf(leaf) => Ok(leaf.attrs.contains(Attrs::DIRTY)),
        other => crate::fail!("{addr:#x}: {other:?}"),
    }
}

crate::ktest! {
    fn what_is_not_needed_reads_as_zeros_and_its_memory_is_free() {
        for on_device in [false, true] {
            for (first, nr) in [(0, 512), (0, 256), (100, 300), (511, 1)] {
                in_space(|space| {
                    let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
                    fill(range, 51)?;
                    if on_device {
                        space.space().migrate(range, DEV0)?;
                    }
                    let free = mm().zone(Place::RAM).stat().free;
                    let gone = pages(range, first, nr);
                    space.space().advise(gone, Advice::DontNeed)?;
                    if on_device {
                        crate::check_eq!(resident(0), 512 - nr);
                    } else {
                        // Less what the rest's table and folios take.
                        crate::check!(mm().zone(Place::RAM).stat().free + 8 >= free + nr as u32);
                    }
                    check(pages(range, 0, first), 51)?;
                    check(pages(range, first + nr, 512 - first - nr), 51)?;
                    check_zero(gone)?;
                    fill(range, 52)?;
                    check(range, 52)
                })?;
            }
        }
    }
}

crate::ktest! {
    fn a_range_that_was_given_up_gets_huge_pages_again() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 53)?;
            space.space().advise(pages(range, 0, 10), Advice::DontNeed)?;
            crate::check_eq!(space.entry_at(range.start).0, Level::Pte);
            space.space().advise(range, Advice::DontNeed)?;
            user_touch_write(range.start.0)?;
            crate::check_eq!(kinds(space, range), Kinds { huge_present: 1, ..Kinds::default() });
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn freed_pages_are_clean_until_they_are_written() {
        for advice in [HugeAdvice::Huge, HugeAdvice::NoHuge] {
            in_space(|space| {
                let range = map(space, PMD_SIZE, advice)?;
                fill(range, 54)?;
                crate::check!(is_dirty(space, range.start.0)?);
                space.space().advise(range, Advice::Free)?;
                crate::check!(!is_dirty(space, range.start.0)?);
                check(range, 54)?;
                crate::check!(!is_dirty(space, range.start.0)?, "reads leave it clean");
                // The TLB had the page, dirty: without the flush the CPU would not say so again.
                user_write_u64(range.start.0, 1)?;
                crate::check!(is_dirty(space, range.start.0)?);
                Ok(())
            })?;
        }
    }
}

crate::ktest! {
    fn pages_on_the_device_are_no_business_of_advice_on_contents_that_stay() {
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 55)?;
            space.space().migrate(range, DEV0)?;
            space.space().unmap(pages(range, 1023, 1))?;
            let left = pages(range, 0, 1023);
            for advice in [Advice::Free, Advice::Cold, Advice::PageOut] {
                space.space().advise(left, advice)?;
                crate::check_eq!(
                    kinds(space, range),
                    Kinds { huge_device: 1, device: 511, none: 1, ..Kinds::default() }
                );
            }
            check(left, 55)
        })?;
    }
}

crate::ktest! {
    fn holes_are_passed_over_and_told_of() {
        in_space(|space| {
            let range = map(space, 30 * PAGE_SIZE, HugeAdvice::NoHuge)?;
            fill(range, 56)?;
            let hole = pages(range, 10, 5);
            space.space().unmap(hole)?;
            crate::check_eq!(
                space.space().advise(pages(range, 5, 20), Advice::DontNeed),
                Err(RangeError::NotMapped(hole.start))
            );
            check(pages(range, 0, 5), 56)?;
            check_zero(pages(range, 5, 5))?;
            check_zero(pages(range, 15, 10))?;
            check(pages(range, 25, 5), 56)
        })?;
    }
}
