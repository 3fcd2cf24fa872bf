//! The harness against a scripted machine.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt::Write,
    num::NonZero,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use ktest::{
    catalog::Needs,
    exit::Exit,
    stream::{Ending, Outcome},
};
use libtest_mimic::{Arguments, Conclusion, Trial};

use super::{Board, Guests, Machine, SHARE, run_group};

const SUCCESS: Ending = Ending::Exit(Exit::Success);

/// Plays boots in order, and writes down what it was asked.
#[derive(Default)]
struct Script {
    boots: Mutex<VecDeque<(String, Ending)>>,
    asked: Mutex<Vec<String>>,
}

impl Script {
    fn new(boots: &[(&str, Ending)]) -> Self {
        let boots = boots.iter().map(|(console, ending)| ((*console).to_owned(), ending.clone()));
        Self { boots: Mutex::new(boots.collect()), asked: Mutex::default() }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Machine for Script {
    fn boot(&self, needs: &Needs, words: &str, line: &mut dyn FnMut(&str)) -> Result<Ending, String> {
        let mut asked = words.to_owned();
        needs.memory_mib.iter().for_each(|mib| write!(asked, " on {mib} MiB").unwrap());
        self.asked.lock().unwrap().push(asked);
        let (console, ending) = self.boots.lock().unwrap().pop_front().ok_or("no more boots")?;
        console.lines().for_each(line);
        Ok(ending)
    }

    fn explain(&self, line: &str) -> String {
        line.replace("@pc", "at")
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn outcomes(script: &Script, all: &[&str], chosen: &[&str], alone: bool) -> Vec<Outcome> {
    let board = Board::default();
    run_group(script, &Needs::NONE, &names(all), &names(chosen), alone, &board);
    board.close();
    chosen.iter().map(|name| board.wait(name).outcome).collect()
}

#[test]
fn one_boot_runs_all() {
    let script = Script::new(&[("1..2\n# begin a\nok 1 - a\n# begin b\nok 2 - b # SKIP why\n", SUCCESS)]);
    let all = ["a", "b"];
    assert_eq!(outcomes(&script, &all, &all, true), [Outcome::Pass, Outcome::Skip("why".into())]);
    assert_eq!(script.asked(), ["run=test"]);
}

#[test]
fn a_choice_is_a_filter_and_what_it_takes_along_is_no_surprise() {
    let script = Script::new(&[("1..2\n# begin a\nok 1 - a\n# begin ab\nok 2 - ab\n", SUCCESS)]);
    assert_eq!(outcomes(&script, &["a", "ab", "c"], &["a"], true), [Outcome::Pass]);
    assert_eq!(script.asked(), ["run=test filter=a"]);
}

#[test]
fn one_panic_does_not_hide_the_others() {
    let script = Script::new(&[
        ("1..3\n# begin a\nok 1 - a\n# begin b\n@panic message=oops\n", Ending::Exit(Exit::Panic)),
        ("1..1\n# begin c\nok 1 - c\n", SUCCESS),
    ]);
    let all = ["a", "b", "c"];
    let expected = [Outcome::Pass, Outcome::Panic("oops".into()), Outcome::Pass];
    assert_eq!(outcomes(&script, &all, &all, true), expected);
    assert_eq!(script.asked(), ["run=test", "run=test filter=c"]);
}

#[test]
fn a_boot_that_gets_nowhere_is_the_last() {
    let script = Script::new(&[("hello\n", Ending::Timeout), ("", SUCCESS)]);
    let board = Board::default();
    let all = names(&["a", "b"]);
    run_group(&script, &Needs::NONE, &all, &all, true, &board);
    let test = board.wait("b");
    assert_eq!((test.outcome, test.console), (Outcome::NeverRan, names(&["hello", "(the time was up)"])));
    assert_eq!(script.asked().len(), 1);
}

#[test]
fn what_goes_wrong_between_tests_is_not_lost() {
    let good = "1..1\n# begin a\nok 1 - a\n";
    let cases = [
        (good, Ending::Died("status 0".into()), "after it the machine went away while it ran: status 0"),
        (good, Ending::Exit(Exit::Failed), "no test failed, and the guest exited with failure"),
    ];
    for (console, ending, why) in cases {
        let script = Script::new(&[(console, ending)]);
        assert_eq!(outcomes(&script, &["a"], &["a"], true), [Outcome::Fail(why.into())]);
    }
}

const LIST: &str = "@test name=kernel::a\n@test name=kernel::b memory_mib=3072\n\
                    @test name=kernel::df expect=double-fault\n@test name=kernel::p expect=panic\n";

fn start(guests: &Guests, trials: &[Trial], at_once: usize) {
    let chosen = trials.iter().map(|trial| trial.name().to_owned()).collect::<BTreeSet<_>>();
    guests.start(&chosen, NonZero::new(at_once).unwrap());
}

fn harness(boots: &[(&str, Ending)], filter: Option<&str>) -> (Arc<Script>, Conclusion) {
    let mut script = vec![(LIST, SUCCESS)];
    script.extend_from_slice(boots);
    let script = Arc::new(Script::new(&script));
    let guests = Guests::find(Arc::clone(&script) as Arc<dyn Machine>).unwrap();
    let logfile = Some("/dev/null".into());
    let args =
        Arguments { test_threads: Some(1), logfile, filter: filter.map(str::to_owned), ..Default::default() };
    let mut trials = guests.trials();
    trials.retain(|trial| !args.is_filtered_out(trial));
    start(&guests, &trials, 1);
    let conclusion = libtest_mimic::run(&args, trials);
    (script, conclusion)
}

/// A machine on which all pass. It notes what it was asked, and may wait until so many boots run at once.
struct Obedient {
    list: String,
    asked: Mutex<Vec<String>>,
    together: usize,
    came: Condvar,
}

impl Obedient {
    fn new(list: &str, together: usize) -> Arc<Self> {
        Arc::new(Self { list: list.to_owned(), asked: Mutex::default(), together, came: Condvar::new() })
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Machine for Obedient {
    fn boot(&self, needs: &Needs, words: &str, line: &mut dyn FnMut(&str)) -> Result<Ending, String> {
        if words == "run=list" {
            self.list.lines().for_each(line);
            return Ok(SUCCESS);
        }
        let (_, filter) = words.split_once("filter=").ok_or("no filter")?;
        let names: Vec<&str> = filter.split(',').collect();
        let mut asked = self.asked.lock().unwrap();
        asked.push(needs.memory_mib.map_or(words.to_owned(), |mib| format!("{words} on {mib} MiB")));
        self.came.notify_all();
        let alone = |asked: &mut Vec<String>| asked.len() < self.together;
        let (asked, late) = self
            .came
            .wait_timeout_while(asked, Duration::from_secs(60), alone)
            .map_err(|error| error.to_string())?;
        drop(asked);
        if late.timed_out() {
            return Err("the other boot has not begun".to_owned());
        }
        if words.contains("exact=1") {
            let panics = names[0].ends_with("::p");
            line("1..1");
            line(&format!("# begin {filter}"));
            line(if panics { "@panic message=x" } else { "@fault kind=double-fault" });
            return Ok(Ending::Exit(if panics { Exit::Panic } else { Exit::Fault }));
        }
        line(&format!("1..{}", names.len()));
        for (n, name) in names.iter().enumerate() {
            line(&format!("# begin {name}"));
            line(&format!("ok {} - {name}", n + 1));
        }
        Ok(SUCCESS)
    }

    fn explain(&self, line: &str) -> String {
        line.to_owned()
    }
}

fn obeyed(machine: &Arc<Obedient>, at_once: usize) -> Conclusion {
    let guests = Guests::find(Arc::clone(machine) as Arc<dyn Machine>).unwrap();
    let trials = guests.trials();
    start(&guests, &trials, at_once);
    let logfile = Some("/dev/null".into());
    libtest_mimic::run(&Arguments { test_threads: Some(1), logfile, ..Default::default() }, trials)
}

#[test]
fn each_machine_has_its_boot_and_each_destructive_test_its_own() {
    let machine = Obedient::new(LIST, 1);
    let conclusion = obeyed(&machine, 1);
    assert_eq!((conclusion.num_passed, conclusion.num_failed), (4, 0));
    // Shared boots run beside the others: only their own order is certain.
    let (alone, shared): (Vec<_>, Vec<_>) =
        machine.asked().into_iter().partition(|words| words.contains("exact=1"));
    assert_eq!(shared, ["run=test filter=kernel::b on 3072 MiB", "run=test filter=kernel::a"]);
    assert_eq!(alone, ["run=test exact=1 filter=kernel::df", "run=test exact=1 filter=kernel::p"]);
}

#[test]
fn many_tests_of_one_machine_take_several_boots_which_run_at_once() {
    let list: String =
        (0..2 * SHARE + 1).fold(String::new(), |list, n| format!("{list}@test name=k::t{n:03}\n"));
    let machine = Obedient::new(&list, 2);
    let conclusion = obeyed(&machine, 2);
    assert_eq!((conclusion.num_passed, conclusion.num_failed), (2 * SHARE as u64 + 1, 0));
    let asked = machine.asked();
    assert!(asked.iter().all(|words| words.split(',').count() <= SHARE), "{asked:?}");
    assert_eq!(asked.len(), 3);
    assert!(!asked.iter().any(|words| words.contains("t000") && words.contains("t001")), "neighbours part");
}

#[test]
fn a_destructive_test_must_end_in_its_own_report() {
    let begun = "1..1\n# begin kernel::df\n";
    let cases = [
        (format!("{begun}ok 1 - kernel::df\n"), SUCCESS),
        (format!("{begun}@fault kind=page-fault\n"), Ending::Exit(Exit::Fault)),
        (format!("{begun}@panic message=x\n"), Ending::Exit(Exit::Panic)),
        (format!("{begun}@fault kind=double-fault\n"), Ending::Timeout),
        (begun.to_owned(), Ending::Died("a triple fault".into())),
        ("@fault kind=double-fault\n".to_owned(), Ending::Exit(Exit::Fault)),
    ];
    for (console, ending) in cases {
        let (script, conclusion) = harness(&[(&console, ending.clone())], Some("kernel::df"));
        assert_eq!((conclusion.num_passed, conclusion.num_failed), (0, 1), "{console:?} {ending}");
        assert_eq!(script.asked().len(), 2, "the list, and the one that was chosen");
    }
}

#[test]
fn a_kernel_that_does_not_list_is_told() {
    let script = Arc::new(Script::new(&[("@panic message=oops\n@pc n=0\n", Ending::Exit(Exit::Panic))]));
    let error = Guests::find(script as Arc<dyn Machine>).err().unwrap();
    assert!(error.contains("does not list") && error.contains("oops") && error.contains("at n=0"), "{error}");
}

#[test]
fn names_that_do_not_fit_one_command_line_take_two_boots() {
    let long: Vec<String> = (0..3).map(|n| format!("{n}{}", "x".repeat(1500))).collect();
    let console = |names: &[String]| {
        let mut text = format!("1..{}\n", names.len());
        for (n, name) in names.iter().enumerate() {
            write!(text, "# begin {name}\nok {} - {name}\n", n + 1).unwrap();
        }
        text
    };
    let script = Script::new(&[(&console(&long[..2]), SUCCESS), (&console(&long[2..]), SUCCESS)]);
    let board = Board::default();
    run_group(&script, &Needs::NONE, &long, &long, false, &board);
    board.close();
    assert!(long.iter().all(|name| board.wait(name).outcome == Outcome::Pass));
    assert!(script.asked().iter().all(|words| words.len() < 4096));
}
