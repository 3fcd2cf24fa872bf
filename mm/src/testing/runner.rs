//! Runs a list of steps on a fresh machine and checks everything on the way.

use core::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::counters::Event;
use crate::entry::Entry;
use crate::error::{FaultError, RangeError};
use crate::folio::FolioRef;
use crate::machine::FlushReason;
use crate::migrate::{Cause, Migration, Report};
use crate::space::{AddressSpace, Space};
use crate::testing::actions::{Action, Step, about_huge, range};
use crate::testing::machine::{Config, Soft, State, WORDS};
use crate::testing::model::{ModelSpace, pages};
use crate::testing::rng::{Rng, mix};
use crate::types::{Access, Order, PAGE_SHIFT, PAGE_SIZE, Place, Prot, VaRange, Vaddr};
use crate::vma::HugeAdvice;
use crate::zone::Need;

/// Address spaces of a run.
pub(crate) const SPACES: usize = 3;
/// Steps between two full checks.
const CHECK_EVERY: usize = 8;

/// How a run is watched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    /// Flushes for this reason are dropped.
    pub(crate) skip: Option<FlushReason>,
    /// Look for stale translations at rest, before anybody used them.
    pub(crate) no_stale: bool,
}

/// What went wrong, and at which step.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) step: usize,
    pub(crate) what: String,
}

/// What a run did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) actions: u64,
    pub(crate) disturbances: u64,
    pub(crate) events: [u64; Event::COUNT],
    pub(crate) flushes: [u64; FlushReason::ALL.len()],
}

impl Default for Done {
    fn default() -> Self {
        Self { actions: 0, disturbances: 0, events: [0; Event::COUNT], flushes: [0; FlushReason::ALL.len()] }
    }
}

impl Done {
    pub(crate) fn add(&mut self, other: &Self) {
        self.actions += other.actions;
        self.disturbances += other.disturbances;
        self.events.iter_mut().zip(other.events).for_each(|(sum, n)| *sum += n);
        self.flushes.iter_mut().zip(other.flushes).for_each(|(sum, n)| *sum += n);
    }
}

/// Machines of different shapes: seed to shape.
pub(crate) fn shape(seed: u64) -> Config {
    let mut rng = Rng::new(mix(seed));
    let blocks = if about_huge(seed) { rng.pick(&[6, 10, 20, 40]) } else { rng.pick(&[4, 6, 10, 16, 24]) };
    let hole = 512 + 512 + rng.below(400) as u32;
    Config {
        cpus: rng.pick(&[1, 2, 2, 3]),
        ram: vec![512 + rng.below(64) as u32..hole, hole + 7..512 + blocks * 512],
        devices: vec![rng.pick(&[2, 4, 8, 12]) * 512, 2 * 512 - rng.below(30) as u32],
        chaos: rng.pick(&[0, 20, 60, 200]),
        late_copies: rng.one_in(3),
    }
}

/// Runs `steps` on a machine of the given shape.
pub(crate) fn run(config: &Config, steps: &[Step], watch: &Watch) -> Result<Done, Failure> {
    let session = Soft::boot(config);
    let at = core::cell::Cell::new(0);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut runner = Runner::new(session.state(), watch.clone());
        for (i, step) in steps.iter().enumerate() {
            at.set(i);
            runner.step(*step);
            if i % CHECK_EVERY == CHECK_EVERY - 1 {
                runner.check();
            }
            if let Some(what) = session.failure() {
                return Err(Failure { step: i, what });
            }
        }
        runner.finish();
        let done = Done {
            actions: steps.len() as u64,
            disturbances: session.mmu.borrow().disturbances,
            events: core::array::from_fn(|i| session.counted(Event::ALL[i])),
            flushes: core::array::from_fn(|i| session.flushed(FlushReason::ALL[i])),
        };
        session.failure().map_or(Ok(done), |what| Err(Failure { step: steps.len(), what }))
    }));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string()));
        let what = session.failure().unwrap_or_else(|| format!("panic: {}", text.unwrap_or_default()));
        Err(Failure { step: at.get(), what })
    })
}

/// One run under way. Handles are not dropped when a check fails: the machine is not to be trusted then.
pub(crate) struct Runner {
    pub(crate) state: &'static State,
    watch: Watch,
    pub(crate) spaces: Vec<ManuallyDrop<AddressSpace<Soft>>>,
    pub(crate) held: ManuallyDrop<Vec<FolioRef<Soft>>>,
    pinned: bool,
    /// Failures are planned for the step under way.
    failing: bool,
    failing_copies: bool,
}

