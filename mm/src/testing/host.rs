//! The host as a [`World`]: lists run on a fresh machine of arrays under the adversarial MMU.

use alloc::rc::Rc;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::counters::Event;
use crate::device::StillInUse;
use crate::error::{FaultError, OutOfMemory};
use crate::exercise::{self, Failure, Model, Rng, Step, WORDS, World, about_huge, mix};
use crate::machine::FlushReason;
use crate::policy::{FlushPolicy, HugePages, MAX_BATCH_UNITS, Policy};
use crate::space::{AddressSpace, Space};
use crate::testing::kit::kernel_half;
use crate::testing::machine::{Config, Mood, Soft, State};
use crate::types::{Order, VaRange, Vaddr};

/// How a run is watched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    /// Flushes for this reason are dropped.
    pub(crate) skip: Option<FlushReason>,
    /// Look for stale translations at rest, before anybody used them.
    pub(crate) no_stale: bool,
}

/// What a run did.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) actions: u64,
    pub(crate) disturbances: u64,
    pub(crate) events: [u64; Event::COUNT],
    pub(crate) flushes: [u64; FlushReason::ALL.len()],
    /// Situations that came up.
    pub(crate) seen: BTreeMap<&'static str, u64>,
}

impl Default for Done {
    fn default() -> Self {
        Self {
            actions: 0,
            disturbances: 0,
            events: [0; Event::COUNT],
            flushes: [0; FlushReason::ALL.len()],
            seen: BTreeMap::new(),
        }
    }
}

impl Done {
    pub(crate) fn add(&mut self, other: &Self) {
        self.actions += other.actions;
        self.disturbances += other.disturbances;
        self.events.iter_mut().zip(other.events).for_each(|(sum, n)| *sum += n);
        self.flushes.iter_mut().zip(other.flushes).for_each(|(sum, n)| *sum += n);
        for (what, n) in &other.seen {
            *self.seen.entry(what).or_default() += n;
        }
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
        devices: vec![
            rng.pick(&[2, 4, 8, 12]) * 512,
            2 * 512 - rng.below(30) as u32,
            rng.pick(&[2, 4, 6]) * 512,
        ],
        chaos: rng.pick(&[0, 20, 60, 200]),
        late_copies: rng.one_in(3),
        coherent: rng.pick::<&[usize]>(&[&[], &[2], &[2], &[2], &[0], &[1], &[0, 2]]).to_vec(),
        mood: Mood::Steady,
    }
}

/// Turns every knob that leaves right what is right.
fn draw(policy: &Policy, rng: &mut Rng) {
    policy.set_huge(rng.pick(&[HugePages::Always, HugePages::Madvise, HugePages::Never]));
    policy.set_max_order(Order::new(rng.pick(&[0, 2, 4, 8, 9, 9, 9])));
    policy.set_granule(Order::new(rng.pick(&[0, 1, 4, 4, 8, 9])));
    policy.set_batch_units(rng.pick(&[1, 2, 7, 64, 65, MAX_BATCH_UNITS]));
    policy.set_flush(rng.pick(&[FlushPolicy::Auto, FlushPolicy::Ranged, FlushPolicy::Full]));
    policy.set_flush_threshold(rng.pick(&[0, 1, 32, 600]));
}

/// The space that a CPU has loaded.
type Loaded = Option<Rc<AddressSpace<Soft>>>;

/// The machine under a list.
struct Host {
    state: &'static State,
    no_stale: bool,
    /// Who is loaded where. Left alone after a failure.
    loaded: ManuallyDrop<RefCell<Vec<Loaded>>>,
}

impl Host {
    /// CR3 of a CPU has changed: the space before is loaded there no more.
    fn left(&self, cpu: usize, new: Loaded) {
        let old = std::mem::replace(&mut self.loaded.borrow_mut()[cpu], new);
        if let Some(old) = old {
            old.unloaded_from(cpu);
        }
    }
}

impl World for Host {
    type Machine = Soft;
    const BATCH: usize = 8;
    const AT: [usize; WORDS] = [0, 1, 2, 3];

    fn cpus(&self) -> usize {
        self.state.config.cpus
    }
    fn devices(&self) -> usize {
        self.state.config.devices.len()
    }
    fn model(&self) -> &RefCell<Model> {
        &self.state.model
    }

    fn fail(&self, what: impl FnOnce() -> String) {
        self.state.fail(what);
    }
    fn failure(&self) -> Option<String> {
        self.state.failure()
    }

