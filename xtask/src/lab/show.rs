//! Experiments as tables, for people.

use super::data::{End, Experiment, Found, Kind, Plot, Point};
use crate::size::Size;
use crate::table::{Align, Frame, Table, grouped};
use console::style;

/// The whole experiment, line by line.
#[must_use]
pub fn lines(experiment: &Experiment, frame: Frame) -> Vec<String> {
    let mut lines = vec![
        format!("{}  {}", style(&experiment.name).bold(), experiment.question),
        style(format!("measured: {}", experiment.measures)).dim().to_string(),
    ];
    for plot in &experiment.plots {
        let y = if plot.y.unit.is_empty() {
            plot.y.label.clone()
        } else {
            format!("{}, {}", plot.y.label, plot.y.unit)
        };
        let varies = if plot.exact { "" } else { " (not the same in every run)" };
        let what = if plot.kind == Kind::Table { String::new() } else { format!(": {y}") };
        lines.extend([String::new(), format!("{}{what}{varies}", style(&plot.title).bold())]);
        lines.extend(table(plot).lines(frame));
    }
    if !experiment.findings.is_empty() {
        lines.push(String::new());
    }
    lines.extend(experiment.findings.iter().cloned());
    match &experiment.end {
        End::Skipped(why) => lines.push(style(format!("skipped: {why}")).yellow().to_string()),
        End::Failed(why) => lines.push(style(format!("failed: {why}")).red().to_string()),
        End::Open | End::Done => {}
    }
    lines
}

fn table(plot: &Plot) -> Table {
    let align = if plot.kind == Kind::Table { Align::Left } else { Align::Right };
    let mut columns = vec![(plot.x.label.as_str(), Align::Left)];
    columns.extend(plot.series.iter().map(|series| (series.name.as_str(), align)));
    let mut table = Table::new(&columns);
    for x in plot.xs() {
        let mut cells = vec![show_x(plot, x)];
        for series in &plot.series {
            let point = series.points.iter().find(|point| point.x == x);
            cells.push(point.map(show_y).unwrap_or_default());
        }
        table.row(cells);
    }
    table
}

/// A value of the axis that is varied.
#[must_use]
pub fn show_x(plot: &Plot, x: &str) -> String {
    match (plot.x.unit.as_str(), x.parse::<u64>()) {
        ("bytes", Ok(bytes)) => Size(bytes).to_string(),
        (_, Ok(number)) => grouped(number),
        _ => x.into(),
    }
}

/// What was found, one of it.
#[must_use]
pub fn show_y(point: &Point) -> String {
    match &point.y {
        Found::Text(text) => text.clone(),
        Found::Number { sum, n } if sum.is_multiple_of((*n).max(1)) => grouped(sum / (*n).max(1)),
        Found::Number { .. } => decimal(point.value().unwrap_or(0.0)),
    }
}

/// Three digits that matter, and all before the point.
#[must_use]
pub fn decimal(value: f64) -> String {
    match value {
        value if value >= 100.0 => grouped(value.round() as u64),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
