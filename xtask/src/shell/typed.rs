//! Commands as they are typed: with a history, and with completion and hints from the table of commands.

use super::Session;
use super::script::commands;
use crate::error::Error;
use ktest::monitor;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};
use std::borrow::Cow;
use std::io::Write;
use std::path::PathBuf;

/// Commands that the history keeps.
const HISTORY: usize = 1000;

/// Takes commands until the machine or the input ends.
pub(super) fn run(mut session: Session, out: &mut impl Write) -> Result<(), Error> {
    let config =
        Config::builder().max_history_size(HISTORY).and_then(|config| config.history_ignore_dups(true));
    let config = config?.auto_add_history(true).build();
    let mut editor = Editor::<Words, FileHistory>::with_config(config)?;
    editor.set_helper(Some(Words));
    let history = history();
    if let Some(history) = &history {
        // The first time there is none.
        let _ = editor.load_history(history);
    }
    let result = loop {
        match editor.readline(&session.prompt()) {
            Ok(line) => match obey(&mut session, &line, out) {
                Ok(true) => {}
                Ok(false) => break session.end(),
                Err(error) => break Err(error),
            },
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break session.exit(out),
            Err(error) => break Err(error.into()),
        }
    };
    if let Some(history) = &history {
        // Commands that are not remembered are no reason to fail.
        let _ = history.parent().map(std::fs::create_dir_all);
        let _ = editor.save_history(history);
    }
    result
}

/// Does the commands of a line, up to the first that fails; false if the machine has ended.
fn obey(session: &mut Session, line: &str, out: &mut impl Write) -> Result<bool, Error> {
    for command in commands(line) {
        match session.ask(command, out)? {
            Some(true) => {}
            Some(false) => break,
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// Where programs of this user keep what outlives them.
fn history() -> Option<PathBuf> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state"));
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    Some(state.or_else(home)?.join("farpage/shell-history"))
}

/// Where the last command of a line begins.
fn command_at(line: &str) -> usize {
    line.rfind(';').map_or(0, |at| at + 1)
}

/// What the line editor asks about a line.
struct Words;

impl Completer for Words {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let mut found = Vec::new();
        let begin = command_at(&line[..pos]);
        let start = monitor::complete(&line[begin..pos], &mut |word| found.push(word.to_string()));
        Ok((begin + start, found))
    }
}

impl Hinter for Words {
    type Hint = String;

    fn hint(&self, line: &str, pos: usize, _: &Context<'_>) -> Option<String> {
        if pos == line.len() {
            monitor::hint(&line[command_at(line)..]).map(|rest| rest.to_string())
        } else {
            None
        }
    }
}

impl Highlighter for Words {
    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        console::style(hint).dim().to_string().into()
    }
}

impl Validator for Words {}
impl Helper for Words {}
