//! Objects: memory that mappings share (Linux: an `address_space` with its page cache).
//!
//! An object owns single pages by index and knows, through a set like those of anonymous memory, the VMAs that map it. It lives
//! as long as somebody has a handle or maps it; then its pages go. Three kinds: anonymous memory that is shared, a file's
//! contents, and a driver's pages.
//!
//! Pages are made at their first use, cleared, and stay in RAM. The index is a tree of three levels with pages of slots as nodes,
//! made as needed: sparse objects of [`Object::MAX_PAGES`] pages cost what they hold. Its lock is a leaf of the lock order but for
//! the allocators'.

mod mapping;
mod resize;

use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Relaxed};

use crate::error::OutOfMemory;
use crate::folio::{Folio, FolioRef, RmapLink};
use crate::group::NoPage;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::rmap::{AnonSet, SetOf};
use crate::slab::{NIL, Pool, PoolBox, Pooled, Slot, SlotHeader};
use crate::sync::SpinLock;
use crate::types::{Order, PAGE_SHIFT, Place};
use crate::vma::Vma;
use crate::zone::Need;

/// Slots of a lowest node, and nodes below a middle one: as many as fit into a frame.
const LEAF: usize = 500;
const MIDDLE: usize = 250;
/// Middle nodes of an object.
const ROOTS: usize = 8;

/// What an object's pages are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ObjectKind {
    /// Memory without a file (`MAP_SHARED | MAP_ANONYMOUS`).
    Anon = 0,
    /// The contents of a file.
    File = 1,
    /// A driver's own pages, all there from the start. Mappings of them are not counted.
    Driver = 2,
}

/// A lowest node of an index. Empty when it is given back.
pub(crate) struct IndexLeaf<M: Machine> {
    pages: [Option<FolioRef<M>>; LEAF],
}

impl<M: Machine> Default for IndexLeaf<M> {
    fn default() -> Self {
        Self { pages: [const { None }; LEAF] }
    }
}

impl<M: Machine> Pooled<M> for IndexLeaf<M> {
    fn pool(mm: &Mm<M>) -> &Pool<M, Self> {
        &mm.index_leaves
    }
}

/// A middle node of an index. Empty when it is given back.
pub(crate) struct IndexMiddle<M: Machine> {
    leaves: [Option<PoolBox<M, IndexLeaf<M>>>; MIDDLE],
}

impl<M: Machine> Default for IndexMiddle<M> {
    fn default() -> Self {
        Self { leaves: [const { None }; MIDDLE] }
    }
}

impl<M: Machine> Pooled<M> for IndexMiddle<M> {
    fn pool(mm: &Mm<M>) -> &Pool<M, Self> {
        &mm.index_middles
    }
}

/// From page index to page.
struct Index<M: Machine> {
    roots: [Option<PoolBox<M, IndexMiddle<M>>>; ROOTS],
}

/// The way to page `index`: which root, which node below it, which slot.
const fn way(index: u64) -> (usize, usize, usize) {
    let (node, slot) = (index / LEAF as u64, index % LEAF as u64);
    ((node / MIDDLE as u64) as usize, (node % MIDDLE as u64) as usize, slot as usize)
}

impl<M: Machine> Index<M> {
    fn get(&self, index: u64) -> Option<&FolioRef<M>> {
        let (root, node, slot) = way(index);
        let middle = self.roots.get(root)?.as_ref()?;
        middle.leaves[node].as_ref()?.pages[slot].as_ref()
    }

    /// The slot of page `index`, with the nodes that lead there.
    fn slot(&mut self, mm: &Mm<M>, index: u64) -> Result<&mut Option<FolioRef<M>>, OutOfMemory> {
        let (root, node, slot) = way(index);
        let middle = match &mut self.roots[root] {
            Some(middle) => middle,
            none => none.insert(mm.index_middles.alloc(mm)?),
        };
        let leaf = match &mut middle.leaves[node] {
            Some(leaf) => leaf,
            none => none.insert(mm.index_leaves.alloc(mm)?),
        };
        Ok(&mut leaf.pages[slot])
    }

