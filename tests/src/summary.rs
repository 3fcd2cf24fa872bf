//! The last line.

use std::process::ExitCode;

use ktest::stream::Totals;
use libtest_mimic::{Arguments, Conclusion, FormatSetting};

/// Prints the sum of all and gives the exit status: after a list and in JSON there is no such line.
#[must_use]
pub fn finish(args: &Arguments, conclusion: &Conclusion) -> ExitCode {
    let json = matches!(args.format, Some(FormatSetting::Json));
    if !args.list && !json {
        println!("{}", totals(conclusion));
    }
    conclusion.exit_code()
}

fn totals(conclusion: &Conclusion) -> Totals {
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    Totals {
        passed: count(conclusion.num_passed + conclusion.num_measured),
        failed: count(conclusion.num_failed),
        skipped: count(conclusion.num_ignored),
    }
}
