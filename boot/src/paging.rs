//! Page tables of four levels, built over any memory.
//!
//! The loader writes a fresh set of tables once, before anything runs on them: no flush, no change of a present
//! entry. That is why this is so much smaller than the kernel's own walk, and shares nothing with it.

use crate::error::LoadError;
use crate::{PAGE_SIZE, page_up};
use core::ops::Range;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
/// In an entry of level 2 or 3: this is a page, not a table.
const PAGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Physical memory, as far as the loader touches it.
pub trait Memory {
    /// Reads entry `index` of the table at `table`.
    fn entry(&self, table: u64, index: usize) -> u64;
    /// Writes that entry.
    fn set_entry(&mut self, table: u64, index: usize, value: u64);
    /// Fills with zeros.
    fn zero(&mut self, phys: u64, len_bytes: u64);
    /// Writes bytes.
    fn write(&mut self, phys: u64, bytes: &[u8]);
}

/// One piece of free memory, handed out from its start in whole pages and never taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arena {
    start: u64,
    next: u64,
    end: u64,
}

impl Arena {
    /// An arena of whole pages.
    #[must_use]
    pub fn new(range: Range<u64>) -> Self {
        Self { start: range.start, next: range.start, end: range.end }
    }

    /// What has been given out.
    #[must_use]
    pub fn used(&self) -> Range<u64> {
        self.start..self.next
    }

    /// Gives out zeroed, contiguous pages for `len_bytes`.
    ///
    /// # Errors
    /// [`LoadError::NotEnoughMemory`].
    pub fn alloc(&mut self, memory: &mut impl Memory, len_bytes: u64) -> Result<u64, LoadError> {
        let phys = self.next;
        let end = page_up(len_bytes).and_then(|len| phys.checked_add(len)).unwrap_or(u64::MAX);
        if end > self.end {
            let available = self.end - self.start;
            return Err(LoadError::NotEnoughMemory { needed: end - self.start, available });
        }
        self.next = end;
        memory.zero(phys, end - phys);
        Ok(phys)
    }
}

/// What may be done with a page: never write and execute at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    ReadOnly,
    /// Read and write.
    ReadWrite,
    /// Read and execute.
    ReadExecute,
}

/// Sizes of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl PageSize {
    /// Bytes of a page.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4K => PAGE_SIZE,
            Self::Size2M => 2 << 20,
            Self::Size1G => 1 << 30,
        }
    }

    /// Level of the entry that maps it.
    const fn level(self) -> u32 {
        match self {
            Self::Size4K => 1,
            Self::Size2M => 2,
            Self::Size1G => 3,
        }
    }
}

/// What the CPU's paging can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// EFER.NXE is on.
    pub no_execute: bool,
    /// Pages of 1 GiB.
    pub gib_pages: bool,
}

/// A set of tables under construction.
#[derive(Debug)]
pub struct Tables<'m, M> {
    /// The memory they stand in.
    pub memory: &'m mut M,
    /// Where new tables come from.
    pub arena: &'m mut Arena,
    root: u64,
    features: Features,
}

impl<'m, M: Memory> Tables<'m, M> {
    /// A new, empty top table.
    ///
    /// # Errors
    /// [`LoadError::NotEnoughMemory`].
    pub fn new(memory: &'m mut M, arena: &'m mut Arena, features: Features) -> Result<Self, LoadError> {
        let root = arena.alloc(memory, PAGE_SIZE)?;
        Ok(Self { memory, arena, root, features })
    }

    /// Tables that exist already, to look at.
    #[cfg(test)]
    pub(crate) fn at(memory: &'m mut M, arena: &'m mut Arena, root: u64) -> Self {
        Self { memory, arena, root, features: Features { no_execute: true, gib_pages: true } }
    }

    /// Physical address of the top table.
    #[must_use]
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Maps a range by 4 KiB pages, none of which may be mapped yet.
    ///
    /// # Errors
    /// [`LoadError::BadAddress`], [`LoadError::AlreadyMapped`], [`LoadError::NotEnoughMemory`].
    pub fn map(&mut self, virt: u64, phys: u64, len_bytes: u64, access: Access) -> Result<(), LoadError> {
        self.map_up_to(PageSize::Size4K, virt, phys, len_bytes, access)
    }

    /// Maps a range by the largest pages that the CPU has and the alignment allows.
    ///
    /// # Errors
    /// As for [`Tables::map`].
    pub fn map_large(
        &mut self,
        virt: u64,
        phys: u64,
        len_bytes: u64,
        access: Access,
    ) -> Result<(), LoadError> {
        let largest = if self.features.gib_pages { PageSize::Size1G } else { PageSize::Size2M };
        self.map_up_to(largest, virt, phys, len_bytes, access)
    }

