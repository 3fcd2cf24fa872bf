//! Commands from a file, a pipe or the command line, with a transcript that reads as if they had been typed.

use super::Session;
use crate::error::{Error, at};
use console::style;
use ktest::monitor::without_comment;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

/// Lines, as they come.
pub(super) struct Script {
    /// Where they come from.
    name: String,
    lines: Box<dyn Iterator<Item = Result<String, Error>>>,
}

impl Script {
    pub(super) fn of_text(name: &str, text: &str) -> Self {
        let lines: Vec<_> = text.lines().map(|line| Ok(line.to_string())).collect();
        Self { name: name.into(), lines: Box::new(lines.into_iter()) }
    }

    pub(super) fn of_file(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(at(path))?;
        Ok(Self::of_text(&path.display().to_string(), &String::from_utf8_lossy(&bytes)))
    }

    pub(super) fn of_input() -> Self {
        // Bytes that are no text are the guest's to refuse.
        let lines = BufReader::new(std::io::stdin()).split(b'\n');
        let lines = lines.map(|line| Ok(String::from_utf8_lossy(&line?).into_owned()));
        Self { name: "standard input".into(), lines: Box::new(lines) }
    }
}

/// The commands of a line: its comment is none, and `;` stands between two.
pub(super) fn commands(line: &str) -> impl Iterator<Item = &str> {
    without_comment(line).split(';').map(str::trim).filter(|command| !command.is_empty())
}

/// Does them one after the other, to the end or to the first that fails.
pub(super) fn run(
    mut session: Session,
    script: Script,
    keep_going: bool,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut failed = 0;
    for (index, line) in script.lines.enumerate() {
        let line = line?;
        if let Some(comment) = line.trim().strip_prefix('#') {
            writeln!(out, "{}", style(format!("#{comment}")).dim())?;
        }
        for command in commands(&line) {
            writeln!(out, "{}{}", style(session.prompt()).bold(), command)?;
            match session.ask(command, out)? {
                Some(true) => {}
                Some(false) if keep_going => failed += 1,
                Some(false) => {
                    session.exit(out)?;
                    let (script, command) = (script.name, command.to_string());
                    return Err(Error::Script { line: index + 1, script, command });
                }
                None => {
                    session.end()?;
                    return if failed == 0 { Ok(()) } else { Err(Error::Commands(failed)) };
                }
            }
        }
    }
    session.exit(out)?;
    if failed == 0 { Ok(()) } else { Err(Error::Commands(failed)) }
}
