//! The property: whatever is done, in whatever order, contents and counts are those of the obvious model.

use crate::counters::Event;
use crate::exercise::{Failure, Step, generate, shrink as shrink_list, situations};
use crate::machine::FlushReason;
use crate::testing::host::{Done, Watch, as_rust, run, shape, shrink};
use crate::testing::machine::{Config, Mood};

/// Steps of one case.
const CASE: usize = 1000;

/// Runs cases `from`, `from + by`, ... until `actions` actions are done; a failure is shrunk and printed.
fn cases(from: u64, by: u64, actions: u64, mood: Mood) -> Done {
    let watch = Watch { skip: None, no_stale: true };
    let mut sum = Done::default();
    let mut seed = from;
    while sum.actions < actions {
        let (config, steps) = (Config { mood, ..shape(seed) }, generate(seed, CASE));
        match run(&config, &steps, &watch) {
            Ok(done) => sum.add(&done),
            Err(failure) => {
                let (steps, failure) = shrink(&config, &steps, failure, &watch);
                if std::env::var_os("FARPAGE_GO_ON").is_none() {
                    panic!("seed {seed}:\n{}", as_rust(&config, &steps, &failure));
                }
                println!("seed {seed}:\n{}", as_rust(&config, &steps, &failure));
                sum.actions += CASE as u64;
            }
        }
        seed += by;
    }
    sum
}

/// A number from the environment.
fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| {
        text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name} is a number"))
    })
}

fn wanted() -> u64 {
    number("FARPAGE_ACTIONS", 60_000)
}

#[test]
fn random_actions_agree_with_the_model() {
    let threads = 2;
    let each = wanted().div_ceil(threads);
    let first = number("FARPAGE_SEED", 0);
    let sums: Vec<Done> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..threads)
            .map(|n| scope.spawn(move || cases(first + n, threads, each, Mood::Steady)))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    });
    let mut sum = Done::default();
    sums.iter().for_each(|done| sum.add(done));
    println!("{} actions, {} disturbances", sum.actions, sum.disturbances);
    for (event, n) in Event::ALL.iter().zip(sum.events) {
        println!("{:24} {n}", event.name());
    }
    for (reason, n) in FlushReason::ALL.iter().zip(sum.flushes) {
        println!("flushes for {reason:12?} {n}");
    }
    assert!(sum.actions >= wanted(), "all of them");
    // A path that nobody takes is not tested. These need threads, or an action that there is none for yet.
    let later = [Event::PgFaultSpurious, Event::FaultWait, Event::HugetlbFault];
    for (what, n) in &sum.seen {
        println!("{what:40} {n}");
    }
    let missed = |event: &&Event| sum.events[**event as usize] == 0 && !later.contains(*event);
    let missed: Vec<_> = Event::ALL.iter().filter(missed).map(|event| event.name()).collect();
    assert_eq!(missed, [""; 0], "events that did not happen");
    let missed: Vec<_> = situations().filter(|what| !sum.seen.contains_key(what)).collect();
    assert_eq!(missed, [""; 0], "situations that did not come up");
}

/// The same while somebody turns the knobs: policies change how things are done, never what programs see.
#[test]
fn random_actions_under_changing_policies_agree_with_the_model() {
    let done = cases(number("FARPAGE_SEED", 0) + 5_000, 1, wanted() / 4, Mood::Fickle);
    let happened = |event: Event| done.events[event as usize] != 0;
    for event in [Event::TlbFlushAll, Event::TlbFlushOne, Event::MigrateSplit, Event::ThpFaultAlloc] {
        assert!(happened(event), "{}", event.name());
    }
}

fn failure(step: usize, what: &str) -> Option<Failure> {
    Some(Failure { step, what: what.to_string() })
}

/// The shorter list fails as the long one did, though parts of it fail in other ways.
#[test]
fn a_list_that_is_made_shorter_keeps_the_cause_of_its_failure() {
    let steps = generate(3, 64);
    let (cause, second) = (steps[40], steps[20]);
    let at = |steps: &[Step], step| steps.iter().position(|s| *s == step);
    let fails = |steps: &[Step]| match (at(steps, second), at(steps, cause)) {
        (Some(_), Some(at)) => failure(at, &format!("space 1: page {at:#x} holds {at}, not 5")),
        (None, Some(at)) => failure(at, &format!("free memory of 7 pages is lost at {at}")),
        _ => None,
    };
    let (left, how) = shrink_list(&steps, fails(&steps).expect("both are in it"), 600, fails);
    assert_eq!(left, [second, cause]);
    assert!(how.what.contains("holds 1, not"), "{}", how.what);
}

/// A check comes only after some steps, so what follows the failing step may be what shows the failure.
#[test]
fn what_a_failure_needs_after_its_step_is_not_cut_off() {
    let steps = generate(5, 64);
    let (cause, shown) = (steps[30], steps[50]);
    let fails = |steps: &[Step]| {
        let at = steps.iter().position(|step| *step == cause)?;
        if steps[at..].contains(&shown) { failure(at, "pages are lost") } else { None }
    };
    let (left, _) = shrink_list(&steps, fails(&steps).expect("both are in it"), 600, fails);
    assert_eq!(left, [cause, shown]);
}
