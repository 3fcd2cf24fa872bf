//! Experiments: `run=exp`, and `exp NAME` in the shell.
//!
//! An experiment is a question and a function that measures. It declares itself ([`experiment!`](crate::experiment)), gets a
//! [`Sheet`] with an address space of its own that is loaded, and writes points to the plots that it opens there. It neither
//! prints nor draws: what it finds goes out as records, and the host makes tables, plots and files of them. So the same twenty
//! lines are a command, a table, a plot of the report and rows of a CSV.
//!
//! ```text
//!  experiment! { name, question, measures, fn }            this folder, one file for each subject
//!        | Sheet: plot, point, finding
//!        v
//!  @exp ... @plot ... @point ... @finding ... @exp-end     serial line
//!        v
//!  xtask/src/lab: tables (exp, shell), SVG, CSV, JSON (report)
//! ```

mod batching;
mod chase;
mod example;
mod fault_latency;
mod flush;
mod granularity;
mod model;
mod reach;
mod residency;
mod scratch;
mod sheet;
mod stale;

use core::fmt;

use farpage_mm::{HugeAdvice, Level, Place, VaRange};
use kernel_logic::cmdline::CommandLine;
use ktest::exit::Exit;
use ktest::record;
use linkme::distributed_slice;

use crate::bench::Stop;
use crate::vm::devmem::DeviceError;
use crate::vm::mm;
use crate::{console, exit, memory};

pub(crate) use sheet::{Axis, Kind, Plot, Sheet};

/// A question, and how it is asked.
pub(crate) struct Experiment {
    /// Lower case, words joined by `-`.
    pub(crate) name: &'static str,
    /// What it asks.
    pub(crate) question: &'static str,
    /// What the numbers are numbers of.
    pub(crate) measures: &'static str,
    /// Measures.
    pub(crate) run: fn(&mut Sheet<'_>) -> Result<(), Stop>,
}

/// All that declare themselves, in no order.
#[distributed_slice]
pub(crate) static EXPERIMENTS: [Experiment];

/// Declares an experiment; see [`crate::lab`].
#[macro_export]
macro_rules! experiment {
    (name: $name:literal, question: $question:literal, measures: $measures:expr, $(#[$meta:meta])* fn $function:ident $($rest:tt)+) => {
        #[::linkme::distributed_slice($crate::lab::EXPERIMENTS)]
        static EXPERIMENT: $crate::lab::Experiment = $crate::lab::Experiment {
            name: $name,
            question: $question,
            measures: $measures,
            run: $function,
        };

        $(#[$meta])*
        fn $function $($rest)+
    };
}

/// All of them, by name.
pub(crate) fn all() -> alloc::vec::Vec<&'static Experiment> {
    let mut all: alloc::vec::Vec<_> = EXPERIMENTS.iter().collect();
    all.sort_unstable_by_key(|experiment| experiment.name);
    all
}

/// Runs what the command line names, all if it names none; with `list=1` only says what there is.
pub(crate) fn run(command: &CommandLine<'_>, devices: Result<usize, DeviceError>) -> ! {
    if let Err(error) = devices {
        exit::fail(&error);
    }
    let chosen = || all().into_iter().filter(|experiment| command.takes(experiment.name));
    let of = chosen().count();
    let mut failed = false;
    for (done, experiment) in chosen().enumerate() {
        console::with(|out| {
            let _ = record!(out, "progress", done = done as u64, of = of as u64);
        });
        // Where nothing counts instructions, ticks are time.
        failed |= !one(experiment, command.wall || !command.icount);
    }
    if let Err(error) = memory::mm_audit() {
        exit::fail(&error);
    }
    exit::exit(if failed { Exit::Failed } else { Exit::Success })
}

/// Says which experiments there are.
pub(crate) fn list() -> ! {
    let all = all();
    for (done, experiment) in all.iter().enumerate() {
        console::with(|out| {
            // What was named before is complete.
            let _ = record!(out, "progress", done = done as u64, of = all.len() as u64);
            let (name, question, measures) = (experiment.name, experiment.question, experiment.measures);
            let _ = record!(out, "exp", name = name, question = question, measures = measures);
        });
    }
    exit::exit(Exit::Success)
}

/// Does one experiment, and says whether it came to its end. No address space is loaded.
pub(crate) fn one(experiment: &Experiment, wall: bool) -> bool {
    let (name, question, measures) = (experiment.name, experiment.question, experiment.measures);
    console::with(|out| {
        let _ = record!(out, "exp", name = name, question = question, measures = measures);
    });
    let end = Sheet::with(wall, experiment.run);
    say_end(name, &end);
    matches!(end, Ok(()) | Err(Stop::DoesNotFit(_)))
}

fn say_end(name: &str, end: &Result<(), Stop>) {
    console::with(|out| {
        let _ = match end {
            Ok(()) => record!(out, "exp-end", name = name, ok = 1),
            // A machine that is too small is nobody's mistake.
            Err(Stop::DoesNotFit(why)) => record!(out, "exp-end", name = name, ok = 1, skipped = why),
            Err(stop) => record!(out, "exp-end", name = name, ok = 0, why = stop),
        };
    });
}

/// A quotient with two digits after the point.
struct Ratio(u64, u64);

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hundredths = (self.0 * 100 + self.1 / 2) / self.1.max(1);
        write!(f, "{}.{:02}", hundredths / 100, hundredths % 100)
    }
}

