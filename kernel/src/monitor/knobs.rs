//! What can be set: the kernel's log, and the ways to make things go wrong that its tests have.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

use farpage_mm::{FlushReason, Site};
use farpage_pmu::Event;
use kernel_logic::cmdline::CommandLine;
use ktest::monitor::{Knob, Text};

use super::hardware::Chosen;
use super::{Done, Refusal};
use crate::vm::mm;
use crate::vm::rig::fail_copies;
use crate::vm::skip::{Skipping, skip_flushes};
use crate::{boot, console, println};

/// What was set.
#[derive(Default)]
pub(super) struct Knobs {
    log: Option<String>,
    skipping: Option<(String, Skipping)>,
    counting: String,
    /// What the CPU's counters count of each command.
    pub(super) counters: Chosen,
}

impl Knobs {
    pub(super) fn set(&mut self, knob: Option<Knob>, value: Option<Text<'_>>) -> Done {
        match (knob, value) {
            (None, _) => Knob::ALL.iter().for_each(|knob| println!("{}", self.line(*knob))),
            (Some(knob), None) => println!("{}", self.line(knob)),
            (Some(knob), Some(value)) => self.turn(knob, value.0)?,
        }
        Ok(None)
    }

    fn line(&self, knob: Knob) -> String {
        let (value, what) = match knob {
            Knob::Log => {
                let level = format!("{:?}", boot().command.log).to_lowercase();
                (self.log.clone().unwrap_or(level), "off, error, warn, info, debug or trace".to_string())
            }
            Knob::Counters => {
                let now = if self.counting.is_empty() { "off" } else { &self.counting };
                (now.into(), format!("off, or events whose counts follow each answer: {}", Event::NAMES))
            }
            Knob::FailAlloc => {
                ("N".into(), "the next N allocations of the memory manager fail; 0 ends it".into())
            }
            Knob::FailCopies => {
                ("N".into(), "the next N copies fail, on private devices from dev1 on; 0 ends it".into())
            }
            Knob::SkipFlush => {
                let names = FlushReason::ALL.map(name_of).join(", ");
                let now = self.skipping.as_ref().map_or("off", |(name, _)| name);
                (now.into(), format!("off, or the flushes to leave out, at your own risk: {names}"))
            }
        };
        format!("{:<12} {value:<10} {what}", knob.word())
    }

    fn turn(&mut self, knob: Knob, value: &str) -> Result<(), Refusal> {
        match knob {
            Knob::Log => {
                let word = format!("log={value}");
                let line = CommandLine::parse(&word)
                    .map_err(|_| bad(value, "log is off, error, warn, info, debug or trace"))?;
                console::set_log_level(line.log);
                self.log = Some(value.into());
                println!("log is {value}");
            }
            Knob::Counters => {
                self.counting.clear();
                self.counters.set(value)?;
                self.counting = value.into();
            }
            Knob::FailAlloc => {
                let n = number(value)?;
                match n {
                    0 => drop(mm().inject.disarm()),
                    n => mm().inject.arm(Site::ALL, 0, 0, n),
                }
                println!("{}", Next(n, "allocation"));
            }
            Knob::FailCopies => {
                let n = number(value)?;
                fail_copies(0, n);
                println!("{}", Next(n, "copy on a private device from dev1 on"));
            }
            Knob::SkipFlush => {
                self.skipping = None;
                if value != "off" {
                    let reason = FlushReason::ALL.into_iter().find(|reason| name_of(*reason) == value);
                    let reason = reason.ok_or_else(|| bad(value, "set skip-flush lists the names"))?;
                    self.skipping = Some((value.into(), skip_flushes(reason)));
                }
                println!("skip-flush is {value}");
            }
        }
        Ok(())
    }
}

/// What a number of failures means.
struct Next(u64, &'static str);

impl fmt::Display for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(n, what) = self;
        match n {
            0 => write!(f, "no {what} is made to fail"),
            1 => write!(f, "the next {what} fails"),
            n => write!(f, "{n} times the next {what} fails"),
        }
    }
}

fn number(text: &str) -> Result<u64, Refusal> {
    text.parse().map_err(|_| bad(text, "a number is like 0 or 12"))
}

fn bad(value: &str, way_out: &str) -> Refusal {
    Refusal::Said(format!("the knob cannot be \"{value}\": {way_out}"))
}

/// `CopyOnWrite` as `copy-on-write`.
fn name_of(reason: FlushReason) -> String {
    let mut name = String::new();
    for c in format!("{reason:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}
