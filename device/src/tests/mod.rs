//! Host tests: the code of this crate against fakes of the hardware.

mod fake;
mod ivshmem;
mod mmio;
mod pci;