    fn for_each(&self, f: &mut dyn FnMut(u64, &FolioRef<M>)) {
        let mut first = 0;
        for root in &self.roots {
            let Some(middle) = root else {
                first += (MIDDLE * LEAF) as u64;
                continue;
            };
            for leaf in &middle.leaves {
                let pages = leaf.iter().flat_map(|leaf| leaf.pages.iter().enumerate());
                for (slot, page) in pages {
                    if let Some(page) = page {
                        f(first + slot as u64, page);
                    }
                }
                first += LEAF as u64;
            }
        }
    }

    /// Lets go of every page, and of the nodes.
    fn clear(&mut self) {
        for mut middle in self.roots.iter_mut().filter_map(Option::take) {
            for mut leaf in middle.leaves.iter_mut().filter_map(Option::take) {
                leaf.pages.iter_mut().for_each(|page| *page = None);
            }
        }
    }

    /// Lets go of the pages from `end` on, and of the nodes that hold nothing else.
    fn truncate(&mut self, end: u64) {
        let mut first = 0;
        for root in &mut self.roots {
            let next = first + (MIDDLE * LEAF) as u64;
            if let Some(middle) = root.as_mut().filter(|_| end < next) {
                for leaf in &mut middle.leaves {
                    let keep = end.saturating_sub(first).min(LEAF as u64) as usize;
                    leaf.iter_mut()
                        .for_each(|leaf| leaf.pages[keep..].iter_mut().for_each(|page| *page = None));
                    leaf.take_if(|leaf| keep < LEAF && leaf.pages.iter().all(Option::is_none));
                    first += LEAF as u64;
                }
                root.take_if(|middle| middle.leaves.iter().all(Option::is_none));
            }
            first = next;
        }
    }

    /// Middle nodes and lowest nodes in use.
    fn nodes(&self) -> (u32, u32) {
        let middles = self.roots.iter().flatten();
        let leaves = middles.clone().map(|middle| middle.leaves.iter().flatten().count() as u32);
        (middles.count() as u32, leaves.sum())
    }
}

/// Memory that mappings share. Reached through an [`ObjectRef`].
#[repr(align(64))]
pub struct Object<M: Machine> {
    header: SlotHeader,
    /// Handles and VMAs; 0 for one that does not exist.
    refs: AtomicU32,
    /// The set of the VMAs that map it.
    set: AtomicU32,
    kind: AtomicU32,
    pages: AtomicU64,
    index: SpinLock<M, Index<M>>,
}

impl<M: Machine> Default for Object<M> {
    fn default() -> Self {
        Self {
            header: SlotHeader::default(),
            refs: AtomicU32::new(0),
            set: AtomicU32::new(NIL),
            kind: AtomicU32::new(0),
            pages: AtomicU64::new(0),
            index: SpinLock::new(Index { roots: [const { None }; ROOTS] }),
        }
    }
}

impl<M: Machine> Slot for Object<M> {
    const KIND: u8 = 6;
    fn header(&self) -> &SlotHeader {
        &self.header
    }
}

impl<M: Machine> fmt::Debug for Object<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object {} ({:?}) of {} pages", self.header.key(), self.kind(), self.pages())
    }
}

impl<M: Machine> Object<M> {
    /// Most pages of an object (3.8 GiB).
    pub const MAX_PAGES: u64 = (ROOTS * MIDDLE * LEAF) as u64;

    /// No mapping has a page number as high: those of files end at 2^63 bytes.
    pub const MAX_PGOFF: u64 = 1 << (63 - PAGE_SHIFT);

    /// Shared anonymous memory of `pages` pages, all zero and not there yet.
    ///
    /// # Errors
    /// [`OutOfMemory`], also for more than [`Object::MAX_PAGES`].
    pub fn anon_shared(pages: u64) -> Result<ObjectRef<M>, OutOfMemory> {
        Self::make(ObjectKind::Anon, pages)
    }

    /// A file of `pages` pages, all zero and not there yet.
    ///
    /// # Errors
    /// As [`Object::anon_shared`].
    pub fn file(pages: u64) -> Result<ObjectRef<M>, OutOfMemory> {
        Self::make(ObjectKind::File, pages)
    }

    /// `pages` cleared pages of a driver, for [`crate::Space::map_device_pages`].
    ///
    /// # Errors
    /// As [`Object::anon_shared`], and when not all pages can be had.
    pub fn driver(pages: u64) -> Result<ObjectRef<M>, OutOfMemory> {
        let object = Self::make(ObjectKind::Driver, pages)?;
        for index in 0..pages {
            object.page_or_alloc(index)?;
        }
        Ok(object)
    }

