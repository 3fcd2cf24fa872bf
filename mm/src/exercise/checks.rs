//! What a runner looks at between steps.

use alloc::format;
use alloc::vec::Vec;

use super::WORDS;
use crate::entry::{Attrs, Entry, SoftKind};
use crate::exercise::model::{Backing, Model, ModelVma, pages};
use crate::exercise::runner::Runner;
use crate::exercise::world::World;
use crate::machine::Machine;
use crate::migrate::Report;
use crate::space::Space;
use crate::types::{Frame, Level, PAGE_SHIFT, PAGE_SIZE, Place, Prot, VaRange, Vaddr};
use crate::vma::VmaKind;

impl<W: World> Runner<'_, W> {
    pub(super) fn check_report(&self, range: VaRange, to: Place, report: &Report) {
        if report.holes > report.pages || report.huge_pages + report.torn > report.pages {
            self.fail(|| format!("report of {range} to {to} does not add up: {report:?}"));
        }
    }

    pub(super) fn check_moved(&self, n: usize, space: &'static Space<W::Machine>, range: VaRange, to: Place) {
        let model = self.world.model().borrow();
        for page in pages(range).filter(|&page| model.is_own(n, page)) {
            let at = Vaddr(page * PAGE_SIZE);
            let entry = space.entry_at(at).1;
            let fine = match entry {
                // What is lent and need not move stays lent; another device's memory that CPUs map stays where it is.
                Entry::NonPresent(soft) if soft.kind == SoftKind::DeviceExclusive => {
                    soft.frame.place().is_ram() == to.is_ram()
                }
                Entry::NonPresent(soft) => soft.kind == SoftKind::DevicePrivate && !to.is_ram(),
                Entry::Leaf(leaf) if leaf.special => to.is_ram(),
                // What is on another device stays there.
                Entry::Leaf(leaf) => leaf.frame.place().is_ram() == to.is_ram(),
                Entry::None => to.is_ram(),
                Entry::Table(_) => false,
            };
            if !fine {
                self.fail(|| {
                    format!("after the migration of {range} of space {n} to {to}, {at} is {entry:?}")
                });
                return;
            }
        }
    }

    pub(super) fn check_contents(&self, n: usize) {
        let all = self.world.model().borrow();
        let model = &all.spaces[n];
        let mut written = 0;
        let mut found = Vec::new();
        self.space(n as u8).1.for_each_entry(
            &mut |at, level, word| {
                let entry = Entry::decode(word, level);
                for i in 0..u64::from(level.order().pages()) {
                    let page = (at.0 >> PAGE_SHIFT) + i;
                    if let Some(place) = self.check_page(&all, n, page, (level, entry), i as u32) {
                        written += 1;
                        found.push((page, place));
                    }
                }
            },
            &mut |_, _, _| {},
        );
        if written != model.content.len() as u64 {
            let lost: Vec<_> = model
                .content
                .keys()
                .filter(|&&page| self.space(n as u8).1.entry_at(Vaddr(page * PAGE_SIZE)).1 == Entry::None)
                .take(3)
                .collect();
            self.fail(|| format!("space {n}: written pages are gone: {lost:x?}"));
        }
        drop(all);
        self.world.model().borrow_mut().found_all(n, found);
    }

    /// Where the page lies, if it was ever written.
    fn check_page(
        &self,
        all: &Model,
        n: usize,
        page: u64,
        (level, entry): (Level, Entry),
        i: u32,
    ) -> Option<Place> {
        let model = &all.spaces[n];
        let (frame, attrs, special) = match entry {
            Entry::Leaf(leaf) => (leaf.frame.offset(i), leaf.attrs, leaf.special),
            Entry::NonPresent(soft) => (soft.frame.offset(i), soft.attrs, false),
            Entry::None | Entry::Table(_) => return None,
        };
        let (own, expected, found) = (model.content.get(&page), all.words(n, page), self.peek(frame));
        if found != expected {
            self.fail(|| {
                format!(
                    "space {n}: page {page:#x} in {frame} holds {found:x?}, not {expected:x?} ({entry:?})"
                )
            });
        }
        if let Some(own) = own {
            if own.place.is_some_and(|place| place != frame.place()) {
                self.fail(|| {
                    format!(
                        "space {n}: page {page:#x} lies in {frame}, though nothing moved it from {own:x?}"
                    )
                });
            }
            if !own.clean && !special {
                self.check_dirty(n, page, frame, attrs);
            }
            let marks = (attrs.contains(Attrs::SOFT_DIRTY), attrs.contains(Attrs::UFFD_WP));
            self.check_marks(n, page, level, own, marks);
        }
        if let Some(vma) = model.vma(page)
            && !is_allowed(entry, attrs, vma)
        {
            self.fail(|| {
                format!("space {n}: page {page:#x} is mapped as {entry:?}, where {:?} is allowed", vma.prot)
            });
        }
        own.map(|_| frame.place())
    }

    /// The words of a page, looked at where it lies.
    pub(super) fn peek(&self, frame: Frame) -> [u64; WORDS] {
        W::AT.map(|at| {
            let mut word = [0];
            W::Machine::read_frame(frame, at, &mut word);
            word[0]
        })
    }

    /// The real mappings are the model's.
    pub(super) fn check_vmas(&self, n: usize) {
        let model = &self.world.model().borrow().spaces[n];
        let mut expected = flat(&model.vmas).into_iter();
        let mut now: Option<(u64, u64, Prot, VmaKind)> = None;
        // Real ones may be more: they differ in what the model does not know.
        self.space(n as u8).1.for_each_vma(|vma| {
            let pages = pages(vma.range());
            let next = (pages.start, pages.end, vma.prot(), vma.kind());
            match &mut now {
                Some(now) if now.1 == next.0 && (now.2, now.3) == (next.2, next.3) => now.1 = next.1,
                _ => {
                    if now.is_some() && now != expected.next() {
                        self.fail(|| format!("space {n} has {now:x?}, not {:x?}", model.vmas));
                    }
                    now = Some(next);
                }
            }
        });
        if now != expected.next() || expected.next().is_some() {
            self.fail(|| format!("space {n} ends with {now:x?}, not {:x?}", model.vmas));
        }
    }

    /// Nobody forgets that a page was written.
    fn check_dirty(&self, n: usize, page: u64, frame: Frame, attrs: Attrs) {
        let folio = Self::mm().zone(frame.place()).folio_index(frame.index());
        let dirty = folio.is_some_and(|index| Self::mm().folios.get(index).is_dirty());
        if !attrs.contains(Attrs::DIRTY) && !dirty {
            self.fail(|| {
                format!("space {n}: page {page:#x} was written, and neither its entry nor its folio knows")
            });
        }
    }
}

