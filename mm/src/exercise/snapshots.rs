//! Snapshots: what a device is told of each page, beside what the model and the entry say.

use alloc::format;
use alloc::vec;

use crate::entry::{Attrs, Entry, SoftKind};
use crate::exercise::model::{ModelPage, pages};
use crate::exercise::runner::Runner;
use crate::exercise::world::World;
use crate::hmm::{HmmPfn, HmmWant, RangeFault};
use crate::mirror::dmirror::{Dmirror, Snap};
use crate::types::{Level, Order, PAGE_SIZE, Place, Prot, VaRange, Vaddr};

/// What a device at `here` is to be told of a page: the byte, and the name of the case.
fn expected(level: Level, entry: Entry, prot: Option<Prot>, here: Place) -> (Snap, &'static str) {
    if !prot.is_some_and(|prot| prot.contains(Prot::READ)) {
        return (Snap::ERROR, "snapshot: forbidden");
    }
    let (frame, attrs, special) = match entry {
        Entry::Leaf(leaf) => (leaf.frame, leaf.attrs, leaf.special),
        Entry::NonPresent(soft) => match soft.kind {
            SoftKind::DevicePrivate if soft.frame.place() == here => (soft.frame, soft.attrs, false),
            SoftKind::DevicePrivate => return (Snap::empty(), "snapshot: private of another device"),
            SoftKind::DeviceExclusive => return (Snap::empty(), "snapshot: lent"),
            SoftKind::Migration => return (Snap::empty(), "snapshot: on its way"),
            SoftKind::ProtNone => return (Snap::empty(), "snapshot: hidden"),
        },
        Entry::None | Entry::Table(_) => return (Snap::empty(), "snapshot: nothing"),
    };
    let place = frame.place();
    let (kind, name) = match (special, place) {
        (true, _) => (Snap::ZERO, "snapshot: zeros"),
        (false, Place::RAM) => (Snap::empty(), "snapshot: RAM"),
        (false, place) if place.is_coherent() && place == here => {
            (Snap::DEV_COHERENT_LOCAL, "snapshot: own coherent")
        }
        (false, place) if place.is_coherent() => {
            (Snap::DEV_COHERENT_REMOTE, "snapshot: coherent of another device")
        }
        (false, _) => (Snap::DEV_PRIVATE_LOCAL, "snapshot: own private"),
    };
    let writable = attrs.contains(Attrs::WRITE) && !attrs.contains(Attrs::UFFD_WP);
    let access = if writable { Snap::WRITE } else { Snap::READ };
    let size = if level == Level::Pmd { Snap::PMD } else { Snap::empty() };
    (kind | access | size, name)
}

/// The model knows better: it does not ask an entry where the page is and whether it may be written.
fn agrees(byte: Snap, own: &ModelPage, prot: Option<Prot>, here: Place, resting: bool) -> bool {
    if byte == Snap::ERROR {
        return !prot.is_some_and(|prot| prot.contains(Prot::READ));
    }
    let class = Snap::from_bits_retain(byte.bits() & 0xf0);
    let is_there = !(byte & (Snap::READ | Snap::WRITE)).is_empty();
    let placed = match own.place {
        Some(Place::RAM) => class.is_empty() && (is_there || !resting),
        Some(place) if place.is_coherent() => {
            let told = if place == here { Snap::DEV_COHERENT_LOCAL } else { Snap::DEV_COHERENT_REMOTE };
            class == told && is_there || !is_there && !resting
        }
        Some(place) if place == here => class == Snap::DEV_PRIVATE_LOCAL && is_there || !is_there && !resting,
        Some(_) => !is_there,
        None => class != Snap::ZERO,
    };
    let may_write = prot.is_some_and(|prot| prot.contains(Prot::WRITE)) && own.wp != Some(true);
    placed && (may_write || !byte.contains(Snap::WRITE))
}

impl<W: World> Runner<'_, W> {
    /// A snapshot of the range, byte for byte.
    pub(super) fn snapshot(&self, n: usize, mirror: &Dmirror<W::Machine>, range: VaRange) {
        let mut bytes = vec![0; range.nr_pages() as usize];
        if let Err(e) = mirror.snapshot(range.start, &mut bytes) {
            return self.fail(|| format!("a snapshot of {range} of space {n}: {e:?}"));
        }
        let here = mirror.device();
        for (page, byte) in pages(range).zip(bytes) {
            let byte = Snap::from_bits_retain(byte);
            let (level, entry) = self.space(n as u8).1.entry_at(Vaddr(page * PAGE_SIZE));
            let model = &mut *self.world.model().borrow_mut();
            let prot = model.spaces[n].vma(page).map(|vma| vma.prot);
            let (told, name) = expected(level, entry, prot, here);
            model.note(name);
            let own = model.spaces[n].content.get(&page);
            // A lent page is of no device; what is there otherwise, is where the model says.
            let resting = !self.parked
                && !matches!(entry, Entry::NonPresent(soft) if soft.kind == SoftKind::DeviceExclusive);
            if byte != told || own.is_some_and(|own| !agrees(byte, own, prot, here, resting)) {
                self.fail(|| {
                    format!(
                        "space {n}: the snapshot of page {page:#x} is {byte:?} and not {told:?}, with {prot:?} and {own:x?} ({entry:?})"
                    )
                });
                return;
            }
        }
        self.check_orders(n, here, range);
    }

    /// All pages of a huge mapping are told of alike, with their frames in a row, and what is told of is the page.
    fn check_orders(&self, n: usize, here: Place, range: VaRange) {
        let mut pfns = vec![HmmPfn::NONE; range.nr_pages() as usize];
        let request =
            RangeFault { range, want: HmmWant::empty(), per_page: false, owner: Some(here), under: None };
        if let Err(e) = self.space(n as u8).1.range_fault(&request, &mut pfns) {
            return self.fail(|| format!("a look at {range} of space {n}: {e:?}"));
        }
        let model = self.world.model().borrow();
        let mut before: Option<(u64, HmmPfn)> = None;
        for (page, pfn) in pages(range).zip(pfns) {
            let Some(frame) = pfn.frame() else {
                // Not one page of a huge mapping is missing.
                let torn = before.filter(|(last, p)| p.map_order() == Order::PMD && last / 512 == page / 512);
                if torn.is_some() && model.spaces[n].vma(page) == model.spaces[n].vma(page - 1) {
                    self.fail(|| format!("space {n}: page {page:#x} is {pfn:?} beside {before:?}"));
                }
                before = None;
                continue;
            };
            let offset = (page % u64::from(pfn.map_order().pages())) as u32;
            let aligned = frame.index() % pfn.map_order().pages() == offset;
            let follows = before.is_none_or(|(last, p)| {
                let flags = |p: HmmPfn| (p.is_writable(), p.is_zero(), p.is_written());
                let same = last / 512 == page / 512
                    && (pfn.map_order() == Order::PMD || p.map_order() == Order::PMD);
                !same
                    || p.map_order() == pfn.map_order()
                        && flags(p) == flags(pfn)
                        && p.frame().map(|f| f.offset(1)) == Some(frame)
            });
            let found = self.peek(frame);
            if !aligned || !follows || found != model.words(n, page) {
                self.fail(|| {
                    format!(
                        "space {n}: page {page:#x} is told to be {pfn:?} with {found:x?}, after {before:?}"
                    )
                });
                return;
            }
            before = Some((page, pfn));
        }
    }
}
