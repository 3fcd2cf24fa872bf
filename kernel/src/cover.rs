//! How a range of RAM is covered by the largest pages.
//!
//! A page of the direct map never reaches beyond its range: a large page over a border would give two memory types, or
//! RAM and no RAM, one translation, which TCG hides and hardware does not.

use core::ops::Range;

use crate::PAGE_SIZE;

/// A size of page on x86-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageSize {
    /// 4 KiB, a PTE.
    Size4KiB,
    /// 2 MiB, a PMD leaf.
    Size2MiB,
    /// 1 GiB, a PUD leaf.
    Size1GiB,
}

impl PageSize {
    /// Largest first.
    const DESCENDING: [Self; 3] = [Self::Size1GiB, Self::Size2MiB, Self::Size4KiB];

    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4KiB => PAGE_SIZE,
            Self::Size2MiB => PAGE_SIZE << 9,
            Self::Size1GiB => PAGE_SIZE << 18,
        }
    }

    /// The level of the entry that maps it: 1 is a PTE, 2 a PMD, 3 a PUD.
    #[must_use]
    pub const fn level(self) -> u8 {
        match self {
            Self::Size4KiB => 1,
            Self::Size2MiB => 2,
            Self::Size1GiB => 3,
        }
    }
}

/// Covers the page-aligned range `phys`, mapped at `phys + offset`, by pages of at most `largest`.
///
/// A page is as large as both addresses' alignment allows. `offset` may wrap.
pub fn cover(phys: Range<u64>, offset: u64, largest: PageSize) -> impl Iterator<Item = (u64, PageSize)> {
    let mut at = phys.start;
    core::iter::from_fn(move || {
        if at >= phys.end {
            return None;
        }
        let fits = |size: &PageSize| {
            let bytes = size.bytes();
            *size <= largest
                && at.is_multiple_of(bytes)
                && offset.wrapping_add(at).is_multiple_of(bytes)
                && bytes <= phys.end - at
        };
        let size = PageSize::DESCENDING.into_iter().find(fits)?;
        let page = (at, size);
        at += size.bytes();
        Some(page)
    })
}

#[cfg(test)]
mod tests {
    use super::{PageSize, cover};
    use std::vec::Vec;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;
    const BASE: u64 = 0xffff_8880_0000_0000;

    #[test]
    fn ends_are_small_and_the_middle_large() {
        let pages: Vec<_> =
            cover(2 * MIB - 8192..2 * GIB + 2 * MIB + 4096, BASE, PageSize::Size1GiB).collect();
        let count = |size| pages.iter().filter(|page| page.1 == size).count();
        assert_eq!(count(PageSize::Size1GiB), 1);
        assert_eq!(count(PageSize::Size2MiB), 511 + 1);
        assert_eq!(count(PageSize::Size4KiB), 2 + 1);
        let mut at = 2 * MIB - 8192;
        for (phys, size) in pages {
            assert_eq!(phys, at);
            assert_eq!(phys % size.bytes(), 0);
            at += size.bytes();
        }
        assert_eq!(at, 2 * GIB + 2 * MIB + 4096);
    }

    #[test]
    fn without_1_gib_pages_2_mib_is_largest() {
        assert!(cover(0..GIB, BASE, PageSize::Size2MiB).all(|page| page.1 == PageSize::Size2MiB));
    }

    #[test]
    fn an_offset_out_of_step_gives_small_pages() {
        assert!(cover(0..8 * MIB, BASE + 4096, PageSize::Size1GiB).all(|page| page.1 == PageSize::Size4KiB));
    }

    #[test]
    fn an_empty_range_has_no_pages() {
        assert_eq!(cover(4096..4096, BASE, PageSize::Size1GiB).next(), None);
    }
}
