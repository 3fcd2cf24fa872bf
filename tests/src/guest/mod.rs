//! In-kernel tests, each as one trial.
//!
//! The kernel is asked for its list. Tests that need the same machine share boots, which run in the
//! background, several at once, while the pool of the harness works on other trials; a trial waits for its own
//! result only, and comes late in the list, so that what waits does not keep others from working.
//! A boot that dies takes no test with it that had not begun: those run in a further boot, until every test
//! has had its turn or a boot gets nowhere. A destructive test has a boot of its own.

mod board;
mod boots;
mod machine;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    num::NonZero,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use ktest::{
    catalog::{self, Needs},
    exit::Exit,
    stream::{Ending, Outcome, Stream, Test},
    wire::Record,
};
use libtest_mimic::{Completion, Failed, Trial};

pub use board::Board;
pub use boots::run_group;
pub(crate) use machine::qemu;
pub use machine::{Machine, QemuMachine};

/// Tests that share a boot, at most. A boot takes a tenth of a second; parts of this size keep all CPUs busy to the end.
const SHARE: usize = 16;

/// What the kernel says of one of its tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The kernel's name for it.
    pub name: String,
    /// The report that a destructive test must end in.
    pub expect: Option<String>,
    /// What it needs of its machine.
    pub needs: Needs,
}

/// The in-kernel tests, ready to be chosen from and started.
pub struct Guests {
    machine: Arc<dyn Machine>,
    entries: Vec<Entry>,
    board: Arc<Board>,
}

impl Guests {
    /// Builds the kernel and asks it for its list.
    ///
    /// # Errors
    /// The kernel does not build, does not boot, or does not list its tests.
    pub fn find(machine: Arc<dyn Machine>) -> Result<Self, String> {
        let mut entries = list(&*machine)?;
        // In the order of their boots. Machines of their own come first: what is large is there.
        entries.sort_by_key(|entry| (entry.expect.is_none(), Reverse(entry.needs)));
        Ok(Self { machine, entries, board: Arc::new(Board::default()) })
    }

    /// A trial for every test: first those that boot by themselves, then those that wait for shared boots.
    #[must_use]
    pub fn trials(&self) -> Vec<Trial> {
        self.entries.iter().map(|entry| self.trial(entry)).collect()
    }

    /// Starts the shared boots of those tests whose trials were chosen, so many at once.
    pub fn start(&self, chosen: &BTreeSet<String>, at_once: NonZero<usize>) {
        let mut groups: BTreeMap<Reverse<Needs>, (Vec<String>, Vec<String>)> = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| entry.expect.is_none()) {
            let (all, mine) = groups.entry(Reverse(entry.needs)).or_default();
            all.push(entry.name.clone());
            if chosen.contains(&entry.name) {
                mine.push(entry.name.clone());
            }
        }
        let alone = groups.len() == 1;
        let (machine, board) = (Arc::clone(&self.machine), Arc::clone(&self.board));
        thread::spawn(move || {
            let parts = groups.iter().flat_map(|(Reverse(needs), (all, mine))| {
                parts(mine).map(move |part| (needs, all.as_slice(), part))
            });
            let parts = Mutex::new(parts);
            let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
            thread::scope(|scope| {
                for _ in 0..at_once.get() {
                    scope.spawn(|| {
                        while let Some((needs, all, part)) = next() {
                            run_group(&*machine, needs, all, &part, alone, &board);
                        }
                    });
                }
            });
            board.close();
        });
    }

    fn trial(&self, entry: &Entry) -> Trial {
        let (entry, machine, board) = (entry.clone(), Arc::clone(&self.machine), Arc::clone(&self.board));
        Trial::ignorable_test(entry.name.clone(), move || match &entry.expect {
            Some(expect) => destructive(&*machine, &entry, expect),
            None => verdict(&*machine, &board.wait(&entry.name)),
        })
    }
}

/// Boots' worth of tests. Neighbours, which take about as long, go to different ones.
fn parts(tests: &[String]) -> impl Iterator<Item = Vec<String>> {
    let parts = tests.len().div_ceil(SHARE);
    (0..parts).map(move |n| tests.iter().skip(n).step_by(parts).cloned().collect())
}

fn list(machine: &dyn Machine) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    let mut console = Vec::new();
    let ending = machine.boot(&Needs::NONE, "run=list", &mut |line| {
        console.push(line.to_owned());
        entries.extend(entry(line));
    })?;
    if ending != Ending::Exit(Exit::Success) {
        return Err(format!("the kernel does not list its tests: {ending}{}", shown(machine, &console)));
    }
    Ok(entries)
}

fn entry(line: &str) -> Option<Entry> {
    let record = Record::parse(line).filter(|record| record.kind() == catalog::TEST)?;
    let expect = record.get("expect").map(|expect| expect.into_owned());
    Some(Entry { name: record.get("name")?.into_owned(), expect, needs: catalog::needs_of(&record) })
}

/// Runs one test in a boot of its own, which must end in the report it names.
fn destructive(machine: &dyn Machine, entry: &Entry, expect: &str) -> Result<Completion, Failed> {
    let mut stream = Stream::new([entry.name.as_str()]);
    let words = format!("run=test exact=1 filter={}", entry.name);
    let ending = machine.boot(&entry.needs, &words, &mut |line| stream.feed(line)).map_err(Failed::from)?;
    let mut run = stream.finish(&ending);
    let preamble = std::mem::take(&mut run.preamble);
    let test = run.tests.into_iter().next().filter(|test| test.name == entry.name);
    let (outcome, mut console) =
        test.map_or((Outcome::NeverRan, Vec::new()), |test| (test.outcome, test.console));
    match (&outcome, &ending) {
        (Outcome::Panic(_), Ending::Exit(Exit::Panic)) if expect == catalog::EXPECT_PANIC => {
            return Ok(Completion::Completed);
        }
        (Outcome::Fault(kind), Ending::Exit(Exit::Fault)) if kind == expect => {
            return Ok(Completion::Completed);
        }
        (Outcome::Skip(why), _) => return Ok(Completion::ignored_with(why)),
        _ => {}
    }
    console.splice(0..0, preamble);
    let shown = shown(machine, &console);
    Err(Failed::from(format!("must end in a report of {expect}, but {outcome}; {ending}{shown}")))
}

fn verdict(machine: &dyn Machine, test: &Test) -> Result<Completion, Failed> {
    match &test.outcome {
        Outcome::Pass => Ok(Completion::Completed),
        Outcome::Skip(why) => Ok(Completion::ignored_with(why)),
        bad => Err(Failed::from(format!("{bad}{}", shown(machine, &test.console)))),
    }
}

/// The console as a person reads it: backtraces with names and lines.
fn shown(machine: &dyn Machine, console: &[String]) -> String {
    if console.is_empty() {
        return String::new();
    }
    let lines = console.iter().map(|line| format!("    {}", machine.explain(line)));
    format!("\n--- console\n{}", lines.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests;
