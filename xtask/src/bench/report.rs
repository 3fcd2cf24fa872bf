//! The rows of a benchmark, as tables.

use super::data::{Cost, Migration, Operation, Results, Unit};
use crate::size::Size;
use crate::table::{Align, Frame, Table, grouped, nanoseconds, percent};
use console::style;

impl Results {
    /// For people.
    pub(super) fn lines(&self, frame: Frame) -> Vec<String> {
        let mut lines = Vec::new();
        let facts: Vec<String> = self.machine.iter().map(|(key, value)| format!("{key}={value}")).collect();
        if !facts.is_empty() {
            lines.push(style(facts.join("  ")).dim().to_string());
        }
        let unit = self.unit;
        let operations = self.operation_table();
        if !operations.is_empty() {
            lines.extend([
                String::new(),
                style(format!("Operations, {} each", unit.name())).bold().to_string(),
            ]);
            lines.extend(operations.lines(frame));
            lines.extend(self.goals_line());
        }
        let sweep = self.sweep_table();
        if !sweep.is_empty() {
            let title = format!("Migration by size, {} a round", unit.name());
            lines.extend([String::new(), style(title).bold().to_string()]);
            lines.extend(sweep.lines(frame));
        }
        if operations.is_empty() && sweep.is_empty() {
            lines.push("No row was measured: nothing matches the filter, or everything was skipped".into());
        } else {
            lines.push(unit.legend().into());
        }
        lines.extend(self.counters.lines(frame));
        for (what, why) in &self.skipped {
            lines.push(style(format!("skipped: {what}: {why}")).yellow().to_string());
        }
        lines
    }

    fn operation_table(&self) -> Table {
        let mut table = Table::new(&[
            ("operation", Align::Left),
            ("total", Align::Right),
            ("data", Align::Right),
            ("beyond", Align::Right),
            ("copy", Align::Right),
            ("goal", Align::Right),
            ("n", Align::Right),
        ]);
        for row in &self.operations {
            let mut cells = vec![row.name.clone()];
            cells.extend(row.cost.cells(self.unit));
            let goal = row.goal.map(|goal| self.unit.show(goal)).unwrap_or_default();
            cells.push(match row.goal_met() {
                Some(true) => style(goal).green().to_string(),
                Some(false) => style(format!("{goal} missed")).red().to_string(),
                None => goal,
            });
            cells.push(grouped(row.cost.repetitions));
            table.row(cells);
        }
        table
    }

    fn goals_line(&self) -> Option<String> {
        let verdicts: Vec<bool> = self.operations.iter().filter_map(Operation::goal_met).collect();
        let met = verdicts.iter().filter(|&&met| met).count();
        (!verdicts.is_empty()).then(|| format!("{met} of {} goals met", verdicts.len()))
    }

    fn sweep_table(&self) -> Table {
        let mut table = Table::new(&[
            ("size", Align::Right),
            ("to", Align::Left),
            ("pages", Align::Left),
            ("total", Align::Right),
            ("data", Align::Right),
            ("beyond", Align::Right),
            ("copy", Align::Right),
            ("total, 4K:2M", Align::Right),
            ("beyond, 4K:2M", Align::Right),
        ]);
        for row in &self.sweep {
            let size = Size(row.size).to_string();
            let pages = if row.huge { "2 MiB" } else { "4 KiB" };
            let mut cells = vec![size, row.direction.name().into(), pages.into()];
            cells.extend(row.cost.cells(self.unit));
            if let Some(small) = self.small_counterpart(row) {
                cells.push(ratio(small.total, row.cost.total));
                cells.push(ratio(small.beyond(), row.cost.beyond()));
            }
            table.row(cells);
        }
        table
    }

    /// The same migration with small pages, for a row with huge ones.
    fn small_counterpart(&self, row: &Migration) -> Option<Cost> {
        let same =
            |other: &&Migration| !other.huge && other.size == row.size && other.direction == row.direction;
        row.huge.then(|| self.sweep.iter().find(same)).flatten().map(|other| other.cost)
    }
}

impl Unit {
    fn show(self, number: u64) -> String {
        if self == Self::Nanoseconds { nanoseconds(number) } else { grouped(number) }
    }

    fn legend(self) -> &'static str {
        match self {
            Self::Instructions => {
                "total = all instructions; data = words moved or cleared, one instruction each; \
                 beyond = total - data; copy = data / total"
            }
            Self::Ticks => {
                "total = ticks of the time-stamp counter; data = words moved or cleared: not the same unit"
            }
            Self::Nanoseconds => {
                "total = median; data = the raw copy of the same data in the same run; \
                 beyond = total - data; copy = data / total"
            }
        }
    }
}