impl Runner {
    fn new(state: &'static State, watch: Watch) -> Self {
        state.skip.set(watch.skip);
        let mut runner = Self {
            state,
            watch,
            spaces: Vec::new(),
            held: ManuallyDrop::new(Vec::new()),
            pinned: false,
            failing: false,
            failing_copies: false,
        };
        for _ in 0..SPACES {
            runner.state.model.borrow_mut().spaces.push(ModelSpace::default());
            runner.spaces.push(ManuallyDrop::new(AddressSpace::new(|_| {}).expect("memory for a space")));
        }
        for cpu in 0..runner.state.config.cpus {
            runner.switch(cpu, cpu % SPACES);
        }
        runner
    }

    pub(crate) fn fail(&self, what: impl FnOnce() -> String) {
        self.state.fail(what);
    }

    fn space(&self, n: u8) -> (usize, &'static Space<Soft>) {
        let n = usize::from(n) % SPACES;
        (n, self.spaces[n].space())
    }

    fn cpu(&self, n: u8) -> usize {
        usize::from(n) % self.state.config.cpus
    }

    /// Memory may be short, so failures are no surprise.
    fn short_of(&self, place: Place, pages: u64) -> bool {
        let free = self.state.mm.zone(place).stat().free;
        u64::from(free) < pages + 400
    }

    /// Mostly, a range that is mapped as a whole: the same, moved into or cut at the mapping nearest to it.
    fn aim(&self, space: u8, range: VaRange, rng: &mut Rng) -> VaRange {
        let (n, _) = self.space(space);
        let model = &self.state.model.borrow().spaces[n];
        if rng.one_in(6) || model.vmas.is_empty() {
            return range;
        }
        let want = pages(range);
        let vma = model.vma(want.start).copied().unwrap_or_else(|| rng.pick(&model.vmas));
        // Moved by whole huge pages, to keep its alignment.
        let mut start = want.start;
        if start < vma.start || start >= vma.end {
            start = (vma.start & !511) + (start & 511);
        }
        let start = start.clamp(vma.start, vma.end - 1);
        let end = (start + range.nr_pages()).min(vma.end);
        VaRange::new(start << PAGE_SHIFT, (end - start) << PAGE_SHIFT)
    }

    fn aim_at(&self, space: u8, page: u16, rng: &mut Rng) -> u64 {
        self.aim(space, range(page, 1), rng).start.0
    }

    fn step(&mut self, Step(seed, action): Step) {
        self.state.mmu.borrow_mut().rng = Rng::new(u64::from(seed));
        let mut rng = Rng::new(mix(u64::from(seed)));
        let planned = matches!(action, Action::FailAlloc { .. } | Action::FailCopy { .. });
        match action {
            Action::Map { space, start, len, prot, huge } => {
                // In half of the cases in place of what is there (MAP_FIXED): spaces do not fill up with old small pages.
                if rng.one_in(2) {
                    self.unmap(space, range(start, len));
                }
                self.map(space, range(start, len), prot, huge);
            }
            Action::Unmap { space, start, len } => {
                let range = self.aim(space, range(start, len), &mut rng);
                self.unmap(space, range);
            }
            Action::Advise { space, start, len, huge } => {
                let range = self.aim(space, range(start, len), &mut rng);
                self.advise(space, range, huge);
            }
            Action::Read { cpu, space, page } => {
                let addr = self.aim_at(space, page, &mut rng);
                self.touch(cpu, space, addr, None, &mut rng);
            }
            Action::Write { cpu, space, page } => {
                let value = rng.next();
                let addr = self.aim_at(space, page, &mut rng);
                self.touch(cpu, space, addr, Some(value), &mut rng);
            }
            Action::Fill { cpu, space, start, len } => {
                let range = self.aim(space, range(start, len), &mut rng);
                self.sweep(cpu, space, range, true, &mut rng);
            }
            Action::Check { cpu, space, start, len } => {
                let range = self.aim(space, range(start, len), &mut rng);
                self.sweep(cpu, space, range, false, &mut rng);
            }
            Action::Migrate { space, start, len, to } => {
                let range = self.aim(space, range(start, len), &mut rng);
                self.migrate(space, range, to);
            }
            Action::Park { space, start, len, .. } => {
                let range = self.aim(space, range(start, len), &mut rng);
                self.park(action, range);
            }
            Action::Hold { place, order, keep, reserve } => self.hold(place, order, keep, reserve),
            Action::Pin { space, page } => {
                let addr = self.aim_at(space, page, &mut rng);
                self.pin(space, addr);
            }
            Action::Release => self.release(),
            Action::FailAlloc { sites, min_order, skip, times } => {
                self.state.mm.inject.arm(u32::from(sites), min_order, u64::from(skip), u64::from(times));
                self.failing = true;
            }
            Action::FailCopy { skip, times } => {
                self.state.fail_copies(u64::from(skip), u64::from(times));
                self.failing_copies = true;
            }
            Action::Chaos { n } => {
                if self.state.config.chaos != 0 {
                    let mut mmu = self.state.mmu.borrow_mut();
                    (0..n).for_each(|_| self.state.disturb_now(&mut mmu));
                }
            }
            Action::Switch { cpu, space } => {
                let (cpu, (space, _)) = (self.cpu(cpu), self.space(space));
                self.switch(cpu, space);
            }
            Action::Exit { space } => self.exit(space),
        }
        if !planned {
            self.state.mm.inject.disarm();
            self.state.fail_copies(0, 0);
            (self.failing, self.failing_copies) = (false, false);
        }
        if !self.state.at_rest() {
            self.fail(|| "a lock or a copy outlived its operation".to_string());
        }
        if self.watch.no_stale {
            self.state.check_no_stale();
        }
    }

