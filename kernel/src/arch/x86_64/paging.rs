//! The kernel's own page tables.
//!
//! The loader's map of physical memory covers everything by the largest pages, devices and holes included: large pages
//! straddle memory types and every BAR has a cached alias. So the kernel builds tables of its own and leaves the
//! loader's behind:
//!
//! * a **direct map** at [`DIRECT_MAP`] of RAM and nothing else, by the largest pages the CPU has, none across the end
//!   of a region; the frames of the kernel's image are left out, so that code and constants have no writable alias and
//!   guard pages no alias at all;
//! * the **image**, by 4 KiB pages: code not writable, nothing else executable, guard pages not mapped;
//! * the **device window** at [`DEVICE_WINDOW`], filled by [`super::device_map`];
//! * the **stack window** at [`STACK_WINDOW`], filled by [`super::stacks`] as threads are made.
//!
//! All is global, and A and D are set from the start, so that the CPU never writes these tables. All 256 slots of the
//! kernel half have their table from the start: address spaces copy the slots once and see every later mapping.

use core::sync::atomic::{AtomicU64, Ordering};

use farpage_mm::OutOfMemory;
use kernel_logic::PAGE_SIZE;
use kernel_logic::cover::{PageSize, cover};
use kernel_logic::ranges::{Class, Merged, OutOfFrames, Region, Want};
use spin::Once;
use x86_64::structures::paging::{PhysFrame, Size4KiB};
use x86_64::{PhysAddr, VirtAddr};

use super::{features, image, walk::Walk};
use crate::bootmem;

/// Where physical address 0 would be in the direct map.
pub(crate) const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// Where device memory is mapped.
pub(crate) const DEVICE_WINDOW: u64 = 0xffff_c900_0000_0000;
/// Where the stacks of most threads are mapped.
pub(super) const STACK_WINDOW: u64 = 0xffff_ca00_0000_0000;

/// Entry bits.
pub(super) mod bits {
    pub(crate) const PRESENT: u64 = 1;
    pub(crate) const WRITABLE: u64 = 1 << 1;
    pub(crate) const USER: u64 = 1 << 2;
    pub(crate) const ACCESSED: u64 = 1 << 5;
    pub(crate) const DIRTY: u64 = 1 << 6;
    pub(crate) const LEAF: u64 = 1 << 7;
    pub(crate) const GLOBAL: u64 = 1 << 8;
    pub(crate) const NO_EXECUTE: u64 = 1 << 63;
    pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Any kernel leaf.
    pub(crate) const KERNEL: u64 = PRESENT | ACCESSED | GLOBAL;
    /// Kernel data.
    pub(crate) const DATA: u64 = KERNEL | WRITABLE | DIRTY | NO_EXECUTE;
    /// An entry that names a table; the leaf decides about rights.
    pub(crate) const TABLE: u64 = PRESENT | WRITABLE | ACCESSED;
}

/// The offset at which the tables can be reached now: the loader's, then the direct map's.
static TABLES_AT: AtomicU64 = AtomicU64::new(0);
static ROOT: Once<u64> = Once::new();

/// Where RAM at `phys` is mapped.
#[inline(always)]
pub(crate) const fn phys_to_virt(phys: PhysAddr) -> VirtAddr {
    VirtAddr::new_truncate(DIRECT_MAP + phys.as_u64())
}

/// The kernel's own page table, whose user half is empty.
///
/// # Panics
/// Before it is built.
pub(crate) fn kernel_root() -> PhysFrame<Size4KiB> {
    let root = *ROOT.get().expect("the kernel's page table is built at boot");
    PhysFrame::containing_address(PhysAddr::new(root))
}

/// The boot archive, by its physical address and length.
pub(crate) fn boot_archive((at, len): (u64, u64)) -> &'static [u8] {
    // SAFETY: the loader says where the archive is, in RAM that it marks as in use: it is in the direct map, and nobody writes it.
    unsafe { core::slice::from_raw_parts((DIRECT_MAP + at) as *const u8, len as usize) }
}

/// Makes the upper half of a new PML4 that of the kernel. Once is enough: its entries never change.
pub(crate) fn fill_kernel_half(table: &[AtomicU64; 512]) {
    let kernel = Table(kernel_root().start_address().as_u64());
    for (n, entry) in table.iter().enumerate().skip(256) {
        entry.store(kernel.read(n), Ordering::Relaxed);
    }
}

/// The index of `address` in a table of `level` (4 is the PML4).
pub(super) const fn index(address: u64, level: u8) -> usize {
    (address >> (12 + 9 * (level as u32 - 1))) as usize & 511
}

/// A page table that can be reached: a frame of RAM.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table(u64);

