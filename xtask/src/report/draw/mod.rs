//! A plot as SVG.
//!
//! `plotters` draws on its SVG backend, without fonts of its own: text stays text. Words and lines take the colour of the text
//! around them, so that one file is readable on light and on dark pages; the colours of series have contrast to both, and people
//! who do not see all colours tell them apart. Each series of a curve has a mark of its own shape as well.
//!
//! The marks of the data (a dot for each point, a bar for each number) are drawn last. So they are found again in what comes out:
//! each gets `class="mark"` and its numbers in a `<title>`, which browsers show and tests count.

mod bars;
mod curves;
mod scale;

use super::html::escaped;
use crate::error::Error;
use crate::lab::data::{Kind, Plot, Point};
use crate::lab::show::{show_x, show_y};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use scale::{Scale, label};
use std::fmt::Write;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Stands for the colour of the text around.
const INK: RGBColor = RGBColor(1, 1, 1);
const INK_WRITTEN: &str = "#010101";
/// Of series. Each has a contrast of 3 or more to white and to near black.
const COLORS: [RGBColor; 8] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xb8, 0x5c, 0x9a),
    RGBColor(0xa6, 0x7c, 0x00),
    RGBColor(0x7f, 0x7f, 0x7f),
    RGBColor(0x9c, 0x5a, 0x3c),
    RGBColor(0x4f, 0x93, 0xc9),
];
const WIDTH: u32 = 760;
/// Text, in pixels; `plotters` makes what it is told smaller by this factor.
const TEXT: f64 = 14.0 * 1.24;
/// What a character takes, on average.
const CHAR: f64 = 6.9;
/// A row of the legend.
const ROW: u32 = 24;

/// Draws it; a table is no drawing. `id` is its own in the page.
///
/// # Errors
/// [`Error::Plot`].
pub(super) fn svg(plot: &Plot, id: &str) -> Result<String, Error> {
    let mut text = String::new();
    let drawn = match plot.kind {
        Kind::Lines | Kind::Steps => curves::draw(plot, &mut text),
        Kind::Bars | Kind::Stacked | Kind::Table => bars::draw(plot, &mut text),
    };
    drawn.map_err(|error| Error::Plot { title: plot.title.clone(), why: error.to_string() })?;
    Ok(finish(&text, plot, id))
}

/// The marks of a plot, series by series as they are drawn, each in words.
pub(super) fn marks(plot: &Plot) -> Vec<String> {
    let unit = if plot.y.unit.is_empty() { String::new() } else { format!(" {}", plot.y.unit) };
    let mark = |name: &str, point: &Point| {
        point.value().map(|_| format!("{name}, {}: {}{unit}", show_x(plot, &point.x), show_y(point)))
    };
    let series = |series: &crate::lab::data::Series| {
        let marks = series.points.iter().filter_map(|point| mark(&series.name, point));
        marks.collect::<Vec<_>>()
    };
    plot.series.iter().flat_map(series).collect()
}

/// Gives what was drawn a name for those who do not see it, the colour of the text around, and numbers to its marks.
fn finish(drawn: &str, plot: &Plot, id: &str) -> String {
    let lines: Vec<&str> = drawn.lines().collect();
    // The last line closes the drawing; before it are the marks, each on a line of its own.
    let marks = marks(plot);
    let first = (lines.len() - 1).saturating_sub(marks.len());
    // If one were missing, something else would stand in its place, which is no mark.
    let shape = if matches!(plot.kind, Kind::Lines | Kind::Steps) { "polygon" } else { "rect" };
    let size = lines[0].split_once("viewBox=\"").and_then(|(_, rest)| rest.split('"').next()).unwrap_or("");
    let description = format!("{}. {} marks: {}.", plot.y.label, marks.len(), series_names(plot));
    let mut out = format!(
        "<svg data-plot=\"{id}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\" viewBox=\"{size}\">\n\
         <title id=\"{id}-t\">{}</title>\n<desc id=\"{id}-d\">{}</desc>\n",
        escaped(&plot.title),
        escaped(&description)
    );
    for (n, line) in lines.iter().enumerate().skip(1) {
        let line = line
            .replace(INK_WRITTEN, "currentColor")
            .replace(" opacity=\"1\"", "")
            .replace(" stroke=\"none\"", "");
        let tag = line.trim_start_matches('<').split(' ').next().unwrap_or_default().to_owned();
        // Writing to a string cannot fail.
        let mark = n.checked_sub(first).and_then(|mark| marks.get(mark)).filter(|_| tag == shape);
        let _ = match (mark, line.strip_suffix("/>")) {
            (Some(mark), Some(open)) => {
                let open = open.replacen(&tag, &format!("{tag} class=\"mark\""), 1);
                writeln!(out, "{open}><title>{}</title></{tag}>", escaped(mark))
            }
            _ => writeln!(out, "{line}"),
        };
    }
    out
}

fn series_names(plot: &Plot) -> String {
    plot.series.iter().map(|series| series.name.as_str()).collect::<Vec<_>>().join("; ")
}

fn color(series: usize) -> RGBColor {
    COLORS[series % COLORS.len()]
}

fn style<'a>() -> TextStyle<'a> {
    ("sans-serif", TEXT).into_font().color(&INK)
}

/// Beside a point, at half its height.
fn beside<'a>(side: HPos) -> TextStyle<'a> {
    style().pos(Pos::new(side, VPos::Center))
}

fn number(text: &str) -> f64 {
    text.parse().unwrap_or(0.0)
}

/// An axis with its unit, if its name does not say it already; sizes carry theirs with each number.
pub(super) fn named(label: &str, unit: &str) -> String {
    let said = unit.is_empty() || unit == "bytes" || label.split(' ').any(|word| word == unit);
    if said { label.into() } else { format!("{label}, {unit}") }
}

/// Where the legend has each series, from the left of which row, and how many rows there are.
fn legend_places(plot: &Plot) -> (Vec<(i32, i32)>, u32) {
    let (mut x, mut row) = (0, 0);
    let mut places = Vec::new();
    for series in &plot.series {
        let width = 44 + (series.name.chars().count() as f64 * CHAR) as i32;
        if x > 0 && x + width > WIDTH as i32 - 20 {
            (x, row) = (0, row + 1);
        }
        places.push((x + 12, row * ROW as i32 + 14));
        x += width + 14;
    }
    (places, (row as u32 + 1) * ROW + 6)
}

/// A key and a name for each series.
fn draw_legend(plot: &Plot, area: &Area<'_>) -> Drawn {
    let (places, _) = legend_places(plot);
    for (n, (series, (x, y))) in plot.series.iter().zip(places).enumerate() {
        if matches!(plot.kind, Kind::Lines | Kind::Steps) {
            area.draw(&PathElement::new([(x, y), (x + 26, y)], color(n).stroke_width(2)))?;
            area.draw(&(EmptyElement::at((x + 13, y)) + curves::shape(n, 4)))?;
        } else {
            area.draw(&Rectangle::new([(x + 6, y - 7), (x + 24, y + 7)], color(n).filled()))?;
        }
        area.draw(&Text::new(series.name.clone(), (x + 32, y), beside(HPos::Left)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
