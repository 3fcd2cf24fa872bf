//! Looking at page tables without trusting them: for the report of a fatal fault, for backtraces, and for tests.

use core::fmt;

use super::paging::{self, Table};
use crate::bootmem;

/// What the walk found at one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// 4 for the PML4 down to 1 for the page table.
    pub(crate) level: u8,
    /// The index in the table.
    pub(crate) index: usize,
    /// The entry.
    pub(crate) entry: u64,
}

/// A walk: the entries for an address, down to a leaf or to an entry that is not present.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    steps: [Step; 4],
    len: usize,
    /// A table that does not lie in RAM, where the walk had to stop.
    bad_table: Option<u64>,
}

const P: u64 = 1;
const PS: u64 = 1 << 7;
/// Bits 51:12 of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The bits that have a name, besides PS and PAT, whose place depends on the level.
const NAMES: [(u64, &str); 9] = [
    (P, "P"),
    (1 << 1, "RW"),
    (1 << 2, "US"),
    (1 << 3, "PWT"),
    (1 << 4, "PCD"),
    (1 << 5, "A"),
    (1 << 6, "D"),
    (1 << 8, "G"),
    (1 << 63, "NX"),
];

impl Step {
    const NONE: Self = Self { level: 0, index: 0, entry: 0 };

    /// Is this a present entry that maps memory?
    pub(crate) fn is_leaf(self) -> bool {
        self.entry & P != 0 && (self.level == 1 || (self.level <= 3 && self.entry & PS != 0))
    }

    /// Bytes that an entry of this level maps.
    pub(crate) fn span(self) -> u64 {
        1 << (12 + 9 * (u32::from(self.level) - 1))
    }

    /// The address in the entry.
    fn target(self) -> u64 {
        let low = if self.is_leaf() { self.span() - 1 } else { 0xfff };
        self.entry & ADDRESS & !low
    }
}

impl Walk {
    /// Walks the table at `root` for `address`.
    pub(crate) fn new(root: u64, address: u64) -> Self {
        let mut walk = Self { steps: [Step::NONE; 4], len: 0, bad_table: None };
        let mut table = root & ADDRESS;
        for level in (1..=4).rev() {
            let Some(entries) = Table::at(table) else {
                walk.bad_table = Some(table);
                break;
            };
            let index = paging::index(address, level);
            let step = Step { level, index, entry: entries.read(index) };
            walk.steps[walk.len] = step;
            walk.len += 1;
            if step.entry & P == 0 || step.is_leaf() {
                break;
            }
            table = step.target();
        }
        walk
    }

    /// Walks the table that is loaded.
    pub(crate) fn current(address: u64) -> Self {
        Self::new(super::tlb::root().start_address().as_u64(), address)
    }

    /// The steps from the PML4 down.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps[..self.len]
    }

    /// The leaf, if the address is mapped.
    pub(crate) fn leaf(&self) -> Option<Step> {
        self.steps().last().copied().filter(|step| step.is_leaf())
    }

    /// The physical address, if `address` is what was walked for and is mapped.
    pub(crate) fn translate(&self, address: u64) -> Option<u64> {
        self.leaf().map(|leaf| leaf.target() + (address & (leaf.span() - 1)))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ["", "PTE", "PMD", "PUD", "PML4E"][usize::from(self.level)];
        write!(f, "{name:<5} [{:3}] {:#018x}", self.index, self.entry)?;
        if self.entry == 0 {
            return f.write_str("  none");
        }
        if self.entry & P == 0 {
            // What it says is known to whoever wrote it; the raw word is above.
            return f.write_str("  not present, with content");
        }
        write!(f, "  -> {:#x}", self.target())?;
        for (bit, name) in NAMES {
            if self.entry & bit != 0 {
                write!(f, " {name}")?;
            }
        }
        let pat = if self.level == 1 { PS } else { 1 << 12 };
        if self.level > 1 && self.entry & PS != 0 {
            f.write_str(" PS")?;
        }
        if self.is_leaf() && self.entry & pat != 0 {
            f.write_str(" PAT")?;
        }
        Ok(())
    }
}

impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in self.steps() {
            writeln!(f, "    {step}")?;
        }
        match self.bad_table {
            Some(table) => writeln!(f, "    the next table, {table:#x}, is not in RAM"),
            None => Ok(()),
        }
    }
}

/// Reads a word of kernel memory if it is mapped, whatever the address.
pub(crate) fn read_kernel_word(address: u64) -> Option<u64> {
    let upper_half = address >> 47 == 0x1_ffff;
    if !upper_half || !address.is_multiple_of(8) {
        return None;
    }
    let phys = Walk::current(address).translate(address)?;
    // Not device registers, which may have side effects.
    if !bootmem::is_ram(phys) {
        return None;
    }
    // SAFETY: mapped RAM, aligned, read as a plain word; its owner may change it meanwhile, hence volatile.
    Some(unsafe { (address as *const u64).read_volatile() })
}
