//! Reads the console of a test run and tells how each test ended.
//!
//! A state machine over lines: [`Stream::feed`] takes them as they come, [`Stream::finish`] takes how the
//! machine ended and gives the [`Run`]. It tells apart what a plain TAP reader lumps together: a failed
//! assertion, a panic, a fatal fault, a hang, a machine that died, and a test that was announced and
//! never ran. Nothing that is printed can make a test pass except its own `ok` line, and an end that
//! contradicts the lines (exit "success" after a failure, fewer tests than planned) is a problem of its own.

use std::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use core::fmt;

use crate::{
    exit::Exit,
    ktap::{FAULT, Line, PANIC},
    wire::Record,
};

/// How one test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Pass,
    /// An assertion failed; its text.
    Fail(String),
    /// It does not apply; the reason.
    Skip(String),
    /// The kernel panicked while it ran; the message.
    Panic(String),
    /// A fatal CPU exception while it ran; the kind.
    Fault(String),
    /// The time was up while it ran.
    Timeout,
    /// The machine went away while it ran, without a report; how.
    Died(String),
    /// It was announced, and the run ended before its turn.
    NeverRan,
}

impl Outcome {
    /// Does this outcome make the run bad?
    #[must_use]
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::Pass | Self::Skip(_))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("passed"),
            Self::Fail(why) => write!(f, "failed: {why}"),
            Self::Skip(why) => write!(f, "skipped: {why}"),
            Self::Panic(message) => write!(f, "the kernel panicked: {message}"),
            Self::Fault(kind) => write!(f, "fatal fault: {kind}"),
            Self::Timeout => f.write_str("the time was up while it ran"),
            Self::Died(how) => write!(f, "the machine went away while it ran: {how}"),
            Self::NeverRan => f.write_str("announced but never ran"),
        }
    }
}

/// How the machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest chose to end.
    Exit(Exit),
    /// The host stopped it because the time was up.
    Timeout,
    /// Anything else: a triple fault, a signal, QEMU's own error.
    Died(String),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(exit) => write!(f, "the guest exited with {exit}"),
            Self::Timeout => f.write_str("the time was up"),
            Self::Died(how) => f.write_str(how),
        }
    }
}

/// One test of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// Its name.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What the console showed from its beginning to that of the next.
    pub console: Vec<String>,
}

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Every test that ran, in that order, then those that never did.
    pub tests: Vec<Test>,
    /// A panic, fault, hang or death while no test ran.
    pub outside: Option<Outcome>,
    /// The console before the first test.
    pub preamble: Vec<String>,
    /// What contradicts itself. Empty in a sound run.
    pub problems: Vec<String>,
}

impl Run {
    /// The sums. A bad end outside any test counts as a failure, so that no bad run adds up to a good one.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.tests.iter().for_each(|test| totals.add(&test.outcome));
        totals.failed += usize::from(self.outside.is_some()) + self.problems.len();
        totals
    }

    /// The tests that never had their turn.
    pub fn never_ran(&self) -> impl Iterator<Item = &str> {
        self.tests.iter().filter(|test| test.outcome == Outcome::NeverRan).map(|test| test.name.as_str())
    }
}

/// How many passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Passed.
    pub passed: usize,
    /// Failed in any way.
    pub failed: usize,
    /// Skipped.
    pub skipped: usize,
}

