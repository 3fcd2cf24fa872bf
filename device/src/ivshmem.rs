//! QEMU's `ivshmem-plain`: a PCI function whose BAR2 is plain memory.
//!
//! It is the device memory of this system because it is a real PCI function with a real 64-bit
//! prefetchable BAR of any power of two, its memory can be a file that a program on the host reads, and
//! every QEMU has it. A machine without one is not an error of this crate: [`find`] is then empty.

use core::fmt;

use pci_types::PciAddress;

use crate::{
    mmio::{AccessError, Window},
    pci::{Bar, BarError, ConfigAccess, enable_memory, scan},
};

/// Red Hat's vendor ID.
pub const VENDOR: u16 = 0x1AF4;
/// The device ID of ivshmem.
pub const DEVICE: u16 = 0x1110;
/// The least memory: two 2 MiB blocks, so that one can be used while another is split.
pub const MIN_SIZE: u64 = 4 << 20;
/// What to add to QEMU's command line.
pub const QEMU_ARGS: &str =
    "-object memory-backend-ram,id=dev0,size=64M,share=on -device ivshmem-plain,memdev=dev0";

/// The function's registers, by offset in BAR0.
const IV_POSITION: u64 = 0x08;

/// One device, checked and ready to be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ivshmem {
    /// Where it is.
    pub address: PciAddress,
    /// BAR0: registers, to be mapped uncacheable.
    pub registers: Bar,
    /// BAR2: the memory.
    pub memory: Bar,
}

/// Why device memory cannot be used. Each is one sentence that says what to type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IvshmemError {
    /// The machine has no such device.
    Missing,
    /// The device's BAR is no good.
    Bar {
        /// The device.
        address: PciAddress,
        /// What is wrong.
        error: BarError,
    },
}

impl fmt::Display for IvshmemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "no device memory: this machine has no ivshmem device")?,
            Self::Bar { address, error } => write!(f, "no device memory on {address}: {error}")?,
        }
        write!(f, "; give QEMU {QEMU_ARGS}")
    }
}

impl core::error::Error for IvshmemError {}

/// Every ivshmem device of the machine, each checked on its own.
pub fn find<C: ConfigAccess>(config: &C) -> impl Iterator<Item = Result<Ivshmem, IvshmemError>> + use<'_, C> {
    scan(config)
        .filter(|function| function.is(VENDOR, DEVICE))
        .map(|function| Ivshmem::probe(config, function.address))
}

impl Ivshmem {
    /// Reads and checks the BARs of the ivshmem function at an address, and turns its memory decode on.
    ///
    /// # Errors
    /// [`IvshmemError::Bar`], in which case decode stays as it was.
    pub fn probe(config: &impl ConfigAccess, address: PciAddress) -> Result<Self, IvshmemError> {
        let bars = || -> Result<(Bar, Bar), BarError> {
            let registers = Bar::read(config, address, 0)?;
            let memory = Bar::read(config, address, 2)?.wide()?.at_least(MIN_SIZE)?;
            Ok((registers, memory))
        };
        let (registers, memory) = bars().map_err(|error| IvshmemError::Bar { address, error })?;
        enable_memory(config, address);
        Ok(Self { address, registers, memory })
    }

    /// Reads IVPosition through a mapped BAR0: the number of this peer, 0 on a device without a server.
    ///
    /// # Errors
    /// The window is too short to be BAR0.
    pub fn position(&self, registers: &Window) -> Result<u32, AccessError> {
        registers.read_u32(IV_POSITION)
    }
}