impl Cost {
    /// Total, data, beyond, copy share.
    fn cells(self, unit: Unit) -> [String; 4] {
        if unit == Unit::Ticks {
            return [grouped(self.total), grouped(self.bulk), "-".into(), "-".into()];
        }
        let share = percent(self.bulk, self.total);
        [unit.show(self.total), unit.show(self.bulk), unit.show(self.beyond()), share]
    }
}

fn ratio(small: u64, huge: u64) -> String {
    if huge == 0 { "-".into() } else { format!("{:.1}", small as f64 / huge as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(wall: bool, lines: &[&str]) -> Results {
        let mut report = Results::new(wall, !wall);
        for line in lines {
            assert_eq!(report.read(line), None);
        }
        report
    }

    fn plain(report: &Results) -> String {
        let lines = report.lines(Frame::Plain);
        lines.iter().map(|line| console::strip_ansi_codes(line).into_owned() + "\n").collect()
    }

    const FAULT: &str = "@bench name=\"fault-back 2 MiB\" total=5270000 bulk=5242880 n=20 goal=3000";
    const SLOW: &str = "@bench name=split total=4001 bulk=0 n=1 goal=4000";

    #[test]
    fn operations_are_shown_per_repetition_with_their_goals() {
        let text = plain(&report(false, &[FAULT, SLOW]));
        let row = |name| {
            text.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().collect::<Vec<_>>()
        };
        assert_eq!(row("fault-back")[3..], ["263,500", "262,144", "1,356", "99.5", "%", "3,000", "20"]);
        assert_eq!(row("split")[1..], ["4,001", "0", "4,001", "0.0", "%", "4,000", "missed", "1"]);
        assert!(text.contains("1 of 2 goals met"));
    }

    #[test]
    fn the_sweep_compares_page_sizes_of_the_same_migration() {
        let text = plain(&report(
            false,
            &[
                "@sweep size=2097152 huge=0 dir=dev total=400000 bulk=262144 rounds=1",
                "@sweep size=2097152 huge=0 dir=sys total=999999 bulk=262144 rounds=1",
                "@sweep size=2097152 huge=1 dir=dev total=264144 bulk=262144 rounds=1",
            ],
        ));
        let row = text.lines().find(|line| line.contains("2 MiB")).unwrap();
        assert!(row.trim_start().starts_with("2M  device  2 MiB  264,144"));
        assert!(row.ends_with("68.9"), "{row}");
    }

    #[test]
    fn what_is_read_back_is_a_row_of_its_own() {
        let text = plain(&report(
            false,
            &[
                "@sweep size=2097152 huge=1 dir=dev total=264144 bulk=262144 rounds=1",
                "@sweep size=2097152 huge=1 dir=dev+read total=806432 bulk=786432 rounds=1",
                "@sweep size=2097152 huge=0 dir=dev+read total=846432 bulk=786432 rounds=1",
                "@sweep size=2097152 huge=0 dir=elsewhere total=1 bulk=1 rounds=1",
            ],
        ));
        let row = text.lines().find(|line| line.contains("read back  2 MiB")).unwrap();
        assert!(row.ends_with("3.0"), "compared with its own counterpart: {row}");
        assert_eq!(text.lines().filter(|line| line.trim_start().starts_with("2M")).count(), 3);
    }

    #[test]
    fn wall_time_comes_from_the_medians() {
        let line = "@bench name=x total=1 bulk=1 n=9 ns_median=20000 ns_copy=15000";
        let text = plain(&report(true, &[line]));
        assert!(text.contains("20.0 us  15.0 us"), "{text}");
        assert!(text.contains("75.0 %"));
    }

    #[test]
    fn progress_is_passed_on_and_other_lines_are_ignored() {
        let mut report = report(false, &["plain text", "@unknown a=1", "@bench name=broken"]);
        assert_eq!(report.read("@progress done=3 of=28"), Some((3, 28)));
        assert!(plain(&report).contains("No row was measured"));
    }

    #[test]
    fn what_was_skipped_says_why() {
        let text = plain(&report(false, &[FAULT, "@skip what=1G why=\"needs 2 GiB\""]));
        assert!(text.ends_with("skipped: 1G: needs 2 GiB\n"));
    }

    #[test]
    fn the_json_document_has_every_row() {
        let sweep = "@sweep size=4096 huge=0 dir=sys total=10 bulk=5 rounds=2";
        let json = report(false, &["@machine cpu=max", FAULT, sweep, "@skip what=a why=b"]).json();
        assert_eq!(json["unit"], "instructions");
        assert_eq!(json["machine"]["cpu"], "max");
        assert_eq!(json["operations"][0]["beyond"], 1356);
        assert_eq!(json["operations"][0]["goal_met"], true);
        assert_eq!(json["migration"][0]["direction"], "system");
        assert_eq!(json["migration"][0]["page_size"], 4096);
        assert_eq!(json["skipped"][0]["why"], "b");
    }
}
