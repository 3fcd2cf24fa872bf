//! Physical memory until the memory manager takes over.
//!
//! Reads the loader's memory map once, whatever its shape ([`kernel_logic::ranges`]), and gives frames out from the
//! bottom. What is left goes to the memory manager by [`remaining`], after which nothing is given any more. The first
//! MiB is never given: firmware writes there, and starting another CPU needs a page of it.

use core::fmt;
use core::ops::Range;

use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use kernel_logic::PAGE_SIZE;
use kernel_logic::ranges::{Class, FrameList, Merged, OutOfFrames, Region, Want};
use spin::{Mutex, Once};

/// As many separate ranges of RAM are kept; more are merged away or, the smallest, not used.
const MAX_RANGES: usize = 512;
/// The first MiB is left alone.
const LOW_END: u64 = 1 << 20;
/// What the kernel needs: its tables and heap, and enough beside to move some 2 MiB pages about.
const NEED: u64 = 24 << 20;

static RAM: Once<FrameList<MAX_RANGES>> = Once::new();
static FREE: Mutex<FrameList<MAX_RANGES>> = Mutex::new(FrameList::new());

/// The machine has too little RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLittleRam {
    /// Free bytes found.
    found: u64,
}

impl fmt::Display for TooLittleRam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "too little RAM: {} MiB are free and the kernel needs {} MiB; give it more with --memory (QEMU: -m)",
            self.found >> 20,
            NEED >> 20
        )
    }
}

/// Reads the memory map.
///
/// # Errors
/// Too little of it is free.
pub(crate) fn init(map: &[MemoryRegion]) -> Result<(), TooLittleRam> {
    let regions = map.iter().map(|region| Region {
        start: region.start,
        end: region.end,
        class: match region.kind {
            MemoryRegionKind::Usable => Class::Free,
            MemoryRegionKind::Bootloader => Class::Held,
            _ => Class::Reserved,
        },
    });
    let ram = RAM.call_once(|| list(Merged::new(regions.clone(), Want::Ram)));
    let low = Region { start: 0, end: LOW_END, class: Class::Reserved };
    let free = list(Merged::new(regions.chain([low]), Want::Free));
    log::info!(
        "memory map: {} regions, {} MiB of RAM in {} ranges, {} MiB free",
        map.len(),
        ram.bytes() >> 20,
        ram.ranges().count(),
        free.bytes() >> 20
    );
    if ram.lost() + free.lost() > 0 {
        log::warn!("{} KiB of RAM in small pieces are not used", (ram.lost() + free.lost()) >> 10);
    }
    let found = free.bytes();
    *FREE.lock() = free;
    if found < NEED { Err(TooLittleRam { found }) } else { Ok(()) }
}

/// The first of `frames` adjacent frames, aligned to `align_frames` frames (a power of two).
///
/// # Errors
/// No range holds as many, or [`remaining`] has given all away.
pub(crate) fn allocate(frames: u64, align_frames: u64) -> Result<u64, OutOfFrames> {
    FREE.lock().allocate(frames, align_frames)
}

/// Is there RAM at this physical address, whoever uses it?
pub(crate) fn is_ram(phys: u64) -> bool {
    RAM.get().is_some_and(|ram| ram.contains(phys))
}

/// All RAM, in ascending order, whoever uses it.
pub(crate) fn ram() -> impl Iterator<Item = Range<u64>> + Clone {
    RAM.get().into_iter().flat_map(|ram| ram.ranges())
}

/// Hands over all free RAM: page-aligned, disjoint ranges of physical addresses above 1 MiB.
pub(crate) fn remaining() -> impl Iterator<Item = Range<u64>> {
    let rest = FREE.lock().take();
    let mut n = 0;
    core::iter::from_fn(move || {
        let range = rest.ranges().nth(n)?;
        n += 1;
        Some(range)
    })
}

fn list(ranges: impl Iterator<Item = Range<u64>>) -> FrameList<MAX_RANGES> {
    let mut list = FrameList::new();
    for range in ranges {
        list.add(range);
    }
    list
}

crate::ktest! {
    fn ram_ranges_are_ascending_disjoint_and_of_whole_pages() {
        let mut last = 0;
        for range in ram() {
            crate::check!(range.start % PAGE_SIZE == 0 && range.end % PAGE_SIZE == 0, "{range:#x?}");
            crate::check!(range.start < range.end && (range.start > last || last == 0), "{range:#x?} after {last:#x}");
            last = range.end;
        }
        crate::check!(last > LOW_END);
    }
}

crate::ktest! {
    needs(memory_mib = 5120)
    fn ram_above_4_gib_is_found() {
        let above: u64 = ram().filter(|range| range.start >= 1 << 32).map(|range| range.end - range.start).sum();
        crate::check!(above >= 1 << 30, "{above:#x} bytes of RAM above 4 GiB");
        let total: u64 = ram().map(|range| range.end - range.start).sum();
        crate::check!(total > (5 << 30) - (8 << 20) && total <= 5 << 30, "{total:#x} bytes of RAM in all");
        let hole = ram().any(|range| range.contains(&0xfee0_0000));
        crate::check!(!hole, "the hole below 4 GiB is taken for RAM");
    }
}

crate::ktest! {
    needs(memory_mib = 64)
    fn a_small_machine_is_enough() {
        let total: u64 = ram().map(|range| range.end - range.start).sum();
        crate::check!(total > 60 << 20 && total <= 64 << 20, "{total:#x} bytes of RAM in all");
    }
}

crate::ktest! {
    needs(memory_mib = 3072)
    fn three_gib_are_found_whole() {
        let total: u64 = ram().map(|range| range.end - range.start).sum();
        crate::check!(total > (3 << 30) - (8 << 20) && total <= 3 << 30, "{total:#x} bytes of RAM in all");
    }
}
