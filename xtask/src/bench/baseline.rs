//! `bench --baseline FILE`: today's counts beside those that were checked in.
//!
//! Counts repeat to the last instruction, so a change of one is a change of the program. What a row does beyond its data and
//! the words that it moves are compared apart: of a 2 MiB fault the copy is 99.7 %, and twice the work around it would hide
//! below 2 % of the sum. A count may grow by 2 %, or by one instruction, for counts are rounded to whole ones per repetition.
//! The file holds one row a line, for people to read in a diff, and the machine that was measured.

use super::BenchArgs;
use crate::error::{Error, at};
use crate::qemu::Qemu;
use crate::size::Size;
use crate::table::{Align, Frame, Table, grouped};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;

/// How much a count may grow, in percent.
const ALLOWED: u64 = 2;

/// A row of the benchmark: instructions of one repetition, and the words moved or cleared among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) total: u64,
    pub(super) bulk: u64,
}

/// Rows, and what they were measured on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Baseline {
    /// What must be the same in both: names of options and their values.
    machine: Vec<(String, String)>,
    rows: Vec<Row>,
}

/// What must be the same for counts to be compared.
pub(super) fn machine(args: &BenchArgs, qemu: &Qemu) -> Vec<(String, String)> {
    let sizes: Vec<String> = args.sizes.iter().map(Size::to_string).collect();
    let device = qemu.devices.first().map_or("none".into(), |device| device.size.to_string());
    let facts = [
        ("memory", qemu.memory.to_string()),
        ("device-size", device),
        ("device-count", qemu.devices.len().to_string()),
        ("cpus", qemu.cpus.to_string()),
        ("cpu", qemu.cpu.clone()),
        ("sizes", if sizes.is_empty() { "usual".into() } else { sizes.join(",") }),
    ];
    facts.map(|(key, value)| (key.to_string(), value)).to_vec()
}

impl Baseline {
    pub(super) fn new(machine: Vec<(String, String)>, rows: Vec<Row>) -> Self {
        Self { machine, rows }
    }

    /// The file's; with `machine`, what this run is going to be, which must be the same.
    pub(super) fn of_file(path: &Path, machine: &[(String, String)]) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
        let read = text.and_then(|text| Self::read(&text));
        let read = read.map_err(|why| Error::Baseline { path: path.into(), why })?;
        let other = machine.iter().find(|fact| !read.machine.contains(fact));
        let Some((key, ours)) = other else { return Ok(read) };
        let theirs = read.machine.iter().find(|(theirs, _)| theirs == key);
        Err(Error::OtherMachine {
            path: path.into(),
            key: key.clone(),
            theirs: theirs.map_or("unknown".into(), |(_, value)| value.clone()),
            ours: ours.clone(),
        })
    }

    fn read(text: &str) -> Result<Self, String> {
        let json: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let machine = json["machine"].as_object().ok_or("it names no machine")?;
        let fact = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_string()));
        let machine: Option<Vec<_>> = machine.iter().map(fact).collect();
        let rows = json["rows"].as_array().ok_or("it has no rows")?;
        let row = |row: &Value| {
            let read = || {
                let (total, bulk) = (row["total"].as_u64()?, row["bulk"].as_u64()?);
                Some(Row { name: row["name"].as_str()?.into(), total, bulk })
            };
            read().ok_or_else(|| format!("a row needs name, total and bulk, unlike {row}"))
        };
        let rows = rows.iter().map(row).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { machine: machine.ok_or("a fact of the machine is not a text")?, rows })
    }

    /// JSON with one row a line.
    fn text(&self) -> String {
        let facts = self.machine.iter().map(|(key, value)| format!("{}: {}", json!(key), json!(value)));
        let mut text = format!("{{\n  \"machine\": {{{}}},\n", facts.collect::<Vec<_>>().join(", "));
        let row = |Row { name, total, bulk }: &Row| {
            format!("    {{\"name\": {}, \"total\": {total}, \"bulk\": {bulk}}}", json!(name))
        };
        let rows: Vec<String> = self.rows.iter().map(row).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  \"rows\": [\n{}\n  ]\n}}", rows.join(",\n"));
        text
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), Error> {
        std::fs::write(path, self.text()).map_err(at(path))
    }

    /// How `new` differs from this.
    pub(super) fn compare(&self, new: &Self) -> Comparison {
        let mut found = Comparison::default();
        for (key, now) in new.machine.iter().filter(|fact| !self.machine.contains(fact)) {
            let before = self.machine.iter().find(|(name, _)| name == key);
            let before = before.map_or("unknown", |(_, value)| value);
            found.machine.push(format!("another machine: {key} is {now}, was {before}"));
        }
        for old in &self.rows {
            let Some(row) = new.rows.iter().find(|row| row.name == old.name) else {
                found.missing.push(format!("\"{}\" is in the baseline and was not measured", old.name));
                continue;
            };
            found.row(old, row);
        }
        let unknown = new.rows.iter().filter(|row| self.rows.iter().all(|old| old.name != row.name));
        found.missing.extend(unknown.map(|row| format!("\"{}\" is not in the baseline", row.name)));
        found
    }
}

