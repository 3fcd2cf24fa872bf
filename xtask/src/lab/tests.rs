use super::data::{End, Experiment, Kind, Reader, Step, csv_line};
use super::show;
use crate::table::Frame;

const LINES: [&str; 9] = [
    r#"@exp name=reach question="How far?" measures="loads""#,
    "kernel: a line of its log",
    r#"@plot id=0 kind=lines title=Reach x="working set" xunit=bytes xscale=log y="each load" yunit=cost yscale=linear wall=0 exact=1"#,
    r#"@point plot=0 series="4 KiB pages" x=8192 sum=7 n=2"#,
    r#"@point plot=0 series="4 KiB pages" x=16384 sum=2469134 n=2"#,
    r#"@point plot=0 series="2 MiB pages" x=16384 sum=9 n=3"#,
    r#"@point plot=7 series="of no plot" x=1 sum=1 n=1"#,
    r#"@finding text="not far, \"really\"""#,
    "@exp-end name=reach ok=1",
];

fn whole(lines: &[&str], counted: bool) -> Experiment {
    let mut reader = Reader::new(counted);
    let mut steps: Vec<Step> = lines.iter().map(|line| reader.read(line)).collect();
    match steps.pop() {
        Some(Step::Whole(experiment)) => experiment,
        other => panic!("the last line ends it: {other:?}"),
    }
}

#[test]
fn an_experiment_is_put_together_from_its_records() {
    let experiment = whole(&LINES, true);
    assert_eq!((experiment.name.as_str(), experiment.question.as_str()), ("reach", "How far?"));
    assert_eq!(experiment.end, End::Done);
    assert_eq!(experiment.findings, ["not far, \"really\""]);
    let [plot] = &experiment.plots[..] else { panic!("one plot: {experiment:?}") };
    assert_eq!(
        (plot.kind, plot.y.unit.as_str(), plot.x.log, plot.exact),
        (Kind::Lines, "instructions", true, true)
    );
    let values: Vec<Vec<Option<f64>>> =
        plot.series.iter().map(|series| series.points.iter().map(|point| point.value()).collect()).collect();
    assert_eq!(values, [vec![Some(3.5), Some(1_234_567.0)], vec![Some(3.0)]]);
    assert_eq!(plot.xs(), ["8192", "16384"]);
}

#[test]
fn of_a_list_each_is_named() {
    let mut reader = Reader::new(true);
    let names = ["@exp name=a question=\"A?\" measures=x", "@exp name=b question=\"B?\" measures=y"];
    let steps = names.map(|line| reader.read(line));
    let name = |step: &Step| if let Step::Whole(found) = step { found.name.clone() } else { String::new() };
    assert_eq!((&steps[0], name(&steps[1]).as_str()), (&Step::Part, "a"));
    assert_eq!(reader.take_open().map(|found| found.name), Some("b".into()));
}

#[test]
fn what_is_no_record_is_passed_on() {
    let mut reader = Reader::new(true);
    let steps = LINES.map(|line| reader.read(line));
    assert_eq!(steps[1], Step::Other);
    assert!(steps[2..8].iter().all(|step| *step == Step::Part));
    assert_eq!(reader.read("@progress done=1 of=3"), Step::Progress(1, 3));
    assert_eq!(reader.read("@point plot=0 series=a x=1 sum=1 n=1"), Step::Other, "no experiment is open");
}

#[test]
fn the_unit_of_a_cost_is_the_clock_that_was_read() {
    let unit = |lines: &[&str], counted| whole(lines, counted).plots[0].y.unit.clone();
    assert_eq!(unit(&LINES, false), "ticks");
    let wall = LINES.map(|line| line.replace("wall=0", "wall=1"));
    assert_eq!(unit(&wall.each_ref().map(String::as_str), false), "ns");
}

#[test]
fn ends_differ() {
    let end = |line| whole(&[LINES[0], line], true).end;
    assert_eq!(end("@exp-end name=reach ok=1 skipped=small"), End::Skipped("small".into()));
    assert_eq!(end("@exp-end name=reach ok=0 why=\"it broke\""), End::Failed("it broke".into()));
}

#[test]
fn a_table_has_a_row_for_each_x_and_a_column_for_each_series() {
    let lines = show::lines(&whole(&LINES, true), Frame::Plain).join("\n");
    let lines = console::strip_ansi_codes(&lines);
    let rows: Vec<Vec<&str>> = lines.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(rows.contains(&vec!["8K", "3.50"]), "{lines}");
    assert!(rows.contains(&vec!["16K", "1,234,567", "3"]), "{lines}");
    assert!(lines.contains("each load, instructions"), "{lines}");
}

#[test]
fn json_and_csv_hold_every_point() {
    let experiment = whole(&LINES, true);
    let json = experiment.json();
    let point = &json["plots"][0]["series"][0]["points"][0];
    assert_eq!(
        (point["x"].as_u64(), point["sum"].as_u64(), point["y"].as_f64()),
        (Some(8192), Some(7), Some(3.5))
    );
    let rows = experiment.csv();
    assert_eq!(rows.len(), 3);
    assert_eq!(csv_line(&rows[0]), "reach,Reach,4 KiB pages,8192,bytes,3.5,instructions,exact");
    assert_eq!(csv_line(&["a,b", "say \"no\"", "c"]), "\"a,b\",\"say \"\"no\"\"\",c");
}
