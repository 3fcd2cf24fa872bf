//! `gdb`: a machine that waits, and the line to type.

use crate::boot;
use crate::cli::{Defaults, MachineArgs};
use crate::error::Error;
use crate::qemu::GuestCommand;
use crate::symbolize::Symbolizer;
use std::net::TcpListener;

/// Options of `gdb`.
#[derive(Debug, clap::Args)]
pub struct GdbArgs {
    /// Debug the in-kernel tests whose names contain this, instead of the tour
    #[arg(value_parser = crate::bench::one_word)]
    filter: Option<String>,
}

/// Starts the machine stopped, on a port that is free.
pub(crate) fn run(args: &GdbArgs, machine: &MachineArgs) -> Result<(), Error> {
    let command = match &args.filter {
        Some(filter) => GuestCommand::run("test").with("filter", filter),
        None => GuestCommand::run("tour"),
    };
    let defaults = Defaults { icount: false, timeout_secs: None, ..Defaults::TOUR };
    let mut qemu = machine.qemu(&defaults, command)?;
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    qemu.gdb = Some(port);
    let built = machine.prepare(&qemu)?;
    let run = qemu.spawn(&built)?;
    eprintln!("The machine waits. In another terminal:\n");
    eprintln!("  gdb {} -ex 'target remote 127.0.0.1:{port}' -ex 'break _start'\n", built.kernel.display());
    boot::show(run, &mut Symbolizer::new(&built.kernel))
}
