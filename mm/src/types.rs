//! Addresses, sizes and names of frames. Small `Copy` types with the units in them; nothing here touches memory.

use core::fmt;
use core::ops::Range;

/// Bytes in a base page.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Base pages under one PMD entry.
pub(crate) const PTRS: usize = 512;
/// Bytes mapped by one PMD entry (2 MiB).
pub const PMD_SIZE: u64 = PAGE_SIZE * PTRS as u64;
/// log2 of [`PMD_SIZE`].
pub const PMD_SHIFT: u32 = 21;
/// Bytes mapped by one PUD entry (1 GiB).
pub const PUD_SIZE: u64 = PMD_SIZE * PTRS as u64;
/// First address that is not a user address (the lower canonical half, less its last page, as Linux has it).
pub const USER_END: u64 = 0x0000_7fff_ffff_f000;

/// A virtual address of an address space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Vaddr(pub u64);

impl Vaddr {
    /// Rounds down to a multiple of `align` (a power of two).
    #[must_use]
    #[inline(always)]
    pub const fn align_down(self, align: u64) -> Self {
        Self(self.0 & !(align - 1))
    }
    /// Rounds up to a multiple of `align` (a power of two); saturates at the last such multiple.
    #[must_use]
    #[inline(always)]
    pub const fn align_up(self, align: u64) -> Self {
        Self(self.0.saturating_add(align - 1) & !(align - 1))
    }
    /// True when the address is a multiple of `align`.
    #[must_use]
    #[inline(always)]
    pub const fn is_aligned(self, align: u64) -> bool {
        self.0 & (align - 1) == 0
    }
    /// The index into the table of `level` that this address selects.
    #[must_use]
    #[inline(always)]
    pub const fn index(self, level: Level) -> usize {
        (self.0 >> level.shift()) as usize & (PTRS - 1)
    }
    /// This address plus `bytes`.
    #[must_use]
    #[inline(always)]
    pub const fn add(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl fmt::Debug for Vaddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
impl fmt::Display for Vaddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A half-open range of virtual addresses.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct VaRange {
    /// First address.
    pub start: Vaddr,
    /// First address after the range.
    pub end: Vaddr,
}

impl VaRange {
    /// The range `[start, start + len_bytes)`.
    #[must_use]
    pub const fn new(start: u64, len_bytes: u64) -> Self {
        Self { start: Vaddr(start), end: Vaddr(start.saturating_add(len_bytes)) }
    }
    /// The range from one address to another.
    #[must_use]
    #[inline(always)]
    pub const fn between(start: Vaddr, end: Vaddr) -> Self {
        Self { start, end }
    }
    /// Bytes in the range.
    #[must_use]
    #[inline(always)]
    pub const fn len(self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }
    /// True when the range holds no address.
    #[must_use]
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.end.0 <= self.start.0
    }
    /// Base pages in the range.
    #[must_use]
    pub const fn nr_pages(self) -> u64 {
        self.len() >> PAGE_SHIFT
    }
    /// True when `addr` lies inside.
    #[must_use]
    #[inline(always)]
    pub const fn contains(self, addr: Vaddr) -> bool {
        self.start.0 <= addr.0 && addr.0 < self.end.0
    }
    /// True when every address of `other` lies inside.
    #[must_use]
    #[inline(always)]
    pub const fn covers(self, other: Self) -> bool {
        self.start.0 <= other.start.0 && other.end.0 <= self.end.0
    }
    /// The common part (may be empty).
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        Self { start: self.start.max(other.start), end: self.end.min(other.end) }
    }
    /// True when both ends are page aligned, the range is not empty and lies in the user half.
    #[must_use]
    pub const fn is_user_pages(self) -> bool {
        self.start.is_aligned(PAGE_SIZE)
            && self.end.is_aligned(PAGE_SIZE)
            && !self.is_empty()
            && self.end.0 <= USER_END
    }
}

