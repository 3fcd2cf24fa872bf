//! `trace`: commands as for `shell`, with the kernel's trace on; its records become a file for Perfetto and a short table.
//!
//! Who wants the records themselves, for a plot say, calls [`record`] and gets a [`Trace`]: all records in the order of their ends,
//! each a [`TraceRecord`] with its kind, its beginning and its end in ticks, address, order, place and outcome, and the phases that
//! it went through, each with its beginning and its end. [`Trace::by_phase`] adds up where the ticks of one kind went;
//! [`Trace::latencies`] are how long each took, sorted.
//!
//! ```text
//! let trace = xtask::trace::record("map ...; migrate ...; touch ...", Level::Units, 1 << 14, &machine)?;
//! for (phase, ticks) in trace.by_phase("fault") { ... }       // stacked bars
//! let ticks = trace.latencies("fault");                       // a distribution
//! ```
//!
//! A tick is an instruction of the guest while QEMU counts them ([`Trace::counted`]), else one of the time-stamp counter. Kinds,
//! phases and outcomes have the names that the kernel sends ([`ktest::trace`]): nothing here knows what they mean, but for a few
//! that the export nests ([`chrome`]).

mod chrome;
mod nesting;
mod read;
#[cfg(test)]
mod tests;

use crate::cli::MachineArgs;
use crate::error::{Error, at};
use crate::shell::{Obeyed, Script, Session};
use crate::table::{Align, Frame, Table, grouped, percent};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

pub use chrome::chrome;
pub use nesting::check_nesting;
pub(crate) use read::Reader;

/// For `--help`.
pub(crate) const EXAMPLE: &str = "\
Example:
  cargo run -- trace -o trace.json \"map 0x10_0000_0000 2M rw nohuge; fill 0x10_0000_0000 2M;
      migrate 0x10_0000_0000 2M dev0; touch 0x10_0000_0000 2M\"";

/// Options of `trace`.
#[derive(Debug, clap::Args)]
pub struct TraceArgs {
    /// The commands, separated by `;`, as for `shell -c`
    #[arg(value_name = "COMMANDS", required_unless_present = "script")]
    commands: Option<String>,
    /// Do the commands of this file, one a line
    #[arg(long, value_name = "FILE", conflicts_with = "commands")]
    script: Option<PathBuf>,
    /// Where the trace goes: open it in ui.perfetto.dev or chrome://tracing
    #[arg(short, long, value_name = "FILE", default_value = "trace.json")]
    output: PathBuf,
    /// 1: faults, batches and units of migrations, with their phases; 2: single steps too
    #[arg(
        long,
        value_name = "1|2",
        default_value = "1",
        hide_default_value = true,
        hide_possible_values = true
    )]
    level: Level,
    /// Records that the kernel's ring keeps: the last ones
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u64).range(2..=65_536))]
    buffer: u64,
    /// Numbers of the devices whose memory CPUs map where it lies, like 2,3
    #[arg(long, value_name = "LIST", value_parser = crate::bench::one_word)]
    coherent: Option<String>,
}

/// How much is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// Faults, batches and units of migrations, one record each.
    #[value(name = "1")]
    Units,
    /// Single steps too.
    #[value(name = "2")]
    Steps,
}

/// All that was recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// The records, in the order of their ends.
    pub records: Vec<TraceRecord>,
    /// How many there were before those, and were overwritten.
    pub lost: u64,
    /// A tick is an instruction of the guest.
    pub counted: bool,
}

/// One thing that happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceRecord {
    /// What it is about: `fault`, `batch`, `unit`, or a step.
    pub kind: String,
    /// How it ended.
    pub outcome: String,
    /// When it began, in ticks.
    pub start: u64,
    /// When it ended.
    pub end: u64,
    /// What it went through, in order, without gaps from the beginning to the end. A step has one phase.
    pub phases: Vec<PhaseSpan>,
    /// The address; `None` where there is none.
    pub addr: Option<u64>,
    /// log2 of its 4 KiB pages.
    pub order: u8,
    /// Where the page was: `ram`, `dev0`, `coh2`.
    pub from: String,
    /// Where it is.
    pub to: String,
    /// The folio's first frame there, where the kind has one.
    pub frame: Option<u32>,
    /// What else the kind counts: units of a batch, pages of a flush.
    pub count: Option<u32>,
    /// The thread that did it.
    pub thread: u8,
}

/// A phase of a record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PhaseSpan {
    /// Its name.
    pub name: String,
    /// When it began, in ticks.
    pub begin: u64,
    /// When it ended.
    pub end: u64,
}

impl TraceRecord {
    /// How long it took.
    #[must_use]
    pub const fn ticks(&self) -> u64 {
        self.end - self.start
    }

    /// The phase of this name.
    #[must_use]
    pub fn phase(&self, name: &str) -> Option<&PhaseSpan> {
        self.phases.iter().find(|phase| phase.name == name)
    }
}

impl Trace {
    /// The records of a kind.
    pub fn of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a TraceRecord> {
        self.records.iter().filter(move |record| record.kind == kind)
    }

