//! From a memory map of any shape to page-aligned ranges.
//!
//! Firmware gives maps that are unsorted, unmerged (149 regions from official UEFI images), overlapping and unaligned.
//! [`Merged`] reads such a map without changing or storing it and yields what is wanted in ascending order: touching
//! regions merged *before* rounding to pages, and every byte that any other region claims left out. It asks the whole
//! map for each range found, which is quadratic and still nothing beside the rest of the boot; in return it needs no
//! memory, at a time when there is none.
//!
//! [`FrameList`] is the early frame allocator over the result.

use core::ops::Range;

use crate::PAGE_SIZE;

/// No physical address has more bits than this.
const PHYS_LIMIT: u64 = 1 << 52;

/// What a region of the memory map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// RAM that nobody uses.
    Free,
    /// RAM in use: the loader, the kernel, the boot archive.
    Held,
    /// Not RAM, or not ours.
    Reserved,
}

/// One region of the memory map, in bytes; may be empty, unaligned, and overlap others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// What it is.
    pub class: Class,
}

/// Which classes of a map are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Free RAM only.
    Free,
    /// All RAM, free or held.
    Ram,
}

impl Want {
    fn takes(self, class: Class) -> bool {
        match self {
            Self::Free => class == Class::Free,
            Self::Ram => class != Class::Reserved,
        }
    }
}

/// The wanted ranges of a memory map: page-aligned, ascending, disjoint, never touching.
#[derive(Clone, Debug)]
pub struct Merged<I> {
    map: I,
    want: Want,
    at: u64,
}

impl<I: Iterator<Item = Region> + Clone> Merged<I> {
    /// Reads `map`, which is walked many times. Where regions overlap, the one that is not wanted wins.
    pub fn new(map: I, want: Want) -> Self {
        Self { map, want, at: 0 }
    }

    fn wanted(&self) -> impl Iterator<Item = Region> {
        let want = self.want;
        regions(&self.map).filter(move |region| want.takes(region.class))
    }

    fn blockers(&self) -> impl Iterator<Item = Region> {
        let want = self.want;
        regions(&self.map).filter(move |region| !want.takes(region.class))
    }

    /// The first run of wanted bytes at or after `at`, not yet rounded to pages.
    fn next_run(&self, at: u64) -> Option<Range<u64>> {
        let mut start = at;
        loop {
            start = self.wanted().filter(|r| r.end > start).map(|r| r.start.max(start)).min()?;
            match self.blockers().filter(|r| r.start <= start && start < r.end).map(|r| r.end).max() {
                Some(behind) => start = behind,
                None => break,
            }
        }
        let mut end = start;
        while let Some(further) = self.wanted().filter(|r| r.start <= end && end < r.end).map(|r| r.end).max()
        {
            end = further;
        }
        let cut = self.blockers().filter(|r| start < r.start && r.start < end).map(|r| r.start).min();
        Some(start..cut.unwrap_or(end))
    }
}

impl<I: Iterator<Item = Region> + Clone> Iterator for Merged<I> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        loop {
            let run = self.next_run(self.at)?;
            self.at = run.end;
            let pages = run.start.next_multiple_of(PAGE_SIZE)..run.end / PAGE_SIZE * PAGE_SIZE;
            if pages.start < pages.end {
                return Some(pages);
            }
        }
    }
}

/// The regions of `map` that hold at least one byte below [`PHYS_LIMIT`].
fn regions<I: Iterator<Item = Region> + Clone>(map: &I) -> impl Iterator<Item = Region> + use<I> {
    map.clone()
        .map(|region| Region { end: region.end.min(PHYS_LIMIT), ..region })
        .filter(|region| region.start < region.end)
}

/// Why a [`FrameList`] gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfFrames {
    /// How many frames in one piece were asked for.
    pub frames: u64,
}

/// Page-aligned ranges of free frames, given out from the bottom and never taken back.
#[derive(Debug)]
pub struct FrameList<const N: usize> {
    ranges: [Range<u64>; N],
    len: usize,
    lost: u64,
}

