//! Test lines, in the form the Linux kernel gives them (KTAP, a dialect of TAP).
//!
//! ```text
//! KTAP version 1
//! 1..3
//! # begin kernel::heap::allocates
//! ok 1 - kernel::heap::allocates
//! # begin kernel::heap::aligns
//! # failed: kernel/src/heap.rs:90: 24 is not a multiple of 16
//! not ok 2 - kernel::heap::aligns
//! # begin kernel::apic::x2apic
//! ok 3 - kernel::apic::x2apic # SKIP the CPU has no x2APIC
//! ```
//!
//! Two things are added to the standard, both as diagnostics that any KTAP reader passes over: `# begin`
//! names the test before it runs, so that a panic, a fault or a hang is laid at the right door; and
//! `# failed:` carries the text of a failure. A report of a panic or fatal fault begins with a record,
//! `@panic` or `@fault` ([`PANIC`], [`FAULT`]), at the start of a line.

use core::fmt::{self, Display, Write};

/// The kind of the record that begins a panic report: `@panic at="src/x.rs:1:2" message="..."`.
pub const PANIC: &str = "panic";
/// The kind of the record that begins the report of a fatal fault: `@fault kind=double-fault rip=0x..`.
pub const FAULT: &str = "fault";

pub(crate) const VERSION: &str = "KTAP version 1";
pub(crate) const BEGIN: &str = "# begin ";
pub(crate) const FAILED: &str = "# failed: ";
pub(crate) const SKIP: &str = " # SKIP";

/// Prints the results of a run in order and keeps the count.
pub struct Reporter<'a, W: Write + ?Sized> {
    out: &'a mut W,
    number: usize,
    failed: usize,
}

impl<'a, W: Write + ?Sized> Reporter<'a, W> {
    /// Prints the version and the plan: `count` tests follow.
    ///
    /// # Errors
    /// Whatever `out` gives.
    pub fn begin(out: &'a mut W, count: usize) -> Result<Self, fmt::Error> {
        writeln!(out, "{VERSION}\n1..{count}")?;
        Ok(Self { out, number: 0, failed: 0 })
    }

    /// Names the test that runs next.
    ///
    /// # Errors
    /// Whatever `out` gives.
    pub fn running(&mut self, name: &str) -> fmt::Result {
        self.number += 1;
        writeln!(self.out, "{BEGIN}{name}")
    }

    /// The test named last has passed.
    ///
    /// # Errors
    /// Whatever `out` gives.
    pub fn passed(&mut self, name: &str) -> fmt::Result {
        writeln!(self.out, "ok {} - {name}", self.number)
    }

    /// The test named last has failed; `why` may have several lines.
    ///
    /// # Errors
    /// Whatever `out` gives.
    pub fn failed(&mut self, name: &str, why: &dyn Display) -> fmt::Result {
        self.failed += 1;
        self.out.write_str(FAILED)?;
        write!(Prefixed { out: self.out, prefix: FAILED }, "{why}")?;
        writeln!(self.out, "\nnot ok {} - {name}", self.number)
    }

    /// The test named last did not apply to this machine.
    ///
    /// # Errors
    /// Whatever `out` gives.
    pub fn skipped(&mut self, name: &str, why: &dyn Display) -> fmt::Result {
        write!(self.out, "ok {} - {name}{SKIP} ", self.number)?;
        write!(Prefixed { out: self.out, prefix: "# " }, "{why}")?;
        self.out.write_char('\n')
    }

    /// How many have failed so far.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.failed
    }
}

/// Puts a prefix before every line after the first.
struct Prefixed<'a, W: Write + ?Sized> {
    out: &'a mut W,
    prefix: &'a str,
}

impl<W: Write + ?Sized> Write for Prefixed<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (n, line) in text.split('\n').enumerate() {
            if n > 0 {
                self.out.write_char('\n')?;
                self.out.write_str(self.prefix)?;
            }
            self.out.write_str(line)?;
        }
        Ok(())
    }
}

/// What a line of test output says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// `KTAP version 1`
    Version,
    /// `1..N`
    Plan(usize),
    /// `# begin NAME`
    Begin(&'a str),
    /// `# failed: WHY`
    Failed(&'a str),
    /// `ok N - NAME`
    Ok(usize, &'a str),
    /// `not ok N - NAME`
    NotOk(usize, &'a str),
    /// `ok N - NAME # SKIP WHY`
    Skip(usize, &'a str, &'a str),
    /// Anything else: the console of the test.
    Text,
}

impl<'a> Line<'a> {
    /// Reads one line, without its line end.
    #[must_use]
    pub fn parse(line: &'a str) -> Self {
        if line == VERSION {
            return Self::Version;
        }
        if let Some(name) = line.strip_prefix(BEGIN) {
            return Self::Begin(name.trim());
        }
        if let Some(why) = line.strip_prefix(FAILED) {
            return Self::Failed(why);
        }
        plan(line).or_else(|| result(line)).unwrap_or(Self::Text)
    }
}

fn plan(line: &str) -> Option<Line<'_>> {
    line.strip_prefix("1..")?.parse().ok().map(Line::Plan)
}

fn result(line: &str) -> Option<Line<'_>> {
    let (good, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ')?;
    let number = number.parse().ok()?;
    let name = rest.strip_prefix("- ").unwrap_or(rest);
    Some(match name.split_once(SKIP) {
        Some((name, why)) => Line::Skip(number, name.trim(), why.trim()),
        None if good => Line::Ok(number, name.trim()),
        None => Line::NotOk(number, name.trim()),
    })
}
