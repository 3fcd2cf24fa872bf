//! `gdb`: a machine that waits for a debugger, and the debugger if it is wanted.
//!
//! With `--run` the runner becomes gdb (`exec`), and QEMU stands in a process group of its own: so Ctrl-C stops the guest and
//! nothing else, as in any session of gdb's, and when gdb ends so does the machine.

use crate::boot;
use crate::build::{self, Built};
use crate::cli::{Defaults, MachineArgs};
use crate::error::Error;
use crate::install::is_in_path;
use crate::qemu::{GuestCommand, Qemu};
use crate::symbolize::Symbolizer;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// The debugger.
const PROGRAM: &str = "gdb";

/// Options of `gdb`.
#[derive(Debug, clap::Args)]
pub struct GdbArgs {
    /// Debug the in-kernel tests whose names contain this, instead of the tour
    #[arg(value_parser = crate::bench::one_word)]
    filter: Option<String>,
    /// Start gdb here, where it is installed
    #[arg(long)]
    run: bool,
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
    let words = words(&built, port);
    qemu.check()?;
    if args.run && is_in_path(PROGRAM) {
        return Err(become_gdb(&qemu, &built, &words));
    }
    if args.run {
        eprintln!("{PROGRAM} is not installed here; any gdb that knows x86-64 will do.");
    }
    let run = qemu.spawn(&built)?;
    let line: Vec<_> = words.iter().map(|word| crate::qemu::shell_quoted(word)).collect();
    eprintln!("The machine waits. In another terminal:\n");
    eprintln!("  {PROGRAM} {}\n", line.join(" "));
    boot::show(run, &mut Symbolizer::new(&built.kernel))
}

/// What gdb is told: the kernel's ELF, where the machine is, our commands, and where to stop first.
fn words(built: &Built, port: u16) -> Vec<String> {
    let kernel = built.kernel.display().to_string();
    let helper = build::root().join("xtask/gdb/farpage.py").display().to_string();
    let target = format!("target remote 127.0.0.1:{port}");
    [&kernel, "-ex", &target, "-x", &helper, "-ex", "break _start"].map(str::to_owned).to_vec()
}

/// Comes back only with the reason why it could not.
fn become_gdb(qemu: &Qemu, built: &Built, words: &[String]) -> Error {
    let mut machine = qemu.command_line(built);
    // The console goes to the terminal beside gdb; what is typed is gdb's alone, and so is Ctrl-C.
    machine.stdin(Stdio::null()).process_group(0);
    let mut machine = match machine.spawn() {
        Ok(machine) => machine,
        Err(error) => return Error::Spawn(crate::qemu::PROGRAM.into(), error),
    };
    let error = Command::new(PROGRAM).args(words).exec();
    // Both fail only if the machine has ended already.
    let _ = machine.kill();
    let _ = machine.wait();
    Error::Gdb(error)
}