    fn switch(&self, cpu: usize, space: usize) {
        let mut mmu = self.state.mmu.borrow_mut();
        let old = mmu.loaded(cpu);
        let new = self.spaces[space].space();
        if old.map(|(_, n)| n) == Some(space) {
            return;
        }
        new.loaded_on(cpu);
        mmu.load(cpu, new.root_pfn(), space);
        if let Some((_, n)) = old {
            self.spaces[n].unloaded_from(cpu);
        }
    }

    fn map(&self, space: u8, range: VaRange, prot: u8, huge: bool) {
        let (n, space) = self.space(space);
        let prot = Prot::from_bits_truncate(prot);
        let advice = if huge { HugeAdvice::Huge } else { HugeAdvice::Default };
        let result = space.map_anon(range, prot, advice);
        let model = &mut self.state.model.borrow_mut().spaces[n];
        match result {
            Ok(()) if !model.overlaps(range) => model.map(range, prot),
            Err(RangeError::Exists(_)) if model.overlaps(range) => {}
            Err(RangeError::Oom(_)) if self.failing || self.short_of(Place::RAM, 0) => {}
            other => self.fail(|| format!("map of {range} in space {n}: {other:?}")),
        }
    }

    fn unmap(&self, space: u8, range: VaRange) {
        let (n, space) = self.space(space);
        match space.unmap(range) {
            Ok(()) => {
                self.state.model.borrow_mut().spaces[n].unmap(range);
                self.state.probe_unmapped(space.root_pfn(), range);
            }
            Err(RangeError::Oom(_)) if self.failing || self.short_of(Place::RAM, 0) => {}
            other => self.fail(|| format!("unmap of {range} in space {n}: {other:?}")),
        }
    }

    fn advise(&self, space: u8, range: VaRange, huge: bool) {
        let (n, space) = self.space(space);
        let result = space.advise_huge(range, if huge { HugeAdvice::Huge } else { HugeAdvice::NoHuge });
        let hole = self.state.model.borrow().spaces[n].first(range, |vma| vma.is_none());
        let fine = match result {
            Ok(()) => hole.is_none(),
            Err(RangeError::NotMapped(at)) => hole == Some(at),
            Err(RangeError::Oom(_)) => self.failing || self.short_of(Place::RAM, 0),
            Err(_) => false,
        };
        if !fine {
            self.fail(|| format!("advice for {range} in space {n}: {result:?}, first hole {hole:?}"));
        }
    }

