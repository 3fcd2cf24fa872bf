//! gdb at a machine that waits: what its commands (`xtask/gdb/farpage.py`) find must be what the kernel says of itself.
//!
//! The kernel decodes its tables in Rust, the script reads physical memory and decodes in Python; the words and the runs must be
//! the same. Where there is no gdb the trials are skipped by name.

use std::{
    io::Write,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use ktest::{monitor::READY, wire::Record};
use libtest_mimic::Trial;
use xtask::qemu::{GuestCommand, Qemu, Run};

use crate::{guest::QemuMachine, host, process, require, runs};

/// What the machine has done when gdb comes: a huge page on the device, small ones in RAM with two kinds of rights.
const SCENE: [&str; 7] = [
    "map 0x10_0000_0000 2M rw huge",
    "fill 0x10_0000_0000 2M 7",
    "migrate 0x10_0000_0000 2M dev0",
    "map 0x10_0040_0000 64K rw",
    "fill 0x10_0040_0000 48K 7",
    "protect 0x10_0040_4000 8K r",
    "touch 0x10_0040_d000 r",
];

/// The trials that need the machine itself.
#[must_use]
pub fn trials(machine: &Arc<QemuMachine>) -> Vec<Trial> {
    let machine = Arc::clone(machine);
    let trial = move || require::with("gdb", |_| same_as_the_kernel(&machine));
    vec![Trial::ignorable_test("gdb::walks_runs_folios_and_spaces_are_the_kernels_own", trial)]
}

/// The trials of `cargo run -- gdb`.
pub(crate) fn run_trials(runner: &Path) -> Vec<Trial> {
    let runner = runner.to_path_buf();
    let trial = move || require::with("gdb", |_| session(&runner));
    vec![Trial::ignorable_test("run::gdb::run_is_a_session_at_the_kernels_first_instruction", trial)]
}

/// A machine that waits for commands.
struct Shell(Run);

impl Shell {
    /// Sends a command; the lines of its answer.
    fn ask(&mut self, command: &str) -> Result<Vec<String>, String> {
        self.0.send(command).map_err(|error| format!("{command}: {error}"))?;
        self.answer(command)
    }

    fn answer(&mut self, command: &str) -> Result<Vec<String>, String> {
        let mut lines = Vec::new();
        while let Some(line) = self.0.next_line() {
            match Record::parse(&line.text).filter(|record| record.kind() == READY) {
                Some(record) if record.u64("ok") == Some(1) => return Ok(lines),
                Some(_) => return Err(format!("{command:?} failed: {lines:?}")),
                None => lines.push(line.text),
            }
        }
        Err(format!("the machine ended at {command:?}: {lines:?}"))
    }
}

fn same_as_the_kernel(machine: &QemuMachine) -> Result<(), String> {
    // Free a moment ago; nobody else asks for this one by number.
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|free| free.local_addr());
    let port = port.map_err(|error| error.to_string())?.port();
    let command = GuestCommand::run("shell").with("icount", 1);
    let extra = vec!["-gdb".to_owned(), format!("tcp:127.0.0.1:{port}")];
    let qemu = Qemu { command, extra, input: true, timeout: Some(runs::LIMIT), ..Qemu::default() };
    let run = qemu.spawn(machine.built()).map_err(|error| error.to_string())?;
    let mut shell = Shell(run);
    shell.answer("the greeting")?;
    for command in SCENE {
        shell.ask(command)?;
    }
    let (walk, small) = (shell.ask("walk 0x10_0000_1238")?, shell.ask("walk 0x10_0040_4008")?);
    let (runs, folio, spaces) = (shell.ask("pt")?, shell.ask("folio 0x10_0000_0000")?, shell.ask("spaces")?);
    let name = folio.first().and_then(|line| line.split_whitespace().nth(1)).ok_or("no folio")?;
    let name = name.trim_end_matches(':');
    let commands = [
        "fp-walk 0x10_0000_1238",
        "fp-walk 0x10_0040_4008",
        "fp-pt",
        &format!("fp-folio {name}"),
        "fp-spaces",
        "fp-bt",
    ];
    let [their_walk, their_small, their_runs, their_folio, their_spaces, trace] =
        batch(&machine.built().kernel, port, commands)?;

    equal("the walk to a huge page", &words(&walk), &words(&their_walk))?;
    equal("the walk to a small page", &words(&small), &words(&their_small))?;
    if walk.len() <= 3 || !their_walk.contains(&format!("not present: device-private, 2 MiB at {name} rw-")) {
        return Err(format!("the page must be on the device: {walk:?}, {their_walk}"));
    }
    equal("the runs", &runs, &their_runs.lines().map(str::to_owned).collect::<Vec<_>>())?;
    for part in [format!("folio {name}: order 9 (2 MiB)"), "references 1, entries that map it 1".to_owned()] {
        if !their_folio.contains(&part) {
            return Err(format!("the folio must say {part:?}: {their_folio}; the kernel: {folio:?}"));
        }
    }
    let root = |text: &str| Some(text.split_once("root ")?.1.split([' ', ',']).next()?.to_owned());
    equal("the space", &root(&spaces.concat()), &root(&their_spaces))?;
    if their_spaces.lines().count() != 1 || !their_spaces.starts_with('*') {
        return Err(format!("one space, and it is loaded: {their_spaces}"));
    }
    if !trace.contains("monitor::run") || !trace.contains("on_own_tables") {
        return Err(format!("the backtrace must lead from the shell to the boot: {trace}"));
    }
    // To have been looked at changes nothing.
    equal("the runs after it", &shell.ask("pt")?, &runs)?;
    shell.ask("audit")?;
    Ok(())
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, kernel: &T, gdb: &T) -> Result<(), String> {
    if kernel == gdb { Ok(()) } else { Err(format!("{what}: the kernel says {kernel:?}, gdb {gdb:?}")) }
}

