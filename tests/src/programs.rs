//! Programs of ring 3, each run twice: by the host's Linux, and in farpage. What they print must be the same, line by line.
//!
//! Nothing is stored: the host's run of the same binary is what the other one is compared with. One boot runs all groups, and the
//! seeds of random steps (`FARPAGE_SEEDS` of them, else 200); another one the hostile programs, which Linux is spared, and which say
//! themselves what must hold. Both must end with an audit that finds nothing, or the runner's status says so.

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use libtest_mimic::{Failed, Trial};
use xtask::build;

use crate::{
    host,
    process::{self, Finished},
};

/// Groups of the program `suite`. That these are all is a trial, too.
const GROUPS: [&str; 17] = [
    "mmap", "mremap", "madvise", "fork", "threads", "futex", "signals", "vector", "files", "procfs", "pidfd",
    "waits", "time", "exec", "traps", "errors", "seeds",
];

/// Scenarios of `suite hostile`.
const HOSTILE: [&str; 16] = [
    "wild_calls",
    "wild_ranges",
    "wild_instructions",
    "stack_into_its_guard",
    "a_thousand_processes",
    "endless_fork",
    "endless_threads",
    "memory_exhausted",
    "shared_memory_exhausted",
    "file_memory_exhausted",
    "endless_mappings",
    "changes_under_a_call",
    "exits_in_a_migration",
    "kills_in_a_migration",
    "forks_in_a_migration",
    "a_device_left_open",
];

/// Steps of a seed.
const STEPS: &str = "2000";

/// No run of them takes longer.
const LIMIT: Duration = Duration::from_secs(600);

/// The runs, each made when it is asked for first.
pub struct Programs {
    runner: Result<PathBuf, String>,
    compared: OnceLock<Result<Compared, String>>,
    hostile: OnceLock<Result<Finished, String>>,
}

/// The same program's runs.
struct Compared {
    linux: Finished,
    farpage: Finished,
}

impl Programs {
    /// With the program behind `cargo run`.
    #[must_use]
    pub fn new(runner: Result<PathBuf, String>) -> Arc<Self> {
        Arc::new(Self { runner, compared: OnceLock::new(), hostile: OnceLock::new() })
    }

    /// All trials.
    #[must_use]
    pub fn trials(self: &Arc<Self>) -> Vec<Trial> {
        let groups = GROUPS.iter().map(|&group| {
            let programs = Arc::clone(self);
            Trial::test(format!("program::{group}"), move || programs.group(group).map_err(Failed::from))
        });
        let hostile = HOSTILE.iter().map(|&name| {
            let programs = Arc::clone(self);
            Trial::test(format!("program::hostile::{name}"), move || {
                programs.scenario(name).map_err(Failed::from)
            })
        });
        let programs = Arc::clone(self);
        let whole = Trial::test("program::all_end_well", move || programs.ends().map_err(Failed::from));
        let programs = Arc::clone(self);
        let hello = Trial::test("program::exec_passes_on", move || programs.hello().map_err(Failed::from));
        groups.chain(hostile).chain([whole, hello]).collect()
    }

    /// Starts what the chosen trials will ask for, while others run.
    pub fn start(self: &Arc<Self>, chosen: &BTreeSet<String>) {
        let hostile = chosen.iter().any(|name| name.starts_with("program::hostile::"));
        let compared = chosen
            .iter()
            .any(|name| name.starts_with("program::") && !name.starts_with("program::hostile::"));
        let programs = Arc::clone(self);
        thread::spawn(move || {
            if compared {
                let _ = programs.compared();
            }
            if hostile {
                let _ = programs.hostile();
            }
        });
    }

    fn compared(&self) -> Result<&Compared, String> {
        self.compared
            .get_or_init(|| Compared::run(self.runner.as_deref().map_err(Clone::clone)?))
            .as_ref()
            .map_err(Clone::clone)
    }

    fn hostile(&self) -> Result<&Finished, String> {
        let run = || exec(self.runner.as_deref().map_err(Clone::clone)?, &["--memory", "512M"], &["hostile"]);
        self.hostile.get_or_init(run).as_ref().map_err(Clone::clone)
    }

