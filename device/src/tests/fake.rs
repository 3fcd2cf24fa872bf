//! A PCI bus in a table, as strict as the rules: whoever moves a BAR while decode is on is written down.

use std::{
    boxed::Box,
    cell::{Cell, RefCell},
    collections::BTreeMap,
    format,
    string::String,
    vec,
    vec::Vec,
};

use core::ptr::NonNull;

use pci_types::PciAddress;

use crate::{
    mmio::{DeviceMemory, Window},
    pci::{ConfigAccess, PortIo},
};

pub(super) const MEMORY_AND_IO: u32 = 0b11;

/// One function: its header, and which bits of it can be written.
#[derive(Clone)]
pub(super) struct FakeFunction {
    pub(super) words: [u32; 64],
    writable: [u32; 64],
    /// Bits of BARs that can be written as well, except by all ones: such a BAR can lie unaligned.
    loose: u32,
}

impl FakeFunction {
    pub(super) fn new(vendor: u16, device: u16) -> Self {
        let (mut words, mut writable) = ([0; 64], [0; 64]);
        words[0] = u32::from(device) << 16 | u32::from(vendor);
        words[1] = 0xF010_0000 | MEMORY_AND_IO; // status bits that a write of ones would clear; decode on
        writable[1] = 0x0000_0547;
        Self { words, writable, loose: 0 }
    }

    pub(super) fn class(mut self, base: u8, sub: u8) -> Self {
        self.words[2] = u32::from(base) << 24 | u32::from(sub) << 16;
        self
    }

    pub(super) fn multifunction(mut self) -> Self {
        self.words[3] |= 1 << 23;
        self
    }

    pub(super) fn bridge_to(mut self, secondary: u8) -> Self {
        self.words[3] |= 1 << 16;
        self.words[6] = u32::from(secondary) << 8;
        self.class(0x06, 0x04)
    }

    pub(super) fn command(mut self, command: u32) -> Self {
        self.words[1] = self.words[1] & 0xFFFF_0000 | command;
        self
    }

    /// Any register, not writable.
    pub(super) fn word(mut self, offset: usize, value: u32) -> Self {
        self.words[offset / 4] = value;
        self
    }

    pub(super) fn bar32(mut self, slot: usize, address: u32, size: u32) -> Self {
        self.words[4 + slot] = address;
        self.writable[4 + slot] = (!(size - 1)) & !0xF;
        self
    }

    pub(super) fn bar64(mut self, slot: usize, address: u64, size: u64) -> Self {
        let mask = !(size - 1) & !0xF;
        self.words[4 + slot] = address as u32 | 0b1100;
        self.words[5 + slot] = (address >> 32) as u32;
        self.writable[4 + slot] = mask as u32;
        self.writable[5 + slot] = (mask >> 32) as u32;
        self
    }

    /// Which bits of a BAR slot can be written.
    pub(super) fn mask(mut self, slot: usize, mask: u32) -> Self {
        self.writable[4 + slot] = mask;
        self
    }

    /// A broken device: its BARs take addresses that are no multiple of their size.
    pub(super) fn crooked(mut self) -> Self {
        self.loose = 0x00FF_FFF0;
        self
    }

    /// A function like QEMU's ivshmem-plain.
    pub(super) fn ivshmem(address: u64, size: u64) -> Self {
        Self::new(0x1AF4, 0x1110).class(0x05, 0x00).bar32(0, 0xFEBF_0000, 256).bar64(2, address, size)
    }
}

/// All of configuration space.
#[derive(Default)]
pub(super) struct FakeBus {
    functions: RefCell<BTreeMap<PciAddress, FakeFunction>>,
    pub(super) violations: RefCell<Vec<String>>,
    pub(super) sizings: Cell<usize>,
}

impl FakeBus {
    pub(super) fn with(self, bus: u8, device: u8, function: u8, what: FakeFunction) -> Self {
        self.functions.borrow_mut().insert(PciAddress::new(0, bus, device, function), what);
        self
    }

    pub(super) fn words(&self, address: PciAddress) -> [u32; 64] {
        self.functions.borrow()[&address].words
    }
}

impl ConfigAccess for FakeBus {
    fn read(&self, address: PciAddress, offset: u16) -> u32 {
        match self.functions.borrow().get(&address) {
            Some(function) => function.words[usize::from(offset) / 4],
            None => u32::MAX,
        }
    }

    fn write(&self, address: PciAddress, offset: u16, value: u32) {
        let mut functions = self.functions.borrow_mut();
        let Some(function) = functions.get_mut(&address) else { return };
        let word = usize::from(offset) / 4;
        let mut writable = function.writable[word];
        if (4..10).contains(&word) {
            // What a broken BAR keeps beyond its mask, it does not show while it is sized.
            function.words[word] &= !function.loose;
            if value != u32::MAX {
                writable |= function.loose;
            }
            self.sizings.set(self.sizings.get() + usize::from(value == u32::MAX));
            if function.words[1] & MEMORY_AND_IO != 0 {
                self.violations.borrow_mut().push(format!("{address}: BAR written with decode on"));
            }
        }
        if word == 1 && value >> 16 != 0 {
            self.violations.borrow_mut().push(format!("{address}: status bits cleared"));
        }
        function.words[word] = function.words[word] & !writable | value & writable;
    }
}

/// The two ports, in front of a fake bus.
pub(super) struct FakePorts<'a> {
    pub(super) bus: &'a FakeBus,
    pub(super) selected: u32,
}

impl FakePorts<'_> {
    fn target(&self) -> (PciAddress, u16) {
        assert!(self.selected >> 31 == 1, "the enable bit is set");
        let [offset, function, bus, _] = self.selected.to_le_bytes();
        (PciAddress::new(0, bus, function >> 3, function & 7), u16::from(offset))
    }
}

impl PortIo for FakePorts<'_> {
    fn read_u32(&mut self, port: u16) -> u32 {
        assert_eq!(port, 0xCFC);
        let (address, offset) = self.target();
        self.bus.read(address, offset)
    }

    fn write_u32(&mut self, port: u16, value: u32) {
        match port {
            0xCF8 => self.selected = value,
            0xCFC => {
                let (address, offset) = self.target();
                self.bus.write(address, offset, value);
            }
            other => panic!("no such port: {other:#x}"),
        }
    }
}

/// Memory for a window. It is leaked: a window is for ever.
fn leak(words: usize) -> NonNull<u8> {
    NonNull::from(Box::leak(vec![0u64; words].into_boxed_slice())).cast()
}

#[expect(unsafe_code, reason = "a fake mapping has to be vouched for like a real one")]
pub(super) fn window(words: usize) -> Window {
    // SAFETY: the memory was allocated for this window, is leaked, and no reference to it is left.
    unsafe { Window::new(leak(words), words as u64 * 8) }
}

#[expect(unsafe_code, reason = "a fake mapping has to be vouched for like a real one")]
pub(super) fn memory(words: usize) -> DeviceMemory {
    // SAFETY: the memory was allocated for this window, is leaked, and no reference to it is left.
    unsafe { DeviceMemory::new(leak(words), words as u64 * 8) }
}
