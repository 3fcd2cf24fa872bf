//! Entries as words, for tests and experiments that go behind the memory manager's back.
//!
//! Whoever changes one puts it back before the memory manager looks, and flushes.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use farpage_mm::{Entry, Level, Machine as _, Space, Vaddr};

use super::Machine;

/// The global bit of a present leaf (SDM vol. 3, 4.10.2.4), which the memory manager never sets.
pub(crate) const GLOBAL: u64 = 1 << 8;

/// The PTE of `addr`, as it stands in memory; none where no table of PTEs is.
pub(crate) fn pte_word(space: &Space<Machine>, addr: u64) -> Option<&'static AtomicU64> {
    let mut table = Machine::table_words(space.root_pfn());
    for level in [Level::Pgd, Level::Pud, Level::Pmd] {
        match Entry::try_decode(table[Vaddr(addr).index(level)].load(Relaxed), level) {
            Ok(Entry::Table(pfn)) => table = Machine::table_words(pfn),
            _ => return None,
        }
    }
    Some(&table[Vaddr(addr).index(Level::Pte)])
}
