//! `bench`: what each operation costs, and how much of that is moving data.
//!
//! The guest measures and sends rows; a row's `total` and `bulk` are sums over its `n` repetitions (a sweep's over its
//! `rounds`), so that nothing is lost to rounding before it gets here. With instruction counting they are
//! instructions, and `bulk` are the words moved or cleared; with `--wall` a row also carries `ns_median` and `ns_copy`,
//! the median time of one repetition and of the raw copy of the same data in the same run.
//!
//! What operations cost a program in ring 3 is measured by a program, in a second machine ([`ring3`]).

mod baseline;
mod counters;
pub(crate) mod data;
mod report;
mod ring3;

use crate::boot;
use crate::build::Built;
use crate::cli::{Defaults, MachineArgs};
use crate::error::Error;
use crate::qemu::{GuestCommand, Qemu};
use crate::size::Size;
use crate::table::Frame;
use baseline::Baseline;
use data::Results;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Measure time on the wall instead of instructions
    #[arg(long)]
    wall: bool,
    /// One JSON document instead of tables
    #[arg(long)]
    json: bool,
    /// Sizes for the migration sweep, like 2M,64M
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    sizes: Vec<Size>,
    /// Only rows whose names contain this (a word; several with commas); ring3 is all of a program's
    #[arg(long, value_name = "TEXT", value_parser = one_word)]
    filter: Option<String>,
    /// Events for the CPU's performance counters, like cycles,page-walks; a machine without any says so
    #[arg(long, value_name = "LIST", value_parser = counters::list)]
    counters: Option<String>,
    /// Compare the counts with those in this file: more than 2 % worse fails
    #[arg(long, value_name = "FILE", conflicts_with_all = ["wall", "filter", "counters"])]
    baseline: Option<PathBuf>,
    /// Show how the counts differ from the baseline, and write them there
    #[arg(long, requires = "baseline")]
    update: bool,
}

impl BenchArgs {
    fn command(&self) -> GuestCommand {
        let mut command = GuestCommand::run("bench");
        if self.wall {
            command = command.with("wall", 1);
        }
        if !self.sizes.is_empty() {
            let sizes: Vec<String> = self.sizes.iter().map(Size::to_string).collect();
            command = command.with("sizes", sizes.join(","));
        }
        if let Some(counters) = &self.counters {
            command = command.with("counters", counters);
        }
        match &self.filter {
            Some(filter) => command.with("filter", filter),
            None => command,
        }
    }
}

/// Runs the benchmarks.
pub(crate) fn run(args: &BenchArgs, machine: &MachineArgs) -> Result<(), Error> {
    if args.baseline.is_some() && machine.is_set() {
        return Err(Error::BaselineSet);
    }
    let qemu = machine_for(machine, args.command(), args.wall)?;
    let baseline = args.baseline.as_deref().map(|path| old_counts(path, args, &qemu)).transpose()?;
    let built = machine.prepare(&qemu)?;
    let bar = progress_bar("rows");
    let results = measure(&qemu, &built, args.wall, |done, of| {
        bar.set_length(of);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let results = results?;
    let ring3 = if qemu.icount && !args.wall && ring3::is_asked_for(args.filter.as_deref()) {
        Some(ring3::measure(machine, &args.sizes)?)
    } else {
        None
    };
    let mut out = std::io::stdout().lock();
    let frame = if out.is_terminal() { Frame::Boxed } else { Frame::Plain };
    if args.json {
        let mut document = results.json();
        if let Some(ring3) = &ring3 {
            document["ring_3"] = ring3.json();
        }
        writeln!(out, "{document:#}")?;
    } else {
        let more = ring3.as_ref().map(|ring3| ring3.lines(frame)).transpose()?;
        let is_empty = more.is_some() && results.operations.is_empty() && results.sweep.is_empty();
        let lines = if is_empty { Vec::new() } else { results.lines(frame) };
        for line in lines.into_iter().chain(more.into_iter().flatten()) {
            writeln!(out, "{line}")?;
        }
    }
    let (Some(path), Some(old)) = (&args.baseline, baseline) else { return Ok(()) };
    let mut rows = results.rows();
    rows.extend(ring3.iter().flat_map(ring3::Rows::rows));
    let new = Baseline::new(baseline::machine(args, &qemu), rows);
    let found = old.compare(&new);
    for line in found.lines(frame) {
        // Standard output may be a document.
        if args.json { eprintln!("{line}") } else { writeln!(out, "{line}")? }
    }
    if args.update { new.write(path) } else { found.verdict(path) }
}

/// The machine for benchmarks: with `wall` its clock is the host's.
pub(crate) fn machine_for(machine: &MachineArgs, command: GuestCommand, wall: bool) -> Result<Qemu, Error> {
    let defaults = Defaults {
        memory: Size::mib(2048),
        device_size: Size::mib(512),
        device_count: 1,
        icount: !wall,
        timeout_secs: Some(600),
    };
    machine.qemu(&defaults, command)
}

/// Has the guest measure; says after each row how many are done, of how many.
pub(crate) fn measure(
    qemu: &Qemu,
    built: &Built,
    wall: bool,
    mut progress: impl FnMut(u64, u64),
) -> Result<Results, Error> {
    let mut results = Results::new(wall, qemu.icount);
    boot::watch(qemu, built, |line| {
        if let Some((done, of)) = results.read(line) {
            progress(done, of);
        }
    })?;
    Ok(results)
}

/// What this run is to be compared with; refused before anything is built if it cannot be.
fn old_counts(path: &Path, args: &BenchArgs, qemu: &Qemu) -> Result<Baseline, Error> {
    if !qemu.icount {
        return Err(Error::BaselineNeedsIcount);
    }
    let machine = baseline::machine(args, qemu);
    match args.update {
        // A new machine may come with new counts, and the first file with all of them.
        true if !path.exists() => Ok(Baseline::new(machine, Vec::new())),
        true => Baseline::of_file(path, &[]),
        false => Baseline::of_file(path, &machine),
    }
}

/// On standard error, and only if that is a terminal.
pub(crate) fn progress_bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(1);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {prefix}, {elapsed}") {
        bar.set_style(style);
        bar.set_prefix(what);
    }
    bar
}

/// The guest's command line is split at blanks.
pub(crate) fn one_word(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err("a filter is one word, without blanks".into());
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_words_for_the_guest() {
        let args = BenchArgs {
            wall: true,
            json: false,
            sizes: vec![Size::mib(2), Size::mib(1024)],
            filter: Some("fault".into()),
            counters: Some("cycles".into()),
            baseline: None,
            update: false,
        };
        assert_eq!(args.command().as_str(), "run=bench wall=1 sizes=2M,1G counters=cycles filter=fault");
    }

    #[test]
    fn filters_with_blanks_are_refused() {
        assert!(one_word("fault back").is_err());
        assert_eq!(one_word("fault-back").unwrap(), "fault-back");
    }
}