    fn make(kind: ObjectKind, pages: u64) -> Result<ObjectRef<M>, OutOfMemory> {
        let mm = M::mm();
        if pages > Self::MAX_PAGES {
            return Err(OutOfMemory { order: 0 });
        }
        let object = mm.objects.alloc(mm)?;
        let set = match AnonSet::alloc(mm, SetOf::Object) {
            Ok(set) => set,
            Err(oom) => {
                mm.objects.free(object);
                return Err(oom);
            }
        };
        object.set.store(set.slab_index(), Relaxed);
        object.kind.store(kind as u32, Relaxed);
        object.pages.store(pages, Relaxed);
        object.refs.store(1, Relaxed);
        Ok(ObjectRef(object))
    }

    /// A number that no other object has while this one lives.
    #[must_use]
    pub fn key(&self) -> u32 {
        self.header.key()
    }

    /// Pages, there or not. Mappings may reach beyond; a touch there finds no page.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages.load(Relaxed)
    }

    /// How many pages are there. Counted under the object's lock.
    #[must_use]
    pub fn present(&self) -> u64 {
        let mut pages = 0;
        self.for_each_page(&mut |_, _| pages += 1);
        pages
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> ObjectKind {
        match self.kind.load(Relaxed) {
            0 => ObjectKind::Anon,
            1 => ObjectKind::File,
            _ => ObjectKind::Driver,
        }
    }

    /// Page `index`, if it is there.
    #[must_use]
    pub fn page(&self, index: u64) -> Option<FolioRef<M>> {
        self.index.lock().get(index).cloned()
    }

    /// Page `index`, made and cleared if need be. The caller holds no spin lock.
    ///
    /// # Errors
    /// [`OutOfMemory`]; also for a page beyond the end.
    pub fn page_or_alloc(&self, index: u64) -> Result<FolioRef<M>, OutOfMemory> {
        loop {
            match self.page_or_alloc_for(index, Ok) {
                Ok(page) => return Ok(page),
                Err(_) if index < self.pages() && M::mm().relieve(Place::RAM) => {}
                Err(_) => return Err(OutOfMemory { order: 0 }),
            }
        }
    }

    /// As [`Object::page_or_alloc`]; a fresh page goes through `charge`, which may refuse it.
    pub(crate) fn page_or_alloc_for(
        &self,
        index: u64,
        charge: impl FnOnce(FolioRef<M>) -> Result<FolioRef<M>, NoPage>,
    ) -> Result<FolioRef<M>, NoPage> {
        if index >= self.pages() {
            return Err(NoPage::Memory);
        }
        if let Some(page) = self.page(index) {
            return Ok(page);
        }
        let mm = M::mm();
        let fresh = mm.alloc_folio(Place::RAM, Order::BASE, Need::User)?;
        let fresh = charge(fresh)?;
        M::zero(fresh.frame(), Order::BASE);
        fresh.set_link(RmapLink { anon: self.set.load(Relaxed), index });
        let mut tree = self.index.lock();
        if index >= self.pages() {
            return Err(NoPage::Memory); // it became shorter meanwhile
        }
        // Somebody else may have been faster; then the fresh one goes, and their page is the page.
        let page = tree.slot(mm, index)?.get_or_insert(fresh).clone();
        drop(tree);
        Ok(page)
    }

    /// Reads words of page `index`, from word `word` of it on; they end inside the page (`pread`). A page that is not there yet is
    /// read as zeros, and so is what lies beyond the end.
    pub fn read(&self, index: u64, word: usize, to: &mut [u64]) {
        match self.page(index) {
            Some(page) => M::read_frame(page.frame(), word, to),
            None => to.fill(0),
        }
    }

    /// Writes words of page `index`, which end inside it (`pwrite`). All who map the page see them.
    ///
    /// # Errors
    /// [`OutOfMemory`]; also for a page beyond the end.
    pub fn write(&self, index: u64, word: usize, from: &[u64]) -> Result<(), OutOfMemory> {
        let page = self.page_or_alloc(index)?;
        M::write_frame(page.frame(), word, from);
        page.set_dirty();
        Ok(())
    }

    /// Calls `f` with every page that is there, in order, under the object's lock.
    pub(crate) fn for_each_page(&self, f: &mut dyn FnMut(u64, &Folio)) {
        self.index.lock().for_each(&mut |index, page| f(index, page));
    }

    /// Slab index of the set of the VMAs that map it.
    pub(crate) fn set(&self) -> u32 {
        self.set.load(Relaxed)
    }

    pub(crate) fn is_live(&self) -> bool {
        self.refs.load(Relaxed) != 0
    }

    /// Middle nodes and lowest nodes of its index.
    pub(crate) fn nodes(&self) -> (u32, u32) {
        self.index.lock().nodes()
    }

    /// Another handle. Somebody holds one, or a VMA does.
    pub(crate) fn handle(&'static self) -> ObjectRef<M> {
        self.refs.fetch_add(1, Relaxed);
        ObjectRef(self)
    }

    /// A VMA maps it from now on: directly after `after` in its set, where that one maps it too.
    pub(crate) fn attach(&self, vma: &Vma, after: Option<&Vma>) {
        self.refs.fetch_add(1, Relaxed);
        M::mm().anons.get(self.set.load(Relaxed)).attach(vma, after);
    }

    /// Returns when the walks of the reverse map that were under way have ended.
    pub(crate) fn wait_for_walks(&self) {
        M::mm().anons.get(self.set.load(Relaxed)).wait_for_walks();
    }

    /// A VMA that was attached is gone. What mapped the object's pages through it is unmapped, and flushed where those are not
    /// counted.
    pub(crate) fn detach(&'static self, vma: &Vma) {
        let mm = M::mm();
        mm.anons.get(self.set.load(Relaxed)).detach(mm, vma);
        self.put();
    }

    fn put(&'static self) {
        if self.refs.fetch_sub(1, AcqRel) != 1 {
            return;
        }
        let mm = M::mm();
        self.index.lock().clear();
        mm.anons.free(mm.anons.get(self.set.load(Relaxed)));
        mm.objects.free(self);
    }
}

