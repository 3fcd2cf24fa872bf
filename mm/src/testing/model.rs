//! The obvious model: which pages are mapped, with what protection, and what is in them.

use std::collections::BTreeMap;

use crate::testing::machine::WORDS;
use crate::types::{Access, PAGE_SHIFT, PAGE_SIZE, Prot, VaRange, Vaddr};

/// One mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModelVma {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) prot: Prot,
}

/// One address space. Pages are virtual page numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelSpace {
    pub(crate) vmas: Vec<ModelVma>,
    /// Contents of pages that were ever written; all others are zero.
    pub(crate) content: BTreeMap<u64, [u64; WORDS]>,
}

/// All of them, by the runner's numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) spaces: Vec<ModelSpace>,
}

/// The pages of an address range.
pub(crate) fn pages(range: VaRange) -> core::ops::Range<u64> {
    range.start.0 >> PAGE_SHIFT..range.end.0 >> PAGE_SHIFT
}

impl ModelSpace {
    pub(crate) fn vma(&self, page: u64) -> Option<&ModelVma> {
        self.vmas.iter().find(|vma| vma.start <= page && page < vma.end)
    }

    pub(crate) fn overlaps(&self, range: VaRange) -> bool {
        let pages = pages(range);
        self.vmas.iter().any(|vma| vma.start < pages.end && pages.start < vma.end)
    }

    pub(crate) fn map(&mut self, range: VaRange, prot: Prot) {
        let pages = pages(range);
        self.vmas.push(ModelVma { start: pages.start, end: pages.end, prot });
    }

    pub(crate) fn unmap(&mut self, range: VaRange) {
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
    pub(crate) fn allows(&self, page: u64, access: Access) -> Option<bool> {
        self.vma(page).map(|vma| vma.prot.allows(access))
    }

    pub(crate) fn read(&self, page: u64, word: usize) -> u64 {
        self.content.get(&page).map_or(0, |words| words[word])
    }

    pub(crate) fn write(&mut self, page: u64, word: usize, value: u64) {
        self.content.entry(page).or_default()[word] = value;
    }

    /// The first page of a range for which `bad` holds.
    pub(crate) fn first(&self, range: VaRange, bad: impl Fn(Option<&ModelVma>) -> bool) -> Option<Vaddr> {
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
