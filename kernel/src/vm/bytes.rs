//! Bytes of pages of RAM, for who reads and writes files.

use core::ptr;

use farpage_mm::{FolioRef, PAGE_SIZE};

use super::{Machine, count_bulk, window_of};

/// The kernel's address of byte `at` of a page, of which `len` bytes are meant.
fn window(page: &FolioRef<Machine>, at: usize, len: usize) -> u64 {
    assert!(at + len <= PAGE_SIZE as usize, "bytes of one page");
    count_bulk(len as u64 / 8);
    window_of(page.frame()) + at as u64
}

/// Copies bytes out of a page of RAM, from byte `at` of it on.
pub(crate) fn read_bytes(page: &FolioRef<Machine>, at: usize, to: &mut [u8]) {
    let from = window(page, at, to.len()) as *const u8;
    // SAFETY: the bytes lie in one frame, which the window shows and the handle keeps; the target is an exclusive slice. Programs
    // may write the page meanwhile: no reference to it is made.
    unsafe { ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
}

/// Copies bytes into a page of RAM, from byte `at` of it on.
pub(crate) fn write_bytes(page: &FolioRef<Machine>, at: usize, from: &[u8]) {
    let to = window(page, at, from.len()) as *mut u8;
    // SAFETY: as in `read_bytes`, with the parts exchanged.
    unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
}
