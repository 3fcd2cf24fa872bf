//! A model of a CPU's TLB for data.
//!
//! An address and the size of its page go in; out comes where the translation was found: in the first level, in the second, or by
//! a walk, and how many loads the walk took. What is modelled is what decides about hits: entries, ways, which sizes a level
//! holds, replacement, and the caches of upper-level entries. What is not: time, prefetch, speculation, hashed indices, merged
//! pages, and instructions.
//!
//! ```text
//!  address, size -> first level (one shape for each size, or one for both)
//!                     | miss
//!                   second level
//!                     | miss
//!                   walk: 4 loads for 4 KiB, 3 for 2 MiB, less what the caches of PML4, PDPT and PD entries know
//! ```
//!
//! A miss fills both levels, and a hit in the second fills the first. No level is told what another one drops.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod level;
mod presets;
mod walk;

#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;

use level::Level;
use walk::Walker;

pub use presets::{DESKTOP, PRESETS, SERVER, TINY};

/// The size of the page that an address lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageSize {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Huge,
}

impl PageSize {
    /// The number of address bits within a page.
    #[must_use]
    pub const fn shift(self) -> u32 {
        match self {
            Self::Small => 12,
            Self::Huge => 21,
        }
    }

    /// The size, in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }
}

/// Which entry of a full set goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replacement {
    /// The one that was not used for longest.
    Lru,
    /// The one that a binary tree of bits points to, each of which points away from the last use below it. Ways must be a power of
    /// two.
    TreePlru,
    /// The one that came first.
    Fifo,
    /// Any; always the same one in the same run.
    Random,
}

/// Which sizes a level holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holds {
    /// 4 KiB pages.
    Small,
    /// 2 MiB pages.
    Huge,
    /// Both, in the same sets.
    Both,
}

impl Holds {
    /// Does it hold pages of this size?
    #[must_use]
    pub const fn has(self, size: PageSize) -> bool {
        matches!(
            (self, size),
            (Self::Both, _) | (Self::Small, PageSize::Small) | (Self::Huge, PageSize::Huge)
        )
    }
}

/// One structure of a level. The set of a page is its number, in pages of its own size, modulo the number of sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Entries in all.
    pub entries: u32,
    /// Entries of a set: all of them for a structure that is fully associative, one for one that is direct-mapped.
    pub ways: u32,
    /// What it holds.
    pub holds: Holds,
    /// What it drops.
    pub replacement: Replacement,
}

impl Shape {
    /// A structure that is fully associative, with LRU.
    #[must_use]
    pub const fn full(entries: u32, holds: Holds) -> Self {
        Self { entries, ways: entries, holds, replacement: Replacement::Lru }
    }

    /// A structure with sets of `ways` entries, with LRU.
    #[must_use]
    pub const fn sets(entries: u32, ways: u32, holds: Holds) -> Self {
        Self { entries, ways, holds, replacement: Replacement::Lru }
    }
}

/// Entries of the caches of upper-level page-table entries, each fully associative with LRU; 0 for none (Intel SDM volume 3, section
/// "Caching Translation Information").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalkCaches {
    /// PML4 entries: one for each 512 GiB.
    pub pml4: u32,
    /// PDPT entries: one for each 1 GiB.
    pub pdpt: u32,
    /// PD entries that name a table: one for each 2 MiB of small pages.
    pub pd: u32,
}

impl WalkCaches {
    /// Every walk begins at the root.
    pub const NONE: Self = Self { pml4: 0, pdpt: 0, pd: 0 };
}

/// A TLB to build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config<'a> {
    /// What it is called.
    pub name: &'a str,
    /// The first level. A size is looked up in the first shape that holds it.
    pub first: &'a [Shape],
    /// The second level; may be empty.
    pub second: &'a [Shape],
    /// What makes walks shorter.
    pub walks: WalkCaches,
}

