//! The logic of the PVH loader, without its hardware.
//!
//! The loader takes the machine from QEMU's PVH entry to a kernel written for [`bootloader_api`]. What can be
//! decided without touching the machine is here and tested on the host: reading the start info ([`pvh`]), finding
//! the kernel in its archive ([`cpio`]), reading its ELF ([`image`]), planning addresses ([`layout`]), building
//! page tables over any memory ([`paging`]) and carving the memory map ([`memmap`]). The binary beside this library
//! holds the rest: the 32-bit entry, physical memory, the serial port and the jump.
//!
//! Guarantees to the kernel: no page is both writable and executable, the stack has an unmapped page on both sides,
//! every byte the loader leaves in use is marked as such in the memory map, and nothing else is.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod cpio;
pub mod error;
pub mod image;
pub mod layout;
pub mod memmap;
pub mod paging;
pub mod plan;
pub mod pvh;

/// Bytes of the smallest page.
pub const PAGE_SIZE: u64 = 4096;

/// Rounds up to a whole page; `None` past the end of the address space.
#[must_use]
pub fn page_up(value: u64) -> Option<u64> {
    value.checked_next_multiple_of(PAGE_SIZE)
}

/// Rounds down to a whole page.
#[must_use]
pub fn page_down(value: u64) -> u64 {
    value & !(PAGE_SIZE - 1)
}
