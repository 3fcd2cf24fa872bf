//! Runs a list of steps in a world and checks everything on the way.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::Cell;
use core::mem::{ManuallyDrop, take};

use crate::exercise::actions::{Action, Step, range};
use crate::exercise::model::{Model, ModelSpace, OBJECTS, pages};
use crate::exercise::moves::Held;
use crate::exercise::rng::{Rng, mix};
use crate::exercise::world::World;
use crate::group::GroupRef;
use crate::gup::Pinned;
use crate::machine::Machine;
use crate::mirror::dmirror::Dmirror;
use crate::mm::Mm;
use crate::object::ObjectRef;
use crate::space::{AddressSpace, Space};
use crate::types::{PAGE_SHIFT, Place, VaRange};

/// Address spaces of a run.
pub const SPACES: usize = 3;

/// What went wrong, and at which step.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The step's number in the list; the list's length for the end of the run.
    pub step: usize,
    /// What the check says.
    pub what: String,
}

/// The step that is under way: for who catches a panic.
pub type Progress = Cell<usize>;

/// Runs `steps` in `world`. After a failure nothing that the list made is freed, unless `tidy`: the machine is not to be
/// trusted then.
///
/// # Errors
/// The first check that failed.
pub fn run<W: World>(world: &W, steps: &[Step], progress: &Progress, tidy: bool) -> Result<(), Failure> {
    let mut runner = Runner::new(world);
    for (i, step) in steps.iter().enumerate() {
        progress.set(i);
        runner.step(*step);
        if i % W::BATCH == W::BATCH - 1 {
            runner.check();
        }
        if world.failure().is_some() {
            break;
        }
    }
    if world.failure().is_none() {
        progress.set(steps.len());
        runner.finish();
    }
    match world.failure() {
        None => Ok(()),
        Some(what) => {
            if tidy {
                runner.leave_all();
            }
            Err(Failure { step: progress.get(), what })
        }
    }
}

/// An address space, which a CPU may have loaded; none in the middle of an exit.
type Owner<M> = Option<Rc<AddressSpace<M>>>;

/// One run under way. Handles are not dropped when a check fails.
pub struct Runner<'w, W: World> {
    pub(super) world: &'w W,
    pub(super) spaces: ManuallyDrop<[Owner<W::Machine>; SPACES]>,
    /// Objects that can be mapped.
    pub(super) objects: ManuallyDrop<[Option<ObjectRef<W::Machine>>; OBJECTS]>,
    /// Devices that mirror spaces.
    pub(super) mirrors: ManuallyDrop<[Option<Dmirror<W::Machine>>; SPACES]>,
    /// What holds memory back.
    pub(super) held: ManuallyDrop<Held<W::Machine>>,
    /// Pages that somebody has pinned.
    pub(super) pins: ManuallyDrop<Vec<Pinned<W::Machine>>>,
    /// Folios of mapped pages are among those.
    pub(super) pinned: bool,
    /// A migration is parked, with pages locked.
    pub(super) parked: bool,
    /// Failures are planned for the step under way.
    pub(super) failing: bool,
    pub(super) failing_copies: bool,
    /// Folios of others.
    before: u32,
}

impl<'w, W: World> Runner<'w, W> {
    /// Empty spaces in an empty model; every CPU loads one.
    ///
    /// # Panics
    /// When there is no memory for the spaces.
    pub fn new(world: &'w W) -> Self {
        let mut runner = Self {
            world,
            spaces: ManuallyDrop::new([const { None }; SPACES]),
            objects: ManuallyDrop::new([const { None }; OBJECTS]),
            mirrors: ManuallyDrop::new([const { None }; SPACES]),
            held: ManuallyDrop::new(Held(Vec::new())),
            pins: ManuallyDrop::new(Vec::new()),
            pinned: false,
            parked: false,
            failing: false,
            failing_copies: false,
            before: W::Machine::mm().folios_in_use(),
        };
        *world.model().borrow_mut() =
            Model { spaces: alloc::vec![ModelSpace::default(); SPACES], ..Model::default() };
        (0..SPACES).for_each(|n| world.model().borrow_mut().found_family(n));
        (0..OBJECTS as u8).for_each(|object| runner.renew(object));
        for (n, owner) in runner.spaces.iter_mut().enumerate() {
            let space = world.new_space().expect("memory for a space");
            // All but one in groups of their own, without a limit: the audit compares what they are charged with what there is.
            if let Ok(group) = GroupRef::new(u64::MAX)
                && n != 0
            {
                space.space().join_group(&group);
            }
            *owner = Some(Rc::new(space));
        }
        for cpu in 0..world.cpus() {
            runner.switch(cpu, cpu % SPACES);
        }
        runner
    }

    pub(super) fn fail(&self, what: impl FnOnce() -> String) {
        self.world.fail(what);
    }

