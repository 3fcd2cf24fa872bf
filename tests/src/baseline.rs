//! Whole runs of `bench --baseline`: a file is written, compared with, and no longer what it was.

use std::{fs, path::Path, process::Command};

use libtest_mimic::{Failed, Trial};

use crate::{
    host,
    process::{self, Finished},
    runs,
};

/// All of them.
pub(crate) fn trials(runner: &Path) -> Vec<Trial> {
    let runner = runner.to_path_buf();
    let check = move || counts_that_grew_fail(&runner).map_err(Failed::from);
    vec![Trial::test("run::baseline::counts_that_grew_and_rows_that_are_missing_fail", check)]
}

fn bench(runner: &Path, file: &Path, more: &[&str]) -> Result<Finished, String> {
    let mut command = Command::new(runner);
    command.args(["bench", "--sizes", "2M", "--baseline"]).arg(file).args(more);
    command.current_dir(host::workspace()).env_remove("CARGO_MANIFEST_DIR");
    process::run(&mut command, runs::LIMIT).map_err(|error| error.to_string())
}

fn counts_that_grew_fail(runner: &Path) -> Result<(), String> {
    let file = std::env::temp_dir().join(format!("farpage-counts-{}.json", std::process::id()));
    // What an earlier run with this number left would be compared with.
    let _ = fs::remove_file(&file);
    let outcome = written_and_doctored(runner, &file);
    let _ = fs::remove_file(&file);
    outcome
}

fn written_and_doctored(runner: &Path, file: &Path) -> Result<(), String> {
    let written = bench(runner, file, &["--update"])?;
    if !written.success() || !written.stdout.contains("\"first touch, 2 MiB\" is not in the baseline") {
        return Err(format!("--update must show what is new and write it: {written}"));
    }
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    // A row for which the file has a tenth of the work, and one that the file does not have.
    let row = |line: &str| -> Option<(u64, u64)> {
        let (_, counts) = line.split_once("\"total\": ")?;
        let (total, bulk) = counts.split_once(", \"bulk\": ")?;
        Some((total.parse().ok()?, bulk.trim_end_matches(['}', ',']).parse().ok()?))
    };
    let mut doctored = Vec::new();
    for line in text.lines().filter(|line| !line.contains("\"split of a present")) {
        let at = row(line).filter(|_| line.contains("\"fault-back, 4 KiB\""));
        doctored.push(match at {
            Some((total, bulk)) => {
                line.replace(&total.to_string(), &(bulk + (total - bulk) / 10).to_string())
            }
            None => line.to_owned(),
        });
    }
    fs::write(file, doctored.join("\n")).map_err(|error| error.to_string())?;
    let compared = bench(runner, file, &[])?;
    let worse = compared.stdout.lines().find(|line| line.ends_with("worse"));
    let fails = compared.code() == Some(1)
        && worse.is_some_and(|line| line.starts_with("fault-back, 4 KiB "))
        && compared.stdout.contains("1 counts differ")
        && compared.stderr.contains("1 count is more than 2 % worse and 1 row is in only one of the two");
    if fails { Ok(()) } else { Err(format!("a doctored baseline must fail: {compared}")) }
}