impl Config<'_> {
    /// How much memory in pages of `size` the largest level covers, in bytes: the reach.
    #[must_use]
    pub fn reach(&self, size: PageSize) -> u64 {
        let entries = |level: &[Shape]| shape_for(level, size).map_or(0, |shape| u64::from(shape.entries));
        entries(self.first).max(entries(self.second)) * size.bytes()
    }
}

fn shape_for(level: &[Shape], size: PageSize) -> Option<&Shape> {
    level.iter().find(|shape| shape.holds.has(size))
}

/// Why a TLB cannot be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadConfig {
    /// A structure has no entries, or its ways do not divide them.
    Ways(Shape),
    /// A tree needs a number of ways that is a power of two, 64 at most.
    Tree(Shape),
    /// There is no memory for the model.
    OutOfMemory,
}

impl fmt::Display for BadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ways(shape) => {
                write!(f, "{} entries cannot be in sets of {}; take a divisor", shape.entries, shape.ways)
            }
            Self::Tree(shape) => {
                write!(f, "a tree needs 1, 2, 4 ... or 64 ways, not {}; take LRU", shape.ways)
            }
            Self::OutOfMemory => f.write_str("there is no memory for a model of that size"),
        }
    }
}

/// Where a translation was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// In the first level.
    First,
    /// In the second level.
    Second,
    /// In the page table, with so many loads.
    Walk(u32),
}

/// What has happened since the last [`Tlb::take_counts`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Accesses.
    pub accesses: u64,
    /// Accesses that the first level did not know.
    pub first_misses: u64,
    /// Accesses that no level knew: walks.
    pub walks: u64,
    /// Loads of all walks.
    pub walk_loads: u64,
}

/// A TLB.
#[derive(Debug)]
pub struct Tlb {
    first: Vec<Level>,
    second: Vec<Level>,
    walker: Walker,
    counts: Counts,
}

impl Tlb {
    /// An empty one. Its memory is what it is built with: nothing later allocates.
    ///
    /// # Errors
    /// [`BadConfig`].
    pub fn new(config: &Config<'_>) -> Result<Self, BadConfig> {
        Ok(Self {
            first: levels(config.first)?,
            second: levels(config.second)?,
            walker: Walker::new(config.walks)?,
            counts: Counts::default(),
        })
    }

    /// Accesses `address`, which lies in a page of `size`.
    pub fn access(&mut self, address: u64, size: PageSize) -> Found {
        let page = address >> size.shift();
        self.counts.accesses += 1;
        if let Some(level) = level_for(&mut self.first, size)
            && level.access(page, size)
        {
            return Found::First;
        }
        self.counts.first_misses += 1;
        if let Some(level) = level_for(&mut self.second, size)
            && level.access(page, size)
        {
            return Found::Second;
        }
        let loads = self.walker.walk(address, size);
        self.counts.walks += 1;
        self.counts.walk_loads += u64::from(loads);
        Found::Walk(loads)
    }

    /// What `INVLPG` does: drops the page of `address`, whatever its size, and all upper-level entries.
    pub fn invalidate(&mut self, address: u64) {
        for level in self.first.iter_mut().chain(&mut self.second) {
            for size in [PageSize::Small, PageSize::Huge] {
                level.forget(address >> size.shift(), size);
            }
        }
        self.walker.flush();
    }

    /// What loading CR3 does, where no page is global: drops everything.
    pub fn flush(&mut self) {
        self.first.iter_mut().chain(&mut self.second).for_each(Level::flush);
        self.walker.flush();
    }

    /// What was counted since this was last asked; counts anew.
    pub fn take_counts(&mut self) -> Counts {
        core::mem::take(&mut self.counts)
    }
}

fn levels(shapes: &[Shape]) -> Result<Vec<Level>, BadConfig> {
    let mut levels = Vec::new();
    levels.try_reserve_exact(shapes.len()).map_err(|_| BadConfig::OutOfMemory)?;
    for shape in shapes {
        levels.push(Level::new(*shape)?);
    }
    Ok(levels)
}

fn level_for(levels: &mut [Level], size: PageSize) -> Option<&mut Level> {
    levels.iter_mut().find(|level| level.holds().has(size))
}
