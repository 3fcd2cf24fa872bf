//! The TLB of this CPU. Invalidating is always allowed: at worst it costs time.

use x86_64::registers::control::{Cr3, Cr4, Cr4Flags};
use x86_64::structures::paging::{PhysFrame, Size4KiB};
use x86_64::{VirtAddr, instructions};

/// Drops the translation of one address, of any page size, global or not, and the paging-structure caches.
#[inline(always)]
pub(crate) fn invlpg(address: VirtAddr) {
    instructions::tlb::flush(address);
}

/// Drops all translations but global ones.
#[inline(always)]
pub(crate) fn flush() {
    instructions::tlb::flush_all();
}

/// Drops all translations, global ones too, by taking PGE off and on.
pub(crate) fn flush_global() {
    let cr4 = Cr4::read();
    // SAFETY: without PGE, translations are only kept for less long.
    unsafe { Cr4::write(cr4 & !Cr4Flags::PAGE_GLOBAL) };
    // SAFETY: puts back what was.
    unsafe { Cr4::write(cr4) };
}

/// The page table that is loaded.
pub(crate) fn root() -> PhysFrame<Size4KiB> {
    Cr3::read().0
}

/// Loads a page table; drops all translations but global ones.
///
/// # Safety
/// Its kernel half is that of [`super::paging::fill_kernel_half`], and the table outlives its being loaded.
#[inline]
pub(crate) unsafe fn load_root(root: PhysFrame<Size4KiB>) {
    // SAFETY: the contract says that all kernel mappings stay as they are.
    unsafe { Cr3::write(root, Cr3::read().1) };
}
