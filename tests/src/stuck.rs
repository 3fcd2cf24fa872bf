//! Whole runs that hang, or whose runner dies: what is said of them, and what is left behind.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use libtest_mimic::{Failed, Trial};
use xtask::qemu::qmp::Monitor;

use crate::{
    host,
    process::{self, Finished},
    require, runs,
};

/// The longest that anybody waits for an answer of QEMU's.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the kernel says before it hangs.
const HANGS: &str = "this run never ends";

type Check = fn(&Path) -> Result<(), String>;

const CHECKS: [(&str, Check); 4] = [
    ("a_hang_is_reported_with_each_cpus_registers_and_stack", hang),
    ("every_command_reports_a_hang", every_command),
    ("qmp_at_a_socket_answers_and_leaves_nothing", qmp_socket),
    ("qmp_at_a_port_answers", qmp_port),
];

/// All of them.
pub(crate) fn trials(runner: &Path) -> Vec<Trial> {
    let trial = |&(name, check): &(&str, Check)| {
        let runner = runner.to_path_buf();
        Trial::test(format!("run::stuck::{name}"), move || check(&runner).map_err(Failed::from))
    };
    let runner_of_killed = runner.to_path_buf();
    let killed = move || require::with("setpriv", |_| killed_runner(&runner_of_killed));
    let killed = Trial::ignorable_test("run::stuck::no_machine_outlives_a_runner_that_is_killed", killed);
    CHECKS.iter().map(trial).chain([killed]).collect()
}

fn command(runner: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(runner);
    command.args(arguments).current_dir(host::workspace()).env_remove("CARGO_MANIFEST_DIR");
    command
}

fn run(runner: &Path, arguments: &[&str]) -> Result<Finished, String> {
    process::run(&mut command(runner, arguments), runs::LIMIT).map_err(|error| error.to_string())
}

fn hang(runner: &Path) -> Result<(), String> {
    let done = run(runner, &["boot", "run=hang", "--cpus", "2", "--timeout", "4"])?;
    let fail = |what: &str| Err(format!("{what}: {done}"));
    if done.code() != Some(1) || !done.stderr.contains("in time") {
        return fail("it must fail because of the time");
    }
    let Some((_, report)) = done.stdout.split_once("stuck: ") else { return fail("no report") };
    let Some((first, second)) = report.split_once("\ncpu 1: ") else { return fail("no CPU 1") };
    if !first.contains("cpu 0: running, interrupts off, rip 0xffffffff8")
        || !first.contains("  RIP=ffffffff8")
    {
        return fail("no registers of CPU 0");
    }
    let at =
        |name: &str| first.lines().position(|line| line.contains(name) && line.contains(" at kernel/src/"));
    match (at("hang::spins_with_interrupts_off"), at("hang::run"), at("on_own_tables")) {
        (Some(inner), Some(outer), Some(main)) if inner < outer && outer < main => {}
        _ => return fail("no backtrace of CPU 0 from where it hangs to where it began"),
    }
    if !second.starts_with("halted") || !second.contains("EIP=") || !second.contains("backtrace:") {
        return fail("no registers of CPU 1, which nobody started");
    }
    Ok(())
}

/// With `-S` the machine never starts: whoever watches it gets the same report.
fn every_command(runner: &Path) -> Result<(), String> {
    for arguments in [&["tour"][..], &["bench"], &["boot", "run=list"], &["shell", "-c", "pt"]] {
        let done = run(runner, &[arguments, &["--timeout", "1", "--qemu-arg=-S"]].concat())?;
        let text = [done.stdout.as_str(), &done.stderr].concat();
        let says = ["stuck: the time is up", "cpu 0: running", "EIP=0000fff0", "in time"];
        if done.code() != Some(1) || !says.iter().all(|part| text.contains(part)) {
            return Err(format!("{arguments:?} must say where it was stuck: {done}"));
        }
    }
    Ok(())
}

/// A runner whose machine hangs, stopped when dropped.
struct Hanging(Child);

impl Hanging {
    /// Starts it, and waits until the kernel has said its only line.
    fn start(runner: &Path, qmp: &str) -> Result<Self, String> {
        let mut command = command(runner, &["boot", "run=hang", "--timeout", "600", "--qmp", qmp]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut run = Self(child.map_err(|error| error.to_string())?);
        let stdout = run.0.stdout.take().ok_or("no output")?;
        let said = BufReader::new(stdout).lines().map_while(Result::ok).any(|line| line.contains(HANGS));
        if said { Ok(run) } else { Err(format!("the kernel never began: {}", run.end())) }
    }

    /// Its end, and what it wrote to standard error.
    fn end(&mut self) -> String {
        let mut text = String::new();
        // What came before an error is still worth showing.
        let _ = self.0.stderr.take().map(|mut pipe| pipe.read_to_string(&mut text));
        let _ = self.0.wait();
        text
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn socket(name: &str) -> PathBuf {
    env::temp_dir().join(format!("farpage-{name}-{}", std::process::id()))
}

fn qmp_socket(runner: &Path) -> Result<(), String> {
    let path = socket("qmp");
    let mut run = Hanging::start(runner, &path.to_string_lossy())?;
    let mut monitor = Monitor::connect(&path, PATIENCE)?;
    let status = monitor.execute("query-status")?;
    if status["status"] != "running" {
        return Err(format!("the machine must be running: {status}"));
    }
    monitor.execute("quit")?;
    let said = run.end();
    if !said.contains(&format!("socat - UNIX-CONNECT:{}", path.display()))
        || !said.contains("qmp_capabilities")
    {
        return Err(format!("it must say how to connect: {said}"));
    }
    if path.exists() { Err("the socket is still there".to_owned()) } else { Ok(()) }
}

fn qmp_port(runner: &Path) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    // Free a moment ago; nobody else asks for this one by number.
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|free| free.local_addr()).map_err(text)?.port();
    let _run = Hanging::start(runner, &port.to_string())?;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(text)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    stream
        .write_all(b"{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"query-status\"}\n")
        .map_err(text)?;
    let mut lines = BufReader::new(stream).lines().take(3).map_while(Result::ok);
    match [lines.next(), lines.next(), lines.next()] {
        [Some(greeting), Some(_), Some(status)]
            if greeting.contains("\"QMP\"") && status.contains("\"running\"") =>
        {
            Ok(())
        }
        answers => Err(format!("a greeting and a status: {answers:?}")),
    }
}

fn killed_runner(runner: &Path) -> Result<(), String> {
    let path = socket("orphan");
    let mut run = Hanging::start(runner, &path.to_string_lossy())?;
    let mut monitor = Monitor::connect(&path, PATIENCE)?;
    run.0.kill().map_err(|error| error.to_string())?;
    // QEMU's end of the connection closes when QEMU ends, and not before.
    let gone = loop {
        if let Err(why) = monitor.execute("query-status") {
            break why;
        }
    };
    let _ = std::fs::remove_file(&path);
    if gone.contains("in time") { Err(format!("QEMU is still there: {gone}")) } else { Ok(()) }
}
