//! `run=hang`: a kernel that is stuck, for the tests of what the runner says of such a one (`tests/src/stuck.rs`).

use crate::println;

/// Hangs, two calls deep.
#[inline(never)]
pub(crate) fn run() -> ! {
    println!("this run never ends");
    spins_with_interrupts_off()
}

/// The name that the runner has to find.
#[inline(never)]
fn spins_with_interrupts_off() -> ! {
    x86_64::instructions::interrupts::disable();
    loop {
        core::hint::spin_loop();
    }
}
