//! Every allocation fails once: the n-th one of each operation, for every n, on the real page tables.

use farpage_mm::{FaultError, HugeAdvice, PAGE_SIZE, PMD_SIZE, Place, Prot, Site, VaRange};

use super::support::{BASE, DEV0, Space, check, check_zero, fill, in_space, pages, refusal};
use crate::testing::Unmet;
use crate::vm::mm;
use crate::vm::user::{UserFault, user_read_u64, user_write_u64};

/// Pages of the small-page cases.
const SMALL: u64 = 12;

/// An operation on a range, and whether it was refused for want of memory.
type Operation = fn(&Space, VaRange) -> Result<bool, Unmet>;

/// Is it out of memory, and nothing else?
fn oom(access: Result<(), UserFault>) -> Result<bool, Unmet> {
    match refusal(access) {
        Ok(()) => Ok(false),
        Err((_, Some(FaultError::Oom(_)))) => Ok(true),
        Err((at, why)) => crate::fail!("{at:#x} is refused: {why:?}"),
    }
}

/// Runs `operation` on prepared memory with the first allocation failing, then with the second, until it asks for no more;
/// then once more with all memory. `verify` must hold after each.
fn every_allocation_fails_once(
    advice: HugeAdvice,
    len: u64,
    prepare: fn(&Space, VaRange) -> Result<(), Unmet>,
    operation: Operation,
    verify: fn(VaRange) -> Result<(), Unmet>,
) -> Result<u64, Unmet> {
    for n in 0.. {
        let mut asked = 0;
        in_space(|space| {
            let range = VaRange::new(BASE, len);
            space.space().map_anon(range, Prot::RW, advice)?;
            prepare(space, range)?;
            mm().inject.arm(Site::ALL, 0, n, 1);
            let first = operation(space, range);
            asked = mm().inject.disarm();
            if !first? {
                return verify(range);
            }
            crate::check!(!operation(space, range)?, "allocation {n} failed, and so did the second try");
            verify(range)
        })?;
        if asked <= n {
            return Ok(asked);
        }
    }
    Ok(0)
}

/// Filled memory.
fn filled(_: &Space, range: VaRange) -> Result<(), Unmet> {
    Ok(fill(range, 81)?)
}

/// Filled memory on the device.
fn on_device(space: &Space, range: VaRange) -> Result<(), Unmet> {
    fill(range, 81)?;
    space.space().migrate(range, DEV0)?;
    Ok(())
}

/// Memory that was read only.
fn read(_: &Space, range: VaRange) -> Result<(), Unmet> {
    check_zero(range)
}

fn untouched(_: &Space, _: VaRange) -> Result<(), Unmet> {
    Ok(())
}

fn still_filled(range: VaRange) -> Result<(), Unmet> {
    check(range, 81)
}

fn one_word_written(range: VaRange) -> Result<(), Unmet> {
    crate::check_eq!(user_read_u64(range.start.0), Ok(7));
    user_write_u64(range.start.0, 0)?;
    check_zero(range)
}

fn write(_: &Space, range: VaRange) -> Result<bool, Unmet> {
    oom(user_write_u64(range.start.0, 7))
}

fn touch(_: &Space, range: VaRange) -> Result<bool, Unmet> {
    oom(user_read_u64(range.start.0 + PAGE_SIZE).map(drop))
}

const SIZES: [(HugeAdvice, u64); 2] = [(HugeAdvice::NoHuge, SMALL * PAGE_SIZE), (HugeAdvice::Huge, PMD_SIZE)];

crate::ktest! {
    fn first_touches_bear_every_failure() {
        for (advice, len) in SIZES {
            let asked = every_allocation_fails_once(advice, len, untouched, write, one_word_written)?;
            crate::check!(asked >= 4, "tables, a folio and its descriptor are {asked} allocations");
            every_allocation_fails_once(advice, len, untouched, touch, check_zero)?;
            every_allocation_fails_once(advice, len, read, write, one_word_written)?;
        }
    }
}

crate::ktest! {
    fn faults_on_device_memory_bear_every_failure() {
        for (advice, len) in SIZES {
            let asked = every_allocation_fails_once(advice, len, on_device, touch, still_filled)?;
            crate::check!(asked >= 1, "a page in RAM is an allocation");
        }
    }
}

/// A migration is never refused: what could not go is in the report.
fn migrate(space: &Space, range: VaRange, to: Place) -> Result<bool, Unmet> {
    let report = space.space().migrate(range, to)?;
    crate::check!(report.pages + report.failed_pages() <= range.nr_pages(), "{report:?}");
    Ok(report.failed_pages() != 0)
}

crate::ktest! {
    fn migrations_bear_every_failure_in_both_directions() {
        for (advice, len) in SIZES {
            every_allocation_fails_once(advice, len, filled, |s, r| migrate(s, r, DEV0), still_filled)?;
            every_allocation_fails_once(advice, len, on_device, |s, r| migrate(s, r, Place::RAM), still_filled)?;
            every_allocation_fails_once(advice, len, read, |s, r| migrate(s, r, DEV0), check_zero)?;
            every_allocation_fails_once(advice, len, untouched, |s, r| migrate(s, r, DEV0), check_zero)?;
        }
    }
}

crate::ktest! {
    fn migrations_of_parts_bear_every_failure() {
        let there: Operation = |space, range| migrate(space, pages(range, 100, 200), DEV0);
        let back: Operation = |space, range| migrate(space, pages(range, 100, 200), Place::RAM);
        every_allocation_fails_once(HugeAdvice::Huge, PMD_SIZE, filled, there, still_filled)?;
        every_allocation_fails_once(HugeAdvice::Huge, PMD_SIZE, on_device, back, still_filled)?;
    }
}

/// Out of memory leaves all as it was; otherwise the part is gone and nothing else.
fn unmap(space: &Space, range: VaRange) -> Result<bool, Unmet> {
    match space.space().unmap(pages(range, 100, 200)) {
        Ok(()) => {
            crate::check!(user_read_u64(range.start.0 + 100 * PAGE_SIZE).is_err());
            crate::check!(user_read_u64(range.start.0 + 299 * PAGE_SIZE).is_err());
            Ok(false)
        }
        Err(_) => {
            // The part can still be read: whatever the failure was, it came before the first change.
            crate::check!(user_read_u64(range.start.0 + 100 * PAGE_SIZE).is_ok());
            Ok(true)
        }
    }
}

fn rest_filled(range: VaRange) -> Result<(), Unmet> {
    check(pages(range, 0, 100), 81)?;
    check(pages(range, 300, 212), 81)
}

crate::ktest! {
    fn unmapping_a_part_bears_every_failure() {
        every_allocation_fails_once(HugeAdvice::Huge, PMD_SIZE, filled, unmap, rest_filled)?;
        every_allocation_fails_once(HugeAdvice::Huge, PMD_SIZE, on_device, unmap, rest_filled)?;
    }
}

crate::ktest! {
    fn huge_pages_fall_back_when_only_they_are_refused() {
        in_space(|space| {
            let range = VaRange::new(BASE, 2 * PMD_SIZE);
            space.space().map_anon(range, Prot::RW, HugeAdvice::Huge)?;
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
