//! Huge pages by reservation (Linux: hugetlb): a pool of 2 MiB blocks set aside, and mappings that take from it and nothing else.
//!
//! ```text
//!   RAM ── resize ──► free ── first touch, copy on write ──► a folio marked as the pool's
//!                      ▲                                         │ its last reference goes
//!                      └─────────────────────────────────────────┘
//! ```
//!
//! A mapping reserves all its pages when it is made, so that its touches cannot fail; a clone has no reservation, and what it
//! touches may find the pool empty. A reservation is a 2 MiB of a mapping with [`VmaFlags::HUGE_RESERVED`] where nothing is mapped
//! yet: so it is given back by counting those, when they are unmapped. Such a mapping is never split, small, migrated or moved.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::cursor::Peek;
use crate::entry::Entry;
use crate::error::{OutOfMemory, RangeError};
use crate::folio::{FolioRef, RmapLink};
use crate::frames::Frames;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::rmap::{AnonSet, SetOf};
use crate::slab::NIL;
use crate::space::Space;
use crate::sync::SpinLock;
use crate::types::{Frame, Order, PAGE_SHIFT, PMD_SIZE, Place, Prot, VaRange, Vaddr};
use crate::vma::{HugeAdvice, Vma, VmaAttrs, VmaFlags, VmaIndex, VmaKind};
use crate::zone::Need;

/// Most pages of the pool: 1 GiB.
const MOST: usize = 512;

/// What the pool has, in pages of 2 MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HugePoolStat {
    /// All of its pages.
    pub total: u32,
    /// Those that nothing uses.
    pub free: u32,
    /// Those of the free ones that mappings will use.
    pub reserved: u32,
}

/// Blocks that are free, and what is promised of them.
struct Blocks {
    stat: HugePoolStat,
    /// First frames; as many as are free.
    free: [u32; MOST],
}

/// The pool.
pub(crate) struct HugePool<M: Machine> {
    blocks: SpinLock<M, Blocks>,
    /// Pages of the pool, to be asked without the lock: who has none pays for a look.
    total: AtomicU32,
}

impl<M: Machine> HugePool<M> {
    pub(crate) const fn new() -> Self {
        let stat = HugePoolStat { total: 0, free: 0, reserved: 0 };
        Self { blocks: SpinLock::new(Blocks { stat, free: [0; MOST] }), total: AtomicU32::new(0) }
    }

    /// Is there a pool, so that there may be mappings of it?
    #[inline(always)]
    pub(crate) fn is_used(&self) -> bool {
        self.total.load(Relaxed) != 0
    }

    fn put(&self, block: Frame) {
        let mut blocks = self.blocks.lock();
        let at = blocks.stat.free as usize;
        blocks.free[at] = block.index();
        blocks.stat.free += 1;
    }

    /// Takes a free block: one that is promised, or one that is not. A promise stands until it is kept ([`Self::keep`]): two who
    /// touch one page both take a block, and one gives it back.
    fn take(&self, promised: bool) -> Option<Frame> {
        let mut blocks = self.blocks.lock();
        let stat = &mut blocks.stat;
        let least = if promised { 0 } else { stat.reserved };
        if stat.free <= least {
            return None;
        }
        stat.free -= 1;
        let at = stat.free as usize;
        Some(Frame::ram(blocks.free[at]))
    }

    /// Of what is promised, so much is mapped from now on, or will never be.
    pub(crate) fn keep(&self, pages: u32) {
        self.blocks.lock().stat.reserved -= pages;
    }

    pub(crate) fn reserve(&self, pages: u64) -> Result<(), OutOfMemory> {
        let mut blocks = self.blocks.lock();
        let stat = &mut blocks.stat;
        if pages > u64::from(stat.free.saturating_sub(stat.reserved)) {
            return Err(OutOfMemory { order: Order::PMD.get() });
        }
        stat.reserved += pages as u32;
        Ok(())
    }

    /// Adds a block, unless there are as many already: then it comes back.
    fn grow(&self, wanted: u32, frames: Frames<M>) -> Option<Frames<M>> {
        let mut blocks = self.blocks.lock();
        if blocks.stat.total >= wanted {
            return Some(frames);
        }
        let at = blocks.stat.free as usize;
        blocks.free[at] = frames.into_inner().0.index();
        blocks.stat.free += 1;
        blocks.stat.total += 1;
        self.total.store(blocks.stat.total, Relaxed);
        None
    }

    /// Takes a block away, if there are more than wanted and one that is neither used nor promised.
    fn shrink(&self, wanted: u32) -> Option<Frame> {
        let mut blocks = self.blocks.lock();
        let stat = &mut blocks.stat;
        if stat.total <= wanted || stat.free <= stat.reserved {
            return None;
        }
        stat.free -= 1;
        stat.total -= 1;
        let (at, total) = (stat.free as usize, stat.total);
        self.total.store(total, Relaxed);
        Some(Frame::ram(blocks.free[at]))
    }

    /// The block of a folio that is gone.
    #[cold]
    pub(crate) fn give_back(&self, frames: Frames<M>) {
        self.put(frames.into_inner().0);
    }
}

impl<M: Machine> Mm<M> {
    /// What the pool of huge pages has.
    #[must_use]
    pub fn huge_pool(&self) -> HugePoolStat {
        self.huge_pool.blocks.lock().stat
    }

