//! What experiments found, as the guest sends it.
//!
//! `@exp name= question= measures=` begins an experiment, `@plot id= kind= title= x= y= ...` a plot of it. A `@point plot= series=
//! x= sum= n=` is a number: `sum` for `n` times what the axis shows one of, so that nothing is lost to rounding before it gets
//! here. A `@cell plot= series= x= text=` is a word of a table, a `@finding text=` what the numbers say. `@exp-end name= ok=` ends it,
//! with `skipped=` if the machine is too small for it, and with `why=` if it failed.

use ktest::wire::Record;
use serde_json::{Value, json};

/// An experiment that has ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Experiment {
    /// Its name.
    pub name: String,
    /// What it asks.
    pub question: String,
    /// What its numbers are numbers of.
    pub measures: String,
    /// What it drew.
    pub plots: Vec<Plot>,
    /// What the numbers say.
    pub findings: Vec<String>,
    /// How it ended.
    pub end: End,
}

/// How an experiment ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum End {
    /// It has asked for itself only: no end yet, or none wanted.
    #[default]
    Open,
    /// It did all that it does.
    Done,
    /// The machine is too small for it.
    Skipped(String),
    /// Something was wrong.
    Failed(String),
}

/// Curves, bars or a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    id: u64,
    /// How it is drawn.
    pub kind: Kind,
    /// Its title.
    pub title: String,
    /// What is varied.
    pub x: Axis,
    /// What is measured.
    pub y: Axis,
    /// The numbers are the same in every run.
    pub exact: bool,
    /// One for each curve, each colour of bars, each column.
    pub series: Vec<Series>,
}

/// How a plot is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Curves.
    Lines,
    /// Curves that keep their level from each point to the next.
    Steps,
    /// Bars side by side.
    Bars,
    /// Bars on top of each other.
    Stacked,
    /// A table.
    Table,
}

impl Kind {
    const NAMES: [(Self, &str); 5] = [
        (Self::Lines, "lines"),
        (Self::Steps, "steps"),
        (Self::Bars, "bars"),
        (Self::Stacked, "stacked"),
        (Self::Table, "table"),
    ];

    fn of_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|known| known.1 == name).map(|known| known.0)
    }

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|known| known.0 == self).map_or("", |known| known.1)
    }
}

/// What an axis shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axis {
    /// Of what.
    pub label: String,
    /// In what; empty for pure numbers and words.
    pub unit: String,
    /// Each step is twice the one before.
    pub log: bool,
}

/// Points that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What they have in common.
    pub name: String,
    /// In the order in which they came.
    pub points: Vec<Point>,
}

/// A point.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Where: a number, or a word.
    pub x: String,
    /// What was found there.
    pub y: Found,
}

/// A number, or a word of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// `sum` for `n` times.
    Number {
        /// All together.
        sum: u64,
        /// How often.
        n: u64,
    },
    /// In words.
    Text(String),
}

impl Point {
    /// The number, one of them.
    #[must_use]
    pub fn value(&self) -> Option<f64> {
        match self.y {
            Found::Number { sum, n } => Some(sum as f64 / n.max(1) as f64),
            Found::Text(_) => None,
        }
    }
}

impl Axis {
    /// An axis with even steps, or with such that double.
    #[must_use]
    pub fn new(label: &str, unit: &str, log: bool) -> Self {
        Self { label: label.into(), unit: unit.into(), log }
    }
}

impl Plot {
    /// A plot that has nothing yet.
    #[must_use]
    pub fn new(kind: Kind, title: &str, x: Axis, y: Axis) -> Self {
        Self { id: 0, kind, title: title.into(), x, y, exact: true, series: Vec::new() }
    }

    /// Adds a number: `sum` for `n` times.
    pub fn number(&mut self, series: &str, x: &str, sum: u64, n: u64) {
        self.add(series.into(), Point { x: x.into(), y: Found::Number { sum, n } });
    }

