//! Page tables of an experiment's own.
//!
//! Three tables and two pages are enough for any number of translations: every entry of a PUD table names the same PMD table, every
//! entry of that the same PTE table, and every entry of that the same page. So 512 GiB of addresses show one page, in any number and
//! at any distance, and one pass over 512 words shows another page behind all of them. What a CPU caches are translations of
//! addresses: they are as many and as different as if there were as many pages.
//!
//! The tables hang in a slot of the root that the memory manager has never used, while a [`Scratch`] lives. It knows nothing of them.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use farpage_mm::{
    AddressSpace, Attrs, Entry, FolioRef, Leaf, Level, Machine as _, Need, OutOfMemory, PAGE_SIZE, Place,
    TableWords, Vaddr,
};

use crate::arch::x86_64::tlb;
use crate::bench::Stop;
use crate::vm::raw::GLOBAL;
use crate::vm::{Machine, mm};

/// Two pages behind as many addresses as one likes.
pub(super) struct Scratch<'a> {
    _space: &'a AddressSpace<Machine>,
    slot: &'static AtomicU64,
    leaves: &'static TableWords,
    level: Level,
    flags: u64,
    pages: [FolioRef<Machine>; 2],
    _tables: [FolioRef<Machine>; 3],
}

impl<'a> Scratch<'a> {
    /// Where the addresses begin; they are 512 GiB.
    pub(super) const BASE: u64 = 200 << 39;

    /// Tables whose leaves are of `level` ([`Level::Pte`] or [`Level::Pmd`]) and show page 0, in the space that is loaded.
    ///
    /// # Errors
    /// Out of memory, or the addresses are in use.
    pub(super) fn hang(space: &'a AddressSpace<Machine>, level: Level) -> Result<Self, Stop> {
        let slot = &Machine::table_words(space.space().root_pfn())[Vaddr(Self::BASE).index(Level::Pgd)];
        if slot.load(Relaxed) != 0 {
            return Err(Stop::Wrong("the addresses of the experiment's own tables are in use"));
        }
        let get = |level: Level| mm().alloc_folio(Place::RAM, level.order(), Need::User);
        let page = || -> Result<_, OutOfMemory> { get(level) };
        let pages = [page()?, page()?];
        let tables = [get(Level::Pte)?, get(Level::Pte)?, get(Level::Pte)?];
        let words = |table: usize| Machine::table_words(tables[table].frame().index());
        let name = |table: usize, by: Level| Entry::Table(tables[table].frame().index()).encode(by);
        fill(words(0), name(1, Level::Pud));
        let leaves = if level == Level::Pmd {
            words(1)
        } else {
            fill(words(1), name(2, Level::Pmd));
            words(2)
        };
        for (n, page) in (0..).zip(&pages) {
            for piece in 0..page.order().pages() {
                // The first word of every 4 KiB says which page it is.
                Machine::table_words(page.frame().index() + piece)[0].store(n, Relaxed);
            }
        }
        let root = name(0, Level::Pgd);
        let scratch = Self { _space: space, slot, leaves, level, flags: 0, pages, _tables: tables };
        scratch.show(0);
        slot.store(root, Relaxed);
        Ok(scratch)
    }

    /// The same, with leaves that are global.
    pub(super) fn global(mut self) -> Self {
        self.flags = GLOBAL;
        self.show(0);
        self
    }

    /// Shows page 0 or 1 at all addresses, and flushes nothing. The first word of every 4 KiB there is the page's number.
    pub(super) fn show(&self, page: usize) {
        let attrs = Attrs::WRITE | Attrs::YOUNG | Attrs::DIRTY;
        let leaf = Entry::Leaf(Leaf::ram(self.pages[page].frame(), attrs));
        fill(self.leaves, leaf.encode(self.level) | self.flags);
    }

    /// Bytes of a page.
    pub(super) fn page_size(&self) -> u64 {
        u64::from(self.pages[0].order().pages()) * PAGE_SIZE
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        self.slot.store(0, Relaxed);
        tlb::flush_global();
    }
}

fn fill(table: &TableWords, word: u64) {
    table.iter().for_each(|entry| entry.store(word, Relaxed));
}
