//! `boot`: the kernel with a command line of one's own, and its console as it comes.

use crate::cli::{Defaults, MachineArgs};
use crate::error::Error;
use crate::qemu::{Ending, GuestCommand, Run};
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

/// Only the guest's own word is success.
pub(crate) fn verdict(ending: Ending) -> Result<(), Error> {
    match ending {
        Ending::Exit(Exit::Success) => Ok(()),
        other => Err(Error::Guest(other)),
    }
}