    pub(super) fn mm() -> &'static Mm<W::Machine> {
        W::Machine::mm()
    }

    pub(super) fn space(&self, n: u8) -> (usize, &'static Space<W::Machine>) {
        let n = usize::from(n) % SPACES;
        (n, self.owner(n).space())
    }

    pub(super) fn owner(&self, n: usize) -> &Rc<AddressSpace<W::Machine>> {
        self.spaces[n].as_ref().expect("a space that ends is replaced")
    }

    pub(super) fn cpu(&self, n: u8) -> usize {
        usize::from(n) % self.world.cpus()
    }

    /// Memory may be short, so failures are no surprise.
    pub(super) fn short_of(&self, place: Place, pages: u64) -> bool {
        let free = Self::mm().zone(place).stat().free;
        u64::from(free) < pages + 400
    }

    /// Allocations may fail in this step: they were told to, or memory is short.
    pub(super) fn may_be_oom(&self) -> bool {
        self.failing || self.short_of(Place::RAM, 0)
    }

    /// Somebody holds pages, or failures were asked for: not everything goes where it should.
    pub(super) fn has_obstacles(&self) -> bool {
        let held = self.pinned || self.parked || !self.held.is_empty() || !self.pins.is_empty();
        held || self.failing || self.failing_copies
    }

    /// Mostly, a range that is mapped as a whole: the same, moved into or cut at the mapping nearest to it.
    pub(super) fn aim(&self, space: u8, range: VaRange, rng: &mut Rng) -> VaRange {
        let (n, _) = self.space(space);
        let model = &self.world.model().borrow().spaces[n];
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
        let mapped = if rng.one_in(2) { vma.end } else { model.mapped_until(start) };
        let end = (start + range.nr_pages()).min(mapped);
        VaRange::new(start << PAGE_SHIFT, (end - start) << PAGE_SHIFT)
    }

    fn aim_at(&self, space: u8, page: u16, rng: &mut Rng) -> u64 {
        self.aim(space, range(page, 1), rng).start.0
    }

    /// One step, and what must hold after it.
    pub fn step(&mut self, step: Step) {
        let Step(seed, action) = step;
        self.world.begin(&step);
        let mut rng = Rng::new(mix(u64::from(seed)));
        self.act(action, &mut rng);
        if !matches!(action, Action::FailAlloc { .. } | Action::FailCopy { .. }) {
            Self::mm().inject.disarm();
            self.world.fail_copies(0, 0);
            (self.failing, self.failing_copies) = (false, false);
        }
        self.world.rest();
    }

    fn act(&mut self, action: Action, rng: &mut Rng) {
        match action {
            Action::Map { space, start, len, prot, huge } => {
                // In half of the cases in place of what is there (MAP_FIXED): spaces do not fill up with old small pages.
                if rng.one_in(2) {
                    self.unmap(space, range(start, len));
                }
                self.map(space, range(start, len), prot, huge);
            }
            Action::Unmap { space, start, len } => {
                self.unmap(space, self.aim(space, range(start, len), rng));
            }
            Action::Advise { space, start, len, huge } => {
                self.advise(space, self.aim(space, range(start, len), rng), huge);
            }
            Action::Contents { space, start, len, advice } => {
                self.contents(space, self.aim(space, range(start, len), rng), advice);
            }
            Action::Protect { space, start, len, prot } => {
                self.protect(space, self.aim(space, range(start, len), rng), prot);
            }
            Action::Read { cpu, space, page } => {
                let addr = self.aim_at(space, page, rng);
                self.touch(cpu, space, addr, None, rng);
            }
            Action::Write { cpu, space, page } => {
                let value = rng.next();
                let addr = self.aim_at(space, page, rng);
                self.touch(cpu, space, addr, Some(value), rng);
            }
            Action::Fill { cpu, space, start, len } => {
                let range = self.aim(space, range(start, len), rng);
                self.sweep(cpu, space, range, true, rng);
            }
            Action::Check { cpu, space, start, len } => {
                let range = self.aim(space, range(start, len), rng);
                self.sweep(cpu, space, range, false, rng);
            }
            Action::Migrate { space, start, len, to } => {
                self.migrate(space, self.aim(space, range(start, len), rng), to);
            }
            Action::Park { space, start, len, .. } => {
                self.park(action, self.aim(space, range(start, len), rng), rng);
            }
            Action::Hold { place, order, keep, reserve } => self.hold(place, order, keep, reserve),
            Action::Pin { space, page } => {
                let addr = self.aim_at(space, page, rng);
                self.pin(space, addr);
            }
            Action::Release => self.release(),
            Action::FailAlloc { sites, min_order, skip, times } => {
                Self::mm().inject.arm(u32::from(sites), min_order, u64::from(skip), u64::from(times));
                self.failing = true;
            }
            Action::FailCopy { skip, times } => {
                self.world.fail_copies(u64::from(skip), u64::from(times));
                self.failing_copies = true;
            }
            Action::Chaos { n } => self.world.disturb(n),
            Action::Fork { from, to } => self.fork(from, to),
            Action::MapObject { space, start, len, prot, object, index, shared } => {
                if rng.one_in(2) {
                    self.unmap(space, range(start, len));
                }
                self.map_object(space, range(start, len), prot, object, index, shared);
            }
            Action::Renew { object } => self.renew(object),
            Action::Remap { space, start, len, to, new_len, keep } => {
                let mut old = self.aim(space, range(start, len), rng);
                if !rng.one_in(8) {
                    old = self.in_one(space, old);
                }
                let new_len = if new_len == len { old.nr_pages() as u16 } else { new_len };
                self.remap(space, old, range(to, new_len), keep);
            }
            Action::Track { space, start, len, what } => {
                self.track(space, self.aim(space, range(start, len), rng), what);
            }
            Action::Mirror { space, device } => self.mirror(space, device),
            Action::Device { space, start, len, what } => {
                let range = self.aim(space, range(start, len), rng);
                self.device(space, range, what, rng);
            }
            Action::Collapse { space, start, len, device } => {
                self.collapse(space, self.aim(space, range(start, len), rng), device);
            }
            Action::PinPages { space, start, len, write, long } => {
                let range = self.aim(space, range(start, len), rng);
                self.pin_pages(space, range, write, long);
            }
            Action::Fetch { space, start, len, to, fault, write } => {
                self.fetch(space, self.aim(space, range(start, len), rng), to, fault, write);
            }
            Action::Evict { device, start, len } => self.evict(device, start, len),
            Action::EvictFrames { device, count } => self.evict_frames(device, count, rng),
            Action::Replug { device } => self.replug(device),
            Action::Switch { cpu, space } => self.switch(self.cpu(cpu), self.space(space).0),
            Action::Exit { space } => self.exit(space),
        }
    }

    pub(super) fn switch(&self, cpu: usize, n: usize) {
        if self.world.loaded(cpu) != Some(n) {
            self.world.load(cpu, n, self.owner(n));
        }
    }

    pub(super) fn exit(&mut self, space: u8) {
        Self::mm().inject.disarm();
        self.end(self.space(space).0);
        self.replace_ended();
    }

    /// Empty spaces take the place of those that have ended.
    pub(super) fn replace_ended(&mut self) {
        Self::mm().inject.disarm();
        while let Some(n) = (0..SPACES).find(|&n| self.spaces[n].is_none()) {
            match self.world.new_space() {
                Ok(new) => self.spaces[n] = Some(Rc::new(new)),
                // Give way: what is held, and then what the others have, may be all there is.
                Err(_) if !self.held.is_empty() => self.release(),
                Err(_) => (0..SPACES).for_each(|n| self.end(n)),
            }
        }
    }

    /// A space ends; CPUs that have it loaded leave it first.
    pub(super) fn end(&mut self, n: usize) {
        for cpu in 0..self.world.cpus() {
            if self.world.loaded(cpu) == Some(n) {
                self.world.unload(cpu);
            }
        }
        self.mirrors[n] = None;
        self.spaces[n] = None;
        let mut model = self.world.model().borrow_mut();
        model.spaces[n] = ModelSpace::default();
        model.found_family(n);
    }

    /// The end of a run: everything is read once more by a program, and then everything is freed.
    fn finish(&mut self) {
        self.release();
        self.check();
        let mut rng = Rng::new(7);
        for n in 0..SPACES as u8 {
            let vmas = self.world.model().borrow().spaces[usize::from(n)].vmas.clone();
            for vma in vmas.iter().filter(|vma| vma.prot.contains(crate::Prot::READ)) {
                let range = VaRange::new(vma.start << PAGE_SHIFT, (vma.end - vma.start) << PAGE_SHIFT);
                self.sweep(n, n, range, false, &mut rng);
            }
        }
        if self.world.failure().is_some() {
            return;
        }
        for n in 0..SPACES as u8 {
            self.exit(n);
        }
        self.check();
        drop(take(&mut *self.mirrors));
        drop(take(&mut *self.objects));
        let left = Self::mm().folios_in_use();
        if left != self.before {
            self.fail(|| format!("{left} folios are left at the end, {} were there before", self.before));
        }
        self.leave_all();
    }

    /// Frees what the list made.
    fn leave_all(&mut self) {
        Self::mm().inject.disarm();
        self.world.fail_copies(0, 0);
        self.release();
        (0..self.world.cpus()).for_each(|cpu| self.world.unload(cpu));
        drop(take(&mut *self.mirrors));
        drop(take(&mut *self.spaces));
        drop(take(&mut *self.objects));
    }

    /// Audit and contents, without touching anything.
    pub(super) fn check(&self) {
        if self.world.failure().is_some() {
            return;
        }
        if self.held.is_empty()
            && let Err(e) = Self::mm().audit()
        {
            self.fail(|| e.to_string());
            return;
        }
        for n in 0..SPACES {
            self.check_vmas(n);
            self.check_contents(n);
        }
        self.check_objects();
    }
}
