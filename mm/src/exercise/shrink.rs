//! Makes a failing list shorter, and prints it as Rust.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::exercise::actions::Step;
use crate::exercise::runner::Failure;

/// The shortest list found (delta debugging) that still fails, and how; at most `runs` runs.
pub fn shrink(
    steps: &[Step],
    first: Failure,
    mut runs: usize,
    mut fails: impl FnMut(&[Step]) -> Option<Failure>,
) -> (Vec<Step>, Failure) {
    let mut steps = steps[..(first.step + 1).min(steps.len())].to_vec();
    let mut failure = first;
    let mut chunk = steps.len() / 2;
    while chunk > 0 && runs > 0 {
        let mut at = 0;
        let mut shorter = false;
        while at < steps.len() && runs > 0 {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + chunk).min(fewer.len()));
            runs -= 1;
            match fails(&fewer) {
                Some(now) => {
                    fewer.truncate(now.step + 1);
                    steps = fewer;
                    failure = now;
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
