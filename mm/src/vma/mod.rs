//! Virtual memory areas, and in [`index`] the sorted index of those of one address space.
//!
//! A [`Vma`] is a shared slab object: page-table code and the reverse map reach it by reference. Its fields change only with
//! the VMA lock held alone. Walks of the reverse map read the range without it, under their set's lock: so a VMA grows before
//! another one leaves the set, and shrinks after its other part has joined, each by one store of its end, or with that lock held.

mod index;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::entry::Attrs;
use crate::policy::Policy;
use crate::slab::{NIL, Slot, SlotHeader};
use crate::types::{PAGE_SHIFT, PMD_SIZE, Prot, VaRange, Vaddr};

pub(crate) use index::{VmaIndex, VmaLeaf, VmaSpares};

/// Advice on huge pages (`MADV_HUGEPAGE`, `MADV_NOHUGEPAGE`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HugeAdvice {
    /// Small pages, as with `transparent_hugepage=madvise`.
    #[default]
    Default,
    /// 2 MiB pages wherever one fits.
    Huge,
    /// Never.
    NoHuge,
}

/// What a VMA maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
pub enum VmaKind {
    /// Private anonymous memory.
    #[default]
    Anon = 0,
    /// An object's own pages, shared by all who map it (`MAP_SHARED`).
    Shared = 1,
    /// An object's pages until they are written, then private copies (`MAP_PRIVATE` of a file).
    Private = 2,
    /// Pages that a driver has put there; they are not counted and never move (`VM_MIXEDMAP`).
    Device = 3,
    /// Huge pages of the pool, private (`MAP_HUGETLB`).
    Hugetlb = 4,
}

bitflags::bitflags! {
    /// What else is true of a VMA.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct VmaFlags: u32 {
        /// Writes to entries with uffd-wp are noted by clearing that bit (userfaultfd's asynchronous write protection).
        const WP_TRACKED = 1 << 0;
        /// Each 2 MiB of it where nothing is mapped has a page of the pool reserved.
        const HUGE_RESERVED = 1 << 1;
        /// It may not be made writable: it shows a file that was opened for reading (Linux: without `VM_MAYWRITE`).
        const NEVER_WRITE = 1 << 2;
    }
}

/// A range of an address space with one protection and one kind of memory.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Vma {
    header: SlotHeader,
    start: AtomicU64,
    end: AtomicU64,
    /// Page index of `start` in the anonymous set (Linux: `vm_pgoff`).
    pgoff: AtomicU64,
    prot: AtomicU32,
    advice: AtomicU32,
    /// The set that its pages' reverse map goes through.
    anon: AtomicU32,
    /// Index of the address space.
    space: AtomicU32,
    /// [`VmaKind`].
    kind: AtomicU32,
    /// [`VmaFlags`].
    flags: AtomicU32,
    /// The object that it maps; `NIL` for none.
    object: AtomicU32,
    /// Link of the object's list of VMAs.
    object_link: AtomicU32,
}

impl Slot for Vma {
    const KIND: u8 = 3;
    fn header(&self) -> &SlotHeader {
        &self.header
    }
}

/// What a VMA is, apart from where it is indexed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct VmaAttrs {
    pub(crate) range: VaRange,
    pub(crate) pgoff: u64,
    pub(crate) prot: Prot,
    pub(crate) advice: HugeAdvice,
    pub(crate) anon: u32,
    pub(crate) space: u32,
    pub(crate) kind: VmaKind,
    pub(crate) flags: VmaFlags,
    pub(crate) object: u32,
}