impl Table {
    /// The table in this frame, if that is RAM.
    pub(super) fn at(phys: u64) -> Option<Self> {
        bootmem::is_ram(phys).then_some(Self(phys))
    }

    /// A new, empty table in a fresh frame.
    pub(super) fn in_frame(frame: u64) -> Self {
        let table = Self(frame);
        for n in 0..512 {
            table.write(n, 0);
        }
        table
    }

    /// Copies the slots of the kernel half.
    pub(super) fn copy_kernel_half(self) {
        let kernel = Self(kernel_root().start_address().as_u64());
        for slot in 256..512 {
            self.write(slot, kernel.read(slot));
        }
    }

    /// Lets ring 3 through all tables below the user half of this PML4; the leaves decide.
    pub(super) fn open_to_user(self) {
        self.open(4, 0..256);
    }

    fn open(self, level: u8, slots: core::ops::Range<usize>) {
        for slot in slots {
            let entry = self.read(slot);
            if level > 1 && entry & (bits::PRESENT | bits::LEAF) == bits::PRESENT {
                self.write(slot, entry | bits::USER);
                Self(entry & bits::ADDRESS).open(level - 1, 0..512);
            }
        }
    }

    pub(super) fn read(self, index: usize) -> u64 {
        self.entry(index).load(Ordering::Relaxed)
    }

    fn write(self, index: usize, value: u64) {
        self.entry(index).store(value, Ordering::Relaxed);
    }

    fn entry(self, index: usize) -> &'static AtomicU64 {
        assert!(index < 512);
        let address = TABLES_AT.load(Ordering::Relaxed).wrapping_add(self.0) + index as u64 * 8;
        // SAFETY: a `Table` is a frame of RAM, mapped at that offset for ever; words of it are only used as atomics
        // here, and by the CPU.
        unsafe { &*(address as *const AtomicU64) }
    }
}

/// Maps the page at `virt`, making missing tables in frames from `frame`.
///
/// # Errors
/// What `frame` gives.
///
/// # Panics
/// There is a mapping already.
pub(super) fn map<E>(
    root: u64,
    virt: u64,
    phys: u64,
    size: PageSize,
    leaf: u64,
    frame: &mut dyn FnMut() -> Result<u64, E>,
) -> Result<(), E> {
    let mut table = Table(root);
    for level in (size.level() + 1..=4).rev() {
        let at = index(virt, level);
        let entry = table.read(at);
        assert!(entry & bits::LEAF == 0, "{virt:#x} is mapped by a larger page");
        if entry & bits::PRESENT == 0 {
            let new = Table::in_frame(frame()?);
            table.write(at, new.0 | bits::TABLE);
            table = new;
        } else {
            table = Table(entry & bits::ADDRESS);
        }
    }
    let at = index(virt, size.level());
    assert!(table.read(at) == 0, "{virt:#x} is mapped already");
    let large = if size == PageSize::Size4KiB { 0 } else { bits::LEAF };
    table.write(at, phys | leaf | large);
    Ok(())
}

/// Maps the page at `virt` to memory of the memory manager, for ever, unless it is mapped already. Once that has started; for one
/// caller at a time.
///
/// # Errors
/// Out of memory.
pub(super) fn map_kept(virt: u64) -> Result<(), OutOfMemory> {
    if Walk::current(virt).leaf().is_some() {
        return Ok(());
    }
    let root = kernel_root().start_address().as_u64();
    let phys = crate::vm::kept_frame()?;
    map(root, virt, phys, PageSize::Size4KiB, bits::DATA, &mut crate::vm::kept_frame)
}

/// Says where the loader mapped physical memory. First of all.
pub(crate) fn use_loader_map(offset: u64) {
    TABLES_AT.store(offset, Ordering::Relaxed);
}

/// The largest page of the CPU.
fn largest_page() -> PageSize {
    if features::get().huge_1g { PageSize::Size1GiB } else { PageSize::Size2MiB }
}

/// Builds the kernel's tables, in frames from [`bootmem`].
///
/// # Errors
/// There is too little RAM for them.
pub(super) fn build() -> Result<PhysAddr, OutOfFrames> {
    let frame = &mut || bootmem::allocate(1, 1);
    let root = Table::in_frame(frame()?);
    for slot in 256..512 {
        root.write(slot, Table::in_frame(frame()?).0 | bits::TABLE);
    }
    let mut runs = image::FrameRuns::new();
    for page in image::pages() {
        // The image is mapped here and now, by the loader's tables.
        let phys = Walk::current(page.virt).translate(page.virt).expect("the loader maps the whole image");
        runs.add(phys);
        if let Some(leaf) = page.leaf {
            map(root.0, page.virt, phys, PageSize::Size4KiB, leaf, frame)?;
        }
    }
    for range in direct_mapped(&runs) {
        for (phys, size) in cover(range, DIRECT_MAP, largest_page()) {
            map(root.0, DIRECT_MAP + phys, phys, size, bits::DATA, frame)?;
        }
    }
    runs.remember();
    let scratch = bootmem::allocate(SCRATCH_FRAMES, 1)?;
    SCRATCH.call_once(|| scratch);
    ROOT.call_once(|| root.0);
    Ok(PhysAddr::new(root.0))
}

