//! Virtual memory areas, and the sorted index of those of one address space.
//!
//! A [`Vma`] is a shared slab object: page-table code and the reverse map reach it by reference. Its fields change only with
//! the VMA lock held alone; they are atomics because `mm` has no `unsafe`, not because anybody races.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::entry::Attrs;
use crate::error::OutOfMemory;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::slab::{NIL, Pool, PoolBox, Pooled, Slot, SlotHeader};
use crate::types::{PAGE_SHIFT, PMD_SIZE, Prot, VaRange, Vaddr};

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
}

bitflags::bitflags! {
    /// What else is true of a VMA.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct VmaFlags: u32 {
        /// Writes to entries with uffd-wp are noted by clearing that bit (userfaultfd's asynchronous write protection).
        const WP_TRACKED = 1 << 0;
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
            _ => VmaKind::Device,
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

    /// The attributes of an entry for a page of it that is new.
    pub(crate) fn fresh_attrs(&self) -> Attrs {
        let mut attrs = Attrs::EXCLUSIVE;
        attrs.set(Attrs::WRITE, self.prot().contains(Prot::WRITE));
        attrs.set(Attrs::EXEC, self.prot().contains(Prot::EXEC));
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

    /// The aligned 2 MiB around `addr`, when all of it is in the VMA and huge pages are wanted.
    #[inline(always)]
    pub(crate) fn huge_range(&self, addr: Vaddr) -> Option<Vaddr> {
        let start = addr.align_down(PMD_SIZE);
        let fits = start >= self.start() && start.0 + PMD_SIZE <= self.end.load(Relaxed);
        if fits && self.advice() == HugeAdvice::Huge { Some(start) } else { None }
    }
}

const LEAF: usize = 240;
const LEAVES: usize = 128;

/// A run of VMAs in address order.
#[derive(Debug)]
pub(crate) struct VmaLeaf {
    len: usize,
    vmas: [Option<&'static Vma>; LEAF],
}

impl Default for VmaLeaf {
    fn default() -> Self {
        Self { len: 0, vmas: [None; LEAF] }
    }
}

impl<M: Machine> Pooled<M> for VmaLeaf {
    fn pool(mm: &Mm<M>) -> &Pool<M, Self> {
        &mm.vma_leaves
    }
}

impl VmaLeaf {
    fn first(&self) -> u64 {
        self.vmas[0].map_or(u64::MAX, |v| v.start().0)
    }
    fn vma(&self, i: usize) -> &'static Vma {
        match self.vmas[i] {
            Some(vma) => vma,
            None => unreachable!("entries below len are set"),
        }
    }
}

/// The VMAs of an address space in address order: a two-level sorted array. Look-up is two binary searches; an insertion
/// moves at most 240 words. Room for at least 15,000 VMAs.
pub(crate) struct VmaIndex<M: Machine> {
    leaves: [Option<PoolBox<M, VmaLeaf>>; LEAVES],
    len: usize,
    spare: [Option<PoolBox<M, VmaLeaf>>; 2],
}

impl<M: Machine> Default for VmaIndex<M> {
    fn default() -> Self {
        Self { leaves: [const { None }; LEAVES], len: 0, spare: [const { None }; 2] }
    }
}

impl<M: Machine> VmaIndex<M> {
    fn leaf(&self, i: usize) -> &VmaLeaf {
        match &self.leaves[i] {
            Some(leaf) => leaf,
            None => unreachable!("leaves below len are set"),
        }
    }
    fn leaf_mut(&mut self, i: usize) -> &mut VmaLeaf {
        match &mut self.leaves[i] {
            Some(leaf) => leaf,
            None => unreachable!("leaves below len are set"),
        }
    }

    /// (leaf, position) of the first VMA that ends after `addr`.
    #[inline]
    fn lower_bound(&self, addr: Vaddr) -> (usize, usize) {
        let (mut lo, mut hi) = (0, self.len);
        while lo + 1 < hi {
            let mid = (lo + hi) / 2;
            if self.leaf(mid).first() <= addr.0 { lo = mid } else { hi = mid }
        }
        if self.len == 0 {
            return (0, 0);
        }
        let leaf = self.leaf(lo);
        let (mut a, mut b) = (0, leaf.len);
        while a < b {
            let mid = (a + b) / 2;
            if leaf.vma(mid).range().end <= addr { a = mid + 1 } else { b = mid }
        }
        if a == leaf.len { (lo + 1, 0) } else { (lo, a) }
    }

    /// The first VMA that ends after `addr`.
    #[inline]
    pub(crate) fn first_after(&self, addr: Vaddr) -> Option<&'static Vma> {
        let (leaf, at) = self.lower_bound(addr);
        if leaf < self.len { Some(self.leaf(leaf).vma(at)) } else { None }
    }

    /// The VMA that holds `addr`.
    #[inline]
    pub(crate) fn find(&self, addr: Vaddr) -> Option<&'static Vma> {
        self.first_after(addr).filter(|vma| vma.start() <= addr)
    }

    /// Calls `f` for every VMA that has an address in `range`, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'static Vma> + '_ {
        (0..self.len).flat_map(|l| {
            let leaf = self.leaf(l);
            (0..leaf.len).map(|i| leaf.vma(i))
        })
    }

    /// Makes sure that the next two insertions cannot fail.
    pub(crate) fn reserve(&mut self, mm: &Mm<M>) -> Result<(), OutOfMemory> {
        if self.len + 2 > LEAVES {
            return Err(OutOfMemory { order: 0 });
        }
        for spare in &mut self.spare {
            if spare.is_none() {
                let mut leaf = mm.vma_leaves.alloc(mm)?;
                leaf.len = 0;
                *spare = Some(leaf);
            }
        }
        Ok(())
    }

    /// Inserts a VMA. After [`VmaIndex::reserve`].
    pub(crate) fn insert(&mut self, vma: &'static Vma) {
        let start = vma.start();
        if self.len == 0 {
            self.leaves[0] = self.take_spare();
            self.len = 1;
        }
        let mut l = (0..self.len).rev().find(|&l| self.leaf(l).first() <= start.0).unwrap_or(0);
        if self.leaf(l).len == LEAF {
            self.split_leaf(l);
            if self.leaf(l + 1).first() <= start.0 {
                l += 1;
            }
        }
        let leaf = self.leaf_mut(l);
        let at = (0..leaf.len).find(|&i| leaf.vma(i).start() > start).unwrap_or(leaf.len);
        leaf.vmas.copy_within(at..leaf.len, at + 1);
        leaf.vmas[at] = Some(vma);
        leaf.len += 1;
    }

    /// Takes a VMA out.
    pub(crate) fn remove(&mut self, vma: &'static Vma) {
        let (l, at) = self.lower_bound(vma.start());
        let leaf = self.leaf_mut(l);
        assert!(core::ptr::eq(leaf.vma(at), vma), "VMA is not in its index");
        leaf.vmas.copy_within(at + 1..leaf.len, at);
        leaf.len -= 1;
        leaf.vmas[leaf.len] = None;
        if leaf.len == 0 {
            self.leaves[l] = None;
            self.leaves[l..self.len].rotate_left(1);
            self.len -= 1;
        }
    }

    /// Gives all memory back; the index is empty.
    pub(crate) fn clear(&mut self) {
        for leaf in self.leaves.iter_mut().chain(&mut self.spare) {
            *leaf = None;
        }
        self.len = 0;
    }

    fn take_spare(&mut self) -> Option<PoolBox<M, VmaLeaf>> {
        let spare = self.spare.iter_mut().find_map(Option::take);
        assert!(spare.is_some(), "insertion without a reservation");
        spare
    }

    fn split_leaf(&mut self, l: usize) {
        let mut new = self.take_spare();
        if let Some(new) = &mut new {
            let old = self.leaf_mut(l);
            new.vmas[..LEAF / 2].copy_from_slice(&old.vmas[LEAF / 2..]);
            new.len = LEAF / 2;
            old.vmas[LEAF / 2..].fill(None);
            old.len = LEAF / 2;
        }
        self.leaves[l + 1..=self.len].rotate_right(1);
        self.leaves[l + 1] = new;
        self.len += 1;
    }
}

