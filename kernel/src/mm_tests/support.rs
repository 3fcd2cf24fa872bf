//! What the tests share: a loaded address space, patterns, and a look at the device's memory.

use farpage_mm::{AddressSpace, Entry, HugeAdvice, Level, PAGE_SIZE, Prot, SoftKind, VaRange, Vaddr};

use crate::testing::Unmet;
use crate::vm::user::{UserFault, user_read_u64, user_write_u64};
use crate::vm::{Active, Machine, activate, new_space};

/// Where the tests map their memory: 2 MiB aligned.
pub(super) const BASE: u64 = 0x10_0000_0000;

impl From<UserFault> for Unmet {
    fn from(fault: UserFault) -> Self {
        Self::Failed(alloc::format!("{fault} ({:?})", crate::vm::user::last_refusal()))
    }
}

impl From<farpage_mm::RangeError> for Unmet {
    fn from(error: farpage_mm::RangeError) -> Self {
        Self::Failed(alloc::format!("{error}"))
    }
}

impl From<farpage_mm::OutOfMemory> for Unmet {
    fn from(error: farpage_mm::OutOfMemory) -> Self {
        Self::Failed(alloc::format!("{error}"))
    }
}

/// Runs `test` in a new address space that is loaded on this CPU.
pub(super) fn in_space(test: impl FnOnce(&AddressSpace<Machine>) -> Result<(), Unmet>) -> Result<(), Unmet> {
    let space = new_space()?;
    let active: Active<'_> = activate(&space);
    let result = test(&space);
    drop(active);
    drop(space);
    result
}

/// Maps `len` bytes at [`BASE`] for reading and writing.
pub(super) fn map(space: &AddressSpace<Machine>, len: u64, advice: HugeAdvice) -> Result<VaRange, Unmet> {
    let range = VaRange::new(BASE, len);
    space.space().map_anon(range, Prot::RW, advice)?;
    Ok(range)
}

/// The word that belongs at `addr` under `seed`.
pub(super) const fn pattern(addr: u64, seed: u64) -> u64 {
    (addr ^ seed.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Writes the pattern to every word of `range`.
pub(super) fn fill(range: VaRange, seed: u64) -> Result<(), UserFault> {
    let mut at = range.start.0;
    while at < range.end.0 {
        user_write_u64(at, pattern(at, seed))?;
        at += 8;
    }
    Ok(())
}

/// Compares every word of `range` with the pattern.
pub(super) fn check(range: VaRange, seed: u64) -> Result<(), Unmet> {
    let mut at = range.start.0;
    while at < range.end.0 {
        let word = user_read_u64(at)?;
        if word != pattern(at, seed) {
            return Err(Unmet::Failed(alloc::format!("{at:#x} holds {word:#x}, not {:#x}", pattern(at, seed))));
        }
        at += 8;
    }
    Ok(())
}

/// How many entries of each kind map `range`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kinds {
    pub(super) huge_present: u32,
    pub(super) huge_device: u32,
    pub(super) present: u32,
    pub(super) device: u32,
    pub(super) zero: u32,
    pub(super) none: u32,
}

/// Looks at every page's entry.
pub(super) fn kinds(space: &AddressSpace<Machine>, range: VaRange) -> Kinds {
    let mut kinds = Kinds::default();
    let mut at = range.start.0;
    while at < range.end.0 {
        let (level, entry) = space.entry_at(Vaddr(at));
        match (level, entry) {
            (_, Entry::Leaf(leaf)) if leaf.special => kinds.zero += 1,
            (Level::Pmd, Entry::Leaf(_)) => kinds.huge_present += 1,
            (_, Entry::Leaf(_)) => kinds.present += 1,
            (Level::Pmd, Entry::NonPresent(soft)) if soft.kind == SoftKind::DevicePrivate => kinds.huge_device += 1,
            (_, Entry::NonPresent(soft)) if soft.kind == SoftKind::DevicePrivate => kinds.device += 1,
            _ => kinds.none += 1,
        }
        let huge = level == Level::Pmd && !matches!(entry, Entry::None | Entry::Table(_));
        at += if huge { level.size() } else { PAGE_SIZE };
    }
    kinds
}
