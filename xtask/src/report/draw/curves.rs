//! Curves: numbers over numbers.

use super::{CHAR, Drawn, INK, Scale, WIDTH, color, draw_legend, label, legend_places, named, number, style};
use crate::lab::data::{Kind, Plot, Point, Series};
use plotters::prelude::*;

/// Without the legend.
const HEIGHT: u32 = 380;

/// Draws them on one pair of axes.
pub(super) fn draw(plot: &Plot, text: &mut String) -> Drawn {
    let points = || plot.series.iter().flat_map(|series| &series.points);
    let x = Scale::new(points().map(|point| number(&point.x)), plot.x.log, &plot.x.unit);
    let y = Scale::new(points().filter_map(Point::value), plot.y.log, &plot.y.unit);
    let (_, legend) = legend_places(plot);
    let root = SVGBackend::with_string(text, (WIDTH, HEIGHT + legend)).into_drawing_area();
    let (above, below) = root.split_vertically(legend);
    draw_legend(plot, &above)?;
    let left = y.label_len(&plot.y.unit) as f64 * CHAR + 42.0;
    let mut chart = ChartBuilder::on(&below)
        .margin_left(6)
        .margin_right(28)
        .margin_top(8)
        .x_label_area_size(52)
        .y_label_area_size(left as u32)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .bold_line_style(INK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .axis_style(INK.mix(0.6))
        .label_style(style())
        .axis_desc_style(style())
        .x_desc(named(&plot.x.label, &plot.x.unit))
        .y_desc(named(&plot.y.label, &plot.y.unit))
        .x_label_formatter(&|&value| label(value, &plot.x.unit))
        .y_label_formatter(&|&value| label(value, &plot.y.unit))
        .draw()?;
    // Where series lie on each other, those that were drawn first look out behind.
    for (n, series) in plot.series.iter().enumerate() {
        let curve: Vec<(f64, f64)> = coordinates(series).collect();
        let curve = if plot.kind == Kind::Steps { steps(&curve) } else { curve };
        let width = 2 + (plot.series.len() - 1 - n).min(2) as u32;
        chart.draw_series([PathElement::new(curve, color(n).stroke_width(width))])?;
    }
    for (n, series) in plot.series.iter().enumerate() {
        let size = 4 + (plot.series.len() - 1 - n).min(3) as i32;
        chart.draw_series(coordinates(series).map(|at| EmptyElement::at(at) + shape(n, size)))?;
    }
    root.present()?;
    Ok(())
}

fn coordinates(series: &Series) -> impl Iterator<Item = (f64, f64)> {
    series.points.iter().filter_map(|point| Some((number(&point.x), point.value()?)))
}

/// From each point level to the next, beginning on the ground.
fn steps(curve: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut level = 0.0;
    let mut steps = Vec::new();
    for &(x, y) in curve {
        steps.extend([(x, level), (x, y)]);
        level = y;
    }
    steps
}

/// The mark of a series, each of another shape, around a point. All are polygons, so that there is one kind of element.
pub(super) fn shape(n: usize, size: i32) -> Polygon<(i32, i32)> {
    let (tip, half) = (size + 1, size / 2);
    let corners = match n % 4 {
        0 => vec![
            (-half, -size),
            (half, -size),
            (size, -half),
            (size, half),
            (half, size),
            (-half, size),
            (-size, half),
            (-size, -half),
        ],
        1 => vec![(-size, -size), (size, -size), (size, size), (-size, size)],
        2 => vec![(0, -tip), (tip, size), (-tip, size)],
        _ => vec![(0, -tip), (tip, 0), (0, tip), (-tip, 0)],
    };
    Polygon::new(corners, color(n).filled())
}
