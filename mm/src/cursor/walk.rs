//! From an address to the table that maps it: looks without a lock, and the ways to a [`Cursor`].

use core::sync::atomic::Ordering::{Relaxed, Release};

use super::Cursor;
use crate::entry::Entry;
use crate::error::OutOfMemory;
use crate::machine::Machine;
use crate::space::Space;
use crate::sync::NoPreempt;
use crate::table::{SpareTable, Table};
use crate::types::{Level, Vaddr};
use crate::zone::Need;

#[cfg(test)]
std::thread_local! {
    /// Looks into page tables and holds of their locks, for tests of the number of walks.
    pub(crate) static LOOKUPS: core::cell::Cell<u32> = const { core::cell::Cell::new(0) };
}

#[cfg(test)]
pub(super) fn note_lookup() {
    LOOKUPS.set(LOOKUPS.get() + 1);
}

/// What stands above an address, read without a lock.
#[derive(Clone, Copy)]
pub(crate) enum Peek<M: Machine> {
    /// No PMD table.
    NoTable,
    /// An entry of the PMD table that is not a table.
    Pmd(&'static Table<M>, Entry),
    /// An entry of a PTE table.
    Pte(&'static Table<M>, Entry),
}

impl<M: Machine> Space<M> {
    /// The PMD table over `addr`, if there is one.
    #[inline(always)]
    pub(crate) fn pmd_table(&self, addr: Vaddr) -> Option<&'static Table<M>> {
        let mm = M::mm();
        let pgd = self.root().words()[addr.index(Level::Pgd)].load(Relaxed);
        let Entry::Table(pud) = Entry::decode(pgd, Level::Pgd) else { return None };
        let pud = M::table_words(pud)[addr.index(Level::Pud)].load(Relaxed);
        let Entry::Table(pmd) = Entry::decode(pud, Level::Pud) else { return None };
        Some(mm.table(pmd))
    }

    /// The PMD table over `addr`, made if need be.
    #[inline(always)]
    pub(crate) fn pmd_table_or_alloc(
        &'static self,
        addr: Vaddr,
        need: Need,
    ) -> Result<&'static Table<M>, OutOfMemory> {
        match self.pmd_table(addr) {
            Some(table) => Ok(table),
            None => self.alloc_pmd_table(addr, need),
        }
    }

    #[cold]
    fn alloc_pmd_table(&'static self, addr: Vaddr, need: Need) -> Result<&'static Table<M>, OutOfMemory> {
        let mut table = self.root();
        for level in [Level::Pgd, Level::Pud] {
            let index = addr.index(level);
            let below = if level == Level::Pgd { Level::Pud } else { Level::Pmd };
            let spare = SpareTable::alloc(M::mm(), below, addr, need)?;
            let mut locked = table.lock();
            table = match locked.entry(index, level) {
                Entry::Table(pfn) => M::mm().table(pfn),
                _ => {
                    let below = spare.into_table(self.slab_index());
                    locked.words[index].store(Entry::Table(below.pfn()).encode(level), Release);
                    *locked.live += 1;
                    below
                }
            };
        }
        Ok(table)
    }

    /// The PTE table over `addr`, made if need be; `None` where a huge mapping stands. The caller holds the VMA lock.
    pub(crate) fn pte_table_or_alloc(
        &'static self,
        addr: Vaddr,
        need: Need,
    ) -> Result<Option<&'static Table<M>>, OutOfMemory> {
        let pmd = self.pmd_table_or_alloc(addr, need)?;
        let word = pmd.words()[addr.index(Level::Pmd)].load(Relaxed);
        if let Entry::Table(pfn) = Entry::decode(word, Level::Pmd) {
            return Ok(Some(M::mm().table(pfn)));
        }
        let spare = M::mm().spare_pte_table(addr, need)?;
        let mut cursor = self.cursor_in(pmd, Level::Pmd, addr);
        match cursor.entry() {
            Entry::None => {
                let table = spare.table();
                cursor.hook(spare);
                Ok(Some(table))
            }
            Entry::Table(pfn) => Ok(Some(M::mm().table(pfn))),
            Entry::Leaf(_) | Entry::NonPresent(_) => Ok(None),
        }
    }

