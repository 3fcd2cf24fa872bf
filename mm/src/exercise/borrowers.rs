//! Trackers, and devices that mirror a space.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use crate::entry::{Entry, SoftKind};
use crate::error::RangeError;
use crate::exercise::model::{ModelPage, WORDS, pages};
use crate::exercise::rng::Rng;
use crate::exercise::runner::Runner;
use crate::exercise::seats::is_private;
use crate::exercise::world::World;
use crate::mirror::dmirror::{Dmirror, DmirrorError, PAGE_WORDS};
use crate::types::{Access, Level, PAGE_SHIFT, PAGE_SIZE, Place, VaRange, Vaddr};

/// A device's accesses, by what it does and where the page lies.
pub(super) const ACCESSES: [[&str; 5]; 3] = [
    [
        "device reads RAM",
        "device reads its own",
        "device reads private of another",
        "device reads coherent of another",
        "device reads its own coherent",
    ],
    [
        "device writes RAM",
        "device writes its own",
        "device writes private of another",
        "device writes coherent of another",
        "device writes its own coherent",
    ],
    [
        "device borrows RAM",
        "device borrows its own",
        "device borrows private of another",
        "device borrows coherent of another",
        "device borrows its own coherent",
    ],
];

impl<W: World> Runner<'_, W> {
    /// `what`: 0 to clear soft-dirty, 1 to begin to track writes, 2 to end it.
    pub(super) fn track(&self, space: u8, range: VaRange, what: u8) {
        let (n, space) = self.space(space);
        let result = match what {
            0 => space.clear_soft_dirty(range),
            what => space.write_protect(range, what == 1),
        };
        let model = &mut self.world.model().borrow_mut().spaces[n];
        let hole = model.first(range, |vma| vma.is_none());
        match result {
            Ok(()) if what == 0 || hole.is_none() => {}
            Err(RangeError::NotMapped(at)) if what != 0 && hole == Some(at) => return,
            Err(RangeError::Oom(_)) if self.may_be_oom() => return,
            other => {
                self.fail(|| format!("tracking ({what}) of {range} in space {n}: {other:?}, hole {hole:?}"));
                return;
            }
        }
        for (_, page) in model.content.range_mut(pages(range)) {
            match what {
                0 => page.soft = Some(false),
                what => page.wp = Some(what == 1),
            }
        }
    }

    /// What trackers say of a page that was written.
    pub(super) fn check_marks(
        &self,
        n: usize,
        page: u64,
        level: Level,
        expected: &ModelPage,
        marks: (bool, bool),
    ) {
        let differs = |known: Option<bool>, found: bool| known.is_some_and(|known| known != found);
        let (soft, wp) = marks;
        if differs(expected.soft, soft) || differs(expected.wp, wp) {
            self.fail(|| {
                format!(
                    "space {n}: page {page:#x} ({level:?}) is soft-dirty: {soft}, write-protected: {wp}, not {expected:x?}"
                )
            });
        }
    }

    /// A device begins to mirror a space, or ends it.
    pub(super) fn mirror(&mut self, space: u8, device: u8) {
        let n = self.space(space).0;
        if self.mirrors[n].take().is_some() {
            return;
        }
        match Dmirror::open(self.place(1 + device), self.owner(n)) {
            Ok(mirror) => self.mirrors[n] = Some(mirror),
            Err(DmirrorError::NoMemory) if self.may_be_oom() => {}
            Err(e) => self.fail(|| format!("mirror of space {n}: {e:?}")),
        }
    }

    /// A device's access to a page is about to be made, and where the page lies is known or not.
    fn before_device(&self, n: usize, page: u64, what: u8, here: Place) -> Option<Place> {
        let model = &mut *self.world.model().borrow_mut();
        let before = model.place(n, page);
        let lies = match before {
            None => return before,
            Some(Place::RAM) => 0,
            Some(place) if place == here => 1,
            Some(place) if !place.is_coherent() => 2,
            Some(_) => 3,
        };
        model.note(ACCESSES[usize::from(what)][lies + usize::from(lies == 1 && here.is_coherent()) * 3]);
        before
    }

    /// A device has used pages, which lay in `before`: its own stay, others' come to RAM with the rest of their folios.
    fn after_device(
        &self,
        n: usize,
        range: VaRange,
        what: u8,
        here: Place,
        before: &[Option<Place>],
        done: bool,
    ) {
        let model = &mut *self.world.model().borrow_mut();
        let alone = !model.spaces[n].is_related;
        // It works there on its own pages, unless a copy must be made for a write.
        let stays = |place| place == here && (what == 0 || what == 1 && alone);
        model.unsettle_family(n, |place| is_private(place) && !stays(place));
        if what != 0 {
            model.spaces[n].unsettle(None, Place::is_coherent);
        }
        for (page, before) in pages(range).zip(before) {
            match *before {
                Some(place) if done && is_private(place) && !stays(place) && (what != 1 || place != here) => {
                    model.found(n, page, Some(Place::RAM));
                }
                _ => {}
            }
        }
    }

    /// A device's access to a range: 0 reads, 1 writes, 2 borrows for atomic access, 3 takes a snapshot.
    pub(super) fn device(&self, space: u8, range: VaRange, what: u8, rng: &mut Rng) {
        let n = self.space(space).0;
        let Some(mirror) = &self.mirrors[n] else { return };
        let access = if matches!(what, 1 | 2) { Access::Write } else { Access::Read };
        let forbidden = |page| self.world.model().borrow().allows(n, page, access) != Some(true);
        let smooth = !self.has_obstacles() && !self.short_of(Place::RAM, 600) && !pages(range).any(forbidden);
        if what == 3 {
            return self.snapshot(n, mirror, range);
        }
        // Where it may fail half way, a page at a time, so that it is known what was done.
        let step = if smooth { range.nr_pages() } else { 1 };
        for first in pages(range).step_by(step as usize) {
            let part = VaRange::new(first << PAGE_SHIFT, step * PAGE_SIZE);
            let here = mirror.device();
            let before: Vec<_> = pages(part).map(|page| self.before_device(n, page, what, here)).collect();
            let result = match what {
                0 => self.device_reads(n, mirror, part),
                1 => self.device_writes(n, mirror, part, rng),
                _ => self.device_borrows(n, mirror, part),
            };
            self.after_device(n, part, what, here, &before, result.is_ok());
            if result.is_ok() {
                pages(part)
                    .for_each(|page| self.learn(n, page, |place| place == here || place.is_mappable()));
            }
            match result {
                Ok(()) if pages(part).any(forbidden) => {
                    self.fail(|| format!("a device's access ({what}) to {part} of space {n} is allowed"));
                }
                Ok(()) => {}
                Err(_) if pages(part).any(forbidden) => {}
                Err(DmirrorError::NoMemory) if self.failing || self.short_of(Place::RAM, 600) => {}
                Err(DmirrorError::Fault | DmirrorError::NotThere) if self.has_obstacles() => {}
                // The next page was on a device: when it came back, its neighbours were looked for again too.
                Err(DmirrorError::NotThere) if what == 2 && step > 1 => {}
                // What belongs to an object is not lent.
                Err(DmirrorError::Fault) if what == 2 && pages(part).any(|page| self.is_shared(n, page)) => {}
                Err(e) => self.fail(|| format!("a device's access ({what}) to {part} of space {n}: {e:?}")),
            }
        }
    }

    fn is_shared(&self, n: usize, page: u64) -> bool {
        use crate::exercise::model::Backing;
        let model = self.world.model().borrow();
        model.spaces[n].vma(page).is_some_and(|vma| matches!(vma.backing, Backing::Shared(_)))
    }

    fn device_reads(
        &self,
        n: usize,
        mirror: &Dmirror<W::Machine>,
        range: VaRange,
    ) -> Result<(), DmirrorError> {
        let mut words = vec![0; range.nr_pages() as usize * PAGE_WORDS];
        mirror.read(range.start, &mut words)?;
        self.compare(n, range, &words);
        Ok(())
    }

    fn compare(&self, n: usize, range: VaRange, words: &[u64]) {
        let model = self.world.model().borrow();
        for (page, words) in pages(range).zip(words.chunks_exact(PAGE_WORDS)) {
            let found = W::AT.map(|at| words[at]);
            let expected = model.words(n, page);
            if found != expected {
                self.fail(|| {
                    format!("space {n}: a device finds {found:x?} in page {page:#x}, not {expected:x?}")
                });
            }
        }
    }

    fn device_writes(
        &self,
        n: usize,
        mirror: &Dmirror<W::Machine>,
        range: VaRange,
        rng: &mut Rng,
    ) -> Result<(), DmirrorError> {
        let written: Vec<[u64; WORDS]> = pages(range).map(|_| [(); WORDS].map(|()| rng.next())).collect();
        let mut words = vec![0; range.nr_pages() as usize * PAGE_WORDS];
        for (page, values) in words.chunks_exact_mut(PAGE_WORDS).zip(&written) {
            W::AT.iter().zip(values).for_each(|(at, value)| page[*at] = *value);
        }
        // Other CPUs see a page when the device has written it, and not all pages at once.
        self.world.model().borrow_mut().flux = Some((n, range));
        let result = mirror.write(range.start, &words);
        let model = &mut *self.world.model().borrow_mut();
        model.flux = None;
        result?;
        for (page, values) in pages(range).zip(written) {
            model.write_all(n, page, values);
            if self.is_huge(n, page) {
                model.spaces[n].blur(page);
            }
        }
        Ok(())
    }

    fn device_borrows(
        &self,
        n: usize,
        mirror: &Dmirror<W::Machine>,
        range: VaRange,
    ) -> Result<(), DmirrorError> {
        let mut words = vec![0; range.nr_pages() as usize * PAGE_WORDS];
        let result = mirror.exclusive(range.start, &mut words);
        // Each page that was lent counts as written; how far it came is not known after an error.
        let model = &mut *self.world.model().borrow_mut();
        for page in pages(range) {
            model.spaces[n].blur(page);
            if let Some(content) = model.spaces[n].content.get_mut(&page) {
                (content.soft, content.wp) =
                    if result.is_ok() { (Some(true), Some(false)) } else { (None, None) };
            }
        }
        if result.is_ok() {
            for page in pages(range) {
                let (level, entry) = self.space(n as u8).1.entry_at(Vaddr(page * PAGE_SIZE));
                if !matches!(entry, Entry::NonPresent(soft) if soft.kind == SoftKind::DeviceExclusive) {
                    self.fail(|| format!("space {n}: page {page:#x} was lent, and is {entry:?}"));
                }
                model.note(if level == Level::Pmd { "lent: 2 MiB" } else { "lent: 4 KiB" });
            }
            self.world.lent(self.space(n as u8).1, range);
        }
        result.map(|_| ())
    }

    /// True when the page is mapped by a huge entry now.
    pub(super) fn is_huge(&self, n: usize, page: u64) -> bool {
        self.space(n as u8).1.entry_at(Vaddr(page * PAGE_SIZE)).0 == Level::Pmd
    }
}
