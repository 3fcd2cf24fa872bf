//! I/O ports, as named constants that are safe to use.
//!
//! A port access is `unsafe` because some devices write to memory when told so. The proof that one does not is made
//! once, where the constant is made; whoever reads or writes it then needs no `unsafe`.

use core::marker::PhantomData;

use x86_64::structures::port::{PortRead, PortWrite};

/// One I/O port of width `T`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Port<T> {
    number: u16,
    width: PhantomData<T>,
}

impl<T> Port<T> {
    /// # Safety
    /// Reading and writing the port with any value must not break memory safety.
    const unsafe fn new(number: u16) -> Self {
        Self { number, width: PhantomData }
    }
}

impl<T: PortRead> Port<T> {
    pub(crate) fn read(self) -> T {
        // SAFETY: harmless by the contract of `new`.
        unsafe { T::read_from_port(self.number) }
    }
}

impl<T: PortWrite> Port<T> {
    pub(crate) fn write(self, value: T) {
        // SAFETY: harmless by the contract of `new`.
        unsafe { T::write_to_port(self.number, value) }
    }
}

/// QEMU's `isa-debug-exit`: a write ends the run.
// SAFETY: ends the machine or does nothing.
pub(crate) const DEBUG_EXIT: Port<u32> = unsafe { Port::new(0xf4) };

/// QEMU's fw_cfg: which item `FW_CFG_DATA` reads.
// SAFETY: selects; the DMA interface has other ports.
pub(crate) const FW_CFG_SELECTOR: Port<u16> = unsafe { Port::new(0x510) };
/// QEMU's fw_cfg: the next byte of the selected item.
// SAFETY: items are read byte by byte; writes are ignored since QEMU 2.4.
pub(crate) const FW_CFG_DATA: Port<u8> = unsafe { Port::new(0x511) };

/// PCI configuration mechanism 1: the address.
// SAFETY: only latches an address.
pub(crate) const PCI_ADDRESS: Port<u32> = unsafe { Port::new(0xcf8) };
/// PCI configuration mechanism 1: the register. Moving a BAR or starting a bus master through it is the business of the
/// `device` crate, whose only writes are BAR sizing with decode off and the command register.
// SAFETY: by what its one user writes, as said above.
pub(crate) const PCI_DATA: Port<u32> = unsafe { Port::new(0xcfc) };

/// The first 8259 interrupt controller: command.
// SAFETY: interrupt routing does not touch memory; every vector has a gate.
pub(crate) const PIC_1_COMMAND: Port<u8> = unsafe { Port::new(0x20) };
/// The first 8259: data.
// SAFETY: as above.
pub(crate) const PIC_1_DATA: Port<u8> = unsafe { Port::new(0x21) };
/// The second 8259: command.
// SAFETY: as above.
pub(crate) const PIC_2_COMMAND: Port<u8> = unsafe { Port::new(0xa0) };
/// The second 8259: data.
// SAFETY: as above.
pub(crate) const PIC_2_DATA: Port<u8> = unsafe { Port::new(0xa1) };

/// 8254 timer: channel 0, which is wired to the first interrupt line.
// SAFETY: a counter.
pub(crate) const PIT_CHANNEL_0: Port<u8> = unsafe { Port::new(0x40) };
/// 8254 timer: channel 2.
// SAFETY: a counter.
pub(crate) const PIT_CHANNEL_2: Port<u8> = unsafe { Port::new(0x42) };
/// 8254 timer: mode and command.
// SAFETY: a counter's mode.
pub(crate) const PIT_COMMAND: Port<u8> = unsafe { Port::new(0x43) };
/// Gate (bit 0) and output (bit 5) of the timer's channel 2, and the loudspeaker (bit 1).
// SAFETY: a gate and a loudspeaker.
pub(crate) const PIT_GATE: Port<u8> = unsafe { Port::new(0x61) };

/// COM1: the next byte that came.
// SAFETY: a byte of the line.
pub(crate) const COM1_DATA: Port<u8> = unsafe { Port::new(0x3f8) };
/// COM1: which events interrupt the CPU.
// SAFETY: interrupts are no memory accesses; every vector has a gate.
pub(crate) const COM1_INTERRUPTS: Port<u8> = unsafe { Port::new(0x3f9) };
/// COM1: how many bytes must have come for an interrupt.
// SAFETY: settings of a queue in the device.
pub(crate) const COM1_FIFO: Port<u8> = unsafe { Port::new(0x3fa) };
/// COM1: what state the line is in.
// SAFETY: status bits.
pub(crate) const COM1_STATUS: Port<u8> = unsafe { Port::new(0x3fd) };