    /// What stands at `addr`, without a lock: a hint for what to prepare. The caller holds the VMA lock, so no table goes
    /// away.
    #[inline(always)]
    pub(crate) fn peek(&self, addr: Vaddr) -> Peek<M> {
        #[cfg(test)]
        note_lookup();
        let Some(pmd) = self.pmd_table(addr) else { return Peek::NoTable };
        let entry = Entry::decode(pmd.words()[addr.index(Level::Pmd)].load(Relaxed), Level::Pmd);
        let Entry::Table(pfn) = entry else { return Peek::Pmd(pmd, entry) };
        let pte = M::mm().table(pfn);
        Peek::Pte(pte, Entry::decode(pte.words()[addr.index(Level::Pte)].load(Relaxed), Level::Pte))
    }

    /// Locks `table`, which maps `addr`.
    #[inline(always)]
    pub(crate) fn cursor_in(&'static self, table: &'static Table<M>, level: Level, addr: Vaddr) -> Cursor<M> {
        #[cfg(test)]
        note_lookup();
        let addr = addr.align_down(level.size());
        Cursor { space: self, locked: table.lock(), level, addr, index: addr.index(level) }
    }

    /// Locks `table`, if it (still) is the one of `level` over `addr` in this space.
    #[inline(always)]
    pub(crate) fn cursor_hint(
        &'static self,
        table: &'static Table<M>,
        level: Level,
        addr: Vaddr,
    ) -> Option<Cursor<M>> {
        let cursor = self.cursor_in(table, level, addr);
        if table.is_hooked_at(self.slab_index(), level, addr) { Some(cursor) } else { None }
    }

    /// As [`Space::cursor`], without the VMA lock: another thread may unmap, and free tables or the whole space, meanwhile.
    /// `None` also when the table goes at this moment; the caller then finds what it looks for by the reverse map, if it is
    /// still there. A key of the space that names another space by now is harmless to a caller who accepts only entries that
    /// name its folio.
    ///
    /// The way down is a lock-free walk, with preemption off: on one CPU nobody frees a table meanwhile. With several, the
    /// section keeps interrupts off as well, and a table is freed only after the flush that interrupts every CPU. The lock of the
    /// lowest table is the end of the section: a table is marked as unhooked under its lock, so one that is still hooked stays.
    #[inline(always)]
    pub(crate) fn walk(&'static self, addr: Vaddr) -> Option<Cursor<M>> {
        let _section = NoPreempt::<M>::new();
        if !self.is_live() {
            return None;
        }
        let pmd = self.pmd_table(addr)?;
        let word = pmd.words()[addr.index(Level::Pmd)].load(Relaxed);
        let mut entry = Entry::decode(word, Level::Pmd);
        if !matches!(entry, Entry::Table(_)) {
            let cursor = self.cursor_hint(pmd, Level::Pmd, addr)?;
            entry = cursor.entry();
            if !matches!(entry, Entry::Table(_)) {
                return Some(cursor);
            }
            // Split before the lock was taken. The table below is there as long as the section lasts.
        }
        let Entry::Table(pfn) = entry else { return None };
        self.cursor_hint(M::mm().table(pfn), Level::Pte, addr)
    }

    /// Locks the lowest table over `addr`: the PTE table if there is one, else the PMD table. With the VMA lock held, or that of
    /// a reverse-map set one of whose VMAs holds `addr`, so that no table goes away; otherwise see [`Space::walk`].
    #[inline(always)]
    pub(crate) fn cursor(&'static self, addr: Vaddr) -> Option<Cursor<M>> {
        let pmd = self.pmd_table(addr)?;
        loop {
            let word = pmd.words()[addr.index(Level::Pmd)].load(Relaxed);
            let Entry::Table(pfn) = Entry::decode(word, Level::Pmd) else {
                let cursor = self.cursor_in(pmd, Level::Pmd, addr);
                if matches!(cursor.entry(), Entry::Table(_)) {
                    continue; // split meanwhile
                }
                return Some(cursor);
            };
            // A remap may have given the table to other addresses meanwhile.
            if let Some(cursor) = self.cursor_hint(M::mm().table(pfn), Level::Pte, addr) {
                return Some(cursor);
            }
        }
    }
}
