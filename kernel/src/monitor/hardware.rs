//! The CPU's performance counters: which events there are, and their counts behind the answers to commands.

use alloc::format;

use farpage_pmu::{Event, Events};

use super::{Done, Refusal};
use crate::counting::{self, Counting, NotCounted};
use crate::println;

/// `counters`: one line where there are none.
pub(super) fn list() -> Done {
    let pmu = match counting::counters() {
        Ok(counters) => counters.pmu(),
        Err(why) => {
            println!("{why}");
            return Ok(None);
        }
    };
    println!("{pmu}");
    for event in Event::ALL {
        match pmu.row(event) {
            Ok(row) => {
                let codes = row.codes.iter().map(|code| format!(" {:#04x}/{:#04x}", code.event, code.umask));
                println!(
                    "{event:<18}{} {} ({})",
                    codes.collect::<alloc::string::String>(),
                    row.name,
                    row.manual
                );
            }
            Err(why) => println!("{event:<18} -- {why}"),
        }
    }
    println!("this has not run on hardware yet: hold the counts against those of another tool");
    Ok(None)
}

/// The events that `set counters` has chosen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chosen(Option<Events>);

impl Chosen {
    /// Chooses events by their names, or none by `off`.
    pub(super) fn set(&mut self, list: &str) -> Result<(), Refusal> {
        *self = Self(None);
        if list != "off" {
            let events = Events::parse(list).map_err(|bad| Refusal::said(&bad))?;
            // Told now, and not behind each command.
            drop(counting::count_measured(events.as_slice()).map_err(|why| Refusal::said(&why))?);
            *self = Self(Some(events));
        }
        println!("counters is {list}");
        Ok(())
    }

    /// A command begins.
    pub(super) fn begin(&self) -> Option<Result<Counting, NotCounted>> {
        self.0.map(|events| counting::count_measured(events.as_slice()))
    }
}

/// A command has ended: what its operation counted, if it measured one.
pub(super) fn show(counting: Result<Counting, NotCounted>) {
    let measured = match counting.map(|counting| counting.read()) {
        Ok(Ok(measured)) => measured,
        Ok(Err(refused)) => return println!("nothing was counted: {refused}"),
        Err(why) => return println!("nothing was counted: {why}"),
    };
    if measured.regions > 0 {
        measured.counts.iter().for_each(|(event, value)| println!("{event:<18} {value}"));
    }
}
