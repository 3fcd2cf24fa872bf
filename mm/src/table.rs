//! Page tables: a frame of 512 words and a descriptor with its lock.
//!
//! Lock granularity is one table. PGD and PUD entries only ever go from nothing to a table while their space lives, so they
//! are read without a lock and written once under the table's own. A PTE table is unhooked only by an unmap that covers all
//! of it, with the VMA lock held alone, and freed only through the gather.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::counters::Event;
use crate::entry::Entry;
use crate::error::OutOfMemory;
use crate::machine::{Machine, TableWords};
use crate::mm::Mm;
use crate::slab::{NIL, Slot, SlotHeader};
use crate::sync::{SpinGuard, SpinLock};
use crate::types::{Frame, Level, Order, Vaddr};
use crate::zone::Need;

/// Descriptor of a page table. Its lock guards its entries; the number in it counts those that are not empty.
#[repr(align(64))]
pub(crate) struct Table<M: Machine> {
    header: SlotHeader,
    pub(crate) lock: SpinLock<M, u32>,
    pfn: AtomicU32,
    /// The address that its first entry maps, and in the low bits its level.
    place: AtomicU64,
    /// The space that it is hooked into; `NIL` while it is in none.
    space: AtomicU32,
}

impl<M: Machine> Default for Table<M> {
    fn default() -> Self {
        Self {
            header: SlotHeader::default(),
            lock: SpinLock::new(0),
            pfn: AtomicU32::new(0),
            place: AtomicU64::new(0),
            space: AtomicU32::new(NIL),
        }
    }
}

impl<M: Machine> Slot for Table<M> {
    const KIND: u8 = 2;
    #[inline(always)]
    fn header(&self) -> &SlotHeader {
        &self.header
    }
}

/// A table's place as one word.
#[inline(always)]
const fn place(level: Level, addr: Vaddr) -> u64 {
    addr.align_down(level.size() << 9).0 | level as u64
}

/// A table with its lock held.
pub(crate) struct LockedTable<M: Machine> {
    pub(crate) words: &'static TableWords,
    pub(crate) live: SpinGuard<'static, M, u32>,
}

impl<M: Machine> Table<M> {
    #[inline(always)]
    pub(crate) fn pfn(&self) -> u32 {
        self.pfn.load(Relaxed)
    }
    #[inline(always)]
    pub(crate) fn words(&self) -> &'static TableWords {
        M::table_words(self.pfn())
    }
    #[inline(always)]
    pub(crate) fn level(&self) -> Level {
        match self.place.load(Relaxed) & 7 {
            1 => Level::Pte,
            2 => Level::Pmd,
            3 => Level::Pud,
            _ => Level::Pgd,
        }
    }
    /// True when this is the table of `level` over `addr` in `space`. With its lock held it stays so: there is only one.
    #[inline(always)]
    pub(crate) fn is_hooked_at(&self, space: u32, level: Level, addr: Vaddr) -> bool {
        self.space.load(Relaxed) == space && self.place.load(Relaxed) == place(level, addr)
    }
    /// It is in no space any more. Under its lock: see [`Space::walk`](crate::space::Space::walk).
    pub(crate) fn set_unhooked(&self, _held: &SpinGuard<'_, M, u32>) {
        self.space.store(NIL, Relaxed);
    }
    pub(crate) fn slab_index(&self) -> u32 {
        self.header.key()
    }
    /// Says that the table maps addresses from `base` on. With its lock held: who waits for that looks again.
    pub(crate) fn set_place(&self, level: Level, base: Vaddr) {
        self.place.store(place(level, base), Relaxed);
    }
    pub(crate) fn base(&self) -> Vaddr {
        Vaddr(self.place.load(Relaxed) & !7)
    }
    #[inline(always)]
    pub(crate) fn lock(&'static self) -> LockedTable<M> {
        // The lock first: a descriptor that was freed and used again while we waited has other words.
        let live = self.lock.lock();
        LockedTable { words: self.words(), live }
    }
}

impl<M: Machine> LockedTable<M> {
    #[inline(always)]
    pub(crate) fn raw(&self, index: usize) -> u64 {
        self.words[index & 511].load(Relaxed)
    }
    #[inline(always)]
    pub(crate) fn entry(&self, index: usize, level: Level) -> Entry {
        Entry::decode(self.raw(index), level)
    }
}

