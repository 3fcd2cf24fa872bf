use super::*;
use crate::lab::data::Axis;

fn experiment(name: &str) -> Experiment {
    let mut plot = Plot::new(
        Kind::Bars,
        "Case <1>",
        Axis::new("case", "", false),
        Axis::new("cost", "instructions", false),
    );
    plot.number("a & b", "unmap \"x\"", 7, 1);
    let mut table = Plot::new(Kind::Table, "Words", Axis::new("case", "", false), Axis::new("", "", false));
    table.cell("read", "unmap", "<b>");
    Experiment {
        name: name.into(),
        question: "Is 1 < 2?".into(),
        findings: vec!["it's <so>".into()],
        plots: vec![plot, table],
        end: End::Skipped("too \"small\"".into()),
        ..Experiment::default()
    }
}

fn whole() -> String {
    let part =
        |prefix| Part { title: "A part", about: "x & y", prefix, experiments: vec![experiment("name")] };
    let summary = Summary { facts: vec![("<fact>".into(), "'v'".into())], ..Summary::default() };
    page(&summary, &[part(""), part("wall-")]).unwrap()
}

#[test]
fn text_cannot_become_a_tag() {
    assert_eq!(escaped("<a href=\"x\">'&'"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;");
    let page = whole();
    for part in [
        "&lt;fact&gt;",
        "&#39;v&#39;",
        "it&#39;s &lt;so&gt;",
        "Is 1 &lt; 2?",
        "too &quot;small&quot;",
        "&lt;b&gt;",
        "Case &lt;1&gt;",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("<b>&") && !page.contains("<so>") && !page.contains("<1>"));
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let page = whole();
    for part in ["http:", "https:", "<script", "@import", "url("] {
        assert!(!page.contains(part), "{part}");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn names_within_the_page_are_there_once() {
    let page = whole();
    let mut ids: Vec<&str> =
        page.split(" id=\"").skip(1).filter_map(|rest| rest.split_once('"')).map(|(id, _)| id).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    // Both parts of this page have the same title, which the real ones do not.
    assert_eq!(ids.len() + 1, all, "{ids:?}");
    assert!(ids.contains(&"name-case-1-t") && ids.contains(&"wall-name-case-1-t"));
}

#[test]
fn every_plot_has_its_numbers_as_a_table() {
    let page = whole();
    assert!(page.contains("<th scope=\"row\">unmap &quot;x&quot;</th><td class=\"n\">7</td>"), "{page}");
    assert_eq!(page.matches("<svg ").count(), 2);
    assert_eq!(page.matches("data-table=\"").count(), 2);
    assert_eq!(class("1,234"), " class=\"n\"");
    assert_eq!((class("old"), class("a sentence that takes a line and more")), ("", " class=\"long\""));
}
