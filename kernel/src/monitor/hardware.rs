//! The CPU's performance counters: which events there are, and their counts behind the answers to commands.

use alloc::format;

use farpage_pmu::Event;

use super::Done;
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
