use super::*;
use crate::lab::data::Axis;

fn plot(kind: Kind) -> Plot {
    let (x, y) = match kind {
        Kind::Lines | Kind::Steps => {
            (Axis::new("size", "bytes", true), Axis::new("cost", "instructions", true))
        }
        _ => (Axis::new("case", "", false), Axis::new("cost", "instructions", false)),
    };
    let mut plot = Plot::new(kind, "A <plot>", x, y);
    for (n, x) in [65_536, 2 << 20, 64 << 20].into_iter().enumerate() {
        plot.number("4 KiB & more", &x.to_string(), 1000 << n, 1);
        plot.number("2 MiB", &x.to_string(), 7, 2);
    }
    plot
}

/// What is inside the `<title>`s of marks.
fn titles(svg: &str) -> Vec<&str> {
    let marks = svg.lines().filter(|line| line.contains("class=\"mark\""));
    marks
        .filter_map(|line| line.split_once("<title>")?.1.split_once("</title>"))
        .map(|(title, _)| title)
        .collect()
}

#[test]
fn every_number_is_a_mark_that_says_it() {
    for kind in [Kind::Lines, Kind::Steps, Kind::Bars, Kind::Stacked] {
        let svg = svg(&plot(kind), "p").unwrap();
        let titles = titles(&svg);
        assert_eq!(titles.len(), 6, "{kind:?}: {svg}");
        let x = if matches!(kind, Kind::Lines | Kind::Steps) { "64K" } else { "65,536" };
        assert_eq!(titles[0], format!("4 KiB &amp; more, {x}: 1,000 instructions"), "{kind:?}");
        assert_eq!(titles[3], format!("2 MiB, {x}: 3.50 instructions"), "{kind:?}");
        let shape = if matches!(kind, Kind::Lines | Kind::Steps) {
            "<polygon class=\"mark\""
        } else {
            "<rect class=\"mark\""
        };
        assert_eq!(svg.matches(shape).count(), 6, "{kind:?}: {svg}");
    }
}

#[test]
fn text_is_text_in_the_colour_of_the_page() {
    let svg = svg(&plot(Kind::Lines), "p").unwrap();
    for text in ["\n64K\n", "\n64M\n", "\n1,000\n", "\ncost, instructions\n", "\n4 KiB &amp; more\n"] {
        assert!(svg.contains(text), "{text:?}: {svg}");
    }
    assert!(svg.contains("fill=\"currentColor\"") && !svg.contains(INK_WRITTEN));
    assert!(
        svg.contains("<title id=\"p-t\">A &lt;plot&gt;</title>")
            && svg.contains("<desc id=\"p-d\">cost. 6 marks")
    );
    assert!(!svg.contains("font-size=\"1\""), "text is large enough: {svg}");
}

#[test]
fn a_plot_without_points_is_drawn() {
    for kind in [Kind::Lines, Kind::Bars, Kind::Stacked] {
        let mut empty = plot(kind);
        empty.series.clear();
        assert!(titles(&svg(&empty, "p").unwrap()).is_empty());
    }
    let mut one = plot(Kind::Lines);
    one.series.clear();
    one.number("a", "4096", 0, 1);
    assert_eq!(titles(&svg(&one, "p").unwrap()), ["a, 4K: 0 instructions"]);
}

#[test]
fn colours_have_contrast_to_light_and_dark_pages() {
    let linear = |value: u8| {
        let part = f64::from(value) / 255.0;
        if part <= 0.03928 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
    };
    let luminance =
        |RGBColor(r, g, b): RGBColor| 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    for color in COLORS {
        for page in [RGBColor(0xff, 0xff, 0xff), RGBColor(0x15, 0x18, 0x1c)] {
            let (a, b) = (luminance(color), luminance(page));
            let contrast = (a.max(b) + 0.05) / (a.min(b) + 0.05);
            assert!(contrast >= 3.0, "{color:?} on {page:?}: {contrast:.2}");
        }
    }
}

#[test]
fn long_legends_take_more_rows() {
    let mut wide = plot(Kind::Lines);
    let rows = |plot: &Plot| legend_places(plot).1;
    let before = rows(&wide);
    (0..6).for_each(|n| wide.number(&format!("a series with a rather long name {n}"), "4096", 1, 1));
    assert!(rows(&wide) > before + 2 * ROW);
    let (places, _) = legend_places(&wide);
    assert!(places.iter().all(|&(x, _)| x < WIDTH as i32 - 200), "{places:?}");
}
