//! The cursor: the only thing that changes page-table entries.
//!
//! A cursor is a locked table and a position in it. It borrows the address space shared, so two CPUs can work in two tables
//! at once. Every change is a method that says what kind of change it is, and the ones after which a TLB may still hold the
//! old translation return an [`Unflushed`]. No method overwrites a present leaf by another shape: break before make.

mod walk;

use core::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Relaxed, Release},
};

use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf, restrict_bits, run, upgrade_bits, word};
use crate::error::OutOfMemory;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::space::Space;
use crate::table::{LockedTable, SpareTable};
use crate::tlb::{Unflushed, UnflushedRun};
use crate::types::{Frame, Level, PAGE_SIZE, PMD_SIZE, PTRS, PUD_SIZE, Vaddr};
use crate::zone::Need;

#[cfg(test)]
pub(crate) use walk::LOOKUPS;
pub(crate) use walk::Peek;

/// A locked table of `space` and a position in it.
pub(crate) struct Cursor<M: Machine> {
    space: &'static Space<M>,
    locked: LockedTable<M>,
    level: Level,
    addr: Vaddr,
    /// Which entry of the table maps `addr`.
    index: usize,
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

    /// As [`Cursor::install`], of the word of another table's plain leaf.
    #[inline(always)]
    pub(crate) fn install_word(&mut self, word: u64) {
        debug_assert_eq!(self.word(), 0);
        self.locked.words[self.index].store(word, Release);
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
