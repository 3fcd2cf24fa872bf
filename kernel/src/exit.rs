//! The end of a run.

use ktest::exit::Exit;

use crate::arch::x86_64::{entry, port};

/// Ends the run: QEMU exits with a status that says how.
pub(crate) fn exit(how: Exit) -> ! {
    port::DEBUG_EXIT.write(u32::from(how.code()));
    // A machine without the exit device stays here.
    entry::halt()
}

/// Ends the run with one sentence about what is wrong.
pub(crate) fn fail(why: &dyn core::fmt::Display) -> ! {
    crate::println!("farpage: {why}");
    exit(Exit::Failed)
}
