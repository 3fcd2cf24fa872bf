//! Memory types: the page attribute table, and what the MTRRs say below it.
//!
//! Reset gives the PAT no write-combining slot. Slots 0 to 3 stay as they are, so that mappings made before mean the
//! same after; slot 4 becomes WC. A slot is chosen by three bits of an entry, of which the highest, PAT, is at bit 7 of
//! a PTE and at bit 12 of a larger leaf.

use kernel_logic::cover::PageSize;
use x86_64::registers::model_specific::Msr;

const IA32_PAT: u32 = 0x277;
const IA32_MTRRCAP: u32 = 0xfe;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const IA32_MTRR_PHYSBASE0: u32 = 0x200;

/// The type of a mapping; the number is its slot in the PAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum MemoryType {
    /// Cached; for RAM, and for device memory that is RAM underneath.
    WriteBack = 0,
    /// Cached for reads.
    WriteThrough = 1,
    /// Uncached, unless an MTRR says write-combining.
    UncachedMinus = 2,
    /// Uncached and strongly ordered: device registers.
    Uncached = 3,
    /// Uncached, writes collected: bulk writes to device memory. Needs `sfence` before anything is published.
    WriteCombining = 4,
}

/// SDM volume 3, table 12-10: the encodings of the types in the PAT and the MTRRs.
const UC: u64 = 0;
const WC: u64 = 1;
const WT: u64 = 4;
const WP: u64 = 5;
const WB: u64 = 6;
const UC_MINUS: u64 = 7;

/// Slot 0 lowest.
const PAT: u64 = {
    let slots = [WB, WT, UC_MINUS, UC, WC, WP, UC_MINUS, UC];
    let (mut value, mut n) = (0, 0);
    while n < slots.len() {
        value |= slots[n] << (8 * n);
        n += 1;
    }
    value
};

const PWT: u64 = 1 << 3;
const PCD: u64 = 1 << 4;
const PAT_PTE: u64 = 1 << 7;
const PAT_LARGE: u64 = 1 << 12;

impl MemoryType {
    /// The slot in the PAT.
    pub(crate) const fn pat_index(self) -> u8 {
        self as u8
    }

    /// The bits of a leaf of this size.
    pub(crate) const fn leaf_bits(self, size: PageSize) -> u64 {
        let slot = self.pat_index();
        let pat = match size {
            PageSize::Size4KiB => PAT_PTE,
            PageSize::Size2MiB | PageSize::Size1GiB => PAT_LARGE,
        };
        (if slot & 1 != 0 { PWT } else { 0 })
            | (if slot & 2 != 0 { PCD } else { 0 })
            | (if slot & 4 != 0 { pat } else { 0 })
    }
}

/// Programs the PAT of this CPU.
pub(super) fn init() {
    let mut pat = Msr::new(IA32_PAT);
    write_back_caches();
    // SAFETY: the CPU has a PAT, all slots are valid types, and slots 0 to 3, the only ones in use, keep their types.
    unsafe { pat.write(PAT) };
    write_back_caches();
    super::tlb::flush_global();
}

fn write_back_caches() {
    // SAFETY: writes caches back and empties them; no effect on what memory holds.
    unsafe { core::arch::asm!("wbinvd", options(nostack, preserves_flags)) };
}

/// May `start..end` be cached, as far as the MTRRs are concerned? Asked for device memory, always above 1 MiB.
pub(crate) fn mtrr_allows_caching(start: u64, end: u64) -> bool {
    let default = read(IA32_MTRR_DEF_TYPE);
    if default & (1 << 11) == 0 {
        return false; // MTRRs off: everything is uncached
    }
    let count = read(IA32_MTRRCAP) as u32 & 0xff;
    let phys_mask = (1_u64 << super::features::get().phys_bits) - 1;
    let ranges = (0..count).filter_map(|n| {
        let base = read(IA32_MTRR_PHYSBASE0 + 2 * n);
        let mask = read(IA32_MTRR_PHYSBASE0 + 2 * n + 1);
        let valid = mask & (1 << 11) != 0;
        let first = base & phys_mask & !0xfff;
        let len = (!mask & phys_mask & !0xfff) + 0x1000;
        valid.then_some((first, first + len, base & 0xff))
    });
    let mut cached = default & 0xff == WB;
    for (first, end_of_range, kind) in ranges {
        if first < end && start < end_of_range {
            if kind != WB {
                return false;
            }
            cached |= first <= start && end <= end_of_range;
        }
    }
    cached
}

fn read(msr: u32) -> u64 {
    // SAFETY: only the registers above are read, which every CPU with a PAT has.
    unsafe { Msr::new(msr).read() }
}

crate::ktest! {
    fn the_pat_has_a_write_combining_slot() {
        let pat = read(IA32_PAT);
        let slot = |kind: MemoryType| pat >> (8 * kind.pat_index()) & 0xff;
        crate::check_eq!(slot(MemoryType::WriteCombining), WC);
        crate::check_eq!(slot(MemoryType::WriteBack), WB);
        crate::check_eq!(slot(MemoryType::Uncached), UC);
        crate::check_eq!(slot(MemoryType::WriteThrough), WT);
        crate::check_eq!(slot(MemoryType::UncachedMinus), UC_MINUS);
    }
}

crate::ktest! {
    fn the_pat_bit_stands_where_the_level_has_it() {
        crate::check_eq!(MemoryType::WriteCombining.leaf_bits(PageSize::Size4KiB), 1 << 7);
        crate::check_eq!(MemoryType::WriteCombining.leaf_bits(PageSize::Size2MiB), 1 << 12);
        crate::check_eq!(MemoryType::Uncached.leaf_bits(PageSize::Size2MiB), PWT | PCD);
        crate::check_eq!(MemoryType::WriteBack.leaf_bits(PageSize::Size4KiB), 0);
    }
}
