//! Carving the memory map: from the firmware's list to regions the kernel can trust.
//!
//! Firmware lists may be unsorted, overlapping, unmerged and hundreds long. The result is sorted, free of overlap
//! and merged; where entries disagree, the more careful reading wins: in use by the loader, then reserved, then
//! usable. Done by sweeping from boundary to boundary, which needs no memory beside the result; its quadratic cost
//! is below a millisecond for a thousand entries.

use crate::PAGE_SIZE;
use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use core::ops::Range;

/// E820's type for RAM that anyone may use.
pub const E820_RAM: u32 = 1;

/// The loader leaves the first MiB alone: firmware data, and the place for start-up code of further CPUs.
const LOWEST: u64 = 1 << 20;

/// One entry of the firmware's memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
    /// E820 type.
    pub kind: u32,
}

/// Calls `emit` with each region, in ascending order; `used` ranges come out as `Bootloader`.
pub fn carve(
    firmware: &(impl Iterator<Item = Entry> + Clone),
    used: &[Range<u64>],
    mut emit: impl FnMut(MemoryRegion),
) {
    let mut pending: Option<MemoryRegion> = None;
    let mut at = 0;
    loop {
        let here = kind_at(firmware.clone(), used, at);
        let next = boundary_after(firmware.clone(), used, at);
        let end = next.unwrap_or(u64::MAX);
        match (&mut pending, here) {
            (Some(region), Some(kind)) if region.kind == kind && region.end == at => region.end = end,
            (_, Some(kind)) => {
                pending.replace(MemoryRegion { start: at, end, kind }).into_iter().for_each(&mut emit);
            }
            (_, None) => pending.take().into_iter().for_each(&mut emit),
        }
        match next {
            Some(boundary) => at = boundary,
            None => break,
        }
    }
    pending.into_iter().for_each(emit);
}

/// An upper bound on the regions that [`carve`] emits.
#[must_use]
pub fn max_regions(nr_firmware: usize, nr_used: usize) -> usize {
    2 * (nr_firmware + nr_used) + 1
}

/// The largest free range of whole pages between 1 MiB and `limit`, clear of `taken`.
#[must_use]
pub fn largest_free(
    firmware: &(impl Iterator<Item = Entry> + Clone),
    taken: &[Range<u64>],
    limit: u64,
) -> Option<Range<u64>> {
    let mut best: Option<Range<u64>> = None;
    carve(firmware, taken, |region| {
        let start = region.start.max(LOWEST).next_multiple_of(PAGE_SIZE);
        let end = region.end.min(limit) & !(PAGE_SIZE - 1);
        let larger = best.as_ref().is_none_or(|best| end.saturating_sub(start) > best.end - best.start);
        if region.kind == MemoryRegionKind::Usable && start < end && larger {
            best = Some(start..end);
        }
    });
    best
}

/// The byte after the last byte of RAM.
#[must_use]
pub fn ram_end(firmware: impl Iterator<Item = Entry>) -> u64 {
    firmware.filter(|entry| entry.kind == E820_RAM).map(|entry| entry.end).max().unwrap_or(0)
}

fn kind_at(firmware: impl Iterator<Item = Entry>, used: &[Range<u64>], at: u64) -> Option<MemoryRegionKind> {
    if used.iter().any(|range| range.contains(&at)) {
        return Some(MemoryRegionKind::Bootloader);
    }
    let mut usable = None;
    let mut reserved = None;
    for entry in firmware.filter(|entry| (entry.start..entry.end).contains(&at)) {
        if entry.kind == E820_RAM {
            usable = Some(MemoryRegionKind::Usable);
        } else {
            reserved = reserved.max(Some(entry.kind));
        }
    }
    reserved.map(MemoryRegionKind::UnknownBios).or(usable)
}

