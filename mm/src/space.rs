//! Address spaces (Linux: `mm_struct`): the VMAs, the root of the page table, and what is owed to its TLBs.

use core::fmt;
use core::ops::Deref;
use core::ptr;
use core::sync::atomic::{
    AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

use crate::error::{OutOfMemory, RangeError};
use crate::machine::{FlushReason, Machine, TableWords};
use crate::notifier::Notifiers;
use crate::rmap::{AnonSet, SetOf};
use crate::slab::{NIL, Slot, SlotHeader};
use crate::stats::{SpaceCounters, SpaceStat};
use crate::sync::SleepRwLock;
use crate::table::{SpareTable, Table};
use crate::tlb::{FlushState, TlbGather};
use crate::types::{Level, PAGE_SHIFT, Prot, VaRange, Vaddr};
use crate::vma::{HugeAdvice, Vma, VmaAttrs, VmaCache, VmaFlags, VmaIndex, VmaKind, VmaSpares};
use crate::zone::Need;

/// An address space's shared part; reached through its owner, an [`AddressSpace`].
#[repr(align(64))]
pub struct Space<M: Machine> {
    header: SlotHeader,
    /// Slab index of the root table.
    root: AtomicU32,
    root_pfn: AtomicU32,
    /// 1 while it exists.
    live: AtomicU32,
    /// Those who keep it from ending: its owner and who works with it for a moment (Linux: `mm_users`).
    users: AtomicU32,
    pub(crate) flush: FlushState,
    pub(crate) notifiers: Notifiers<M>,
    pub(crate) vmas: SleepRwLock<M, VmaIndex<M>>,
    pub(crate) cache: VmaCache,
    /// The PTE table that was used last: most faults are near the one before. A hint, checked by [`Table::is_hooked_at`].
    last_pte: AtomicU32,
    /// The number of the group that it belongs to; 0 for none.
    pub(crate) group: AtomicU32,
    pub(crate) faults: AtomicU64,
    flushes: AtomicU64,
    pub(crate) counters: SpaceCounters,
}

impl<M: Machine> Default for Space<M> {
    fn default() -> Self {
        Self {
            header: SlotHeader::default(),
            root: AtomicU32::new(0),
            root_pfn: AtomicU32::new(0),
            live: AtomicU32::new(0),
            users: AtomicU32::new(0),
            notifiers: Notifiers::default(),
            flush: FlushState::default(),
            vmas: SleepRwLock::default(),
            cache: VmaCache::default(),
            last_pte: AtomicU32::new(NIL),
            group: AtomicU32::new(0),
            faults: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            counters: SpaceCounters::default(),
        }
    }
}

impl<M: Machine> Slot for Space<M> {
    const KIND: u8 = 5;
    #[inline(always)]
    fn header(&self) -> &SlotHeader {
        &self.header
    }
}

impl<M: Machine> fmt::Debug for Space<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "space {} root {:#x}", self.header.key(), self.root_pfn())
    }
}

/// Owns an address space; dropping it unmaps everything and frees the tables.
#[derive(Debug)]
pub struct AddressSpace<M: Machine>(&'static Space<M>);

impl<M: Machine> Deref for AddressSpace<M> {
    type Target = Space<M>;
    #[inline(always)]
    fn deref(&self) -> &Space<M> {
        self.0
    }
}

impl<M: Machine> AddressSpace<M> {
    /// An empty address space. `kernel_half` is handed the root table, to fill in what every space shares.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(kernel_half: impl FnOnce(&'static TableWords)) -> Result<Self, OutOfMemory> {
        let mm = M::mm();
        let root = SpareTable::alloc(mm, Level::Pgd, Vaddr(0), Need::User)?;
        let space = mm.spaces.alloc(mm)?;
        let table = root.into_table(NIL);
        kernel_half(table.words());
        space.root.store(table.slab_index(), Relaxed);
        space.root_pfn.store(table.pfn(), Relaxed);
        space.flush.cpus.store(0, Relaxed);
        space.cache.clear();
        space.last_pte.store(NIL, Relaxed);
        space.faults.store(0, Relaxed);
        space.flushes.store(0, Relaxed);
        space.counters.clear();
        space.users.store(1, Relaxed);
        space.live.store(1, Release);
        Ok(Self(space))
    }

    /// The shared part, for code that keeps it while this owner lives (the current-space pointer of a CPU).
    #[must_use]
    #[inline(always)]
    pub const fn space(&self) -> &'static Space<M> {
        self.0
    }
}

