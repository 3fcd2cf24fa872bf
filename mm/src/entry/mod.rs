//! Page-table entries: the one file that knows their bits.
//!
//! A word of a table is decoded, *by level*, into [`Entry`] before anyone looks at it, and encoded from one when it
//! is written. No flag test stands anywhere else, so a present-format question cannot be asked of a non-present entry
//! (on Linux that mistake read soft-dirty as "writable": the two share bit 1). `docs/PTE-FORMAT.md` is the table.
//!
//! ```text
//!            63  62..57  56..53  52   51........12     11  10  9   8  7     6 5  4   3   2  1  0
//! leaf       NX    0     place  SPEC  frame            UFW SD  EXC 0  PS/PAT D A  PCD PWT 1  W  1   (SDM vol. 3, 4.5)
//! table      0     0       0     0    frame of table    0  0   0   0  0     0 A   0   0   1  1  1
//! non-pres.  kind(63..61)  place(56..53)  NONE ~number(51..12) UFW SD EXC 0  0   0 0   D   Y   X  W  0
//! ```
//!
//! Rules for non-present entries, and why:
//! - bits 0, 5, 6, 7 and 8 are clear: not present; an erratum lets some CPUs set A/D on non-present entries; PSE and
//!   PROTNONE (global) make other software take the entry for a present one.
//! - bits 51:12 hold the number *inverted*: to a CPU with L1TF, which speculates through non-present entries, they
//!   name memory near the top of the physical address space, where there is neither RAM nor a cacheable BAR.
//! - a device-private entry names (device, page index in the device), never a physical address.
//! - the attributes write, execute, exclusive, soft-dirty, uffd-wp, young and dirty are there at *both* levels, so nothing is
//!   lost over present -> migration -> device -> migration -> present.

pub(crate) mod run;
pub(crate) mod word;

use crate::types::{Frame, Level, Place};

bitflags::bitflags! {
    /// What an entry remembers of a page besides its frame; the same set for present and non-present entries.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Attrs: u16 {
        /// Stores are allowed (R/W).
        const WRITE = 1 << 1;
        /// Instruction fetches are allowed (NX clear).
        const EXEC = 1 << 2;
        /// Read or written since last cleared (A).
        const YOUNG = 1 << 3;
        /// Written since last cleaned (D).
        const DIRTY = 1 << 4;
        /// No other mapping shares the page (`PageAnonExclusive`): a write needs no copy.
        const EXCLUSIVE = 1 << 9;
        /// Written since soft-dirty was last cleared by a tracker.
        const SOFT_DIRTY = 1 << 10;
        /// Write-protected by a userfaultfd-like tracker.
        const UFFD_WP = 1 << 11;
        /// The mapping allows no access at all (`PROT_NONE`). Only non-present entries have it.
        const NO_ACCESS = 1 << 12;
    }
}

/// The memory type of a leaf. Which PAT slot each uses is fixed by [`CacheType::pat_index`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheType {
    /// Write-back: RAM and coherent device memory.
    WriteBack,
    /// Write-combining: a private device's BAR.
    WriteCombining,
    /// Uncacheable: registers.
    Uncached,
}

impl CacheType {
    /// The PAT slot (SDM vol. 3, 12.12.3). Slot 4 must be programmed as WC: after reset there is none.
    #[must_use]
    pub const fn pat_index(self) -> u8 {
        match self {
            Self::WriteBack => 0,
            Self::Uncached => 3,
            Self::WriteCombining => 4,
        }
    }
}

/// A present leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The first frame mapped.
    pub frame: Frame,
    /// Attributes.
    pub attrs: Attrs,
    /// The page is not counted: the shared zero page or zero folio.
    pub special: bool,
    /// Memory type.
    pub cache: CacheType,
}

/// What a non-present entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SoftKind {
    /// The page is being moved; a toucher sleeps on its folio.
    Migration = 1,
    /// The page is in a device's private memory; a touch moves it back.
    DevicePrivate = 2,
    /// The page is in RAM, lent to a device for atomic access.
    DeviceExclusive = 3,
    /// The page is where a CPU could map it, but the mapping allows no access (`PROT_NONE`).
    ProtNone = 4,
}

