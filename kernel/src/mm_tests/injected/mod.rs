//! Every allocation fails: the n-th one of each operation, alone and with all that follow, for every n, on the real page tables.
//! After each failure the system is audited; then the operation is done again with all memory, and what must hold in the end is
//! checked, word by word. Most of it runs on a machine with little RAM: an audit looks at all there is.

mod devices;
mod handles;
mod memory;
mod migration;
mod sharing;

use farpage_mm::{FaultError, HugeAdvice, Machine as _, PAGE_SIZE, PMD_SIZE, RangeError, Site, VaRange};

use super::support::{
    BASE, DEV0, Space, check, check_zero, fill, frame_at, in_space, map, pages, pattern, refusal,
};
use crate::testing::Unmet;
use crate::vm::user::{UserFault, user_read_u64};
use crate::vm::{Machine, mm};

/// Pages of the small-page cases.
const SMALL: u64 = 12;

/// Pages of what kind, and how many bytes.
type Memory = (HugeAdvice, u64);
const PTE: Memory = (HugeAdvice::NoHuge, SMALL * PAGE_SIZE);
const PMD: Memory = (HugeAdvice::Huge, PMD_SIZE);
/// Both sizes.
const SIZES: [Memory; 2] = [PTE, PMD];

/// Another place for mappings: not at a border of 2 MiB.
const ELSEWHERE: u64 = BASE + (1 << 30) + 7 * PAGE_SIZE;

/// So many allocations fail one by one, the others in strides that grow: those of 512 small pages fail alike. Those for tables
/// alone, which are few, fail one by one to the end.
const ONE_BY_ONE: u64 = 16;

/// An operation on a range, and whether it was refused for want of memory.
type Operation = fn(&Space, VaRange) -> Result<bool, Unmet>;

/// Lets every allocation of `operation` fail, on memory that is mapped and prepared. It asks for `least` of them or more, or it is not
/// the operation that is meant. It says whether it was refused; if so, it must succeed the next time. `verify` must hold in the
/// end.
fn every_allocation_fails(
    memory: Memory,
    least: u64,
    prepare: fn(&Space, VaRange) -> Result<(), Unmet>,
    operation: Operation,
    verify: fn(VaRange) -> Result<(), Unmet>,
) -> Result<(), Unmet> {
    let operation = |space: &Space, range, (): &()| operation(space, range);
    let verify = |_: &Space, range, (): &()| verify(range);
    every_allocation_fails_beside(memory, least, prepare, operation, verify)
}

/// The same, with something that `prepare` makes and that is there meanwhile.
fn every_allocation_fails_beside<T>(
    memory: Memory,
    least: u64,
    prepare: impl Fn(&Space, VaRange) -> Result<T, Unmet>,
    operation: impl Fn(&Space, VaRange, &T) -> Result<bool, Unmet>,
    verify: impl Fn(&Space, VaRange, &T) -> Result<(), Unmet>,
) -> Result<(), Unmet> {
    let round = |sites, n, times| {
        let mut asked = 0;
        in_space(|space| {
            let (advice, len) = memory;
            let range = map(space, len, advice)?;
            let there = prepare(space, range)?;
            mm().inject.arm(sites, 0, n, times);
            let refused = operation(space, range, &there);
            asked = mm().inject.disarm();
            let refused = refused?;
            audit()?;
            if refused {
                crate::check!(asked > n, "refused, and nothing had failed");
                let again = operation(space, range, &there)?;
                crate::check!(!again, "allocation {n} failed, and so did the second try");
            }
            verify(space, range, &there)
        })?;
        Ok::<_, Unmet>(asked)
    };
    let tables = Site::Table as u32;
    for (sites, times) in [(Site::ALL, 1), (Site::ALL, u64::MAX), (tables, 1)] {
        let mut n = 0;
        loop {
            let asked = round(sites, n, times)?;
            if asked <= n {
                crate::check!(sites != Site::ALL || asked >= least, "{asked} allocations are not {least}");
                break;
            }
            n += if n < ONE_BY_ONE || sites == tables { 1 } else { n / 3 };
        }
    }
    Ok(())
}

fn audit() -> Result<(), Unmet> {
    mm().audit().map_err(|error| Unmet::Failed(alloc::format!("{error}")))
}

/// Was an access refused for want of memory?
fn oom(access: Result<(), UserFault>) -> Result<bool, Unmet> {
    match refusal(access) {
        Ok(()) => Ok(false),
        Err((_, Some(FaultError::Oom(_)))) => Ok(true),
        Err((at, why)) => crate::fail!("{at:#x} is refused: {why:?}"),
    }
}

/// True for an address that can be read, or could be with more memory.
fn is_readable(at: u64) -> bool {
    matches!(refusal(user_read_u64(at)), Ok(_) | Err((_, Some(FaultError::Oom(_)))))
}

/// Was an operation on a range?
fn refused<T>(result: Result<T, RangeError>) -> Result<bool, Unmet> {
    match result.map(drop) {
        Ok(()) => Ok(false),
        Err(RangeError::Oom(_)) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Memory that nobody has touched.
fn untouched(_: &Space, _: VaRange) -> Result<(), Unmet> {
    Ok(())
}

/// Memory that was read only.
fn read(_: &Space, range: VaRange) -> Result<(), Unmet> {
    check_zero(range)
}

/// Filled memory.
fn filled(_: &Space, range: VaRange) -> Result<(), Unmet> {
    Ok(fill(range, 81)?)
}

/// Filled memory on the device.
fn on_device(space: &Space, range: VaRange) -> Result<(), Unmet> {
    fill(range, 81)?;
    crate::check_eq!(space.space().migrate(range, DEV0)?.pages, range.nr_pages());
    Ok(())
}

fn still_filled(range: VaRange) -> Result<(), Unmet> {
    check(range, 81)
}

/// Compares every word of `range` with the pattern where it lies, whether or not the space is loaded and the CPU could reach it.
pub(super) fn holds(space: &Space, range: VaRange, seed: u64) -> Result<(), Unmet> {
    let mut words = [0; PAGE_SIZE as usize / 8];
    for page in (range.start.0..range.end.0).step_by(PAGE_SIZE as usize) {
        let Some(frame) = frame_at(space, page) else { crate::fail!("nothing at {page:#x}") };
        Machine::read_frame(frame, 0, &mut words);
        let wrong = words.iter().enumerate().find(|&(i, &word)| word != pattern(page + i as u64 * 8, seed));
        crate::check_eq!(wrong, None, "word of {page:#x}, in {frame}");
    }
    Ok(())
}

/// Some pages in the middle.
fn middle(range: VaRange) -> VaRange {
    pages(range, 3, 6)
}
