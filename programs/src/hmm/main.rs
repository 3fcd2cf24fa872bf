//! `hmm [--all] [FILTER]`: the scenarios that the field tests its device memory with, by their names there, on `/dev/hmm_dmirror*`;
//! and a few more, of what they leave out.
//!
//! Each runs twice, on devices with private memory and on devices whose memory CPUs can map, in a process of its own, and gives a
//! line of KTAP. `--all` includes the sizes that take long.

use std::io::Write;
use std::process::ExitCode;

use ktest::ktap::Reporter;

use kit::{COHERENT, Fixture, Outcome, PRIVATE, Unmet};

mod basic;
mod clones;
mod exclusive;
mod files;
mod huge;
mod kit;
mod migrating;
mod more;
mod moving;
mod pinning;
mod pool;
mod process;
mod racing;
mod snapshots;
mod timing;

/// What a scenario does; with everything that takes long?
type Run = fn(Fixture, bool) -> Outcome;
/// A scenario by its name.
type Scenario = (&'static str, Run);

/// A list of scenarios.
macro_rules! scenarios {
    ($($name:ident in $file:ident,)*) => { [$((stringify!($name), |on, _| $file::$name(on)),)*] };
}

/// Those that need one device.
const ONE: [Scenario; 34] = scenarios![
    open_close in basic,
    anon_read in basic,
    anon_read_prot in basic,
    anon_write in basic,
    anon_write_prot in basic,
    anon_write_child in clones,
    anon_write_child_shared in clones,
    anon_write_huge in basic,
    anon_write_hugetlbfs in basic,
    file_read in files,
    file_write in files,
    migrate in migrating,
    migrate_file_private in files,
    migrate_fault in migrating,
    migrate_release in migrating,
    migrate_shared in files,
    migrate_multiple in migrating,
    anon_read_multiple in basic,
    anon_teardown in racing,
    mixedmap in files,
    compound in snapshots,
    exclusive in exclusive,
    exclusive_mprotect in exclusive,
    exclusive_cow in clones,
    hmm_gup_test in pinning,
    hmm_cow_in_device in clones,
    migrate_anon_huge_empty in huge,
    migrate_anon_huge_zero in huge,
    migrate_anon_huge_free in huge,
    migrate_anon_huge_fault in huge,
    migrate_partial_unmap_fault in moving,
    migrate_remap_fault in moving,
    migrate_anon_huge_err in huge,
    migrate_anon_huge_zero_err in huge,
];

/// The one whose sizes can be chosen.
const SIZES: [Scenario; 1] = [("benchmark_thp_migration", timing::benchmark_thp_migration)];

/// Those that need two devices.
const TWO: [Scenario; 3] = scenarios![
    migrate_mixed in migrating,
    snapshot in snapshots,
    double_map in snapshots,
];

/// What the field has no scenarios for.
const MORE: [Scenario; 4] = scenarios![
    bad_pointers in more,
    bad_ranges in more,
    closing in more,
    mapping in more,
];

/// Standard output, line by line: a process that is forked finds nothing in it that is not written yet.
struct Out;

impl std::fmt::Write for Out {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let mut out = std::io::stdout();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|_| std::fmt::Error)
    }
}

fn main() -> ExitCode {
    let (mut all, mut filter) = (false, String::new());
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--all" => all = true,
            word => filter = word.into(),
        }
    }
    let one = || ONE.into_iter().chain(SIZES);
    let variants = [
        ("hmm_device_private", PRIVATE, one().collect::<Vec<_>>()),
        ("hmm_device_coherent", COHERENT, one().collect()),
        ("hmm2_device_private", PRIVATE, TWO.to_vec()),
        ("hmm2_device_coherent", COHERENT, TWO.to_vec()),
        ("more_device_private", PRIVATE, MORE.to_vec()),
        ("more_device_coherent", COHERENT, MORE.to_vec()),
    ];
    let named = variants.into_iter().flat_map(|(variant, on, scenarios)| {
        scenarios.into_iter().map(move |(name, run)| (format!("{variant}::{name}"), on, run))
    });
    let chosen: Vec<_> = named.filter(|(name, ..)| name.contains(&filter)).collect();
    match report(&chosen, all) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) | Err(_) => ExitCode::FAILURE,
    }
}

/// Runs them; how many have failed.
fn report(chosen: &[(String, Fixture, Run)], all: bool) -> Result<usize, std::fmt::Error> {
    let mut out = Out;
    let mut reporter = Reporter::begin(&mut out, chosen.len())?;
    for (name, on, scenario) in chosen {
        reporter.running(name)?;
        match process::fork(|| scenario(*on, all)).and_then(process::Child::join) {
            Ok(()) => reporter.passed(name)?,
            Err(Unmet::Failed(why)) => reporter.failed(name, &why)?,
            Err(Unmet::Skip(why)) => reporter.skipped(name, &why)?,
        }
    }
    Ok(reporter.failures())
}