/// A counted handle of an object.
#[derive(Debug)]
pub struct ObjectRef<M: Machine>(&'static Object<M>);

impl<M: Machine> Clone for ObjectRef<M> {
    fn clone(&self) -> Self {
        self.0.refs.fetch_add(1, Relaxed);
        Self(self.0)
    }
}

impl<M: Machine> Deref for ObjectRef<M> {
    type Target = Object<M>;
    fn deref(&self) -> &Object<M> {
        self.0
    }
}

impl<M: Machine> Drop for ObjectRef<M> {
    fn drop(&mut self) {
        self.0.put();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Config, Soft};

    #[test]
    fn the_way_to_a_page_is_its_own() {
        let mut last = None;
        for index in (0..Object::<Soft>::MAX_PAGES).step_by(499) {
            let way = way(index);
            assert!(way.0 < ROOTS && way.1 < MIDDLE && way.2 < LEAF);
            assert!(last < Some(way), "in order, none twice");
            last = Some(way);
        }
    }

    #[test]
    fn a_sparse_object_costs_what_it_holds() {
        let machine = Soft::boot(&Config::default());
        let object = Object::<Soft>::file(Object::<Soft>::MAX_PAGES).expect("memory");
        let indices = [0, 1, 499, 500, 124_999, 125_000, Object::<Soft>::MAX_PAGES - 1];
        for &index in &indices {
            assert!(object.page(index).is_none());
            let page = object.page_or_alloc(index).expect("memory");
            assert_eq!(object.page_or_alloc(index).expect("it is there").frame(), page.frame());
        }
        assert!(object.page_or_alloc(Object::<Soft>::MAX_PAGES).is_err(), "beyond the end");
        let mut found = Vec::new();
        object.for_each_page(&mut |index, _| found.push(index));
        assert_eq!(found, indices);
        assert_eq!(object.nodes(), (3, 5));
        machine.mm.audit().expect("all is counted");
        drop(object);
        let (middles, leaves) = (machine.mm.index_middles.live(), machine.mm.index_leaves.live());
        assert_eq!((machine.mm.folios_in_use(), machine.mm.objects.live(), middles, leaves), (0, 0, 0, 0));
        assert!(Object::<Soft>::file(Object::<Soft>::MAX_PAGES + 1).is_err());
    }
}
