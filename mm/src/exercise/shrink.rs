//! Makes a failing list shorter, and prints it as Rust.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::exercise::actions::Step;
use crate::exercise::runner::Failure;

/// Words of a failure that say what kind it is.
const WORDS_OF_A_KIND: usize = 5;

impl Failure {
    /// What kind of failure it is: the first words of what the check says, without numbers, addresses and values. A list that is
    /// made shorter must go on to fail in this way, for what is left of it may well fail in another.
    pub fn kind(&self) -> impl Iterator<Item = &str> {
        let bare =
            self.what.split_whitespace().map(|word| word.trim_matches(|c: char| c.is_ascii_punctuation()));
        let words = bare.filter(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphabetic()));
        words.take(WORDS_OF_A_KIND)
    }
}

/// The shortest list found (delta debugging) that still fails in the same way, and how; at most about `runs` runs. Every list that
/// this returns, but for the first, was run as it is.
pub fn shrink(
    steps: &[Step],
    first: Failure,
    runs: usize,
    mut fails: impl FnMut(&[Step]) -> Option<Failure>,
) -> (Vec<Step>, Failure) {
    let mut left = runs;
    let kind = Failure { step: first.step, what: first.what.clone() };
    let mut fails = |steps: &[Step], left: &mut usize| {
        *left = left.saturating_sub(1);
        fails(steps).filter(|now| now.kind().eq(kind.kind()))
    };
    let (mut steps, mut failure) = (steps.to_vec(), first);
    cut(&mut steps, &mut failure, &mut left, &mut fails);
    let mut chunk = steps.len() / 2;
    while chunk > 0 && left > 0 {
        let mut at = 0;
        let mut shorter = false;
        while at < steps.len() && left > 0 {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + chunk).min(fewer.len()));
            match fails(&fewer, &mut left) {
                Some(now) => {
                    (steps, failure) = (fewer, now);
                    cut(&mut steps, &mut failure, &mut left, &mut fails);
                    shorter = true;
                }
                None => at += chunk,
            }
        }
        if !shorter || chunk > 1 {
            chunk /= 2;
        }
    }
    (steps, failure)
}

/// Leaves out what comes after the failure. A check comes after several steps, or at the end, where pages are released first: the
/// list fails earlier then, or no more, and then it stays as it is.
fn cut(
    steps: &mut Vec<Step>,
    failure: &mut Failure,
    left: &mut usize,
    fails: &mut impl FnMut(&[Step], &mut usize) -> Option<Failure>,
) {
    if failure.step + 1 < steps.len()
        && let Some(now) = fails(&steps[..=failure.step], left)
    {
        steps.truncate(failure.step + 1);
        *failure = now;
    }
}

/// What to paste into a test: `machine` says what it ran on.
#[must_use]
pub fn as_rust(machine: &str, steps: &[Step], failure: &Failure) -> String {
    let mut text = format!("// {}\n{machine}let steps = [\n", failure.what);
    for step in steps {
        text.push_str(&format!("    {step:?},\n"));
    }
    text.push_str("];\n");
    text
}
