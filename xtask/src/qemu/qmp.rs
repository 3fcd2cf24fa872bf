//! QEMU's machine protocol (QMP), as far as a question to its monitor goes: one JSON value per line.
//!
//! A few lines and no crate: of the protocol's hundreds of types one is needed, the text of an answer. A connection has a time
//! after which it gives up, whatever QEMU does, so that nobody hangs with a machine that hangs.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A connection to the monitor of a running machine. Errors are sentences.
#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<UnixStream>,
    deadline: Instant,
}

impl Monitor {
    /// Connects, and takes the monitor out of its greeting mode.
    ///
    /// # Errors
    /// There is none, or it does not answer within `limit`, which holds for all questions together.
    pub fn connect(socket: &Path, limit: Duration) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|error| format!("{}: {error}", socket.display()))?;
        Self::over(stream, limit)
    }

    /// The same over a connection that stands.
    pub(super) fn over(stream: UnixStream, limit: Duration) -> Result<Self, String> {
        let mut monitor = Self { stream: BufReader::new(stream), deadline: Instant::now() + limit };
        let greeting = monitor.read()?;
        if greeting.get("QMP").is_none() {
            return Err(format!("no greeting: {greeting}"));
        }
        monitor.execute("qmp_capabilities")?;
        Ok(monitor)
    }

    /// A command of the monitor for people, and its text.
    ///
    /// # Errors
    /// The monitor refuses it, has gone, or does not answer in time.
    pub fn human(&mut self, command: &str) -> Result<String, String> {
        self.text(&json!({ "command-line": command }))
    }

    /// The same, as this CPU sees memory and registers.
    ///
    /// # Errors
    /// As [`Monitor::human`].
    pub fn human_on(&mut self, cpu: u64, command: &str) -> Result<String, String> {
        self.text(&json!({ "command-line": command, "cpu-index": cpu }))
    }

    fn text(&mut self, arguments: &Value) -> Result<String, String> {
        let answer = self.ask(&json!({ "execute": "human-monitor-command", "arguments": arguments }))?;
        answer.as_str().map(str::to_owned).ok_or_else(|| format!("{arguments}: {answer}"))
    }

    /// A command of the protocol without arguments, and what it returns.
    ///
    /// # Errors
    /// As [`Monitor::human`].
    pub fn execute(&mut self, command: &str) -> Result<Value, String> {
        self.ask(&json!({ "execute": command }))
    }

    fn ask(&mut self, request: &Value) -> Result<Value, String> {
        let limit = self.left()?;
        let stream = self.stream.get_mut();
        let written = stream.set_write_timeout(Some(limit)).and_then(|()| writeln!(stream, "{request}"));
        written.map_err(|error| format!("the monitor: {error}"))?;
        loop {
            let mut answer = self.read()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if answer.get("error").is_some() {
                return Err(format!("{request}: {answer}"));
            }
            // An event; nobody asked for it.
        }
    }

    fn left(&self) -> Result<Duration, String> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err("the monitor does not answer in time".to_owned()) } else { Ok(left) }
    }

    fn read(&mut self) -> Result<Value, String> {
        let limit = self.left()?;
        let limited = self.stream.get_mut().set_read_timeout(Some(limit));
        limited.map_err(|error| format!("the monitor: {error}"))?;
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err("the monitor has hung up".to_owned()),
            Ok(_) => serde_json::from_str(&line).map_err(|error| format!("{line:?}: {error}")),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                Err("the monitor does not answer in time".to_owned())
            }
            Err(error) => Err(format!("the monitor: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer to a question, from a monitor that has said all its lines beforehand.
    fn scripted(lines: &[&str]) -> Result<String, String> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        writeln!(theirs, "{}", lines.join("\n")).unwrap();
        Monitor::over(ours, Duration::from_secs(60))?.human("info mem")
    }

    #[test]
    fn answers_are_told_from_events_and_errors() {
        let talk =
            &[r#"{"QMP": {}}"#, r#"{"return": {}}"#, r#"{"event": "STOP"}"#, r#"{"return": "text\r\n"}"#];
        assert_eq!(scripted(talk), Ok("text\r\n".to_owned()));
        let refused = scripted(&[r#"{"QMP": {}}"#, r#"{"return": {}}"#, r#"{"error": {"desc": "no"}}"#]);
        assert!(refused.unwrap_err().contains("no"));
        assert!(scripted(&[r#"{"hello": 1}"#]).is_err());
    }

    #[test]
    fn a_monitor_that_says_nothing_is_given_up() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let error = Monitor::over(ours, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error, "the monitor does not answer in time");
    }
}
