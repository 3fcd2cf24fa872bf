//! Commands from a file, a pipe or the command line, with a transcript that reads as if they had been typed.

use super::Session;
use crate::error::{Error, at};
use console::style;
use ktest::monitor::without_comment;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

/// Lines, as they come.
pub(crate) struct Script {
    /// Where they come from.
    name: String,
    lines: Box<dyn Iterator<Item = Result<String, Error>>>,
}

impl Script {
    pub(crate) fn of_text(name: &str, text: &str) -> Self {
        let lines: Vec<_> = text.lines().map(|line| Ok(line.to_string())).collect();
        Self { name: name.into(), lines: Box::new(lines.into_iter()) }
    }

    pub(crate) fn of_file(path: &Path) -> Result<Self, Error> {
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

/// How far a script came.
pub(crate) enum Obeyed {
    /// To its end.
    All,
    /// To a command that failed, which the error names.
    Stopped(Error),
    /// The machine has ended.
    Gone,
}

/// Does them one after the other, to the end or to the first that fails, and ends the machine.
pub(super) fn run(
    mut session: Session,
    script: Script,
    keep_going: bool,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut failed = 0;
    let obeyed = session.obey(script, keep_going, &mut failed, out)?;
    match obeyed {
        Obeyed::Gone => session.end()?,
        _ => session.exit(out)?,
    }
    match obeyed {
        Obeyed::Stopped(error) => Err(error),
        _ if failed == 0 => Ok(()),
        _ => Err(Error::Commands(failed)),
    }
}

impl Session {
    /// Does the commands one after the other, to the end or to the first that fails.
    pub(crate) fn obey(
        &mut self,
        script: Script,
        keep_going: bool,
        failed: &mut usize,
        out: &mut impl Write,
    ) -> Result<Obeyed, Error> {
        for (index, line) in script.lines.enumerate() {
            let line = line?;
            if let Some(comment) = line.trim().strip_prefix('#') {
                writeln!(out, "{}", style(format!("#{comment}")).dim())?;
            }
            for command in commands(&line) {
                writeln!(out, "{}{}", style(self.prompt()).bold(), command)?;
                match self.ask(command, out)? {
                    Some(true) => {}
                    Some(false) if keep_going => *failed += 1,
                    Some(false) => {
                        let (script, command) = (script.name, command.to_string());
                        return Ok(Obeyed::Stopped(Error::Script { line: index + 1, script, command }));
                    }
                    None => return Ok(Obeyed::Gone),
                }
            }
        }
        Ok(Obeyed::All)
    }
}