/// Mappings as the memory manager tells of them: it does not say which object they show.
fn flat(vmas: &[ModelVma]) -> Vec<(u64, u64, Prot, VmaKind)> {
    let mut flat: Vec<(u64, u64, Prot, VmaKind)> = Vec::new();
    for vma in vmas {
        let kind = match vma.backing {
            Backing::Anon => VmaKind::Anon,
            Backing::Shared(_) => VmaKind::Shared,
            Backing::Private(_) => VmaKind::Private,
        };
        match flat.last_mut() {
            Some(last) if last.1 == vma.start && (last.2, last.3) == (vma.prot, kind) => last.1 = vma.end,
            _ => flat.push((vma.start, vma.end, vma.prot, kind)),
        }
    }
    flat
}

/// No entry allows more than its mapping, and none is present where nothing is allowed.
fn is_allowed(entry: Entry, attrs: Attrs, vma: &ModelVma) -> bool {
    let hidden = match entry {
        Entry::NonPresent(soft) => attrs.contains(Attrs::NO_ACCESS) || soft.kind == SoftKind::ProtNone,
        _ => false,
    };
    hidden == vma.prot.is_empty()
        && (!attrs.contains(Attrs::WRITE) || vma.prot.contains(Prot::WRITE))
        && (!attrs.contains(Attrs::EXEC) || vma.prot.contains(Prot::EXEC))
}
