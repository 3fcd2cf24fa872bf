//! QEMU: a machine as a value, its command line, and the running process.
//!
//! The value is checked before anything starts, so that a wrong number is one sentence from us and not a page from
//! QEMU. Every run has a deadline, at which it is
//! asked what it is doing. Success is what the guest says through the exit device, never status 0: a guest
//! that triple-faults ends QEMU with 0.

mod machine;
pub mod qmp;
mod run;
mod stuck;
#[cfg(test)]
mod tests;

pub use ktest::stream::Ending;
pub(crate) use machine::shell_quoted;
pub use machine::{Accel, Device, GuestCommand, Qemu, QmpPlace};
pub(crate) use run::{KERNELS, LAST_WORD};
pub use run::{Line, Run, ending_of_status};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
