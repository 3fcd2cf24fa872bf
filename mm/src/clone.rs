//! Cloning an address space (`fork`): every mapping, and what its entries name, copied on write from then on.
//!
//! ```text
//!   each VMA of the parent:  a copy joins its set, directly after it       walks look at the parent first, so they find here
//!      each entry:           EXCLUSIVE and WRITE go, in both               what is copied behind their back
//!   once, at the end:        the parent's TLBs forget what they could write
//! ```
//!
//! A 2 MiB entry costs what a 4 KiB entry costs, on a device too: there nothing is flushed, for no TLB can know the page. What
//! is being moved is cloned as what is being moved; only a PMD-level migration entry becomes a table of 512 in the clone, so
//! that the number of tables that a unit in pieces needs stays what it was when the unit was unmapped.
//!
//! A *pinned* page is copied at once, and the parent keeps the one that is pinned. A pin without a lock counts itself and then
//! looks at the entry again; here the entry loses EXCLUSIVE first and the pins are read then. So one of the two sees the other.
//! No table is locked while memory is taken for the copy and filled.
//!
//! Shared mappings get their entries by faults. Without memory the clone is undone wholly. The parent is as before, but that
//! pages may have lost EXCLUSIVE: its next write to such a page finds that nobody shares it and takes it back.

use core::sync::atomic::Ordering::Relaxed;

use crate::cursor::Cursor;
use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf, word};
use crate::error::OutOfMemory;
use crate::exclusive::take_back;
use crate::folio::{Folio, FolioRef, RmapLink};
use crate::machine::{FlushReason, Machine, TableWords};
use crate::notifier::NotifyEvent;
use crate::space::{AddressSpace, Space};
use crate::split::split_pmd_at;
use crate::table::Table;
use crate::tlb::TlbGather;
use crate::types::{Frame, Level, Order, PMD_SIZE, PUD_SIZE, Place, USER_END, VaRange, Vaddr};
use crate::vma::{Vma, VmaAttrs, VmaFlags, VmaKind};
use crate::zone::Need;

/// What an entry must not say of a page that two have.
const SOLE: Attrs = Attrs::WRITE.union(Attrs::EXCLUSIVE);