impl Totals {
    /// Counts one more.
    pub fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Pass => self.passed += 1,
            Outcome::Skip(_) => self.skipped += 1,
            _ => self.failed += 1,
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// The reader.
#[derive(Debug, Default)]
pub struct Stream {
    announced: Vec<String>,
    run: Run,
    plan: Option<usize>,
    state: State,
    why: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    /// No test runs.
    #[default]
    Between,
    /// The last of `run.tests` runs.
    Running,
    /// A report has begun; everything after it belongs to it.
    Crashed(Outcome),
}

impl Stream {
    /// A reader for a run of these tests.
    pub fn new<S: Into<String>>(announced: impl IntoIterator<Item = S>) -> Self {
        Self { announced: announced.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Takes the next line of the console.
    pub fn feed(&mut self, line: &str) {
        let line = line.trim_end_matches(['\r', '\n']);
        if !matches!(self.state, State::Crashed(_)) {
            if let Some(crash) = crash(line) {
                self.crash(crash);
            } else if self.understand(line) {
                return;
            }
        }
        self.console().push(line.to_string());
    }

    fn console(&mut self) -> &mut Vec<String> {
        self.run.tests.last_mut().map_or(&mut self.run.preamble, |test| &mut test.console)
    }

    fn crash(&mut self, crash: Outcome) {
        if self.state == State::Running {
            self.settle(crash.clone());
        } else {
            self.run.outside = Some(crash.clone());
        }
        self.state = State::Crashed(crash);
    }

    /// Acts on a line of the protocol; `false` if it is console text.
    fn understand(&mut self, line: &str) -> bool {
        match Line::parse(line) {
            Line::Version => {}
            Line::Plan(count) => self.plan = Some(count),
            Line::Begin(name) => self.begin(name),
            Line::Failed(why) if self.state == State::Running => self.why.push(why.to_string()),
            Line::Ok(number, name) => self.result(number, name, Outcome::Pass),
            Line::Skip(number, name, why) => self.result(number, name, Outcome::Skip(why.to_string())),
            Line::NotOk(number, name) => {
                let why =
                    if self.why.is_empty() { "no reason given".to_string() } else { self.why.join("\n") };
                self.result(number, name, Outcome::Fail(why));
            }
            Line::Failed(_) | Line::Text => return false,
        }
        true
    }

    fn begin(&mut self, name: &str) {
        if self.state == State::Running {
            self.settle(Outcome::Died("the next test began before its result".to_string()));
        }
        if self.run.tests.iter().any(|test| test.name == name) {
            self.run.problems.push(format!("{name} ran twice"));
        }
        if !self.announced.iter().any(|announced| announced == name) {
            self.run.problems.push(format!("{name} ran and was not announced"));
        }
        // Until its result is in, a test is one that died: no path through this reader can lose it.
        let outcome = Outcome::Died("no result".to_string());
        self.run.tests.push(Test { name: name.to_string(), outcome, console: Vec::new() });
        self.state = State::Running;
        self.why.clear();
    }

    fn result(&mut self, number: usize, name: &str, outcome: Outcome) {
        let running = self.run.tests.last().filter(|_| self.state == State::Running);
        match running {
            Some(test) if test.name == name => {
                if number != self.run.tests.len() {
                    let expected = self.run.tests.len();
                    self.run.problems.push(format!("{name} has number {number}, not {expected}"));
                }
                self.settle(outcome);
            }
            _ => self.run.problems.push(format!("a result for {name}, which was not running")),
        }
    }

    /// The running test has ended this way.
    fn settle(&mut self, outcome: Outcome) {
        if let Some(test) = self.run.tests.last_mut() {
            test.outcome = outcome;
        }
        self.state = State::Between;
    }

    /// The tests whose result and whole console are in: all but the one that began last.
    #[must_use]
    pub fn settled(&self) -> &[Test] {
        self.run.tests.split_last().map_or(&[], |(_, settled)| settled)
    }

    /// The console has ended, and the machine this way.
    #[must_use]
    pub fn finish(mut self, ending: &Ending) -> Run {
        match (&self.state, at_end(ending)) {
            (State::Running, Some(outcome)) => self.settle(outcome),
            (State::Running, None) => self.settle(Outcome::Died(ending.to_string())),
            (State::Between, Some(outcome)) => self.run.outside = Some(outcome),
            (State::Between, None) => self.check_end(ending),
            (State::Crashed(_), _) => {}
        }
        for name in &self.announced {
            if !self.run.tests.iter().any(|test| test.name == *name) {
                let (name, console) = (name.clone(), Vec::new());
                self.run.tests.push(Test { name, outcome: Outcome::NeverRan, console });
            }
        }
        self.run
    }

    /// A run that came to its end must agree with itself.
    fn check_end(&mut self, ending: &Ending) {
        let ran = self.run.tests.len();
        match self.plan {
            Some(plan) if plan != ran => {
                self.run.problems.push(format!("{plan} tests were planned and {ran} ran"));
            }
            None => self.run.problems.push(format!("no test plan, and {ending}")),
            Some(_) => {}
        }
        let failed = self.run.tests.iter().any(|test| test.outcome.is_failure());
        match ending {
            Ending::Exit(Exit::Success) if failed => {
                self.run.problems.push("a test failed, and the guest exited with success".to_string());
            }
            Ending::Exit(Exit::Failed) if !failed && self.plan.is_some() => {
                self.run.problems.push("no test failed, and the guest exited with failure".to_string());
            }
            _ => {}
        }
    }
}

/// Is this line the beginning of a report?
fn crash(line: &str) -> Option<Outcome> {
    let record = Record::parse(line)?;
    match record.kind() {
        PANIC => {
            let message = record.get("message").unwrap_or_default();
            Some(Outcome::Panic(match record.get("at") {
                Some(at) => format!("{message} at {at}"),
                None => message.into_owned(),
            }))
        }
        FAULT => Some(Outcome::Fault(record.get("kind").unwrap_or_default().into_owned())),
        _ => None,
    }
}

/// What an ending is to a test that runs at that moment; `None` for an orderly end.
fn at_end(ending: &Ending) -> Option<Outcome> {
    match ending {
        Ending::Timeout => Some(Outcome::Timeout),
        Ending::Died(how) => Some(Outcome::Died(how.clone())),
        Ending::Exit(Exit::Panic) => Some(Outcome::Panic("there is no report".to_string())),
        Ending::Exit(Exit::Fault) => Some(Outcome::Fault("there is no report".to_string())),
        Ending::Exit(Exit::Success | Exit::Failed) => None,
    }
}
