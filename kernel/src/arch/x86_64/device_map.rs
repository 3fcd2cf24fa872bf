//! Mapping device memory, wherever it lies, with a memory type of its choice.
//!
//! Two mappings of one frame with different types are undefined behaviour of the hardware, and TCG shows nothing of it.
//! So every range mapped is remembered with its type, a second mapping must agree, and RAM, which the direct map holds
//! write-back, is refused.

use core::fmt;

use kernel_logic::PAGE_SIZE;
use kernel_logic::cover::{PageSize, cover};
use kernel_logic::ranges::FrameList;
use spin::Mutex;
use x86_64::VirtAddr;

use super::features;
use super::memtype::{self, MemoryType};
use super::paging::{self, DEVICE_WINDOW, bits};
use crate::bootmem;

/// Tables set aside for device mappings. A BAR of 1 GiB aligned to 2 MiB takes two.
const TABLES: u64 = 64;
/// How many mappings there may be.
const MAX_MAPPINGS: usize = 64;

/// Why device memory was not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapDeviceError {
    /// No bytes at all.
    Empty,
    /// The range ends beyond what the CPU can address.
    BeyondPhysical {
        /// One past its last byte.
        end: u64,
        /// One past the last physical address.
        limit: u64,
    },
    /// There is RAM in the range, which is mapped already.
    IsRam {
        /// The first byte of RAM.
        at: u64,
    },
    /// A part is mapped with another type.
    TypeConflict {
        /// The range mapped before.
        start: u64,
        /// Its type.
        has: MemoryType,
        /// The type asked for.
        wants: MemoryType,
    },
    /// Caching was asked for where the MTRRs forbid it.
    Uncacheable {
        /// The range.
        start: u64,
        /// One past its end.
        end: u64,
    },
    /// No tables are left.
    OutOfTables,
    /// No place to remember another mapping.
    TooManyMappings,
}

impl fmt::Display for MapDeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty => f.write_str("device memory of no bytes cannot be mapped"),
            Self::BeyondPhysical { end, limit } => {
                write!(f, "device memory ends at {end:#x}, but this CPU addresses only {limit:#x} bytes")
            }
            Self::IsRam { at } => write!(f, "device memory cannot be mapped at {at:#x}, which is RAM"),
            Self::TypeConflict { start, has, wants } => {
                write!(
                    f,
                    "device memory at {start:#x} is mapped {has:?} and cannot be mapped {wants:?} as well"
                )
            }
            Self::Uncacheable { start, end } => {
                write!(f, "device memory {start:#x}..{end:#x} cannot be cached: an MTRR forbids it")
            }
            Self::OutOfTables => write!(f, "the {TABLES} page tables for device memory are used up"),
            Self::TooManyMappings => write!(f, "there are {MAX_MAPPINGS} mappings of device memory already"),
        }
    }
}

#[derive(Clone, Copy)]
struct Mapping {
    start: u64,
    end: u64,
    kind: MemoryType,
    virt: u64,
}

struct Window {
    tables: FrameList<1>,
    mappings: [Option<Mapping>; MAX_MAPPINGS],
    next: u64,
}

static WINDOW: Mutex<Window> =
    Mutex::new(Window { tables: FrameList::new(), mappings: [None; MAX_MAPPINGS], next: DEVICE_WINDOW });

/// Sets the tables aside.
///
/// # Errors
/// There is too little RAM for them.
pub(super) fn init() -> Result<(), kernel_logic::ranges::OutOfFrames> {
    let start = bootmem::allocate(TABLES, 1)?;
    WINDOW.lock().tables.add(start..start + TABLES * PAGE_SIZE);
    Ok(())
}

/// Maps `len` bytes of device memory at `phys`, for ever, and says where. A range mapped before, with the same type, is
/// found again.
///
/// # Errors
/// See [`MapDeviceError`]; nothing is mapped then.
pub(crate) fn map_device(phys: u64, len: u64, kind: MemoryType) -> Result<VirtAddr, MapDeviceError> {
    let limit = 1_u64 << features::get().phys_bits;
    let end = phys.saturating_add(len).checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX);
    let start = phys / PAGE_SIZE * PAGE_SIZE;
    if len == 0 {
        return Err(MapDeviceError::Empty);
    }
    if end > limit {
        return Err(MapDeviceError::BeyondPhysical { end, limit });
    }
    if let Some(ram) = bootmem::ram().find(|ram| ram.start < end && start < ram.end) {
        return Err(MapDeviceError::IsRam { at: ram.start.max(start) });
    }
    if kind == MemoryType::WriteBack && end > 1 << 20 && !memtype::mtrr_allows_caching(start, end) {
        return Err(MapDeviceError::Uncacheable { start, end });
    }
    let mut window = WINDOW.lock();
    let virt = match window.find(start, end, kind)? {
        Some(virt) => virt,
        None => window.map(start, end, kind)?,
    };
    Ok(VirtAddr::new(virt + (phys - start)))
}

