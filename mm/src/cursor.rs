//! The cursor: the only thing that changes page-table entries.
//!
//! A cursor is a locked table and a position in it. It borrows the address space shared, so two CPUs can work in two tables
//! at once. Every change is a method that says what kind of change it is, and the ones after which a TLB may still hold the
//! old translation return an [`Unflushed`]. No method overwrites a present leaf by another shape: break before make.

use core::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Relaxed, Release},
};

use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf, restrict_bits, run, upgrade_bits, word};
use crate::error::OutOfMemory;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::space::Space;
use crate::sync::NoPreempt;
use crate::table::{LockedTable, SpareTable, Table};
use crate::tlb::{Unflushed, UnflushedRun};
use crate::types::{Frame, Level, PAGE_SIZE, PMD_SIZE, PTRS, PUD_SIZE, Vaddr};
use crate::zone::Need;

#[cfg(test)]
std::thread_local! {
    /// Looks into page tables and holds of their locks, for tests of the number of walks.
    pub(crate) static LOOKUPS: core::cell::Cell<u32> = const { core::cell::Cell::new(0) };
}

#[cfg(test)]
fn note_lookup() {
    LOOKUPS.set(LOOKUPS.get() + 1);
}

/// A locked table of `space` and a position in it.
pub(crate) struct Cursor<M: Machine> {
    space: &'static Space<M>,
    locked: LockedTable<M>,
    level: Level,
    addr: Vaddr,
    /// Which entry of the table maps `addr`.
    index: usize,
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

impl<M: Machine> Cursor<M> {
    /// The address that the entry maps.
    #[inline(always)]
    pub(crate) const fn addr(&self) -> Vaddr {
        self.addr
    }
    #[inline(always)]
    pub(crate) const fn level(&self) -> Level {
        self.level
    }
    #[inline(always)]
    pub(crate) const fn space(&self) -> &'static Space<M> {
        self.space
    }
    /// The entry under the cursor.
    #[inline(always)]
    pub(crate) fn entry(&self) -> Entry {
        self.locked.entry(self.index, self.level)
    }
    /// The entry for another address of the same table.
    #[inline(always)]
    pub(crate) fn entry_at(&self, addr: Vaddr) -> Entry {
        self.locked.entry(addr.index(self.level), self.level)
    }
    /// True when the entry is still the word that was seen before the lock was taken.
    #[inline(always)]
    pub(crate) fn is_still(&self, word: u64) -> bool {
        self.locked.raw(self.index) == word
    }

    /// Moves to `addr` if that is in the same table.
    #[inline(always)]
    pub(crate) fn seek(&mut self, addr: Vaddr) -> bool {
        // A PTE table spans 2 MiB, a PMD table 1 GiB: two compares are cheaper than shifts by the level.
        let (span, align) =
            if self.level == Level::Pte { (PMD_SIZE, PAGE_SIZE) } else { (PUD_SIZE, PMD_SIZE) };
        if (addr.0 ^ self.addr.0) & !(span - 1) != 0 {
            return false;
        }
        self.addr = addr.align_down(align);
        self.index = if align == PAGE_SIZE { addr.index(Level::Pte) } else { addr.index(Level::Pmd) };
        true
    }

    /// As [`Cursor::seek`], for a cursor in a PTE table.
    #[inline(always)]
    pub(crate) fn seek_pte(&mut self, addr: Vaddr) -> bool {
        debug_assert_eq!(self.level, Level::Pte);
        self.index = addr.index(Level::Pte);
        let here = (addr.0 ^ self.addr.0) < PMD_SIZE;
        self.addr = addr;
        here
    }

    /// As [`Cursor::next`], for a cursor in a PTE table.
    #[inline(always)]
    pub(crate) fn next_pte(&mut self) -> bool {
        debug_assert_eq!(self.level, Level::Pte);
        self.index += 1;
        self.addr = self.addr.add(PAGE_SIZE);
        self.index != PTRS
    }

