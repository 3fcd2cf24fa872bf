//! QEMU's machine protocol (QMP), as far as a question to its monitor goes: one JSON value per line.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

/// An answer takes a millisecond; a machine that hangs must not hang the tests.
const LIMIT: Duration = Duration::from_secs(30);

/// A connection to the monitor of a running machine.
pub(super) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// Connects, and takes the monitor out of its greeting mode.
    pub(super) fn connect(socket: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|error| format!("{}: {error}", socket.display()))?;
        Self::over(stream)
    }

    fn over(stream: UnixStream) -> Result<Self, String> {
        stream.set_read_timeout(Some(LIMIT)).map_err(|error| error.to_string())?;
        let mut monitor = Self(BufReader::new(stream));
        let greeting = monitor.read()?;
        if greeting.get("QMP").is_none() {
            return Err(format!("no greeting: {greeting}"));
        }
        monitor.execute(&json!({ "execute": "qmp_capabilities" }))?;
        Ok(monitor)
    }

    /// A command of the monitor for people, and its text.
    pub(super) fn human(&mut self, command: &str) -> Result<String, String> {
        let arguments = json!({ "command-line": command });
        let answer = self.execute(&json!({ "execute": "human-monitor-command", "arguments": arguments }))?;
        answer.as_str().map(str::to_owned).ok_or_else(|| format!("{command}: {answer}"))
    }

    fn execute(&mut self, request: &Value) -> Result<Value, String> {
        writeln!(self.0.get_mut(), "{request}").map_err(|error| format!("the monitor: {error}"))?;
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

    fn read(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => Err("the monitor has hung up".to_owned()),
            Ok(_) => serde_json::from_str(&line).map_err(|error| format!("{line:?}: {error}")),
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
        Monitor::over(ours)?.human("info mem")
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
}