/// A count that is another one now.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Difference {
    row: String,
    /// What is counted.
    what: &'static str,
    old: u64,
    new: u64,
}

impl Difference {
    fn is_beyond(&self) -> bool {
        let by = self.old.abs_diff(self.new);
        by > 1 && u128::from(by) * 100 > u128::from(self.old) * u128::from(ALLOWED)
    }

    fn is_worse(&self) -> bool {
        self.new > self.old && self.is_beyond()
    }

    fn percent(&self) -> String {
        if self.old == 0 {
            return "new".into();
        }
        format!("{:+.2} %", (self.new as f64 - self.old as f64) / self.old as f64 * 100.0)
    }

    fn verdict(&self) -> &'static str {
        match (self.is_beyond(), self.new > self.old) {
            (false, _) => "",
            (true, true) => "worse",
            (true, false) => "better",
        }
    }
}

/// What two runs differ in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Comparison {
    /// One sentence for each fact of the machine that is another one.
    machine: Vec<String>,
    /// Rows that are in both.
    compared: usize,
    differences: Vec<Difference>,
    /// One sentence for each row that only one has.
    missing: Vec<String>,
}

impl Comparison {
    fn row(&mut self, old: &Row, new: &Row) {
        self.compared += 1;
        let beyond = |row: &Row| row.total.saturating_sub(row.bulk);
        for (what, old_count, count) in
            [("beyond the data", beyond(old), beyond(new)), ("data", old.bulk, new.bulk)]
        {
            if old_count != count {
                let row = new.name.clone();
                self.differences.push(Difference { row, what, old: old_count, new: count });
            }
        }
    }

    /// For people: each count that differs, each row that is missing, and the sum.
    pub(super) fn lines(&self, frame: Frame) -> Vec<String> {
        let mut table = Table::new(&[
            ("operation", Align::Left),
            ("instructions", Align::Left),
            ("baseline", Align::Right),
            ("now", Align::Right),
            ("change", Align::Right),
            ("", Align::Left),
        ]);
        for found in &self.differences {
            let (old, new) = (grouped(found.old), grouped(found.new));
            let verdict = found.verdict().into();
            table.row(vec![found.row.clone(), found.what.into(), old, new, found.percent(), verdict]);
        }
        let mut lines = self.machine.clone();
        if !table.is_empty() {
            lines.extend(table.lines(frame));
        }
        lines.extend(self.missing.iter().cloned());
        let sum = if self.differences.is_empty() { "no count differs".into() } else { self.sum() };
        lines.push(format!("{} rows compared: {sum}", self.compared));
        lines
    }

    fn sum(&self) -> String {
        let beyond = |worse| {
            self.differences.iter().filter(|found| found.is_beyond() && found.is_worse() == worse).count()
        };
        format!(
            "{} counts differ, {} worse by more than {ALLOWED} %, {} better",
            self.differences.len(),
            beyond(true),
            beyond(false)
        )
    }