    /// Adds a word of a table.
    pub fn cell(&mut self, series: &str, x: &str, text: &str) {
        self.add(series.into(), Point { x: x.into(), y: Found::Text(text.into()) });
    }

    fn read(record: &Record<'_>, counted: bool) -> Option<Self> {
        let text = |key| record.get(key).unwrap_or_default().into_owned();
        let kind = Kind::of_name(&text("kind"))?;
        let cost = match (record.u64("wall")?, counted) {
            (1, _) => "ns",
            (_, true) => "instructions",
            (_, false) => "ticks",
        };
        let axis = |label, unit, scale| {
            let unit = text(unit);
            let unit = if unit == "cost" { cost.into() } else { unit };
            Axis { label: text(label), unit, log: text(scale) == "log" }
        };
        Some(Self {
            id: record.u64("id")?,
            kind,
            title: text("title"),
            x: axis("x", "xunit", "xscale"),
            y: axis("y", "yunit", "yscale"),
            exact: record.u64("exact")? == 1,
            series: Vec::new(),
        })
    }

    fn add(&mut self, series: String, point: Point) {
        match self.series.iter_mut().find(|one| one.name == series) {
            Some(one) => one.points.push(point),
            None => self.series.push(Series { name: series, points: vec![point] }),
        }
    }

    /// Every `x`: numbers of curves by size, else in the order in which they first came.
    #[must_use]
    pub fn xs(&self) -> Vec<&str> {
        let mut all = Vec::new();
        for point in self.series.iter().flat_map(|series| &series.points) {
            if !all.contains(&point.x.as_str()) {
                all.push(point.x.as_str());
            }
        }
        if matches!(self.kind, Kind::Lines | Kind::Steps) {
            all.sort_by_key(|x| x.parse::<u64>().unwrap_or(u64::MAX));
        }
        all
    }

    fn json(&self) -> Value {
        let axis = |axis: &Axis| json!({ "label": axis.label, "unit": axis.unit, "log": axis.log });
        let point = |point: &Point| match &point.y {
            Found::Number { sum, n } => {
                json!({ "x": x_value(&point.x), "sum": sum, "n": n, "y": point.value() })
            }
            Found::Text(text) => json!({ "x": x_value(&point.x), "text": text }),
        };
        let series = |series: &Series| json!({ "name": series.name, "points": series.points.iter().map(point).collect::<Vec<_>>() });
        json!({
            "title": self.title, "kind": self.kind.name(), "x": axis(&self.x), "y": axis(&self.y), "exact": self.exact,
            "series": self.series.iter().map(series).collect::<Vec<_>>(),
        })
    }
}

fn x_value(x: &str) -> Value {
    x.parse::<u64>().map_or_else(|_| json!(x), |number| json!(number))
}

impl Experiment {
    /// With `wall`, none of its numbers repeats.
    #[must_use]
    pub fn varying(mut self, wall: bool) -> Self {
        self.plots.iter_mut().for_each(|plot| plot.exact &= !wall);
        self
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "name": self.name, "question": self.question, "measures": self.measures, "findings": self.findings,
            "plots": self.plots.iter().map(Plot::json).collect::<Vec<_>>(),
            "skipped": match &self.end { End::Skipped(why) => Some(why), _ => None },
            "failed": match &self.end { End::Failed(why) => Some(why), _ => None },
        })
    }

    /// One line for each point: experiment, plot, series, x, unit of x, y, unit of y, and whether it is the same in every run.
    #[must_use]
    pub fn csv(&self) -> Vec<[String; 8]> {
        let mut rows = Vec::new();
        for plot in &self.plots {
            for series in &plot.series {
                for point in &series.points {
                    let y = match &point.y {
                        Found::Number { .. } => format!("{}", point.value().unwrap_or(0.0)),
                        Found::Text(text) => text.clone(),
                    };
                    let names =
                        [&self.name, &plot.title, &series.name, &point.x, &plot.x.unit, &y, &plot.y.unit];
                    let [a, b, c, d, e, f, g] = names.map(String::clone);
                    rows.push([a, b, c, d, e, f, g, if plot.exact { "exact" } else { "varies" }.into()]);
                }
            }
        }
        rows
    }
}

