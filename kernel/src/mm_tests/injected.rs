//! Every allocation fails once: the n-th one of each operation, for every n, on the real page tables.

use farpage_mm::{
    Advice, Dmirror, DmirrorError, FaultError, HugeAdvice, MigrateFlags, MigrateOptions, Order, PAGE_SIZE,
    PMD_SIZE, Place, Prot, RangeError, RemapFlags, RemapTarget, Site, VaRange, Vaddr,
};

use super::support::{BASE, DEV0, Space, check, check_zero, fill, in_space, pages, pattern, refusal};
use crate::testing::Unmet;
use crate::vm::user::{UserFault, user_read_u64, user_write_u64};
use crate::vm::{clone_space, mm};

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

/// Where a moved range goes: not at a border of 2 MiB.
const ELSEWHERE: u64 = BASE + (1 << 30) + 7 * PAGE_SIZE;

/// Was it refused, and for want of memory?
fn refused<T>(result: Result<T, RangeError>) -> Result<bool, Unmet> {
    match result.map(drop) {
        Ok(()) => Ok(false),
        Err(RangeError::Oom(_)) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Some pages in the middle.
fn middle(range: VaRange) -> VaRange {
    pages(range, 3, 6)
}

/// Runs an operation on filled memory of both sizes, in RAM and on the device.
fn on_filled_memory(operation: Operation, verify: fn(VaRange) -> Result<(), Unmet>) -> Result<(), Unmet> {
    for (advice, len) in SIZES {
        every_allocation_fails_once(advice, len, filled, operation, verify)?;
        every_allocation_fails_once(advice, len, on_device, operation, verify)?;
    }
    Ok(())
}

crate::ktest! {
    fn clones_bear_every_failure() {
        on_filled_memory(|space, _| Ok(clone_space(space).is_err()), still_filled)?;
    }
}

crate::ktest! {
    fn changes_of_protection_and_trackers_bear_every_failure() {
        on_filled_memory(|space, r| refused(space.space().protect(middle(r), Prot::READ)), still_filled)?;
        on_filled_memory(|space, r| refused(space.space().write_protect(middle(r), true)), still_filled)?;
        on_filled_memory(|space, r| refused(space.space().clear_soft_dirty(middle(r))), still_filled)?;
    }
}

crate::ktest! {
    fn advice_bears_every_failure() {
        let huge: Operation = |space, r| refused(space.space().advise_huge(middle(r), HugeAdvice::Default));
        on_filled_memory(huge, still_filled)?;
        on_filled_memory(|space, r| refused(space.space().advise(middle(r), Advice::Cold)), still_filled)?;
        on_filled_memory(|space, r| refused(space.space().advise(middle(r), Advice::Free)), still_filled)?;
        let forget: Operation = |space, r| refused(space.space().advise(middle(r), Advice::DontNeed));
        on_filled_memory(forget, |range| {
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
    fn moves_bear_every_failure() {
        on_filled_memory(|space, range| {
            let target = RemapTarget { addr: Vaddr(ELSEWHERE), len: range.len() };
            refused(space.space().remap(range, target, RemapFlags::empty()))
        }, here_or_there)?;
    }
}

crate::ktest! {
    fn evictions_bear_every_failure() {
        for (advice, len) in SIZES {
            let evict: Operation = |_, _| Ok(mm().evict_range(DEV0, 0..u32::MAX).failed_pages() != 0);
            let asked = every_allocation_fails_once(advice, len, on_device, evict, still_filled)?;
            crate::check!(asked >= 1, "a page in RAM is an allocation");
        }
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
    fn collapses_and_merges_bear_every_failure() {
        // What could not be had is in the report, and no refusal.
        let collapse: Operation = |space, range| refused(space.space().collapse(range).map(drop)).map(|_| false);
        let merge: Operation = |space, range| refused(space.space().merge_device(range).map(drop)).map(|_| false);
        every_allocation_fails_once(HugeAdvice::NoHuge, PMD_SIZE, in_small_pages, collapse, still_filled)?;
        every_allocation_fails_once(HugeAdvice::NoHuge, PMD_SIZE, in_small_pages_on_device, merge, still_filled)?;
    }
}

crate::ktest! {
    fn migrations_that_fault_bear_every_failure() {
        let write: Operation = |space, range| {
            let flags = MigrateFlags::FAULT | MigrateFlags::WRITE;
            let options = MigrateOptions { hole_order: Order::new(3), ..MigrateOptions::to(DEV0).with(flags) };
            let mut units = 0;
            let report = space.space().migrate_with(range, DEV0, &options, &mut |_| units += 1)?;
            crate::check!(units > 0 || report.pages == 0, "{report:?}");
            Ok(report.failed_pages() != 0)
        };
        for (advice, len) in SIZES {
            every_allocation_fails_once(advice, len, filled, write, still_filled)?;
            every_allocation_fails_once(advice, len, read, write, check_zero)?;
            every_allocation_fails_once(advice, len, untouched, write, check_zero)?;
        }
    }
}

/// Was a command refused, and for want of memory?
fn refused_by_device<T>(result: Result<T, DmirrorError>) -> Result<bool, Unmet> {
    match result.map(drop) {
        Ok(()) => Ok(false),
        Err(DmirrorError::NoMemory) => Ok(true),
        Err(error) => crate::fail!("{error:?}"),
    }
}

crate::ktest! {
    fn commands_of_a_device_bear_every_failure() {
        on_filled_memory(|space, range| {
            let mut words = [0; 1024];
            let Ok(device) = Dmirror::open(DEV0, space) else { return Ok(true) };
            if refused_by_device(device.read(range.start, &mut words))? {
                return Ok(true);
            }
            for (i, word) in words.into_iter().enumerate() {
                crate::check_eq!(word, pattern(range.start.0 + i as u64 * 8, 81));
            }
            refused_by_device(device.write(range.start, &words))
        }, still_filled)?;
    }
}
