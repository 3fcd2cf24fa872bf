//! Whole runs of experiments: what they find is the same in every run, or says that it is not; and what must be found is.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use libtest_mimic::{Failed, Trial};

use crate::{
    host,
    process::{self, Finished},
    runs,
};

type Check = fn(&Exp) -> Result<(), String>;

const RUNS: [(&str, Check); 2] = [
    ("exact_experiments_find_the_same_twice", same_twice),
    ("stale_translations_are_seen_without_a_flush_only", stale),
];

/// All of them.
pub(crate) fn trials(runner: &Path) -> Vec<Trial> {
    let trial = |&(name, check): &(&str, Check)| {
        let exp = Exp(runner.to_path_buf());
        Trial::test(format!("run::exp::{name}"), move || check(&exp).map_err(Failed::from))
    };
    RUNS.iter().map(trial).collect()
}

/// The program behind `cargo run`.
struct Exp(PathBuf);

impl Exp {
    /// What these experiments find, as comma-separated values.
    fn csv(&self, names: &[&str]) -> Result<Finished, String> {
        let mut command = Command::new(&self.0);
        command.arg("exp").args(names).arg("--csv");
        command.current_dir(host::workspace()).env_remove("CARGO_MANIFEST_DIR");
        let done = process::run(&mut command, runs::LIMIT).map_err(|error| error.to_string())?;
        if done.code() == Some(0) { Ok(done) } else { Err(format!("must succeed: {done}")) }
    }
}

fn same_twice(exp: &Exp) -> Result<(), String> {
    let names = ["tlb-model", "example", "granularity", "flush-batching", "fault-latency"];
    let (first, second) = (exp.csv(&names)?, exp.csv(&names)?);
    let points = |name: &str| first.stdout.lines().filter(|line| line.starts_with(name)).count();
    if points("example,") < 8 || points("tlb-model,") < 100 || names.iter().any(|name| points(name) == 0) {
        return Err(format!("there are too few points: {first}"));
    }
    if let Some(other) = first.stdout.lines().skip(1).find(|line| !line.ends_with(",exact")) {
        return Err(format!("{other:?} does not say that it repeats: {first}"));
    }
    if first.stdout == second.stdout {
        Ok(())
    } else {
        Err(format!("the second run differs: {first} {second}"))
    }
}

fn stale(exp: &Exp) -> Result<(), String> {
    let done = exp.csv(&["tlb-stale"])?;
    // Experiment, plot, column, row, unit, cell; no comma stands before the cell but between them.
    let cells: BTreeMap<(&str, &str), &str> = done
        .stdout
        .lines()
        .filter_map(|line| match line.splitn(6, ',').collect::<Vec<_>>()[..] {
            ["tlb-stale", _, column, row, "", cell] => Some(((column, row), cell)),
            _ => None,
        })
        .collect();
    for change in ["unmap", "remap", "migrate", "protect (read-only)", "clear A (cold)", "clear D (free)"] {
        for (column, verdict) in [("without the flush", "wrong: "), ("with it", "right: ")] {
            let cell = cells.get(&(column, change)).map(|cell| cell.trim_start_matches('"'));
            if !cell.is_some_and(|cell| cell.starts_with(verdict)) {
                return Err(format!("{change} {column} is not {verdict:?} but {cell:?}: {done}"));
            }
        }
    }
    Ok(())
}
