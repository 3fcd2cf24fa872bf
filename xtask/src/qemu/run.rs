//! The running machine: its console line by line, its deadline, its end.

use super::{Ending, PROGRAM, Qemu};
use crate::build::Built;
use crate::error::Error;
use ktest::exit::Exit;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A line of the guest's console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its text, without the line end.
    pub text: String,
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
}

impl Qemu {
    /// Starts the machine.
    ///
    /// # Errors
    /// What [`Qemu::check`] says, and [`Error::Spawn`].
    pub fn spawn(&self, built: &Built) -> Result<Run, Error> {
        self.check()?;
        let started = Instant::now();
        let mut child = Command::new(PROGRAM)
            .args(self.args(built))
            .stdin(if self.input { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Spawn(PROGRAM.into(), source))?;
        let (sender, lines) = sync_channel(1024);
        let console = child.stdout.take();
        std::thread::spawn(move || {
            let Some(console) = console else { return };
            let mut reader = BufReader::new(console);
            let mut bytes = Vec::new();
            while reader.read_until(b'\n', &mut bytes).is_ok_and(|len| len != 0) {
                let at = started.elapsed();
                let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_string();
                bytes.clear();
                if sender.send(Line { text, at }).is_err() {
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
        Ok(Run { child, input, started, deadline, lines, complaints, timed_out: false })
    }
}

impl Run {
    /// The next line; `None` when the console has ended or the time is up.
    pub fn next_line(&mut self) -> Option<Line> {
        let Some(deadline) = self.deadline else { return self.lines.recv().ok() };
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                self.timed_out = true;
                self.stop();
                None
            }
        }
    }

    /// Types a line to a guest that takes input.
    ///
    /// # Errors
    /// The machine is gone, or takes no input.
    pub fn send(&mut self, line: &str) -> io::Result<()> {
        let input = self.input.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        input.write_all(&[line.as_bytes(), b"\n"].concat())
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
    }
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