impl Vma {
    /// Its addresses.
    #[must_use]
    #[inline(always)]
    pub fn range(&self) -> VaRange {
        VaRange::between(self.start(), Vaddr(self.end.load(Relaxed)))
    }
    /// First address after it.
    #[must_use]
    #[inline(always)]
    pub fn end(&self) -> Vaddr {
        Vaddr(self.end.load(Relaxed))
    }
    /// First address.
    #[must_use]
    #[inline(always)]
    pub fn start(&self) -> Vaddr {
        Vaddr(self.start.load(Relaxed))
    }
    /// What it allows.
    #[must_use]
    #[inline(always)]
    pub fn prot(&self) -> Prot {
        Prot::from_bits_truncate(self.prot.load(Relaxed) as u8)
    }
    /// Advice on huge pages.
    #[must_use]
    #[inline(always)]
    pub fn advice(&self) -> HugeAdvice {
        match self.advice.load(Relaxed) {
            1 => HugeAdvice::Huge,
            2 => HugeAdvice::NoHuge,
            _ => HugeAdvice::Default,
        }
    }
    /// What it maps.
    #[must_use]
    #[inline(always)]
    pub fn kind(&self) -> VmaKind {
        match self.kind.load(Relaxed) {
            0 => VmaKind::Anon,
            1 => VmaKind::Shared,
            2 => VmaKind::Private,
            3 => VmaKind::Device,
            _ => VmaKind::Hugetlb,
        }
    }
    /// What else is true of it.
    #[must_use]
    #[inline(always)]
    pub fn flags(&self) -> VmaFlags {
        VmaFlags::from_bits_truncate(self.flags.load(Relaxed))
    }
    pub(crate) fn set_flags(&self, flags: VmaFlags) {
        self.flags.store(flags.bits(), Relaxed);
    }
    pub(crate) fn set_prot(&self, prot: Prot) {
        self.prot.store(u32::from(prot.bits()), Relaxed);
    }
    /// The key of the object that it maps ([`crate::Object::key`]).
    #[must_use]
    pub fn object_key(&self) -> Option<u32> {
        Some(self.object()).filter(|&object| object != NIL)
    }
    /// The page of the object at its start; for anonymous memory a number without meaning outside.
    #[must_use]
    pub fn page_offset(&self) -> u64 {
        self.pgoff.load(Relaxed)
    }
    /// The object that it maps; `NIL` for none.
    pub(crate) fn object(&self) -> u32 {
        self.object.load(Relaxed)
    }
    /// Free for the object's list while the VMA lives.
    pub(crate) fn object_link(&self) -> &AtomicU32 {
        &self.object_link
    }
    pub(crate) fn set_advice(&self, advice: HugeAdvice) {
        self.advice.store(advice as u32, Relaxed);
    }
    pub(crate) fn set_range(&self, range: VaRange, pgoff: u64) {
        self.start.store(range.start.0, Relaxed);
        self.end.store(range.end.0, Relaxed);
        self.pgoff.store(pgoff, Relaxed);
    }
    /// Grows or shrinks it at its end, by one store.
    pub(crate) fn set_end(&self, end: Vaddr) {
        self.end.store(end.0, Relaxed);
    }
    /// True when what `next` would be could as well be a part of this one, which it follows.
    pub(crate) fn is_continued_by(&self, next: &VmaAttrs) -> bool {
        let here = self.attrs();
        let (range, pgoff) = (next.range, here.pgoff + here.range.nr_pages());
        here.range.end == range.start && VmaAttrs { range, pgoff, ..here } == *next
    }
    pub(crate) fn slab_index(&self) -> u32 {
        self.header.key()
    }
    /// Free for the anonymous set's list while the VMA lives.
    pub(crate) fn list_link(&self) -> &AtomicU32 {
        &self.header.link
    }
    #[inline(always)]
    pub(crate) fn anon(&self) -> u32 {
        self.anon.load(Relaxed)
    }
    pub(crate) fn space(&self) -> u32 {
        self.space.load(Relaxed)
    }
    pub(crate) fn attrs(&self) -> VmaAttrs {
        VmaAttrs {
            range: self.range(),
            pgoff: self.pgoff.load(Relaxed),
            prot: self.prot(),
            advice: self.advice(),
            anon: self.anon(),
            space: self.space(),
            kind: self.kind(),
            flags: self.flags(),
            object: self.object(),
        }
    }
    pub(crate) fn set(&self, attrs: &VmaAttrs) {
        self.set_range(attrs.range, attrs.pgoff);
        self.set_prot(attrs.prot);
        self.advice.store(attrs.advice as u32, Relaxed);
        self.anon.store(attrs.anon, Relaxed);
        self.space.store(attrs.space, Relaxed);
        self.kind.store(attrs.kind as u32, Relaxed);
        self.set_flags(attrs.flags);
        self.object.store(attrs.object, Relaxed);
    }

    /// The attributes of an entry for a page of it that is new. What may be written without a fault counts as soft-dirty: nobody
    /// would note the write.
    pub(crate) fn fresh_attrs(&self) -> Attrs {
        let mut attrs = Attrs::EXCLUSIVE;
        attrs.set(Attrs::WRITE | Attrs::SOFT_DIRTY, self.prot().contains(Prot::WRITE));
        attrs.set(Attrs::EXEC, self.prot().contains(Prot::EXEC));
        attrs.set(Attrs::NO_ACCESS, self.prot().is_empty());
        attrs
    }

    /// The page index of `addr` in the anonymous set.
    #[inline(always)]
    pub(crate) fn page_index(&self, addr: Vaddr) -> u64 {
        self.pgoff.load(Relaxed) + ((addr.0 - self.start().0) >> PAGE_SHIFT)
    }

    /// Where page `index` of the set would be mapped here, if this VMA covers it.
    pub(crate) fn address_of(&self, index: u64) -> Option<Vaddr> {
        let offset = index.checked_sub(self.pgoff.load(Relaxed))?;
        let addr = self.start().add(offset.checked_mul(1 << PAGE_SHIFT)?);
        if self.range().contains(addr) { Some(addr) } else { None }
    }

    /// The aligned 2 MiB around `addr`, when all of it is in the VMA and huge pages are wanted. Objects have none.
    #[inline(always)]
    pub(crate) fn huge_range(&self, addr: Vaddr, policy: &Policy) -> Option<Vaddr> {
        let start = addr.align_down(PMD_SIZE);
        let fits = start >= self.start() && start.0 + PMD_SIZE <= self.end.load(Relaxed);
        if fits && self.kind() == VmaKind::Anon && policy.wants_huge(self.advice()) {
            Some(start)
        } else {
            None
        }
    }
}

/// The cached answer of the last look-up; `NIL` for none.
#[derive(Debug)]
pub(crate) struct VmaCache(AtomicU32);

impl Default for VmaCache {
    fn default() -> Self {
        Self(AtomicU32::new(NIL))
    }
}

impl VmaCache {
    #[inline(always)]
    pub(crate) fn get(&self) -> Option<u32> {
        match self.0.load(Relaxed) {
            NIL => None,
            index => Some(index),
        }
    }
    #[inline(always)]
    pub(crate) fn set(&self, vma: &Vma) {
        self.0.store(vma.slab_index(), Relaxed);
    }
    pub(crate) fn clear(&self) {
        self.0.store(NIL, Relaxed);
    }
}