    fn group(&self, name: &str) -> Result<(), String> {
        let both = self.compared()?;
        let linux = section(&both.linux.stdout, name)
            .ok_or_else(|| format!("Linux has not run it: {}", both.linux))?;
        let Some(farpage) = section(&both.farpage.stdout, name) else {
            return Err(format!("farpage has not run it: {}", tail(&both.farpage)));
        };
        compare(&linux, &farpage).map_err(|why| format!("{}{why}{}", version(), said(&both.farpage)))
    }

    fn scenario(&self, name: &str) -> Result<(), String> {
        let run = self.hostile()?;
        let mut lines = run.stdout.lines().filter(|line| line.split_whitespace().any(|word| word == name));
        match lines.find(|line| line.starts_with("ok ")) {
            Some(_) => Ok(()),
            None => Err(format!("it is not ok: {}", tail(run))),
        }
    }

    /// Arguments, environment, output without a line end, and the status go through.
    fn hello(&self) -> Result<(), String> {
        let mut command = Command::new(self.runner.as_deref().map_err(Clone::clone)?);
        command.args(["exec", "--env", "GREETING=hi", "hello", "unended", "7"]);
        command.current_dir(host::workspace()).env_remove("CARGO_MANIFEST_DIR");
        let done = process::run(&mut command, LIMIT).map_err(|error| error.to_string())?;
        let wanted = "hello from ring 3\nargument 1: unended\nargument 2: 7\nGREETING is hi\nno line end";
        if (done.code(), done.stdout.as_str()) == (Some(7), wanted) { Ok(()) } else { Err(done.to_string()) }
    }

    /// The runs as a whole: every group and scenario is known here, and both machines ended with a clean audit.
    fn ends(&self) -> Result<(), String> {
        let both = self.compared()?;
        let ran: BTreeSet<&str> =
            both.linux.stdout.lines().filter_map(|line| line.strip_prefix("# group ")).collect();
        if ran != GROUPS.iter().copied().collect() {
            return Err(format!("the program has other groups than the harness knows: {ran:?}"));
        }
        for (what, run) in [("Linux", &both.linux), ("farpage", &both.farpage)] {
            if !run.success() {
                return Err(format!("the run on {what} must end with 0: {}", tail(run)));
            }
        }
        Ok(())
    }
}

impl Compared {
    fn run(runner: &Path) -> Result<Self, String> {
        let seeds = env::var("FARPAGE_SEEDS").unwrap_or_else(|_| "200".into());
        let args = ["all", "1", &seeds, STEPS];
        let suite = build::programs().map_err(|error| error.to_string())?.join("suite");
        let mut command = Command::new(suite);
        // Files are made in memory on both sides.
        let memory = Some("/dev/shm").filter(|path| Path::new(path).is_dir()).unwrap_or("/tmp");
        command.args(args).env("TMPDIR", memory).current_dir(host::workspace());
        let linux = process::run(&mut command, LIMIT).map_err(|error| error.to_string())?;
        let farpage = exec(runner, &[], &args)?;
        Ok(Self { linux, farpage })
    }
}

/// `cargo run -- exec OPTIONS suite ARGS`.
fn exec(runner: &Path, options: &[&str], args: &[&str]) -> Result<Finished, String> {
    let mut command = Command::new(runner);
    command.arg("exec").args(options).arg("suite").args(args);
    command.current_dir(host::workspace()).env_remove("CARGO_MANIFEST_DIR");
    process::run(&mut command, LIMIT).map_err(|error| error.to_string())
}

/// The lines of a group, its end included.
fn section<'a>(output: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let (begin, end) = (format!("# group {name}"), format!("# end {name}: "));
    let mut lines = output.lines().skip_while(|line| *line != begin).skip(1).peekable();
    lines.peek()?;
    let mut found = Vec::new();
    for line in lines {
        found.push(line);
        if line.starts_with(&end) {
            break;
        }
    }
    Some(found)
}

