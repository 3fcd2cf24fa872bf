//! Whole runs of `trace`: commands go in, a file comes out that a viewer of traces can show, and it tells what happened.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use libtest_mimic::{Failed, Trial};
use serde_json::Value;
use xtask::trace::check_nesting;

use crate::{
    host,
    process::{self, Finished},
    runs,
};

type Check = fn(&Tracer) -> Result<(), String>;

const RUNS: [(&str, Check); 3] = [
    ("a_migration_and_its_way_back_as_a_file", there_and_back),
    ("single_steps_nest", steps),
    ("what_is_lost_is_said_and_a_failing_command_leaves_a_file", lost),
];

/// All of them.
pub(crate) fn trials(runner: &Path) -> Vec<Trial> {
    let trial = |&(name, check): &(&'static str, Check)| {
        let tracer = Tracer { runner: runner.to_path_buf(), name };
        Trial::test(format!("run::trace::{name}"), move || check(&tracer).map_err(Failed::from))
    };
    RUNS.iter().map(trial).collect()
}

/// The program behind `cargo run`.
struct Tracer {
    runner: PathBuf,
    name: &'static str,
}

impl Tracer {
    fn run(&self, arguments: &[&str]) -> Result<(Finished, Value), String> {
        let file = std::env::temp_dir().join(format!("farpage-{}-{}.json", std::process::id(), self.name));
        let mut command = Command::new(&self.runner);
        command.arg("trace").arg("-o").arg(&file).args(arguments);
        command.current_dir(host::workspace()).env_remove("CARGO_MANIFEST_DIR");
        let done = process::run(&mut command, runs::LIMIT).map_err(|error| error.to_string())?;
        let text = std::fs::read_to_string(&file).map_err(|error| format!("no file: {error}; {done:?}"))?;
        std::fs::remove_file(&file).map_err(|error| error.to_string())?;
        let document = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        check_nesting(&document)?;
        Ok((done, document))
    }
}

/// The complete events whose argument `key` is `value`.
fn events<'a>(document: &'a Value, name: &'a str, key: &'a str, value: &'a str) -> Vec<&'a Value> {
    let all = document["traceEvents"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter(|event| event["name"] == name && event["args"][key] == value).collect()
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?}, not {expected:?}")) }
}

const COMMANDS: &str = "map 0x10_0000_0000 2M rw nohuge; fill 0x10_0000_0000 2M; migrate 0x10_0000_0000 2M dev0; \
                        touch 0x10_0000_0000 1M; touch 0x20_0000_0000";

/// Without the last command, which is refused.
fn good() -> &'static str {
    COMMANDS.rsplit_once(';').map_or(COMMANDS, |(good, _)| good)
}

fn there_and_back(tracer: &Tracer) -> Result<(), String> {
    let (done, document) = tracer.run(&[good()])?;
    expect("status", &done.success(), &true)?;
    expect("first touches", &events(&document, "fault", "outcome", "allocated").len(), &512)?;
    let back = events(&document, "fault", "outcome", "returned");
    expect("faults that brought a page back", &back.len(), &256)?;
    expect("units", &events(&document, "arrive", "outcome", "moved").len(), &512)?;
    expect("lost", &document["otherData"]["lost"], &0.into())?;
    let first = &back[0]["args"];
    expect("address", &first["address"], &"0x1000000000".into())?;
    expect("device", &first["device"], &"dev0".into())?;
    // A thousand instructions are a microsecond: the copy of 4 KiB alone is half of one.
    let us = back[0]["dur"].as_f64().unwrap_or_default();
    if !(0.5..1.5).contains(&us) {
        return Err(format!("a fault of {us} us"));
    }
    for said in ["fault, returned", "batch, done", "copy ", "records in ", "none was lost"] {
        if !done.stdout.contains(said) {
            return Err(format!("\"{said}\" is missing in {}", done.stdout));
        }
    }
    Ok(())
}

fn steps(tracer: &Tracer) -> Result<(), String> {
    let commands = "map 0x10_0000_0000 4M rw huge; fill 0x10_0000_0000 4M; migrate 0x10_0000_0000 4M dev0; \
                    unmap 0x10_0000_0000 1M; touch 0x10_0020_0000; evict dev0; collapse 0x10_0020_0000";
    let (done, document) = tracer.run(&["--level", "2", commands])?;
    expect("status", &done.success(), &true)?;
    for step in ["alloc", "alloc-table", "flush-tlb", "copy-list", "split", "evict"] {
        if events(&document, step, "outcome", "done").is_empty() {
            return Err(format!("there is no {step}"));
        }
    }
    Ok(())
}

fn lost(tracer: &Tracer) -> Result<(), String> {
    let (done, document) = tracer.run(&["--buffer", "100", COMMANDS])?;
    expect("status", &done.success(), &false)?;
    // 512 first touches, a batch of 512 units, 256 faults, and the one that was refused; the ring has room for 128.
    expect("lost", &document["otherData"]["lost"], &(512 + 513 + 256 + 1 - 128).into())?;
    expect("refused", &events(&document, "fault", "outcome", "no-vma").len(), &1)?;
    if !done.stdout.contains("1,154 before them were overwritten: --buffer N keeps more") {
        return Err(format!("what is lost is not said: {}", done.stdout));
    }
    Ok(())
}
