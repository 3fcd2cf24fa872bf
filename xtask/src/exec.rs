//! `exec`: a static Linux program, run by the kernel in ring 3.
//!
//! The program, its arguments and its environment go into the boot archive, behind the kernel. What it writes to its console
//! comes out here as it is; `@exit status=` or `@exit signal=` says how it ended, and the runner ends the same way.

use crate::boot;
use crate::build::Built;
use crate::cli::{Defaults, MachineArgs};
use crate::cpio;
use crate::error::{Error, at};
use crate::qemu::{Ending, GuestCommand};
use crate::size::Size;
use crate::symbolize::Symbolizer;
use ktest::exit::Exit;
use ktest::wire::Record;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

/// Options of `exec`.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// A static x86-64 Linux program
    program: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
    /// A variable of its environment (repeatable)
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
}

/// The boot archive of one run; deleted with it.
struct Archive(PathBuf);

impl Archive {
    fn new(built: &Built, args: &ExecArgs) -> Result<Self, Error> {
        let program = fs::read(&args.program).map_err(at(&args.program))?;
        let kernel = fs::read(&built.archive).map_err(at(&built.archive))?;
        let name = args.program.display().to_string();
        let arguments = texts(std::iter::once(&name).chain(&args.args));
        let environment = texts(&args.env);
        let files: [(&str, &[u8]); 3] =
            [("exec/program", &program), ("exec/arguments", &arguments), ("exec/environment", &environment)];
        let path = built.archive.with_extension(format!("{}.cpio", std::process::id()));
        fs::write(&path, cpio::extended(&kernel, files)).map_err(at(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // Nothing depends on it; the next build cleans up.
        let _ = fs::remove_file(&self.0);
    }
}

/// Each text, ended by a zero byte.
fn texts<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<u8> {
    texts.into_iter().flat_map(|text| [text.as_bytes(), b"\0"].concat()).collect()
}

/// Runs the program; the status to end with.
pub(crate) fn run(args: &ExecArgs, machine: &MachineArgs) -> Result<(), Error> {
    let defaults = Defaults {
        memory: Size::mib(2048),
        device_size: Size::mib(512),
        icount: true,
        timeout_secs: Some(600),
    };
    let qemu = machine.qemu(&defaults, GuestCommand::run("exec"))?;
    let mut built = machine.prepare(&qemu)?;
    let archive = Archive::new(&built, args)?;
    built.archive = archive.0.clone();
    let mut symbolizer = Symbolizer::new(&built.kernel);
    let mut run = qemu.spawn(&built)?;
    let mut out = std::io::stdout().lock();
    let mut status = None;
    while let Some(line) = run.next_line() {
        match end(&line.text) {
            Some(end) => status = Some(end),
            None => {
                for line in symbolizer.expand(&line.text) {
                    writeln!(out, "{line}")?;
                }
            }
        }
    }
    match (run.finish(), status) {
        (Ending::Exit(Exit::Success), Some(0)) => Ok(()),
        (Ending::Exit(Exit::Success), Some(status)) => Err(Error::Program(status)),
        (ending, _) => boot::verdict(ending),
    }
}

/// What a shell would call the end of the program.
fn end(line: &str) -> Option<u8> {
    let record = Record::parse(line).filter(|record| record.kind() == "exit")?;
    let number = |key| record.u64(key).and_then(|number| u8::try_from(number).ok());
    number("status").or_else(|| number("signal").map(|signal| signal.wrapping_add(128)))
}
