//! The monitor's commands: from the line that a person types to a value that the kernel acts on.
//!
//! One table ([`COMMANDS`]) says what there is. The kernel parses lines with it, `help` prints it, the host completes words
//! from it and shows what is still missing: no command is written down twice. Whatever is wrong with a line is a value
//! ([`Error`]) that names the word and the way out; no line can make the parser panic.
//!
//! The kernel ends the answer to each line with one record, [`READY`]: `n` is the number of the line, `ok` is 1 or 0, `space` the
//! address space that is loaded, and `insns` and `bulk`, where something was measured, its cost.

mod args;
mod complete;
mod error;
mod knobs;
mod table;
mod words;

pub use args::{
    Access, Address, Advice, Device, Huge, Keep, Name, Number, Origin, Place, Prot, Since, Size, Target,
    Text, Topic, TraceWhat, Value, Where, Which,
};
pub use complete::{complete, hint};
pub use error::Error;
pub use knobs::{
    Batch, BreakBeforeMake, Copy, Counters, FailAlloc, FailCopies, FailPlan, FailSite, FlushPolicy,
    FlushThreshold, Granule, GroupLimit, HugePages, Knob, KnobSpec, Log, MaxOrder, Setting, SettingError,
    SkipFlush, Values,
};
pub use table::{COMMANDS, Command, Spec};
pub use words::{Param, Shape};

use words::Words;

/// The record that ends the answer to a line, and the greeting.
pub const READY: &str = "ready";

/// The longest line that the kernel takes, in bytes, its end not counted.
pub const LINE_MAX: usize = 512;

/// A line without its comment, which begins with `#`, and without blanks around it.
#[must_use]
pub fn without_comment(line: &str) -> &str {
    line.split('#').next().unwrap_or_default().trim()
}

/// Reads a line. One that is blank, or all comment, is no command.
///
/// # Errors
/// [`Error`]: the first thing that is wrong.
pub fn parse(line: &str) -> Result<Option<Command<'_>>, Error<'_>> {
    let mut rest = without_comment(line).split_whitespace();
    let Some(name) = rest.next() else { return Ok(None) };
    let spec = Spec::find(name).ok_or_else(|| Error::unknown(name))?;
    let mut words = Words::new(spec, rest)?;
    let command = table::read(spec, &mut words)?;
    words.finish()?;
    Ok(Some(command))
}
