//! `report`: every experiment and the benchmarks, as one page with plots, and all points as CSV and JSON.
//!
//! ```text
//!  gather     machines side by side: bench, and one for each experiment
//!     |       bench::data::Results, lab::data::Experiment
//!  migration, linux     what bench measured, as experiments too; phases: what a trace recorded
//!     |       lab::data::Experiment
//!  html, draw           the page: a figure for each plot, by `plotters`; sentences from docs/EXPERIMENTS.md
//! ```
//!
//! All is one kind of data, so there is one way to draw, one kind of table and one list of points. Two reports of one kernel are the
//! same to the byte, but for plots that say that they vary: no date, no time it took.

mod draw;
mod files;
mod gather;
mod guide;
mod html;
pub(crate) mod linux;
mod migration;
mod phases;
mod summary;

use crate::bench::{
    data::{Results, Unit},
    one_word, progress_bar,
};
use crate::build::{self, Built};
use crate::cli::MachineArgs;
use crate::error::Error;
use crate::lab;
use crate::lab::data::{End, Experiment};
use crate::qemu::GuestCommand;
use crate::size::Size;
use gather::{Gathered, Job};
use indicatif::ProgressBar;
use linux::Peer;
use std::path::PathBuf;
use std::time::Instant;
use summary::Summary;

/// Options of `report`.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// Only experiments whose names contain one of these; migration, operations, linux and phases are among them
    #[arg(value_name = "NAME", value_parser = one_word)]
    names: Vec<String>,
    /// Where the files go [default: target/report]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Measure time on the wall as well, in further runs
    #[arg(long)]
    wall: bool,
    /// Sizes for migration, like 2M,64M [default: 512K to 256M]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    sizes: Vec<Size>,
    /// Only draw the plot of the README again: docs/plots/migration.svg, or into DIR
    #[arg(long, conflicts_with_all = ["names", "wall", "sizes"])]
    readme_plot: bool,
}

/// What is measured here and not by an experiment of the kernel: by `bench`, but for the last, which is from a trace.
const OF_BENCH: [&str; 4] = ["migration", "operations", "linux", PHASES];
const PHASES: &str = "phases";
/// Sizes of migration, each list on a machine of its own: the last takes longer than all others.
const SIZES: [&[Size]; 2] = [
    &[Size(512 << 10), Size::mib(1), Size::mib(2), Size::mib(4), Size::mib(8), Size::mib(16)],
    &[Size::mib(256)],
];

/// A part of the page.
struct Part {
    title: &'static str,
    about: &'static str,
    /// Before the names of its experiments where these stand twice.
    prefix: &'static str,
    experiments: Vec<Experiment>,
}

/// Measures and writes.
pub(crate) fn run(args: &ReportArgs, machine: &MachineArgs) -> Result<(), Error> {
    // Some of its machines are those of experiments, which take what a report must not have.
    machine.check_settings("report")?;
    if let Some(option) = machine.shared() {
        return Err(Error::ReportShares(option));
    }
    if args.readme_plot && machine.is_set() {
        return Err(Error::BaselineSet);
    }
    let probe = lab::machine_for(machine, GuestCommand::run("exp").with("list", 1), false)?;
    if !probe.icount {
        return Err(Error::ReportNeedsIcount);
    }
    let built = machine.prepare(&probe)?;
    let started = Instant::now();
    if args.readme_plot {
        return readme_plot(args, machine, &built);
    }
    let known: Vec<String> = lab::watch(&probe, &built, |_, _| {})?.into_iter().map(|one| one.name).collect();
    let chosen = Chosen::of(args, &known)?;
    let bar = progress_bar("steps");
    bar.set_length(0);
    let counted = chosen.gather(machine, &built, false, &bar);
    let timed = match &counted {
        Ok(_) if args.wall => chosen.gather(machine, &built, true, &bar).map(Some),
        _ => Ok(None),
    };
    bar.finish_and_clear();
    let (counted, timed) = (counted?, timed?);
    let summary = Summary::of(&counted.results, machine.settings());
    let parts = parts(counted, timed)?;
    let output = args.output.clone().unwrap_or_else(|| build::root().join("target").join("report"));
    files::write(&output, &summary, &parts)?;
    let all = || parts.iter().flat_map(|part| &part.experiments);
    let plots = all().map(|one| one.plots.len()).sum::<usize>();
    println!(
        "{} experiments, {plots} plots and tables in {:.0} s:",
        all().count(),
        started.elapsed().as_secs_f64()
    );
    println!("  {}", output.join("index.html").display());
    println!("  {} and report.json beside it: every point", output.join("report.csv").display());
    lab::data::say_what_is_missing(all());
    match all().filter(|one| matches!(one.end, End::Failed(_))).count() {
        0 => Ok(()),
        n => Err(Error::Experiments(n)),
    }
}

fn list(sizes: &[Size]) -> String {
    sizes.iter().map(Size::to_string).collect::<Vec<_>>().join(",")
}

/// What is to be measured.
struct Chosen {
    bench: Vec<&'static str>,
    experiments: Vec<String>,
    sizes: Vec<String>,
}

