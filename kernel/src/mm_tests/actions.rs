//! Random lists of actions on the real machine: the lists, the model and the checks of the host's property test, with real
//! page tables, real faults and real BARs below.
//!
//! The machine is small, so that memory is short again and again and an audit after every few steps costs little. A list that
//! fails is said with its seed and made shorter; `actions=` and `seed=` on the kernel's command line run more of them, or
//! that one again.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use farpage_mm::exercise::{self, Failure, Model, Step, WORDS, World};
use farpage_mm::{
    AddressSpace, Event, FaultError, Machine as _, OutOfMemory, PAGE_SIZE, Space, StillInUse, VaRange, Vaddr,
};

use crate::arch::x86_64::{paging, percpu};
use crate::testing::Outcome;
use crate::vm::shared::{self, Loaded};
use crate::vm::user::{last_refusal, user_read_u64, user_write_u64};
use crate::vm::{Machine, devmem, mm, new_space, rig};

/// Actions where the command line does not say how many.
const ACTIONS: u64 = 20_000;
/// Steps of one list.
const LIST: usize = 1000;
/// What so many actions make happen: a list that does nothing is no test.
const HAPPENS: [Event; 10] = [
    Event::AnonFaultAlloc,
    Event::ThpFaultAlloc,
    Event::DeviceIn,
    Event::DeviceOut,
    Event::DeviceFault,
    Event::DeviceEvict,
    Event::CowCopy,
    Event::MigrateFail,
    Event::AllocFail,
    Event::TlbFlush,
];
/// Situations that so few actions need not come into; the host's many do.
const RARE: [&str; 1] = ["pinned: coherent"];
/// Runs that a list may take to become shorter.
const SHRINK_RUNS: usize = 200;

/// This machine, with one list under way.
#[derive(Default)]
struct Here {
    model: RefCell<Model>,
    failure: RefCell<Option<String>>,
    loaded: RefCell<Option<(usize, Loaded)>>,
}

impl World for Here {
    type Machine = Machine;
    const BATCH: usize = 40;
    const AT: [usize; WORDS] = [0, 170, 341, 511];

    fn cpus(&self) -> usize {
        1
    }
    fn devices(&self) -> usize {
        devmem::devices().count()
    }
    fn model(&self) -> &RefCell<Model> {
        &self.model
    }

    fn fail(&self, what: impl FnOnce() -> String) {
        self.failure.borrow_mut().get_or_insert_with(what);
    }
    fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    fn begin(&self, step: &Step) {
        log::debug!("{step:?}");
    }
    fn rest(&self) {
        let count = percpu::preempt_count();
        if count != 0 {
            self.fail(|| alloc::format!("{count} locks outlived their operation"));
        }
    }

    fn new_space(&self) -> Result<AddressSpace<Machine>, OutOfMemory> {
        new_space()
    }
    fn clone_space(&self, of: &AddressSpace<Machine>) -> Result<AddressSpace<Machine>, OutOfMemory> {
        of.clone_of(paging::fill_kernel_half)
    }
    fn loaded(&self, _cpu: usize) -> Option<usize> {
        self.loaded.borrow().as_ref().map(|(n, _)| *n)
    }
    fn load(&self, cpu: usize, n: usize, space: &Rc<AddressSpace<Machine>>) {
        self.unload(cpu);
        *self.loaded.borrow_mut() = Some((n, shared::load(space)));
    }
    fn unload(&self, _cpu: usize) {
        drop(self.loaded.borrow_mut().take());
    }

    fn access(
        &self,
        _cpu: usize,
        _space: &'static Space<Machine>,
        page: Vaddr,
        word: usize,
        value: Option<u64>,
    ) -> Result<u64, FaultError> {
        let addr = page.0 + Self::AT[word] as u64 * 8;
        let result = match value {
            Some(value) => user_write_u64(addr, value).map(|()| value),
            None => user_read_u64(addr),
        };
        result.map_err(|fault| match last_refusal() {
            Some(why) if fault.addr & !(PAGE_SIZE - 1) == page.0 => why,
            why => {
                self.fail(|| alloc::format!("an access to {addr:#x} fails at {:#x}: {why:?}", fault.addr));
                FaultError::NoVma(page)
            }
        })
    }

    fn fail_copies(&self, skip: u64, times: u64) {
        rig::fail_copies(skip, times);
    }
    fn disturb(&self, _n: u8) {}
    fn replug(&self, n: usize) -> Option<Result<(), StillInUse>> {
        let pages = devmem::device(n)?.len_bytes() / PAGE_SIZE;
        Some(mm().unregister_device(n).map(|()| {
            let again = devmem::register_again(n, pages as u32, false);
            assert!(again.is_ok(), "{again:?}");
        }))
    }
    fn unmapped(&self, space: &'static Space<Machine>, range: VaRange) {
        if !self.loaded.borrow().as_ref().is_some_and(|(_, loaded)| loaded.is(space)) {
            return;
        }
        // Both ends, where something may be left in the TLB.
        for addr in [range.start.0, range.end.0 - 8] {
            if user_read_u64(addr).is_ok() {
                self.fail(|| alloc::format!("{addr:#x} can be read after {range} was unmapped"));
            }
        }
        let _ = last_refusal();
    }
}

fn fails(steps: &[Step]) -> Option<Failure> {
    run(steps).err()
}

/// Runs a list; the situations that came up in it.
fn run(steps: &[Step]) -> Result<BTreeMap<&'static str, u64>, Failure> {
    let here = Here::default();
    exercise::run(&here, steps, &Cell::new(0), true)?;
    Ok(here.model.take().seen)
}

/// Lists with seeds from `first` on, `actions` steps in all.
fn run_lists(first: u64, actions: u64) -> Outcome {
    let before = HAPPENS.map(Machine::counted);
    let (mut done, mut seen) = (0, BTreeMap::new());
    for seed in first.. {
        if done >= actions {
            break;
        }
        log::info!("list with seed {seed}");
        let steps = exercise::generate(seed, LIST);
        match run(&steps) {
            Ok(list) => seen.extend(list),
            Err(failure) => {
                let at = failure.step;
                mm().inject.disarm();
                let (steps, failure) = exercise::shrink(&steps, failure, SHRINK_RUNS, fails);
                crate::fail!(
                    "the list with seed {seed} fails at step {at}: {}",
                    exercise::as_rust("", &steps, &failure)
                );
            }
        }
        done += steps.len() as u64;
    }
    // Lists with other seeds may do without what is rare: they are there to find differences.
    if first == 0 && actions >= ACTIONS {
        let missed: Vec<_> =
            exercise::situations().filter(|what| !seen.contains_key(what) && !RARE.contains(what)).collect();
        crate::check!(missed.is_empty(), "situations that did not come up: {missed:?}");
        let missed: Vec<_> =
            HAPPENS.iter().zip(before).filter(|&(&event, n)| Machine::counted(event) == n).collect();
        crate::check!(missed.is_empty(), "events that did not happen: {missed:?}");
    }
    Ok(())
}

crate::ktest! {
    needs(memory_mib = 64, devices = 3, device_mib = 8, coherent = 1)
    fn random_lists_agree_with_the_model() {
        let command = &crate::boot().command;
        run_lists(command.seed, command.actions.unwrap_or(ACTIONS))?;
    }
}
