//! The running machine: its console line by line, its deadline, its end.

use super::stuck::Watch;
use super::{Ending, PROGRAM, Qemu, QmpPlace};
use crate::build::Built;
use crate::error::Error;
use ktest::exit::Exit;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A line of the guest's console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its text, without the line end.
    pub text: String,
    /// Every byte of it: of a console that is read in pieces ([`Qemu::pieces`]) not always up to a line end.
    pub bytes: Vec<u8>,
    /// When it was complete, since QEMU was started.
    pub at: Duration,
}

/// A machine that runs. Dropping it stops the machine.
#[derive(Debug)]
pub struct Run {
    child: Child,
    input: Option<ChildStdin>,
    started: Instant,
    deadline: Option<Instant>,
    lines: Receiver<Line>,
    complaints: Option<JoinHandle<String>>,
    timed_out: bool,
    built: Built,
    /// The runner's own line to the monitor, for a run that has a deadline.
    watch: Option<Watch>,
    /// What the CPUs were doing when the time was up: the last lines.
    report: std::vec::IntoIter<String>,
    /// The user's socket, which QEMU leaves behind when it is killed.
    socket: Option<PathBuf>,
}

impl Qemu {
    /// QEMU with its arguments. It will end with the thread that starts it.
    pub(crate) fn command_line(&self, built: &Built) -> Command {
        let mut command = program();
        command.args(self.args(built));
        command
    }

    /// Starts the machine. It ends with the thread that started it, however that ends.
    ///
    /// # Errors
    /// What [`Qemu::check`] says, and [`Error::Spawn`].
    pub fn spawn(&self, built: &Built) -> Result<Run, Error> {
        self.check()?;
        let started = Instant::now();
        // Without one a stuck run ends as others do, only with less to say.
        let watch = self.timeout.and_then(|_| Watch::new().ok());
        let mut child = self
            .command_line(built)
            .args(watch.iter().flat_map(Watch::args))
            .stdin(if self.input { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Spawn(PROGRAM.into(), source))?;
        let (sender, lines) = sync_channel(1024);
        let console = child.stdout.take();
        let pieces = self.pieces;
        std::thread::spawn(move || {
            let Some(console) = console else { return };
            let mut reader = BufReader::new(console);
            let mut begins_line = true;
            loop {
                let bytes = next_bytes(&mut reader, pieces, begins_line);
                if bytes.is_empty() {
                    return;
                }
                begins_line = bytes.ends_with(b"\n");
                let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_string();
                if sender.send(Line { text, bytes, at: started.elapsed() }).is_err() {
                    return;
                }
            }
        });
        let complaints = child.stderr.take().map(|mut stderr| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                // What was read up to an error is still worth showing.
                let _ = stderr.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).trim().to_string()
            })
        });
        let deadline = self.timeout.map(|timeout| started + timeout);
        let input = child.stdin.take();
        let socket = match &self.qmp {
            Some(QmpPlace::Socket(path)) => Some(path.clone()),
            _ => None,
        };
        let report = Vec::new().into_iter();
        let built = built.clone();
        Ok(Run {
            child,
            input,
            started,
            deadline,
            lines,
            complaints,
            timed_out: false,
            built,
            watch,
            report,
            socket,
        })
    }
}

/// How lines of the kernel begin beside a program's: its log, and places of a backtrace.
pub(crate) const KERNELS: [&str; 6] = ["[ERROR ", "[WARN  ", "[INFO  ", "[DEBUG ", "[TRACE ", "@pc "];
/// What the kernel's last word about a program begins with.
pub(crate) const LAST_WORD: u8 = 0x1e;

/// Up to and with the next line end, or the end of all. In `pieces`, what has come is not kept waiting for its line end, except
/// where it may be a word of the kernel's.
fn next_bytes(reader: &mut impl BufRead, pieces: bool, begins_line: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let Ok(come) = reader.fill_buf() else { return bytes };
        let end = come.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let len = end.unwrap_or(come.len());
        bytes.extend_from_slice(&come[..len]);
        reader.consume(len);
        let may_be_kernels = |start: &&str| {
            let both = start.len().min(bytes.len());
            start.as_bytes()[..both] == bytes[..both]
        };
        let is_held = bytes.contains(&LAST_WORD) || (begins_line && KERNELS.iter().any(may_be_kernels));
        if len == 0 || end.is_some() || (pieces && !is_held) {
            return bytes;
        }
    }
}

