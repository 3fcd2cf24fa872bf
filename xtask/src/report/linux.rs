//! Our figures beside those of Linux: `docs/peer-linux.toml`, and the rows of `bench` with the same operations.

use crate::bench::data::{Direction, Migration, Operation, Results};
use crate::error::Error;
use crate::lab::data::{Axis, End, Experiment, Kind, Plot};
use crate::size::Size;
use crate::table::{grouped, percent};
use serde::Deserialize;

const TEXT: &str = include_str!("../../../docs/peer-linux.toml");
const HERE: &str = "farpage";

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peer {
    source: Source,
    operation: Vec<Theirs>,
    size: Vec<BySize>,
}

/// Where the figures come from.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    kernel: String,
    configuration: String,
    machine: String,
    method: String,
    note: String,
}

/// An operation there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Theirs {
    name: String,
    total: u64,
    bulk: Option<u64>,
    beyond: Option<u64>,
    /// Our row.
    here: Option<String>,
    /// Why there is none.
    why: Option<String>,
}

/// A size of the field's benchmark, in microseconds of 1,000 instructions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BySize {
    size: String,
    to_device_huge: u64,
    to_device_small: u64,
    to_system_huge: u64,
    to_system_small: u64,
}

impl Peer {
    /// Reads the file that was there when this was built.
    pub(crate) fn read() -> Result<Self, Error> {
        Self::parse(TEXT)
    }

    /// Which Linux it is.
    pub(crate) fn kernel(&self) -> &str {
        &self.source.kernel
    }

    /// What an operation costs there: in all, and beyond its data if that is known.
    pub(crate) fn operation(&self, name: &str) -> Option<(u64, Option<u64>)> {
        self.operation.iter().find(|row| row.name == name).map(|row| (row.total, row.beyond))
    }

    /// What a round of a size costs there, one way, in instructions.
    pub(crate) fn size(&self, size: u64, huge: bool, to_device: bool) -> Option<u64> {
        let is_it = |row: &&BySize| row.size.parse::<Size>().is_ok_and(|found| found.0 == size);
        let row = self.size.iter().find(is_it)?;
        Some(
            1000 * match (to_device, huge) {
                (true, true) => row.to_device_huge,
                (true, false) => row.to_device_small,
                (false, true) => row.to_system_huge,
                (false, false) => row.to_system_small,
            },
        )
    }

    fn parse(text: &str) -> Result<Self, Error> {
        toml::from_str(text).map_err(|why| Error::Peer(why.to_string()))
    }

    /// The figures of both.
    pub(super) fn experiment(&self, results: &Results) -> Experiment {
        let ours = |here: &Option<String>| {
            let name = here.as_deref()?;
            results.operations.iter().find(|row| row.name == name)
        };
        let rows: Vec<(&Theirs, Option<&Operation>)> =
            self.operation.iter().map(|row| (row, ours(&row.here))).collect();
        let mut plots = vec![self.beyond(&rows)];
        plots.extend(self.by_size(&results.sweep));
        plots.push(self.table(&rows));
        let source = &self.source;
        Experiment {
            name: "linux".into(),
            question: format!("What do the same operations cost on {}?", source.kernel),
            measures: format!(
                "the same operations under the same QEMU; there ({}; {}) {}",
                source.configuration, source.machine, source.method
            ),
            plots,
            findings: findings(&rows)
                .into_iter()
                .chain([source.note.clone()])
                .chain(self.not_compared())
                .collect(),
            end: End::Done,
        }
    }

    fn not_compared(&self) -> impl Iterator<Item = String> {
        self.operation
            .iter()
            .filter_map(|row| Some(format!("not compared: {}: {}", row.name, row.why.as_ref()?)))
    }

    fn beyond(&self, rows: &[(&Theirs, Option<&Operation>)]) -> Plot {
        let y = Axis::new("beyond the data", "instructions", true);
        let mut plot =
            Plot::new(Kind::Bars, "Operations beyond their data", Axis::new("operation", "", false), y);
        for (theirs, ours) in rows {
            if let (Some(beyond), Some(ours)) = (theirs.beyond, ours) {
                plot.number(&self.source.kernel, &theirs.name, beyond, 1);
                plot.number(HERE, &theirs.name, ours.cost.beyond(), 1);
            }
        }
        plot
    }

    /// The benchmark of sizes, one plot for each direction.
    fn by_size(&self, sweep: &[Migration]) -> Vec<Plot> {
        type Column = fn(&BySize) -> u64;
        let device: [(bool, Column); 2] =
            [(true, |row| row.to_device_huge), (false, |row| row.to_device_small)];
        let system: [(bool, Column); 2] =
            [(true, |row| row.to_system_huge), (false, |row| row.to_system_small)];
        let directions = [
            ("To the device and read back", Direction::DeviceReadBack, device),
            ("Back to the system", Direction::System, system),
        ];
        let plot = |(title, direction, columns): (&str, Direction, [(bool, Column); 2])| {
            let (x, y) = (Axis::new("size", "bytes", true), Axis::new("one round", "instructions", true));
            let mut plot = Plot::new(Kind::Lines, title, x, y);
            for (huge, theirs) in columns {
                let pages = if huge { "2 MiB pages" } else { "4 KiB pages" };
                let sizes: Vec<(u64, u64)> = self
                    .size
                    .iter()
                    .filter_map(|row| Some((row.size.parse::<Size>().ok()?.0, theirs(row))))
                    .collect();
                for &(size, micros) in &sizes {
                    plot.number(
                        &format!("{}, {pages}", self.source.kernel),
                        &size.to_string(),
                        1000 * micros,
                        1,
                    );
                }
                let ours = sweep.iter().filter(|row| row.huge == huge && row.direction == direction);
                for row in ours.filter(|row| sizes.iter().any(|&(size, _)| size == row.size)) {
                    plot.number(&format!("{HERE}, {pages}"), &row.size.to_string(), row.cost.total, 1);
                }
            }
            plot
        };
        directions.into_iter().map(plot).collect()
    }