    /// The rows that both have cost no more than is allowed, and both have the same rows.
    pub(super) fn verdict(&self, path: &Path) -> Result<(), Error> {
        let worse = self.differences.iter().filter(|found| found.is_worse()).count();
        match (worse, self.missing.len()) {
            (0, 0) => Ok(()),
            (worse, missing) => Err(Error::Regressions { path: path.into(), worse, missing }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline(rows: &[(&str, u64, u64)]) -> Baseline {
        let row = |&(name, total, bulk): &(&str, u64, u64)| Row { name: name.into(), total, bulk };
        let machine = vec![("memory".into(), "2G".into()), ("sizes".into(), "2M".into())];
        Baseline::new(machine, rows.iter().map(row).collect())
    }

    /// Whether going from one count to the other fails.
    fn fails(old: u64, new: u64) -> bool {
        let (old, new) = (baseline(&[("x", old, 0)]), baseline(&[("x", new, 0)]));
        old.compare(&new).verdict(Path::new("f")).is_err()
    }

    #[test]
    fn two_percent_pass_and_more_fails() {
        assert!(!fails(1000, 1000) && !fails(1000, 1020));
        assert!(fails(1000, 1021));
        assert!(fails(204_800, 208_897) && !fails(204_800, 208_896));
        assert!(!fails(u64::MAX, u64::MAX - 1), "no overflow");
    }

    #[test]
    fn small_counts_may_differ_by_one() {
        assert!(!fails(10, 11) && fails(10, 12));
        assert!(!fails(0, 1) && fails(0, 2));
    }

    #[test]
    fn better_is_said_and_passes() {
        let found = baseline(&[("x", 1000, 0)]).compare(&baseline(&[("x", 900, 0)]));
        found.verdict(Path::new("f")).unwrap();
        let lines = found.lines(Frame::Plain);
        assert!(lines[1].contains("-10.00 %  better"), "{lines:?}");
        assert_eq!(lines[2], "1 rows compared: 1 counts differ, 0 worse by more than 2 %, 1 better");
    }

    #[test]
    fn work_does_not_hide_behind_the_data() {
        let old = baseline(&[("fault-back", 263_064, 262_144)]);
        let found = old.compare(&baseline(&[("fault-back", 263_164, 262_144)]));
        assert!(found.verdict(Path::new("f")).is_err(), "0.04 % of all, 11 % of what is ours");
        let more_data = old.compare(&baseline(&[("fault-back", 525_208, 524_288)]));
        assert_eq!(more_data.differences.iter().map(|found| found.what).collect::<Vec<_>>(), ["data"]);
        assert!(more_data.verdict(Path::new("f")).is_err());
    }

    #[test]
    fn a_row_that_only_one_has_fails_with_a_sentence() {
        let (one, two) = (baseline(&[("a", 1, 0)]), baseline(&[("a", 1, 0), ("b", 1, 0)]));
        for (old, new, sentence) in
            [(&one, &two, "\"b\" is not in"), (&two, &one, "\"b\" is in the baseline and was not")]
        {
            let found = old.compare(new);
            assert!(found.lines(Frame::Plain)[0].starts_with(sentence));
            let error = found.verdict(Path::new("f")).unwrap_err().to_string();
            assert!(error.contains("1 row is in only one"), "{error}");
        }
        assert_eq!(one.compare(&one).lines(Frame::Plain), ["1 rows compared: no count differs"]);
    }

    #[test]
    fn the_file_has_a_row_a_line_and_is_read_as_it_was_written() {
        let written = baseline(&[("a, \"b\"", 12, 3), ("c", 4, 0)]);
        let text = written.text();
        assert!(text.contains("\n    {\"name\": \"c\", \"total\": 4, \"bulk\": 0}\n"), "{text}");
        assert_eq!(Baseline::read(&text).unwrap(), written);
        for broken in ["", "{}", "{\"machine\": {}}", "{\"machine\": {}, \"rows\": [{\"name\": \"a\"}]}"] {
            assert!(Baseline::read(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_new_baseline_says_that_it_is_of_another_machine() {
        let (old, mut new) = (baseline(&[("a", 1, 0)]), baseline(&[("a", 1, 0)]));
        new.machine[0].1 = "3G".into();
        let lines = old.compare(&new).lines(Frame::Plain);
        assert_eq!(lines, ["another machine: memory is 3G, was 2G", "1 rows compared: no count differs"]);
    }

    #[test]
    fn another_machine_is_refused() {
        let path = std::env::temp_dir().join(format!("farpage-baseline-{}", std::process::id()));
        baseline(&[("a", 1, 0)]).write(&path).unwrap();
        let facts = |memory: &str| vec![("memory".to_string(), memory.to_string())];
        assert!(Baseline::of_file(&path, &facts("2G")).is_ok());
        let error = Baseline::of_file(&path, &facts("3G")).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("memory 2G") && error.contains("3G"), "{error}");
        assert!(Baseline::of_file(&path, &[]).is_err(), "no such file");
    }
}
