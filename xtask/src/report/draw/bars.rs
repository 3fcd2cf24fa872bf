//! Bars: numbers of things that have names. They lie, because names are long; each says its number at its end.

use super::{CHAR, Drawn, INK, WIDTH, beside, color, draw_legend, label, legend_places, named, style};
use super::{Scale, show_x, show_y};
use crate::lab::data::{Found, Kind, Plot, Point};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

/// The height of a bar.
const BAR: f64 = 17.0;
/// The most of the width that names may take.
const NAMES: f64 = 350.0;

/// One bar: in which place, from where to where, of which series.
struct Bar {
    top: f64,
    bottom: f64,
    from: f64,
    to: f64,
    series: usize,
}

/// Draws them side by side, or as parts of a whole.
pub(super) fn draw(plot: &Plot, text: &mut String) -> Drawn {
    let stacked = plot.kind == Kind::Stacked;
    let words = plot.xs();
    let (bars, ends) = if stacked { stack(plot, &words) } else { (side_by_side(plot, &words), Vec::new()) };
    let scale = if stacked {
        Scale::for_bars(ends.iter().map(|end| end.0), false, &plot.y.unit)
    } else {
        let values = plot.series.iter().flat_map(|series| &series.points).filter_map(Point::value);
        Scale::for_bars(values, plot.y.log, &plot.y.unit)
    };
    let start = scale.from();
    let (_, legend) = if plot.series.len() > 1 { legend_places(plot) } else { (Vec::new(), 0) };
    let lanes = if stacked { 1 } else { plot.series.len() };
    let height = words.len() as f64 * (lanes as f64 * BAR + 12.0) + 76.0;
    let root = SVGBackend::with_string(text, (WIDTH, height as u32 + legend)).into_drawing_area();
    let (above, below) = root.split_vertically(legend);
    if legend > 0 {
        draw_legend(plot, &above)?;
    }
    let names: Vec<String> = words.iter().map(|word| shortened(&show_x(plot, word))).collect();
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let mut chart = ChartBuilder::on(&below)
        .margin_right(96)
        .margin_top(8)
        .x_label_area_size(52)
        .y_label_area_size((longest as f64 * CHAR) as u32 + 20)
        .build_cartesian_2d(scale, Scale::words(words.len()))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .bold_line_style(INK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .axis_style(INK.mix(0.6))
        .label_style(style())
        .axis_desc_style(style())
        .x_desc(named(&plot.y.label, &plot.y.unit))
        .x_label_formatter(&|&value| label(value, &plot.y.unit))
        .y_label_formatter(&|&place| names.get(place as usize).cloned().unwrap_or_default())
        .draw()?;
    let at_end =
        |text: String, x: f64, y: f64| EmptyElement::at((x, y)) + Text::new(text, (5, 0), beside(HPos::Left));
    let texts = plot.series.iter().flat_map(|series| &series.points).filter(|point| point.value().is_some());
    if stacked {
        chart.draw_series(
            ends.iter().enumerate().map(|(n, end)| at_end(end.1.clone(), end.0, n as f64 + 0.5)),
        )?;
    } else {
        let ends = bars.iter().zip(texts);
        chart.draw_series(
            ends.map(|(bar, point)| at_end(show_y(point), bar.to, (bar.top + bar.bottom) / 2.0)),
        )?;
    }
    chart.draw_series(bars.iter().map(|bar| {
        let from = if bar.from > 0.0 { bar.from } else { start };
        Rectangle::new([(from, bar.top), (bar.to.max(start), bar.bottom)], color(bar.series).filled())
    }))?;
    root.present()?;
    Ok(())
}

/// Series by series, as [`marks`] has them.
fn side_by_side(plot: &Plot, words: &[&str]) -> Vec<Bar> {
    let lane = 0.84 / plot.series.len().max(1) as f64;
    each(plot, words, |series, place, value| {
        let top = place as f64 + 0.08 + series as f64 * lane;
        Bar { top, bottom: top + lane * 0.94, from: 0.0, to: value, series }
    })
}

/// The same on top of each other, and where each whole ends, with its sum in words.
fn stack(plot: &Plot, words: &[&str]) -> (Vec<Bar>, Vec<(f64, String)>) {
    let mut sums = vec![0.0; words.len()];
    let bars = each(plot, words, |series, place, value| {
        let from = sums[place];
        sums[place] += value;
        Bar { top: place as f64 + 0.15, bottom: place as f64 + 0.85, from, to: sums[place], series }
    });
    let in_words = |sum: f64| {
        show_y(&Point { x: String::new(), y: Found::Number { sum: (sum * 1000.0).round() as u64, n: 1000 } })
    };
    (bars, sums.into_iter().map(|sum| (sum, in_words(sum))).collect())
}

fn each(plot: &Plot, words: &[&str], mut bar: impl FnMut(usize, usize, f64) -> Bar) -> Vec<Bar> {
    let mut bars = Vec::new();
    for (n, series) in plot.series.iter().enumerate() {
        for point in &series.points {
            let place = words.iter().position(|word| *word == point.x);
            if let (Some(place), Some(value)) = (place, point.value()) {
                bars.push(bar(n, place, value));
            }
        }
    }
    bars
}

fn shortened(name: &str) -> String {
    let most = (NAMES / CHAR) as usize;
    if name.chars().count() <= most {
        name.into()
    } else {
        name.chars().take(most - 1).chain(['…']).collect()
    }
}
