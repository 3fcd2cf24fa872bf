//! What ioctls of devices share: their numbers, and the structures of words that they take.

use core::mem::size_of;

use farpage_mm::PAGE_SIZE;

use crate::arch::x86_64::uaccess::{copy_words_from_user, copy_words_to_user};
use crate::linux::errno::Errno;

/// The number of an ioctl that reads and writes `words` words (`_IOWR`).
pub(super) const fn iowr(kind: u8, number: u32, words: usize) -> u32 {
    3 << 30 | ((words * size_of::<u64>()) as u32) << 16 | (kind as u32) << 8 | number
}

/// Takes a structure of words from a program.
pub(super) fn take<const N: usize>(arg: u64) -> Result<[u64; N], Errno> {
    let mut words = [0; N];
    copy_words_from_user(&mut words, arg)?;
    Ok(words)
}

/// Gives it back.
pub(super) fn give(arg: u64, words: &[u64]) -> Result<u64, Errno> {
    copy_words_to_user(arg, words)?;
    Ok(0)
}

/// Where page `page` of a program's memory at `start` lies; a fault where addresses end.
pub(super) fn page_at(start: u64, page: u64) -> Result<u64, Errno> {
    page.checked_mul(PAGE_SIZE).and_then(|offset| start.checked_add(offset)).ok_or(Errno::EFAULT)
}
