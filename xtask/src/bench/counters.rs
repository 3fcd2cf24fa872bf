//! What the CPU's performance counters said of the rows.

use crate::table::{Align, Frame, Table, grouped};
use farpage_pmu::{Event, Events};
use ktest::wire::Record;
use serde_json::{Value, json};

/// Counts by row, or why there are none.
#[derive(Debug, Default)]
pub(super) struct Counters {
    counts: Vec<Count>,
    none: Option<String>,
}

#[derive(Debug)]
struct Count {
    row: String,
    event: String,
    /// Per repetition.
    each: u64,
    /// The part of the time in which it was counted; 0 is never.
    permille: u64,
}

impl Count {
    /// As people read it; what is scaled has a mark.
    fn cell(&self) -> String {
        match self.permille {
            0 => "-".into(),
            1000 => grouped(self.each),
            _ => format!("~{}", grouped(self.each)),
        }
    }
}

impl Counters {
    /// Takes a record if it is about counters.
    pub(super) fn read(&mut self, record: &Record<'_>) {
        let text = |key| record.get(key).unwrap_or_default().into_owned();
        match record.kind() {
            "no-counters" => self.none = Some(text("why")),
            "count" => {
                let n = record.u64("n").unwrap_or(1).max(1);
                let each = (record.u64("count").unwrap_or(0) + n / 2) / n;
                let permille = record.u64("permille").unwrap_or(0);
                self.counts.push(Count { row: text("row"), event: text("event"), each, permille });
            }
            _ => {}
        }
    }

    /// For people; nothing if nobody asked.
    pub(super) fn lines(&self, frame: Frame) -> Vec<String> {
        if let Some(why) = &self.none {
            return vec![format!("nothing was counted: {why}")];
        }
        if self.counts.is_empty() {
            return Vec::new();
        }
        let mut events: Vec<&str> = Vec::new();
        let mut rows: Vec<&str> = Vec::new();
        for count in &self.counts {
            for (list, name) in [(&mut events, &count.event), (&mut rows, &count.row)] {
                if !list.contains(&name.as_str()) {
                    list.push(name);
                }
            }
        }
        let mut columns = vec![("operation", Align::Left)];
        columns.extend(events.iter().map(|event| (*event, Align::Right)));
        let mut table = Table::new(&columns);
        for row in rows {
            let of = |event: &&str| self.counts.iter().find(|one| one.row == row && one.event == *event);
            let mut cells = vec![row.to_owned()];
            cells.extend(events.iter().map(|event| of(event).map(Count::cell).unwrap_or_default()));
            table.row(cells);
        }
        let mut lines = vec![String::new(), "Performance counters, each".into()];
        lines.extend(table.lines(frame));
        lines.push(
            "~ scaled: more events than counters, which took turns; - never counted; \
             this has not run on hardware yet: hold the counts against those of another tool"
                .into(),
        );
        lines
    }

    /// For programs; nothing if nobody asked.
    pub(super) fn json(&self) -> Option<Value> {
        let count = |one: &Count| json!({ "operation": one.row, "event": one.event, "count": one.each, "permille": one.permille });
        match &self.none {
            Some(why) => Some(json!({ "none": why })),
            None if self.counts.is_empty() => None,
            None => Some(json!(self.counts.iter().map(count).collect::<Vec<_>>())),
        }
    }
}

/// A list of events, as `--counters` takes it.
pub(super) fn list(text: &str) -> Result<String, String> {
    match Events::parse(text) {
        Ok(events) => {
            Ok(events.as_slice().iter().map(|event| Event::name(*event)).collect::<Vec<_>>().join(","))
        }
        Err(bad) => Err(bad.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(lines: &[&str]) -> Counters {
        let mut counters = Counters::default();
        for line in lines {
            counters.read(&Record::parse(line).expect("a record"));
        }
        counters
    }

    #[test]
    fn counts_are_shown_by_row_and_event() {
        let counters = counters(&[
            "@count row=\"fault-back\" event=cycles count=9000 permille=1000 n=9",
            "@count row=\"fault-back\" event=page-walks count=91 permille=500 n=9",
            "@count row=\"unmap\" event=cycles count=4001 permille=1000 n=2",
            "@count row=\"unmap\" event=page-walks count=0 permille=0 n=2",
        ]);
        let lines = counters.lines(Frame::Plain);
        let row = |name: &str| {
            let line = lines.iter().find(|line| line.starts_with(name)).expect(name);
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(row("operation"), ["operation", "cycles", "page-walks"]);
        assert_eq!(row("fault-back"), ["fault-back", "1,000", "~10"]);
        assert_eq!(row("unmap"), ["unmap", "2,001", "-"]);
        let json = counters.json().expect("a document");
        assert_eq!((&json[1]["event"], &json[1]["permille"]), (&json!("page-walks"), &json!(500)));
    }

    #[test]
    fn a_machine_without_counters_says_so_in_one_line() {
        let counters = counters(&["@no-counters why=\"this CPU has none\""]);
        assert_eq!(counters.lines(Frame::Plain), ["nothing was counted: this CPU has none"]);
        assert_eq!(counters.json().expect("a document")["none"], "this CPU has none");
        assert!(Counters::default().lines(Frame::Plain).is_empty() && Counters::default().json().is_none());
    }

    #[test]
    fn lists_of_events_are_checked_before_anything_starts() {
        assert_eq!(list("cycles,page-walks,cycles").as_deref(), Ok("cycles,page-walks"));
        assert!(list("cycle").is_err_and(|why| why.contains("no event \"cycle\"")));
    }
}
