//! The command line.

use crate::build::{self, Built};
use crate::error::Error;
use crate::qemu::{Accel, Device, GuestCommand, Qemu, QmpPlace};
use crate::size::Size;
use crate::{bench, boot, exec, gdb, install, lab, report, shell, tour, trace};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use ktest::monitor::Setting;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// farpage: a bare-metal kernel whose huge pages move to a PCI device's memory and come back by page fault.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo run --", disable_help_flag = true, disable_help_subcommand = true)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    /// Print help
    // The short form for --help too: one line for each option, on one screen.
    #[arg(short, long, global = true, action = ArgAction::HelpShort)]
    help: Option<bool>,
    #[command(subcommand)]
    command: Option<Task>,
    #[command(flatten)]
    machine: MachineArgs,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Show how huge pages migrate, fault back and split (the default)
    Tour,
    /// Measure migration, faults and splits
    Bench(bench::BenchArgs),
    /// Do experiments: all of them, or some by name
    Exp(lab::ExpArgs),
    /// Do everything that measures, and write it as one page with plots
    Report(report::ReportArgs),
    /// Type commands to the kernel: map, migrate, touch, look
    #[command(after_help = shell::commands())]
    Shell(shell::ShellArgs),
    /// Do commands of the shell, and record what the memory manager does and when
    #[command(after_help = trace::EXAMPLE)]
    Trace(trace::TraceArgs),
    /// Run a static Linux program in ring 3
    Exec(exec::ExecArgs),
    /// Run the tests, on the host and in the kernel (`cargo test`)
    Test(TestArgs),
    /// Start the kernel and wait for gdb
    Gdb(gdb::GdbArgs),
    /// Boot the kernel with a command line of your own and show its console
    Boot(boot::BootArgs),
}

#[derive(Debug, Args)]
struct TestArgs {
    /// Run tests whose names contain this
    filter: Vec<String>,
    /// Options for the test harness, after `--`
    #[arg(last = true)]
    harness: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  cargo run                                 the tour
  cargo run -- tour --memory 5G --device-size 1G
  cargo run -- bench --filter fault --json  rows about faults, for a program
  cargo run -- shell                        an address space to play with; help lists the commands
  cargo run -- test migrate                 the tests with `migrate` in their names
  cargo run -- boot run=test log=debug      the in-kernel tests, console and all";

/// As many devices as the kernel has numbers for; it would pass over others without a word.
const MAX_DEVICES: u32 = 4;

/// How much the guest logs.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// What machine to start.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// RAM, like 256M or 3G [default: 256M; exp: 1G; bench, exec: 2G]
    #[arg(long, global = true, value_name = "SIZE")]
    memory: Option<Size>,
    /// Number of CPUs [default: 1]
    #[arg(long, global = true, value_name = "N", default_value_t = 1, hide_default_value = true)]
    cpus: u32,
    /// Memory of each device, a power of two [default: 64M; exp: 256M; bench, exec: 512M]
    #[arg(long, global = true, value_name = "SIZE")]
    device_size: Option<Size>,
    /// Number of devices, 0 to 4 [default: 1; exec: 4, of which 2 and 3 are coherent]
    #[arg(long, global = true, value_name = "N")]
    device_count: Option<u32>,
    /// Keep the device's memory in this file, where other programs see it
    #[arg(long, global = true, value_name = "PATH")]
    device_file: Option<PathBuf>,
    /// A machine without a device
    #[arg(long, global = true, conflicts_with_all = ["device_size", "device_count", "device_file"])]
    no_device: bool,
    /// QEMU's translator, or the host's own CPU [default: tcg]
    #[arg(long, global = true, value_enum, value_name = "tcg|kvm", default_value = "tcg")]
    #[arg(hide_default_value = true, hide_possible_values = true)]
    accel: Accel,
    /// Count instructions: exact and repeatable [default with tcg, except with --wall]
    #[arg(long, global = true)]
    icount: bool,
    /// Do not count instructions
    #[arg(long, global = true, conflicts_with = "icount")]
    no_icount: bool,
    /// How much the kernel logs: off, error, warn, info, debug, trace [default: warn]
    #[arg(long, global = true, value_enum, value_name = "LEVEL", default_value = "warn")]
    #[arg(hide_default_value = true, hide_possible_values = true)]
    log: LogLevel,
    /// Stop the machine after this long [default: 60; bench, exp: 600; gdb, typed shell: never]
    #[arg(long, global = true, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// Open QEMU's monitor (QMP) at this Unix socket or loopback port
    #[arg(long, global = true, value_name = "PATH|PORT")]
    qmp: Option<QmpPlace>,
    /// Turn a knob, like granule=64K (repeatable; set in the shell lists them)
    #[arg(long, global = true, value_name = "KNOB=VALUE", value_parser = setting)]
    set: Vec<String>,
    /// A further argument for QEMU (repeatable)
    #[arg(long, global = true, value_name = "ARG", allow_hyphen_values = true)]
    qemu_arg: Vec<String>,
    /// Show QEMU's command line before it runs
    #[arg(long, global = true)]
    print_qemu: bool,
}

