//! Counters: all of them, and what has changed.

use alloc::vec::Vec;
use core::fmt;

use farpage_mm::{Event, Machine as _};

use super::Done;
use crate::println;
use crate::units::Grouped;
use crate::vm::{Machine, mm};

/// The events so far, to hold later counts against.
pub(super) struct Changes([u64; Event::COUNT]);

impl Changes {
    pub(super) fn begin() -> Self {
        Self(core::array::from_fn(|n| Machine::counted(Event::ALL[n])))
    }

    /// How often something has happened since.
    pub(super) fn of(&self, event: Event) -> u64 {
        Machine::counted(event) - self.0[event as usize]
    }
}

/// A number and what it counts.
pub(super) struct Plural(pub(super) u64, pub(super) &'static str);

impl fmt::Display for Plural {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", Grouped(self.0), self.1, if self.0 == 1 { "" } else { "s" })
    }
}

/// What `stat` and `events` compare with.
pub(super) struct Counters {
    /// At the last `stat`, or at the beginning.
    stat: Vec<(&'static str, u64)>,
    /// Before the last command that was not `events`.
    command: Changes,
}

fn read() -> Vec<(&'static str, u64)> {
    let mut all = Vec::new();
    mm().vmstat(&mut |name, value| all.push((name, value)));
    all
}

impl Counters {
    pub(super) fn new() -> Self {
        Self { stat: read(), command: Changes::begin() }
    }

    /// A command begins.
    pub(super) fn begin(&mut self) {
        self.command = Changes::begin();
    }

    pub(super) fn stat(&mut self, diff: bool) -> Done {
        let now = read();
        let mut shown = 0;
        for (&(name, value), &(_, before)) in now.iter().zip(&self.stat) {
            if !diff {
                println!("{name:<28} {value:>14}");
            } else if value != before {
                println!("{name:<28} {:>+14}", value.wrapping_sub(before).cast_signed());
                shown += 1;
            }
        }
        if diff && shown == 0 {
            println!("no counter has changed since the last stat");
        }
        self.stat = now;
        Ok(None)
    }

    pub(super) fn events(&self) -> Done {
        let mut shown = 0;
        for &event in Event::ALL {
            let count = self.command.of(event);
            if count != 0 {
                println!("{:<28} {count:>+14}", event.name());
                shown += 1;
            }
        }
        if shown == 0 {
            println!("the command before has changed no counter");
        }
        Ok(None)
    }
}
