//! Limits of a process (`getrlimit`): kept and inherited. Of stack, descriptors and address space there is as much as is said here;
//! the others limit nothing.

use super::file::MAX_FILES;
use super::memory::STACK_LEN;
use crate::arch::heap;

/// Resources (`asm-generic/resource.h`).
pub(super) const COUNT: usize = 16;
const STACK: usize = 3;
const CORE: usize = 4;
const NPROC: usize = 6;
const NOFILE: usize = 7;

/// Soft and hard limit of each resource.
#[derive(Clone, Debug)]
pub(super) struct Limits(pub(super) [(u64, u64); COUNT]);

impl Default for Limits {
    fn default() -> Self {
        let mut limits = [(u64::MAX, u64::MAX); COUNT];
        limits[STACK].0 = STACK_LEN;
        limits[CORE].0 = 0;
        let threads = crate::arch::x86_64::stacks::MAX_THREADS as u64;
        limits[NPROC] = (threads, threads);
        limits[NOFILE] = (MAX_FILES as u64, MAX_FILES as u64);
        Self(limits)
    }
}

/// Is there room on the kernel's heap for something more that a program wants kept? An eighth of it is the kernel's own: what is asked
/// of it between two such questions must not fail.
pub(super) fn have_room() -> bool {
    have_room_for(0)
}

/// As [`have_room`], for so many bytes.
pub(super) fn have_room_for(bytes: usize) -> bool {
    let (used, size) = heap::usage();
    size - used > size / 8 + bytes
}
