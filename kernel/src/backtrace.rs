//! Backtraces by frame pointers.
//!
//! Each frame is looked up in the page tables before it is read: a broken chain ends the trace, not the report. The
//! kernel prints addresses; the runner, which has the debug info, makes names and lines of them.

use core::fmt::Write;

use crate::arch::x86_64::{image, walk};

const MAX_FRAMES: usize = 48;

/// Prints the instruction and the chain of frames that begins at `rbp`, one `@pc` record for each.
pub(crate) fn write(out: &mut dyn Write, rip: Option<u64>, rbp: u64) -> core::fmt::Result {
    writeln!(out, "backtrace:")?;
    let returns = Frames { rbp };
    for (n, addr) in rip.into_iter().chain(returns).take(MAX_FRAMES).enumerate() {
        ktest::record!(&mut *out, "pc", n = n, addr = format_args!("{addr:#x}"))?;
    }
    Ok(())
}

/// The return addresses of a chain of frames.
struct Frames {
    rbp: u64,
}

impl Iterator for Frames {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let address = walk::read_kernel_word(self.rbp.checked_add(8)?)?;
        self.rbp = walk::read_kernel_word(self.rbp)?;
        image::text().contains(&address).then_some(address)
    }
}

crate::ktest! {
    fn a_backtrace_ends_where_the_chain_does() {
        let own = Frames { rbp: crate::arch::x86_64::entry::frame_pointer() };
        let depth = own.take(MAX_FRAMES).count();
        crate::check!(depth > 0 && depth < MAX_FRAMES, "{depth} frames");
        for wild in [0, 8, 0xdead_beef_0000_0000, 0xffff_ffff_ffff_fff8, u64::MAX] {
            crate::check_eq!(Frames { rbp: wild }.count(), 0, "from {wild:#x}");
        }
    }
}
