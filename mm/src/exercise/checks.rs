//! What a runner looks at between steps.

use alloc::format;
use alloc::vec::Vec;

use super::WORDS;
use crate::entry::{Attrs, Entry, SoftKind};
use crate::exercise::model::{ModelSpace, ModelVma, pages};
use crate::exercise::runner::Runner;
use crate::exercise::world::World;
use crate::migrate::Report;
use crate::space::Space;
use crate::types::{Frame, PAGE_SHIFT, PAGE_SIZE, Place, Prot, VaRange, Vaddr};

impl<W: World> Runner<'_, W> {
    pub(super) fn check_report(&self, range: VaRange, to: Place, report: &Report) {
        if report.holes > report.pages || report.huge_pages + report.torn > report.pages {
            self.fail(|| format!("report of {range} to {to} does not add up: {report:?}"));
        }
    }

    pub(super) fn check_moved(&self, n: usize, space: &'static Space<W::Machine>, range: VaRange, to: Place) {
        for page in pages(range) {
            let at = Vaddr(page * PAGE_SIZE);
            let entry = space.entry_at(at).1;
            let fine = match entry {
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
        let model = &self.world.model().borrow().spaces[n];
        let mut written = 0;
        self.space(n as u8).1.for_each_entry(
            &mut |at, level, word| {
                let entry = Entry::decode(word, level);
                for i in 0..u64::from(level.order().pages()) {
                    written +=
                        u64::from(self.check_page(model, n, (at.0 >> PAGE_SHIFT) + i, entry, i as u32));
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
    }

    /// True when the page was ever written.
    fn check_page(&self, model: &ModelSpace, n: usize, page: u64, entry: Entry, i: u32) -> bool {
        let (frame, attrs, special) = match entry {
            Entry::Leaf(leaf) => (leaf.frame.offset(i), leaf.attrs, leaf.special),
            Entry::NonPresent(soft) => (soft.frame.offset(i), soft.attrs, false),
            Entry::None | Entry::Table(_) => return false,
        };
        let expected = model.content.get(&page);
        let found: [u64; WORDS] = core::array::from_fn(|w| self.world.peek(frame, w));
        if found != expected.copied().unwrap_or_default().words {
            self.fail(|| {
                format!(
                    "space {n}: page {page:#x} in {frame} holds {found:x?}, not {expected:x?} ({entry:?})"
                )
            });
        }
        if expected.is_some_and(|page| !page.clean) && !special {
            self.check_dirty(n, page, frame, attrs);
        }
        if let Some(vma) = model.vma(page)
            && !is_allowed(entry, attrs, vma.prot)
        {
            self.fail(|| {
                format!("space {n}: page {page:#x} is mapped as {entry:?}, where {:?} is allowed", vma.prot)
            });
        }
        expected.is_some()
    }

    /// The real mappings are the model's.
    pub(super) fn check_vmas(&self, n: usize) {
        let model = &self.world.model().borrow().spaces[n];
        let mut expected = model.vmas.iter().copied();
        let mut now: Option<ModelVma> = None;
        // Real ones may be more: they differ in what the model does not know.
        self.space(n as u8).1.for_each_vma(|vma| {
            let pages = pages(vma.range());
            let next = ModelVma { start: pages.start, end: pages.end, prot: vma.prot() };
            match &mut now {
                Some(now) if now.end == next.start && now.prot == next.prot => now.end = next.end,
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

/// No entry allows more than its mapping, and none is present where nothing is allowed.
fn is_allowed(entry: Entry, attrs: Attrs, prot: Prot) -> bool {
    let hidden = match entry {
        Entry::NonPresent(soft) => attrs.contains(Attrs::NO_ACCESS) || soft.kind == SoftKind::ProtNone,
        _ => false,
    };
    hidden == prot.is_empty()
        && (!attrs.contains(Attrs::WRITE) || prot.contains(Prot::WRITE))
        && (!attrs.contains(Attrs::EXEC) || prot.contains(Prot::EXEC))
}
