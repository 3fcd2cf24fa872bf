//! Where the instructions go: phases of faults and migrations, from a trace.

use crate::cli::MachineArgs;
use crate::error::Error;
use crate::lab::data::{Axis, End, Experiment, Kind, Plot};
use crate::table::grouped;
use crate::trace::{self, Level, Trace, TraceRecord};

/// What is recorded: both sizes of pages, touched for the first time, moved to the device, brought back by touches; then moved there
/// and back by calls.
const COMMANDS: &str = "\
    map 0x10_0000_0000 2M rw nohuge; touch 0x10_0000_0000 2M w; migrate 0x10_0000_0000 2M dev0; touch 0x10_0000_0000 2M; \
    migrate 0x10_0000_0000 2M dev0; migrate 0x10_0000_0000 2M ram; \
    map 0x20_0000_0000 16M rw huge; touch 0x20_0000_0000 16M w; migrate 0x20_0000_0000 16M dev0; touch 0x20_0000_0000 16M; \
    migrate 0x20_0000_0000 16M dev0; migrate 0x20_0000_0000 16M ram";
/// More records than that makes.
const RECORDS: u64 = 8192;
/// The phase that moves or clears data.
const COPY: &str = "copy";

/// Runs the commands on a machine of their own.
pub(super) fn experiment(machine: &MachineArgs) -> Result<Experiment, Error> {
    trace::record(COMMANDS, Level::Units, RECORDS, machine).map(|trace| of(&trace))
}

/// Whether a record is one of those.
type Takes = fn(&TraceRecord) -> bool;

/// Operations that are compared, and which records are theirs.
fn classes(trace: &Trace) -> Vec<(String, Trace)> {
    let sizes = [(0, "4 KiB"), (9, "2 MiB")];
    let kinds: [(&str, Takes); 4] = [
        ("first touch", |record| record.kind == "fault" && record.outcome == "allocated"),
        ("fault-back", |record| record.kind == "fault" && record.outcome == "returned"),
        ("to the device", |record| record.kind == "batch" && record.from == "ram"),
        ("to the system", |record| record.kind == "batch" && record.to == "ram"),
    ];
    let class = |(what, takes): (&str, Takes), (order, size): (u8, &str)| {
        let all = trace.records.iter().filter(|record| record.order == order && takes(record));
        let mut records: Vec<TraceRecord> = all.cloned().collect();
        // The first batch there makes what the next ones find.
        if records.last().is_some_and(|record| record.kind == "batch") {
            records.drain(..records.len() - 1);
        }
        (format!("{what}, {size}"), Trace { records, ..Trace::default() })
    };
    let all = kinds.into_iter().flat_map(|kind| sizes.map(|size| class(kind, size)));
    all.filter(|(_, trace)| !trace.records.is_empty()).collect()
}

fn of(trace: &Trace) -> Experiment {
    let words = |label| Axis::new(label, "", false);
    let y = |label, unit| Axis::new(label, unit, false);
    let mut shares =
        Plot::new(Kind::Stacked, "Where the instructions go", words("operation"), y("of all", "%"));
    let each = y("each page of that size, without its copy", "instructions");
    let mut rest = Plot::new(Kind::Stacked, "Where the others go", words("operation"), each);
    let mut findings = Vec::new();
    for (name, trace) in classes(trace) {
        let kind = trace.records[0].kind.clone();
        let (phases, all) = (trace.by_phase(&kind), trace.latencies(&kind).iter().sum::<u64>());
        let pages: u64 = trace.records.iter().map(|record| record.count.map_or(1, u64::from)).sum();
        for (phase, ticks) in &phases {
            shares.number(phase, &name, 100 * ticks, all);
            if phase != COPY {
                rest.number(phase, &name, *ticks, pages);
            }
        }
        let copy = phases.iter().filter(|(phase, _)| phase == COPY).map(|(_, ticks)| ticks).sum::<u64>();
        findings.push(format!(
            "{name}: {} instructions a page, {:.1} % of them in the copy",
            grouped(all / pages.max(1)),
            100.0 * copy as f64 / all.max(1) as f64
        ));
    }
    // In the order in which a batch goes through them; the copy last, so that the others have one colour in both plots.
    let order = trace.by_phase("batch");
    let place = |name: &str| order.iter().position(|(phase, _)| phase == name).unwrap_or(order.len());
    for plot in [&mut shares, &mut rest] {
        plot.series.sort_by_key(|series| (series.name == COPY, place(&series.name)));
    }
    Experiment {
        name: "phases".into(),
        question: "Where do the instructions of faults and migrations go?".into(),
        measures: "records of a trace, from entry to return; a record itself costs 60 instructions at most; copy is the phase that moves \
                   or clears the data; a migration is the last batch of 512 pages of 4 KiB, or of 8 of 2 MiB"
            .into(),
        plots: vec![shares, rest],
        findings,
        end: End::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::PhaseSpan;

    /// A record whose phases take so long each.
    fn record(kind: &str, outcome: &str, from: &str, to: &str, phases: &[(&str, u64)]) -> TraceRecord {
        let mut at = 1000;
        let spans = phases.iter().map(|&(name, ticks)| {
            let begin = at;
            at += ticks;
            PhaseSpan { name: name.into(), begin, end: at }
        });
        let phases: Vec<_> = spans.collect();
        let word = str::to_owned;
        TraceRecord {
            kind: word(kind),
            outcome: word(outcome),
            from: word(from),
            to: word(to),
            start: 1000,
            end: at,
            phases,
            ..TraceRecord::default()
        }
    }

    #[test]
    fn phases_are_sorted_by_operation_and_add_up() {
        let back = || record("fault", "returned", "dev0", "ram", &[("collect", 25), ("copy", 75)]);
        let batch = |ticks| {
            let batch = record("batch", "done", "ram", "dev0", &[("unmap", 100), ("copy", ticks)]);
            TraceRecord { count: Some(4), ..batch }
        };
        let refused = record("fault", "refused", "ram", "ram", &[("alloc", 9)]);
        let unit = record("unit", "moved", "ram", "dev0", &[("copy", 9)]);
        let records = vec![back(), back(), refused, unit, batch(9999), batch(300)];
        let found = of(&Trace { records, lost: 0, counted: true });
        let value = |plot: usize, series: &str, x: &str| {
            let series = found.plots[plot].series.iter().find(|one| one.name == series)?;
            series.points.iter().find(|point| point.x == x)?.value()
        };
        assert_eq!(value(0, "copy", "fault-back, 4 KiB"), Some(75.0));
        assert_eq!(value(0, "collect", "fault-back, 4 KiB"), Some(25.0));
        assert_eq!(
            (value(0, "unmap", "to the device, 4 KiB"), value(1, "unmap", "to the device, 4 KiB")),
            (Some(25.0), Some(25.0))
        );
        assert_eq!(value(1, "copy", "fault-back, 4 KiB"), None, "the rest is without the copy");
        assert_eq!(value(0, "alloc", "first touch, 4 KiB"), None, "what was refused is no first touch");
        assert_eq!(
            found.findings[1],
            "to the device, 4 KiB: 100 instructions a page, 75.0 % of them in the copy"
        );
    }
}
