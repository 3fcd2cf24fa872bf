//! What a benchmark measured: the rows that the guest sent.
//!
//! [`super::report`] shows them as tables, [`super::baseline`] compares them, and the report draws them.

use super::baseline::Row;
use super::counters::Counters;
use crate::size::Size;
use ktest::wire::Record;
use serde_json::{Map, Value, json};

/// Everything that a run sent.
#[derive(Debug)]
pub(crate) struct Results {
    /// Of all numbers.
    pub(crate) unit: Unit,
    /// Facts about it, by name.
    pub(crate) machine: Vec<(String, String)>,
    /// Single operations.
    pub(crate) operations: Vec<Operation>,
    /// Migrations by size.
    pub(crate) sweep: Vec<Migration>,
    /// What was not measured, and why.
    pub(crate) skipped: Vec<(String, String)>,
    /// What the CPU's performance counters said of them.
    pub(super) counters: Counters,
}

/// What the numbers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Of the guest.
    Instructions,
    /// Of its time-stamp counter.
    Ticks,
    /// On the wall.
    Nanoseconds,
}

/// The cost of one repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    /// All of it.
    pub(crate) total: u64,
    /// The data that is moved or cleared.
    pub(crate) bulk: u64,
    /// How often it was measured.
    pub(crate) repetitions: u64,
}

/// A single operation.
#[derive(Debug)]
pub(crate) struct Operation {
    /// What people call it.
    pub(crate) name: String,
    /// What it costs.
    pub(crate) cost: Cost,
    /// The most that may go beyond the data.
    pub(crate) goal: Option<u64>,
}

/// A migration in one call.
#[derive(Debug)]
pub(crate) struct Migration {
    /// In bytes.
    pub(crate) size: u64,
    /// With large pages where they fit.
    pub(crate) huge: bool,
    /// Where to.
    pub(crate) direction: Direction,
    /// What it costs.
    pub(crate) cost: Cost,
}

/// Where a migration goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the device.
    Device,
    /// And every page read back through the device's table, for the program: what the field's benchmark times.
    DeviceReadBack,
    /// Back to RAM.
    System,
}

impl Results {
    /// For a run by the clock on the wall or not, whose guest counts instructions or not.
    pub(crate) fn new(wall: bool, counted: bool) -> Self {
        let unit = match (wall, counted) {
            (true, _) => Unit::Nanoseconds,
            (false, true) => Unit::Instructions,
            (false, false) => Unit::Ticks,
        };
        Self {
            unit,
            machine: Vec::new(),
            operations: Vec::new(),
            sweep: Vec::new(),
            skipped: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Adds the rows of another run of the same kind. What both were skipped for, or run on, is told once.
    pub(crate) fn extend(&mut self, other: Self) {
        self.operations.extend(other.operations);
        self.sweep.extend(other.sweep);
        for (ours, theirs) in [(&mut self.machine, other.machine), (&mut self.skipped, other.skipped)] {
            for fact in theirs {
                if !ours.contains(&fact) {
                    ours.push(fact);
                }
            }
        }
    }

    /// Takes a line of the console; progress comes back as rows done, of how many.
    pub(crate) fn read(&mut self, line: &str) -> Option<(u64, u64)> {
        let record = Record::parse(line)?;
        let text = |key| record.get(key).unwrap_or_default().into_owned();
        match record.kind() {
            "machine" => {
                let facts = record.fields().map(|(key, value)| (key.to_string(), value.text().into_owned()));
                self.machine.extend(facts);
            }
            "bench" => {
                let cost = Cost::read(&record, self.unit, "n")?;
                self.operations.push(Operation { name: text("name"), cost, goal: record.u64("goal") });
            }
            "sweep" => self.sweep.push(Migration {
                size: record.u64("size")?,
                huge: record.u64("huge")? != 0,
                direction: Direction::read(&text("dir"))?,
                cost: Cost::read(&record, self.unit, "rounds")?,
            }),
            "skip" => self.skipped.push((text("what"), text("why"))),
            "progress" => return record.u64("done").zip(record.u64("of")),
            _ => self.counters.read(&record),
        }
        None
    }

    /// For programs. Numbers are per repetition.
    pub(crate) fn json(&self) -> Value {
        let machine: Map<String, Value> =
            self.machine.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let operation = |row: &Operation| {
            let mut object = row.cost.json();
            object["name"] = json!(row.name);
            object["goal"] = json!(row.goal);
            object["goal_met"] = json!(row.goal_met());
            object
        };
        let migration = |row: &Migration| {
            let mut object = row.cost.json();
            object["size"] = json!(row.size);
            object["page_size"] = json!(if row.huge { 2 << 20 } else { 4096 });
            object["direction"] = json!(row.direction.name());
            object
        };
        let skipped = |(what, why): &(String, String)| json!({ "what": what, "why": why });
        let mut document = json!({
            "unit": self.unit.name(),
            "machine": machine,
            "operations": self.operations.iter().map(operation).collect::<Vec<_>>(),
            "migration": self.sweep.iter().map(migration).collect::<Vec<_>>(),
            "skipped": self.skipped.iter().map(skipped).collect::<Vec<_>>(),
        });
        if let Some(counters) = self.counters.json() {
            document["counters"] = counters;
        }
        document
    }

    /// Every row by its name, to be compared with those of other runs.
    pub(super) fn rows(&self) -> Vec<Row> {
        let row = |name, cost: Cost| Row { name, total: cost.total, bulk: cost.bulk };
        let operations = self.operations.iter().map(|found| row(found.name.clone(), found.cost));
        let sweep = self.sweep.iter().map(|found| {
            let pages = if found.huge { "2 MiB" } else { "4 KiB" };
            row(format!("{} to {}, {pages} pages", Size(found.size), found.direction.name()), found.cost)
        });
        operations.chain(sweep).collect()
    }
}

impl Operation {
    /// Whether it has kept to its goal, if it has one.
    pub(crate) fn goal_met(&self) -> Option<bool> {
        self.goal.map(|goal| self.cost.beyond() <= goal)
    }
}

impl Direction {
    fn read(word: &str) -> Option<Self> {
        match word {
            "dev" => Some(Self::Device),
            "dev+read" => Some(Self::DeviceReadBack),
            "sys" => Some(Self::System),
            _ => None,
        }
    }

    /// As people say it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::DeviceReadBack => "device, read back",
            Self::System => "system",
        }
    }
}

impl Unit {
    /// As people say it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Instructions => "instructions",
            Self::Ticks => "ticks",
            Self::Nanoseconds => "nanoseconds",
        }
    }
}

impl Cost {
    fn read(record: &Record<'_>, unit: Unit, repetitions: &str) -> Option<Self> {
        let repetitions = record.u64(repetitions).unwrap_or(1).max(1);
        if unit == Unit::Nanoseconds {
            let (total, bulk) = (record.u64("ns_median")?, record.u64("ns_copy").unwrap_or(0));
            return Some(Self { total, bulk, repetitions });
        }
        let each = |key| record.u64(key).map(|sum| (sum + repetitions / 2) / repetitions);
        Some(Self { total: each("total")?, bulk: each("bulk").unwrap_or(0), repetitions })
    }

    /// What goes beyond the data.
    pub(crate) fn beyond(self) -> u64 {
        self.total.saturating_sub(self.bulk)
    }

    fn json(self) -> Value {
        json!({
            "total": self.total,
            "data": self.bulk,
            "beyond": self.beyond(),
            "copy_share": if self.total == 0 { 0.0 } else { self.bulk as f64 / self.total as f64 },
            "repetitions": self.repetitions,
        })
    }
}