/// The RAM that the direct map shows: all but the image.
fn direct_mapped(image: &image::FrameRuns) -> impl Iterator<Item = core::ops::Range<u64>> + '_ {
    let ram = bootmem::ram().map(|r| Region { start: r.start, end: r.end, class: Class::Free });
    let held = image.iter().map(|r| Region { start: r.start, end: r.end, class: Class::Reserved });
    Merged::new(ram.chain(held), Want::Ram)
}

/// Frames kept for tests, which may run when all others belong to the memory manager.
pub(super) const SCRATCH_FRAMES: u64 = 8;
static SCRATCH: Once<u64> = Once::new();

/// The first of [`SCRATCH_FRAMES`] adjacent frames that nothing but tests uses.
pub(super) fn scratch() -> u64 {
    SCRATCH.get().copied().unwrap_or_default()
}

/// Says that the kernel's own tables are loaded.
pub(super) fn use_own_map() {
    TABLES_AT.store(DIRECT_MAP, Ordering::Relaxed);
}

crate::ktest! {
    fn every_frame_of_ram_is_where_the_direct_map_says() {
        let mut pages = 0_u64;
        for range in bootmem::ram() {
            let mut at = range.start;
            while at < range.end {
                let virt = DIRECT_MAP + at;
                let walk = Walk::current(virt);
                // The image's frames are left out; everything else is at its place and neither executable nor user's.
                if let Some(leaf) = walk.leaf() {
                    crate::check_eq!(walk.translate(virt), Some(at));
                    crate::check!(leaf.entry & bits::NO_EXECUTE != 0, "{walk}");
                    crate::check!(leaf.entry & (1 << 2) == 0, "{walk}");
                    crate::check!(at + leaf.span() - at % leaf.span() <= range.end, "a page leaves its region: {walk}");
                    pages += 1;
                    at += leaf.span() - at % leaf.span();
                } else {
                    crate::check!(image::holds_frame(at), "{at:#x} is missing in the direct map: {walk}");
                    at += PAGE_SIZE;
                }
            }
        }
        crate::check!(pages > 0);
    }
}

crate::ktest! {
    fn the_direct_map_shows_no_hole_and_no_device() {
        let edges = || bootmem::ram().flat_map(|range| [range.start, range.end]);
        for edge in edges() {
            for phys in [edge.wrapping_sub(PAGE_SIZE), edge] {
                let mapped = phys < 1 << 46 && Walk::current(DIRECT_MAP + phys).leaf().is_some();
                let ram = bootmem::ram().any(|range| range.contains(&phys));
                crate::check!(!mapped || ram, "{phys:#x} is mapped and not RAM");
            }
        }
        crate::check!(Walk::current(DIRECT_MAP + 0xfee0_0000).leaf().is_none(), "the APIC is in the direct map");
    }
}

crate::ktest! {
    needs(memory_mib = 3072)
    fn the_largest_pages_are_used() {
        let big = largest_page().bytes();
        let Some(range) = bootmem::ram().find(|r| r.start.next_multiple_of(big) + big <= r.end) else {
            crate::skip!("no RAM range holds an aligned page of {big:#x} bytes");
        };
        // The image may stand in the first one.
        let first = (range.start.next_multiple_of(big)..range.end - big + 1).step_by(big as usize)
            .find(|at| !(*at..*at + big).step_by(4096).any(image::holds_frame));
        let Some(first) = first else { crate::skip!("the image is in the only one") };
        crate::check_eq!(Walk::current(DIRECT_MAP + first).leaf().map(|leaf| leaf.span()), Some(big));
    }
}

crate::ktest! {
    fn all_kernel_slots_have_a_table_and_user_slots_none() {
        let root = Table(kernel_root().start_address().as_u64());
        for slot in 0..512 {
            let entry = root.read(slot);
            crate::check_eq!(entry & bits::PRESENT != 0, slot >= 256, "slot {slot} is {entry:#x}");
        }
        let copy = [const { AtomicU64::new(0) }; 512];
        fill_kernel_half(&copy);
        crate::check!(copy[..256].iter().all(|entry| entry.load(Ordering::Relaxed) == 0));
        crate::check!((256..512).all(|n| copy[n].load(Ordering::Relaxed) == root.read(n)));
    }
}
