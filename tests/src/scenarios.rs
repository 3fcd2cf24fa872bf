//! The field's scenarios of device memory from ring 3: the program `hmm`, which has a line of KTAP for each.
//!
//! One run of it is made, when the first of its trials is asked for; each line is a trial. The machine is that of `exec`: two devices
//! with private memory, two with coherent memory. It ends with an audit, or the runner's status says so.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
};

use ktest::ktap::Line;
use libtest_mimic::{Completion, Failed, Trial};

use crate::{
    host,
    process::{self, Finished},
    runs,
};

/// Those that need one device.
const ONE: [&str; 35] = [
    "open_close",
    "anon_read",
    "anon_read_prot",
    "anon_write",
    "anon_write_prot",
    "anon_write_child",
    "anon_write_child_shared",
    "anon_write_huge",
    "anon_write_hugetlbfs",
    "file_read",
    "file_write",
    "migrate",
    "migrate_file_private",
    "migrate_fault",
    "migrate_release",
    "migrate_shared",
    "migrate_multiple",
    "anon_read_multiple",
    "anon_teardown",
    "mixedmap",
    "compound",
    "exclusive",
    "exclusive_mprotect",
    "exclusive_cow",
    "hmm_gup_test",
    "hmm_cow_in_device",
    "migrate_anon_huge_empty",
    "migrate_anon_huge_zero",
    "migrate_anon_huge_free",
    "migrate_anon_huge_fault",
    "migrate_partial_unmap_fault",
    "migrate_remap_fault",
    "migrate_anon_huge_err",
    "migrate_anon_huge_zero_err",
    "benchmark_thp_migration",
];
/// Those that need two.
const TWO: [&str; 3] = ["migrate_mixed", "snapshot", "double_map"];
/// What is not among the field's.
const MORE: [&str; 4] = ["bad_pointers", "bad_ranges", "closing", "mapping"];

/// The run, made by the first who asks.
struct Scenarios {
    runner: PathBuf,
    run: OnceLock<Result<Finished, String>>,
}

/// All of them, on both kinds of devices.
pub(crate) fn trials(runner: &Path) -> Vec<Trial> {
    let scenarios = Arc::new(Scenarios { runner: runner.to_path_buf(), run: OnceLock::new() });
    let one = [("hmm_device_private", &ONE[..]), ("hmm_device_coherent", &ONE)];
    let two = [("hmm2_device_private", &TWO[..]), ("hmm2_device_coherent", &TWO)];
    let more = [("more_device_private", &MORE[..]), ("more_device_coherent", &MORE)];
    let variants = one.into_iter().chain(two).chain(more);
    let names: Vec<String> = variants
        .flat_map(|(variant, names)| names.iter().map(move |name| format!("{variant}::{name}")))
        .collect();
    let count = names.len();
    let whole = Arc::clone(&scenarios);
    let whole = Trial::test("run::hmm::all_end_well", move || whole.ends(count).map_err(Failed::from));
    let lines = names.into_iter().map(|name| {
        let scenarios = Arc::clone(&scenarios);
        Trial::ignorable_test(format!("run::hmm::{name}"), move || {
            scenarios.line(&name).map_err(Failed::from)
        })
    });
    lines.chain([whole]).collect()
}

impl Scenarios {
    fn run(&self) -> Result<&Finished, String> {
        let run = || {
            let mut command = Command::new(&self.runner);
            command.args(["exec", "hmm"]).current_dir(host::workspace()).env_remove("CARGO_MANIFEST_DIR");
            process::run(&mut command, runs::LIMIT).map_err(|error| error.to_string())
        };
        self.run.get_or_init(run).as_ref().map_err(Clone::clone)
    }

    /// One scenario.
    fn line(&self, name: &str) -> Result<Completion, String> {
        let run = self.run()?;
        let mut why = Vec::new();
        for line in run.stdout.lines().map(Line::parse) {
            match line {
                Line::Begin(_) => why.clear(),
                Line::Failed(text) => why.push(text),
                Line::Ok(_, found) if found == name => return Ok(Completion::Completed),
                Line::NotOk(_, found) if found == name => return Err(why.join("\n")),
                Line::Skip(_, found, reason) if found == name => return Ok(Completion::ignored_with(reason)),
                _ => {}
            }
        }
        Err(format!("it was not run: {run}"))
    }

    /// The run as a whole.
    fn ends(&self, count: usize) -> Result<(), String> {
        let run = self.run()?;
        if !run.success() {
            return Err(format!("it has failed, or the audit after it: {run}"));
        }
        let plan = run.stdout.lines().find_map(|line| match Line::parse(line) {
            Line::Plan(count) => Some(count),
            _ => None,
        });
        if plan == Some(count) { Ok(()) } else { Err(format!("{plan:?} scenarios, not {count}")) }
    }
}