    /// Where the ticks of a kind went: its phases, in their order, and the sum of each.
    #[must_use]
    pub fn by_phase(&self, kind: &str) -> Vec<(String, u64)> {
        let mut sums: Vec<(String, u64)> = Vec::new();
        for record in self.of(kind) {
            let mut at = 0;
            for phase in &record.phases {
                let ticks = phase.end - phase.begin;
                match sums.iter().position(|(name, _)| *name == phase.name) {
                    Some(found) => {
                        sums[found].1 += ticks;
                        at = found + 1;
                    }
                    None => {
                        // Behind the phase that went before it in this record.
                        sums.insert(at, (phase.name.clone(), ticks));
                        at += 1;
                    }
                }
            }
        }
        sums
    }

    /// How long each of a kind took, in ticks, sorted.
    #[must_use]
    pub fn latencies(&self, kind: &str) -> Vec<u64> {
        let mut ticks: Vec<u64> = self.of(kind).map(TraceRecord::ticks).collect();
        ticks.sort_unstable();
        ticks
    }
}

/// Starts a machine, does the commands, and hands over what was recorded of them. Nothing is printed but what cargo says.
///
/// # Errors
/// The machine cannot be had, a command failed, or the machine is gone.
pub fn record(commands: &str, level: Level, buffer: u64, machine: &MachineArgs) -> Result<Trace, Error> {
    let script = Script::of_text("the commands", commands);
    let (trace, done) = record_to(script, level, buffer, None, machine, &mut io::sink())?;
    done.map(|()| trace)
}

/// The same, with the transcript shown; a command that fails does not take the trace with it.
fn record_to(
    script: Script,
    level: Level,
    buffer: u64,
    coherent: Option<&str>,
    machine: &MachineArgs,
    out: &mut impl Write,
) -> Result<(Trace, Result<(), Error>), Error> {
    let Some(mut session) = Session::start(coherent, true, machine, &mut io::sink())? else {
        return Err(Error::NoTrace);
    };
    let level = if level == Level::Units { 1 } else { 2 };
    // The machine's own word on why it cannot be.
    if session.ask(&format!("trace {level} {buffer}"), out)? != Some(true) {
        session.exit(out)?;
        return Err(Error::NoTrace);
    }
    let done = match session.obey(script, false, &mut 0, out)? {
        Obeyed::Stopped(error) => Err(error),
        Obeyed::All => Ok(()),
        Obeyed::Gone => {
            session.end()?;
            return Err(Error::NoTrace);
        }
    };
    session.ask("trace send", &mut io::sink())?;
    let trace = session.trace.take();
    session.exit(&mut io::sink())?;
    Ok((trace.ok_or(Error::NoTrace)?, done))
}

/// Does the commands, writes the file, and shows a table.
pub(crate) fn run(args: &TraceArgs, machine: &MachineArgs) -> Result<(), Error> {
    let script = match (&args.commands, &args.script) {
        (_, Some(path)) => Script::of_file(path)?,
        (commands, None) => Script::of_text("the commands", commands.as_deref().unwrap_or_default()),
    };
    let mut out = io::stdout();
    let (trace, done) =
        record_to(script, args.level, args.buffer, args.coherent.as_deref(), machine, &mut out)?;
    let file = std::fs::File::create(&args.output).map_err(at(&args.output))?;
    let mut file = io::BufWriter::new(file);
    serde_json::to_writer(&mut file, &chrome(&trace)).map_err(io::Error::from).map_err(at(&args.output))?;
    file.flush().map_err(at(&args.output))?;
    for line in table(&trace) {
        writeln!(out, "{line}")?;
    }
    writeln!(
        out,
        "{} records in {}{}",
        grouped(trace.records.len() as u64),
        args.output.display(),
        match trace.lost {
            0 => "; none was lost".into(),
            lost => format!("; {} before them were overwritten: --buffer N keeps more", grouped(lost)),
        }
    )?;
    done
}

/// What a batch has many of.
const UNIT: &str = "unit";

/// By kind and outcome: how many, how long, and where the time went.
fn table(trace: &Trace) -> Vec<String> {
    let unit = if trace.counted { "instructions" } else { "ticks" };
    let mut table = Table::new(&[
        ("record", Align::Left),
        ("n", Align::Right),
        (unit, Align::Right),
        ("each", Align::Right),
        ("by phase", Align::Left),
    ]);
    let mut kinds: BTreeMap<(usize, &str, &str), Vec<&TraceRecord>> = BTreeMap::new();
    let first = |kind: &str| trace.records.iter().position(|record| record.kind == kind).unwrap_or(0);
    for record in &trace.records {
        kinds.entry((first(&record.kind), &record.kind, &record.outcome)).or_default().push(record);
    }
    for ((_, kind, outcome), records) in kinds {
        let (n, sum) = (records.len() as u64, records.iter().map(|record| record.ticks()).sum::<u64>());
        if kind == UNIT {
            // Units of a batch go through its phases side by side: their times are the batch's, and do not add up.
            let cells = [&format!("{kind}, {outcome}"), &grouped(n), "in batches", "", ""];
            table.row(cells.map(str::to_owned).to_vec());
            continue;
        }
        let part = Trace { records: records.into_iter().cloned().collect(), ..Trace::default() };
        let mut phases = part.by_phase(kind);
        if phases.len() == 1 {
            phases.clear();
        }
        let shares: Vec<String> =
            phases.iter().map(|(name, ticks)| format!("{name} {}", percent(*ticks, sum))).collect();
        table.row(vec![
            format!("{kind}, {outcome}"),
            grouped(n),
            grouped(sum),
            grouped(sum / n.max(1)),
            shares.join(", "),
        ]);
    }
    table.lines(Frame::Plain)
}
