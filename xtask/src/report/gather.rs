//! The machines of a report: which there are, and running them side by side.
//!
//! Counts of instructions do not depend on what else the host does, so there is a machine for each processor. Each experiment has
//! a machine of its own: its numbers are those of `exp NAME`, whatever else the report is asked for. On the clock it is one
//! machine at a time.

use super::phases;
use crate::bench::{self, data::Results};
use crate::build::Built;
use crate::cli::MachineArgs;
use crate::error::Error;
use crate::lab::{self, data::Experiment};
use crate::qemu::{GuestCommand, Qemu};
use indicatif::ProgressBar;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// What one machine is for.
#[derive(Debug)]
pub(super) enum Job<'a> {
    /// Rows of `bench`.
    Bench(Qemu),
    /// An experiment.
    Experiment(Qemu),
    /// A trace, for the phases.
    Phases(&'a MachineArgs),
}

/// What a machine found.
#[derive(Debug)]
pub(super) enum Gathered {
    Bench(Results),
    Experiments(Vec<Experiment>),
}

impl Job<'_> {
    /// Rows of `bench`: those with `filter` in their names, and migrations of these sizes.
    pub(super) fn bench(machine: &MachineArgs, filter: &str, sizes: &str, wall: bool) -> Result<Self, Error> {
        let mut command = GuestCommand::run("bench");
        for (key, value) in [("filter", filter), ("sizes", sizes), ("wall", if wall { "1" } else { "" })] {
            if !value.is_empty() {
                command = command.with(key, value);
            }
        }
        Ok(Self::Bench(bench::machine_for(machine, command, wall)?))
    }

    /// One experiment.
    pub(super) fn experiment(machine: &MachineArgs, name: &str, wall: bool) -> Result<Self, Error> {
        let command = GuestCommand::run("exp").with("exact", name);
        Ok(Self::Experiment(lab::machine_for(machine, command, wall)?))
    }

    fn run(&self, built: &Built, wall: bool, progress: impl Fn(u64, u64)) -> Result<Gathered, Error> {
        match self {
            Self::Bench(qemu) => bench::measure(qemu, built, wall, progress).map(Gathered::Bench),
            Self::Experiment(qemu) => lab::watch(qemu, built, progress).map(Gathered::Experiments),
            Self::Phases(machine) => phases::experiment(machine).map(|one| Gathered::Experiments(vec![one])),
        }
    }
}

/// Runs all of them, so many at a time, and gives what they found in the order of the jobs.
pub(super) fn all(
    jobs: &[Job<'_>],
    built: &Built,
    wall: bool,
    bar: &ProgressBar,
) -> Result<Vec<Gathered>, Error> {
    let at_once = if wall { 1 } else { thread::available_parallelism().map_or(1, usize::from) };
    let next = AtomicUsize::new(0);
    let slots: Vec<Mutex<Option<Result<Gathered, Error>>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
    let steps: Vec<Mutex<(u64, u64)>> = jobs.iter().map(|_| Mutex::new((0, 1))).collect();
    let begun = (bar.position(), bar.length().unwrap_or(0));
    let step = |job: usize, done: u64, of: u64| {
        set(&steps[job], (done, of));
        let sum = steps.iter().map(get).fold((0, 0), |sum, step| (sum.0 + step.0, sum.1 + step.1));
        bar.set_length(begun.1 + sum.1);
        bar.set_position(begun.0 + sum.0);
    };
    thread::scope(|scope| {
        for _ in 0..at_once.min(jobs.len()) {
            scope.spawn(|| {
                while let Some((n, job)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| Some((n, jobs.get(n)?)))
                {
                    let found = job.run(built, wall, |done, of| step(n, done, of));
                    let (_, of) = get(&steps[n]);
                    step(n, of, of);
                    // One that failed ends the report: no need to begin others.
                    if found.is_err() {
                        next.store(jobs.len(), Ordering::Relaxed);
                    }
                    set(&slots[n], Some(found));
                }
            });
        }
    });
    slots.into_iter().filter_map(|slot| slot.into_inner().ok().flatten()).collect()
}

/// A lock that a thread which panicked has left is as good as any other here.
fn set<T>(slot: &Mutex<T>, value: T) {
    *slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = value;
}

fn get<T: Copy>(slot: &Mutex<T>) -> T {
    *slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
