//! First use: QEMU is installed if it is missing, by the system's own package manager.
//!
//! As root it is simply done, with a line that says so; otherwise a person at a terminal is asked; otherwise the exact
//! command is printed.

use crate::error::Error;
use crate::qemu::PROGRAM;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// How a package manager is told to install QEMU.
struct Manager {
    program: &'static str,
    refresh: &'static [&'static str],
    install: &'static [&'static str],
}

const MANAGERS: [Manager; 5] = [
    Manager {
        program: "apt-get",
        refresh: &["update"],
        install: &["install", "-y", "--no-install-recommends", "qemu-system-x86"],
    },
    Manager { program: "dnf", refresh: &[], install: &["install", "-y", "qemu-system-x86-core"] },
    Manager { program: "pacman", refresh: &[], install: &["-Sy", "--noconfirm", "qemu-system-x86"] },
    Manager { program: "zypper", refresh: &[], install: &["--non-interactive", "install", "qemu-x86"] },
    Manager { program: "apk", refresh: &[], install: &["add", "qemu-system-x86_64"] },
];

/// Makes sure that QEMU can be started.
///
/// # Errors
/// It is not there and cannot be installed; the error says how to.
pub fn ensure_qemu() -> Result<(), Error> {
    if is_in_path(PROGRAM) {
        return Ok(());
    }
    let manager =
        MANAGERS.iter().find(|manager| is_in_path(manager.program)).ok_or(Error::NoPackageManager)?;
    let is_root = is_root();
    let sudo: &[&str] = if is_root { &[] } else { &["sudo"] };
    let may_install = is_root || (is_in_path("sudo") && agreed(&command_line(sudo, manager)));
    if !may_install {
        return Err(Error::NoQemu { command: command_line(sudo, manager) });
    }
    eprintln!("QEMU ({PROGRAM}) is not installed: installing it with {}", manager.program);
    let install = || run(&words(sudo, manager.program, manager.install));
    if manager.refresh.is_empty() {
        return install();
    }
    // The package lists may be fresh already, or missing: try, refresh, try again.
    install().or_else(|_| {
        run(&words(sudo, manager.program, manager.refresh))?;
        install()
    })
}

fn run(words: &[&str]) -> Result<(), Error> {
    let command = words.join(" ");
    let mut process = Command::new(words[0]);
    // Standard output is the command's that was asked for: it may be a document.
    process.args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive").stdout(std::io::stderr());
    let status = process.status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::Install { command, status: status.to_string() }),
        Err(error) => Err(Error::Install { command, status: error.to_string() }),
    }
}

/// Asks; without a terminal the answer is no.
fn agreed(command: &str) -> bool {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return false;
    }
    eprint!("QEMU ({PROGRAM}) is not installed. Install it now with `{command}`? [y/N] ");
    // If the question cannot be shown, the answer that is read decides all the same.
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

fn command_line(sudo: &[&str], manager: &Manager) -> String {
    let install = words(sudo, manager.program, manager.install).join(" ");
    if manager.refresh.is_empty() {
        return install;
    }
    format!("{} && {install}", words(sudo, manager.program, manager.refresh).join(" "))
}

fn words<'a>(sudo: &[&'a str], program: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    [sudo, &[program], args].concat()
}

/// Is there such a program?
pub(crate) fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn is_root() -> bool {
    Path::new("/proc/self").metadata().is_ok_and(|data| data.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_for_a_user_is_exact() {
        assert_eq!(
            command_line(&["sudo"], &MANAGERS[0]),
            "sudo apt-get update && sudo apt-get install -y --no-install-recommends qemu-system-x86"
        );
        assert_eq!(command_line(&[], &MANAGERS[4]), "apk add qemu-system-x86_64");
    }

    #[test]
    fn programs_are_looked_for_in_the_path() {
        assert!(is_in_path("sh"));
        assert!(!is_in_path("no-such-program-here"));
    }
}
