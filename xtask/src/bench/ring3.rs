//! The same from ring 3: what operations cost a program, beside what they cost one on Linux.
//!
//! The program is `peer`, of `programs/`; it runs in a machine of its own, that of `exec`. Linux's figures are those of
//! `docs/peer-linux.toml`, of the same operations by the same names. Linux clears memory byte by byte, as instructions are counted, and
//! we word by word: what is beyond the data is compared, totals where Linux's data is not known.

use super::baseline::Row;
use crate::cli::MachineArgs;
use crate::error::Error;
use crate::exec::{self, ExecArgs};
use crate::report::linux::Peer;
use crate::size::Size;
use crate::table::{Align, Frame, Table, grouped};
use console::style;
use ktest::wire::Record;
use serde_json::{Value, json};

/// The name that the rows have before their own.
const NAME: &str = "ring 3: ";

/// One row.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    name: String,
    /// Instructions of the median round, and the words that have to be moved or cleared.
    total: u64,
    bulk: u64,
    goal: Option<u64>,
}

/// A size of the field's benchmark, one way.
#[derive(Debug, PartialEq, Eq)]
struct BySize {
    size: u64,
    huge: bool,
    to_device: bool,
    total: u64,
    bulk: u64,
}

/// What the program measured.
#[derive(Debug, Default)]
pub(super) struct Rows {
    operations: Vec<Cost>,
    sizes: Vec<BySize>,
}

/// What a filter calls them.
const FILTER: &str = "ring3";

/// Does a filter ask for these rows?
pub(super) fn is_asked_for(filter: Option<&str>) -> bool {
    filter.is_none_or(|words| words.split(',').any(|word| FILTER.contains(word)))
}

/// Measures. `sizes` are those that were asked for; none are the usual ones.
pub(super) fn measure(machine: &MachineArgs, sizes: &[Size]) -> Result<Rows, Error> {
    let mut arguments = Vec::new();
    if !sizes.is_empty() {
        let sizes: Vec<String> = sizes.iter().map(|size| size.bytes().to_string()).collect();
        arguments = vec!["--sizes".to_owned(), sizes.join(",")];
    }
    let mut rows = Rows::default();
    exec::watch(&ExecArgs::of("peer", arguments), machine, |line| rows.read(line))?;
    Ok(rows)
}

impl Rows {
    fn read(&mut self, line: &str) {
        let Some(record) = Record::parse(line) else { return };
        let read = || Some((record.u64("total")?, record.u64("bulk")?));
        let Some((total, bulk)) = read() else { return };
        match record.kind() {
            "peer" => self.operations.push(Cost {
                name: record.get("name").unwrap_or_default().into_owned(),
                total,
                bulk,
                goal: record.u64("goal"),
            }),
            "peer-size" => self.sizes.push(BySize {
                size: record.u64("size").unwrap_or(0),
                huge: record.u64("huge") == Some(1),
                to_device: record.get("dir").as_deref() == Some("device"),
                total,
                bulk,
            }),
            _ => {}
        }
    }