impl<M: Machine> Drop for AddressSpace<M> {
    fn drop(&mut self) {
        self.0.end_use();
    }
}

/// Keeps an address space that somebody else owns from ending (Linux: what `mmget` takes). The last one to let go ends it.
pub struct SpaceUser<M: Machine>(&'static Space<M>);

impl<M: Machine> SpaceUser<M> {
    /// The space, for as long as this lives.
    #[must_use]
    pub const fn space(&self) -> &'static Space<M> {
        self.0
    }
}

impl<M: Machine> fmt::Debug for SpaceUser<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user of {:?}", self.0)
    }
}

impl<M: Machine> Drop for SpaceUser<M> {
    fn drop(&mut self) {
        self.0.end_use();
    }
}

impl<M: Machine> Space<M> {
    /// Page frame number of the root table, for CR3.
    #[must_use]
    #[inline(always)]
    pub fn root_pfn(&self) -> u32 {
        self.root_pfn.load(Relaxed)
    }
    #[inline(always)]
    pub(crate) fn root(&self) -> &'static Table<M> {
        M::mm().tables.get(self.root.load(Relaxed))
    }
    /// The PTE table over `addr`, if it is the one that was used last. With the VMA lock held, so that it stays.
    #[inline(always)]
    pub(crate) fn last_pte_table(&self, addr: Vaddr) -> Option<&'static Table<M>> {
        let key = self.last_pte.load(Relaxed);
        if key == NIL {
            return None;
        }
        let table = M::mm().tables.get(key);
        if table.is_hooked_at(self.slab_index(), Level::Pte, addr) { Some(table) } else { None }
    }
    /// Only in a space where nobody hears of pages that come back: who finds a table by this hint tells nobody of that.
    #[inline(always)]
    pub(crate) fn set_last_pte_table(&self, table: &Table<M>) {
        if !self.notifiers.any_for_returns() {
            self.last_pte.store(table.slab_index(), Relaxed);
        }
    }
    pub(crate) fn forget_last_pte_table(&self) {
        self.last_pte.store(NIL, Relaxed);
    }

    /// One more user, unless it is ending.
    pub(crate) fn try_use(&'static self) -> Option<SpaceUser<M>> {
        let more = |users| if users == 0 { None } else { Some(users + 1) };
        self.users.fetch_update(AcqRel, Relaxed, more).ok().map(|_| SpaceUser(self))
    }
    fn end_use(&'static self) {
        if self.users.fetch_sub(1, AcqRel) == 1 {
            self.exit();
        }
    }
    pub(crate) fn is_live(&self) -> bool {
        self.live.load(Acquire) != 0
    }
    pub(crate) fn slab_index(&self) -> u32 {
        self.header.key()
    }
    pub(crate) fn count_flush(&self) {
        self.flushes.fetch_add(1, Relaxed);
    }

    /// Notes that `cpu` may hold translations of this space from now on. Before CR3 is loaded.
    pub fn loaded_on(&self, cpu: usize) {
        self.flush.cpus.fetch_or(1 << cpu, AcqRel);
    }
    /// Notes that `cpu` holds none any more. After another CR3 was loaded and the TLB flushed.
    pub fn unloaded_from(&self, cpu: usize) {
        self.flush.cpus.fetch_and(!(1 << cpu), AcqRel);
    }

    /// What it did.
    #[must_use]
    pub fn stat(&self) -> SpaceStat {
        self.counters.read(self.faults.load(Relaxed), self.flushes.load(Relaxed))
    }

    /// Maps anonymous private memory at exactly `range` (`MAP_FIXED_NOREPLACE`).
    ///
    /// # Errors
    /// [`RangeError::Invalid`], [`RangeError::Exists`], [`RangeError::Oom`].
    pub fn map_anon(&'static self, range: VaRange, prot: Prot, advice: HugeAdvice) -> Result<(), RangeError> {
        if !range.is_user_pages() {
            return Err(RangeError::Invalid(range));
        }
        let mm = M::mm();
        let oom = |_| RangeError::Oom(range.start);
        let mut vmas = self.vmas.write();
        if vmas.first_after(range.start).is_some_and(|vma| vma.start() < range.end) {
            return Err(RangeError::Exists(range));
        }
        let mut attrs = VmaAttrs {
            range,
            pgoff: range.start.0 >> PAGE_SHIFT,
            prot,
            advice,
            anon: NIL,
            space: self.slab_index(),
            kind: VmaKind::Anon,
            flags: VmaFlags::empty(),
            object: NIL,
        };
        if self.extend_vma(&mut vmas, &attrs) {
            return Ok(());
        }
        vmas.reserve(mm).map_err(oom)?;
        let vma = mm.vmas.alloc(mm).map_err(oom)?;
        let set = match AnonSet::alloc(mm, SetOf::Anon) {
            Ok(set) => set,
            Err(e) => {
                mm.vmas.free(vma);
                return Err(oom(e));
            }
        };
        attrs.anon = set.slab_index();
        vma.set(&attrs);
        self.link_vma(vma, None);
        vmas.insert(vma);
        Ok(())
    }

    /// Maps anonymous memory by letting the VMA before it grow, when that one is equal in all but its addresses. Then the VMA after
    /// it may be equal too: a hole is closed.
    fn extend_vma(&self, vmas: &mut VmaIndex<M>, new: &VmaAttrs) -> bool {
        let before = Vaddr(new.range.start.0.wrapping_sub(1));
        let Some(vma) = vmas.find(before) else { return false };
        if !vma.is_continued_by(&VmaAttrs { anon: vma.anon(), ..*new }) {
            return false;
        }
        vma.set_end(new.range.end);
        self.merge_vmas_at(vmas, new.range.end);
        true
    }

    /// The VMA that holds `addr`, found with the lock held by the caller.
    #[inline(always)]
    pub(crate) fn find_vma(&self, vmas: &VmaIndex<M>, addr: Vaddr) -> Option<&'static Vma> {
        if let Some(index) = self.cache.get() {
            let vma = M::mm().vmas.get(index);
            if vma.range().contains(addr) {
                return Some(vma);
            }
        }
        let vma = vmas.find(addr)?;
        self.cache.set(vma);
        Some(vma)
    }

    /// The range and protection of the VMA that holds `addr`.
    #[must_use]
    pub fn vma_at(&self, addr: Vaddr) -> Option<(VaRange, Prot, HugeAdvice)> {
        let vmas = self.vmas.read();
        vmas.find(addr).map(|vma| (vma.range(), vma.prot(), vma.advice()))
    }

    /// Calls `f` for every VMA, in address order (`/proc/self/maps`).
    pub fn for_each_vma(&self, f: impl FnMut(&Vma)) {
        let vmas = self.vmas.read();
        vmas.iter().for_each(f);
    }

    /// Splits the VMA that holds `at` in two there, unless it starts there or there is none. Page tables are not touched:
    /// a huge mapping may cross the border until somebody changes a part of it.
    pub(crate) fn split_vma(&'static self, vmas: &mut VmaIndex<M>, at: Vaddr, spares: &mut VmaSpares<M>) {
        let Some(vma) = vmas.find(at).filter(|vma| vma.start() != at) else { return };
        let tail = spares.take();
        let attrs = vma.attrs();
        tail.set(&VmaAttrs {
            range: VaRange::between(at, attrs.range.end),
            pgoff: vma.page_index(at),
            ..attrs
        });
        // A walk of the reverse map in between finds the tail's pages twice, not never.
        self.link_vma(tail, Some(vma));
        vma.set_end(at);
        vmas.insert(tail);
        self.cache.clear();
    }

    /// Takes what lies before `at` from a VMA of no object.
    pub(crate) fn set_vma_start(&self, vma: &Vma, at: Vaddr) {
        // Not by one store: walks of the reverse map wait.
        let _walks = (vma.anon() != NIL).then(|| M::mm().anons.get(vma.anon()).hold());
        vma.set_range(VaRange::between(at, vma.range().end), vma.page_index(at));
    }

    /// Joins VMAs that touch at the ends of `range` or in it and are equal in all but their addresses.
    pub(crate) fn merge_vmas(&self, vmas: &mut VmaIndex<M>, range: VaRange) {
        let mut at = range.start;
        while at <= range.end {
            self.merge_vmas_at(vmas, at);
            let Some(vma) = vmas.first_after(at) else { return };
            at = if vma.start() > at { vma.start() } else { vma.range().end };
        }
    }

    /// Joins the VMAs that touch at `at`, if they are equal in all but their addresses.
    pub(crate) fn merge_vmas_at(&self, vmas: &mut VmaIndex<M>, at: Vaddr) {
        let Some(next) = vmas.find(at).filter(|next| next.start() == at && at.0 != 0) else { return };
        let Some(vma) = vmas.find(Vaddr(at.0 - 1)) else { return };
        if vma.is_continued_by(&next.attrs()) {
            vmas.remove(next);
            // It grows first: a walk of the reverse map in between finds the pages twice, not never.
            vma.set_end(next.range().end);
            self.free_vma(next);
        }
    }

    /// Adds a VMA to the sets that the reverse map finds it by, directly after `after`, whose set it shares: a walk that misses
    /// what is copied or moved from there finds it here.
    pub(crate) fn link_vma(&self, vma: &Vma, after: Option<&Vma>) {
        if vma.anon() != NIL {
            M::mm().anons.get(vma.anon()).attach(vma, after);
        }
        if vma.object() != NIL {
            M::mm().objects.get(vma.object()).attach(vma, after);
        }
    }

    /// Returns when every walk of the reverse map that could lead to `vma` and began before has ended.
    pub(crate) fn wait_for_walks(&self, vma: &Vma) {
        if vma.anon() != NIL {
            M::mm().anons.get(vma.anon()).wait_for_walks();
        }
        if vma.object() != NIL {
            M::mm().objects.get(vma.object()).wait_for_walks();
        }
    }

    /// Takes a VMA out of those sets; a set that is empty then is freed.
    pub(crate) fn unlink_vma(&self, vma: &Vma) {
        let mm = M::mm();
        if vma.anon() != NIL {
            let set = mm.anons.get(vma.anon());
            if set.detach(mm, vma) {
                mm.anons.free(set);
            }
        }
        if vma.object() != NIL {
            mm.objects.get(vma.object()).detach(vma);
        }
    }

    /// Takes a VMA, whose pages are unmapped already, out of the index and its set, and frees it.
    pub(crate) fn drop_vma(&self, vmas: &mut VmaIndex<M>, vma: &'static Vma) {
        vmas.remove(vma);
        self.free_vma(vma);
    }

    /// Frees a VMA that is out of the index already.
    pub(crate) fn free_vma(&self, vma: &'static Vma) {
        self.unlink_vma(vma);
        M::mm().vmas.free(vma);
        self.cache.clear();
    }

    /// Unmaps everything, frees all tables and the space itself (`exit_mmap`). Never splits, never allocates.
    fn exit(&'static self) {
        let mm = M::mm();
        let mut vmas = self.vmas.write();
        self.release_notifiers();
        let mut gather = TlbGather::new(FlushReason::Unmap);
        while let Some(vma) = vmas.first_after(Vaddr(0)) {
            self.unreserve_huge(&vmas, vma.range());
            self.zap(vma.range(), &mut gather);
            if vma.kind() == VmaKind::Device {
                gather.flush(); // its pages are not counted: they may go with the VMA
            }
            self.drop_vma(&mut vmas, vma);
        }
        vmas.clear();
        // Nothing maps anything: migrations that are under way have nothing to find here. Walks end before the tables go.
        self.live.store(0, Release);
        self.free_all_tables(&mut gather);
        gather.flush();
        self.leave_group();
        drop(vmas);
        let root = self.root();
        root.set_unhooked(&root.lock.lock());
        drop(SpareTable::unhooked(root));
        mm.spaces.free(self);
    }
}

impl<M: Machine> PartialEq for Space<M> {
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(self, other)
    }
}
