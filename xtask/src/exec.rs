//! `exec`: a static Linux program, run by the kernel in ring 3.
//!
//! The program, its arguments, its environment and the files that it is given go into the boot archive, behind the kernel. What it
//! writes comes out here as it is, and what is typed or piped goes to it; what the kernel has to say goes to standard error.
//! `@exit status=` or `@exit signal=` says how it ended, and the runner ends the same way.

mod archive;
mod input;
#[cfg(test)]
mod tests;

use crate::boot;
use crate::cli::{Defaults, MachineArgs};
use crate::error::Error;
use crate::qemu::{self, Ending, GuestCommand, Qemu, Run};
use crate::size::Size;
use crate::symbolize::Symbolizer;
use archive::Archive;
use ktest::exit::Exit;
use ktest::wire::Record;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

/// Options of `exec`.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// A static x86-64 Linux program; a name without a slash may be one of ours, of programs/
    program: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
    /// A variable of its environment (repeatable)
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A file that the program finds under another name, like data.txt:/tmp/data (repeatable)
    #[arg(long, value_name = "HOST:GUEST", value_parser = archive::GuestFile::read)]
    file: Vec<archive::GuestFile>,
}

impl ExecArgs {
    /// One of our programs, with arguments.
    pub(crate) fn of(program: &str, args: Vec<String>) -> Self {
        Self { program: program.into(), args, env: Vec::new(), file: Vec::new() }
    }
}

/// The machine, where nothing else is asked for.
const DEFAULTS: Defaults = Defaults {
    memory: Size::mib(2048),
    device_size: Size::mib(512),
    device_count: 4,
    icount: true,
    timeout_secs: Some(600),
};

/// Runs a program that sends records, and gives each line of its console to `look`.
pub(crate) fn watch(args: &ExecArgs, machine: &MachineArgs, mut look: impl FnMut(&str)) -> Result<(), Error> {
    let qemu = machine.qemu(&DEFAULTS, GuestCommand::run("exec").with("coherent", "2,3"))?;
    let files = archive::read(args, qemu.memory)?;
    let mut built = machine.prepare(&qemu)?;
    let archive = Archive::write(&built, &files)?;
    built.archive = archive.path().to_path_buf();
    let mut end = None;
    boot::watch(&qemu, &built, |line| match last_word(format!("{line}\n").as_bytes()) {
        Some((_, status)) => end = Some(status),
        None => look(line),
    })?;
    match end {
        Some(0) => Ok(()),
        Some(status) => Err(Error::Program(status)),
        None => Err(Error::NoEnd),
    }
}

/// Runs the program; the status to end with.
pub(crate) fn run(args: &ExecArgs, machine: &MachineArgs) -> Result<(), Error> {
    let input = input::is_there();
    // Nobody is cut off who types.
    let timeout_secs = if io::stdin().is_terminal() { None } else { DEFAULTS.timeout_secs };
    let defaults = Defaults { timeout_secs, ..DEFAULTS };
    let command = GuestCommand::run("exec").with("coherent", "2,3").with("stdin", u8::from(input));
    let qemu = Qemu { input, pieces: true, ..machine.qemu(&defaults, command)? };
    let files = archive::read(args, qemu.memory)?;
    let mut built = machine.prepare(&qemu)?;
    let archive = Archive::write(&built, &files)?;
    built.archive = archive.path().to_path_buf();
    let mut run = qemu.spawn(&built)?;
    if let Some(to) = run.take_input() {
        input::pass_on(to);
    }
    let end = pass_out(&mut run, &mut Symbolizer::new(&built.kernel))?;
    match (run.finish(), end) {
        (Ending::Exit(Exit::Success), Some(0)) => Ok(()),
        (Ending::Exit(Exit::Success), Some(status)) => Err(Error::Program(status)),
        (Ending::Exit(Exit::Success), None) => Err(Error::NoEnd),
        (ending, _) => boot::verdict(ending),
    }
}

/// Passes the console out until it ends; how the program ended, if it did.
fn pass_out(run: &mut Run, symbolizer: &mut Symbolizer) -> Result<Option<u8>, Error> {
    let mut out = io::stdout().lock();
    let mut begins_line = true;
    // What may have been the last word of all.
    let mut last: Option<(u8, Vec<u8>)> = None;
    while let Some(line) = run.next_line() {
        if let Some((_, bytes)) = last.take() {
            out.write_all(&bytes)?;
        }
        let is_whole = begins_line && line.bytes.ends_with(b"\n");
        begins_line = line.bytes.ends_with(b"\n");
        if let Some((programs, end)) = last_word(&line.bytes) {
            out.write_all(programs)?;
            last = Some((end, line.bytes[programs.len()..].to_vec()));
        } else if is_whole && is_kernels(&line.text) {
            out.flush()?;
            symbolizer.expand(&line.text).iter().for_each(|line| eprintln!("{line}"));
        } else {
            out.write_all(&line.bytes)?;
            out.flush()?;
        }
    }
    out.flush()?;
    Ok(last.map(|(end, _)| end))
}

/// What stands before the kernel's last word, and what a shell would call the end that it tells of.
fn last_word(line: &[u8]) -> Option<(&[u8], u8)> {
    let at = line.iter().rposition(|byte| *byte == qemu::LAST_WORD)?;
    let record = std::str::from_utf8(&line[at + 1..]).ok()?;
    let record = Record::parse(record.trim_end()).filter(|record| record.kind() == "exit")?;
    let number = |key| record.u64(key).and_then(|number| u8::try_from(number).ok());
    let end = number("status").or_else(|| number("signal").map(|signal| signal.wrapping_add(128)))?;
    Some((&line[..at], end))
}

/// Is a whole line the kernel's: a message of its log, or a place of a backtrace?
fn is_kernels(line: &str) -> bool {
    qemu::KERNELS.iter().any(|start| line.starts_with(start))
}