    /// To be compared with those of other runs.
    pub(super) fn rows(&self) -> Vec<Row> {
        let operation =
            |row: &Cost| Row { name: format!("{NAME}{}", row.name), total: row.total, bulk: row.bulk };
        let size = |row: &BySize| Row {
            name: format!("{NAME}{} to {}, {} pages", Size(row.size), row.direction(), row.pages()),
            total: row.total,
            bulk: row.bulk,
        };
        self.operations.iter().map(operation).chain(self.sizes.iter().map(size)).collect()
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let operation = |row: &Cost| {
            json!({ "name": row.name, "total": row.total, "data": row.bulk, "beyond": row.beyond(),
                "goal": row.goal, "goal_met": row.goal_met() })
        };
        let size = |row: &BySize| {
            json!({ "size": row.size, "page_size": if row.huge { 2 << 20 } else { 4096 },
                "direction": row.direction(), "total": row.total, "data": row.bulk })
        };
        json!({
            "operations": self.operations.iter().map(operation).collect::<Vec<_>>(),
            "migration": self.sizes.iter().map(size).collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub(super) fn lines(&self, frame: Frame) -> Result<Vec<String>, Error> {
        let peer = Peer::read()?;
        let mut lines = vec![String::new()];
        lines.push(
            style(format!("From ring 3, instructions each, beside {}", peer.kernel())).bold().to_string(),
        );
        lines.extend(self.operation_table(&peer).lines(frame));
        let verdicts: Vec<bool> = self.operations.iter().filter_map(Cost::goal_met).collect();
        let met = verdicts.iter().filter(|&&met| met).count();
        lines.push(format!("{met} of {} goals met", verdicts.len()));
        if !self.sizes.is_empty() {
            let title = "Migration by size from ring 3, instructions a round";
            lines.extend([String::new(), style(title).bold().to_string()]);
            lines.extend(self.size_table(&peer).lines(frame));
        }
        Ok(lines)
    }

    fn operation_table(&self, peer: &Peer) -> Table {
        let mut table = Table::new(&[
            ("operation", Align::Left),
            ("total", Align::Right),
            ("data", Align::Right),
            ("beyond", Align::Right),
            ("goal", Align::Right),
            ("Linux", Align::Right),
            ("beyond", Align::Right),
            ("Linux:us", Align::Right),
        ]);
        for row in &self.operations {
            let goal = row.goal.map(grouped).unwrap_or_default();
            let goal = match row.goal_met() {
                Some(true) => style(goal).green().to_string(),
                _ => style(format!("{goal} missed")).red().to_string(),
            };
            let mut cells =
                vec![row.name.clone(), grouped(row.total), grouped(row.bulk), grouped(row.beyond()), goal];
            if let Some((total, beyond)) = peer.operation(&row.name) {
                cells.push(grouped(total));
                cells.push(beyond.map_or_else(|| "-".into(), grouped));
                cells.push(match beyond {
                    Some(beyond) => times(beyond, row.beyond()),
                    None => format!("{} in all", times(total, row.total)),
                });
            }
            table.row(cells);
        }
        table
    }

    fn size_table(&self, peer: &Peer) -> Table {
        let mut table = Table::new(&[
            ("size", Align::Right),
            ("to", Align::Left),
            ("pages", Align::Left),
            ("total", Align::Right),
            ("data", Align::Right),
            ("beyond", Align::Right),
            ("Linux", Align::Right),
            ("Linux:us, total", Align::Right),
        ]);
        for row in &self.sizes {
            let mut cells = vec![
                Size(row.size).to_string(),
                row.direction().into(),
                row.pages().into(),
                grouped(row.total),
                grouped(row.bulk),
                grouped(row.total.saturating_sub(row.bulk)),
            ];
            if let Some(theirs) = peer.size(row.size, row.huge, row.to_device) {
                cells.extend([grouped(theirs), times(theirs, row.total)]);
            }
            table.row(cells);
        }
        table
    }
}

impl Cost {
    fn beyond(&self) -> u64 {
        self.total.saturating_sub(self.bulk)
    }

    fn goal_met(&self) -> Option<bool> {
        self.goal.map(|goal| self.beyond() < goal)
    }
}

impl BySize {
    const fn direction(&self) -> &'static str {
        if self.to_device { "device, read back" } else { "system" }
    }

    const fn pages(&self) -> &'static str {
        if self.huge { "2 MiB" } else { "4 KiB" }
    }
}

fn times(theirs: u64, ours: u64) -> String {
    format!("{:.1}", theirs as f64 / ours.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Rows {
        let mut rows = Rows::default();
        for line in [
            "@peer name=\"fault-back of 4 KiB\" total=1157 least=1150 bulk=512 n=512 goal=700",
            "@peer name=\"to device, 2 MiB\" total=801179 least=1 bulk=786432 n=9 goal=12000",
            "@peer-size size=2097152 huge=1 dir=system total=266079 bulk=262144 n=5",
            "@peer name=broken",
            "@other total=1 bulk=1",
        ] {
            rows.read(line);
        }
        rows
    }

    #[test]
    fn linux_is_beside_and_goals_are_for_what_is_beyond_the_data() {
        let lines = rows().lines(Frame::Plain).unwrap();
        let plain: Vec<String> =
            lines.iter().map(|line| console::strip_ansi_codes(line).into_owned()).collect();
        let row = |name: &str| plain.iter().find(|line| line.starts_with(name)).unwrap();
        let cells = |name| row(name).split_whitespace().rev().collect::<Vec<_>>();
        assert_eq!(cells("fault-back of 4 KiB")[..5], ["11.3", "7,275", "7,787", "700", "645"]);
        assert!(row("to device, 2 MiB").ends_with("-  4.0 in all"), "{plain:?}");
        assert!(row("to device, 2 MiB").contains("12,000 missed"));
        assert!(plain.contains(&"1 of 2 goals met".to_owned()));
        assert!(plain.iter().any(|line| line.trim_start().starts_with("2M  system  2 MiB  266,079")));
    }

    #[test]
    fn rows_are_compared_by_names_of_their_own() {
        let names: Vec<String> = rows().rows().into_iter().map(|row| row.name).collect();
        assert_eq!(
            names,
            ["ring 3: fault-back of 4 KiB", "ring 3: to device, 2 MiB", "ring 3: 2M to system, 2 MiB pages"]
        );
    }

    #[test]
    fn a_filter_can_ask_for_them_and_spare_them() {
        assert!(is_asked_for(None) && is_asked_for(Some("ring3")) && is_asked_for(Some("alloc,ring")));
        assert!(!is_asked_for(Some("alloc")) && !is_asked_for(Some("fault-back")));
    }
}
