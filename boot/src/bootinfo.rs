//! Writing `BootInfo` where the kernel will find it.
//!
//! The structure and the region list share one block: the list begins right behind the structure, and its pointer
//! already is the kernel's address of it.

use crate::phys::Physical;
use bootloader_api::BootInfo;
use bootloader_api::info::{MemoryRegion, MemoryRegions, Optional};
use farpage_boot::image::Image;
use farpage_boot::plan::Plan;

const LIST_OFFSET: usize = size_of::<BootInfo>().next_multiple_of(align_of::<MemoryRegion>());

/// Bytes that a boot info with up to `max_regions` regions takes.
pub(crate) const fn len_bytes(max_regions: usize) -> u64 {
    (LIST_OFFSET + max_regions * size_of::<MemoryRegion>()) as u64
}

/// Writes the list region by region, then the structure.
pub(crate) struct Writer {
    phys: u64,
    nr_regions: usize,
    max_regions: usize,
}

impl Writer {
    pub(crate) fn new(plan: &Plan, max_regions: usize) -> Self {
        Self { phys: plan.boot_info_phys, nr_regions: 0, max_regions }
    }

    /// Appends a region.
    pub(crate) fn region(&mut self, region: MemoryRegion) {
        assert!(self.nr_regions < self.max_regions, "more regions than were counted");
        let at = LIST_OFFSET + self.nr_regions * size_of::<MemoryRegion>();
        // SAFETY: the plan set aside room for `max_regions` regions behind the structure, page-aligned and in the
        // arena, and the assertion above keeps to it. Nothing refers to that block yet.
        unsafe { Physical::write_value(self.phys + at as u64, region) };
        self.nr_regions += 1;
    }

    /// Writes the structure itself.
    pub(crate) fn finish(
        self,
        plan: &Plan,
        image: &Image<'_>,
        rsdp_paddr: u64,
        ramdisk_len: u64,
        kernel_paddr: u64,
    ) {
        let list = [plan.boot_info_virt + LIST_OFFSET as u64, self.nr_regions as u64];
        // SAFETY: `MemoryRegions` is `repr(C)`: a pointer, then a length, of eight bytes each. The pointer is valid
        // in the kernel's address space, which is where this value is used first: no reference is made of it here.
        let regions = unsafe { core::mem::transmute::<[u64; 2], MemoryRegions>(list) };
        let mut info = BootInfo::new(regions);
        info.physical_memory_offset = plan.physical_memory_offset.into();
        info.recursive_index = plan.recursive_index.into();
        info.rsdp_addr = Some(rsdp_paddr).filter(|&rsdp| rsdp != 0).into();
        info.tls_template = image.tls_template().into();
        info.ramdisk_addr = Optional::Some(plan.ramdisk_virt);
        info.ramdisk_len = ramdisk_len;
        info.kernel_addr = kernel_paddr;
        info.kernel_len = image.file_len();
        // The kernel is linked to fixed addresses: its image is not shifted.
        info.kernel_image_offset = 0;
        info.kernel_stack_bottom = plan.stack_bottom;
        info.kernel_stack_len = plan.stack_len;
        // SAFETY: the block begins with room for the structure, page-aligned and in the arena; the list lies behind.
        unsafe { Physical::write_value(self.phys, info) };
    }
}
