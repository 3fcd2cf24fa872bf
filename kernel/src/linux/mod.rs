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

mod alarm;
mod calls;
mod dev;
mod errno;
mod exec;
mod file;
mod fs;
mod futex;
mod image;
mod limits;
mod memory;
mod path;
mod place;
mod process;
mod signal;
mod sleep;
mod start;
mod strings;
mod thread;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::Write;

use farpage_boot::cpio;
use farpage_mm::HugePages;
use ktest::exit::Exit;
use ktest::record;

use crate::arch::x86_64::paging;
use crate::arch::x86_64::user::Context;
use crate::arch::x86_64::xstate::Area;
use crate::vm::mm;
use crate::{boot, console, exit, task};

use exec::Program;
use file::Descriptors;
use memory::Memory;
use process::{End, Process, init};
use signal::{Info, KILL, ThreadSignals};
use thread::{Start, Thread};

/// Where the program stands that the archive brings ([`fs`]).
const PATH: &str = "/program";
/// The names of the archive's files: its arguments and its environment, each text ended by a zero byte.
const ARGUMENTS: &[u8] = b"exec/arguments";
const ENVIRONMENT: &[u8] = b"exec/environment";

/// What stands before the record of the end, on whatever line that is (RS; the runner knows it too).
const LAST_WORD: char = '\x1e';

/// Runs the program of the boot archive, and ends as it does.
pub(crate) fn run() -> ! {
    task::on_deadlock(|| {
        exit::fail(&"every thread of the program sleeps, and nothing is left that could wake one")
    });
    // As Linux does it where nobody has said otherwise.
    mm().policy.set_huge(HugePages::Always);
    let end = match first() {
        Ok(process) => wait_for(&process),
        Err(error) => exit::fail(&error),
    };
    if let Err(error) = crate::memory::mm_audit() {
        exit::fail(&error);
    }
    console::with(|out| {
        // What the program wrote last need not end its line.
        let _ = out.write_char(LAST_WORD);
        let _ = match end {
            End::Exited(status) => record!(out, "exit", status = status),
            End::Killed(signal) => record!(out, "exit", signal = signal),
        };
    });
    exit::exit(Exit::Success)
}

/// The process that was asked for.
fn first() -> Result<alloc::sync::Arc<Process>, image::BadProgram> {
    let Some(archive) = boot().archive.map(paging::boot_archive) else {
        exit::fail(&"there is no boot archive, so there is no program; use cargo run -- exec PROGRAM");
    };
    let file = |name| cpio::find(archive, name).ok().flatten().map(|found| found.data);
    fs::init(archive);
    let texts = |name| -> Vec<Vec<u8>> {
        let whole: &[u8] = file(name).unwrap_or_default();
        whole
            .split_inclusive(|byte| *byte == 0)
            .map(|text| text.strip_suffix(b"\0").unwrap_or(text).to_vec())
            .collect()
    };
    let (args, env) = (texts(ARGUMENTS), texts(ENVIRONMENT));
    let Ok(file) = path::program(init(), PATH) else {
        exit::fail(&"the boot archive holds no program; use cargo run -- exec PROGRAM");
    };
    let program = Program::new(file, args, env)?;
    let files = Descriptors::default();
    for _ in 0..3 {
        // There is room for as many.
        let _ = files.add(dev::standard(), 0, false);
    }
    let process = Process::first(Memory::new()?, files);
    process.exe.lock().clone_from(&program.file.path);
    *process.cmdline.lock() = program.cmdline();
    process.set_memory(alloc::sync::Arc::clone(&program.memory));
    let thread = Thread::new(&process, true, ThreadSignals::default());
    let start = Start {
        context: Box::new(Context::new(0, 0)),
        state: Area::new()?,
        fs_base: 0,
        set_tid: None,
        program: Some(program),
    };
    if thread.start(start).is_err() {
        exit::fail(&"there is no memory for the program's first thread");
    }
    Ok(process)
}

/// How the first process ends. Those that it has left behind are ended then, so that nothing is left of them.
fn wait_for(first: &Process) -> End {
    let init = init();
    let mut end = None;
    loop {
        let seen = init.child_ended.seen();
        let children = init.children();
        let ended: Vec<_> = children.iter().filter_map(|child| Some((child, child.ended()?))).collect();
        for (child, how) in &ended {
            init.let_go(child);
            if child.pid == first.pid {
                end = Some(*how);
            }
        }
        if let Some(end) = end {
            let others = process::all();
            if others.is_empty() {
                return end;
            }
            others.iter().for_each(|process| signal::send(process, Info::of_sender(KILL, 0, init.pid)));
        }
        if ended.is_empty() {
            init.child_ended.wait_only(seen);
        }
    }
}
