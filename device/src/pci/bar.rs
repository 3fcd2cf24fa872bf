//! Base address registers, sized by the rules.
//!
//! To size a BAR is to write all ones into it, and for that moment it claims addresses at the very top. So
//! decode is off while it lasts, the BAR gets its value back before decode comes on again, and a guard does
//! both whichever way the code leaves. Status bits are not touched: they clear when written as one.

use core::fmt;

use pci_types::{CommandRegister, PciAddress};
use x86_64::PhysAddr;

use crate::pci::{COMMAND, ConfigAccess};

const BAR0: u16 = 0x10;
const SLOTS: u8 = 6;
/// x86-64 has 52 bits of physical address.
const PHYS_END: u64 = 1 << 52;

/// How a memory BAR is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// In one slot, below 4 GiB.
    Memory32,
    /// In two slots, anywhere.
    Memory64,
}

/// A memory BAR that is assigned and whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// The (first) slot, 0 to 5.
    pub slot: u8,
    /// 32 or 64 bits.
    pub kind: BarKind,
    /// May be cached, merged and read ahead.
    pub prefetchable: bool,
    /// Where it lies.
    pub address: PhysAddr,
    /// Its length in bytes: a power of two.
    pub size: u64,
}

/// Why a BAR cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarError {
    /// There is none in this slot.
    Absent {
        /// Which.
        slot: u8,
    },
    /// It is a range of I/O ports.
    Io {
        /// Which.
        slot: u8,
        /// Its first port.
        port: u32,
    },
    /// Firmware has given it no address.
    Unassigned {
        /// Which.
        slot: u8,
        /// The size it asks for.
        size: u64,
    },
    /// It is smaller than the use needs.
    TooSmall {
        /// Which.
        slot: u8,
        /// Its size.
        size: u64,
        /// The least size.
        need: u64,
    },
    /// Its address is no multiple of its size, which no real BAR can be.
    Unaligned {
        /// Which.
        slot: u8,
        /// Its address.
        address: u64,
        /// Its size.
        size: u64,
    },
    /// It is a 32-bit BAR where the use needs 64 bits.
    Not64Bit {
        /// Which.
        slot: u8,
    },
    /// It says 64 bits and there is no second slot, or its type is reserved.
    Type {
        /// Which.
        slot: u8,
        /// The raw register.
        raw: u32,
    },
    /// It was given this address and has another.
    NotTaken {
        /// Which.
        slot: u8,
        /// What it was given.
        address: u64,
    },
    /// The bits that can be written are not one run up to the top.
    Mask {
        /// Which.
        slot: u8,
        /// What it read back.
        mask: u64,
    },
}

impl fmt::Display for BarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Absent { slot } => write!(f, "BAR{slot} is absent"),
            Self::Io { slot, port } => write!(f, "BAR{slot} is I/O ports at {port:#x}, not memory"),
            Self::Unassigned { slot, size } => {
                write!(f, "BAR{slot} of {size:#x} bytes has been given no address by the firmware")
            }
            Self::TooSmall { slot, size, need } => {
                write!(f, "BAR{slot} has {size:#x} bytes and at least {need:#x} are needed")
            }
            Self::Unaligned { slot, address, size } => {
                write!(f, "BAR{slot} at {address:#x} is not aligned to its size of {size:#x} bytes")
            }
            Self::Not64Bit { slot } => write!(f, "BAR{slot} is a 32-bit BAR and a 64-bit one is needed"),
            Self::Type { slot, raw } => write!(f, "BAR{slot} has no valid type, it reads {raw:#010x}"),
            Self::NotTaken { slot, address } => write!(f, "BAR{slot} cannot be moved to {address:#x}"),
            Self::Mask { slot, mask } => write!(f, "BAR{slot} has no valid size, its mask is {mask:#x}"),
        }
    }
}

impl core::error::Error for BarError {}

impl Bar {
    /// Reads and sizes the memory BAR in a slot.
    ///
    /// Decode is off for a moment: nothing may use the device meanwhile.
    ///
    /// # Errors
    /// The BAR is absent, malformed, not memory, unassigned or unaligned.
    pub fn read(config: &impl ConfigAccess, function: PciAddress, slot: u8) -> Result<Self, BarError> {
        if slot >= SLOTS {
            return Err(BarError::Absent { slot });
        }
        let offset = BAR0 + 4 * u16::from(slot);
        let raw = config.read(function, offset);
        if raw & 1 != 0 {
            return Err(BarError::Io { slot, port: raw & !0b11 });
        }
        let kind = match raw >> 1 & 0b11 {
            0b00 => BarKind::Memory32,
            0b10 if slot + 1 < SLOTS => BarKind::Memory64,
            _ => return Err(BarError::Type { slot, raw }),
        };
        let sizing = Sizing::begin(config, function, offset, kind);
        let mask = sizing.mask();
        let address = sizing.value & !0xF;
        drop(sizing);
        if mask == 0 {
            return Err(BarError::Absent { slot });
        }
        let size = (!mask).wrapping_add(1);
        if !size.is_power_of_two() {
            return Err(BarError::Mask { slot, mask });
        }
        check_place(slot, kind, address, size)?;
        Ok(Self { slot, kind, prefetchable: raw & 0b1000 != 0, address: PhysAddr::new(address), size })
    }

