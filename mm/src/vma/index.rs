//! The sorted index of the VMAs of one address space, and what range operations set aside for it.

use core::marker::PhantomData;

use crate::error::OutOfMemory;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::slab::{Pool, PoolBox, Pooled};
use crate::types::{VaRange, Vaddr};
use crate::vma::Vma;

const LEAF: usize = 240;
const LEAVES: usize = 128;
/// VMAs that one operation makes at most: a remap cuts at five addresses and makes one.
const MOST_SPARES: usize = 6;

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
    /// How many of its VMAs, from the first on, are as `f` says.
    #[inline(always)]
    fn count(&self, f: impl Fn(&'static Vma) -> bool) -> usize {
        let (mut from, mut to) = (0, self.len);
        while from < to {
            let mid = (from + to) / 2;
            if self.vmas[mid].is_some_and(&f) { from = mid + 1 } else { to = mid }
        }
        from
    }
}

/// The VMAs of an address space in address order: a two-level sorted array. Look-up is two binary searches; an insertion
/// moves at most 240 words. Room for at least 15,000 VMAs.
pub(crate) struct VmaIndex<M: Machine> {
    leaves: [Option<PoolBox<M, VmaLeaf>>; LEAVES],
    len: usize,
    spare: [Option<PoolBox<M, VmaLeaf>>; MOST_SPARES],
}

impl<M: Machine> Default for VmaIndex<M> {
    fn default() -> Self {
        Self { leaves: [const { None }; LEAVES], len: 0, spare: [const { None }; MOST_SPARES] }
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
        let Some(Some(leaf)) = self.leaves.get(lo) else { return (0, 0) };
        let at = leaf.count(|vma| vma.end() <= addr);
        if at == leaf.len { (lo + 1, 0) } else { (lo, at) }
    }

    /// The first VMA that ends after `addr`.
    #[inline]
    pub(crate) fn first_after(&self, addr: Vaddr) -> Option<&'static Vma> {
        let (leaf, at) = self.lower_bound(addr);
        self.leaves.get(leaf)?.as_ref()?.vmas[at]
    }

    /// The VMA that holds `addr`.
    #[inline]
    pub(crate) fn find(&self, addr: Vaddr) -> Option<&'static Vma> {
        self.first_after(addr).filter(|vma| vma.start() <= addr)
    }

    /// The VMAs that have an address in `range`, in order.
    pub(crate) fn iter_in(&self, range: VaRange) -> impl Iterator<Item = &'static Vma> + '_ {
        let mut at = range.start;
        core::iter::from_fn(move || {
            let vma = self.first_after(at).filter(|vma| at < range.end && vma.start() < range.end)?;
            at = vma.range().end;
            Some(vma)
        })
    }

    /// All of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'static Vma> + '_ {
        (0..self.len).flat_map(|l| {
            let leaf = self.leaf(l);
            (0..leaf.len).map(|i| leaf.vma(i))
        })
    }

    /// Makes sure that the next two insertions cannot fail.
    pub(crate) fn reserve(&mut self, mm: &Mm<M>) -> Result<(), OutOfMemory> {
        self.reserve_for(mm, 2)
    }

    /// Makes sure that the next `n` insertions cannot fail. Leaves with room for all of them take nothing.
    fn reserve_for(&mut self, mm: &Mm<M>, n: usize) -> Result<(), OutOfMemory> {
        let full = (0..self.len).any(|l| self.leaf(l).len + n > LEAF);
        let leaves = if full { n } else { usize::from(self.len == 0) };
        if self.len + leaves > LEAVES {
            return Err(OutOfMemory { order: 0 });
        }
        for spare in &mut self.spare[..leaves] {
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
        let at = leaf.count(|vma| vma.start() <= start);
        leaf.vmas.copy_within(at..leaf.len, at + 1);
        leaf.vmas[at] = Some(vma);
        leaf.len += 1;
    }

    /// Takes a VMA out.
    pub(crate) fn remove(&mut self, vma: &'static Vma) {
        let (l, at) = self.lower_bound(vma.start());
        assert!(core::ptr::eq(self.leaf(l).vma(at), vma), "VMA is not in its index");
        self.remove_at(l, at);
    }

    /// Takes out the first VMA that has an address in `range`.
    pub(crate) fn take_first_in(&mut self, range: VaRange) -> Option<&'static Vma> {
        let (l, at) = self.lower_bound(range.start);
        let vma = self.leaves.get(l)?.as_ref()?.vmas[at].filter(|vma| vma.start() < range.end)?;
        self.remove_at(l, at);
        Some(vma)
    }

    fn remove_at(&mut self, l: usize, at: usize) {
        let leaf = self.leaf_mut(l);
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

/// VMAs for an operation that cuts some in two, taken before anything is changed, with room for them in the index.
pub(crate) struct VmaSpares<M: Machine> {
    vmas: [Option<&'static Vma>; MOST_SPARES],
    machine: PhantomData<fn() -> M>,
}

impl<M: Machine> VmaSpares<M> {
    /// What it takes to cut the VMAs at these addresses, and `more` VMAs.
    pub(crate) fn for_cuts(
        index: &mut VmaIndex<M>,
        cuts: &[Vaddr],
        more: usize,
    ) -> Result<Self, OutOfMemory> {
        let mm = M::mm();
        let is_cut = |&at: &Vaddr| index.find(at).is_some_and(|vma| vma.start() != at);
        let n = cuts.iter().filter(|at| is_cut(at)).count() + more;
        let mut spares = Self { vmas: [None; MOST_SPARES], machine: PhantomData };
        if n != 0 {
            index.reserve_for(mm, n)?;
        }
        for spare in &mut spares.vmas[..n] {
            *spare = Some(mm.vmas.alloc(mm)?);
        }
        Ok(spares)
    }

    fn next(&mut self) -> Option<&'static Vma> {
        self.vmas.iter_mut().find_map(Option::take)
    }

    /// # Panics
    /// When more are taken than were set aside.
    pub(crate) fn take(&mut self) -> &'static Vma {
        match self.next() {
            Some(vma) => vma,
            None => panic!("a VMA is cut that nothing was set aside for"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::NIL;
    use crate::testing::{Config, Soft};
    use crate::types::{PAGE_SHIFT, Prot};
    use crate::vma::{HugeAdvice, VmaAttrs, VmaFlags, VmaKind};
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
        let machine = Soft::boot(&Config::default());
        let policy = &machine.state().mm.policy;
        let vma = vma(511, 1024);
        let inside = Vaddr(600 << PAGE_SHIFT);
        assert_eq!(vma.huge_range(inside, policy), None, "not advised");
        vma.set_advice(HugeAdvice::Huge);
        assert_eq!(vma.huge_range(inside, policy), Some(Vaddr(512 << PAGE_SHIFT)));
        assert_eq!(vma.huge_range(Vaddr(511 << PAGE_SHIFT), policy), None, "begins too early");
        assert_eq!(vma.huge_range(Vaddr(1100 << PAGE_SHIFT), policy), None, "ends too late");
        vma.set_advice(HugeAdvice::NoHuge);
        assert_eq!(vma.huge_range(inside, policy), None);
    }
}
