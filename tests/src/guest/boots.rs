//! One group of tests, in as many boots as it takes.

use std::iter;

use ktest::{
    catalog::Needs,
    stream::{Ending, Outcome, Run, Stream, Test},
};

use super::{board::Board, machine::Machine};

/// The kernel reads 4096 bytes of command line; the rest is for what the machine adds.
const FILTER_MAX: usize = 3800;

/// Runs `chosen`, all of which need the machine `needs`, and puts each result on the board.
///
/// `all` are the tests of this group. `alone` says that there is no other group: the kernel may then be asked
/// to run whatever it has.
pub fn run_group(
    machine: &dyn Machine,
    needs: &Needs,
    all: &[String],
    chosen: &[String],
    alone: bool,
    board: &Board,
) {
    let mut left = chosen.to_vec();
    while !left.is_empty() {
        let everything = alone && left.len() == all.len();
        let (now, later) = left.split_at(if everything { left.len() } else { fitting(&left) });
        let words = if everything { "run=test".into() } else { format!("run=test filter={}", now.join(",")) };
        // A filter takes every name that contains one of the given ones.
        let taken = all.iter().filter(|name| now.iter().any(|part| name.contains(part.as_str())));
        let (run, ending) = boot(machine, needs, &words, taken.cloned().collect(), board);
        let again: Vec<_> =
            run.never_ran().filter(|name| now.iter().any(|n| n == name)).map(str::to_owned).collect();
        let stuck = again.len() == now.len();
        settle(run, &ending, stuck, board);
        let next = if stuck { Vec::new() } else { again };
        left = next.into_iter().chain(later.iter().cloned()).collect();
    }
}

/// How many of these names a command line holds; at least one.
fn fitting(names: &[String]) -> usize {
    let mut room = FILTER_MAX;
    let fits = |name: &&String| {
        let fits = name.len() < room;
        room = room.saturating_sub(name.len() + 1);
        fits
    };
    names.iter().take_while(fits).count().max(1)
}

/// One boot. Results go up as soon as the next test has begun.
fn boot(
    machine: &dyn Machine,
    needs: &Needs,
    words: &str,
    announced: Vec<String>,
    board: &Board,
) -> (Run, Ending) {
    let mut stream = Stream::new(announced);
    let mut up = 0;
    let ending = machine.boot(needs, words, &mut |line| {
        stream.feed(line);
        for test in stream.settled().iter().skip(up) {
            board.put(test.clone());
            up += 1;
        }
    });
    let ending = ending.unwrap_or_else(Ending::Died);
    (stream.finish(&ending), ending)
}

/// Puts up what is left of a boot. What went wrong outside any test is laid at the door of the last one that
/// ran, so that it cannot be lost; where none ran, at the door of all.
fn settle(run: Run, ending: &Ending, stuck: bool, board: &Board) {
    let Run { mut tests, outside, preamble, problems } = run;
    let wrong: Vec<_> = outside.iter().map(|end| format!("after it {end}")).chain(problems).collect();
    if let Some(last) = tests.iter_mut().rfind(|test| test.outcome != Outcome::NeverRan)
        && !wrong.is_empty()
    {
        let own = iter::once(&last.outcome).filter(|own| own.is_failure()).map(ToString::to_string);
        last.outcome = Outcome::Fail(own.chain(wrong).collect::<Vec<_>>().join("; "));
    }
    for mut test in tests {
        if test.outcome == Outcome::NeverRan {
            if !stuck {
                continue;
            }
            test = Test { console: preamble.clone(), ..test };
            test.console.push(format!("({ending})"));
        }
        board.put(test);
    }
}