fn boundary_after(firmware: impl Iterator<Item = Entry>, used: &[Range<u64>], at: u64) -> Option<u64> {
    let entries = firmware.map(|entry| entry.start..entry.end);
    let ranges = entries.chain(used.iter().cloned()).filter(|range| range.start < range.end);
    ranges.flat_map(|range| [range.start, range.end]).filter(|&boundary| boundary > at).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use MemoryRegionKind::{Bootloader, UnknownBios, Usable};

    fn ram(start: u64, end: u64) -> Entry {
        Entry { start, end, kind: E820_RAM }
    }

    fn carved(firmware: &[Entry], used: &[Range<u64>]) -> Vec<(u64, u64, MemoryRegionKind)> {
        let mut out = Vec::new();
        carve(&firmware.iter().copied(), used, |region| out.push((region.start, region.end, region.kind)));
        assert!(out.len() <= max_regions(firmware.len(), used.len()));
        out
    }

    #[test]
    fn unsorted_and_unmerged_entries_come_out_sorted_and_merged() {
        let firmware = [ram(0x3000, 0x5000), ram(0x1000, 0x3000), ram(0x8000, 0x9000)];
        assert_eq!(carved(&firmware, &[]), [(0x1000, 0x5000, Usable), (0x8000, 0x9000, Usable)]);
    }

    #[test]
    fn reserved_wins_over_usable_and_used_over_both() {
        let firmware = [ram(0, 0x8000), Entry { start: 0x2000, end: 0x6000, kind: 2 }];
        let expected = [
            (0, 0x2000, Usable),
            (0x2000, 0x5000, UnknownBios(2)),
            (0x5000, 0x7000, Bootloader),
            (0x7000, 0x8000, Usable),
        ];
        let used = 0x5000..0x7000;
        assert_eq!(carved(&firmware, std::slice::from_ref(&used)), expected);
    }

    #[test]
    fn empty_and_inverted_entries_are_ignored() {
        let firmware = [ram(0x1000, 0x1000), ram(0x4000, 0x2000), ram(0x5000, 0x6000)];
        assert_eq!(carved(&firmware, &[]), [(0x5000, 0x6000, Usable)]);
        assert_eq!(carved(&[], &[]), []);
    }

    #[test]
    fn hundreds_of_entries_agree_with_a_page_by_page_model() {
        let mut state = 1u64;
        let mut random = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % n
        };
        let firmware: Vec<_> = (0..500)
            .map(|_| {
                let start = random(4000);
                Entry { start, end: start + random(12), kind: 1 + random(3) as u32 }
            })
            .collect();
        let used = [100..110, 2000..2345, 4004..4100];
        let regions = carved(&firmware, &used);
        for at in 0..4200 {
            let found: Vec<_> = regions.iter().filter(|region| (region.0..region.1).contains(&at)).collect();
            let model = kind_at(firmware.iter().copied(), &used, at);
            assert_eq!(found.first().map(|region| region.2), model, "at {at}");
            assert!(found.len() <= 1);
        }
        assert!(regions.windows(2).all(|pair| pair[0].1 < pair[1].0 || pair[0].2 != pair[1].2));
    }

    #[test]
    fn the_arena_is_whole_pages_above_1_mib_and_below_the_limit() {
        let firmware = [ram(0, 0x50_0123), ram(0x1_0000_0000, 0x9_0000_0000)];
        let loader = 0x10_0000..0x14_0000;
        let found = largest_free(&firmware.iter().copied(), std::slice::from_ref(&loader), 1 << 32);
        assert_eq!(found, Some(0x14_0000..0x50_0000));
        assert_eq!(largest_free(&[ram(0, 0x9_fc00)].iter().copied(), &[], 1 << 32), None);
    }

    #[test]
    fn ram_end_looks_at_ram_only() {
        let firmware = [ram(0, 0x1000), Entry { start: 0xfd_0000_0000, end: 0x100_0000_0000, kind: 2 }];
        assert_eq!(ram_end(firmware.iter().copied()), 0x1000);
    }
}
