//! `run=bench`: what operations cost, as records for the runner.
//!
//! Two parts: single operations ([`single`]), and the field's migration benchmark ([`sweep`]): seven sizes, large pages on
//! and off, both directions. Under instruction counting the figures are exact. With `wall=1` they are times: the median of
//! the repetitions, beside the median of the raw copy of the same data, measured in the same run.

mod counted;
mod samples;
mod single;
mod sweep;

use core::fmt;

use farpage_mm::{OutOfMemory, RangeError};
use kernel_logic::cmdline::CommandLine;
use ktest::exit::Exit;
use ktest::record;

use crate::vm::devmem::{self, DeviceError};
use crate::vm::user::UserFault;
use crate::{bootmem, console, exit, memory};

/// Why a measurement could not be made.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It does not fit this machine: a row that is skipped.
    DoesNotFit(&'static str),
    /// Something is wrong.
    Range(RangeError),
    /// A touch failed.
    Fault(UserFault),
    /// No memory for the space itself.
    Oom(OutOfMemory),
    /// Data did not survive, or not everything moved.
    Wrong(&'static str),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DoesNotFit(why) | Self::Wrong(why) => f.write_str(why),
            Self::Range(error) => write!(f, "{error}"),
            Self::Fault(fault) => write!(f, "{fault}"),
            Self::Oom(error) => write!(f, "{error}"),
        }
    }
}

impl From<RangeError> for Stop {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}
impl From<UserFault> for Stop {
    fn from(fault: UserFault) -> Self {
        Self::Fault(fault)
    }
}
impl From<OutOfMemory> for Stop {
    fn from(error: OutOfMemory) -> Self {
        Self::Oom(error)
    }
}

/// Runs everything that the command line asks for.
pub(crate) fn run(command: &CommandLine<'_>, devices: Result<usize, DeviceError>) -> ! {
    if let Err(error) = devices {
        exit::fail(&error);
    }
    let sizes = match sweep::sizes(command.sizes) {
        Ok(sizes) => sizes,
        Err(error) => exit::fail(&error),
    };
    say_machine();
    counted::announce();
    if command.wall {
        samples::touch_all_memory();
    }
    let single = single::ROWS.iter().filter(|row| command.takes(row.name)).count();
    // On the clock there is no raw copy to hold the third row against.
    let rows = if command.wall { 2 } else { 3 };
    let sweeps = if command.takes(sweep::NAME) { sizes.len() * 2 * rows } else { 0 };
    let mut progress = Progress { done: 0, of: single + sweeps };
    progress.say();
    for row in single::ROWS.iter().filter(|row| command.takes(row.name)) {
        finish(row.name, single::run(row, command.wall));
        progress.step(1);
    }
    if command.takes(sweep::NAME) {
        for &size in &sizes {
            for huge in [true, false] {
                let what = alloc::format!(
                    "{} of {} KiB, {} pages",
                    sweep::NAME,
                    size >> 10,
                    if huge { "2 MiB" } else { "4 KiB" }
                );
                finish(&what, sweep::run(size, huge, command.wall));
                if !command.wall {
                    finish(&what, sweep::read_back(size, huge));
                }
                progress.step(rows);
            }
        }
    }
    if let Err(error) = memory::mm_audit() {
        exit::fail(&error);
    }
    exit::exit(Exit::Success)
}

/// Measures the single operations with `part` in their names; how many there are. No address space is loaded.
///
/// # Errors
/// The first row that cannot be measured here.
pub(crate) fn rows(part: &str) -> Result<usize, Stop> {
    let rows = || single::ROWS.iter().filter(|row| row.name.contains(part));
    rows().try_for_each(|row| single::run(row, false))?;
    Ok(rows().count())
}

/// A row that does not fit is skipped; anything else ends the run.
fn finish(what: &str, result: Result<(), Stop>) {
    match result {
        Ok(()) => {}
        Err(Stop::DoesNotFit(why)) => console::with(|out| {
            let _ = record!(out, "skip", what = what, why = why);
        }),
        Err(error) => exit::fail(&format_args!("{what}: {error}")),
    }
}

fn say_machine() {
    let ram: u64 = bootmem::ram().map(|range| range.end - range.start).sum();
    let device = devmem::device(0).map_or(0, devmem::Device::len_bytes);
    console::with(|out| {
        let _ = record!(out, "machine", ram_mib = ram.div_ceil(1 << 20), device_mib = device >> 20);
    });
}

struct Progress {
    done: usize,
    of: usize,
}

impl Progress {
    fn step(&mut self, rows: usize) {
        self.done += rows;
        self.say();
    }
    fn say(&self) {
        console::with(|out| {
            let _ = record!(out, "progress", done = self.done as u64, of = self.of as u64);
        });
    }
}