/// Lines up to the first difference that are shown with it.
const BEFORE: usize = 3;
/// Lines from it on.
const AFTER: usize = 5;

fn compare(linux: &[&str], farpage: &[&str]) -> Result<(), String> {
    // What the host's kernel is too old for is left out on both sides.
    let skipped: Vec<&str> = linux.iter().filter_map(|line| line.strip_prefix("skip ")).collect();
    let is_kept = |line: &&&str| {
        let name = line.split(": ").next().unwrap_or(line);
        !line.starts_with("skip ") && !skipped.contains(&name)
    };
    let linux: Vec<&str> = linux.iter().filter(is_kept).copied().collect();
    let farpage: Vec<&str> = farpage.iter().filter(is_kept).copied().collect();
    let at = linux.iter().zip(&farpage).position(|(one, other)| one != other);
    let at = match at {
        Some(at) => at,
        None if linux.len() == farpage.len() => return Ok(()),
        None => linux.len().min(farpage.len()),
    };
    let from = at.saturating_sub(BEFORE);
    let shown = |lines: &[&str]| -> String {
        let part = lines.iter().skip(from).take(BEFORE.min(at) + AFTER);
        part.map(|line| format!("    {line}\n")).collect()
    };
    let differences = linux.iter().zip(&farpage).filter(|(one, other)| one != other).count();
    Err(format!(
        "line {} differs, {differences} in all\n--- Linux\n{}--- farpage\n{}",
        at + 1,
        shown(&linux),
        shown(&farpage)
    ))
}

/// The host's kernel, which was right.
fn version() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("compared with Linux {}: ", release.trim())
}

/// What the kernel said meanwhile.
fn said(run: &Finished) -> String {
    let lines: Vec<&str> = run.stderr.lines().collect();
    let from = lines.len().saturating_sub(10);
    if lines.is_empty() {
        String::new()
    } else {
        format!("--- farpage's last words\n    {}\n", lines[from..].join("\n    "))
    }
}

/// How a run ended, with its last lines.
fn tail(run: &Finished) -> String {
    let status = run.status.map_or("stopped: the time was up".into(), |status| status.to_string());
    let lines: Vec<&str> = run.stdout.lines().collect();
    let from = lines.len().saturating_sub(10);
    format!("{status}\n    {}\n{}", lines[from..].join("\n    "), said(run))
}

#[cfg(test)]
mod tests {
    use super::{compare, section};

    #[test]
    fn a_group_is_cut_out() {
        let output = "# group a\nx: 1\n# end a: exit 0\n# group b\ny: 2\n";
        assert_eq!(section(output, "a"), Some(vec!["x: 1", "# end a: exit 0"]));
        assert_eq!(section(output, "b"), Some(vec!["y: 2"]), "one that did not end");
        assert_eq!(section(output, "c"), None);
    }

    #[test]
    fn the_first_difference_is_shown() {
        let linux = ["a: 1", "b: 2", "c: 3", "d: 4", "e: 5", "f: 6"];
        assert_eq!(compare(&linux, &linux), Ok(()));
        let mut other = linux;
        other[4] = "e: EINVAL";
        let why = compare(&linux, &other).unwrap_err();
        assert!(
            why.starts_with("line 5 differs, 1 in all") && why.contains("e: EINVAL") && !why.contains("a: 1"),
            "{why}"
        );
        assert!(compare(&linux, &linux[..5]).unwrap_err().starts_with("line 6 differs"));
        assert!(compare(&linux[..0], &linux).is_err());
    }

    #[test]
    fn what_the_host_lacks_is_left_out() {
        assert_eq!(
            compare(&["a: 1", "skip new call", "b: 2"], &["a: 1", "new call: EINVAL", "b: 2"]),
            Ok(())
        );
        assert!(compare(&["a: 1"], &["a: 1", "skip a"]).is_ok(), "farpage may say so too");
        assert!(compare(&["a: 1", "new call: 0"], &["a: 1", "skip new call"]).is_err());
    }
}
