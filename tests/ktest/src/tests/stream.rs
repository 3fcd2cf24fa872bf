use std::{
    string::{String, ToString},
    vec,
    vec::Vec,
};

use crate::{
    catalog::{self, Needs},
    exit::Exit,
    ktap::Reporter,
    stream::{Ending, Outcome, Run, Stream, Totals},
    wire::Record,
};

const SUCCESS: Ending = Ending::Exit(Exit::Success);
const FAILED: Ending = Ending::Exit(Exit::Failed);

fn read(announced: &[&str], console: &str, ending: &Ending) -> Run {
    let mut stream = Stream::new(announced.iter().copied());
    console.lines().for_each(|line| stream.feed(line));
    stream.finish(ending)
}

fn totals(passed: usize, failed: usize, skipped: usize) -> Totals {
    Totals { passed, failed, skipped }
}

fn outcomes(run: &Run) -> Vec<Outcome> {
    run.tests.iter().map(|test| test.outcome.clone()).collect()
}

#[test]
fn what_the_reporter_prints_the_stream_reads() {
    let mut out = String::from("boot text\n");
    let mut report = Reporter::begin(&mut out, 3).unwrap();
    report.running("a").unwrap();
    report.passed("a").unwrap();
    report.running("b").unwrap();
    report.failed("b", &"left: 1\nright: 2").unwrap();
    report.running("c").unwrap();
    report.skipped("c", &"no x2APIC").unwrap();
    assert_eq!(report.failures(), 1);
    assert_eq!(
        out,
        "boot text\nKTAP version 1\n1..3\n# begin a\nok 1 - a\n# begin b\n# failed: left: 1\n# failed: right: 2\n\
         not ok 2 - b\n# begin c\nok 3 - c # SKIP no x2APIC\n"
    );
    let run = read(&["a", "b", "c"], &out, &FAILED);
    assert_eq!(
        outcomes(&run),
        [Outcome::Pass, Outcome::Fail("left: 1\nright: 2".into()), Outcome::Skip("no x2APIC".into())]
    );
    assert_eq!(run.totals(), totals(1, 1, 1));
    assert_eq!(run.preamble, ["boot text"]);
    assert_eq!((run.outside, run.problems), (None, vec![]));
}

#[test]
fn the_console_goes_to_the_test_that_printed_it() {
    let console =
        "hello\n1..2\n# begin a\none\n# note\nok 1 - a\ntwo\n# begin b\n@sweep size=1\nok 2 - b\r\n";
    let run = read(&["a", "b"], console, &SUCCESS);
    assert_eq!(run.tests[0].console, ["one", "# note", "two"]);
    assert_eq!(run.tests[1].console, ["@sweep size=1"]);
    assert_eq!(run.totals(), totals(2, 0, 0));
}

#[test]
fn a_panic_is_laid_at_the_door_of_the_running_test() {
    let console = "1..3\n# begin a\nok 1 - a\n# begin b\n@panic message=\"index 4\" at=\"src/x.rs:1:2\"\n@pc n=0 addr=0x1\nok 2 - b\n";
    let run = read(&["a", "b", "c"], console, &Ending::Exit(Exit::Panic));
    assert_eq!(
        outcomes(&run),
        [Outcome::Pass, Outcome::Panic("index 4 at src/x.rs:1:2".into()), Outcome::NeverRan]
    );
    assert_eq!(run.tests[1].console.len(), 3, "the report, and what follows it, cannot undo it");
    assert_eq!(run.never_ran().collect::<Vec<_>>(), ["c"]);
    assert_eq!(run.totals(), totals(1, 2, 0));
}