/// A non-present leaf with content (Linux: `softleaf_t`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SoftLeaf {
    /// Its kind.
    pub kind: SoftKind,
    /// The first frame named.
    pub frame: Frame,
    /// Attributes.
    pub attrs: Attrs,
}

/// A decoded page-table entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Nothing.
    None,
    /// The page frame number of the next table.
    Table(u32),
    /// A present mapping.
    Leaf(Leaf),
    /// A non-present entry with content.
    NonPresent(SoftLeaf),
}

/// A word that no encoder of this file could have written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadEntry {
    /// The word.
    pub word: u64,
    /// The level of the table it stood in.
    pub level: Level,
}

const P: u64 = 1 << 0;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const PWT: u64 = 1 << 3;
const PCD: u64 = 1 << 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const PAT_PTE: u64 = 1 << 7;
const PAT_PMD: u64 = 1 << 12;
const SPECIAL: u64 = 1 << 52;
const NX: u64 = 1 << 63;
const ADDR: u64 = 0x000f_ffff_ffff_f000;
/// Frame numbers have 32 bits; the bits above them are reserved, or inverted ones in a non-present entry.
const INDEX: u64 = (u32::MAX as u64) << 12;
/// Clear in the number of a huge entry, which is aligned (and bit 12 of a present one is PAT).
const BELOW_PMD: u64 = 0x1f_f000;
const PLACE_SHIFT: u32 = 53;
const PLACE: u64 = 0xf << PLACE_SHIFT;
const KIND_SHIFT: u32 = 61;
/// Attributes at the same bits in both formats.
const COMMON: u64 =
    Attrs::WRITE.union(Attrs::EXCLUSIVE).union(Attrs::SOFT_DIRTY).union(Attrs::UFFD_WP).bits() as u64;
/// A and D lie two bits above YOUNG and DIRTY.
const AD_SHIFT: u32 = 2;
/// NX lies this far above EXEC, and inverted.
const NX_TO_EXEC: u32 = 61;

/// Bits that no leaf of write-back RAM has, at either level: one test sorts them out. Bits 57 to 62 and 8 nobody has.
const LEAF_RARE: u64 = PWT | PCD | 1 << 8 | ADDR & !INDEX | PLACE | 0x3f << 57;
/// Bits that a non-present entry does not use.
const SOFT_CLEAR: u64 = NON_PRESENT_CLEAR | 0xf << 57;
/// Where a non-present entry keeps [`Attrs::NO_ACCESS`], whose own bit is the number's.
const NO_ACCESS: u64 = 1 << 52;
const NO_ACCESS_SHIFT: u32 = 40;
/// The other attributes, which have their own bits there.
const SOFT_ATTRS: u64 = (Attrs::all().bits() & !Attrs::NO_ACCESS.bits()) as u64;

/// Bits that a non-present entry must keep clear.
pub const NON_PRESENT_CLEAR: u64 = P | A | D | PS | (1 << 8);

impl Attrs {
    #[inline(always)]
    const fn from_present(word: u64) -> Self {
        let exec = (word & NX ^ NX) >> NX_TO_EXEC;
        Self::from_bits_retain((word & COMMON | (word & (A | D)) >> AD_SHIFT | exec) as u16)
    }
    #[inline(always)]
    const fn to_present(self) -> u64 {
        debug_assert!(!self.contains(Self::NO_ACCESS), "a present entry allows access");
        let bits = self.bits() as u64;
        bits & COMMON | (bits & ((A | D) >> AD_SHIFT)) << AD_SHIFT | (bits << NX_TO_EXEC & NX ^ NX)
    }
    #[inline(always)]
    const fn from_soft(word: u64) -> Self {
        Self::from_bits_retain((word & SOFT_ATTRS | (word & NO_ACCESS) >> NO_ACCESS_SHIFT) as u16)
    }
    #[inline(always)]
    const fn to_soft(self) -> u64 {
        let bits = self.bits() as u64;
        bits & SOFT_ATTRS | bits << NO_ACCESS_SHIFT & NO_ACCESS
    }
}

impl Leaf {
    /// A write-back leaf of RAM with the given attributes.
    #[must_use]
    #[inline(always)]
    pub const fn ram(frame: Frame, attrs: Attrs) -> Self {
        Self { frame, attrs, special: false, cache: CacheType::WriteBack }
    }
}

