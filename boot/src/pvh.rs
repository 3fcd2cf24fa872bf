//! The PVH start info: what the hypervisor says about the machine.
//!
//! Decoded from bytes rather than by pointer casts, so that nothing here depends on alignment or trust: every
//! length is checked against the slice the caller could reach.

use crate::error::LoadError;
use crate::memmap::Entry;

const MAGIC: u32 = 0x336e_c578;

/// Bytes of a start info with a memory map (version 1).
pub const START_INFO_LEN: usize = 56;
/// Bytes of a module list entry.
pub const MODULE_LEN: usize = 32;
/// Bytes of a memory map entry.
pub const MEMMAP_ENTRY_LEN: usize = 24;

/// The fields of `hvm_start_info` that a boot needs. All addresses are physical.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartInfo {
    /// Number of modules.
    pub nr_modules: u32,
    /// The module list.
    pub modlist_paddr: u64,
    /// The ACPI root pointer; zero if there is none.
    pub rsdp_paddr: u64,
    /// The memory map.
    pub memmap_paddr: u64,
    /// Entries in the memory map.
    pub memmap_entries: u32,
}

impl StartInfo {
    /// Decodes a start info.
    ///
    /// # Errors
    /// [`LoadError::NotPvh`] without the magic, [`LoadError::NoMemoryMap`] before version 1.
    pub fn parse(bytes: &[u8; START_INFO_LEN]) -> Result<Self, LoadError> {
        let magic = u32_at(bytes, 0);
        if magic != MAGIC {
            return Err(LoadError::NotPvh { magic });
        }
        let info = Self {
            nr_modules: u32_at(bytes, 12),
            modlist_paddr: u64_at(bytes, 16),
            rsdp_paddr: u64_at(bytes, 32),
            memmap_paddr: u64_at(bytes, 40),
            memmap_entries: u32_at(bytes, 48),
        };
        if u32_at(bytes, 4) == 0 || info.memmap_paddr == 0 || info.memmap_entries == 0 {
            return Err(LoadError::NoMemoryMap);
        }
        Ok(info)
    }
}

/// A module: where the hypervisor put the file of `-initrd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Module {
    /// Physical address.
    pub paddr: u64,
    /// Length.
    pub len_bytes: u64,
}

impl Module {
    /// Decodes a module list entry.
    #[must_use]
    pub fn parse(bytes: &[u8; MODULE_LEN]) -> Self {
        Self { paddr: u64_at(bytes, 0), len_bytes: u64_at(bytes, 8) }
    }
}

/// The entries of a memory map, decoded as they are walked.
pub fn memmap_entries(bytes: &[u8]) -> impl Iterator<Item = Entry> + Clone {
    bytes.chunks_exact(MEMMAP_ENTRY_LEN).map(|entry| {
        let start = u64_at(entry, 0);
        Entry { start, end: start.saturating_add(u64_at(entry, 8)), kind: u32_at(entry, 16) }
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start_info(magic: u32, version: u32) -> [u8; START_INFO_LEN] {
        let mut bytes = [0; START_INFO_LEN];
        bytes[0..4].copy_from_slice(&magic.to_le_bytes());
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        bytes[12..16].copy_from_slice(&1u32.to_le_bytes());
        bytes[16..24].copy_from_slice(&0x1000u64.to_le_bytes());
        bytes[32..40].copy_from_slice(&0xf_0000u64.to_le_bytes());
        bytes[40..48].copy_from_slice(&0x2000u64.to_le_bytes());
        bytes[48..52].copy_from_slice(&7u32.to_le_bytes());
        bytes
    }

    #[test]
    fn decodes_the_fields() {
        let info = StartInfo::parse(&start_info(MAGIC, 1)).unwrap();
        let expected = StartInfo {
            nr_modules: 1,
            modlist_paddr: 0x1000,
            rsdp_paddr: 0xf_0000,
            memmap_paddr: 0x2000,
            memmap_entries: 7,
        };
        assert_eq!(info, expected);
    }

    #[test]
    fn refuses_other_protocols_and_old_versions() {
        assert_eq!(StartInfo::parse(&start_info(1, 1)), Err(LoadError::NotPvh { magic: 1 }));
        assert_eq!(StartInfo::parse(&start_info(MAGIC, 0)), Err(LoadError::NoMemoryMap));
    }

    #[test]
    fn memory_map_entries_saturate_instead_of_wrapping() {
        let mut bytes = [0xff; 2 * MEMMAP_ENTRY_LEN];
        bytes[0..8].copy_from_slice(&0x1000u64.to_le_bytes());
        bytes[8..16].copy_from_slice(&0x2000u64.to_le_bytes());
        bytes[16..20].copy_from_slice(&1u32.to_le_bytes());
        let entries: Vec<_> = memmap_entries(&bytes).collect();
        assert_eq!(entries[0], Entry { start: 0x1000, end: 0x3000, kind: 1 });
        assert_eq!(entries[1].end, u64::MAX);
    }
}