/// What `--set` takes.
fn setting(text: &str) -> Result<String, String> {
    Setting::read(text).map(|_| text.to_string()).map_err(|error| error.to_string())
}

/// What a command wants where the user has not said.
pub(crate) struct Defaults {
    pub(crate) memory: Size,
    pub(crate) device_size: Size,
    pub(crate) device_count: u32,
    pub(crate) icount: bool,
    pub(crate) timeout_secs: Option<u64>,
}

impl Defaults {
    pub(crate) const TOUR: Self = Self {
        memory: Size::mib(256),
        device_size: Size::mib(64),
        device_count: 1,
        icount: true,
        timeout_secs: Some(60),
    };
}

impl MachineArgs {
    /// Some knob is turned: what is measured is not what it is otherwise.
    pub(crate) fn is_set(&self) -> bool {
        !self.set.is_empty()
    }

    /// How they stand, as they were given.
    pub(crate) fn settings(&self) -> &[String] {
        &self.set
    }

    /// An option that names something of which there is one, where machines run side by side.
    pub(crate) fn shared(&self) -> Option<&'static str> {
        let file = self.device_file.as_ref().map(|_| "--device-file");
        file.or(self.qmp.as_ref().map(|_| "--qmp"))
    }

    /// What is unsafe is refused where results are to be believed.
    pub(crate) fn check_settings(&self, what: &str) -> Result<(), Error> {
        for text in &self.set {
            let checked = Setting::read(text).and_then(|setting| setting.check_for(what));
            checked.map_err(|error| Error::Setting(error.to_string()))?;
        }
        Ok(())
    }

    /// Adds what the knobs are set to.
    fn with_settings(&self, command: GuestCommand) -> Result<GuestCommand, Error> {
        self.check_settings(command.what())?;
        Ok(self.set.iter().fold(command, |command, text| command.with("set", text)))
    }

    /// The machine that was asked for, to run this command.
    pub(crate) fn qemu(&self, defaults: &Defaults, command: GuestCommand) -> Result<Qemu, Error> {
        let count = if self.no_device { 0 } else { self.device_count.unwrap_or(defaults.device_count) };
        if count > MAX_DEVICES {
            return Err(Error::Devices(count));
        }
        if self.device_file.is_some() && count != 1 {
            return Err(Error::DeviceFile(count));
        }
        let size = self.device_size.unwrap_or(defaults.device_size);
        let device = Device { size, file: self.device_file.clone() };
        let icount = self.icount || (defaults.icount && !self.no_icount && self.accel == Accel::Tcg);
        let log = self.log.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default();
        let qemu = Qemu {
            memory: self.memory.unwrap_or(defaults.memory),
            cpus: self.cpus,
            accel: self.accel,
            icount,
            devices: vec![device; count as usize],
            qmp: self.qmp.clone(),
            command: self.with_settings(command.with("log", log).with("icount", u8::from(icount)))?,
            extra: self.qemu_arg.clone(),
            timeout: self.timeout.or(defaults.timeout_secs).map(Duration::from_secs),
            ..Qemu::default()
        };
        qemu.check()?;
        Ok(qemu)
    }

    /// What every command does before its machine starts: QEMU is there, the kernel is built.
    pub(crate) fn prepare(&self, qemu: &Qemu) -> Result<Built, Error> {
        install::ensure_qemu()?;
        let built = build::kernel()?;
        if self.print_qemu {
            eprintln!("{}", qemu.shell_line(&built));
        }
        if let Some(place) = &qemu.qmp {
            eprintln!("QEMU's monitor: {}; say {{\"execute\": \"qmp_capabilities\"}} first", place.client());
        }
        Ok(built)
    }
}

/// Does what the command line says.
///
/// # Errors
/// Whatever stands in the way, as one sentence.
pub fn run(cli: Cli) -> Result<(), Error> {
    let machine = &cli.machine;
    match cli.command.unwrap_or(Task::Tour) {
        Task::Tour => tour::run(machine),
        Task::Bench(args) => bench::run(&args, machine),
        Task::Exp(args) => lab::run(&args, machine),
        Task::Report(args) => report::run(&args, machine),
        Task::Exec(args) => exec::run(&args, machine),
        Task::Shell(args) => shell::run(&args, machine),
        Task::Trace(args) => trace::run(&args, machine),
        Task::Test(_) if machine.is_set() => Err(Error::TestsSet),
        Task::Test(args) => test(&args),
        Task::Gdb(args) => gdb::run(&args, machine),
        Task::Boot(args) => boot::run(&args, machine),
    }
}