impl SoftLeaf {
    /// A non-present leaf.
    #[must_use]
    #[inline(always)]
    pub const fn new(kind: SoftKind, frame: Frame, attrs: Attrs) -> Self {
        Self { kind, frame, attrs }
    }

    #[inline(always)]
    const fn encode(self) -> u64 {
        let number = !((self.frame.index() as u64) << 12) & ADDR;
        (self.kind as u64) << KIND_SHIFT
            | (self.frame.place().raw() as u64) << PLACE_SHIFT
            | number
            | self.attrs.to_soft()
    }

    /// The word of the same entry with another kind.
    #[inline(always)]
    pub(crate) const fn word_with_kind(word: u64, kind: SoftKind) -> u64 {
        word & !(7 << KIND_SHIFT) | (kind as u64) << KIND_SHIFT
    }

    #[inline(always)]
    const fn decode(word: u64, level: Level) -> Option<Self> {
        let kind = match word >> KIND_SHIFT {
            1 => SoftKind::Migration,
            2 => SoftKind::DevicePrivate,
            3 => SoftKind::DeviceExclusive,
            4 => SoftKind::ProtNone,
            _ => return None,
        };
        // Inverted, so zero means one: numbers have 32 bits, and those of huge entries are aligned.
        let ones = match level {
            Level::Pte => ADDR & !INDEX,
            Level::Pmd => ADDR & !INDEX | BELOW_PMD,
            _ => return None,
        };
        let place = ((word & PLACE) >> PLACE_SHIFT) as u8;
        if word & (SOFT_CLEAR | ones) != ones || !Place::is_raw(place) {
            return None;
        }
        let index = (!word & INDEX) >> 12;
        let frame = Frame::new(Place::from_raw(place), index as u32);
        Some(Self { kind, frame, attrs: Attrs::from_soft(word) })
    }
}

impl Entry {
    /// The entry that maps `frame` with these attributes: present where a CPU may use it, device-private on a private device,
    /// and `PROT_NONE` where the mapping allows no access.
    #[must_use]
    #[inline(always)]
    pub const fn mapping(frame: Frame, attrs: Attrs) -> Self {
        if !frame.place().is_mappable() {
            Self::NonPresent(SoftLeaf::new(SoftKind::DevicePrivate, frame, attrs))
        } else if attrs.contains(Attrs::NO_ACCESS) {
            Self::NonPresent(SoftLeaf::new(SoftKind::ProtNone, frame, attrs))
        } else {
            Self::Leaf(Leaf::ram(frame, attrs))
        }
    }

    /// The word for this entry in a table of `level`.
    ///
    /// # Panics
    /// When a huge leaf is not aligned to its size, or a table is asked for at PTE level: caller bugs.
    #[must_use]
    #[inline(always)]
    pub const fn encode(self, level: Level) -> u64 {
        match self {
            Self::None => 0,
            Self::Table(pfn) => {
                assert!(!matches!(level, Level::Pte), "a PTE cannot point to a table");
                (pfn as u64) << 12 | P | RW | US
            }
            Self::Leaf(leaf) => {
                debug_assert!(
                    leaf.frame.index() & (level.order().pages() - 1) == 0,
                    "leaf not aligned to its size"
                );
                let size = match level {
                    Level::Pte => 0,
                    _ => PS,
                };
                let cache = match (leaf.cache, level) {
                    (CacheType::WriteBack, _) => 0,
                    (CacheType::Uncached, _) => PWT | PCD,
                    (CacheType::WriteCombining, Level::Pte) => PAT_PTE,
                    (CacheType::WriteCombining, _) => PAT_PMD,
                };
                P | US
                    | size
                    | cache
                    | leaf.attrs.to_present()
                    | if leaf.special { SPECIAL } else { 0 }
                    | (leaf.frame.place().raw() as u64) << PLACE_SHIFT
                    | (leaf.frame.index() as u64) << 12
            }
            Self::NonPresent(soft) => soft.encode(),
        }
    }

