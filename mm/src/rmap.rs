//! Reverse map, by object: folio -> (anonymous set, page index) -> VMAs -> addresses.
//!
//! A folio stores the set and its index there, never an address: a remap moves addresses silently. Every address that the
//! walk yields is only a *place to look*: the caller locks the table there, reads the entry again, and accepts it only if it
//! names a frame of the folio and is of the kind asked for. (Linux had both mistakes: a walk that returned any
//! device-private PMD without checking the frame, and one that returned it to a caller who wanted migration entries.)

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::error::OutOfMemory;
use crate::folio::{Folio, RmapLink};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::slab::{NIL, Slot, SlotHeader};
use crate::space::Space;
use crate::sync::{SpinGuard, SpinLock};
use crate::types::{Order, PAGE_SHIFT, VaRange, Vaddr};
use crate::vma::Vma;

/// Whose pages a set is for; which of its two list links a VMA uses there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum SetOf {
    /// Anonymous pages of a mapping, its clones and what was moved or split off.
    Anon = 0,
    /// The pages of an object.
    Object = 1,
}

/// The VMAs that may map one family of pages (Linux: `anon_vma`, and `i_mmap` of an `address_space`). A clone or a moved
/// mapping joins the set, after the VMA that it comes from: a walk in list order then cannot miss an entry that is copied or
/// moved while it runs.
#[repr(align(64))]
pub(crate) struct AnonSet<M: Machine> {
    header: SlotHeader,
    /// [`SetOf`].
    of: AtomicU32,
    /// Head of the list of VMAs.
    vmas: SpinLock<M, u32>,
    /// Walks done, for tests of the cost of a walk.
    walks: AtomicU64,
}

impl<M: Machine> Default for AnonSet<M> {
    fn default() -> Self {
        Self {
            header: SlotHeader::default(),
            of: AtomicU32::new(0),
            vmas: SpinLock::new(NIL),
            walks: AtomicU64::new(0),
        }
    }
}

impl<M: Machine> Slot for AnonSet<M> {
    const KIND: u8 = 4;
    fn header(&self) -> &SlotHeader {
        &self.header
    }
}

/// A place where the walk says that a folio may be mapped.
#[derive(Clone, Copy)]
pub(crate) struct Mapped<M: Machine> {
    pub(crate) space: &'static Space<M>,
    /// Part of the VMA that the folio's pages would occupy.
    pub(crate) range: VaRange,
    /// Page of the folio at the range's start.
    pub(crate) first_page: u32,
}

impl<M: Machine> AnonSet<M> {
    pub(crate) fn alloc(mm: &Mm<M>, of: SetOf) -> Result<&'static Self, OutOfMemory> {
        let set = mm.anons.alloc(mm)?;
        *set.vmas.lock() = NIL;
        set.of.store(of as u32, Relaxed);
        set.walks.store(0, Relaxed);
        Ok(set)
    }

    pub(crate) fn slab_index(&self) -> u32 {
        self.header.key()
    }

    /// True for the pages of an object.
    pub(crate) fn is_of_object(&self) -> bool {
        self.of.load(Relaxed) == SetOf::Object as u32
    }

    /// Keeps walks of the reverse map out while entries move from one of its VMAs to another.
    pub(crate) fn hold(&self) -> SpinGuard<'_, M, u32> {
        self.vmas.lock()
    }

    /// The link of `vma` in this set's list.
    fn link<'a>(&self, vma: &'a Vma) -> &'a AtomicU32 {
        if self.is_of_object() { vma.object_link() } else { vma.list_link() }
    }

    /// Adds a VMA to the set, after one that is in it, or as the first.
    pub(crate) fn attach(&self, vma: &Vma, after: Option<&Vma>) {
        let mut head = self.vmas.lock();
        match after {
            Some(after) => {
                let at = self.link(after);
                self.link(vma).store(at.load(Relaxed), Relaxed);
                at.store(vma.slab_index(), Relaxed);
            }
            None => {
                self.link(vma).store(*head, Relaxed);
                *head = vma.slab_index();
            }
        }
    }

    /// Calls `f` with every VMA of the set, under its lock.
    pub(crate) fn for_each_vma(&self, mm: &Mm<M>, f: &mut dyn FnMut(&Vma)) {
        let head = self.vmas.lock();
        let mut at = *head;
        while at != NIL {
            let vma = mm.vmas.get(at);
            f(vma);
            at = self.link(vma).load(Relaxed);
        }
    }

    /// Returns when the walks that were under way have ended.
    pub(crate) fn wait_for_walks(&self) {
        drop(self.vmas.lock());
    }

    /// Takes a VMA out; true when the set is empty now and can be freed.
    pub(crate) fn detach(&self, mm: &Mm<M>, vma: &Vma) -> bool {
        let mut head = self.vmas.lock();
        let next = self.link(vma).load(Relaxed);
        if *head == vma.slab_index() {
            *head = next;
        } else {
            let mut at = mm.vmas.get(*head);
            while self.link(at).load(Relaxed) != vma.slab_index() {
                at = mm.vmas.get(self.link(at).load(Relaxed));
            }
            self.link(at).store(next, Relaxed);
        }
        *head == NIL
    }
}

impl<M: Machine> Mm<M> {
    /// Calls `f` for every place where `folio` may be mapped, until it returns false. The set's lock is held: `f` may lock
    /// page tables, nothing else.
    pub(crate) fn for_each_mapping(&self, folio: &Folio, f: &mut dyn FnMut(Mapped<M>) -> bool) {
        self.for_each_mapping_of(folio.link(), folio.order(), f);
    }

    /// As [`Mm::for_each_mapping`], for pages that were one folio of this link and order.
    pub(crate) fn for_each_mapping_of(
        &self,
        link: RmapLink,
        order: Order,
        f: &mut dyn FnMut(Mapped<M>) -> bool,
    ) {
        let RmapLink { anon, index } = link;
        if anon == NIL {
            return;
        }
        let set = self.anons.get(anon);
        let head = set.vmas.lock();
        set.walks.fetch_add(1, Relaxed);
        let mut at = *head;
        while at != NIL {
            let vma = self.vmas.get(at);
            if let Some((range, first_page)) = folio_in_vma(vma, index, order.pages()) {
                let space = self.spaces.get(vma.space());
                if !f(Mapped { space, range, first_page }) {
                    return;
                }
            }
            at = set.link(vma).load(Relaxed);
        }
    }
}

/// The part of `vma` that pages `index .. index + pages` of its set would occupy.
fn folio_in_vma(vma: &Vma, index: u64, pages: u32) -> Option<(VaRange, u32)> {
    let first = vma.page_index(vma.start());
    let last = first + vma.range().nr_pages();
    let (from, to) = (first.max(index), last.min(index + u64::from(pages)));
    if from >= to {
        return None;
    }
    let start: Vaddr = vma.address_of(from)?;
    Some((VaRange::new(start.0, (to - from) << PAGE_SHIFT), (from - index) as u32))
}