    fn touch(&self, cpu: u8, space: u8, addr: u64, value: Option<u64>, rng: &mut Rng) -> bool {
        let (cpu, (n, space)) = (self.cpu(cpu), self.space(space));
        self.switch(cpu, n);
        let word = rng.below(WORDS as u64) as usize;
        let result = self.state.user_access(cpu, space, Vaddr(addr), word, value);
        let model = &mut self.state.model.borrow_mut().spaces[n];
        let page = addr >> PAGE_SHIFT;
        let access = if value.is_some() { Access::Write } else { Access::Read };
        let fine = match (result, model.allows(page, access)) {
            (Ok(found), Some(true)) => {
                if let Some(value) = value {
                    model.write(page, word, value);
                }
                found == model.read(page, word)
            }
            (Err(FaultError::NoVma(_)), None) | (Err(FaultError::Access(..)), Some(false)) => true,
            (Err(FaultError::Oom(_)), Some(true)) => self.failing || self.short_of(Place::RAM, 512),
            (Err(FaultError::Device(_) | FaultError::Held(_)), Some(true)) => {
                self.failing || self.failing_copies || self.pinned || !self.held.is_empty()
            }
            _ => false,
        };
        if !fine {
            let expected = (model.allows(page, access), model.read(page, word));
            self.fail(|| format!("CPU {cpu}: {access:?} of {addr:#x} word {word} in space {n}: {result:x?}, expected {expected:x?}"));
        }
        fine && result.is_ok()
    }

    fn sweep(&self, cpu: u8, space: u8, range: VaRange, write: bool, rng: &mut Rng) {
        for page in pages(range) {
            let value = write.then(|| rng.next());
            if !self.touch(cpu, space, page * PAGE_SIZE, value, rng) {
                return;
            }
        }
    }

    fn place(&self, to: u8) -> Place {
        if to == 0 {
            Place::RAM
        } else {
            Place::device((usize::from(to) - 1) % self.state.config.devices.len())
        }
    }

    /// What the model says about the range as a whole.
    fn migratable(&self, n: usize, range: VaRange) -> Result<(), RangeError> {
        let model = &self.state.model.borrow().spaces[n];
        let hole = model.first(range, |vma| vma.is_none());
        let closed = model.first(range, |vma| vma.is_some_and(|v| !v.prot.contains(Prot::READ)));
        match (hole, closed) {
            (Some(h), Some(c)) if c < h => Err(RangeError::NotMigratable(c)),
            (Some(h), _) => Err(RangeError::NotMapped(h)),
            (None, Some(c)) => Err(RangeError::NotMigratable(c)),
            (None, None) => Ok(()),
        }
    }

    fn migrate(&self, space: u8, range: VaRange, to: u8) {
        let (n, space) = self.space(space);
        let to = self.place(to);
        let expected = self.migratable(n, range);
        let roomy = !self.short_of(to, range.nr_pages()) && !self.short_of(Place::RAM, 0);
        let report = match space.migrate(range, to) {
            Ok(report) if expected.is_ok() => report,
            Err(e) if expected == Err(e) => return,
            other => {
                self.fail(|| {
                    format!("migrate {range} of space {n} to {to}: {other:?}, expected {expected:?}")
                });
                return;
            }
        };
        self.check_report(range, to, &report);
        let calm = roomy && !self.failing && !self.failing_copies && self.held.is_empty();
        let foreign = report.failed[Cause::Foreign as usize];
        if calm && report.failed_pages() != foreign {
            self.fail(|| format!("migrate {range} of space {n} to {to} had all it needs: {report:?}"));
        }
        if calm {
            self.check_moved(n, space, range, to);
        }
    }

    fn park(&self, action: Action, range: VaRange) {
        let Action::Park { space: number, to, phases, gone, finish, .. } = action else { return };
        let (n, space) = self.space(number);
        let to = self.place(to);
        let expected = self.migratable(n, range);
        let collected = match space.migrate_collect(range, to) {
            Ok((migration, next)) if expected.is_ok() => {
                if next > range.end || next < range.start {
                    self.fail(|| format!("collecting {range} ends at {next}"));
                }
                migration
            }
            Err(RangeError::Oom(_)) if self.failing || self.short_of(Place::RAM, 0) => return,
            Err(e) if expected == Err(e) => return,
            other => {
                let other = other.map(|_| ());
                self.fail(|| {
                    format!("collect {range} of space {n} to {to}: {other:?}, expected {expected:?}")
                });
                return;
            }
        };
        let meanwhile = || {
            if gone.1 != 0 {
                // Relative to what is on its way.
                let start = range.start.0 + u64::from(gone.0) % range.nr_pages() * PAGE_SIZE;
                self.unmap(number, VaRange::new(start, u64::from(gone.1) * PAGE_SIZE));
            }
        };
        match phases {
            0 => {
                meanwhile();
                self.end(finish, collected, |m| m.unmap().copy().commit().finalize());
            }
            1 => {
                let m = collected.unmap();
                meanwhile();
                self.end(finish, m, |m| m.copy().commit().finalize());
            }
            2 => {
                let m = collected.unmap().copy();
                meanwhile();
                self.end(finish, m, |m| m.commit().finalize());
            }
            _ => {
                let m = collected.unmap().copy().commit();
                meanwhile();
                self.end(finish, m, Migration::finalize);
            }
        }
    }

