//! Programs of Linux: `run=exec`.
//!
//! A static program is mapped, and run in ring 3; what it asks for by SYSCALL is done here, with Linux's numbers, results and
//! errors. This tree is thin: it holds what a process is (files, limits, where its heap ends), turns arguments into operations of
//! the memory manager and its errors into error numbers, and decides nothing about memory. What is not here answers `ENOSYS`, and
//! is named once.
//!
//! ```text
//!  arch::user::run ──► thread.rs: the loop of a thread
//!                         │ SYSCALL            │ fault that nobody makes good
//!                         ▼                    ▼
//!                      calls/ by group       signal, or the end
//!                         ▼
//!                      mm: Space, Object
//! ```

mod calls;
mod errno;
mod file;
mod image;
mod memory;
mod process;
mod start;
mod thread;

use alloc::vec::Vec;

use farpage_boot::cpio;
use ktest::exit::Exit;
use ktest::record;

use crate::arch::x86_64::paging;
use crate::{boot, console, exit};

use process::Process;

/// The names of the archive's files: the program, its arguments and its environment, each text ended by a zero byte.
const PROGRAM: &[u8] = b"exec/program";
const ARGUMENTS: &[u8] = b"exec/arguments";
const ENVIRONMENT: &[u8] = b"exec/environment";

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By `exit` or `exit_group`.
    Exited(u8),
    /// By a signal.
    Killed(u8),
}

/// Runs the program of the boot archive, and ends as it does.
pub(crate) fn run() -> ! {
    let Some(archive) = boot().archive.map(paging::boot_archive) else {
        exit::fail(&"there is no boot archive, so there is no program; use cargo run -- exec PROGRAM");
    };
    let file = |name| cpio::find(archive, name).ok().flatten().map(|found| found.data);
    let Some(program) = file(PROGRAM) else {
        exit::fail(&"the boot archive holds no program; use cargo run -- exec PROGRAM");
    };
    let texts = |name| -> Vec<&[u8]> {
        let whole = file(name).unwrap_or_default();
        whole
            .split_inclusive(|byte| *byte == 0)
            .map(|text| text.strip_suffix(b"\0").unwrap_or(text))
            .collect()
    };
    let process = match Process::new("/program") {
        Ok(process) => process,
        Err(error) => exit::fail(&error),
    };
    let end = match thread::run(&process, program, &texts(ARGUMENTS), &texts(ENVIRONMENT)) {
        Ok(end) => end,
        Err(error) => exit::fail(&error),
    };
    drop(process);
    if let Err(error) = crate::memory::mm_audit() {
        exit::fail(&error);
    }
    console::with(|out| {
        let _ = match end {
            End::Exited(status) => record!(out, "exit", status = status),
            End::Killed(signal) => record!(out, "exit", signal = signal),
        };
    });
    exit::exit(Exit::Success)
}