impl fmt::Debug for VaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start.0, self.end.0)
    }
}
impl fmt::Display for VaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start.0, self.end.0)
    }
}

/// A level of the page table, by its Linux name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Level {
    /// 4 KiB entries.
    Pte = 1,
    /// 2 MiB entries.
    Pmd = 2,
    /// 1 GiB entries (always tables here).
    Pud = 3,
    /// The root's entries.
    Pgd = 4,
}

impl Level {
    /// log2 of the bytes that one entry of this level maps.
    #[must_use]
    #[inline(always)]
    pub const fn shift(self) -> u32 {
        PAGE_SHIFT + 9 * (self as u32 - 1)
    }
    /// Bytes that one entry of this level maps.
    #[must_use]
    #[inline(always)]
    pub const fn size(self) -> u64 {
        1 << self.shift()
    }
    /// The order of the folio that a leaf of this level maps.
    #[must_use]
    #[inline(always)]
    pub const fn order(self) -> Order {
        Order((self.shift() - PAGE_SHIFT) as u8)
    }
}

/// log2 of a number of base pages: 0 is 4 KiB, 9 is 2 MiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Order(u8);

impl Order {
    /// One base page.
    pub const BASE: Self = Self(0);
    /// One PMD: 512 base pages.
    pub const PMD: Self = Self(9);

    /// The order `n`.
    ///
    /// # Panics
    /// When `n` is above 9.
    #[must_use]
    #[inline(always)]
    pub const fn new(n: u8) -> Self {
        assert!(n <= 9, "orders end at 9");
        Self(n)
    }
    /// The order in the low four bits of a word that an order was stored in.
    #[inline(always)]
    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self((bits & 0xf) as u8)
    }
    /// The exponent.
    #[must_use]
    #[inline(always)]
    pub const fn get(self) -> u8 {
        self.0
    }
    /// Base pages of this order.
    #[must_use]
    #[inline(always)]
    pub const fn pages(self) -> u32 {
        1 << self.0
    }
    /// Bytes of this order.
    #[must_use]
    #[inline(always)]
    pub const fn bytes(self) -> u64 {
        PAGE_SIZE << self.0
    }
    /// The largest order that is aligned at page index `at` and not longer than `pages`.
    #[must_use]
    pub fn largest(at: u32, pages: u32) -> Self {
        let by_align = if at == 0 { 9 } else { at.trailing_zeros().min(9) };
        let by_len = 31 - pages.max(1).leading_zeros();
        Self(by_align.min(by_len) as u8)
    }
}

/// Where a frame lies: system RAM, or the memory of one device, *private* (no CPU can map it) or *coherent* (CPUs map it like
/// RAM). The kind is part of the place, so that an entry for a frame can be made without asking anybody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place(u8);

/// Devices that can be registered at once.
pub const MAX_DEVICES: usize = 4;
/// Set in the number of a coherent device.
const COHERENT: u8 = 8;

impl Place {
    /// System RAM.
    pub const RAM: Self = Self(0);

