//! What `bench` measured, as experiments: migration by size, and single operations.

use crate::bench::data::{Cost, Direction, Migration, Results, Unit};
use crate::lab::data::{Axis, End, Experiment, Kind, Plot};
use crate::table::{grouped, percent};

/// The name of the plot that the README shows.
pub(super) const README_PLOT: &str = "Beyond the data";

/// 2 MiB pages against 4 KiB pages over size, both directions.
pub(super) fn migration(results: &Results) -> Experiment {
    let unit = results.unit.name();
    let wall = results.unit == Unit::Nanoseconds;
    let y = |label, log| Axis::new(label, unit, log);
    let speed =
        Axis::new("data moved", if wall { "bytes per nanosecond" } else { "bytes per instruction" }, false);
    // On the clock, what is beyond the copy is a difference of two times that vary.
    let findings = if wall { Vec::new() } else { at_the_largest(results) };
    Experiment {
        name: "migration".into(),
        question: "What does it cost to move memory to the device and back, by its size and the size of its pages?".into(),
        measures: "one call that moves all of it; the mean of 5 rounds after one to warm up; nothing is touched in between".into(),
        plots: vec![
            by_size(results, "Throughput", speed, |row| Some((row.size, row.cost.total))),
            by_size(results, "Latency", y("one call", true), |row| Some((row.cost.total, 1))),
            by_size(results, README_PLOT, y("one call, without its data", true), |row| Some((row.cost.beyond(), 1))),
            by_size(results, "The share of the copy", Axis::new("data of all", "%", false), |row| {
                Some((100 * row.cost.bulk.min(row.cost.total), row.cost.total))
            }),
        ],
        findings,
        end: End::Done,
    }
    .varying(wall)
}

fn by_size(results: &Results, title: &str, y: Axis, value: fn(&Migration) -> Option<(u64, u64)>) -> Plot {
    let mut plot = Plot::new(Kind::Lines, title, Axis::new("size", "bytes", true), y);
    for (direction, to) in [(Direction::Device, "to the device"), (Direction::System, "to the system")] {
        for (huge, pages) in [(true, "2 MiB pages"), (false, "4 KiB pages")] {
            let rows = results.sweep.iter().filter(|row| row.direction == direction && row.huge == huge);
            for row in rows {
                if let Some((sum, n)) = value(row) {
                    plot.number(&format!("{to}, {pages}"), &row.size.to_string(), sum, n);
                }
            }
        }
    }
    plot
}

/// The two sizes of pages at the largest size, in words.
fn at_the_largest(results: &Results) -> Vec<String> {
    let largest = results.sweep.iter().map(|row| row.size).max().unwrap_or(0);
    let sentence = |(direction, to): (Direction, &str)| {
        let cost = |huge| {
            let mut rows = results.sweep.iter();
            rows.find(|row| row.size == largest && row.huge == huge && row.direction == direction)
                .map(|row| row.cost)
        };
        let (large, small): (Cost, Cost) = (cost(true)?, cost(false)?);
        let times = |small: u64, large: u64| small as f64 / large.max(1) as f64;
        Some(format!(
            "{} {to}: 4 KiB pages cost {:.1} times as much as 2 MiB pages, beyond the data {:.0} times; the copy is {} and {}",
            crate::size::Size(largest),
            times(small.total, large.total),
            times(small.beyond(), large.beyond()),
            percent(small.bulk, small.total),
            percent(large.bulk, large.total)
        ))
    };
    [(Direction::Device, "to the device"), (Direction::System, "to the system")]
        .into_iter()
        .filter_map(sentence)
        .collect()
}

/// Every row of single operations.
pub(super) fn operations(results: &Results) -> Experiment {
    let unit = results.unit.name();
    let wall = results.unit == Unit::Nanoseconds;
    let words = |label| Axis::new(label, "", false);
    let y = Axis::new("beyond the data", unit, true);
    let mut bars = Plot::new(Kind::Bars, "Operations", words("operation"), y);
    let mut table = Plot::new(Kind::Table, "Operations in numbers", words("operation"), words(unit));
    for row in &results.operations {
        let cost = row.cost;
        bars.number("beyond the data", &row.name, cost.beyond(), 1);
        let goal = row.goal.map(grouped).unwrap_or_default();
        let met = if row.goal_met() == Some(false) { " (missed)" } else { "" };
        for (column, text) in [
            (format!("total, {unit}"), grouped(cost.total)),
            ("data".into(), grouped(cost.bulk)),
            ("beyond".into(), grouped(cost.beyond())),
            ("copy".into(), percent(cost.bulk, cost.total)),
            ("goal for beyond".into(), goal + met),
        ] {
            table.cell(&column, &row.name, &text);
        }
    }
    let goals: Vec<bool> = results.operations.iter().filter_map(|row| row.goal_met()).collect();
    let met = format!("{} of {} goals are met", goals.iter().filter(|met| **met).count(), goals.len());
    Experiment {
        name: "operations".into(),
        question: "What does each operation cost beyond the data that it moves or clears?".into(),
        measures: "single operations, call or touch included, the mean of some repetitions".into(),
        plots: vec![bars, table],
        findings: if goals.is_empty() { Vec::new() } else { vec![met] },
        end: End::Done,
    }
    .varying(wall)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let mut results = Results::new(false, true);
        for line in [
            "@bench name=\"fault-back, 4 KiB\" total=2400 bulk=1024 n=2 goal=700",
            "@bench name=split total=5001 bulk=0 n=1 goal=4000",
            "@sweep size=2097152 huge=1 dir=dev total=524288 bulk=262144 rounds=1",
            "@sweep size=2097152 huge=0 dir=dev total=1048576 bulk=262144 rounds=1",
            "@sweep size=2097152 huge=0 dir=dev+read total=9 bulk=1 rounds=1",
        ] {
            assert_eq!(results.read(line), None);
        }
        results
    }

    #[test]
    fn a_migration_has_its_place_in_every_plot() {
        let found = migration(&results());
        let value = |plot: usize, series: usize| found.plots[plot].series[series].points[0].value();
        assert_eq!(found.plots[0].series.len(), 2, "what is read back is another experiment's");
        assert_eq!((value(0, 0), value(0, 1)), (Some(4.0), Some(2.0)));
        assert_eq!((value(1, 0), value(2, 0), value(3, 0)), (Some(524_288.0), Some(262_144.0), Some(50.0)));
        assert!(
            found.findings[0].starts_with("2M to the device: 4 KiB pages cost 2.0 times as much"),
            "{:?}",
            found.findings
        );
        assert!(found.plots.iter().all(|plot| plot.exact));
    }

    #[test]
    fn times_are_not_called_exact() {
        let mut wall = Results::new(true, false);
        wall.read("@sweep size=4096 huge=0 dir=dev ns_median=2048 ns_copy=9 rounds=5");
        let found = migration(&wall);
        assert!(found.plots.iter().all(|plot| !plot.exact));
        assert_eq!(
            (found.plots[0].y.unit.as_str(), found.plots[0].series[0].points[0].value()),
            ("bytes per nanosecond", Some(2.0))
        );
    }

    #[test]
    fn operations_say_whether_goals_are_met() {
        let found = operations(&results());
        assert_eq!(found.findings, ["1 of 2 goals are met"]);
        let missed = &found.plots[1].series[4].points[1].y;
        assert_eq!(*missed, crate::lab::data::Found::Text("4,000 (missed)".into()));
    }
}
