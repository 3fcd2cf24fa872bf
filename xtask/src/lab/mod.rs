//! `exp`: experiments, done by the guest and shown here.
//!
//! Which ones there are is the guest's to know; `--list` asks it. [`data`] puts together what it sends, for the tables here and in
//! the shell ([`show`]).

pub mod data;
pub mod show;

use crate::bench::{one_word, progress_bar};
use crate::boot;
use crate::build::Built;
use crate::cli::{Defaults, MachineArgs};
use crate::error::Error;
use crate::qemu::{GuestCommand, Qemu};
use crate::size::Size;
use crate::table::Frame;
use data::{CSV_HEADING, End, Experiment, Reader, Step, csv_line};
use serde_json::json;
use std::io::{IsTerminal, Write};

/// Options of `exp`.
#[derive(Debug, clap::Args)]
pub struct ExpArgs {
    /// Only those whose names contain one of these; all if none is given
    #[arg(value_name = "NAME", value_parser = one_word)]
    names: Vec<String>,
    /// Say which experiments there are
    #[arg(short, long, conflicts_with_all = ["names", "wall", "json", "csv"])]
    list: bool,
    /// Measure time on the wall instead of instructions
    #[arg(long)]
    wall: bool,
    /// One JSON document instead of tables
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Comma-separated values, a line for each point
    #[arg(long)]
    csv: bool,
}

/// Does what the options ask for.
pub(crate) fn run(args: &ExpArgs, machine: &MachineArgs) -> Result<(), Error> {
    let mut command = GuestCommand::run("exp");
    if args.list {
        command = command.with("list", 1);
    }
    if !args.names.is_empty() {
        command = command.with("filter", args.names.join(","));
    }
    let experiments = experiments(machine, command, args.wall)?;
    if experiments.is_empty() {
        return Err(Error::NoExperiment(args.names.join(" or ")));
    }
    let mut out = std::io::stdout().lock();
    if args.list {
        for experiment in &experiments {
            writeln!(out, "{:<20} {}", experiment.name, experiment.question)?;
        }
    } else if args.json {
        writeln!(out, "{:#}", json!(experiments.iter().map(Experiment::json).collect::<Vec<_>>()))?;
    } else if args.csv {
        writeln!(out, "{}", csv_line(&CSV_HEADING))?;
        for row in experiments.iter().flat_map(Experiment::csv) {
            writeln!(out, "{}", csv_line(&row))?;
        }
    } else {
        let frame = if out.is_terminal() { Frame::Boxed } else { Frame::Plain };
        for (n, experiment) in experiments.iter().enumerate() {
            if n > 0 {
                writeln!(out, "\n")?;
            }
            for line in show::lines(experiment, frame) {
                writeln!(out, "{line}")?;
            }
        }
    }
    if args.json || args.csv {
        // Tables say it themselves.
        data::say_what_is_missing(&experiments);
    }
    let failed = experiments.iter().filter(|experiment| matches!(experiment.end, End::Failed(_)));
    match failed.count() {
        0 => Ok(()),
        n => Err(Error::Experiments(n)),
    }
}

/// The machine for experiments: with `wall` its clock is the host's.
pub(crate) fn machine_for(machine: &MachineArgs, command: GuestCommand, wall: bool) -> Result<Qemu, Error> {
    let defaults = Defaults {
        memory: Size::mib(1024),
        device_size: Size::mib(256),
        device_count: 1,
        icount: !wall,
        timeout_secs: Some(600),
    };
    machine.qemu(&defaults, if wall { command.with("wall", 1) } else { command })
}

/// Has the guest do a command that answers with experiments. Those that failed are among them.
pub(crate) fn experiments(
    machine: &MachineArgs,
    command: GuestCommand,
    wall: bool,
) -> Result<Vec<Experiment>, Error> {
    let qemu = machine_for(machine, command, wall)?;
    let built = machine.prepare(&qemu)?;
    let bar = progress_bar("experiments");
    let found = watch(&qemu, &built, |done, of| {
        bar.set_length(of);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    found
}

/// As [`experiments`], on a machine that is ready; says before each how many are done, of how many.
pub(crate) fn watch(
    qemu: &Qemu,
    built: &Built,
    mut progress: impl FnMut(u64, u64),
) -> Result<Vec<Experiment>, Error> {
    let mut reader = Reader::new(qemu.icount);
    let mut found = Vec::new();
    let ending = boot::watch(qemu, built, |line| match reader.read(line) {
        Step::Whole(experiment) => found.push(experiment),
        Step::Progress(done, of) => progress(done, of),
        Step::Part | Step::Other => {}
    });
    found.extend(reader.take_open());
    match ending {
        Ok(()) => Ok(found),
        // The guest says with its end what each of them says, too.
        Err(Error::Guest(_)) if found.iter().any(|one| matches!(one.end, End::Failed(_))) => Ok(found),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
