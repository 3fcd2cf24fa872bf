//! The unit tests of the host crates, each as one trial.
//!
//! One nested cargo call builds the test programs of all crates: by then the outer cargo has let go of its
//! lock, and the target directory and what is in it are shared. The programs are listed and their tests run
//! one process each: a test that aborts or hangs takes no other with it, and its output is its own.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::process;

/// A crate whose library has unit tests.
struct HostCrate {
    package: &'static str,
    /// Its folder in the workspace.
    folder: &'static str,
    /// What stands before the names of its tests.
    prefix: &'static str,
}

const CRATES: [HostCrate; 10] = [
    HostCrate { package: "farpage-mm", folder: "mm", prefix: "mm" },
    HostCrate { package: "farpage-lock", folder: "lock", prefix: "lock" },
    HostCrate { package: "farpage-pmu", folder: "pmu", prefix: "pmu" },
    HostCrate { package: "farpage-tlb-model", folder: "tlb-model", prefix: "tlb-model" },
    HostCrate { package: "farpage-device", folder: "device", prefix: "device" },
    HostCrate { package: "farpage-boot", folder: "boot", prefix: "boot" },
    HostCrate { package: "farpage-kernel", folder: "kernel", prefix: "kernel-logic" },
    HostCrate { package: "ktest", folder: "tests/ktest", prefix: "ktest" },
    HostCrate { package: "xtests", folder: "tests", prefix: "harness" },
    HostCrate { package: "xtask", folder: "xtask", prefix: "xtask" },
];

/// No unit test takes longer than this.
const LIMIT: Duration = Duration::from_secs(600);

/// The root of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// All trials. A crate that cannot be built or listed is a trial that fails and says why.
#[must_use]
pub fn trials() -> Vec<Trial> {
    let crates = CRATES.each_ref();
    let programs = build(&crates).unwrap_or_else(|_| {
        // One crate that does not compile must not hide the tests of the others.
        crates.into_iter().flat_map(|one| build(&[one]).unwrap_or_else(|why| vec![one.broken(why)])).collect()
    });
    programs.iter().flat_map(Program::trials).collect()
}

/// A nested cargo call. What cargo has set for this package must not leak into the build of others.
#[must_use]
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(workspace());
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_MANIFEST_")
            || name.starts_with("CARGO_BIN_")
        {
            command.env_remove(&key);
        }
    }
    command
}

/// Builds with cargo and gives what it made, as cargo's own messages describe it.
///
/// # Errors
/// The compiler's messages.
pub fn build_artifacts(arguments: &[&str]) -> Result<Vec<Value>, String> {
    let mut command = cargo(arguments);
    command.arg("--message-format=json-render-diagnostics");
    let done = process::run(&mut command, LIMIT).map_err(|error| format!("cannot start cargo: {error}"))?;
    if !done.success() {
        return Err(format!("cargo {} failed: {}", arguments.join(" "), done.stderr.trim_end()));
    }
    let messages = done.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(messages.filter(|message| message["reason"] == "compiler-artifact").collect())
}

/// A test program, or why there is none.
struct Program {
    path: Result<PathBuf, String>,
    prefix: &'static str,
    /// The package's folder, where cargo too would run it.
    folder: PathBuf,
}

impl HostCrate {
    fn folder(&self) -> PathBuf {
        workspace().join(self.folder)
    }

    fn broken(&self, why: String) -> Program {
        Program { path: Err(why), prefix: self.prefix, folder: self.folder() }
    }
}

fn build(crates: &[&HostCrate]) -> Result<Vec<Program>, String> {
    let mut arguments = vec!["test", "--no-run", "--lib"];
    crates.iter().for_each(|host| arguments.extend(["-p", host.package]));
    let artifacts = build_artifacts(&arguments)?;
    Ok(crates.iter().map(|host| program(host, &artifacts)).collect())
}