    /// The private memory of device `n` (counted from 0).
    ///
    /// # Panics
    /// When `n` is not below [`MAX_DEVICES`].
    #[must_use]
    pub const fn device(n: usize) -> Self {
        assert!(n < MAX_DEVICES, "device number out of range");
        Self(n as u8 + 1)
    }
    /// The memory of device `n`, which CPUs can map.
    ///
    /// # Panics
    /// When `n` is not below [`MAX_DEVICES`].
    #[must_use]
    pub const fn coherent(n: usize) -> Self {
        Self(Self::device(n).0 | COHERENT)
    }
    /// The device number, or `None` for RAM.
    #[must_use]
    #[inline(always)]
    pub const fn device_number(self) -> Option<usize> {
        if self.0 == 0 { None } else { Some((self.0 & !COHERENT) as usize - 1) }
    }
    /// The device number, for private memory only.
    #[must_use]
    #[inline(always)]
    pub const fn private_device(self) -> Option<usize> {
        if self.0 == 0 || self.0 & COHERENT != 0 { None } else { Some(self.0 as usize - 1) }
    }
    /// True for system RAM.
    #[must_use]
    #[inline(always)]
    pub const fn is_ram(self) -> bool {
        self.0 == 0
    }
    /// True for device memory that CPUs can map.
    #[must_use]
    #[inline(always)]
    pub const fn is_coherent(self) -> bool {
        self.0 & COHERENT != 0
    }
    /// True when a CPU can map a frame of this place: RAM and coherent memory.
    #[must_use]
    #[inline(always)]
    pub const fn is_mappable(self) -> bool {
        self.0 == 0 || self.0 & COHERENT != 0
    }
    #[inline(always)]
    pub(crate) const fn raw(self) -> u8 {
        self.0
    }
    #[inline(always)]
    pub(crate) const fn from_raw(raw: u8) -> Self {
        Self(raw)
    }
    /// True for a number that one of the makers above gives.
    #[inline(always)]
    pub(crate) const fn is_raw(raw: u8) -> bool {
        raw == 0 || (raw & !COHERENT).wrapping_sub(1) < MAX_DEVICES as u8 && raw < 16
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.device_number() {
            None => f.write_str("ram"),
            Some(n) if self.is_coherent() => write!(f, "coh{n}"),
            Some(n) => write!(f, "dev{n}"),
        }
    }
}

/// One 4 KiB frame, by place and number. In RAM and in coherent memory the number is the physical page frame number; in private
/// memory it is the page's index in the device's memory, never a physical address, so that a BAR may lie anywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(u64);

impl Frame {
    /// Frame `index` of `place`.
    #[must_use]
    #[inline(always)]
    pub const fn new(place: Place, index: u32) -> Self {
        Self((place.0 as u64) << 32 | index as u64)
    }
    /// The frame of RAM with this page frame number.
    #[must_use]
    #[inline(always)]
    pub const fn ram(pfn: u32) -> Self {
        Self(pfn as u64)
    }
    /// Where it lies.
    #[must_use]
    #[inline(always)]
    pub const fn place(self) -> Place {
        Place((self.0 >> 32) as u8)
    }
    /// Its number there.
    #[must_use]
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.0 as u32
    }
    /// The frame `pages` further on in the same place.
    #[must_use]
    #[inline(always)]
    pub const fn offset(self, pages: u32) -> Self {
        Self(self.0 + pages as u64)
    }
    #[inline(always)]
    pub(crate) const fn raw(self) -> u64 {
        self.0
    }
    #[inline(always)]
    pub(crate) const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
    /// True when this frame is one of the `order.pages()` frames from `first`.
    #[must_use]
    #[inline(always)]
    pub const fn is_within(self, first: Self, order: Order) -> bool {
        self.0.wrapping_sub(first.0) < order.pages() as u64
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:#x}", self.place(), self.index())
    }
}
impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:#x}", self.place(), self.index())
    }
}

/// A range of frame numbers of one place.
pub type FrameRange = Range<u32>;

/// What an access wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Exec,
}

bitflags::bitflags! {
    /// What a VMA allows (`PROT_READ`, `PROT_WRITE`, `PROT_EXEC`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Prot: u8 {
        /// Loads.
        const READ = 1;
        /// Stores.
        const WRITE = 2;
        /// Instruction fetches.
        const EXEC = 4;
    }
}

impl Prot {
    /// Loads and stores.
    pub const RW: Self = Self::READ.union(Self::WRITE);

    /// True when `access` is allowed. As on x86-64, write or execute permission implies read.
    #[must_use]
    #[inline(always)]
    pub fn allows(self, access: Access) -> bool {
        let one_of = match access {
            Access::Read => Self::all(),
            Access::Write => Self::WRITE,
            Access::Exec => Self::EXEC,
        };
        self.intersects(one_of)
    }
}
