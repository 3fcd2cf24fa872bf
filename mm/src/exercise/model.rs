//! The obvious model: which pages are mapped, with what protection, and what is in them.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::types::{Access, PAGE_SHIFT, PAGE_SIZE, Prot, VaRange, Vaddr};

/// Words of a page that are looked at.
pub const WORDS: usize = 4;

/// One mapping.
#[derive(Clone, Copy, Debug)]
pub struct ModelVma {
    /// The first page.
    pub start: u64,
    /// The page after the last.
    pub end: u64,
    /// What may be done there.
    pub prot: Prot,
}

/// One address space. Pages are virtual page numbers.
#[derive(Clone, Debug, Default)]
pub struct ModelSpace {
    /// What is mapped, in no order.
    pub vmas: Vec<ModelVma>,
    /// Contents of pages that were ever written; all others are zero.
    pub content: BTreeMap<u64, [u64; WORDS]>,
}

/// All of them, by the runner's numbers.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Address spaces.
    pub spaces: Vec<ModelSpace>,
}

/// The pages of an address range.
#[must_use]
pub fn pages(range: VaRange) -> core::ops::Range<u64> {
    range.start.0 >> PAGE_SHIFT..range.end.0 >> PAGE_SHIFT
}

impl ModelSpace {
    /// The mapping of a page.
    #[must_use]
    pub fn vma(&self, page: u64) -> Option<&ModelVma> {
        self.vmas.iter().find(|vma| vma.start <= page && page < vma.end)
    }

    /// True when something is mapped in the range.
    #[must_use]
    pub fn overlaps(&self, range: VaRange) -> bool {
        let pages = pages(range);
        self.vmas.iter().any(|vma| vma.start < pages.end && pages.start < vma.end)
    }

    /// Maps a range where nothing is.
    pub fn map(&mut self, range: VaRange, prot: Prot) {
        let pages = pages(range);
        self.vmas.push(ModelVma { start: pages.start, end: pages.end, prot });
    }

    /// Nothing is mapped in the range any more, and nothing in it.
    pub fn unmap(&mut self, range: VaRange) {
        let gone = pages(range);
        let mut left = Vec::new();
        for vma in self.vmas.drain(..) {
            for (start, end) in [(vma.start, vma.end.min(gone.start)), (vma.start.max(gone.end), vma.end)] {
                if start < end {
                    left.push(ModelVma { start, end, ..vma });
                }
            }
        }
        self.vmas = left;
        self.content.retain(|page, _| !gone.contains(page));
    }

    /// What an access must lead to, once memory suffices.
    #[must_use]
    pub fn allows(&self, page: u64, access: Access) -> Option<bool> {
        self.vma(page).map(|vma| vma.prot.allows(access))
    }

    /// A word of a page.
    #[must_use]
    pub fn read(&self, page: u64, word: usize) -> u64 {
        self.content.get(&page).map_or(0, |words| words[word])
    }

    /// A program writes a word.
    pub fn write(&mut self, page: u64, word: usize, value: u64) {
        self.content.entry(page).or_default()[word] = value;
    }

    /// The first page of a range for which `bad` holds.
    #[must_use]
    pub fn first(&self, range: VaRange, bad: impl Fn(Option<&ModelVma>) -> bool) -> Option<Vaddr> {
        let pages = pages(range);
        let mut at = pages.start;
        while at < pages.end {
            let vma = self.vma(at);
            if bad(vma) {
                return Some(Vaddr(at * PAGE_SIZE));
            }
            at = vma.map_or(at + 1, |vma| vma.end);
        }
        None
    }
}
