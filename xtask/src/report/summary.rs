//! The head of the page: what was measured, and the figures that people ask for first.

use crate::bench::data::{Direction, Operation, Results};
use crate::build;
use crate::qemu::PROGRAM;
use crate::size::Size;
use crate::table::{grouped, percent};
use std::process::Command;

/// The head of the page.
#[derive(Debug, Default)]
pub(super) struct Summary {
    /// Of the run: name and value.
    pub(super) facts: Vec<(String, String)>,
    /// Value, and what it is the value of.
    pub(super) figures: Vec<(String, String)>,
    /// What one has to know to read the rest.
    pub(super) notes: Vec<String>,
}

impl Summary {
    /// Of a run that counted instructions.
    pub(super) fn of(results: &Results, settings: &[String]) -> Self {
        let text = |name: &str, value: String| (name.to_owned(), value);
        let mut facts = vec![text("Version", version())];
        facts.extend(first_line(Command::new(PROGRAM).arg("--version")).map(|line| text("Emulator", line)));
        facts.push(text("Clock", "guest instructions (-icount shift=0): one tick is one instruction".into()));
        if !results.machine.is_empty() {
            let size = |(key, value): &(String, String)| match key.strip_suffix("_mib") {
                Some(what) => format!("{what} {value} MiB"),
                None => format!("{key} {value}"),
            };
            let machine: Vec<String> = results.machine.iter().map(size).collect();
            facts.push(text("Machine of bench", machine.join(", ")));
        }
        if !settings.is_empty() {
            facts.push(text("Knobs", settings.join(", ")));
        }
        facts.extend(results.skipped.iter().map(|(what, why)| text("Skipped", format!("{what}: {why}"))));
        let notes = [
            "Numbers are counts of instructions, made by QEMU's translator. They are the same in every run, to the last one, except \
             in plots that say that they vary. They are not cycles: what the caches and the TLB of a processor do is not in them.",
            "Data are the words that an operation copies or clears, one instruction for each 8 bytes. Beyond the data is all the rest: \
             what the memory manager itself costs.",
        ];
        Self { facts, figures: figures(results), notes: notes.map(str::to_owned).to_vec() }
    }
}

fn figures(results: &Results) -> Vec<(String, String)> {
    let row = |name: &str| results.operations.iter().find(|row| row.name == name);
    let beyond = |row: &Operation| grouped(row.cost.beyond());
    let mut figures = Vec::new();
    let mut add =
        |value: Option<String>, what: &str| figures.extend(value.map(|value| (value, what.to_owned())));
    add(
        row("fault-back, 2 MiB, by a read").map(beyond),
        "instructions beyond the copy, when a touch brings 2 MiB back",
    );
    add(row("fault-back, 4 KiB").map(beyond), "instructions beyond the copy, when a touch brings 4 KiB back");
    add(
        row("to device, 2 MiB").map(|row| percent(row.cost.bulk, row.cost.total)),
        "of moving 2 MiB to the device is the copy",
    );
    add(times(results, Direction::Device), "times as many instructions with 4 KiB pages, to the device");
    add(times(results, Direction::System), "times as many instructions with 4 KiB pages, back to the system");
    let goals: Vec<bool> = results.operations.iter().filter_map(Operation::goal_met).collect();
    let met = goals.iter().filter(|met| **met).count();
    add((!goals.is_empty()).then(|| format!("{met} of {}", goals.len())), "goals of operations are met");
    figures
}

/// 4 KiB pages against 2 MiB pages at the largest size.
fn times(results: &Results, direction: Direction) -> Option<String> {
    let rows = || results.sweep.iter().filter(|row| row.direction == direction);
    let size = rows().map(|row| row.size).max().filter(|&size| size >= Size::mib(2).0)?;
    let total = |huge| rows().find(|row| row.size == size && row.huge == huge).map(|row| row.cost.total);
    Some(format!("{:.2}", total(false)? as f64 / total(true)?.max(1) as f64))
}

/// The version with the commit, if this is a checkout and git is there.
fn version() -> String {
    let commit =
        first_line(Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(build::root()));
    let version = env!("CARGO_PKG_VERSION");
    commit.map_or_else(|| version.to_owned(), |commit| format!("{version}, commit {commit}"))
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}
