//! COM1, for the one sentence that a failed boot has to say.

use core::arch::asm;
use core::fmt::{Arguments, Write};

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMIT_EMPTY: u8 = 1 << 5;
/// QEMU's `isa-debug-exit`, at the port that the runner gives it.
const DEBUG_EXIT: u16 = 0xf4;
/// The runner reads QEMU's status `2 * 0x12 + 1` as a panic.
const EXIT_PANIC: u8 = 0x12;

/// Says why the boot failed, and ends the machine.
pub(crate) fn fail(why: Arguments<'_>) -> ! {
    // Writing to COM1 cannot fail.
    let _ = writeln!(Com1, "farpage-boot: {why}");
    // SAFETY: ends the emulator; without that device the write goes nowhere.
    unsafe { out_u8(DEBUG_EXIT, EXIT_PANIC) };
    loop {
        // SAFETY: interrupts are off, so this stops the CPU for good; nothing else depends on it.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

struct Com1;

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                send(b'\r');
            }
            send(byte);
        }
        Ok(())
    }
}

fn send(byte: u8) {
    // SAFETY: reading the line status of the first serial port has no effect that anything depends on.
    while unsafe { in_u8(LINE_STATUS) } & TRANSMIT_EMPTY == 0 {}
    // SAFETY: the transmit register of the first serial port; the loader is its only user.
    unsafe { out_u8(COM1, byte) };
}

/// # Safety
/// Writing `value` to `port` must not break anything that others rely on.
unsafe fn out_u8(port: u16, value: u8) {
    // SAFETY: as the caller vouches.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// # Safety
/// Reading `port` must not break anything that others rely on.
unsafe fn in_u8(port: u16) -> u8 {
    let value;
    // SAFETY: as the caller vouches.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}
