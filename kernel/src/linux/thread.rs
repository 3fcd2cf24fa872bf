//! The loop of a program's thread.

use alloc::boxed::Box;

use farpage_mm::{FaultError, HugeAdvice, Prot, VaRange};

use super::image::{self, BadProgram};
use super::memory::{STACK_LEN, STACK_TOP};
use super::process::Process;
use super::{End, calls, start};
use crate::arch::x86_64::user::{self, Context, Why};
use crate::vm::activate;
use crate::vm::user::last_refusal;

/// Signals that end a program (`asm-generic/signal.h`).
mod signal {
    pub(super) const ILL: u8 = 4;
    pub(super) const TRAP: u8 = 5;
    pub(super) const BUS: u8 = 7;
    pub(super) const FPE: u8 = 8;
    pub(super) const SEGV: u8 = 11;
}

/// Maps the process's program, and runs it to its end.
///
/// # Errors
/// It could not be started.
pub(super) fn run(
    process: &Process,
    program: &[u8],
    args: &[&[u8]],
    env: &[&[u8]],
) -> Result<End, BadProgram> {
    let memory = process.memory();
    let active = activate(memory.owner());
    let image = image::load(memory.space(), program)?;
    let stack = VaRange::new(STACK_TOP - STACK_LEN, STACK_LEN);
    memory.space().map_anon(stack, Prot::RW, HugeAdvice::Default)?;
    *memory.heap.lock() = (image.end, image.end);
    let mut context = Box::new(Context::new(image.entry, start::stack(STACK_TOP, &image, args, env)?));
    let end = loop {
        let end = match user::run(&mut context) {
            Why::Syscall => calls::call(process, &mut context.regs),
            Why::PageFault { addr, .. } => Some(killed(by_fault(), &context, addr)),
            Why::Exception { vector, .. } => Some(killed(by_exception(vector), &context, context.regs.rip)),
            Why::Interrupted => None,
        };
        if let Some(end) = end {
            break end;
        }
    };
    drop(active);
    Ok(end)
}

fn killed(signal: u8, context: &Context, addr: u64) -> End {
    log::warn!(
        "the program is ended by signal {signal}: address {addr:#x}, instruction {:#x}",
        context.regs.rip
    );
    End::Killed(signal)
}

/// The signal for a page fault that the memory manager has refused.
fn by_fault() -> u8 {
    match last_refusal() {
        Some(FaultError::Device(_) | FaultError::Held(_) | FaultError::NoPage(_)) => signal::BUS,
        _ => signal::SEGV,
    }
}

/// The signal for an exception of this vector.
fn by_exception(vector: u8) -> u8 {
    match vector {
        0 | 16 | 19 => signal::FPE,
        1 | 3 => signal::TRAP,
        6 => signal::ILL,
        17 => signal::BUS,
        _ => signal::SEGV,
    }
}
