//! The obvious model: which pages are mapped, with what protection, and what is in them.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::types::{Access, PAGE_SHIFT, PAGE_SIZE, Place, Prot, VaRange, Vaddr};

/// Words of a page that are looked at.
pub const WORDS: usize = 4;

/// Objects that there are at a time.
pub const OBJECTS: usize = 2;
/// Pages of an object.
pub const OBJECT_PAGES: u64 = 1024;

/// What a mapping shows. Objects are numbered for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Memory of its own.
    Anon,
    /// An object, shared with all who map it.
    Shared(usize),
    /// An object, until somebody writes.
    Private(usize),
}

/// One mapping. Neighbours that are equal are one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ModelVma {
    /// The first page.
    pub start: u64,
    /// The page after the last.
    pub end: u64,
    /// What may be done there.
    pub prot: Prot,
    /// What is there.
    pub backing: Backing,
    /// Index in the object minus page number; 0 without an object.
    pub shift: u64,
}

/// What is in a page that belongs to a space alone.
#[derive(Clone, Copy, Default, Debug)]
pub struct ModelPage {
    /// Its words.
    pub words: [u64; WORDS],
    /// Nobody has to know any more that it was written.
    pub clean: bool,
    /// Soft-dirty, where it is known: a huge page is so as a whole.
    pub soft: Option<bool>,
    /// Write-protected by a tracker, where it is known.
    pub wp: Option<bool>,
    /// Where it lies, while it is known: see `seats.rs`.
    pub place: Option<Place>,
}

/// One address space. Pages are virtual page numbers.
#[derive(Clone, Debug, Default)]
pub struct ModelSpace {
    /// What is mapped, in address order.
    pub vmas: Vec<ModelVma>,
    /// Pages that were written, outside shared mappings; all others are what they were at first.
    pub content: BTreeMap<u64, ModelPage>,
    /// Spaces that were cloned from each other have the same number: a page of one may be a page of the other.
    pub family: u64,
    /// It has, or had, a relative.
    pub is_related: bool,
}

/// All of them, by the runner's numbers.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Address spaces.
    pub spaces: Vec<ModelSpace>,
    /// Pages of objects that were written.
    pub objects: Vec<BTreeMap<u64, [u64; WORDS]>>,
    /// Numbers of the objects that there are now.
    pub current: [usize; OBJECTS],
    /// Pages of a space that an operation changes at this moment: what other CPUs do there proves nothing.
    pub flux: Option<(usize, VaRange)>,
    /// Families that there were.
    pub(super) families: u64,
    /// What has happened, and how often: a situation that never comes up is not tested.
    pub seen: BTreeMap<&'static str, u64>,
}

impl Model {
    /// The words of a page that a space sees.
    #[must_use]
    pub fn words(&self, space: usize, page: u64) -> [u64; WORDS] {
        let space = &self.spaces[space];
        if let Some(page) = space.content.get(&page) {
            return page.words;
        }
        match space.vma(page) {
            Some(vma) => match vma.backing {
                Backing::Anon => [0; WORDS],
                Backing::Shared(object) | Backing::Private(object) => {
                    let words = self.objects[object].get(&page.wrapping_add(vma.shift));
                    words.copied().unwrap_or_default()
                }
            },
            None => [0; WORDS],
        }
    }

    /// A word of a page.
    #[must_use]
    pub fn read(&self, space: usize, page: u64, word: usize) -> u64 {
        self.words(space, page)[word]
    }

    /// A program writes a word.
    pub fn write(&mut self, space: usize, page: u64, word: usize, value: u64) {
        let mut words = self.words(space, page);
        words[word] = value;
        self.write_all(space, page, words);
    }

    /// A program or a device writes a page.
    pub fn write_all(&mut self, space: usize, page: u64, words: [u64; WORDS]) {
        let space = &mut self.spaces[space];
        let Some(vma) = space.vma(page).copied() else { return };
        if let Backing::Shared(object) = vma.backing {
            self.objects[object].insert(page.wrapping_add(vma.shift), words);
        } else {
            let place = space.content.get(&page).and_then(|page| page.place);
            let written = ModelPage { words, clean: false, soft: Some(true), wp: Some(false), place };
            space.content.insert(page, written);
        }
    }

    /// What an access must lead to, once memory suffices.
    #[must_use]
    pub fn allows(&self, space: usize, page: u64, access: Access) -> Option<bool> {
        self.spaces.get(space)?.vma(page).map(|vma| vma.prot.allows(access))
    }

    /// True when a page, or a hole, is a space's own and not an object's.
    #[must_use]
    pub fn is_own(&self, space: usize, page: u64) -> bool {
        let space = &self.spaces[space];
        match space.vma(page).map(|vma| vma.backing) {
            Some(Backing::Anon) => true,
            Some(Backing::Private(_)) => space.content.contains_key(&page),
            Some(Backing::Shared(_)) | None => false,
        }
    }

    /// An object ends, as far as nobody maps it, and an empty one takes its place.
    pub fn renew(&mut self, object: usize) {
        self.current[object] = self.objects.len();
        self.objects.push(BTreeMap::new());
        for (n, content) in self.objects.iter_mut().enumerate() {
            let maps =
                |vma: &ModelVma| matches!(vma.backing, Backing::Shared(o) | Backing::Private(o) if o == n);
            if !self.current.contains(&n) && !self.spaces.iter().any(|s| s.vmas.iter().any(maps)) {
                content.clear();
            }
        }
    }
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

    /// Maps a range where nothing is, of an object from page `index` on.
    pub fn map(&mut self, range: VaRange, prot: Prot, backing: Backing, index: u64) {
        let pages = pages(range);
        let shift = if backing == Backing::Anon { 0 } else { index.wrapping_sub(pages.start) };
        self.vmas.push(ModelVma { start: pages.start, end: pages.end, prot, backing, shift });
        self.tidy();
    }

    /// Moves what is in one mapping to another address, where it may be longer; `keep` leaves an empty mapping behind.
    pub fn remap(&mut self, old: VaRange, new: VaRange, keep: bool) {
        let (from, to) = (pages(old), pages(new));
        let Some(vma) = self.vma(from.start).copied() else { return };
        if from.start == to.start {
            self.change(old, |_| None);
            let gone = to.end.min(from.end)..from.end;
            self.content.retain(|page, _| !gone.contains(page));
        } else {
            self.unmap(new);
            let mut moved: Vec<_> = self.content.range(from.clone()).map(|(page, p)| (*page, *p)).collect();
            self.forget(old);
            moved.retain(|(page, _)| page - from.start < to.end - to.start);
            for (page, content) in moved {
                let content = ModelPage { soft: Some(true), ..content };
                self.content.insert(page - from.start + to.start, content);
            }
            if !keep {
                self.change(old, |_| None);
            }
        }
        let index = from.start.wrapping_add(vma.shift);
        self.map(new, vma.prot, vma.backing, index);
    }

    /// Nobody says what the pages that share a 2 MiB page with this one are marked as.
    pub fn blur(&mut self, page: u64) {
        let first = page & !511;
        for (_, other) in self.content.range_mut(first..first + 512).filter(|(at, _)| **at != page) {
            (other.soft, other.wp) = (None, None);
        }
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
