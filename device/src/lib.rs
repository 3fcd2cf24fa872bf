//! The PCI device whose memory takes migrated pages.
//!
//! From the bottom up: [`pci`] reaches configuration space (ports or ECAM), walks the buses and reads
//! BARs by the rules; [`ivshmem`] finds QEMU's shared-memory device and says in one sentence what is
//! wrong with it; [`mmio`] is a checked window over what the kernel has mapped of it.
//!
//! The crate knows nothing of CPU page tables: the kernel maps a BAR and hands over the window. All
//! `unsafe` is in `mmio`; hardware is two small traits, [`pci::PortIo`] and [`pci::ConfigAccess`], whose
//! fakes run the same code under `cargo test`.

#![no_std]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

mod addr;
pub mod ivshmem;
pub mod mmio;
pub mod pci;

pub use addr::{DeviceAddr, DmaAddr};
pub use x86_64::PhysAddr;

#[cfg(test)]
mod tests;