/// What the two VMA splits of a range operation need, taken before anything is changed.
pub(crate) struct VmaSpares<M: Machine> {
    vmas: [Option<&'static Vma>; 2],
    machine: core::marker::PhantomData<fn() -> M>,
}

impl<M: Machine> VmaSpares<M> {
    /// Two VMAs, and room for them in the index.
    pub(crate) fn reserve(index: &mut VmaIndex<M>) -> Result<Self, OutOfMemory> {
        let mm = M::mm();
        index.reserve(mm)?;
        let mut spares = Self { vmas: [None; 2], machine: core::marker::PhantomData };
        for spare in &mut spares.vmas {
            *spare = Some(mm.vmas.alloc(mm)?);
        }
        Ok(spares)
    }

    fn next(&mut self) -> Option<&'static Vma> {
        self.vmas.iter_mut().find_map(Option::take)
    }

    /// # Panics
    /// On the third call: a range has two ends.
    pub(crate) fn take(&mut self) -> &'static Vma {
        match self.next() {
            Some(vma) => vma,
            None => panic!("a range operation splits two VMAs at most"),
        }
    }
}

impl<M: Machine> Drop for VmaSpares<M> {
    fn drop(&mut self) {
        while let Some(vma) = self.next() {
            M::mm().vmas.free(vma);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Config, Soft};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A VMA of `len` pages at page `start`, in no set.
    fn vma(start: u64, len: u64) -> &'static Vma {
        let mm = Soft::mm();
        let vma = mm.vmas.alloc(mm).expect("memory");
        vma.set(&VmaAttrs {
            range: VaRange::new(start << PAGE_SHIFT, len << PAGE_SHIFT),
            pgoff: start,
            prot: Prot::RW,
            advice: HugeAdvice::Default,
            anon: NIL,
            space: 0,
            kind: VmaKind::Anon,
            flags: VmaFlags::empty(),
            object: NIL,
        });
        vma
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
        /// Against a sorted map, with enough VMAs that leaves are split and emptied.
        #[test]
        fn the_index_agrees_with_a_map(
            steps in prop::collection::vec((any::<bool>(), 0u64..1500, 0u64..1600), 1..2500)
        ) {
            let _machine = Soft::boot(&Config::default());
            let mut index = VmaIndex::<Soft>::default();
            let mut model: BTreeMap<u64, (&'static Vma, u64)> = BTreeMap::new();
            for (insert, slot, probe) in steps {
                let start = slot * 4;
                if insert && !model.contains_key(&start) {
                    index.reserve(Soft::mm()).expect("memory");
                    let len = 1 + slot % 4;
                    let new = vma(start, len);
                    index.insert(new);
                    model.insert(start, (new, len));
                } else if !insert && slot % 7 == 0 && let Some((_, (old, _))) = model.pop_last() {
                    index.remove(old);
                    Soft::mm().vmas.free(old);
                } else if !insert && let Some((old, _)) = model.remove(&start) {
                    index.remove(old);
                    Soft::mm().vmas.free(old);
                }
                let at = probe * 4 + slot % 5;
                let after = model.values().find(|(vma, len)| vma.start().0 >> PAGE_SHIFT > at || (vma.start().0 >> PAGE_SHIFT) + len > at);
                let found = index.first_after(Vaddr(at << PAGE_SHIFT));
                prop_assert_eq!(found.map(Vma::start), after.map(|(vma, _)| vma.start()));
                let holds = after.filter(|(vma, _)| vma.start().0 >> PAGE_SHIFT <= at);
                let found = index.find(Vaddr((at << PAGE_SHIFT) + 5));
                prop_assert_eq!(found.map(Vma::start), holds.map(|(vma, _)| vma.start()));
            }
            let all: Vec<_> = index.iter().map(Vma::start).collect();
            let expected: Vec<_> = model.values().map(|(vma, _)| vma.start()).collect();
            prop_assert_eq!(all, expected);
            index.clear();
            prop_assert_eq!(Soft::mm().vma_leaves.live(), 0);
        }
    }

    #[test]
    fn the_index_has_room_for_fifteen_thousand() {
        let _machine = Soft::boot(&Config::default());
        let mut index = VmaIndex::<Soft>::default();
        for i in 0..15_000 {
            index.reserve(Soft::mm()).expect("room");
            index.insert(vma(i * 2, 1));
        }
        assert_eq!(index.iter().count(), 15_000);
        assert!(index.find(Vaddr((14_999 * 2) << PAGE_SHIFT)).is_some());
    }

    #[test]
    fn a_huge_range_lies_wholly_inside_and_is_wanted() {
        let _machine = Soft::boot(&Config::default());
        let vma = vma(511, 1024);
        let inside = Vaddr(600 << PAGE_SHIFT);
        assert_eq!(vma.huge_range(inside), None, "not advised");
        vma.set_advice(HugeAdvice::Huge);
        assert_eq!(vma.huge_range(inside), Some(Vaddr(512 << PAGE_SHIFT)));
        assert_eq!(vma.huge_range(Vaddr(511 << PAGE_SHIFT)), None, "begins too early");
        assert_eq!(vma.huge_range(Vaddr(1100 << PAGE_SHIFT)), None, "ends too late");
        vma.set_advice(HugeAdvice::NoHuge);
        assert_eq!(vma.huge_range(inside), None);
    }
}