impl Run {
    /// The next line; `None` when the console has ended or the time is up. The last lines of a run whose time is up say what
    /// each CPU was doing.
    pub fn next_line(&mut self) -> Option<Line> {
        if !self.timed_out
            && let Some(deadline) = self.deadline
        {
            let left = deadline.saturating_duration_since(Instant::now());
            // A guest that never stops talking has a deadline too.
            let next =
                if left.is_zero() { Err(RecvTimeoutError::Timeout) } else { self.lines.recv_timeout(left) };
            match next {
                Ok(line) => {
                    self.watch.iter_mut().for_each(Watch::settle);
                    return Some(line);
                }
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => self.time_is_up(),
            }
        }
        if let Ok(line) = self.lines.recv() {
            return Some(line);
        }
        let text = self.report.next()?;
        let bytes = [text.as_bytes(), b"\n"].concat();
        Some(Line { text, bytes, at: self.started.elapsed() })
    }

    /// Asks what the CPUs are doing, and ends the machine.
    fn time_is_up(&mut self) {
        self.timed_out = true;
        if let Some(mut watch) = self.watch.take() {
            self.report = watch.report(&self.built).into_iter();
        }
        self.stop();
    }

    /// Types a line to a guest that takes input.
    ///
    /// # Errors
    /// The machine is gone, or takes no input.
    pub fn send(&mut self, line: &str) -> io::Result<()> {
        let input = self.input.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        input.write_all(&[line.as_bytes(), b"\n"].concat())
    }

    /// Takes the way to the guest, for somebody who types without asking; [`send`](Self::send) is over then.
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.input.take()
    }

    /// How long it has been running.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Reads what is left of the console, waits for the end, and says how it ended.
    #[must_use]
    pub fn finish(mut self) -> Ending {
        while self.next_line().is_some() {}
        let status = self.wait();
        let complaints = self.complaints.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        if self.timed_out {
            return Ending::Timeout;
        }
        match status {
            Some(status) => ending_of_status(status, &complaints),
            None => Ending::Timeout,
        }
    }

    /// The console may be closed before the process ends, so the deadline holds here too.
    fn wait(&mut self) -> Option<ExitStatus> {
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.stop();
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn stop(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.stop();
        if let Some(socket) = &self.socket {
            // QEMU may have removed it.
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// QEMU, as a program that the kernel of the host ends with the thread that started it: a runner that is killed cannot. The
/// call for that needs `unsafe`, so util-linux makes it, where it is there and new enough.
fn program() -> Command {
    const ENDS_WITH_US: [&str; 3] = ["--pdeathsig", "KILL", "--"];
    static HAS_SETPRIV: LazyLock<bool> = LazyLock::new(|| {
        let mut command = Command::new("setpriv");
        command
            .args(ENDS_WITH_US)
            .arg("true")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    });
    if !*HAS_SETPRIV {
        return Command::new(PROGRAM);
    }
    let mut command = Command::new("setpriv");
    command.args(ENDS_WITH_US).arg(PROGRAM);
    command
}

/// What QEMU's exit status says about the guest; `complaints` is what QEMU wrote to standard error.
#[must_use]
pub fn ending_of_status(status: ExitStatus, complaints: &str) -> Ending {
    let last_words = complaints.lines().last().unwrap_or_default();
    match status.code() {
        Some(code) => match Exit::from_qemu_status(code) {
            Some(exit) => Ending::Exit(exit),
            None if code == 0 => Ending::Died(
                "the machine reset or was switched off without a word (a triple fault, most likely)".into(),
            ),
            None if last_words.is_empty() => Ending::Died(format!("QEMU ended with status {code}")),
            None => Ending::Died(format!("QEMU ended with status {code}: {last_words}")),
        },
        None => Ending::Died(format!("QEMU was killed ({status})")),
    }
}
