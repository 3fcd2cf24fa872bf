//! Physical memory below 4 GiB, which the entry code maps at its own addresses.
//!
//! All of the loader's reading and writing of memory that is not its own goes through here.

use farpage_boot::error::LoadError;
use farpage_boot::paging::Memory;

/// The loader's own tables map this much, each address to itself.
pub(crate) const LOADER_REACH: u64 = 4 << 30;

/// The bytes of a structure that the hypervisor left in memory.
pub(crate) fn bytes(phys: u64, len_bytes: u64) -> Result<&'static [u8], LoadError> {
    let end = phys.checked_add(len_bytes).filter(|&end| phys != 0 && end <= LOADER_REACH);
    if end.is_none() {
        return Err(LoadError::OutOfReach { phys });
    }
    // SAFETY: the range is mapped (checked above) and not null. It is not written while the slice lives: the loader
    // writes only to its own image, which holds nothing from the hypervisor, and to the arena, which is chosen to
    // keep clear of the archive and the memory map; the other structures are read before it is used.
    Ok(unsafe { core::slice::from_raw_parts(phys as *const u8, len_bytes as usize) })
}

/// As [`bytes`], of a length known to the compiler.
pub(crate) fn array<const N: usize>(phys: u64) -> Result<&'static [u8; N], LoadError> {
    bytes(phys, N as u64)?.first_chunk().ok_or(LoadError::OutOfReach { phys })
}

/// Free memory, written by its physical address.
pub(crate) struct Physical;

impl Physical {
    /// Writes a value.
    ///
    /// # Safety
    /// `phys` is below [`LOADER_REACH`], aligned for `T`, and the memory there is the caller's own.
    pub(crate) unsafe fn write_value<T>(phys: u64, value: T) {
        // SAFETY: mapped, aligned and exclusive, as the caller vouches.
        unsafe { (phys as *mut T).write(value) };
    }
}

/// All addresses come from the arena: below [`LOADER_REACH`], free RAM, owned by the tables being built.
impl Memory for Physical {
    fn entry(&self, table: u64, index: usize) -> u64 {
        let entry = (table as *const u64).wrapping_add(index & 511);
        // SAFETY: a table from the arena is mapped, page-aligned and initialised (zeroed when it was allocated).
        unsafe { entry.read() }
    }

    fn set_entry(&mut self, table: u64, index: usize, value: u64) {
        let entry = (table as *mut u64).wrapping_add(index & 511);
        // SAFETY: as for `entry`, and no reference into a table exists. The CPU does not walk these tables yet.
        unsafe { entry.write(value) };
    }

    fn zero(&mut self, phys: u64, len_bytes: u64) {
        // SAFETY: the arena has just given this range out: mapped RAM to which nothing refers.
        unsafe { (phys as *mut u8).write_bytes(0, len_bytes as usize) };
    }

    fn write(&mut self, phys: u64, bytes: &[u8]) {
        // SAFETY: source and destination are mapped, and do not overlap: the arena keeps clear of the archive, which
        // the bytes are from.
        unsafe { (phys as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}