impl<const N: usize> FrameList<N> {
    /// No frames.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: [const { 0..0 }; N], len: 0, lost: 0 }
    }

    /// Adds a page-aligned range. A list that is full drops its smallest range and counts what it lost.
    pub fn add(&mut self, range: Range<u64>) {
        if self.len < N {
            self.ranges[self.len] = range;
            self.len += 1;
            return;
        }
        let mut spare = range;
        if let Some(smallest) = self.ranges.iter_mut().min_by_key(|r| r.end - r.start)
            && smallest.end - smallest.start < spare.end - spare.start
        {
            core::mem::swap(smallest, &mut spare);
        }
        self.lost += spare.end - spare.start;
    }

    /// `frames` adjacent frames whose first has the alignment of `align_frames` frames (a power of two).
    ///
    /// # Errors
    /// No range holds as many.
    pub fn allocate(&mut self, frames: u64, align_frames: u64) -> Result<u64, OutOfFrames> {
        let bytes = frames * PAGE_SIZE;
        for range in &mut self.ranges[..self.len] {
            let start = range.start.next_multiple_of(align_frames * PAGE_SIZE);
            if start == range.start && range.end - start >= bytes {
                range.start += bytes;
                return Ok(start);
            }
            if start > range.start && start + bytes <= range.end {
                // What is skipped for the alignment stays free; what lies behind becomes a range of its own.
                let rest = start + bytes..range.end;
                range.end = start;
                if rest.start < rest.end {
                    self.add(rest);
                }
                return Ok(start);
            }
        }
        Err(OutOfFrames { frames })
    }

    /// The ranges that are left.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + Clone + '_ {
        self.ranges[..self.len].iter().filter(|range| range.start < range.end).cloned()
    }

    /// Does one of the ranges hold this address?
    #[must_use]
    pub fn contains(&self, phys: u64) -> bool {
        self.ranges[..self.len].iter().any(|range| range.contains(&phys))
    }

    /// Bytes that are left.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges().map(|range| range.end - range.start).sum()
    }

    /// Bytes dropped because the list was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Takes all that is left.
    #[must_use]
    pub fn take(&mut self) -> Self {
        core::mem::take(self)
    }
}