/// Says on standard error what has no numbers, and why: a file without them looks complete.
pub(crate) fn say_what_is_missing<'a>(experiments: impl IntoIterator<Item = &'a Experiment>) {
    for experiment in experiments {
        let name = &experiment.name;
        match &experiment.end {
            End::Skipped(why) => eprintln!("{name} was skipped: {why}"),
            End::Failed(why) => eprintln!("{name} failed: {why}"),
            End::Open | End::Done => {}
        }
        for plot in experiment.plots.iter().filter(|plot| plot.series.is_empty()) {
            eprintln!("{name}: \"{}\" has no numbers", plot.title);
        }
    }
}

/// The heading of [`Experiment::csv`].
pub const CSV_HEADING: [&str; 8] = ["experiment", "plot", "series", "x", "x_unit", "y", "y_unit", "repeats"];

/// A line of a file of comma-separated values (RFC 4180).
#[must_use]
pub fn csv_line<S: AsRef<str>>(cells: &[S]) -> String {
    let cell = |cell: &S| {
        let cell = cell.as_ref();
        if cell.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", cell.replace('"', "\"\""))
        } else {
            cell.into()
        }
    };
    cells.iter().map(cell).collect::<Vec<_>>().join(",")
}

/// Puts experiments together from lines of the console.
#[derive(Debug)]
pub struct Reader {
    /// The guest's clock counts instructions.
    counted: bool,
    current: Option<Experiment>,
}

/// What a line was.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Nothing that belongs to an experiment.
    Other,
    /// A part of one.
    Part,
    /// The last part.
    Whole(Experiment),
    /// So many experiments are done, of how many.
    Progress(u64, u64),
}

impl Reader {
    /// For a guest whose clock counts instructions, or does not.
    #[must_use]
    pub fn new(counted: bool) -> Self {
        Self { counted, current: None }
    }

    /// An experiment that has begun and not ended.
    pub fn take_open(&mut self) -> Option<Experiment> {
        self.current.take()
    }

    /// Takes a line.
    pub fn read(&mut self, line: &str) -> Step {
        let Some(record) = Record::parse(line) else { return Step::Other };
        let text = |key| record.get(key).unwrap_or_default().into_owned();
        match (record.kind(), &mut self.current) {
            ("exp", current) => {
                let (name, question, measures) = (text("name"), text("question"), text("measures"));
                let next = Experiment { name, question, measures, ..Experiment::default() };
                // Of a list, each is only named.
                if let Some(open) = current.replace(next) {
                    return Step::Whole(open);
                }
            }
            ("plot", Some(experiment)) => experiment.plots.extend(Plot::read(&record, self.counted)),
            (kind @ ("point" | "cell"), Some(experiment)) => {
                let id = record.u64("plot");
                let y = match (kind, record.u64("sum"), record.u64("n")) {
                    ("point", Some(sum), Some(n)) => Found::Number { sum, n },
                    _ => Found::Text(text("text")),
                };
                if let Some(plot) = experiment.plots.iter_mut().find(|plot| Some(plot.id) == id) {
                    plot.add(text("series"), Point { x: text("x"), y });
                }
            }
            ("finding", Some(experiment)) => experiment.findings.push(text("text")),
            ("exp-end", current) => {
                if let Some(mut experiment) = current.take() {
                    experiment.end = match (record.u64("ok"), record.get("skipped")) {
                        (Some(1), None) => End::Done,
                        (Some(1), Some(why)) => End::Skipped(why.into_owned()),
                        _ => End::Failed(text("why")),
                    };
                    return Step::Whole(experiment);
                }
            }
            ("progress", _) => {
                let of = record.u64("done").zip(record.u64("of"));
                return of.map_or(Step::Other, |(done, of)| Step::Progress(done, of));
            }
            _ => return Step::Other,
        }
        Step::Part
    }
}
