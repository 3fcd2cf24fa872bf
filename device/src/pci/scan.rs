//! Enumeration: every function of every bus that firmware has numbered.
//!
//! The walk starts at bus 0 and follows bridges to their secondary buses. It keeps two bits for each of
//! the 256 buses, so it allocates nothing and visits none twice, even where bridges form a loop. Buses are
//! not renumbered: SeaBIOS has done it.

use pci_types::{HeaderType, PciAddress, PciHeader, PciPciBridgeHeader, device_type::DeviceType};

use crate::{mmio::Typed, pci::ConfigAccess};

/// A function that answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Base class and subclass.
    pub class: (u8, u8),
    /// The layout of its header.
    pub header: HeaderType,
}

impl Function {
    /// What kind of device its class code says it is.
    #[must_use]
    pub fn kind(&self) -> DeviceType {
        DeviceType::from(self.class)
    }

    /// Is it this device?
    #[must_use]
    pub fn is(&self, vendor: u16, device: u16) -> bool {
        (self.vendor, self.device) == (vendor, device)
    }

    fn read<C: ConfigAccess>(config: &C, address: PciAddress) -> Option<Self> {
        let config = Typed(config);
        let header = PciHeader::new(address);
        let (vendor, device) = header.id(&config);
        if vendor == 0xFFFF {
            return None;
        }
        let (_, base, sub, _) = header.revision_and_class(&config);
        Some(Self { address, vendor, device, class: (base, sub), header: header.header_type(&config) })
    }
}

/// All functions in the order of their addresses within a bus, lower buses first.
pub fn scan<C: ConfigAccess>(config: &C) -> Scan<'_, C> {
    let mut pending = Buses::default();
    pending.insert(0);
    Scan { config, pending, seen: Buses::default(), at: None }
}

/// The iterator of [`scan`].
pub struct Scan<'a, C> {
    config: &'a C,
    pending: Buses,
    seen: Buses,
    /// The next function to look at: bus, device, function.
    at: Option<(u8, u8, u8)>,
}

impl<C: ConfigAccess> Iterator for Scan<'_, C> {
    type Item = Function;

    fn next(&mut self) -> Option<Function> {
        loop {
            let (bus, device, number) = self.position()?;
            let address = PciAddress::new(0, bus, device, number);
            let found = Function::read(self.config, address);
            self.at = self.after(address, found.is_some());
            if let Some(function) = found {
                self.follow(&function);
                return Some(function);
            }
        }
    }
}

impl<C: ConfigAccess> Scan<'_, C> {
    /// Where the walk stands; on to the next bus if one has ended.
    fn position(&mut self) -> Option<(u8, u8, u8)> {
        if self.at.is_none() {
            let bus = self.pending.take_lowest()?;
            self.seen.insert(bus);
            self.at = Some((bus, 0, 0));
        }
        self.at
    }

    /// The place after this one. Functions 1 to 7 exist only where function 0 says so, and then with gaps.
    fn after(&self, address: PciAddress, exists: bool) -> Option<(u8, u8, u8)> {
        let (bus, device, number) = (address.bus(), address.device(), address.function());
        let more = match number {
            0 => exists && PciHeader::new(address).has_multiple_functions(Typed(self.config)),
            n => n < 7,
        };
        match (more, device) {
            (true, _) => Some((bus, device, number + 1)),
            (false, 0..31) => Some((bus, device + 1, 0)),
            (false, _) => None,
        }
    }

    /// Notes the bus behind a bridge.
    fn follow(&mut self, function: &Function) {
        let config = Typed(self.config);
        let header = PciHeader::new(function.address);
        if let Some(bridge) = PciPciBridgeHeader::from_header(header, &config) {
            let bus = bridge.secondary_bus_number(&config);
            if bus != 0 && !self.seen.contains(bus) {
                self.pending.insert(bus);
            }
        }
    }
}

/// A set of bus numbers.
#[derive(Default)]
struct Buses([u64; 4]);

impl Buses {
    fn insert(&mut self, bus: u8) {
        self.0[usize::from(bus / 64)] |= 1 << (bus % 64);
    }

    fn contains(&self, bus: u8) -> bool {
        self.0[usize::from(bus / 64)] >> (bus % 64) & 1 != 0
    }

    fn take_lowest(&mut self) -> Option<u8> {
        let bus = (0..=u8::MAX).find(|bus| self.contains(*bus))?;
        self.0[usize::from(bus / 64)] &= !(1 << (bus % 64));
        Some(bus)
    }
}