    fn table(&self, rows: &[(&Theirs, Option<&Operation>)]) -> Plot {
        let words = |label| Axis::new(label, "", false);
        let mut plot = Plot::new(
            Kind::Table,
            "All operations, in instructions",
            words("operation"),
            words("instructions"),
        );
        for (theirs, ours) in rows {
            let mut cell = |column: &str, text: String| plot.cell(column, &theirs.name, &text);
            let known = |number: Option<u64>| number.map_or_else(|| "-".into(), grouped);
            cell("Linux", grouped(theirs.total));
            cell("its data", known(theirs.bulk));
            cell("beyond", known(theirs.beyond));
            cell("farpage", known(ours.map(|row| row.cost.total)));
            cell("our data", known(ours.map(|row| row.cost.bulk)));
            cell("our beyond", known(ours.map(|row| row.cost.beyond())));
            let part = ours.map(|row| percent(row.cost.beyond(), theirs.beyond.unwrap_or(theirs.total)));
            cell("beyond, of Linux", part.unwrap_or_default());
        }
        plot
    }
}

fn findings(rows: &[(&Theirs, Option<&Operation>)]) -> Vec<String> {
    let pairs: Vec<(f64, &str)> = rows
        .iter()
        .filter_map(|(theirs, ours)| {
            let (theirs_beyond, ours) = (theirs.beyond?, (*ours)?.cost.beyond().max(1));
            Some((theirs_beyond as f64 / ours as f64, theirs.name.as_str()))
        })
        .collect();
    let least = pairs.iter().min_by(|a, b| a.0.total_cmp(&b.0));
    let most = pairs.iter().max_by(|a, b| a.0.total_cmp(&b.0));
    least
        .zip(most)
        .map(|(least, most)| {
            format!(
                "beyond the data, Linux needs {:.1} times as many instructions ({}) to {:.0} times ({})",
                least.0, least.1, most.0, most.1
            )
        })
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of the rows of `bench`, as its source has them.
    fn our_rows() -> Vec<String> {
        let source =
            std::fs::read_to_string(crate::build::root().join("kernel/src/bench/single.rs")).unwrap();
        let names = source.split("name: \"").skip(1).filter_map(|rest| rest.split_once('"'));
        names.map(|(name, _)| name.to_owned()).collect()
    }

    #[test]
    fn every_operation_has_our_row_or_says_why_not() {
        let (peer, ours) = (Peer::read().unwrap(), our_rows());
        assert!(ours.len() > 20, "{ours:?}");
        for row in &peer.operation {
            assert!(row.here.is_some() != row.why.is_some(), "{}: one of here and why", row.name);
            assert!(row.here.iter().all(|name| ours.contains(name)), "{}: bench has no such row", row.name);
        }
    }

    #[test]
    fn the_figures_agree_with_each_other() {
        let peer = Peer::read().unwrap();
        assert_eq!(peer.operation.len(), 15);
        for row in &peer.operation {
            if let (Some(bulk), Some(beyond)) = (row.bulk, row.beyond) {
                assert_eq!(bulk + beyond, row.total, "{}", row.name);
            }
        }
        let sizes: Vec<u64> = peer.size.iter().map(|row| row.size.parse::<Size>().unwrap().0).collect();
        assert_eq!(sizes.len(), 7);
        assert!(sizes.is_sorted(), "{sizes:?}");
    }

    #[test]
    fn a_mistake_in_the_file_is_named() {
        let error = Peer::parse("[source]\nkernel = 7\n").unwrap_err().to_string();
        assert!(error.contains("peer-linux.toml") && error.contains("kernel"), "{error}");
        let unknown = TEXT.replacen("total = ", "totla = ", 1);
        assert!(Peer::parse(&unknown).unwrap_err().to_string().contains("totla"));
    }

    #[test]
    fn both_stand_beside_each_other() {
        let mut results = Results::new(false, true);
        results.read("@bench name=\"fault-back, 4 KiB\" total=2400 bulk=1024 n=2");
        results.read("@sweep size=2097152 huge=1 dir=sys total=264144 bulk=262144 rounds=1");
        results.read("@sweep size=12288 huge=1 dir=sys total=1 bulk=1 rounds=1");
        let found = Peer::read().unwrap().experiment(&results);
        let bars = &found.plots[0].series;
        assert_eq!((bars[0].name.as_str(), bars[0].points[0].value()), ("Linux 7.2.12", Some(7275.0)));
        assert_eq!((bars[1].name.as_str(), bars[1].points[0].value()), ("farpage", Some(688.0)));
        assert_eq!(bars[0].points.len(), 1, "only what both have");
        let system = &found.plots[2];
        let ours: Vec<_> = system.series.iter().filter(|series| series.name.starts_with("farpage")).collect();
        assert_eq!(
            (ours.len(), ours[0].points.len()),
            (1, 1),
            "sizes that Linux was not measured at are left out"
        );
        assert_eq!(system.series[0].points[0].value(), Some(504_000.0));
        assert!(found.findings[0].contains("10.6 times"), "{:?}", found.findings);
    }
}