impl<const N: usize> Default for FrameList<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::{Class, FrameList, Merged, OutOfFrames, Region, Want};
    use proptest::prelude::{Strategy, prop, prop_assert, prop_assert_eq, proptest};
    use std::collections::BTreeSet;
    use std::vec::Vec;

    fn region(start: u64, end: u64, class: Class) -> Region {
        Region { start, end, class }
    }

    fn merged(map: &[Region], want: Want) -> Vec<(u64, u64)> {
        Merged::new(map.iter().copied(), want).map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn hundreds_of_unmerged_regions_become_one() {
        let mut map: Vec<_> = (0..600).map(|n| region(n * 0x800, (n + 1) * 0x800, Class::Free)).collect();
        map.reverse();
        assert_eq!(merged(&map, Want::Free), [(0, 600 * 0x800)]);
    }

    #[test]
    fn a_held_region_cuts_free_ram_and_is_ram() {
        let map = [region(0, 0x10_000, Class::Free), region(0x4800, 0x5800, Class::Held)];
        assert_eq!(merged(&map, Want::Free), [(0, 0x4000), (0x6000, 0x10_000)]);
        assert_eq!(merged(&map, Want::Ram), [(0, 0x10_000)]);
    }

    #[test]
    fn a_hole_and_ram_above_4_gib() {
        let map = [
            region(0x1_0000_0000, 0x1_8000_0000, Class::Free),
            region(0, 0x9fc00, Class::Free),
            region(0x9fc00, 0xa0000, Class::Reserved),
            region(0x10_0000, 0xbffd_f000, Class::Free),
            region(0xfeff_c000, 0xff00_0000, Class::Reserved),
        ];
        assert_eq!(
            merged(&map, Want::Free),
            [(0, 0x9f000), (0x10_0000, 0xbffd_f000), (0x1_0000_0000, 0x1_8000_0000)]
        );
    }

    #[test]
    fn empty_inverted_and_endless_regions_do_no_harm() {
        let map = [
            region(0x5000, 0x5000, Class::Free),
            region(0x9000, 0x1000, Class::Reserved),
            region(0x2000, u64::MAX, Class::Free),
            region(1 << 40, u64::MAX, Class::Reserved),
        ];
        assert_eq!(merged(&map, Want::Free), [(0x2000, 1 << 40)]);
    }

    #[test]
    fn aligned_frames_leave_what_they_skip() {
        let mut list = FrameList::<4>::new();
        list.add(0x1000..0x60_0000);
        assert_eq!(list.allocate(512, 512), Ok(0x20_0000));
        assert_eq!(list.allocate(1, 1), Ok(0x1000));
        assert_eq!(list.ranges().collect::<Vec<_>>(), [0x2000..0x20_0000, 0x40_0000..0x60_0000]);
        assert_eq!(list.allocate(4096, 1), Err(OutOfFrames { frames: 4096 }));
    }

    #[test]
    fn a_full_list_keeps_the_largest() {
        let mut list = FrameList::<2>::new();
        list.add(0x1000..0x2000);
        list.add(0x4000..0x9000);
        list.add(0x10_000..0x13_000);
        assert_eq!((list.bytes(), list.lost()), (0x8000, 0x1000));
    }

    fn any_region() -> impl Strategy<Value = Region> {
        let class = prop::sample::select([Class::Free, Class::Free, Class::Held, Class::Reserved].as_slice());
        (0_u64..0x40_000, 0_u64..0x8000, class).prop_map(|(start, len, class)| {
            // Mostly aligned to something, as real maps are, but not always to pages.
            let start = if len % 3 == 0 { start } else { start / 0x400 * 0x400 };
            Region { start, end: start + len, class }
        })
    }

    proptest! {
        /// Against the obvious model: a page is wanted if all its bytes are, and none is claimed otherwise.
        #[test]
        fn agrees_with_a_map_of_bytes(map in prop::collection::vec(any_region(), 0..40)) {
            for want in [Want::Free, Want::Ram] {
                let found = merged(&map, want);
                for pair in found.windows(2) {
                    prop_assert!(pair[0].1 < pair[1].0);
                }
                let pages: BTreeSet<u64> =
                    found.iter().flat_map(|r| (r.0..r.1).step_by(4096)).collect();
                for page in (0..0x50_000_u64).step_by(4096) {
                    let ok = (page..page + 4096).all(|byte| {
                        let mut wanted = false;
                        for r in map.iter().filter(|r| r.start <= byte && byte < r.end) {
                            if !want.takes(r.class) { return false; }
                            wanted = true;
                        }
                        wanted
                    });
                    prop_assert_eq!(ok, pages.contains(&page), "page {:#x}", page);
                }
            }
        }

        /// No frame is given twice, none from outside, and what is left is what was not given.
        #[test]
        fn frames_are_given_once(asks in prop::collection::vec((1_u64..20, 0_u32..6), 0..60)) {
            let mut list = FrameList::<64>::new();
            list.add(0x10_3000..0x18_0000);
            list.add(0x20_0000..0x24_0000);
            let before = list.bytes();
            let mut given = BTreeSet::new();
            for (frames, align) in asks {
                if let Ok(start) = list.allocate(frames, 1 << align) {
                    prop_assert_eq!(start % (4096 << align), 0);
                    for frame in (start..start + frames * 4096).step_by(4096) {
                        prop_assert!((0x10_3000..0x18_0000).contains(&frame) || (0x20_0000..0x24_0000).contains(&frame));
                        prop_assert!(given.insert(frame));
                    }
                }
            }
            prop_assert_eq!(list.bytes() + given.len() as u64 * 4096 + list.lost(), before);
            prop_assert!(given.iter().all(|frame| !list.contains(*frame)));
        }
    }
}
