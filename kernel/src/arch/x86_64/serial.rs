//! The first serial port.

use uart_16550::backend::PioBackend;
use uart_16550::{BaudRate, Config, InitError, Uart16550};

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