    /// Decodes a word of a table of `level`.
    ///
    /// # Errors
    /// [`BadEntry`] for a word that no entry encodes to: memory corruption, or a foreign writer.
    #[inline(always)]
    pub const fn try_decode(word: u64, level: Level) -> Result<Self, BadEntry> {
        if word == 0 {
            return Ok(Self::None);
        }
        let decoded = if word & P == 0 {
            match SoftLeaf::decode(word, level) {
                Some(soft) => Some(Self::NonPresent(soft)),
                None => None,
            }
        } else if matches!(level, Level::Pte) || word & PS != 0 {
            match decode_leaf(word, level) {
                Some(leaf) => Some(Self::Leaf(leaf)),
                None => None,
            }
        } else if word & !(INDEX | A) == P | RW | US {
            Some(Self::Table(((word & INDEX) >> 12) as u32))
        } else {
            None
        };
        match decoded {
            Some(entry) => Ok(entry),
            None => Err(BadEntry { word, level }),
        }
    }

    /// Decodes a word of a table of `level`.
    ///
    /// # Panics
    /// On a word that [`Entry::try_decode`] refuses: the machine must stop, its page tables are not what we wrote.
    #[must_use]
    #[inline(always)]
    pub const fn decode(word: u64, level: Level) -> Self {
        match Self::try_decode(word, level) {
            Ok(entry) => entry,
            Err(_) => panic!("page-table entry that nobody encoded"),
        }
    }

    /// True when the CPU may hold a translation made from this entry.
    #[must_use]
    #[inline(always)]
    pub const fn is_present(self) -> bool {
        matches!(self, Self::Table(_) | Self::Leaf(_))
    }
}

#[inline(always)]
const fn decode_leaf(word: u64, level: Level) -> Option<Leaf> {
    let (rare, addr) = match level {
        Level::Pte => (LEAF_RARE | PAT_PTE, INDEX),
        Level::Pmd => (LEAF_RARE | BELOW_PMD, INDEX & !BELOW_PMD),
        _ => return None,
    };
    if word & (rare | US) != US {
        return decode_rare_leaf(word, level);
    }
    Some(Leaf {
        frame: Frame::ram(((word & addr) >> 12) as u32),
        attrs: Attrs::from_present(word),
        special: word & SPECIAL != 0,
        cache: CacheType::WriteBack,
    })
}

/// A leaf that is not write-back RAM, or no leaf at all.
#[cold]
const fn decode_rare_leaf(word: u64, level: Level) -> Option<Leaf> {
    let (pat, addr) = match level {
        Level::Pte => (PAT_PTE, INDEX),
        _ => (PAT_PMD, INDEX & !BELOW_PMD),
    };
    let cache = match (word & pat != 0, word & (PCD | PWT)) {
        (false, 0) => CacheType::WriteBack,
        (true, 0) => CacheType::WriteCombining,
        (false, both) if both == PCD | PWT => CacheType::Uncached,
        _ => return None,
    };
    let size = match level {
        Level::Pte => 0,
        _ => PS,
    };
    let known = P | RW | US | PWT | PCD | A | D | COMMON | SPECIAL | PLACE | NX | addr | pat | size;
    let place = ((word & PLACE) >> PLACE_SHIFT) as u8;
    if word & !known != 0 || word & US == 0 || !(place == 0 || Place::is_raw(place)) {
        return None;
    }
    Some(Leaf {
        frame: Frame::new(Place::from_raw(place), ((word & addr) >> 12) as u32),
        attrs: Attrs::from_present(word),
        special: word & SPECIAL != 0,
        cache,
    })
}

/// Bits that may be set in a present leaf by an atomic OR, because no translation can be stale in a way that
/// matters: more permission, or A and D. (SDM vol. 3, 4.10.4.3: a fault re-walks the tables.)
#[inline(always)]
pub(crate) const fn upgrade_bits(attrs: Attrs) -> u64 {
    attrs.to_present() & !NX
}

/// What takes attributes off a present leaf: bits to clear, and bits to set (NX says the opposite of EXEC).
#[inline(always)]
pub(crate) const fn restrict_bits(remove: Attrs) -> (u64, u64) {
    let bits = remove.to_present();
    (bits & !NX, !bits & NX)
}

#[cfg(test)]
mod tests;
