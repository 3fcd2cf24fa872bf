//! The two ways to configuration space: ports 0xCF8/0xCFC, and ECAM.
//!
//! Ports exist on every PC and reach 256 bytes a function; ECAM is memory and reaches 4096. The base of
//! ECAM is read from the chipset, through the ports ([`EcamRegion::of_chipset`]): one register of the only
//! chipset QEMU gives ECAM, against a walk through RSDP, XSDT and MCFG whose tables say the same.

use pci_types::PciAddress;
use spin::Mutex;
use x86_64::PhysAddr;

use crate::mmio::Window;

/// Reads and writes aligned 32-bit words of configuration space.
///
/// What does not exist reads as all ones, and writes to it are lost: that is the bus's own behaviour.
pub trait ConfigAccess {
    /// Reads the word at a byte offset.
    fn read(&self, address: PciAddress, offset: u16) -> u32;
    /// Writes the word at a byte offset.
    fn write(&self, address: PciAddress, offset: u16, value: u32);
}

impl<T: ConfigAccess + ?Sized> ConfigAccess for &T {
    fn read(&self, address: PciAddress, offset: u16) -> u32 {
        (**self).read(address, offset)
    }

    fn write(&self, address: PciAddress, offset: u16, value: u32) {
        (**self).write(address, offset, value);
    }
}

/// 32-bit port I/O, as the kernel implements it.
pub trait PortIo {
    /// `in eax, dx`
    fn read_u32(&mut self, port: u16) -> u32;
    /// `out dx, eax`
    fn write_u32(&mut self, port: u16, value: u32);
}

const ADDRESS_PORT: u16 = 0xCF8;
const DATA_PORT: u16 = 0xCFC;
const ADDRESS_ENABLE: u32 = 1 << 31;
const ALL_ONES: u32 = u32::MAX;

/// Configuration space through ports 0xCF8 and 0xCFC: the first 256 bytes of each function.
///
/// An access is two port operations that nothing may come between, hence the lock.
pub struct LegacyPorts<P> {
    ports: Mutex<P>,
}

impl<P: PortIo> LegacyPorts<P> {
    /// Takes the ports.
    pub const fn new(ports: P) -> Self {
        Self { ports: Mutex::new(ports) }
    }

    /// Points the data port at a word and works on it; `None` for what the ports cannot reach.
    fn select<T>(&self, address: PciAddress, offset: u16, work: impl FnOnce(&mut P) -> T) -> Option<T> {
        if address.segment() != 0 || offset > 0xFC || !offset.is_multiple_of(4) {
            return None;
        }
        let function = u32::from(address.bus()) << 16
            | u32::from(address.device()) << 11
            | u32::from(address.function()) << 8;
        let mut ports = self.ports.lock();
        ports.write_u32(ADDRESS_PORT, ADDRESS_ENABLE | function | u32::from(offset));
        Some(work(&mut ports))
    }
}

impl<P: PortIo> ConfigAccess for LegacyPorts<P> {
    fn read(&self, address: PciAddress, offset: u16) -> u32 {
        self.select(address, offset, |ports| ports.read_u32(DATA_PORT)).unwrap_or(ALL_ONES)
    }

    fn write(&self, address: PciAddress, offset: u16, value: u32) {
        let _ = self.select(address, offset, |ports| ports.write_u32(DATA_PORT, value));
    }
}

/// What ECAM takes of physical address space for each bus.
pub const ECAM_BYTES_PER_BUS: u64 = 1 << 20;

/// Where ECAM lies in physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EcamRegion {
    /// The address of bus 0.
    pub base: PhysAddr,
    /// How many buses it reaches.
    pub buses: u16,
}

impl EcamRegion {
    /// Reads PCIEXBAR of the q35 host bridge at 00:00.0; `None` on another chipset or where it is off.
    pub fn of_chipset(config: &impl ConfigAccess) -> Option<Self> {
        const Q35_HOST_BRIDGE: u32 = 0x29C0_8086;
        const PCIEXBAR: u16 = 0x60;
        let bridge = PciAddress::new(0, 0, 0, 0);
        if config.read(bridge, 0) != Q35_HOST_BRIDGE {
            return None;
        }
        let low = u64::from(config.read(bridge, PCIEXBAR));
        let value = u64::from(config.read(bridge, PCIEXBAR + 4)) << 32 | low;
        let buses = match value >> 1 & 0b11 {
            0 => 256,
            1 => 128,
            2 => 64,
            _ => return None,
        };
        let enabled = value & 1 != 0;
        let base = value & 0x000F_FFFF_FC00_0000 & !(u64::from(buses) * ECAM_BYTES_PER_BUS - 1);
        (enabled && base != 0).then(|| Self { base: PhysAddr::new(base), buses })
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.buses as u64 * ECAM_BYTES_PER_BUS
    }
}

/// Configuration space as memory: 4096 bytes of each function.
pub struct Ecam {
    window: Window,
}

impl Ecam {
    /// Takes a window over the ECAM region, beginning with bus 0 and mapped uncacheable. It may be shorter than
    /// the region: buses past its end do not exist.
    #[must_use]
    pub const fn new(window: Window) -> Self {
        Self { window }
    }

    fn offset(address: PciAddress, offset: u16) -> Option<u64> {
        if address.segment() != 0 || offset > 0xFFC {
            return None;
        }
        let function = u64::from(address.bus()) << 20
            | u64::from(address.device()) << 15
            | u64::from(address.function()) << 12;
        Some(function | u64::from(offset))
    }
}

impl ConfigAccess for Ecam {
    fn read(&self, address: PciAddress, offset: u16) -> u32 {
        Self::offset(address, offset).and_then(|at| self.window.read_u32(at).ok()).unwrap_or(ALL_ONES)
    }

    fn write(&self, address: PciAddress, offset: u16, value: u32) {
        if let Some(at) = Self::offset(address, offset) {
            // Outside the window there is no function, and what is written to none is lost.
            let _ = self.window.write_u32(at, value);
        }
    }
}
