//! The PVH loader: started by QEMU's `-kernel`, it starts the kernel that stands in `-initrd`.
//!
//! From top to bottom: `entry` brings the CPU from PVH's 32-bit state to long mode and calls [`loader_main`], which
//! reads what the hypervisor says, lets the library plan and build the kernel's address space, writes the boot info,
//! and leaves through `handoff`. Whatever goes wrong is one sentence on COM1 and exit code 0x12.
#![no_std]
#![no_main]

mod bootinfo;
mod console;
mod entry;
mod handoff;
mod memfn;
mod phys;

use core::panic::PanicInfo;
use farpage_boot::error::LoadError;
use farpage_boot::image::Image;
use farpage_boot::memmap;
use farpage_boot::paging::Arena;
use farpage_boot::plan::{self, Machine};
use farpage_boot::pvh::{self, Module, StartInfo};
use farpage_boot::{cpio, page_down, page_up};
use handoff::Handoff;
use phys::{LOADER_REACH, Physical};

/// Called by the entry code with the physical address of the start info.
extern "C" fn loader_main(start_info: u32) -> ! {
    match load(u64::from(start_info)) {
        Ok(handoff) => handoff.jump(),
        Err(error) => console::fail(format_args!("{error}")),
    }
}

/// Everything between the entry and the jump.
fn load(start_info: u64) -> Result<Handoff, LoadError> {
    let info = StartInfo::parse(phys::array(start_info)?)?;
    let memmap_len = u64::from(info.memmap_entries) * pvh::MEMMAP_ENTRY_LEN as u64;
    let firmware = pvh::memmap_entries(phys::bytes(info.memmap_paddr, memmap_len)?);
    if info.nr_modules == 0 {
        return Err(LoadError::NoModule);
    }
    let module = Module::parse(phys::array(info.modlist_paddr)?);
    let archive = phys::bytes(module.paddr, module.len_bytes)?;
    let kernel = cpio::find(archive, b"kernel")?.ok_or(LoadError::NoKernel)?;
    let image = Image::parse(kernel.data)?;

    let loader = entry::image();
    let ramdisk = page_down(module.paddr)..page_up(module.paddr + module.len_bytes).unwrap_or(u64::MAX);
    let memmap_table = info.memmap_paddr..info.memmap_paddr + memmap_len;
    let taken = [loader.clone(), ramdisk.clone(), memmap_table];
    let free = memmap::largest_free(&firmware, &taken, LOADER_REACH).unwrap_or(0..0);
    let mut arena = Arena::new(free);
    // Three ranges will be in use: the loader, the archive, and what the arena gives out.
    let max_regions = memmap::max_regions(info.memmap_entries as usize, 3);
    let machine = Machine {
        features: entry::features(),
        ram_end: memmap::ram_end(firmware.clone()),
        module: module.paddr..module.paddr + module.len_bytes,
        handoff_page: handoff::page(),
        boot_info_len: bootinfo::len_bytes(max_regions),
    };
    let plan = plan::build(&machine, &image, &mut Physical, &mut arena)?;

    let used = [loader, ramdisk, arena.used()];
    let mut writer = bootinfo::Writer::new(&plan, max_regions);
    memmap::carve(&firmware, &used, |region| writer.region(region));
    writer.finish(&plan, &image, info.rsdp_paddr, module.len_bytes, module.paddr + kernel.offset as u64);
    let stack_top = plan.stack_bottom + plan.stack_len;
    Ok(Handoff { root: plan.root, entry: image.entry(), stack_top, boot_info: plan.boot_info_virt })
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::fail(format_args!("loader bug: {info}"))
}
