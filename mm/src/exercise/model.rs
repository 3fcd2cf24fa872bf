//! The obvious model: which pages are mapped, with what protection, and what is in them.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::types::{Access, PAGE_SHIFT, PAGE_SIZE, Prot, VaRange, Vaddr};

/// Words of a page that are looked at.
pub const WORDS: usize = 4;

/// One mapping. Neighbours that are equal are one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ModelVma {
    /// The first page.
    pub start: u64,
    /// The page after the last.
    pub end: u64,
    /// What may be done there.
    pub prot: Prot,
}

/// What is in a page that was ever written.
#[derive(Clone, Copy, Default, Debug)]
pub struct ModelPage {
    /// Its words.
    pub words: [u64; WORDS],
    /// Nobody has to know any more that it was written.
    pub clean: bool,
}

/// One address space. Pages are virtual page numbers.
#[derive(Clone, Debug, Default)]
pub struct ModelSpace {
    /// What is mapped, in address order.
    pub vmas: Vec<ModelVma>,
    /// Pages that were ever written; all others are zero.
    pub content: BTreeMap<u64, ModelPage>,
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

    /// The page after the last that is mapped without a hole from `page` on.
    #[must_use]
    pub fn mapped_until(&self, page: u64) -> u64 {
        let mut at = page;
        while let Some(vma) = self.vma(at) {
            at = vma.end;
        }
        at
    }

    /// Maps a range where nothing is.
    pub fn map(&mut self, range: VaRange, prot: Prot) {
        let pages = pages(range);
        self.vmas.push(ModelVma { start: pages.start, end: pages.end, prot });
        self.tidy();
    }

    /// Nothing is mapped in the range any more, and nothing in it.
    pub fn unmap(&mut self, range: VaRange) {
        self.change(range, |_| None);
        self.forget(range);
    }

    /// Changes what is allowed, wherever something is mapped.
    pub fn protect(&mut self, range: VaRange, prot: Prot) {
        self.change(range, |vma| Some(ModelVma { prot, ..vma }));
    }

    /// The contents of a range are gone; it stays mapped.
    pub fn forget(&mut self, range: VaRange) {
        let gone = pages(range);
        self.content.retain(|page, _| !gone.contains(page));
    }

    /// Nobody has to know any more that pages of the range were written.
    pub fn clean(&mut self, range: VaRange) {
        self.content.range_mut(pages(range)).for_each(|(_, page)| page.clean = true);
    }

    /// Puts `f` of it in the place of each part of a mapping that lies in the range.
    fn change(&mut self, range: VaRange, f: impl Fn(ModelVma) -> Option<ModelVma>) {
        let inside = pages(range);
        let mut left = Vec::new();
        for vma in self.vmas.drain(..) {
            let cut = |start: u64, end: u64| Some(ModelVma { start, end, ..vma }).filter(|v| v.start < v.end);
            left.extend(cut(vma.start, vma.end.min(inside.start)));
            left.extend(cut(vma.start.max(inside.start), vma.end.min(inside.end)).and_then(&f));
            left.extend(cut(vma.start.max(inside.end), vma.end));
        }
        self.vmas = left;
        self.tidy();
    }

    /// In order, and equal neighbours are one.
    fn tidy(&mut self) {
        self.vmas.sort_unstable_by_key(|vma| vma.start);
        self.vmas.dedup_by(|next, vma| {
            let continued = ModelVma { start: vma.start, end: vma.end, ..*next } == *vma;
            let joins = vma.end == next.start && continued;
            if joins {
                vma.end = next.end;
            }
            joins
        });
    }

    /// What an access must lead to, once memory suffices.
    #[must_use]
    pub fn allows(&self, page: u64, access: Access) -> Option<bool> {
        self.vma(page).map(|vma| vma.prot.allows(access))
    }

    /// A word of a page.
    #[must_use]
    pub fn read(&self, page: u64, word: usize) -> u64 {
        self.content.get(&page).map_or(0, |page| page.words[word])
    }

    /// A program writes a word.
    pub fn write(&mut self, page: u64, word: usize, value: u64) {
        let page = self.content.entry(page).or_default();
        page.words[word] = value;
        page.clean = false;
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