    /// Makes the top table appear as a table of every level, at slot `index`.
    ///
    /// # Errors
    /// [`LoadError::AlreadyMapped`] if the slot is in use.
    pub fn map_recursively(&mut self, index: u16) -> Result<(), LoadError> {
        let slot = usize::from(index) % 512;
        if self.memory.entry(self.root, slot) != 0 {
            return Err(LoadError::AlreadyMapped { virt: u64::from(index) << 39 });
        }
        let entry = self.root | PRESENT | WRITABLE | self.no_execute();
        self.memory.set_entry(self.root, slot, entry);
        Ok(())
    }

    /// The physical address that `virt` leads to, and by which size and rights.
    #[must_use]
    pub fn translate(&self, virt: u64) -> Option<(u64, PageSize, Access)> {
        let mut table = self.root;
        for level in (1..=4).rev() {
            let entry = self.memory.entry(table, index(virt, level));
            if entry & PRESENT == 0 {
                return None;
            }
            let size = match level {
                1 => PageSize::Size4K,
                2 if entry & PAGE != 0 => PageSize::Size2M,
                3 if entry & PAGE != 0 => PageSize::Size1G,
                _ => {
                    table = entry & ADDRESS;
                    continue;
                }
            };
            let offset = virt & (size.bytes() - 1);
            return Some(((entry & ADDRESS) + offset, size, access_of(entry)));
        }
        None
    }

    fn map_up_to(
        &mut self,
        largest: PageSize,
        virt: u64,
        phys: u64,
        len_bytes: u64,
        access: Access,
    ) -> Result<(), LoadError> {
        let bad = LoadError::BadAddress { virt };
        let len = page_up(len_bytes).filter(|&len| len != 0).ok_or(bad)?;
        let last = virt.checked_add(len - 1).ok_or(bad)?;
        let crosses = is_kernel_half(virt) != is_kernel_half(last);
        if !is_canonical(virt) || !is_canonical(last) || crosses || (virt | phys) & (PAGE_SIZE - 1) != 0 {
            return Err(bad);
        }
        let mut done = 0;
        while done < len {
            let size = fitting(largest, virt + done, phys + done, len - done);
            self.map_page(virt + done, phys + done, size, access)?;
            done += size.bytes();
        }
        Ok(())
    }

    fn map_page(&mut self, virt: u64, phys: u64, size: PageSize, access: Access) -> Result<(), LoadError> {
        let mut table = self.root;
        for level in (size.level() + 1..=4).rev() {
            let slot = index(virt, level);
            let entry = self.memory.entry(table, slot);
            table = if entry == 0 {
                let new = self.arena.alloc(self.memory, PAGE_SIZE)?;
                self.memory.set_entry(table, slot, new | PRESENT | WRITABLE);
                new
            } else if level < 4 && entry & PAGE != 0 {
                return Err(LoadError::AlreadyMapped { virt });
            } else {
                entry & ADDRESS
            };
        }
        let slot = index(virt, size.level());
        if self.memory.entry(table, slot) != 0 {
            return Err(LoadError::AlreadyMapped { virt });
        }
        let rights = match access {
            Access::ReadOnly => self.no_execute(),
            Access::ReadWrite => WRITABLE | self.no_execute(),
            Access::ReadExecute => 0,
        };
        let large = if size == PageSize::Size4K { 0 } else { PAGE };
        self.memory.set_entry(table, slot, phys | PRESENT | large | rights);
        Ok(())
    }

    fn no_execute(&self) -> u64 {
        if self.features.no_execute { NO_EXECUTE } else { 0 }
    }
}

fn fitting(largest: PageSize, virt: u64, phys: u64, len_bytes: u64) -> PageSize {
    [PageSize::Size1G, PageSize::Size2M]
        .into_iter()
        .find(|&size| size <= largest && (virt | phys) & (size.bytes() - 1) == 0 && len_bytes >= size.bytes())
        .unwrap_or(PageSize::Size4K)
}

fn index(virt: u64, level: u32) -> usize {
    (virt >> (12 + 9 * (level - 1))) as usize & 511
}

fn is_canonical(virt: u64) -> bool {
    matches!(virt >> 47, 0 | 0x1_ffff)
}

fn is_kernel_half(virt: u64) -> bool {
    virt >> 63 != 0
}