#[test]
fn a_fault_a_timeout_and_a_death_are_told_apart() {
    let begun = "1..1\n# begin a\n";
    let faulted = "1..1\n# begin a\n@fault kind=page-fault addr=0x10\n";
    let cases = [
        (faulted, Ending::Exit(Exit::Fault), Outcome::Fault("page-fault".into())),
        (faulted, Ending::Timeout, Outcome::Fault("page-fault".into())),
        (begun, Ending::Exit(Exit::Fault), Outcome::Fault("there is no report".into())),
        (begun, Ending::Exit(Exit::Panic), Outcome::Panic("there is no report".into())),
        (begun, Ending::Timeout, Outcome::Timeout),
        (begun, Ending::Died("status 0".into()), Outcome::Died("status 0".into())),
        (begun, SUCCESS, Outcome::Died("the guest exited with success".into())),
    ];
    for (console, ending, expected) in cases {
        let run = read(&["a"], console, &ending);
        assert_eq!(outcomes(&run), [expected], "{ending}");
        assert_eq!(run.totals(), totals(0, 1, 0), "{ending}");
    }
}

#[test]
fn an_end_outside_any_test_counts_and_no_test_is_lost() {
    let after = "1..1\n# begin a\nok 1 - a\n";
    let cases = [
        (
            "boot\n@panic message=oops\n",
            Ending::Exit(Exit::Panic),
            Outcome::Panic("oops".into()),
            totals(0, 2, 0),
        ),
        ("boot\n", Ending::Timeout, Outcome::Timeout, totals(0, 2, 0)),
        ("", Ending::Died("killed".into()), Outcome::Died("killed".into()), totals(0, 2, 0)),
        (after, Ending::Exit(Exit::Fault), Outcome::Fault("there is no report".into()), totals(1, 1, 0)),
    ];
    for (console, ending, outside, sums) in cases {
        let run = read(&["a"], console, &ending);
        assert_eq!(run.outside, Some(outside), "{ending}");
        assert_eq!(run.totals(), sums, "{ending}");
    }
}

#[test]
fn a_run_that_contradicts_itself_is_not_good() {
    let cases: [(&str, &Ending, &str); 8] = [
        ("1..2\n# begin a\nok 1 - a\n", &SUCCESS, "2 tests were planned and 1 ran"),
        ("1..1\n# begin a\nnot ok 1 - a\n", &SUCCESS, "a test failed, and the guest exited with success"),
        ("1..1\n# begin a\nok 1 - a\n", &FAILED, "no test failed, and the guest exited with failure"),
        ("1..1\n# begin a\nok 2 - a\n", &SUCCESS, "a has number 2, not 1"),
        ("1..1\n# begin a\nok 1 - a\nok 2 - b\n", &SUCCESS, "a result for b, which was not running"),
        ("1..1\n# begin b\nok 1 - b\n", &SUCCESS, "b ran and was not announced"),
        ("1..2\n# begin a\nok 1 - a\n# begin a\nok 2 - a\n", &SUCCESS, "a ran twice"),
        ("# begin a\nok 1 - a\n", &SUCCESS, "no test plan, and the guest exited with success"),
    ];
    for (console, ending, problem) in cases {
        let run = read(&["a"], console, ending);
        assert_eq!(run.problems, [problem], "{console:?}");
        assert!(run.totals().failed > 0, "{console:?}");
    }
}

#[test]
fn a_test_without_a_result_does_not_pass() {
    let run = read(&["a", "b"], "1..2\n# begin a\n# begin b\nok 2 - b\n", &FAILED);
    assert_eq!(
        outcomes(&run),
        [Outcome::Died("the next test began before its result".into()), Outcome::Pass]
    );
    assert_eq!(run.totals(), totals(1, 1, 0));
}

#[test]
fn nothing_planned_and_nothing_run_is_sound() {
    let run = read(&[], "KTAP version 1\n1..0\n", &SUCCESS);
    assert_eq!(run.totals(), totals(0, 0, 0));
    assert_eq!(run.totals().to_string(), "0 passed, 0 failed, 0 skipped");
}

#[test]
fn the_catalog_makes_the_trip() {
    let needs = Needs { memory_mib: Some(3072), devices: Some(0), ..Needs::NONE };
    let mut line = String::new();
    catalog::write_test(&mut line, "kernel::x", Some("double-fault"), &needs).unwrap();
    assert_eq!(line, "@test name=kernel::x expect=double-fault memory_mib=3072 devices=0\n");
    let record = Record::parse(&line).unwrap();
    assert_eq!(catalog::needs_of(&record), needs);
}
