//! The first serial port: text goes out by polling, bytes come in by interrupt.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use ::x86_64::instructions::interrupts;
use uart_16550::backend::PioBackend;
use uart_16550::{BaudRate, Config, InitError, Uart16550};

use super::{apic, port};
use crate::task::Event;

/// The serial port, ready to send.
pub(crate) type Serial = Uart16550<PioBackend>;

const COM1: u16 = 0x3f8;

/// Sets COM1 up.
///
/// # Errors
/// There is none.
pub(crate) fn open() -> Result<Serial, InitError> {
    // SAFETY: the eight ports from 0x3f8 on are COM1 on every PC, and nothing they do touches memory.
    let uart = unsafe { Uart16550::new_port(COM1) };
    let mut uart = uart.expect("0x3f8 is a valid base");
    uart.init(Config { baud_rate: BaudRate::Baud115200, ..Config::DEFAULT })?;
    Ok(uart)
}

/// COM1's line of the first 8259.
const LINE: u8 = super::trap::vector::COM1 - super::trap::vector::PIC;

/// Lets bytes that come interrupt the CPU, each at once. After [`open`]; with interrupts off.
pub(crate) fn listen() {
    const FIFO_ON: u8 = 1; // an interrupt at the first byte; what has come already stays
    const RECEIVED: u8 = 1;
    apic::stop_pit();
    port::COM1_FIFO.write(FIFO_ON);
    port::COM1_INTERRUPTS.write(RECEIVED);
    apic::unmask_8259(LINE);
}

/// Bit of the status: a byte has come.
const READY: u8 = 1;

/// A byte that came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    pub(crate) byte: u8,
    /// Bytes before it were lost: they came faster than they were taken.
    pub(crate) after_loss: bool,
}

/// Sleeps until a byte has come. With interrupts off, and after [`listen`].
///
/// The CPU takes interrupts only while it is halted here, so whatever runs between two calls is measured undisturbed. What
/// comes meanwhile waits in the device's queue of 16 bytes, and beyond that with the sender.
pub(crate) fn receive() -> Received {
    const OVERRUN: u8 = 1 << 1;
    let mut after_loss = false;
    loop {
        let status = port::COM1_STATUS.read(); // reading it clears the overrun
        after_loss |= status & OVERRUN != 0;
        if status & READY != 0 {
            return Received { byte: port::COM1_DATA.read(), after_loss };
        }
        // A byte that comes between the look and the halt finds interrupts off: it wakes the halt, which lets them in.
        interrupts::enable_and_hlt();
        interrupts::disable();
    }
}

/// A byte has come that somebody expected ([`expect_byte`]).
pub(crate) static BYTE_CAME: Event = Event::new();
/// Somebody does: its interrupt is on.
static EXPECTED: AtomicBool = AtomicBool::new(false);

/// Has a byte come?
pub(crate) fn has_byte() -> bool {
    port::COM1_STATUS.read() & READY != 0
}

/// A byte that has come.
pub(crate) fn take_byte() -> Option<u8> {
    has_byte().then(|| port::COM1_DATA.read())
}

/// The next byte, or one that is there already, interrupts the CPU once, and [`BYTE_CAME`] happens.
pub(crate) fn expect_byte() {
    interrupts::without_interrupts(|| {
        if !EXPECTED.swap(true, Relaxed) {
            listen();
        }
    });
}

/// The port's interrupt. Bytes that nobody takes at once would interrupt on and on: so it is off until it is wanted again.
pub(super) fn interrupted() {
    if EXPECTED.swap(false, Relaxed) {
        port::COM1_INTERRUPTS.write(0);
        BYTE_CAME.happens();
    }
}