    fn end<P>(&self, finish: bool, m: Migration<Soft, P>, end: impl FnOnce(Migration<Soft, P>) -> Report) {
        if finish {
            let _ = end(m);
        } else {
            drop(m);
        }
    }

    fn hold(&mut self, place: u8, order: u8, keep: u16, reserve: bool) {
        let place = self.place(place);
        let need = if reserve { Need::Reserve } else { Need::User };
        let order = Order::new(order.min(9));
        while self.state.mm.zone(place).stat().free > u32::from(keep) + order.pages() {
            match self.state.mm.alloc_folio(place, order, need) {
                Ok(folio) => self.held.push(folio),
                Err(_) => break,
            }
        }
    }

    fn pin(&mut self, space: u8, addr: u64) {
        let (_, space) = self.space(space);
        let (level, entry) = space.entry_at(Vaddr(addr));
        let frame = match entry {
            Entry::Leaf(leaf) if !leaf.special => leaf.frame,
            Entry::NonPresent(soft) => soft.frame,
            _ => return,
        };
        let inside = (addr >> PAGE_SHIFT) as u32 & (level.order().pages() - 1);
        match self.state.mm.try_get_folio(frame.offset(inside)) {
            Some(folio) => self.held.push(folio),
            None => self.fail(|| format!("the folio of {frame}, mapped at {addr:#x}, is not found")),
        }
        self.pinned = true;
    }

    fn release(&mut self) {
        self.held.clear();
        self.pinned = false;
    }

    fn exit(&mut self, space: u8) {
        let (n, space) = self.space(space);
        for cpu in 0..self.state.config.cpus {
            let mut mmu = self.state.mmu.borrow_mut();
            // A CPU that is elsewhere already, or goes elsewhere only now.
            if mmu.loaded(cpu).is_some_and(|(_, s)| s == n) {
                mmu.unload(cpu);
                space.unloaded_from(cpu);
            }
        }
        self.state.mm.inject.disarm();
        drop(ManuallyDrop::into_inner(self.spaces.remove(n)));
        self.state.model.borrow_mut().spaces[n] = ModelSpace::default();
        match AddressSpace::new(|_| {}) {
            Ok(new) => self.spaces.insert(n, ManuallyDrop::new(new)),
            Err(_) => {
                // Give way: what is held may be all there is.
                self.release();
                let new = AddressSpace::new(|_| {}).expect("memory for a root table");
                self.spaces.insert(n, ManuallyDrop::new(new));
            }
        }
    }

    /// The end of a run: everything is read once more by a program, and then everything is freed.
    fn finish(&mut self) {
        if self.state.failure.borrow().is_some() {
            return;
        }
        self.release();
        self.check();
        let mut rng = Rng::new(7);
        for n in 0..SPACES as u8 {
            let vmas = self.state.model.borrow().spaces[usize::from(n)].vmas.clone();
            for vma in vmas.iter().filter(|vma| vma.prot.contains(Prot::READ)) {
                let range = VaRange::new(vma.start << PAGE_SHIFT, (vma.end - vma.start) << PAGE_SHIFT);
                self.sweep(n, n, range, false, &mut rng);
            }
        }
        if self.state.failure.borrow().is_some() {
            return;
        }
        for n in 0..SPACES as u8 {
            self.exit(n);
        }
        self.check();
        let mm = &self.state.mm;
        let left = mm.folios_in_use();
        if left != 0 {
            self.fail(|| format!("{left} folios are left at the end"));
        }
        for space in self.spaces.drain(..) {
            drop(ManuallyDrop::into_inner(space));
        }
    }
}