/// What was measured, by one clock.
struct Measured {
    results: Results,
    bench: Vec<&'static str>,
    experiments: Vec<Experiment>,
}

impl Chosen {
    fn of(args: &ReportArgs, known: &[String]) -> Result<Self, Error> {
        let wanted =
            |name: &str| args.names.is_empty() || args.names.iter().any(|part| name.contains(part.as_str()));
        let bench: Vec<_> = OF_BENCH.into_iter().filter(|name| wanted(name)).collect();
        let experiments: Vec<_> = known.iter().filter(|name| wanted(name)).cloned().collect();
        if bench.is_empty() && experiments.is_empty() {
            return Err(Error::NoExperiment(args.names.join(" or ")));
        }
        let sizes = if args.sizes.is_empty() { SIZES.map(list).to_vec() } else { vec![list(&args.sizes)] };
        Ok(Self { bench, experiments, sizes })
    }

    fn jobs<'a>(&self, machine: &'a MachineArgs, wall: bool) -> Result<Vec<Job<'a>>, Error> {
        let wants = |names: &[&str]| names.iter().any(|name| self.bench.contains(name));
        let mut jobs = Vec::new();
        if wants(&["migration", "linux"]) {
            // The longest first.
            for sizes in self.sizes.iter().skip(1).rev() {
                jobs.push(Job::bench(machine, "sweep", sizes, wall)?);
            }
        }
        if wants(&["migration", "operations", "linux"]) {
            jobs.push(Job::bench(machine, "", &self.sizes[0], wall)?);
        }
        if wants(&[PHASES]) && !wall {
            jobs.push(Job::Phases(machine));
        }
        for name in &self.experiments {
            jobs.push(Job::experiment(machine, name, wall)?);
        }
        Ok(jobs)
    }

    fn gather(
        &self,
        machine: &MachineArgs,
        built: &Built,
        wall: bool,
        bar: &ProgressBar,
    ) -> Result<Measured, Error> {
        let mut results = Results::new(wall, !wall);
        let mut experiments = Vec::new();
        for found in gather::all(&self.jobs(machine, wall)?, built, wall, bar)? {
            match found {
                Gathered::Bench(rows) => results.extend(rows),
                Gathered::Experiments(found) => experiments.extend(found),
            }
        }
        results.sweep.sort_by_key(|row| row.size);
        experiments.sort_by(|a, b| a.name.cmp(&b.name));
        experiments.dedup_by(|a, b| a.name == b.name);
        Ok(Measured { results, bench: self.bench.clone(), experiments })
    }
}

/// Sorts what was measured into parts of the page.
fn parts(counted: Measured, timed: Option<Measured>) -> Result<Vec<Part>, Error> {
    let mut parts = Vec::new();
    let mut add = |title, about, prefix, experiments: Vec<Experiment>| {
        if !experiments.is_empty() {
            parts.push(Part { title, about, prefix, experiments });
        }
    };
    let (bench, experiments) = counted.into_experiments()?;
    add(
        "Benchmarks",
        "What bench measures: operations, and migration over size, with 2 MiB pages and with 4 KiB pages; and where it goes, from a trace.",
        "",
        bench,
    );
    add("Experiments", "What exp measures, each on a machine of its own.", "", experiments);
    if let Some(timed) = timed {
        let (mut all, experiments) = timed.into_experiments()?;
        all.extend(experiments);
        add(
            "On the clock",
            "The same in time instead of instructions. These numbers are another in each run.",
            "wall-",
            all,
        );
    }
    Ok(parts)
}

impl Measured {
    /// What `bench` measured as experiments, and the experiments.
    fn into_experiments(self) -> Result<(Vec<Experiment>, Vec<Experiment>), Error> {
        let wants = |name| self.bench.contains(&name);
        let mut bench = Vec::new();
        if wants("migration") {
            bench.push(migration::migration(&self.results));
        }
        if wants("operations") {
            bench.push(migration::operations(&self.results));
        }
        // Linux was measured in instructions.
        if wants("linux") && self.results.unit == Unit::Instructions {
            bench.push(Peer::read()?.experiment(&self.results));
        }
        let (traced, experiments) =
            self.experiments.into_iter().partition::<Vec<_>, _>(|one| one.name == PHASES);
        bench.extend(traced);
        Ok((bench, experiments))
    }
}

/// The plot of the README. It takes only sizes that are quick, since a test draws it again.
fn readme_plot(args: &ReportArgs, machine: &MachineArgs, built: &Built) -> Result<(), Error> {
    let chosen = Chosen { bench: vec!["migration"], experiments: Vec::new(), sizes: vec![list(SIZES[0])] };
    let bar = progress_bar("rows");
    let found = chosen.gather(machine, built, false, &bar);
    bar.finish_and_clear();
    let migration = migration::migration(&found?.results);
    let directory = args.output.clone().unwrap_or_else(|| build::root().join("docs").join("plots"));
    files::write_plot(&directory.join("migration.svg"), &migration, migration::README_PLOT)
}
