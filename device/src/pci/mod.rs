//! PCI: configuration space, enumeration, BARs.
//!
//! Identifiers, header layouts and class codes are `pci_types`'. Its BAR sizing is not used: it leaves
//! decode on while all ones stand in the BAR, so that for some instructions the device answers at an
//! address that may be RAM, and writing the command register back clears status bits.

mod access;
mod bar;
mod scan;

pub use access::{ConfigAccess, ECAM_BYTES_PER_BUS, Ecam, EcamRegion, LegacyPorts, PortIo};
pub use bar::{Bar, BarError, BarKind, enable_memory};
pub use pci_types::{PciAddress, device_type::DeviceType};
pub use scan::{Function, Scan, scan};

/// Offset of the command register, in the lower half of its word; status is the upper half.
const COMMAND: u16 = 0x04;
