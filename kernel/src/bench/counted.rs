//! What the CPU's performance counters say of a row, where it has some and `counters=` asks for it.

use farpage_pmu::{Events, Value};
use ktest::record;

use crate::counting::{self, Counting};
use crate::{boot, console};

/// Says once why nothing will be counted, if that is so.
pub(super) fn announce() {
    let Ok(events) = Events::parse(boot().command.counters) else { return };
    if let Err(why) = counting::count_measured(events.as_slice()) {
        console::with(|out| {
            let _ = record!(out, "no-counters", why = why);
        });
    }
}

/// A row begins.
pub(super) fn begin() -> Option<Counting> {
    let events = Events::parse(boot().command.counters).ok()?;
    counting::count_measured(events.as_slice()).ok()
}

/// It has been measured: one record for each event. `n` is how many measurements the sum is of; those that warm up are among them.
pub(super) fn end(row: &str, counting: Option<Counting>) {
    let Some(Ok(measured)) = counting.map(|counting| counting.read()) else { return };
    for (event, value) in measured.counts.iter() {
        let permille = match value {
            Value::Counted(_) => 1000,
            Value::Scaled { permille, .. } => permille,
            Value::Never => 0,
        };
        let count = value.number().unwrap_or(0);
        console::with(|out| {
            let _ = record!(
                out,
                "count",
                row = row,
                event = event,
                count = count,
                permille = permille,
                n = measured.regions
            );
        });
    }
}
