//! `shell`: commands for a running kernel, typed or from a script.
//!
//! The host knows no command: what there is stands in [`ktest::monitor`], and every line goes to the guest as it is. The guest
//! answers with text and one record, `@ready n= ok= space= insns= bulk=`, which ends the answer and says whether the command was
//! done, which address space is loaded, and what the operation cost.

mod script;
mod typed;

pub(crate) use script::{Obeyed, Script};

use crate::cli::{Defaults, MachineArgs};
use crate::error::Error;
use crate::lab::data::{Reader, Step};
use crate::lab::show;
use crate::qemu::{Ending, GuestCommand, Qemu, Run};
use crate::symbolize::Symbolizer;
use crate::table::{Frame, grouped};
use crate::{tour, trace};
use console::style;
use ktest::exit::Exit;
use ktest::monitor::{COMMANDS, READY};
use ktest::wire::Record;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

/// Options of `shell`.
#[derive(Debug, clap::Args)]
pub struct ShellArgs {
    /// Do these commands, separated by `;`, and end
    #[arg(short, long, value_name = "COMMANDS", conflicts_with = "script")]
    command: Option<String>,
    /// Do the commands of this file, one a line, and end; so are those of a pipe
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Go on after a command that fails; the exit status tells of it all the same
    #[arg(long)]
    keep_going: bool,
    /// Numbers of the devices whose memory CPUs map where it lies, like 2,3
    #[arg(long, value_name = "LIST", value_parser = crate::bench::one_word)]
    coherent: Option<String>,
}

/// The commands, for `--help`.
pub(crate) fn commands() -> String {
    let mut text = String::from("Commands:\n");
    for spec in COMMANDS {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {:<46} {}", spec.usage().to_string(), spec.help);
    }
    text
}

/// Starts the machine, and does what is typed or what the script says.
pub(crate) fn run(args: &ShellArgs, machine: &MachineArgs) -> Result<(), Error> {
    let script = match (&args.command, &args.script) {
        (Some(commands), _) => Some(Script::of_text("-c", commands)),
        (None, Some(path)) => Some(Script::of_file(path)?),
        (None, None) if io::stdin().is_terminal() && io::stdout().is_terminal() => None,
        (None, None) => Some(Script::of_input()),
    };
    let mut out = io::stdout();
    let Some(session) = Session::start(args.coherent.as_deref(), script.is_some(), machine, &mut out)? else {
        return Ok(());
    };
    match script {
        Some(script) => script::run(session, script, args.keep_going, &mut out),
        None => typed::run(session, &mut out),
    }
}

/// A machine that waits for commands.
pub(crate) struct Session {
    run: Run,
    symbolizer: Symbolizer,
    /// The guest's clock counts instructions.
    counted: bool,
    /// Puts together what an experiment sends.
    experiments: Reader,
    /// The address space that is loaded.
    space: u64,
    /// What has come of a trace.
    pub(crate) trace: trace::Reader,
}

impl Session {
    /// Starts a machine and waits until it takes commands; `None` if it ended before, and well. One that is sent a script has to
    /// be done with it in a minute, unless the user says otherwise.
    pub(crate) fn start(
        coherent: Option<&str>,
        scripted: bool,
        machine: &MachineArgs,
        out: &mut impl Write,
    ) -> Result<Option<Self>, Error> {
        let mut command = GuestCommand::run("shell");
        if let Some(coherent) = coherent {
            command = command.with("coherent", coherent);
        }
        let timeout_secs = scripted.then_some(60);
        let qemu = machine.qemu(&Defaults { timeout_secs, ..Defaults::TOUR }, command)?;
        let qemu = Qemu { input: true, ..qemu };
        let built = machine.prepare(&qemu)?;
        let mut session = Self {
            run: qemu.spawn(&built)?,
            symbolizer: Symbolizer::new(&built.kernel),
            counted: qemu.icount,
            space: 0,
            experiments: Reader::new(qemu.icount),
            trace: trace::Reader::default(),
        };
        match session.answer(out)? {
            Some(_) => Ok(Some(session)),
            None => session.end().map(|()| None),
        }
    }

    fn prompt(&self) -> String {
        format!("farpage:{}> ", self.space)
    }

    /// Sends a command and shows the answer; whether it was done, or `None` if the machine has ended.
    pub(crate) fn ask(&mut self, command: &str, out: &mut impl Write) -> Result<Option<bool>, Error> {
        // A machine that is gone takes nothing; its console says why, and ends.
        let _ = self.run.send(command);
        self.answer(out)
    }

    fn answer(&mut self, out: &mut impl Write) -> Result<Option<bool>, Error> {
        while let Some(line) = self.run.next_line() {
            if let Some(record) = Record::parse(&line.text).filter(|record| record.kind() == READY) {
                self.space = record.u64("space").unwrap_or(0);
                if let Some(ticks) = record.u64("insns") {
                    writeln!(out, "{}", cost(self.counted, ticks, record.u64("bulk").unwrap_or(0)))?;
                }
                out.flush()?;
                return Ok(Some(record.u64("ok") == Some(1)));
            }
            match self.experiments.read(&line.text) {
                Step::Whole(experiment) => {
                    for line in show::lines(&experiment, Frame::Plain) {
                        writeln!(out, "    {line}")?;
                    }
                    continue;
                }
                Step::Part => continue,
                Step::Progress(..) | Step::Other => {}
            }
            if self.trace.take_line(&line.text) {
                continue;
            }
            if let Some(row) = measured(&line.text) {
                writeln!(out, "    {row}")?;
                continue;
            }
            // A report says the same in words.
            if line.text.starts_with("@panic ") || line.text.starts_with("@fault ") {
                continue;
            }
            for line in self.symbolizer.expand(&line.text) {
                writeln!(out, "{}", shown(&line))?;
            }
        }
        Ok(None)
    }

    /// Ends the machine.
    pub(crate) fn exit(mut self, out: &mut impl Write) -> Result<(), Error> {
        self.ask("exit", out)?;
        self.end()
    }

    /// The machine has ended: well only if it was told to.
    pub(crate) fn end(self) -> Result<(), Error> {
        match self.run.finish() {
            Ending::Exit(Exit::Success) => Ok(()),
            ending @ Ending::Exit(Exit::Failed) => Err(Error::Guest(ending)),
            ending => Err(Error::Gone(ending)),
        }
    }
}

/// A row of `bench`, for one operation.
fn measured(line: &str) -> Option<String> {
    let row = Record::parse(line).filter(|record| record.kind() == "bench")?;
    let each = |sum: u64| grouped(sum / row.u64("n").unwrap_or(1).max(1));
    let (total, bulk) = (row.u64("total")?, row.u64("bulk")?);
    Some(format!(
        "{:<52}{:>12}, {:>9} beyond the data",
        row.get("name")?,
        each(total),
        each(total.saturating_sub(bulk))
    ))
}

fn cost(counted: bool, ticks: u64, bulk: u64) -> String {
    style(format!("    {}", tour::cost(counted, ticks, bulk, "data moved or cleared"))).cyan().to_string()
}

fn shown(line: &str) -> String {
    match line.strip_prefix("error: ") {
        Some(why) => format!("    {} {why}", style("error:").red().bold()),
        None => tour::text(line),
    }
}

#[cfg(test)]
mod tests;
