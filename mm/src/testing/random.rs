//! The property: whatever is done, in whatever order, contents and counts are those of the obvious model.

use crate::counters::Event;
use crate::exercise::generate;
use crate::machine::FlushReason;
use crate::testing::host::{Done, Watch, as_rust, run, shape, shrink};

/// Steps of one case.
const CASE: usize = 1000;

/// Runs cases `from`, `from + by`, ... until `actions` actions are done; a failure is shrunk and printed.
fn cases(from: u64, by: u64, actions: u64) -> Done {
    let watch = Watch { skip: None, no_stale: true };
    let mut sum = Done::default();
    let mut seed = from;
    while sum.actions < actions {
        let (config, steps) = (shape(seed), generate(seed, CASE));
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

fn wanted() -> u64 {
    let text = std::env::var("FARPAGE_ACTIONS").ok();
    text.map_or(120_000, |text| text.replace('_', "").parse().expect("FARPAGE_ACTIONS is a number"))
}

#[test]
fn random_actions_agree_with_the_model() {
    let threads = 2;
    let each = wanted().div_ceil(threads);
    let sums: Vec<Done> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..threads).map(|n| scope.spawn(move || cases(n, threads, each))).collect();
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
    let later = [Event::PgFaultSpurious, Event::FaultWait];
    let missed = |event: &&Event| sum.events[**event as usize] == 0 && !later.contains(*event);
    let missed: Vec<_> = Event::ALL.iter().filter(missed).map(|event| event.name()).collect();
    assert_eq!(missed, [""; 0], "events that did not happen");
}
