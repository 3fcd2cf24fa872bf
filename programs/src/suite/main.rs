//! `suite GROUP`: the groups of calls, one module each. `suite all` runs every group in a child of its own.

mod errors;
mod exec;
mod files;
mod fork;
mod futex;
mod madvise;
mod mmap;
mod mremap;
mod pidfd;
mod procfs;
mod seeds;
mod signals;
mod threads;
mod time;
mod traps;
mod vector;

use std::env;
use std::process::ExitCode;

use farpage_programs::task;

/// A group, and what runs it.
type Group = (&'static str, fn());

const GROUPS: &[Group] = &[
    ("mmap", mmap::run),
    ("mremap", mremap::run),
    ("madvise", madvise::run),
    ("fork", fork::run),
    ("threads", threads::run),
    ("futex", futex::run),
    ("signals", signals::run),
    ("vector", vector::run),
    ("files", files::run),
    ("procfs", procfs::run),
    ("pidfd", pidfd::run),
    ("time", time::run),
    ("exec", exec::run),
    ("traps", traps::run),
    ("errors", errors::run),
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("all") => {
            for group in GROUPS {
                println!("# group {}", group.0);
                let status = task::child(|| {
                    group.1();
                    0
                });
                println!("# end {}: {status}", group.0);
            }
        }
        Some("started") => exec::started(&args[1..]),
        Some("seeds") => seeds::run(&args[1..]),
        Some(name) if GROUPS.iter().any(|group| group.0 == name) => {
            GROUPS.iter().filter(|group| group.0 == name).for_each(|group| group.1());
        }
        _ => {
            let names: Vec<&str> = GROUPS.iter().map(|group| group.0).collect();
            eprintln!("suite: say all or one of: {}", names.join(" "));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