    fn begin(&self, step: &Step) {
        self.state.mmu.borrow_mut().rng = Rng::new(u64::from(step.0));
        if self.state.config.mood == Mood::Fickle && mix(u64::from(step.0)).is_multiple_of(16) {
            draw(&self.state.mm.policy, &mut Rng::new(mix(u64::from(step.0) + 1)));
        }
    }
    fn rest(&self) {
        if !self.state.at_rest() {
            self.fail(|| "a lock or a copy outlived its operation".to_string());
        }
        if self.no_stale {
            self.state.check_no_stale();
        }
    }

    fn new_space(&self) -> Result<AddressSpace<Soft>, OutOfMemory> {
        AddressSpace::new(kernel_half)
    }
    fn clone_space(&self, of: &AddressSpace<Soft>) -> Result<AddressSpace<Soft>, OutOfMemory> {
        of.clone_of(kernel_half)
    }
    fn loaded(&self, cpu: usize) -> Option<usize> {
        self.state.mmu.borrow().loaded(cpu).map(|(_, n)| n)
    }
    fn load(&self, cpu: usize, n: usize, space: &Rc<AddressSpace<Soft>>) {
        space.loaded_on(cpu);
        self.state.mmu.borrow_mut().load(cpu, space.root_pfn(), n);
        self.left(cpu, Some(Rc::clone(space)));
    }
    fn unload(&self, cpu: usize) {
        self.state.mmu.borrow_mut().unload(cpu);
        self.left(cpu, None);
    }

    fn access(
        &self,
        cpu: usize,
        space: &'static Space<Soft>,
        page: Vaddr,
        word: usize,
        value: Option<u64>,
    ) -> Result<u64, FaultError> {
        self.state.user_access(cpu, space, page, word, value)
    }

    fn fail_copies(&self, skip: u64, times: u64) {
        self.state.fail_copies(skip, times);
    }
    fn disturb(&self, n: u8) {
        if self.state.config.chaos != 0 {
            let mut mmu = self.state.mmu.borrow_mut();
            (0..n).for_each(|_| self.state.disturb_now(&mut mmu));
        }
    }
    fn replug(&self, n: usize) -> Option<Result<(), StillInUse>> {
        Some(self.state.mm.unregister_device(n).map(|()| self.state.register_again(n)))
    }
    fn unmapped(&self, space: &'static Space<Soft>, range: VaRange) {
        self.state.probe_gone(space.root_pfn(), range, "unmapped");
    }
    fn lent(&self, space: &'static Space<Soft>, range: VaRange) {
        self.state.probe_gone(space.root_pfn(), range, "lent");
    }
}

/// Runs `steps` on a machine of the given shape. Panics are failures too, and not printed.
pub(crate) fn run(config: &Config, steps: &[Step], watch: &Watch) -> Result<Done, Failure> {
    let session = Soft::boot(config);
    session.skip.set(watch.skip);
    let loaded = ManuallyDrop::new(RefCell::new(vec![None; config.cpus]));
    let host = Host { state: session.state(), no_stale: watch.no_stale, loaded };
    let at = Cell::new(0);
    let result = quietly(|| catch_unwind(AssertUnwindSafe(|| exercise::run(&host, steps, &at, false))));
    match result {
        Ok(ended) => ended.map(|()| Done {
            actions: steps.len() as u64,
            disturbances: session.mmu.borrow().disturbances,
            events: core::array::from_fn(|i| session.counted(Event::ALL[i])),
            flushes: core::array::from_fn(|i| session.flushed(FlushReason::ALL[i])),
            seen: session.model.borrow().seen.clone(),
        }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string()));
            let what = session.failure().unwrap_or_else(|| format!("panic: {}", text.unwrap_or_default()));
            Err(Failure { step: at.get(), what })
        }
    }
}

/// The shortest list found that still fails, and how.
pub(crate) fn shrink(config: &Config, steps: &[Step], first: Failure, watch: &Watch) -> (Vec<Step>, Failure) {
    exercise::shrink(steps, first, 600, |fewer| run(config, fewer, watch).err())
}

/// What to paste into `regressions.rs`.
pub(crate) fn as_rust(config: &Config, steps: &[Step], failure: &Failure) -> String {
    exercise::as_rust(&format!("let config = {config:?};\n"), steps, failure)
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}
static HOOK: Once = Once::new();

/// Runs `f` with this thread's panics unreported: it catches them itself.
fn quietly<T>(f: impl FnOnce() -> T) -> T {
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.with(Cell::get) {
                before(info);
            }
        }));
    });
    let was = QUIET.with(|quiet| quiet.replace(true));
    let result = f();
    QUIET.with(|quiet| quiet.set(was));
    result
}