/// `cargo test`, with the filter passed on.
fn test(args: &TestArgs) -> Result<(), Error> {
    // With the user's own flags and places: this is the command they could have typed.
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg("test").current_dir(build::root()).arg("--").args(&args.filter).args(&args.harness);
    let status = cargo.status().map_err(|source| Error::Cargo("cargo".into(), source))?;
    if status.success() { Ok(()) } else { Err(Error::Tests) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, String> {
        Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())
    }

    fn machine(line: &str) -> Result<Qemu, Error> {
        parse(line).unwrap().machine.qemu(&Defaults::TOUR, GuestCommand::run("tour"))
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn without_a_command_the_tour_runs_on_the_default_machine() {
        assert!(parse("x").unwrap().command.is_none());
        let command = GuestCommand::run("tour").with("log", "warn").with("icount", 1);
        assert_eq!(machine("x").unwrap(), Qemu { command, ..Qemu::default() });
    }

    #[test]
    fn options_stand_before_or_behind_the_command() {
        assert_eq!(machine("x --memory 3G tour").unwrap().memory, Size::mib(3072));
        assert_eq!(machine("x tour --memory 3G").unwrap().memory, Size::mib(3072));
    }

    #[test]
    fn devices_are_counted_sized_and_left_out() {
        let two = machine("x --device-count 2 --device-size 4M").unwrap();
        assert_eq!(two.devices, vec![Device::new(Size::mib(4)); 2]);
        assert!(machine("x --no-device").unwrap().devices.is_empty());
        assert_eq!(machine("x --device-count 4").unwrap().devices.len(), 4);
        assert!(matches!(machine("x --device-count 5"), Err(Error::Devices(5))));
        assert!(matches!(machine("x --device-count 2 --device-file f"), Err(Error::DeviceFile(2))));
        assert!(matches!(machine("x --device-size 3M"), Err(Error::DeviceSize(_))));
    }

    #[test]
    fn instructions_are_counted_unless_told_otherwise() {
        assert!(machine("x").unwrap().icount);
        assert!(!machine("x --no-icount").unwrap().icount);
        assert!(matches!(machine("x --accel kvm --icount"), Err(Error::IcountNeedsTcg)));
        assert!(parse("x --icount --no-icount").is_err());
    }

    #[test]
    fn knobs_become_words_for_the_guest() {
        let qemu = machine("x --set granule=64K --set fail-plan=table:0:1").unwrap();
        let words = "run=tour log=warn icount=1 set=granule=64K set=fail-plan=table:0:1";
        assert_eq!((qemu.command.as_str(), qemu.command.what()), (words, "tour"));
        assert!(parse("x --set granule=5K").unwrap_err().contains("it is 4K, 64K or 2M"));
        assert!(parse("x --set granul=4K").unwrap_err().contains("did you mean granule?"));
    }

    #[test]
    fn unsafe_knobs_are_for_experiments() {
        let unsafe_one = parse("x --set break-before-make=off").unwrap().machine;
        let on = |command| unsafe_one.qemu(&Defaults::TOUR, command);
        for what in ["tour", "bench", "gdb", "test"] {
            let refused = on(GuestCommand::run(what)).expect_err(what).to_string();
            assert!(refused.contains("for experiments only") && refused.contains(what), "{refused}");
        }
        assert!(on(GuestCommand::words(&["log=info".into()])).is_err(), "the kernel's default is the tour");
        assert!(on(GuestCommand::run("shell")).is_ok() && on(GuestCommand::run("exp")).is_ok());
        let report = parse("x report --set break-before-make=off").unwrap();
        assert!(matches!(run(report), Err(Error::Setting(why)) if why.contains("report does not")));
        let cli = parse("x test --set granule=4K").unwrap();
        assert!(matches!(run(cli), Err(Error::TestsSet)));
    }

    #[test]
    fn wrong_input_names_what_is_wrong() {
        assert!(parse("x frobnicate").unwrap_err().contains("frobnicate"));
        assert!(parse("x --memory lots").unwrap_err().contains("like 64M"));
        assert!(parse("x --timeout 0").unwrap_err().contains("--timeout"));
        assert!(parse("x --log loud").unwrap_err().contains("debug"));
    }

    #[test]
    fn a_shell_has_one_source_of_commands() {
        assert!(parse("x shell -c audit --keep-going --device-count 2 --coherent 1").is_ok());
        assert!(parse("x shell --script f --memory 1G").is_ok());
        assert!(parse("x shell -c audit --script f").is_err());
        assert!(parse("x shell --coherent").is_err());
    }

    #[test]
    fn qemu_arguments_may_look_like_options() {
        let qemu = machine("x --qemu-arg -d --qemu-arg int").unwrap();
        assert_eq!(qemu.extra, ["-d", "int"]);
    }
}
