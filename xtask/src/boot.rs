//! `boot`: the kernel with a command line of one's own, and its console as it comes.

use crate::build::Built;
use crate::cli::{Defaults, MachineArgs};
use crate::error::Error;
use crate::qemu::{Ending, GuestCommand, LAST_WORD, Qemu, Run};
use crate::symbolize::Symbolizer;
use ktest::exit::Exit;
use std::io::Write;

/// Options of `boot`.
#[derive(Debug, clap::Args)]
pub struct BootArgs {
    /// The kernel's command line, like `run=test filter=trap`
    #[arg(value_name = "KEY=VALUE")]
    words: Vec<String>,
}

/// Boots and shows.
pub(crate) fn run(args: &BootArgs, machine: &MachineArgs) -> Result<(), Error> {
    let qemu = machine.qemu(&Defaults::TOUR, GuestCommand::words(&args.words))?;
    let built = machine.prepare(&qemu)?;
    let mut symbolizer = Symbolizer::new(&built.kernel);
    show(qemu.spawn(&built)?, &mut symbolizer)
}

/// Passes the console through until the machine ends.
pub(crate) fn show(mut run: Run, symbolizer: &mut Symbolizer) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    while let Some(line) = run.next_line() {
        for line in symbolizer.expand(&line.text) {
            writeln!(out, "{line}")?;
        }
    }
    verdict(run.finish())
}

/// Runs a machine that sends records, and gives each line of its console to `look`. What is no record is passed on to the person:
/// at a good end to standard error, never in the middle of a document, else all of it, with names for addresses.
pub(crate) fn watch(qemu: &Qemu, built: &Built, mut look: impl FnMut(&str)) -> Result<(), Error> {
    let mut run = qemu.spawn(built)?;
    let mut console = Vec::new();
    while let Some(line) = run.next_line() {
        look(&line.text);
        console.push(line.text);
    }
    let ending = run.finish();
    if ending == Ending::Exit(Exit::Success) {
        for line in
            console.iter().filter(|line| !line.is_empty() && !line.starts_with(['@', LAST_WORD.into()]))
        {
            eprintln!("{line}");
        }
        return Ok(());
    }
    let mut symbolizer = Symbolizer::new(&built.kernel);
    for line in console.iter().flat_map(|line| symbolizer.expand(line)) {
        eprintln!("{line}");
    }
    verdict(ending)
}

/// Only the guest's own word is success.
pub(crate) fn verdict(ending: Ending) -> Result<(), Error> {
    match ending {
        Ending::Exit(Exit::Success) => Ok(()),
        other => Err(Error::Guest(other)),
    }
}
