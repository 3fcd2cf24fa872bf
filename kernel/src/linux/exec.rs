//! A program to be run by a thread that has none yet, or another one.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use farpage_mm::{HugeAdvice, Prot, VaRange};

use super::errno::Errno;
use super::image::{self, BadProgram};
use super::memory::{Memory, STACK_LEN, STACK_TOP};
use super::path::ProgramFile;
use super::process::End;
use super::thread::{Caller, Next};
use super::{signal, start};
use crate::arch::x86_64::user::{self, Context};
use crate::arch::x86_64::xstate::Area;

/// What is to be run, and the memory to run it in, which is empty.
pub(super) struct Program {
    pub(super) file: ProgramFile,
    pub(super) args: Vec<Vec<u8>>,
    pub(super) env: Vec<Vec<u8>>,
    pub(super) memory: Arc<Memory>,
}

impl Program {
    /// One whose file can be run, as far as can be seen before.
    ///
    /// # Errors
    /// What is wrong with the file; out of memory.
    pub(super) fn new(file: ProgramFile, args: Vec<Vec<u8>>, env: Vec<Vec<u8>>) -> Result<Self, BadProgram> {
        image::check(&file.contents)?;
        let memory = Arc::new(Memory::new()?);
        Ok(Self { file, args, env, memory })
    }

    /// Its arguments as `/proc/self/cmdline` shows them.
    pub(super) fn cmdline(&self) -> Arc<[u8]> {
        self.args.iter().flat_map(|arg| arg.iter().copied().chain([0])).take(CMDLINE_MAX).collect()
    }

    /// Puts it into its memory, which is loaded, and makes the thread's context that of its first instruction. False when that
    /// cannot be done: then the process is ending.
    pub(super) fn begin(&self, caller: &mut Caller) -> bool {
        match self.load(caller) {
            Ok(()) => true,
            Err(error) => {
                log::warn!("{}: {error}", self.file.path);
                caller.process().end(End::Killed(signal::KILL));
                false
            }
        }
    }

    fn load(&self, caller: &mut Caller) -> Result<(), BadProgram> {
        let memory = &self.memory;
        let image = image::load(memory, &self.file)?;
        let stack = VaRange::new(STACK_TOP - STACK_LEN, STACK_LEN);
        // Few programs need 2 MiB of it.
        memory.space().map_anon(stack, Prot::RW, HugeAdvice::NoHuge)?;
        *memory.heap.lock() = (image.end, image.end);
        let stack = start::stack(STACK_TOP, &image, &self.file.path, &self.args, &self.env)?;
        *caller.context = Context::new(image.entry, stack);
        caller.thread.clear_tid.store(0, Relaxed);
        user::attach(Area::new()?);
        Ok(())
    }
}

/// Bytes of the arguments that `/proc/self/cmdline` shows.
const CMDLINE_MAX: usize = 4096;

/// The thread's process runs another program from now on.
///
/// # Errors
/// What is wrong with the file; out of memory. Nothing has changed then.
pub(super) fn exec(caller: &mut Caller, program: Program) -> Result<Next, Errno> {
    let process = Arc::clone(caller.process());
    if !process.end_other_threads(&caller.thread) {
        return Ok(Next::End);
    }
    process.unshare_files();
    process.files().exec();
    process.signals.exec();
    caller.thread.signals.exec();
    (*process.exe.lock()).clone_from(&program.file.path);
    *process.cmdline.lock() = program.cmdline();
    Ok(Next::Exec(Box::new(program)))
}