/// Level, index and word of each line of a walk.
fn words(lines: &(impl AsLines + ?Sized)) -> Vec<String> {
    let level = |line: &&str| ["PGD ", "PUD ", "PMD ", "PTE "].iter().any(|name| line.starts_with(name));
    let head = |line: &str| line.split("  ").next().unwrap_or_default().to_owned();
    lines.as_lines().filter(level).map(head).collect()
}

trait AsLines {
    fn as_lines(&self) -> Box<dyn Iterator<Item = &str> + '_>;
}

impl AsLines for Vec<String> {
    fn as_lines(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.iter().map(String::as_str))
    }
}

impl AsLines for String {
    fn as_lines(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.lines())
    }
}

/// Does the commands at the machine behind the port; the answer to each.
fn batch<const N: usize>(kernel: &Path, port: u16, commands: [&str; N]) -> Result<[String; N], String> {
    const MARK: &str = "-- next --";
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch"]).arg(kernel).args(["-ex", &format!("target remote 127.0.0.1:{port}")]);
    gdb.arg("-x").arg(host::workspace().join("xtask/gdb/farpage.py"));
    for command in commands {
        gdb.args(["-ex", &format!("echo {MARK}\\n"), "-ex", command]);
    }
    gdb.args(["-ex", &format!("echo {MARK}\\n")]);
    let done = process::run(&mut gdb, runs::LIMIT).map_err(|error| error.to_string())?;
    let answers: Vec<String> =
        done.stdout.split(MARK).skip(1).take(N).map(|text| text.trim().to_owned()).collect();
    answers.try_into().map_err(|_| format!("gdb must answer {commands:?}: {done}"))
}

/// `gdb --run` with commands from a pipe: it stops where the kernel begins, goes on to the tour, and ends the machine.
fn session(runner: &Path) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut command = Command::new(runner);
    command.args(["gdb", "--run"]).current_dir(host::workspace()).env_remove("CARGO_MANIFEST_DIR");
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(text)?;
    let mut input = child.stdin.take().ok_or("no input")?;
    let commands = "set pagination off\ncontinue\nfp-bt\nbreak farpage_kernel::tour::run\ncontinue\nfp-pt\nfp-bt\nkill\nquit\n";
    input.write_all(commands.as_bytes()).map_err(text)?;
    drop(input);
    let done = child.wait_with_output().map_err(text)?;
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    for part in ["Breakpoint 1, ", "__impl_start", "Breakpoint 2, ", "no entry:", "on_own_tables"] {
        if !out.contains(part) {
            return Err(format!("it does not say {part:?}: {out}\n{err}"));
        }
    }
    Ok(())
}
