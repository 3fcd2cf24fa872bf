//! The files of a report: the page, every point as CSV and as JSON; and a plot as a file of its own.

use super::{Part, Summary, draw, html};
use crate::error::{Error, at};
use crate::lab::data::{CSV_HEADING, Experiment, csv_line};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The page.
pub(super) const PAGE: &str = "index.html";

/// Writes all of them.
pub(super) fn write(directory: &Path, summary: &Summary, parts: &[Part]) -> Result<(), Error> {
    fs::create_dir_all(directory).map_err(at(directory))?;
    let files = [
        (PAGE, html::page(summary, parts)?),
        ("report.csv", csv(parts)),
        ("report.json", format!("{:#}\n", json(summary, parts))),
    ];
    for (name, text) in files {
        let path = directory.join(name);
        fs::write(&path, text).map_err(at(&path))?;
    }
    Ok(())
}

fn csv(parts: &[Part]) -> String {
    let mut out = csv_line(&CSV_HEADING) + "\n";
    for part in parts {
        for mut row in part.experiments.iter().flat_map(Experiment::csv) {
            row[0].insert_str(0, part.prefix);
            out += &(csv_line(&row) + "\n");
        }
    }
    out
}

fn json(summary: &Summary, parts: &[Part]) -> Value {
    let experiment = |part: &Part, experiment: &Experiment| {
        let mut value = experiment.json();
        value["name"] = json!(format!("{}{}", part.prefix, experiment.name));
        for (n, plot) in experiment.plots.iter().enumerate() {
            value["plots"][n]["id"] = json!(html::figure_id(part.prefix, experiment, plot));
        }
        value
    };
    let experiments = parts.iter().flat_map(|part| part.experiments.iter().map(|one| experiment(part, one)));
    json!({
        "facts": summary.facts.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect::<Vec<_>>(),
        "experiments": experiments.collect::<Vec<_>>(),
    })
}

/// What a plot needs where no page is around it: colours of its own, for light and for dark.
const ALONE: &str = "xmlns=\"http://www.w3.org/2000/svg\" width=\"760\"";
const COLORS: &str = "<style>svg { color: #1d2126; background: #ffffff } \
                      @media (prefers-color-scheme: dark) { svg { color: #e4e8ec; background: #15181c } }</style>\n";

/// Writes one plot of an experiment.
pub(super) fn write_plot(path: &Path, experiment: &Experiment, title: &str) -> Result<(), Error> {
    let plot = experiment.plots.iter().find(|plot| plot.title == title);
    let plot = plot.ok_or_else(|| Error::Plot { title: title.into(), why: "there is none".into() })?;
    let svg = draw::svg(plot, &experiment.name)?.replacen("<svg ", &format!("<svg {ALONE} "), 1);
    let (head, rest) = svg.split_once('\n').unwrap_or((&svg, ""));
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(at(directory))?;
    }
    fs::write(path, format!("{head}\n{COLORS}{rest}")).map_err(at(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::data::{Axis, End, Kind, Plot};

    fn parts() -> Vec<Part> {
        let mut plot = Plot::new(
            Kind::Lines,
            "A \"b\", c",
            Axis::new("size", "bytes", true),
            Axis::new("cost", "ns", false),
        );
        plot.number("one, two", "4096", 7, 2);
        plot.number("one, two", "8192", 1_000_000_007, 3);
        let mut table =
            Plot::new(Kind::Table, "Words", Axis::new("case", "", false), Axis::new("", "", false));
        table.cell("read", "unmap", "old\n\"value\", 0x7");
        let experiment = Experiment {
            name: "x".into(),
            plots: vec![plot, table],
            end: End::Done,
            ..Experiment::default()
        };
        vec![Part { title: "T", about: "", prefix: "wall-", experiments: vec![experiment.varying(true)] }]
    }

    /// Reads what RFC 4180 describes.
    fn read_csv(text: &str) -> Vec<Vec<String>> {
        let (mut rows, mut row, mut cell, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match (c, quoted) {
                ('"', true) if chars.peek() == Some(&'"') => cell.extend(chars.next()),
                ('"', _) => quoted = !quoted,
                (',', false) => row.push(std::mem::take(&mut cell)),
                ('\n', false) => {
                    row.push(std::mem::take(&mut cell));
                    rows.push(std::mem::take(&mut row));
                }
                (c, _) => cell.push(c),
            }
        }
        rows
    }

    #[test]
    fn csv_is_read_as_it_was_meant() {
        let rows = read_csv(&csv(&parts()));
        assert_eq!(rows[0], CSV_HEADING);
        assert_eq!(rows[1], ["wall-x", "A \"b\", c", "one, two", "4096", "bytes", "3.5", "ns", "varies"]);
        assert_eq!(
            rows[2][5].parse::<f64>().unwrap().to_bits(),
            (1_000_000_007.0 / 3.0f64).to_bits(),
            "no digit is lost"
        );
        assert_eq!(rows[3], ["wall-x", "Words", "read", "unmap", "", "old\n\"value\", 0x7", "", "varies"]);
        assert_eq!(rows.len(), 4);
    }

    #[test]
    fn json_is_read_as_it_was_meant() {
        let text = json(&Summary::default(), &parts()).to_string();
        let read: Value = serde_json::from_str(&text).unwrap();
        let plot = &read["experiments"][0]["plots"][0];
        assert_eq!((plot["id"].as_str(), plot["kind"].as_str()), (Some("wall-x-a-b-c"), Some("lines")));
        let point = &plot["series"][0]["points"][1];
        assert_eq!(
            (point["sum"].as_u64(), point["n"].as_u64(), point["x"].as_u64()),
            (Some(1_000_000_007), Some(3), Some(8192))
        );
        assert_eq!(
            read["experiments"][0]["plots"][1]["series"][0]["points"][0]["text"],
            "old\n\"value\", 0x7"
        );
    }

    #[test]
    fn a_plot_alone_brings_its_colours() {
        let path = std::env::temp_dir().join(format!("farpage-plot-{}/a.svg", std::process::id()));
        let part = parts().remove(0);
        write_plot(&path, &part.experiments[0], "A \"b\", c").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert!(text.starts_with("<svg xmlns=") && text.contains("prefers-color-scheme"), "{text}");
        let error = write_plot(&path, &part.experiments[0], "B").unwrap_err().to_string();
        assert!(error.contains("\"B\" could not be drawn"), "{error}");
    }
}
