//! What can go wrong on the host's side, each in one sentence.

use crate::size::Size;
use ktest::stream::Ending;
use std::io;
use std::path::{Path, PathBuf};

/// An error for the person at the prompt.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Cargo could not be started.
    #[error("could not start cargo ({0}): {1}")]
    Cargo(String, #[source] io::Error),
    /// The kernel, or a program for it, did not compile; cargo has said why.
    #[error("{0} could not be built: see cargo's output above")]
    Build(&'static str),
    /// Tests failed; the harness has said which.
    #[error("there were failing tests: see above")]
    Tests,
    /// A file that could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel's ELF could not be stripped or read.
    #[error("{}: not a usable ELF: {why}", path.display())]
    Elf {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// QEMU is not installed.
    #[error("QEMU (qemu-system-x86_64) is not installed; install it with: {command}")]
    NoQemu {
        /// The command that installs it.
        command: String,
    },
    /// QEMU is not installed, and there is no package manager that we know.
    #[error(
        "QEMU (qemu-system-x86_64) is not installed, and no known package manager was found; \
         install it from https://www.qemu.org/download/"
    )]
    NoPackageManager,
    /// The package manager failed.
    #[error("installing QEMU failed: `{command}` ended with {status}")]
    Install {
        /// The command.
        command: String,
        /// How it ended.
        status: String,
    },
    /// QEMU could not be started.
    #[error("could not start QEMU ({0}): {1}")]
    Spawn(String, #[source] io::Error),
    /// The debugger could not be started.
    #[error("could not start gdb: {0}; without --run the line to type is printed")]
    Gdb(#[source] io::Error),
    /// KVM was asked for on a machine without.
    #[error("KVM was asked for, but {0}; use --accel tcg")]
    NoKvm(String),
    /// Two options that exclude each other.
    #[error("--icount counts instructions in QEMU's own translator and needs --accel tcg")]
    IcountNeedsTcg,
    /// A device that cannot be.
    #[error("device memory of {0} is not possible: the size of a PCI BAR is a power of two, here 1M to 64G")]
    DeviceSize(Size),
    /// Machine memory that cannot be.
    #[error("{0} of memory is not possible: use 2M to 1T")]
    MemorySize(Size),
    /// CPUs that cannot be.
    #[error("{0} CPUs are not possible: use 1 to 64")]
    Cpus(u32),
    /// Devices that cannot be.
    #[error("{0} devices are not possible: use 0 to 4, as many as the kernel has numbers for")]
    Devices(u32),
    /// A socket that cannot be made.
    #[error("--qmp {}: {why}; use another path, or a port", path.display())]
    QmpSocket {
        /// Its path.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// One file cannot back several devices.
    #[error("--device-file backs one device, not {0}")]
    DeviceFile(u32),
    /// A knob cannot be set so here.
    #[error("{0}")]
    Setting(String),
    /// The tests know what they need.
    #[error("the tests turn knobs by themselves, where they need to: leave out --set")]
    TestsSet,
    /// Counts are compared as they are by default.
    #[error("--baseline compares what the machine does with its knobs as they are: leave out --set")]
    BaselineSet,
    /// Counts cannot be compared without counting.
    #[error("--baseline compares instruction counts: leave out --no-icount and --accel kvm")]
    BaselineNeedsIcount,
    /// A report is of counts.
    #[error("report counts instructions: leave out --no-icount and --accel kvm; --wall adds time")]
    ReportNeedsIcount,
    /// A plot that cannot be drawn.
    #[error("the plot \"{title}\" could not be drawn: {why}")]
    Plot {
        /// Its title.
        title: String,
        /// Why.
        why: String,
    },
    /// The figures of Linux.
    #[error("docs/peer-linux.toml: {0}")]
    Peer(String),
    /// A file that holds no baseline.
    #[error("{}: no baseline: {why}; where there is no file, --update writes one", path.display())]
    Baseline {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The baseline is another machine's.
    #[error("{} was measured with {key} {theirs} and this run has {ours}: use the same options", path.display())]
    OtherMachine {
        /// The file.
        path: PathBuf,
        /// The option.
        key: String,
        /// Its value there.
        theirs: String,
        /// Its value here.
        ours: String,
    },
    /// Some rows cost more than they did.
    #[error("{}", regressions(path, *worse, *missing))]
    Regressions {
        /// The baseline.
        path: PathBuf,
        /// Counts that grew too much.
        worse: usize,
        /// Rows that only one of the two has.
        missing: usize,
    },
    /// The guest did not end well.
    #[error("{}", describe(.0))]
    Guest(Ending),
    /// A command of a script was not done.
    #[error("line {line} of {script} failed: {command}")]
    Script {
        /// Its line, from 1 on.
        line: usize,
        /// Where the line stands.
        script: String,
        /// The command.
        command: String,
    },
    /// Several commands of a script were not done.
    #[error("{} of the script failed: see above", if *.0 == 1 { "a command".into() } else { format!("{} commands", .0) })]
    Commands(usize),
    /// No experiment has such a name.
    #[error("no experiment has {0} in its name: cargo run -- exp --list says which there are")]
    NoExperiment(String),
    /// Experiments failed.
    #[error("{} did not come to its end: see above", if *.0 == 1 { "an experiment".into() } else { format!("each of {} experiments", .0) })]
    Experiments(usize),
    /// Something that several machines cannot have together.
    #[error("a report starts several machines, which cannot share what {0} names; leave it out")]
    ReportShares(&'static str),
    /// A program that cannot be run.
    #[error("{} cannot be run: {why}", path.display())]
    NoProgram {
        /// Its file.
        path: PathBuf,
        /// Why, and the way out.
        why: String,
    },
    /// The machine ended well, but did not say how the program did.
    #[error("the machine ended without a word about the program; --log debug may say more")]
    NoEnd,
    /// The program that was run ended with this status, and the runner does too.
    #[error("the program ended with status {0}")]
    Program(u8),
    /// The machine ended while the shell still had something to ask of it.
    #[error("the machine is gone, and with it all that was in it: {}", describe(.0))]
    Gone(Ending),
    /// The machine ended, or refused, before there was a trace.
    #[error("there is no trace: the machine refused, or ended before it was sent; leave out exit")]
    NoTrace,
    /// The terminal could not be read.
    #[error("could not read the terminal: {0}")]
    Terminal(#[from] rustyline::error::ReadlineError),
    /// Writing to standard output failed.
    #[error("could not write the output: {0}")]
    Output(#[from] io::Error),
}

/// What a guest's end means to the person who started it.
fn describe(ending: &Ending) -> String {
    use ktest::exit::Exit;
    match ending {
        Ending::Exit(Exit::Success) => "the guest ended well".into(),
        Ending::Exit(Exit::Failed) => "the guest reported a failure: see above".into(),
        Ending::Exit(Exit::Panic) => "the guest stopped with an error: see above".into(),
        Ending::Exit(Exit::Fault) => "the guest stopped at a fatal fault: see above".into(),
        Ending::Timeout => {
            "the guest did not end in time and was stopped; --timeout SECS gives it longer".into()
        }
        Ending::Died(how) => how.clone(),
    }
}

/// What is wrong with a run that was compared with its baseline, and the way out if it was meant.
fn regressions(path: &Path, worse: usize, missing: usize) -> String {
    let path = path.display();
    let count = |n, one, more| if n == 1 { format!("1 {one}") } else { format!("{n} {more}") };
    let worse = (worse != 0).then(|| count(worse, "count is", "counts are") + " more than 2 % worse");
    let missing = (missing != 0).then(|| count(missing, "row is", "rows are") + " in only one of the two");
    let what: Vec<String> = worse.into_iter().chain(missing).collect();
    format!(
        "compared with {path}, {}: see above; if that is meant, add --update and commit the file",
        what.join(" and ")
    )
}

/// Names the file in an input/output error.
pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { path, source }
}
