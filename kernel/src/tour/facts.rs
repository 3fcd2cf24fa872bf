//! What machine this is, as records for the runner.

use farpage_device::pci::BarKind;
use farpage_mm::Place;
use ktest::record;

use super::Size;
use crate::arch::x86_64::walk::Walk;
use crate::arch::x86_64::{features, paging};
use crate::vm::{devmem, mm};
use crate::{boot, bootmem, console};

/// CPU and RAM.
pub(super) fn machine() {
    let ram: u64 = bootmem::ram().map(|range| range.end - range.start).sum();
    let ranges = bootmem::ram().count();
    let free = u64::from(mm().zone(Place::RAM).stat().free) << 12;
    let features = features::get();
    console::with(|out| {
        let _ = record!(out, "machine", cpu_features = features);
        let ram = format_args!("{} MiB in {ranges} ranges, {} MiB free", ram.div_ceil(1 << 20), free >> 20);
        let _ = record!(out, "machine", ram = ram);
        let largest = if features.huge_1g { "1 GiB" } else { "2 MiB" };
        let pages = format_args!("{largest} in the CPU, {} in the kernel's direct map", Size(largest_leaf()));
        let _ = record!(out, "machine", largest_page = pages);
        if let Some(rsdp) = boot().rsdp {
            let _ = record!(out, "machine", acpi = format_args!("tables from {rsdp:#x} on"));
        }
        if let Some((at, len)) = boot().archive {
            let _ = record!(out, "machine", boot_archive = format_args!("{} KiB at {at:#x}", len >> 10));
        }
    });
}

/// Every device.
pub(super) fn devices() {
    console::with(|out| {
        for device in devmem::devices() {
            let function = &device.function;
            let bar = function.memory;
            let kind = match bar.kind {
                BarKind::Memory32 => "32-bit",
                BarKind::Memory64 => "64-bit",
            };
            let prefetchable = if bar.prefetchable { " prefetchable" } else { "" };
            let found =
                format_args!("ivshmem at {}, configuration space by {}", function.address, device.config);
            let _ = record!(out, "machine", device = found);
            let memory = format_args!(
                "BAR{} at {:#x}, {}, {kind}{prefetchable}, mapped write-combining",
                bar.slot,
                device.phys(),
                Size(device.len_bytes())
            );
            let _ = record!(out, "machine", device_memory = memory);
        }
    });
}

/// The largest leaf that maps RAM, by walking to every 2 MiB of it.
fn largest_leaf() -> u64 {
    let spots = bootmem::ram().flat_map(|range| range.step_by(2 << 20));
    let leaf = |phys| Walk::current(paging::phys_to_virt(x86_64::PhysAddr::new(phys)).as_u64()).leaf();
    spots.filter_map(leaf).map(|leaf| leaf.span()).max().unwrap_or(0)
}
