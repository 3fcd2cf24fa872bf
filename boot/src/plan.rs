//! The kernel's first address space, built from its image and what it asked for.
//!
//! Everything a boot allocates comes from one arena, so that one range in the memory map accounts for all of it.

use crate::error::LoadError;
use crate::image::Image;
use crate::layout::Slots;
use crate::paging::{Access, Arena, Features, Memory, PageSize, Tables};
use crate::{PAGE_SIZE, page_down, page_up};
use bootloader_api::config::Mapping;
use core::ops::Range;

/// The physical mapping covers at least this much: device windows below 4 GiB are inside.
const MIN_PHYSICAL: u64 = 4 << 30;

/// What the plan must know about the machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What the CPU's paging can do.
    pub features: Features,
    /// Byte after the last byte of RAM.
    pub ram_end: u64,
    /// Where the boot module (the archive) lies.
    pub module: Range<u64>,
    /// The page of code and GDT that stays mapped over the switch, at its physical address.
    pub handoff_page: u64,
    /// Bytes to reserve for the boot info and its memory map.
    pub boot_info_len: u64,
}

/// The finished address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Physical address of the top table.
    pub root: u64,
    /// Lowest byte of the stack.
    pub stack_bottom: u64,
    /// Its length.
    pub stack_len: u64,
    /// Where the kernel sees the boot info.
    pub boot_info_virt: u64,
    /// Where it lies.
    pub boot_info_phys: u64,
    /// Where physical memory is mapped, if asked for.
    pub physical_memory_offset: Option<u64>,
    /// Where the archive is mapped.
    pub ramdisk_virt: u64,
    /// The slot of the recursive mapping, if asked for.
    pub recursive_index: Option<u16>,
}

/// Builds the address space.
///
/// # Errors
/// Whatever the kernel asks for that cannot be: see [`LoadError`].
pub fn build<M: Memory>(
    machine: &Machine,
    image: &Image<'_>,
    memory: &mut M,
    arena: &mut Arena,
) -> Result<Plan, LoadError> {
    let mappings = &image.config.mappings;
    let stack_len = page_up(image.config.kernel_stack_size.max(PAGE_SIZE))
        .ok_or(LoadError::BadConfig("the stack size makes no sense"))?;
    let guarded_len = stack_len.saturating_add(2 * PAGE_SIZE);
    let physical_len = machine.ram_end.max(MIN_PHYSICAL).next_multiple_of(PageSize::Size2M.bytes());
    let module = page_down(machine.module.start)..machine.module.end;
    let module_len = module.end - module.start;

    let mut slots = Slots::new(mappings.dynamic_range_start, mappings.dynamic_range_end);
    slots.mark(machine.handoff_page, PAGE_SIZE);
    for segment in image.segments() {
        let segment = segment?;
        slots.mark(segment.virt, segment.len_bytes);
    }
    slots.mark_fixed(mappings.kernel_stack, guarded_len);
    slots.mark_fixed(mappings.boot_info, machine.boot_info_len);
    slots.mark_fixed(mappings.ramdisk_memory, module_len);
    if let Some(mapping) = mappings.physical_memory {
        slots.mark_fixed(mapping, physical_len);
    }

    let mut tables = Tables::new(memory, arena, machine.features)?;
    load_segments(&mut tables, image)?;

    // One page below and one above the stack stay unmapped; that they do is checked at the end.
    let stack_guard = slots.place(mappings.kernel_stack, guarded_len)?;
    let stack_bottom = stack_guard.wrapping_add(PAGE_SIZE);
    let stack_phys = tables.arena.alloc(tables.memory, stack_len)?;
    tables.map(stack_bottom, stack_phys, stack_len, Access::ReadWrite)?;

    let physical_memory_offset = match mappings.physical_memory {
        Some(mapping) => {
            let offset = slots.place(mapping, physical_len)?;
            tables.map_large(offset, 0, physical_len, Access::ReadWrite)?;
            Some(offset)
        }
        None => None,
    };

    let ramdisk = slots.place(mappings.ramdisk_memory, module_len)?;
    tables.map(ramdisk, module.start, module_len, Access::ReadOnly)?;

    let boot_info_virt = slots.place(mappings.boot_info, machine.boot_info_len)?;
    let boot_info_phys = tables.arena.alloc(tables.memory, machine.boot_info_len)?;
    tables.map(boot_info_virt, boot_info_phys, machine.boot_info_len, Access::ReadWrite)?;

    tables.map(machine.handoff_page, machine.handoff_page, PAGE_SIZE, Access::ReadExecute)?;
    let recursive_index = place_recursive(&mut tables, &mut slots, mappings.page_table_recursive)?;

    for guard in [stack_guard, stack_bottom + stack_len] {
        if tables.translate(guard).is_some() {
            return Err(LoadError::AlreadyMapped { virt: guard });
        }
    }
    Ok(Plan {
        root: tables.root(),
        stack_bottom,
        stack_len,
        boot_info_virt,
        boot_info_phys,
        physical_memory_offset,
        ramdisk_virt: ramdisk + (machine.module.start - module.start),
        recursive_index,
    })
}

/// Copies each segment into pages of its own. Two segments in one page come out as [`LoadError::AlreadyMapped`]:
/// they could not both have their rights.
fn load_segments<M: Memory>(tables: &mut Tables<'_, M>, image: &Image<'_>) -> Result<(), LoadError> {
    let mut entry_is_code = false;
    for segment in image.segments() {
        let segment = segment?;
        let virt = page_down(segment.virt);
        let lead = segment.virt - virt;
        let phys = tables.arena.alloc(tables.memory, lead + segment.len_bytes)?;
        tables.memory.write(phys + lead, segment.data);
        tables.map(virt, phys, lead + segment.len_bytes, segment.access)?;
        let inside = (segment.virt..segment.virt + segment.len_bytes).contains(&image.entry());
        entry_is_code |= inside && segment.access == Access::ReadExecute;
    }
    if entry_is_code { Ok(()) } else { Err(LoadError::BadKernel("its entry point is not in its code")) }
}

fn place_recursive<M: Memory>(
    tables: &mut Tables<'_, M>,
    slots: &mut Slots,
    mapping: Option<Mapping>,
) -> Result<Option<u16>, LoadError> {
    let Some(mapping) = mapping else { return Ok(None) };
    let index = (slots.place(mapping, PAGE_SIZE)? >> 39 & 511) as u16;
    tables.map_recursively(index)?;
    Ok(Some(index))
}

#[cfg(test)]
mod tests;