fn access_of(entry: u64) -> Access {
    match (entry & WRITABLE != 0, entry & NO_EXECUTE != 0) {
        (true, _) => Access::ReadWrite,
        (false, true) => Access::ReadOnly,
        (false, false) => Access::ReadExecute,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Memory from physical address zero.
    pub(crate) struct Bytes(pub(crate) Vec<u8>);

    impl Memory for Bytes {
        fn entry(&self, table: u64, index: usize) -> u64 {
            let at = table as usize + index * 8;
            u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
        }
        fn set_entry(&mut self, table: u64, index: usize, value: u64) {
            let at = table as usize + index * 8;
            self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        fn zero(&mut self, phys: u64, len_bytes: u64) {
            self.0[phys as usize..][..len_bytes as usize].fill(0);
        }
        fn write(&mut self, phys: u64, bytes: &[u8]) {
            self.0[phys as usize..][..bytes.len()].copy_from_slice(bytes);
        }
    }

    const ALL: Features = Features { no_execute: true, gib_pages: true };
    const KERNEL: u64 = 0xffff_ffff_8000_0000;

    fn with_tables(features: Features, test: impl FnOnce(&mut Tables<'_, Bytes>)) {
        let mut memory = Bytes(vec![0xaa; 1 << 20]);
        let mut arena = Arena::new(0x1000..1 << 20);
        test(&mut Tables::new(&mut memory, &mut arena, features).unwrap());
    }

    #[test]
    fn pages_translate_with_their_rights() {
        with_tables(ALL, |tables| {
            tables.map(KERNEL, 0x5000, 0x2001, Access::ReadExecute).unwrap();
            assert_eq!(
                tables.translate(KERNEL + 0x1234),
                Some((0x6234, PageSize::Size4K, Access::ReadExecute))
            );
            assert_eq!(
                tables.translate(KERNEL + 0x2fff),
                Some((0x7fff, PageSize::Size4K, Access::ReadExecute))
            );
            assert_eq!(tables.translate(KERNEL + 0x3000), None);
            assert_eq!(tables.translate(KERNEL - 1), None);
        });
    }

    #[test]
    fn large_pages_are_used_as_far_as_alignment_and_cpu_allow() {
        for (gib_pages, expected) in [(true, PageSize::Size1G), (false, PageSize::Size2M)] {
            with_tables(Features { no_execute: true, gib_pages }, |tables| {
                let base = 0xffff_8000_0000_0000;
                tables.map_large(base, 0, (4 << 30) + (6 << 20), Access::ReadWrite).unwrap();
                assert_eq!(tables.translate(base + 12345), Some((12345, expected, Access::ReadWrite)));
                let tail = (4 << 30) + (5 << 20);
                assert_eq!(tables.translate(base + tail), Some((tail, PageSize::Size2M, Access::ReadWrite)));
                assert_eq!(tables.translate(base + tail + (1 << 20)), None);
            });
        }
    }

    #[test]
    fn a_shifted_offset_falls_back_to_smaller_pages() {
        with_tables(ALL, |tables| {
            let base = 0xffff_8000_0020_0000;
            tables.map_large(base, 0, 4 << 20, Access::ReadWrite).unwrap();
            assert_eq!(tables.translate(base).unwrap().1, PageSize::Size2M);
        });
    }

    #[test]
    fn nothing_is_ever_mapped_twice() {
        with_tables(ALL, |tables| {
            tables.map(0x1000, 0x1000, 1, Access::ReadOnly).unwrap();
            let again = tables.map(0x0000, 0, 0x2000, Access::ReadOnly);
            assert_eq!(again, Err(LoadError::AlreadyMapped { virt: 0x1000 }));
            tables.map_large(1 << 30, 0, 1 << 30, Access::ReadWrite).unwrap();
            let inside = tables.map((1 << 30) + 0x5000, 0, 1, Access::ReadOnly);
            assert_eq!(inside, Err(LoadError::AlreadyMapped { virt: (1 << 30) + 0x5000 }));
        });
    }

    #[test]
    fn bad_addresses_are_refused() {
        with_tables(ALL, |tables| {
            for (virt, len) in
                [(0x8000_0000_0000, 1), (0x7fff_ffff_f000, 0x2000), (1, 1), (u64::MAX - 0xfff, 0x2000)]
            {
                assert_eq!(tables.map(virt, 0, len, Access::ReadOnly), Err(LoadError::BadAddress { virt }));
            }
            tables.map(u64::MAX - 0xfff, 0, 0x1000, Access::ReadOnly).unwrap();
        });
    }

    #[test]
    fn without_nx_the_bit_stays_clear() {
        with_tables(Features { no_execute: false, gib_pages: false }, |tables| {
            tables.map(0x1000, 0x1000, 1, Access::ReadWrite).unwrap();
            assert_eq!(tables.translate(0x1000), Some((0x1000, PageSize::Size4K, Access::ReadWrite)));
            assert_eq!(tables.memory.entry(tables.root(), 0) & NO_EXECUTE, 0);
        });
    }

    #[test]
    fn an_exhausted_arena_says_what_was_needed() {
        let mut memory = Bytes(vec![0; 1 << 16]);
        let mut arena = Arena::new(0x1000..0x3000);
        assert_eq!(arena.alloc(&mut memory, 1), Ok(0x1000));
        let error = LoadError::NotEnoughMemory { needed: 0x3000, available: 0x2000 };
        assert_eq!(arena.alloc(&mut memory, 0x1001), Err(error));
        assert_eq!(arena.used(), 0x1000..0x2000);
    }
}