    /// Gives the BAR another address, where nothing else may answer. Decode is off for a moment: nothing may use the device
    /// meanwhile, nor a mapping of the old address afterwards.
    ///
    /// # Errors
    /// The address is no place for this BAR ([`BarError::Unassigned`], [`BarError::Unaligned`]), or the device does not keep
    /// it ([`BarError::NotTaken`]).
    pub fn move_to(
        self,
        config: &impl ConfigAccess,
        function: PciAddress,
        address: PhysAddr,
    ) -> Result<Self, BarError> {
        let Self { slot, kind, size, .. } = self;
        let wanted = address.as_u64();
        check_place(slot, kind, wanted, size)?;
        let mut place = Sizing::begin(config, function, BAR0 + 4 * u16::from(slot), kind);
        // What is put when it is dropped, before decode comes on again.
        place.value = place.value & 0xF | wanted;
        drop(place);
        let moved = Self::read(config, function, slot)?;
        if moved.address == address { Ok(moved) } else { Err(BarError::NotTaken { slot, address: wanted }) }
    }

    /// The BAR, if it has at least this size.
    ///
    /// # Errors
    /// [`BarError::TooSmall`].
    pub fn at_least(self, need: u64) -> Result<Self, BarError> {
        let Self { slot, size, .. } = self;
        if size < need { Err(BarError::TooSmall { slot, size, need }) } else { Ok(self) }
    }

    /// The BAR, if it is a 64-bit one.
    ///
    /// # Errors
    /// [`BarError::Not64Bit`].
    pub fn wide(self) -> Result<Self, BarError> {
        match self.kind {
            BarKind::Memory64 => Ok(self),
            BarKind::Memory32 => Err(BarError::Not64Bit { slot: self.slot }),
        }
    }
}

fn check_place(slot: u8, kind: BarKind, address: u64, size: u64) -> Result<(), BarError> {
    let end = match kind {
        BarKind::Memory32 => 1 << 32,
        BarKind::Memory64 => PHYS_END,
    };
    // All ones are what a reset or an earlier sizing may leave; they run past the end like any wild value.
    if address == 0 || address.checked_add(size).is_none_or(|last| last > end) {
        return Err(BarError::Unassigned { slot, size });
    }
    if !address.is_multiple_of(size) {
        return Err(BarError::Unaligned { slot, address, size });
    }
    Ok(())
}

/// Lets the function answer to memory accesses.
pub fn enable_memory(config: &impl ConfigAccess, function: PciAddress) {
    let command = command(config, function) | CommandRegister::MEMORY_ENABLE;
    set_command(config, function, command);
}

fn command(config: &impl ConfigAccess, function: PciAddress) -> CommandRegister {
    let [low, high, ..] = config.read(function, COMMAND).to_le_bytes();
    CommandRegister::from_bits_retain(u16::from_le_bytes([low, high]))
}

fn set_command(config: &impl ConfigAccess, function: PciAddress, command: CommandRegister) {
    // The status half is written as zeros, which changes nothing in it.
    config.write(function, COMMAND, u32::from(command.bits()));
}

/// A BAR being sized: decode is off and the BAR is out of place until this is dropped.
struct Sizing<'a, C: ConfigAccess> {
    config: &'a C,
    function: PciAddress,
    offset: u16,
    kind: BarKind,
    command: CommandRegister,
    value: u64,
}

impl<'a, C: ConfigAccess> Sizing<'a, C> {
    fn begin(config: &'a C, function: PciAddress, offset: u16, kind: BarKind) -> Self {
        let low = u64::from(config.read(function, offset));
        let value = match kind {
            BarKind::Memory32 => low,
            BarKind::Memory64 => u64::from(config.read(function, offset + 4)) << 32 | low,
        };
        let command = command(config, function);
        let decode = CommandRegister::MEMORY_ENABLE | CommandRegister::IO_ENABLE;
        set_command(config, function, command.difference(decode));
        Self { config, function, offset, kind, command, value }
    }

    /// The address bits that can be written; the upper half of a 32-bit BAR counts as written. 0 for no BAR.
    fn mask(&self) -> u64 {
        self.put(u64::MAX);
        let low = u64::from(self.config.read(self.function, self.offset) & !0xF);
        match self.kind {
            BarKind::Memory32 if low == 0 => 0,
            BarKind::Memory32 => 0xFFFF_FFFF_0000_0000 | low,
            BarKind::Memory64 => u64::from(self.config.read(self.function, self.offset + 4)) << 32 | low,
        }
    }

    fn put(&self, value: u64) {
        self.config.write(self.function, self.offset, value as u32);
        if self.kind == BarKind::Memory64 {
            self.config.write(self.function, self.offset + 4, (value >> 32) as u32);
        }
    }
}

impl<C: ConfigAccess> Drop for Sizing<'_, C> {
    fn drop(&mut self) {
        self.put(self.value);
        set_command(self.config, self.function, self.command);
    }
}
