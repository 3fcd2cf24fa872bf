//! Mapping, unmapping, advice, and the accesses of programs.

use alloc::format;

use super::WORDS;
use crate::advise::Advice;
use crate::error::{FaultError, RangeError};
use crate::exercise::model::{Backing, pages};
use crate::exercise::rng::Rng;
use crate::exercise::runner::Runner;
use crate::exercise::world::World;
use crate::types::{Access, PAGE_SHIFT, PAGE_SIZE, Place, Prot, VaRange, Vaddr};
use crate::vma::HugeAdvice;

impl<W: World> Runner<'_, W> {
    pub(super) fn map(&self, space: u8, range: VaRange, prot: u8, huge: bool) {
        let (n, space) = self.space(space);
        let prot = Prot::from_bits_truncate(prot);
        let advice = if huge { HugeAdvice::Huge } else { HugeAdvice::Default };
        let result = space.map_anon(range, prot, advice);
        let model = &mut self.world.model().borrow_mut().spaces[n];
        match result {
            Ok(()) if !model.overlaps(range) => model.map(range, prot, Backing::Anon, 0),
            Err(RangeError::Exists(_)) if model.overlaps(range) => {}
            Err(RangeError::Oom(_)) if self.may_be_oom() => {}
            other => self.fail(|| format!("map of {range} in space {n}: {other:?}")),
        }
    }

    pub(super) fn unmap(&self, space: u8, range: VaRange) {
        let (n, space) = self.space(space);
        match space.unmap(range) {
            Ok(()) => {
                self.world.model().borrow_mut().spaces[n].unmap(range);
                self.world.unmapped(space, range);
            }
            Err(RangeError::Oom(_)) if self.may_be_oom() => {}
            other => self.fail(|| format!("unmap of {range} in space {n}: {other:?}")),
        }
    }

    /// Holes are passed over, and the first is told of: is that so, or was there a reason that nothing was done?
    fn is_told(&self, n: usize, range: VaRange, what: &str, result: Result<(), RangeError>) -> bool {
        let hole = self.world.model().borrow().spaces[n].first(range, |vma| vma.is_none());
        let (fine, done) = match result {
            Ok(()) => (hole.is_none(), true),
            Err(RangeError::NotMapped(at)) => (hole == Some(at), true),
            Err(RangeError::Oom(_)) => (self.may_be_oom(), false),
            Err(_) => (false, false),
        };
        if !fine {
            self.fail(|| format!("{what} for {range} in space {n}: {result:?}, first hole {hole:?}"));
        }
        fine && done
    }

    pub(super) fn advise(&self, space: u8, range: VaRange, huge: bool) {
        let (n, space) = self.space(space);
        let result = space.advise_huge(range, if huge { HugeAdvice::Huge } else { HugeAdvice::NoHuge });
        self.is_told(n, range, "advice", result);
    }

    pub(super) fn contents(&self, space: u8, range: VaRange, advice: u8) {
        let (n, space) = self.space(space);
        let advice = match advice {
            0 => Advice::DontNeed,
            1 => Advice::Free,
            2 => Advice::Cold,
            _ => Advice::PageOut,
        };
        let result = space.advise(range, advice);
        if self.is_told(n, range, "advice", result) {
            let model = &mut self.world.model().borrow_mut().spaces[n];
            match advice {
                Advice::DontNeed => model.forget(range),
                Advice::Free => model.clean(range),
                _ => {}
            }
        }
    }

    /// What lies before the first hole is changed.
    pub(super) fn protect(&self, space: u8, range: VaRange, prot: u8) {
        let (n, space) = self.space(space);
        let prot = Prot::from_bits_truncate(prot);
        // What it gains is there before it ends.
        self.world.model().borrow_mut().flux = Some((n, range));
        let result = space.protect(range, prot);
        self.world.model().borrow_mut().flux = None;
        if self.is_told(n, range, "protection", result) {
            let model = &mut self.world.model().borrow_mut().spaces[n];
            let hole = model.first(range, |vma| vma.is_none()).unwrap_or(range.end);
            model.protect(VaRange::between(range.start, hole), prot);
        }
    }

    /// One access by a program. True when it was done: the page lies where a CPU can reach it then.
    pub(super) fn touch(&self, cpu: u8, space: u8, addr: u64, value: Option<u64>, rng: &mut Rng) -> bool {
        let done = self.try_touch(cpu, space, addr, value, rng);
        if done {
            self.learn(self.space(space).0, addr >> PAGE_SHIFT, Place::is_mappable);
        }
        done
    }

    fn try_touch(&self, cpu: u8, space: u8, addr: u64, value: Option<u64>, rng: &mut Rng) -> bool {
        let (cpu, (n, space)) = (self.cpu(cpu), self.space(space));
        self.switch(cpu, n);
        let word = rng.below(WORDS as u64) as usize;
        let was_huge = self.is_huge(n, addr >> PAGE_SHIFT);
        let before = self.world.model().borrow().place(n, addr >> PAGE_SHIFT);
        let result = self.world.access(cpu, space, Vaddr(addr), word, value);
        let model = &mut *self.world.model().borrow_mut();
        let page = addr >> PAGE_SHIFT;
        let access = if value.is_some() { Access::Write } else { Access::Read };
        if result.is_err() && value.is_some() {
            // A write that comes to nothing may have been noted already.
            model.spaces[n].blur(page);
            if let Some(content) = model.spaces[n].content.get_mut(&page) {
                (content.soft, content.wp) = (None, None);
            }
        }
        model.touched(n, page, before, value.is_some(), result.is_ok());
        let fine = match (result, model.allows(n, page, access)) {
            (Ok(found), Some(true)) => {
                if let Some(value) = value {
                    model.write(n, page, word, value);
                    if was_huge || self.is_huge(n, page) {
                        model.spaces[n].blur(page);
                    }
                }
                found == model.read(n, page, word)
            }
            (Err(FaultError::NoVma(_)), None) | (Err(FaultError::Access(..)), Some(false)) => true,
            (Err(FaultError::Oom(_)), Some(true)) => self.failing || self.short_of(Place::RAM, 512),
            (Err(FaultError::Device(_) | FaultError::Held(_)), Some(true)) => self.has_obstacles(),
            _ => false,
        };
        if !fine {
            let expected = (model.allows(n, page, access), model.read(n, page, word));
            self.fail(|| {
                format!(
                    "CPU {cpu}: {access:?} of {addr:#x} word {word} in space {n}: {result:x?}, expected {expected:x?}"
                )
            });
        }
        fine && result.is_ok()
    }

    /// Reads or writes a word of every page.
    pub(super) fn sweep(&self, cpu: u8, space: u8, range: VaRange, write: bool, rng: &mut Rng) {
        for page in pages(range) {
            let value = write.then(|| rng.next());
            if !self.touch(cpu, space, page * PAGE_SIZE, value, rng) {
                return;
            }
        }
    }
}
