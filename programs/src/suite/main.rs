//! `suite GROUP`: the groups of calls, one module each. `suite all [FIRST COUNT STEPS]` runs every group, and seeds.

mod errors;
mod exec;
mod files;
mod fork;
mod futex;
mod hostile;
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
mod waits;

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
    ("waits", waits::run),
    ("time", time::run),
    ("exec", exec::run),
    ("traps", traps::run),
    ("errors", errors::run),
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some(name) = args.first() else { return usage() };
    match name.as_str() {
        "all" => all(&args[1..]),
        "list" => GROUPS.iter().for_each(|group| println!("{}", group.0)),
        "started" => exec::started(&args[1..]),
        "seeds" => seeds::run(&args[1..]),
        "hostile" => return hostile::run(&args[1..]),
        name => match GROUPS.iter().find(|group| group.0 == name) {
            Some(group) => group.1(),
            None => return usage(),
        },
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    let names: Vec<&str> = GROUPS.iter().map(|group| group.0).collect();
    eprintln!("suite: say all, seeds FIRST COUNT STEPS, hostile [NAME], or one of: {}", names.join(" "));
    ExitCode::FAILURE
}

/// Every group, and then seeds as in `suite seeds`, each in a child: one that is killed takes no other with it.
fn all(seeds: &[String]) {
    let alone = |name: &str, work: &dyn Fn()| {
        println!("# group {name}");
        let status = task::child(|| {
            work();
            0
        });
        println!("# end {name}: {status}");
    };
    GROUPS.iter().for_each(|group| alone(group.0, &group.1));
    if !seeds.is_empty() {
        alone("seeds", &|| seeds::run(seeds));
    }
}
