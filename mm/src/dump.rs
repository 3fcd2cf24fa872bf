//! The page table as people read it: one line per run of equal mappings.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf};
use crate::machine::Machine;
use crate::space::Space;
use crate::types::{Frame, Level, VaRange, Vaddr};

/// Entries that follow one another in addresses and in frames and are equal otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Addresses.
    pub range: VaRange,
    /// Level of the entries.
    pub level: Level,
    /// The first entry.
    pub entry: Entry,
    /// How many entries.
    pub entries: u64,
}

impl<M: Machine> Space<M> {
    /// Calls `f` for every entry of the user half that is not empty, in address order, and `table` for every table with
    /// its frame, level and base. Reads without locks: for a space at rest.
    pub(crate) fn for_each_entry(
        &self,
        f: &mut dyn FnMut(Vaddr, Level, u64),
        table: &mut dyn FnMut(u32, Level, Vaddr),
    ) {
        walk::<M>(self.root_pfn(), Level::Pgd, Vaddr(0), f, table);
    }

    /// Calls `f` for every run of equal mappings, in address order.
    pub fn for_each_run(&self, mut f: impl FnMut(&Run)) {
        let mut run: Option<Run> = None;
        self.for_each_entry(
            &mut |addr, level, word| {
                let entry = Entry::decode(word, level);
                if let Some(run) = &mut run
                    && run.continues(addr, level, entry)
                {
                    run.range.end = addr.add(level.size());
                    run.entries += 1;
                    return;
                }
                if let Some(run) = &run {
                    f(run);
                }
                run = Some(Run { range: VaRange::new(addr.0, level.size()), level, entry, entries: 1 });
            },
            &mut |_, _, _| {},
        );
        if let Some(run) = &run {
            f(run);
        }
    }

    /// The entry that maps `addr` and its level (PMD or PTE), as it is now.
    #[must_use]
    pub fn entry_at(&self, addr: Vaddr) -> (Level, Entry) {
        match self.peek(addr) {
            crate::cursor::Peek::NoTable => (Level::Pmd, Entry::None),
            crate::cursor::Peek::Pmd(_, entry) => (Level::Pmd, entry),
            crate::cursor::Peek::Pte(_, entry) => (Level::Pte, entry),
        }
    }

    /// The words met on the way to `addr`, from the root down, for reports: (level, word).
    pub fn walk_words(&self, addr: Vaddr, mut f: impl FnMut(Level, u64)) {
        let mut pfn = self.root_pfn();
        for level in [Level::Pgd, Level::Pud, Level::Pmd, Level::Pte] {
            let word = M::table_words(pfn)[addr.index(level)].load(Relaxed);
            f(level, word);
            match Entry::try_decode(word, level) {
                Ok(Entry::Table(next)) => pfn = next,
                _ => return,
            }
        }
    }
}

fn walk<M: Machine>(
    pfn: u32,
    level: Level,
    base: Vaddr,
    f: &mut dyn FnMut(Vaddr, Level, u64),
    table: &mut dyn FnMut(u32, Level, Vaddr),
) {
    table(pfn, level, base);
    let below = match level {
        Level::Pgd => Some(Level::Pud),
        Level::Pud => Some(Level::Pmd),
        Level::Pmd => Some(Level::Pte),
        Level::Pte => None,
    };
    let entries = if level == Level::Pgd { 256 } else { 512 };
    for (i, word) in M::table_words(pfn)[..entries].iter().enumerate() {
        let word = word.load(Relaxed);
        if word == 0 {
            continue;
        }
        let addr = base.add(i as u64 * level.size());
        match (Entry::try_decode(word, level), below) {
            (Ok(Entry::Table(next)), Some(below)) => walk::<M>(next, below, addr, f, table),
            _ => f(addr, level, word),
        }
    }
}

/// A and D are the CPU's business: they do not end a run.
const RUN_ATTRS: Attrs = Attrs::all().difference(Attrs::YOUNG.union(Attrs::DIRTY));

impl Run {
    fn continues(&self, addr: Vaddr, level: Level, entry: Entry) -> bool {
        if addr != self.range.end || level != self.level {
            return false;
        }
        let step = (self.entries as u32).wrapping_mul(level.order().pages());
        let follows = |a: Frame, b: Frame| a.offset(step) == b;
        match (self.entry, entry) {
            (Entry::Leaf(a), Entry::Leaf(b)) => {
                let frames = if a.special { a.frame == b.frame } else { follows(a.frame, b.frame) };
                frames
                    && a.special == b.special
                    && a.cache == b.cache
                    && a.attrs & RUN_ATTRS == b.attrs & RUN_ATTRS
            }
            (Entry::NonPresent(a), Entry::NonPresent(b)) => {
                follows(a.frame, b.frame) && a.kind == b.kind && a.attrs & RUN_ATTRS == b.attrs & RUN_ATTRS
            }
            _ => false,
        }
    }
}

/// `rwx` and the bits that are set, by name.
pub(crate) struct AttrNames(pub(crate) Attrs);

impl fmt::Display for AttrNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let a = self.0;
        let flag = |bit, c| if a.contains(bit) { c } else { '-' };
        let read = if a.contains(Attrs::NO_ACCESS) { '-' } else { 'r' };
        write!(f, "{read}{}{}", flag(Attrs::WRITE, 'w'), flag(Attrs::EXEC, 'x'))?;
        for (bit, name) in [
            (Attrs::EXCLUSIVE, " exclusive"),
            (Attrs::SOFT_DIRTY, " soft-dirty"),
            (Attrs::UFFD_WP, " uffd-wp"),
            (Attrs::YOUNG, " young"),
            (Attrs::DIRTY, " dirty"),
        ] {
            if a.contains(bit) {
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = if self.level == Level::Pmd { "2 MiB" } else { "4 KiB" };
        write!(f, "{:#014x}-{:#014x} {:>4} x {size}  ", self.range.start.0, self.range.end.0, self.entries)?;
        match self.entry {
            Entry::None => f.write_str("none"),
            Entry::Table(pfn) => write!(f, "table {pfn:#x}"),
            Entry::Leaf(Leaf { special: true, attrs, .. }) => {
                write!(f, "present         zero        {}", AttrNames(attrs))
            }
            Entry::Leaf(leaf) => write!(f, "present         {:<11} {}", leaf.frame, AttrNames(leaf.attrs)),
            Entry::NonPresent(SoftLeaf { kind, frame, attrs }) => {
                let kind = match kind {
                    SoftKind::Migration => "migration",
                    SoftKind::DevicePrivate => "device-private",
                    SoftKind::DeviceExclusive => "exclusive",
                    SoftKind::ProtNone => "prot-none",
                };
                write!(f, "{kind:<15} {frame:<11} {}", AttrNames(attrs))
            }
        }
    }
}