impl Window {
    /// Where a mapping that holds all of the range has it.
    fn find(&self, start: u64, end: u64, kind: MemoryType) -> Result<Option<u64>, MapDeviceError> {
        let mut found = None;
        for old in self.mappings.iter().flatten().filter(|old| old.start < end && start < old.end) {
            if old.kind != kind {
                return Err(MapDeviceError::TypeConflict { start: old.start, has: old.kind, wants: kind });
            }
            if old.start <= start && end <= old.end {
                found = Some(old.virt + (start - old.start));
            }
        }
        Ok(found)
    }

    fn map(&mut self, start: u64, end: u64, kind: MemoryType) -> Result<u64, MapDeviceError> {
        let place = self.mappings.iter().position(Option::is_none).ok_or(MapDeviceError::TooManyMappings)?;
        if self.tables.bytes() / PAGE_SIZE < tables_for(end - start) {
            return Err(MapDeviceError::OutOfTables);
        }
        // In step with the physical address up to 1 GiB, so that large pages fit; a GiB in between at least.
        let gib = PageSize::Size1GiB.bytes();
        let virt = self.next.next_multiple_of(gib) + start % gib;
        let root = paging::kernel_root().start_address().as_u64();
        for (phys, size) in cover(start..end, virt.wrapping_sub(start), PageSize::Size2MiB) {
            let leaf = bits::DATA | kind.leaf_bits(size);
            let frame = &mut || self.tables.allocate(1, 1).map_err(|_| MapDeviceError::OutOfTables);
            paging::map(root, virt + (phys - start), phys, size, leaf, frame)?;
        }
        self.next = virt + (end - start) + gib;
        self.mappings[place] = Some(Mapping { start, end, kind, virt });
        Ok(virt)
    }
}

/// The most tables that a mapping of `len` bytes can need: a PMD table for each GiB begun, and two tables of PTEs at
/// the ends or, without large pages, one for each 2 MiB.
fn tables_for(len: u64) -> u64 {
    let directories = len.div_ceil(PageSize::Size1GiB.bytes()) + 1;
    directories + 2
}

crate::ktest! {
    fn device_memory_is_mapped_with_its_type_and_by_large_pages() {
        // Nothing answers there, and nothing is read: only the tables are looked at.
        let phys = (1 << features::get().phys_bits) - (8 << 20);
        let virt = match map_device(phys, 4 << 20, MemoryType::WriteCombining) {
            Ok(virt) => virt.as_u64(),
            Err(error) => crate::fail!("{error}"),
        };
        let walk = super::walk::Walk::current(virt);
        crate::check_eq!(walk.translate(virt), Some(phys));
        let leaf = walk.leaf().map(|leaf| (leaf.span(), leaf.entry & (1 << 12 | 1 << 3 | 1 << 4)));
        crate::check_eq!(leaf, Some((2 << 20, 1 << 12)), "{walk}");
        crate::check_eq!(map_device(phys + 4096, 8, MemoryType::WriteCombining).map(|v| v.as_u64()), Ok(virt + 4096));
        crate::check_eq!(
            map_device(phys, 8, MemoryType::Uncached),
            Err(MapDeviceError::TypeConflict { start: phys, has: MemoryType::WriteCombining, wants: MemoryType::Uncached })
        );
    }
}

crate::ktest! {
    fn ram_and_nonsense_are_not_mapped_as_device_memory() {
        let ram = bootmem::ram().last().map_or(0, |range| range.start);
        crate::check_eq!(map_device(ram, 4096, MemoryType::Uncached), Err(MapDeviceError::IsRam { at: ram }));
        crate::check_eq!(map_device(0xfee0_0000, 0, MemoryType::Uncached), Err(MapDeviceError::Empty));
        let limit = 1 << features::get().phys_bits;
        crate::check_eq!(
            map_device(limit - 4096, 8192, MemoryType::Uncached),
            Err(MapDeviceError::BeyondPhysical { end: limit + 4096, limit })
        );
    }
}

crate::ktest! {
    fn caching_is_refused_where_an_mtrr_forbids_it() {
        // The APIC's page is uncached on every PC.
        let refused = MapDeviceError::Uncacheable { start: 0xfed0_0000, end: 0xfed0_1000 };
        crate::check_eq!(map_device(0xfed0_0000, 4096, MemoryType::WriteBack), Err(refused));
    }
}