    /// Makes the pool so many pages large, as far as there is memory, and as far as pages are free and not promised; how large it
    /// is then. At most 512.
    pub fn resize_huge_pool(&self, pages: u32) -> u32 {
        let pool = &self.huge_pool;
        let wanted = pages.min(MOST as u32);
        while self.huge_pool().total < wanted {
            let Ok(frames) = self.alloc_frames(Place::RAM, Order::PMD, Need::User) else { break };
            if let Some(frames) = pool.grow(wanted, frames) {
                drop(frames);
                break; // somebody else was faster
            }
        }
        while let Some(block) = pool.shrink(wanted) {
            drop(Frames::<M>::own(block, Order::PMD));
        }
        self.huge_pool().total
    }

    /// A folio of the pool, its contents undefined; `None` when it has none to give.
    ///
    /// # Errors
    /// [`OutOfMemory`]: there is no room for its descriptor.
    pub(crate) fn alloc_from_pool(&self, promised: bool) -> Result<Option<FolioRef<M>>, OutOfMemory> {
        let folio = self.folios.alloc(self)?;
        let Some(block) = self.huge_pool.take(promised) else {
            self.folios.free(folio);
            return Ok(None);
        };
        Ok(Some(self.folio_of_pool(folio, block)))
    }
}

impl<M: Machine> Space<M> {
    /// Maps huge pages of the pool at exactly `range`, which is of whole 2 MiB, and reserves them.
    ///
    /// # Errors
    /// [`RangeError::Invalid`]; [`RangeError::Exists`]; [`RangeError::Oom`], also when the pool has too few.
    pub fn map_hugetlb(&'static self, range: VaRange, prot: Prot) -> Result<(), RangeError> {
        if !range.is_user_pages() || !range.start.is_aligned(PMD_SIZE) || !range.end.is_aligned(PMD_SIZE) {
            return Err(RangeError::Invalid(range));
        }
        let mm = M::mm();
        let oom = |_| RangeError::Oom(range.start);
        let mut vmas = self.vmas.write();
        if vmas.first_after(range.start).is_some_and(|vma| vma.start() < range.end) {
            return Err(RangeError::Exists(range));
        }
        vmas.reserve(mm).map_err(oom)?;
        let vma = mm.vmas.alloc(mm).map_err(oom)?;
        let anon = AnonSet::alloc(mm, SetOf::Anon).and_then(|set| {
            match mm.huge_pool.reserve(range.len() / PMD_SIZE) {
                Ok(()) => Ok(set),
                Err(none) => {
                    mm.anons.free(set);
                    Err(none)
                }
            }
        });
        let anon = match anon {
            Ok(set) => set.slab_index(),
            Err(none) => {
                mm.vmas.free(vma);
                return Err(oom(none));
            }
        };
        vma.set(&VmaAttrs {
            range,
            pgoff: range.start.0 >> PAGE_SHIFT,
            prot,
            advice: HugeAdvice::Default,
            anon,
            space: self.slab_index(),
            kind: VmaKind::Hugetlb,
            flags: VmaFlags::HUGE_RESERVED,
            object: NIL,
        });
        self.link_vma(vma, None);
        vmas.insert(vma);
        Ok(())
    }

    /// A copy of a page of the pool, from the pool.
    #[cold]
    pub(crate) fn hugetlb_copy(
        &self,
        vma: &Vma,
        addr: Vaddr,
        from: Frame,
    ) -> Result<FolioRef<M>, OutOfMemory> {
        let copy = M::mm().alloc_from_pool(false)?.ok_or(OutOfMemory { order: Order::PMD.get() })?;
        M::copy(from, copy.frame(), Order::PMD);
        let index = vma.page_index(addr.align_down(PMD_SIZE));
        copy.set_link(RmapLink { anon: vma.anon(), index });
        Ok(copy)
    }

    /// Would an end of `range` cut a page of the pool?
    #[inline(always)]
    pub(crate) fn cuts_hugetlb(&self, vmas: &VmaIndex<M>, range: VaRange) -> bool {
        M::mm().huge_pool.is_used() && cuts(vmas, range)
    }

    /// Gives back what mappings in `range` have reserved and not used: they are about to go. With the VMA lock held alone.
    #[inline(always)]
    pub(crate) fn unreserve_huge(&'static self, vmas: &VmaIndex<M>, range: VaRange) {
        if M::mm().huge_pool.is_used() {
            let unused = vmas.iter_in(range).map(|vma| self.reserved_in(vma, range)).sum();
            M::mm().huge_pool.keep(unused);
        }
    }

    /// Pages that `vma` has reserved in `range` and not used.
    pub(crate) fn reserved_in(&self, vma: &Vma, range: VaRange) -> u32 {
        if !vma.flags().contains(VmaFlags::HUGE_RESERVED) {
            return 0;
        }
        let part = vma.range().intersect(range);
        let starts = (part.start.0..part.end.0).step_by(PMD_SIZE as usize);
        let is_empty = |at: &u64| matches!(self.peek(Vaddr(*at)), Peek::NoTable | Peek::Pmd(_, Entry::None));
        starts.filter(is_empty).count() as u32
    }
}

#[cold]
fn cuts<M: Machine>(vmas: &VmaIndex<M>, range: VaRange) -> bool {
    [range.start, range.end].into_iter().any(|end| {
        let is_inside = |vma: &&Vma| vma.kind() == VmaKind::Hugetlb;
        !end.is_aligned(PMD_SIZE) && vmas.find(end).filter(is_inside).is_some()
    })
}
