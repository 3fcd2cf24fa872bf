//! Tables and numbers for people.
//!
//! On a terminal with box lines, elsewhere as plain columns: the same cells either way, so that a script that cuts
//! columns and a person who looks see the same numbers.

use console::measure_text_width;

/// How a column's cells are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// How a table is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// Columns between blanks.
    Plain,
    /// Lines of box characters.
    Boxed,
}

/// A table. Cells may carry colours.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    #[must_use]
    pub fn new(columns: &[(&str, Align)]) -> Self {
        let columns = columns.iter().map(|&(name, align)| (name.to_string(), align)).collect();
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Has no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table, line by line.
    #[must_use]
    pub fn lines(&self, frame: Frame) -> Vec<String> {
        let widths: Vec<usize> =
            self.columns.iter().enumerate().map(|(i, column)| self.width(i, &column.0)).collect();
        let headings: Vec<String> = self.columns.iter().map(|column| column.0.clone()).collect();
        let line = |cells: &[String]| self.line(cells, &widths, frame);
        let rule = |left: &str, cross: &str, right: &str| {
            let bars: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
            format!("{left}{}{right}", bars.join(cross))
        };
        let mut lines = Vec::new();
        if frame == Frame::Boxed {
            lines.push(rule("┌", "┬", "┐"));
        }
        lines.push(line(&headings));
        if frame == Frame::Boxed {
            lines.push(rule("├", "┼", "┤"));
        }
        lines.extend(self.rows.iter().map(|row| line(row)));
        if frame == Frame::Boxed {
            lines.push(rule("└", "┴", "┘"));
        }
        lines
    }

    fn width(&self, column: usize, heading: &str) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| measure_text_width(cell)).chain([measure_text_width(heading)]).max().unwrap_or(0)
    }

    fn line(&self, cells: &[String], widths: &[usize], frame: Frame) -> String {
        let padded = self.columns.iter().zip(widths).enumerate().map(|(index, (column, &width))| {
            let cell = cells.get(index).map_or("", String::as_str);
            let blanks = " ".repeat(width - measure_text_width(cell));
            match column.1 {
                Align::Left => format!("{cell}{blanks}"),
                Align::Right => format!("{blanks}{cell}"),
            }
        });
        let padded: Vec<String> = padded.collect();
        match frame {
            Frame::Plain => padded.join("  ").trim_end().to_string(),
            Frame::Boxed => format!("│ {} │", padded.join(" │ ")),
        }
    }
}

/// `1,234,567`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index != 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `part` of `whole` in per cent; nothing if there is no whole.
#[must_use]
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".into() } else { format!("{:.1} %", 100.0 * part as f64 / whole as f64) }
}

/// Nanoseconds in a unit that reads well.
#[must_use]
pub fn nanoseconds(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{} ns", grouped(ns)),
        10_000..10_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&[("what", Align::Left), ("n", Align::Right)]);
        table.row(vec!["a".into(), "1,000".into()]);
        table.row(vec!["\u{1b}[31mlonger\u{1b}[0m".into(), "7".into()]);
        table.row(vec!["b".into()]);
        table
    }

    #[test]
    fn plain_columns_line_up_and_end_without_blanks() {
        let lines = table().lines(Frame::Plain);
        assert_eq!(lines, ["what        n", "a       1,000", "\u{1b}[31mlonger\u{1b}[0m      7", "b"]);
    }

    #[test]
    fn boxed_lines_are_all_of_one_width() {
        let lines = table().lines(Frame::Boxed);
        assert_eq!(lines[0], "┌────────┬───────┐");
        assert_eq!(lines[3], "│ a      │ 1,000 │");
        assert!(lines.iter().all(|line| measure_text_width(line) == 18));
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn shares_and_times_read_well() {
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(1, 0), "-");
        assert_eq!(nanoseconds(9_999), "9,999 ns");
        assert_eq!(nanoseconds(12_345), "12.3 us");
        assert_eq!(nanoseconds(12_345_678), "12.3 ms");
        assert_eq!(nanoseconds(12_345_678_901), "12.3 s");
    }
}