/// Why a clone cannot go on.
enum Stop {
    Oom(OutOfMemory),
    /// This folio is lent to a device at the moment.
    Busy(&'static Folio),
}

impl From<OutOfMemory> for Stop {
    fn from(oom: OutOfMemory) -> Self {
        Self::Oom(oom)
    }
}

/// What becomes of an entry.
enum Copied {
    /// This stands in the clone too.
    Same(Entry),
    /// The page at this frame is pinned: the clone needs a copy, and an entry with these attributes.
    Pinned(Frame, Attrs),
}

impl<M: Machine> AddressSpace<M> {
    /// A copy of this address space (Linux: `dup_mmap`). `kernel_half` is as for [`AddressSpace::new`], but may be called again:
    /// a page that a device holds for itself is waited for, and the clone begun again. Sleeps; the caller holds no lock.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing has changed then, except that entries of this space may allow less until their next fault.
    pub fn clone_of(&self, kernel_half: impl Fn(&'static TableWords)) -> Result<Self, OutOfMemory> {
        loop {
            match self.try_clone(&kernel_half) {
                Ok(child) => return Ok(child),
                Err(Stop::Oom(_)) if M::mm().relieve(Place::RAM) => {}
                Err(Stop::Oom(oom)) => return Err(oom),
                // Not with the VMA lock held: who has locked the folio may want that.
                Err(Stop::Busy(folio)) => folio.wait_unlocked::<M>(),
            }
        }
    }

    fn try_clone(&self, kernel_half: &impl Fn(&'static TableWords)) -> Result<Self, Stop> {
        let child = Self::new(kernel_half)?;
        clone_into(self.space(), child.space())?;
        Ok(child)
    }
}

fn clone_into<M: Machine>(parent: &'static Space<M>, child: &'static Space<M>) -> Result<(), Stop> {
    let mm = M::mm();
    let vmas = parent.vmas.write();
    let _change = parent.invalidate(VaRange::between(Vaddr(0), Vaddr(USER_END)), NotifyEvent::Protection);
    // Nobody else knows the child, except walks of the reverse map, which do not take this.
    let mut copies = child.vmas.write();
    child.join_group_of(parent);
    // Flushes when it is dropped, with all this held.
    let mut clone = Clone { parent, child, gather: TlbGather::new(FlushReason::Protect) };
    for vma in vmas.iter() {
        copies.reserve(mm)?;
        let copy = mm.vmas.alloc(mm)?;
        // What the parent has reserved stays the parent's.
        let flags = vma.flags() - VmaFlags::HUGE_RESERVED;
        copy.set(&VmaAttrs { space: child.slab_index(), flags, ..vma.attrs() });
        child.link_vma(copy, Some(vma));
        copies.insert(copy);
        if vma.kind() != VmaKind::Shared {
            clone.copy_entries(vma)?;
        }
    }
    Ok(())
}

/// A clone under way, with the parent's VMA lock held alone.
struct Clone<M: Machine> {
    parent: &'static Space<M>,
    child: &'static Space<M>,
    gather: TlbGather<M>,
}

impl<M: Machine> Clone<M> {
    fn copy_entries(&mut self, vma: &Vma) -> Result<(), Stop> {
        let range = vma.range();
        let mut at = range.start;
        while at < range.end {
            let Some(pmd) = self.parent.pmd_table(at) else {
                at = at.align_down(PUD_SIZE).add(PUD_SIZE);
                continue;
            };
            let next = at.align_down(PMD_SIZE).add(PMD_SIZE);
            let word = pmd.words()[at.index(Level::Pmd)].load(Relaxed);
            let done = match Entry::decode(word, Level::Pmd) {
                Entry::None => true,
                Entry::Table(pfn) => {
                    let part = VaRange::between(at, next.min(range.end));
                    self.copy_table(vma, M::mm().table(pfn), part)?;
                    true
                }
                entry @ (Entry::Leaf(_) | Entry::NonPresent(_)) => self.copy_huge(vma, pmd, at, entry)?,
            };
            if done {
                at = next;
            }
        }
        Ok(())
    }

    /// Copies a PMD entry, seen as `seen`; false when it is to be looked at again.
    fn copy_huge(&mut self, vma: &Vma, pmd: &'static Table<M>, at: Vaddr, seen: Entry) -> Result<bool, Stop> {
        let mm = M::mm();
        let to = self.child.pmd_table_or_alloc(at, Need::User)?;
        let is_moving = |entry| matches!(entry, Entry::NonPresent(soft) if soft.kind == SoftKind::Migration);
        let spare = if is_moving(seen) { Some(mm.spare_pte_table(at, Need::User)?) } else { None };
        let mut from = self.parent.cursor_in(pmd, Level::Pmd, at);
        let entry = from.entry();
        if matches!(entry, Entry::None | Entry::Table(_)) || is_moving(entry) != spare.is_some() {
            return Ok(false);
        }
        let mut to = self.child.cursor_in(to, Level::Pmd, at);
        if to.entry() != Entry::None {
            return Ok(true); // it reaches over the border of a VMA, and came with the one before
        }
        match self.share(vma, &mut from, entry)? {
            Copied::Same(Entry::NonPresent(soft)) if let Some(mut spare) = spare => {
                spare.fill_run(0, 512, Entry::NonPresent(soft));
                // One was counted for the entry itself.
                mm.mapped_folio(soft.frame).add_migs(511);
                to.hook(spare);
            }
            Copied::Same(entry) => to.install(entry),
            Copied::Pinned(frame, attrs) => {
                drop(to);
                let source = FolioRef::<M>::get(mm.mapped_folio(frame));
                drop(from);
                return self.copy_pinned_huge(vma, pmd, at, &source, attrs);
            }
        }
        Ok(true)
    }

    /// A pinned 2 MiB page is copied whole; where there is no memory for that, its mapping is split, to be looked at again.
    #[cold]
    fn copy_pinned_huge(
        &mut self,
        vma: &Vma,
        pmd: &'static Table<M>,
        at: Vaddr,
        source: &FolioRef<M>,
        attrs: Attrs,
    ) -> Result<bool, Stop> {
        let mm = M::mm();
        let at = at.align_down(PMD_SIZE);
        if vma.kind() == VmaKind::Hugetlb {
            let copy = self.child.hugetlb_copy(vma, at, source.frame())?;
            let to = self.child.pmd_table_or_alloc(at, Need::User)?;
            self.child.cursor_in(to, Level::Pmd, at).install(map_copy(vma, at, copy, attrs));
            return Ok(true);
        }
        let whole = vma.range().covers(VaRange::new(at.0, PMD_SIZE));
        let copy = whole.then(|| mm.alloc_folio(Place::RAM, Order::PMD, Need::User).ok()).flatten();
        let copy = copy.and_then(|copy| self.child.charge(copy).ok());
        let Some(copy) = copy else {
            let spare = mm.spare_pte_table(at, Need::User)?;
            split_pmd_at(&mut self.parent.cursor_in(pmd, Level::Pmd, at), spare);
            return Ok(false);
        };
        M::copy(source.frame(), copy.frame(), Order::PMD);
        let to = self.child.pmd_table_or_alloc(at, Need::User)?;
        let entry = map_copy(vma, at, copy, attrs);
        self.child.cursor_in(to, Level::Pmd, at).install(entry);
        Ok(true)
    }

    /// Copies the PTEs of `part`, which lie in `table`.
    fn copy_table(&mut self, vma: &Vma, table: &'static Table<M>, part: VaRange) -> Result<(), Stop> {
        if *table.lock.lock() == 0 {
            return Ok(());
        }
        let Some(to) = self.child.pte_table_or_alloc(part.start, Need::User)? else {
            return Ok(()); // a huge one came with the VMA before, and is in pieces here since
        };
        let (parent, child) = (self.parent, self.child);
        let cursors = |at| (parent.cursor_in(table, Level::Pte, at), child.cursor_in(to, Level::Pte, at));
        let (mut from, mut to) = cursors(part.start);
        loop {
            let word = from.word();
            if word == 0 || !to.is_still(0) {
                // Nothing to copy, as most often.
            } else if let Some(frame) = word::plain_shared(word) {
                // The commonest page of a program: its code, or one that it shares already.
                M::mm().mapped_folio_in(&M::mm().ram, frame).add_maps(1);
                to.install_word(word);
            } else {
                match self.share(vma, &mut from, Entry::decode(word, Level::Pte))? {
                    Copied::Same(entry) => to.install(entry),
                    Copied::Pinned(frame, attrs) => {
                        let at = from.addr();
                        let source = FolioRef::<M>::get(M::mm().mapped_folio(frame));
                        drop((from, to));
                        let copy = self.child.charge(copy_pinned(&source, frame)?);
                        let copy = copy.map_err(|_| OutOfMemory { order: 0 })?;
                        (from, to) = cursors(at);
                        to.install(map_copy(vma, at, copy, attrs));
                    }
                }
            }
            if !(from.next_pte() && to.next_pte() && from.addr() < part.end) {
                return Ok(());
            }
        }
    }

    /// Makes the entry under the cursor one that two may have, and counts the second.
    fn share(&mut self, vma: &Vma, from: &mut Cursor<M>, entry: Entry) -> Result<Copied, Stop> {
        let mm = M::mm();
        let entry = match entry {
            Entry::NonPresent(soft) if soft.kind == SoftKind::DeviceExclusive => restore(vma, from, soft)?,
            entry => entry,
        };
        let (frame, attrs) = match entry {
            // Zero pages, and a driver's pages: nobody counts them.
            Entry::Leaf(leaf) if leaf.special => return Ok(Copied::Same(entry)),
            Entry::Leaf(Leaf { frame, attrs, .. }) => {
                self.restrict(from, attrs & SOLE);
                (frame, attrs | written_meanwhile(from, attrs))
            }
            Entry::NonPresent(soft) => {
                self.restrict_soft(from, soft);
                (soft.frame, soft.attrs)
            }
            Entry::None | Entry::Table(_) => unreachable!("the caller has sorted these out"),
        };
        let folio = mm.mapped_folio(frame);
        match entry {
            Entry::NonPresent(soft) if soft.kind == SoftKind::Migration => folio.add_migs(1),
            _ if attrs.contains(Attrs::EXCLUSIVE) && folio.pins() != 0 => {
                give_back(from, entry);
                return Ok(Copied::Pinned(frame, attrs));
            }
            _ => folio.add_maps(1),
        }
        Ok(Copied::Same(match entry {
            Entry::Leaf(leaf) => Entry::Leaf(Leaf { attrs: attrs - SOLE, ..leaf }),
            Entry::NonPresent(soft) => Entry::NonPresent(SoftLeaf { attrs: attrs - SOLE, ..soft }),
            other => other,
        }))
    }

    /// Takes `lost` off a present leaf.
    fn restrict(&mut self, from: &mut Cursor<M>, lost: Attrs) {
        if lost.contains(Attrs::WRITE) {
            let owed = from.restrict(lost);
            self.gather.defer(owed);
        } else if !lost.is_empty() {
            from.unmark(lost);
        }
    }

    fn restrict_soft(&mut self, from: &mut Cursor<M>, soft: SoftLeaf) {
        if soft.attrs.intersects(SOLE) {
            // A translation that can write may still live, owed by whoever cleared the entry.
            TlbGather::settle(Some(&self.gather), self.parent);
            from.replace_soft(Entry::NonPresent(SoftLeaf { attrs: soft.attrs - SOLE, ..soft }));
        }
    }
}

/// A page that is lent to a device comes back, unless the device is at it just now.
#[cold]
fn restore<M: Machine>(vma: &Vma, from: &mut Cursor<M>, soft: SoftLeaf) -> Result<Entry, Stop> {
    let folio = M::mm().mapped_folio(soft.frame);
    if folio.is_locked() {
        return Err(Stop::Busy(folio));
    }
    take_back(from, &soft, vma);
    Ok(from.entry())
}

/// Copies a page of a pinned folio. Neither memory nor contents need a table to stand still: the parent keeps its entry, and the
/// handle its page; the child's entry is nobody else's business yet. Whoever writes meanwhile (the holder of the pin, or a
/// program by what its TLB knows) does so under the locks as well as without them.
#[cold]
fn copy_pinned<M: Machine>(_source: &FolioRef<M>, frame: Frame) -> Result<FolioRef<M>, OutOfMemory> {
    let copy = M::mm().alloc_folio(Place::RAM, Order::BASE, Need::User)?;
    M::copy(frame, copy.frame(), Order::BASE);
    Ok(copy)
}

/// What a CPU may have noted in a leaf after it was read as `before`, and until it could not be written any more: the clone has that
/// write too, and may be the last to know of it.
#[inline(always)]
fn written_meanwhile<M: Machine>(from: &Cursor<M>, before: Attrs) -> Attrs {
    if !before.contains(Attrs::WRITE) || before.contains(Attrs::DIRTY) {
        return Attrs::empty();
    }
    match from.entry() {
        Entry::Leaf(leaf) => leaf.attrs & Attrs::DIRTY,
        _ => Attrs::empty(),
    }
}

/// The page is pinned: what [`Clone::share`] has taken off its entry comes back.
#[cold]
fn give_back<M: Machine>(from: &mut Cursor<M>, entry: Entry) {
    match entry {
        Entry::Leaf(leaf) => from.upgrade(leaf.attrs & SOLE),
        soft => from.replace_soft(soft),
    }
}

/// The entry for a clone's own copy of a page; the handle becomes the mapping's.
fn map_copy<M: Machine>(vma: &Vma, addr: Vaddr, copy: FolioRef<M>, attrs: Attrs) -> Entry {
    copy.set_link(RmapLink { anon: vma.anon(), index: vma.page_index(addr) });
    copy.set_maps(1);
    let frame = copy.frame();
    copy.into_owned();
    Entry::mapping(frame, attrs | Attrs::DIRTY)
}