/// Makes sure that memory is mapped by the pages that were asked for.
///
/// # Errors
/// It is not: there were no free 2 MiB in one piece.
fn huge_or_not(sheet: &Sheet<'_>, range: VaRange, advice: HugeAdvice) -> Result<(), Stop> {
    let is_huge = sheet.space().entry_at(range.start).0 == Level::Pmd;
    if is_huge == (advice == HugeAdvice::Huge) {
        Ok(())
    } else {
        Err(Stop::DoesNotFit("no 2 MiB pages are to be had (--memory, --set huge=always)"))
    }
}

crate::ktest! {
    fn experiments_have_names_of_their_own_that_can_be_typed() {
        let all = all();
        crate::check!(!all.is_empty());
        for pair in all.windows(2) {
            crate::check!(pair[0].name < pair[1].name, "{} stands twice", pair[0].name);
        }
        for experiment in all {
            let typed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            crate::check!(experiment.name.bytes().all(typed), "{}", experiment.name);
            crate::check!(experiment.question.ends_with('?'), "{} asks nothing", experiment.name);
        }
    }
}

crate::ktest! {
    needs(memory_mib = 1024, device_mib = 256)
    fn every_experiment_ends_and_gives_all_memory_back() {
        let free = || {
            mm().zone(Place::RAM).drain();
            mm().zone(Place::RAM).stat().free
        };
        let resident = || mm().device(0).stat().resident;
        if mm().device(0).memory().managed == 0 {
            crate::skip!("is for a machine with a device");
        }
        // Descriptors are kept for the next time. With those of the largest working set beforehand, few experiments come to
        // their end with less memory than before and have to be done again.
        let kept = Sheet::with(false, |sheet| {
            let range = sheet.map(reach::LARGEST, HugeAdvice::NoHuge)?;
            chase::Chain::lay(range.start, range.nr_pages())?;
            Ok(())
        });
        crate::check!(kept.is_ok(), "{kept:?}");
        for experiment in all() {
            let (before, on_device) = (free(), resident());
            // One that is skipped shows nothing.
            let end = Sheet::with(false, experiment.run);
            crate::check!(end.is_ok(), "{}: {end:?}", experiment.name);
            crate::check_eq!(memory::mm_audit().map_err(|error| alloc::format!("{error}")), Ok(()), "after {}", experiment.name);
            crate::check_eq!(resident(), on_device, "{} has left pages on the device", experiment.name);
            if free() != before {
                // Descriptors are kept for the next time; then there is none that could be kept again.
                let before = free();
                crate::check!(one(experiment, false), "{} did not come to its end", experiment.name);
                crate::check_eq!(free(), before, "{} has kept memory", experiment.name);
            }
        }
    }
}