fn program(host: &HostCrate, artifacts: &[Value]) -> Program {
    let manifest = host.folder().join("Cargo.toml");
    let ours = |artifact: &&Value| {
        artifact["profile"]["test"] == true
            && artifact["manifest_path"].as_str().map(Path::new) == Some(&manifest)
    };
    let path = artifacts.iter().find(ours).and_then(|artifact| artifact["executable"].as_str());
    match path {
        Some(path) => Program { path: Ok(path.into()), prefix: host.prefix, folder: host.folder() },
        None => host.broken(format!("cargo has built no test program for {}", host.package)),
    }
}

impl Program {
    fn trials(&self) -> Vec<Trial> {
        self.try_trials().unwrap_or_else(|why| {
            vec![Trial::test(format!("{}::build", self.prefix), move || Err(Failed::from(why)))]
        })
    }

    fn try_trials(&self) -> Result<Vec<Trial>, String> {
        let path = self.path.clone()?;
        let (names, ignored) = (self.list(&path, &[])?, self.list(&path, &["--ignored"])?);
        let trial = |name: &String| self.trial(&path, name).with_ignored_flag(ignored.contains(name));
        Ok(names.iter().map(trial).collect())
    }

    fn command(&self, path: &Path) -> Command {
        let mut command = Command::new(path);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }

    fn list(&self, path: &Path, more: &[&str]) -> Result<Vec<String>, String> {
        let mut command = self.command(path);
        command.args(["--list", "--format", "terse"]).args(more);
        match process::run(&mut command, LIMIT) {
            Ok(done) if done.success() => Ok(names(&done.stdout)),
            Ok(done) => Err(format!("{} does not list its tests: {done}", path.display())),
            Err(error) => Err(format!("{} cannot be started: {error}", path.display())),
        }
    }

    fn trial(&self, path: &Path, name: &str) -> Trial {
        let mut command = self.command(path);
        command.args([name, "--exact", "--include-ignored", "--test-threads=1", "--color=never"]);
        let display = display_name(self.prefix, name);
        Trial::test(display, move || match process::run(&mut command, LIMIT) {
            // A name that matches nothing also ends well; so the one test has to be seen.
            Ok(done) if done.success() && done.stdout.contains("test result: ok. 1 passed") => Ok(()),
            Ok(done) => Err(Failed::from(done.to_string())),
            Err(error) => Err(Failed::from(format!("cannot be started: {error}"))),
        })
    }
}

/// The tests that a program lists.
fn names(list: &str) -> Vec<String> {
    list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// `tests::` modules hold every test there is: the word says nothing in a list of tests.
fn display_name(prefix: &str, name: &str) -> String {
    let parts = name.split("::").filter(|part| *part != "tests");
    std::iter::once(prefix).chain(parts).collect::<Vec<_>>().join("::")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_a_terse_list() {
        assert_eq!(names("a::b: test\nc: bench\n\nd::tests::e: test\n"), ["a::b", "d::tests::e"]);
    }

    #[test]
    fn the_word_tests_is_left_out_of_names() {
        assert_eq!(display_name("mm", "entry::tests::round_trip"), "mm::entry::round_trip");
        assert_eq!(display_name("device", "tests::pci::contests"), "device::pci::contests");
    }

    #[test]
    fn every_crate_of_the_list_is_there() {
        for host in &CRATES {
            let manifest = std::fs::read_to_string(host.folder().join("Cargo.toml")).unwrap();
            assert!(manifest.contains(&format!("name = \"{}\"", host.package)), "{}", host.package);
            assert!(manifest.contains("[lib]") && manifest.contains("test = false"), "{}", host.package);
            assert!(host.package <= env!("CARGO_PKG_NAME"), "the harness runs last, after {}", host.package);
        }
    }

    #[test]
    fn programs_are_found_by_their_manifest() {
        let folder = CRATES[0].folder();
        let artifact = |test: bool| {
            serde_json::json!({
                "manifest_path": folder.join("Cargo.toml"), "profile": { "test": test }, "executable": "/x/mm-1",
            })
        };
        assert_eq!(
            program(&CRATES[0], &[artifact(false), artifact(true)]).path,
            Ok(PathBuf::from("/x/mm-1"))
        );
        assert!(program(&CRATES[0], &[artifact(false)]).path.is_err());
        assert!(program(&CRATES[1], &[artifact(true)]).path.is_err());
    }
}
