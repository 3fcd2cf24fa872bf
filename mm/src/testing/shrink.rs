//! Makes a failing list shorter, and prints it as Rust.

use std::cell::Cell;
use std::panic;
use std::sync::Once;

use crate::testing::actions::Step;
use crate::testing::machine::Config;
use crate::testing::runner::{Failure, Watch, run};

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}
static HOOK: Once = Once::new();

/// Runs `f` with this thread's panics unreported: it catches them itself.
pub(crate) fn quietly<T>(f: impl FnOnce() -> T) -> T {
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.with(Cell::get) {
                before(info);
            }
        }));
    });
    let was = QUIET.with(|quiet| quiet.replace(true));
    let result = f();
    QUIET.with(|quiet| quiet.set(was));
    result
}

/// The shortest list found (delta debugging) that still fails, and how.
pub(crate) fn shrink(config: &Config, steps: &[Step], first: Failure, watch: &Watch) -> (Vec<Step>, Failure) {
    let mut steps = steps[..(first.step + 1).min(steps.len())].to_vec();
    let mut failure = first;
    let mut chunk = steps.len() / 2;
    let mut runs = 0;
    while chunk > 0 && runs < 600 {
        let mut at = 0;
        let mut shorter = false;
        while at < steps.len() && runs < 600 {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + chunk).min(fewer.len()));
            runs += 1;
            match quietly(|| run(config, &fewer, watch)) {
                Err(now) => {
                    fewer.truncate(now.step + 1);
                    steps = fewer;
                    failure = now;
                    shorter = true;
                }
                Ok(_) => at += chunk,
            }
        }
        if !shorter || chunk > 1 {
            chunk /= 2;
        }
    }
    (steps, failure)
}

/// What to paste into `regressions.rs`.
pub(crate) fn as_rust(config: &Config, steps: &[Step], failure: &Failure) -> String {
    let mut text = format!("// {}\nlet config = {config:?};\nlet steps = [\n", failure.what);
    for step in steps {
        text.push_str(&format!("    {step:?},\n"));
    }
    text.push_str("];\n");
    text
}