    /// Moves to the next entry of the same table; false at its end.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> bool {
        if self.index == PTRS - 1 {
            return false;
        }
        self.index += 1;
        self.addr = self.addr.add(if self.level == Level::Pte { PAGE_SIZE } else { PMD_SIZE });
        true
    }

    #[inline(always)]
    fn store(&mut self, entry: Entry) {
        self.locked.words[self.index].store(entry.encode(self.level), Release);
    }

    /// True when this is a PTE table and maps `addr`.
    #[inline(always)]
    pub(crate) fn is_in_table(&self, addr: Vaddr) -> bool {
        self.level == Level::Pte && (addr.0 ^ self.addr.0) < PMD_SIZE
    }

    /// The words of `n` PTEs from `addr` on, in this table.
    #[inline(always)]
    fn run(&self, addr: Vaddr, n: u32) -> &'static [AtomicU64] {
        debug_assert_eq!(self.level, Level::Pte);
        let at = addr.index(Level::Pte);
        &self.locked.words[at..at + n as usize]
    }

    /// True when the `n` entries from `addr` on, in this table, are device-private ones for the frames from `first` on.
    #[inline(always)]
    pub(crate) fn is_device_private_run(&self, addr: Vaddr, n: u32, first: Frame) -> bool {
        run::is_device_private(self.run(addr, n), first)
    }

    /// Turns `n` device-private entries from `addr` on into migration entries. After [`crate::tlb::TlbGather::settle`].
    #[inline(always)]
    pub(crate) fn device_private_run_to_migration(&mut self, addr: Vaddr, n: u32) {
        run::device_private_to_migration(self.run(addr, n));
    }

    /// Gives the `n` migration entries from `addr` on to the frames from `to` on, if they are a run that names those from
    /// `from` on.
    #[inline(always)]
    pub(crate) fn name_run(&mut self, addr: Vaddr, n: u32, from: Frame, to: Frame) -> bool {
        run::name(self.run(addr, n), from, to)
    }

    /// Empties `n` non-present entries from the cursor on. After [`crate::tlb::TlbGather::settle`].
    #[inline(always)]
    pub(crate) fn clear_soft_run(&mut self, n: u32) {
        run::fill_with_nothing(self.run(self.addr, n));
        *self.locked.live -= n;
    }

    /// Passes over empty entries; false when there are only such from here to the table's end.
    #[inline(always)]
    pub(crate) fn skip_empty(&mut self) -> bool {
        let n = run::empty(&self.locked.words[self.index..]);
        if self.index + n >= PTRS {
            return false;
        }
        self.index += n;
        self.addr = self.addr.add(n as u64 * self.level.size());
        true
    }

    /// Fills an empty entry. No flush: it was not present.
    #[inline(always)]
    pub(crate) fn install(&mut self, entry: Entry) {
        debug_assert_eq!(self.entry(), Entry::None);
        self.store(entry);
        *self.locked.live += 1;
    }

    /// Replaces a non-present entry. No flush by itself; where permission is lost or the page moves, the caller settles
    /// what others owe first ([`crate::tlb::TlbGather::settle`]).
    #[inline(always)]
    pub(crate) fn replace_soft(&mut self, entry: Entry) {
        debug_assert!(matches!(self.entry(), Entry::NonPresent(_)));
        self.store(entry);
    }

    /// Changes the kind of a non-present entry; the new word.
    #[inline(always)]
    pub(crate) fn set_soft_kind(&mut self, kind: SoftKind) -> u64 {
        debug_assert!(matches!(self.entry(), Entry::NonPresent(_)));
        let at = &self.locked.words[self.index];
        let word = SoftLeaf::word_with_kind(at.load(Relaxed), kind);
        at.store(word, Release);
        word
    }

    /// Empties a non-present entry.
    #[inline(always)]
    pub(crate) fn clear_soft(&mut self) {
        debug_assert!(matches!(self.entry(), Entry::NonPresent(_)));
        self.store(Entry::None);
        *self.locked.live -= 1;
    }

    /// Empties a present leaf by an atomic exchange, so that no A or D bit is lost.
    #[inline(always)]
    pub(crate) fn clear_leaf(&mut self) -> Unflushed<M, Leaf> {
        *self.locked.live -= 1;
        self.exchange_leaf(Entry::None)
    }

    /// Turns a present leaf into a non-present entry made from it.
    #[inline(always)]
    pub(crate) fn leaf_to_soft(&mut self, make: impl FnOnce(Leaf) -> SoftLeaf) -> Unflushed<M, Leaf> {
        let owed = self.exchange_leaf(Entry::None);
        self.store(Entry::NonPresent(make(*owed.peek())));
        owed
    }

    #[inline(always)]
    fn exchange_leaf(&mut self, entry: Entry) -> Unflushed<M, Leaf> {
        let old = self.locked.words[self.index].swap(entry.encode(self.level), AcqRel);
        match Entry::decode(old, self.level) {
            Entry::Leaf(leaf) => Unflushed::new(self.space, self.addr, self.level, leaf),
            _ => panic!("cleared an entry that is not a present leaf"),
        }
    }

    /// The word under the cursor.
    #[inline(always)]
    pub(crate) fn word(&self) -> u64 {
        self.locked.raw(self.index)
    }

    /// Turns a plain leaf into a migration entry, owed to `run`; the word that it was, A and D included.
    #[inline(always)]
    pub(crate) fn leaf_to_migration(&mut self, run: &mut UnflushedRun<M>) -> u64 {
        let at = &self.locked.words[self.index];
        let old = at.swap(0, AcqRel);
        at.store(word::leaf_to_migration(old), Release);
        run.add(self.addr);
        old
    }

    /// Gives the migration entry under the cursor, whose word is `word`, to `frame`.
    #[inline(always)]
    pub(crate) fn name_word(&mut self, word: u64, frame: Frame) {
        debug_assert_eq!(self.word(), word);
        self.locked.words[self.index].store(word::migration_to(word, frame, self.level), Release);
    }

    /// Gives the migration entry under the cursor to `frame`, if it names `from`.
    #[inline(always)]
    pub(crate) fn name_migration(&mut self, from: Frame, frame: Frame) -> bool {
        let at = &self.locked.words[self.index];
        let old = at.load(Relaxed);
        if !word::is_migration_of(old, from) {
            return false;
        }
        at.store(word::migration_to(old, frame, self.level), Release);
        true
    }

    /// Adds permission, A or D to a present leaf. No flush: a stale translation only faults again.
    #[inline(always)]
    pub(crate) fn upgrade(&mut self, attrs: Attrs) {
        debug_assert!(matches!(self.entry(), Entry::Leaf(_)));
        self.locked.words[self.index].fetch_or(upgrade_bits(attrs), AcqRel);
    }

    /// Allows instruction fetches from a present leaf. No flush, as with [`Cursor::upgrade`].
    pub(crate) fn allow_exec(&mut self) {
        debug_assert!(matches!(self.entry(), Entry::Leaf(_)));
        self.locked.words[self.index].fetch_and(!restrict_bits(Attrs::EXEC).1, AcqRel);
    }

    /// Takes attributes off a present leaf in place. The CPU may set A and D meanwhile: no bit is lost. Where WRITE or EXEC goes,
    /// a TLB may allow it until the flush; a caller that takes nothing a CPU knows of wants [`Cursor::unmark`].
    #[inline(always)]
    pub(crate) fn restrict(&mut self, remove: Attrs) -> Unflushed<M, ()> {
        debug_assert!(matches!(self.entry(), Entry::Leaf(_)));
        let at = &self.locked.words[self.index];
        let (clear, set) = restrict_bits(remove);
        at.fetch_and(!clear, AcqRel);
        if set != 0 {
            at.fetch_or(set, AcqRel);
        }
        Unflushed::new(self.space, self.addr, self.level, ())
    }

    /// Takes marks off a present leaf that no TLB remembers: exclusive, soft-dirty, uffd-wp. No flush. Young may go this way too: a
    /// TLB that remembers the page will not set it again, so it counts as old a little too soon.
    #[inline(always)]
    pub(crate) fn unmark(&mut self, marks: Attrs) {
        debug_assert!(matches!(self.entry(), Entry::Leaf(_)));
        debug_assert!((Attrs::EXCLUSIVE | Attrs::SOFT_DIRTY | Attrs::UFFD_WP | Attrs::YOUNG).contains(marks));
        self.locked.words[self.index].fetch_and(!restrict_bits(marks).0, AcqRel);
    }

    /// Hooks a PTE table into an empty PMD entry.
    pub(crate) fn hook(&mut self, table: SpareTable<M>) {
        assert_eq!(self.level, Level::Pmd);
        let table = table.into_table(self.space.slab_index());
        self.install(Entry::Table(table.pfn()));
    }

    /// Hooks a filled PTE table in where a non-present PMD entry was.
    pub(crate) fn hook_over_soft(&mut self, table: SpareTable<M>) {
        assert_eq!(self.level, Level::Pmd);
        let table = table.into_table(self.space.slab_index());
        self.replace_soft(Entry::Table(table.pfn()));
    }

    /// Empties the PMD entry of a PTE table that is hooked in elsewhere from now on. The caller owes what
    /// [`crate::tlb::TlbGather::moved_table`] pays.
    pub(crate) fn clear_table(&mut self) {
        debug_assert!(self.level == Level::Pmd && matches!(self.entry(), Entry::Table(_)));
        self.store(Entry::None);
        *self.locked.live -= 1;
    }

    /// Unhooks the empty PTE table under a PMD entry. The caller gives it to its gather.
    pub(crate) fn unhook(&mut self) -> Option<SpareTable<M>> {
        assert_eq!(self.level, Level::Pmd);
        let Entry::Table(pfn) = self.entry() else { return None };
        let table = M::mm().table(pfn);
        let live = table.lock.lock();
        if *live != 0 {
            return None;
        }
        // A walk that waits for this lock finds that the table is not the one it wanted.
        table.set_unhooked(&live);
        drop(live);
        self.store(Entry::None);
        *self.locked.live -= 1;
        Some(SpareTable::unhooked(table))
    }
}

impl<M: Machine> SpareTable<M> {
    /// Fills `n` entries from number `at` on, which are empty, with a run that begins with `first`; for a table that is not
    /// hooked in yet.
    pub(crate) fn fill_run(&mut self, at: u32, n: u32, first: Entry) {
        let mut locked = self.table().lock();
        run::fill(&locked.words[at as usize..(at + n) as usize], first.encode(Level::Pte));
        *locked.live += n;
    }
}

impl<M: Machine> Mm<M> {
    /// A PTE table for the 2 MiB around `addr`.
    pub(crate) fn spare_pte_table(&self, addr: Vaddr, need: Need) -> Result<SpareTable<M>, OutOfMemory> {
        SpareTable::alloc(self, Level::Pte, addr.align_down(PMD_SIZE), need)
    }
}

const _: () = assert!(PTRS == 512);