/// A table that nobody has hooked in yet: allocated before anything is changed, so that what comes after cannot fail.
pub(crate) struct SpareTable<M: Machine>(Option<&'static Table<M>>);

impl<M: Machine> SpareTable<M> {
    /// An empty table for `level`, to map addresses from `base`.
    pub(crate) fn alloc(mm: &Mm<M>, level: Level, base: Vaddr, need: Need) -> Result<Self, OutOfMemory> {
        let table = mm.tables.alloc(mm)?;
        let pfn = match mm.ram.alloc_table(&mm.inject, need, table.header.key()) {
            Ok(pfn) => pfn,
            Err(oom) => {
                mm.tables.free(table);
                M::count(Event::AllocFail, 1);
                return Err(oom);
            }
        };
        M::zero(Frame::ram(pfn), Order::BASE);
        table.pfn.store(pfn, Relaxed);
        table.space.store(NIL, Relaxed);
        table.place.store(place(level, base), Relaxed);
        M::count(Event::TableAlloc, 1);
        Ok(Self(Some(table)))
    }

    /// The table, before it is hooked in.
    pub(crate) fn table(&self) -> &'static Table<M> {
        match self.0 {
            Some(table) => table,
            None => unreachable!("emptied only by use or drop"),
        }
    }

    /// Notes how many entries were written into the table by hand.
    pub(crate) fn set_live(&mut self, live: u32) {
        *self.table().lock.lock() = live;
    }

    /// The table is hooked in: from now on the address space owns it.
    pub(crate) fn into_table(mut self, space: u32) -> &'static Table<M> {
        let table = self.table();
        table.space.store(space, Relaxed);
        self.0 = None;
        table
    }

    /// A table that was unhooked and marked so; dropping this frees it. Only after the flush.
    pub(crate) fn unhooked(table: &'static Table<M>) -> Self {
        debug_assert_eq!(table.space.load(Relaxed), NIL);
        Self(Some(table))
    }
}

impl<M: Machine> Drop for SpareTable<M> {
    fn drop(&mut self) {
        if let Some(table) = self.0.take() {
            let mm = M::mm();
            let mut live = table.lock.lock();
            *live = 0;
            table.space.store(NIL, Relaxed);
            drop(live);
            mm.ram.free_table(table.pfn());
            mm.tables.free(table);
            M::count(Event::TableFree, 1);
        }
    }
}

/// Empty PTE tables that are set aside for an operation that needs as many as there are mappings to split, wherever those turn
/// out to be. They wait in a list through their descriptors.
pub(crate) struct TableStash<M: Machine> {
    head: u32,
    len: u32,
    machine: PhantomData<fn() -> M>,
}

impl<M: Machine> TableStash<M> {
    #[inline(always)]
    pub(crate) const fn new() -> Self {
        Self { head: NIL, len: 0, machine: PhantomData }
    }

    /// Sets one more aside.
    pub(crate) fn add(&mut self, need: Need) -> Result<(), OutOfMemory> {
        let table = SpareTable::<M>::alloc(M::mm(), Level::Pte, Vaddr(0), need)?.into_table(NIL);
        table.header.link.store(self.head, Relaxed);
        self.head = table.slab_index();
        self.len += 1;
        Ok(())
    }

    /// Sets more aside until there are `n`.
    pub(crate) fn fill(&mut self, n: u32, need: Need) -> Result<(), OutOfMemory> {
        while self.len < n {
            self.add(need)?;
        }
        Ok(())
    }

    /// Takes one out, to map the 2 MiB around `addr`.
    pub(crate) fn take(&mut self, addr: Vaddr) -> Option<SpareTable<M>> {
        if self.head == NIL {
            return None;
        }
        let table = M::mm().tables.get(self.head);
        self.head = table.header.link.load(Relaxed);
        self.len -= 1;
        table.place.store(place(Level::Pte, addr), Relaxed);
        Some(SpareTable(Some(table)))
    }
}

impl<M: Machine> Drop for TableStash<M> {
    #[inline(always)]
    fn drop(&mut self) {
        while let Some(table) = self.take(Vaddr(0)) {
            drop(table);
        }
    }
}

impl<M: Machine> Mm<M> {
    /// The descriptor of the table in frame `pfn`.
    ///
    /// # Panics
    /// When the frame is no table: an entry points to memory that is not a page table.
    #[inline(always)]
    pub(crate) fn table(&self, pfn: u32) -> &'static Table<M> {
        match self.ram.table_index(pfn) {
            Some(index) => self.tables.get(index),
            None => panic!("an entry points to a frame that is no page table"),
        }
    }
}
