//! Addresses that must not be mixed up.
//!
//! Three numbers describe a byte of a device's memory: where the CPU's physical address space has it
//! ([`PhysAddr`](x86_64::PhysAddr), it moves with the BAR), where it lies in the device ([`DeviceAddr`],
//! it never moves), and where the device reaches a byte of RAM ([`DmaAddr`], which an IOMMU may make
//! anything). Page-table entries and the allocator name device memory by the second alone.

use core::fmt;

/// A byte offset in one device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DeviceAddr(pub u64);

/// The address by which the device reaches RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DmaAddr(pub u64);

impl DeviceAddr {
    /// The address `bytes` further on; `None` past the end of all addresses.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

impl fmt::Display for DeviceAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dev:{:#x}", self.0)
    }
}

impl fmt::Display for DmaAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dma:{:#x}", self.0)
    }
}
