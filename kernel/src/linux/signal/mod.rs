//! Signals: who gets which, and what it does there.
//!
//! A signal is kept with the process or with one thread until a thread that does not block it looks: before it goes back to the
//! program. Then it is ignored, ends the process, or has a handler, which [`frame`] makes the program run. Of each signal one is
//! kept, of the real-time ones too. Nothing stops a process: the signals that would are ignored.

mod frame;
mod info;
mod sets;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use farpage_mm::FaultError;

pub(super) use frame::put_back;
pub(super) use info::Info;
pub(super) use sets::{Action, AltStack, ProcessSignals, Set, ThreadSignals, flag};

use super::process::{End, Process};
use super::sleep;
use super::thread::{Caller, Thread};
use crate::arch::x86_64::uaccess::USER_END;
use crate::vm::user::last_refusal;

/// Numbers (`asm/signal.h`).
pub(super) const ILL: u8 = 4;
pub(super) const TRAP: u8 = 5;
pub(super) const BUS: u8 = 7;
pub(super) const FPE: u8 = 8;
pub(super) const KILL: u8 = 9;
pub(super) const SEGV: u8 = 11;
pub(super) const PIPE: u8 = 13;
pub(super) const ALRM: u8 = 14;
pub(super) const CHLD: u8 = 17;
pub(super) const CONT: u8 = 18;
pub(super) const STOP: u8 = 19;
pub(super) const TSTP: u8 = 20;
pub(super) const TTIN: u8 = 21;
pub(super) const TTOU: u8 = 22;
pub(super) const URG: u8 = 23;
pub(super) const WINCH: u8 = 28;
/// The highest.
pub(super) const LAST: u8 = 64;

/// Without a handler it does nothing. Those that would stop a process are among them.
fn is_ignored_by_default(signal: u8) -> bool {
    matches!(signal, CHLD | URG | WINCH | CONT | STOP | TSTP | TTIN | TTOU)
}

/// Sends a signal to a process: the first thread that does not block it will look.
pub(super) fn send(process: &Process, info: Info) {
    if info.signal == KILL {
        process.end(End::Killed(KILL));
        return;
    }
    process.with_threads(|threads| {
        let taken_by = threads.iter().find(|thread| thread.signals.takes(info.signal));
        if process.signals.ignores(info.signal)
            && taken_by.is_some_and(|thread| !thread.signals.blocks(info.signal))
        {
            return;
        }
        process.signals.pending.add(info);
        if let Some(thread) = taken_by {
            thread.notify();
        }
    });
}

/// A thread that was told of a signal of the process may not look any more: tells another one.
pub(super) fn retarget(process: &Process) {
    let waiting = process.signals.pending.set();
    if waiting.0 == 0 {
        return;
    }
    process.with_threads(|threads| {
        for signal in (1..=LAST).filter(|signal| waiting.has(*signal)) {
            if let Some(thread) = threads.iter().find(|thread| thread.signals.takes(signal)) {
                thread.notify();
            }
        }
    });
}

/// Sends a signal to one thread.
pub(super) fn send_to(thread: &Thread, info: Info) {
    if info.signal == KILL {
        thread.process.end(End::Killed(KILL));
        return;
    }
    thread.process.with_threads(|threads| {
        if thread.process.signals.ignores(info.signal) && !thread.signals.blocks(info.signal) {
            return;
        }
        thread.signals.pending.add(info);
        if thread.signals.takes(info.signal) && threads.iter().any(|other| other.tid == thread.tid) {
            thread.notify();
        }
    });
}

/// A signal that the running thread's own doing has brought: it cannot be blocked or ignored.
fn force(caller: &Caller, info: Info) {
    let (thread, process) = (&caller.thread, caller.process());
    let action = process.signals.action(info.signal);
    if thread.signals.blocks(info.signal) || action.handler <= Action::IGNORE {
        // Of the program that was asked for, somebody wants to know why.
        let level = if process.is_first() { log::Level::Warn } else { log::Level::Info };
        log::log!(level, "process {}: {info}, instruction {:#x}", process.pid, caller.context.regs.rip);
        process.end(End::Killed(info.signal));
        return;
    }
    thread.signals.pending.add(info);
    crate::task::notify(crate::task::number());
}

/// The memory manager has refused a page fault of the program.
pub(super) fn by_page_fault(caller: &Caller, addr: u64, error: u64) {
    const MAPPED: i32 = 2; // SEGV_ACCERR
    const NOT_MAPPED: i32 = 1; // SEGV_MAPERR
    const NO_PAGE: i32 = 2; // BUS_ADRERR
    caller.thread.signals.note_fault(addr, error);
    // Of what is no user address, the memory manager was not asked: what it has said is about something else.
    let refusal = last_refusal().filter(|_| addr < USER_END);
    let info = match refusal {
        Some(FaultError::Oom(_) | FaultError::Limit(..)) => {
            log::warn!("out of memory: process {} is ended, at {addr:#x}", caller.process().pid);
            caller.process().end(End::Killed(KILL));
            return;
        }
        Some(FaultError::Device(_) | FaultError::Held(_) | FaultError::NoPage(_)) => {
            Info::of_fault(BUS, NO_PAGE, addr)
        }
        Some(FaultError::NoVma(_)) | None => Info::of_fault(SEGV, NOT_MAPPED, addr),
        Some(_) => Info::of_fault(SEGV, MAPPED, addr),
    };
    force(caller, info);
}

/// The program has raised another exception.
pub(super) fn by_exception(caller: &Caller, vector: u8, error: u64) {
    const KERNEL: i32 = 0x80; // SI_KERNEL
    caller.thread.signals.note_exception(vector, error);
    let rip = caller.context.regs.rip;
    force(
        caller,
        match vector {
            0 => Info::of_fault(FPE, 1, rip),  // FPE_INTDIV
            1 => Info::of_fault(TRAP, 2, rip), // TRAP_TRACE
            3 => Info::of_fault(TRAP, KERNEL, 0),
            6 => Info::of_fault(ILL, 2, rip), // ILL_ILLOPN
            12 => Info::of_fault(BUS, KERNEL, 0),
            16 | 19 => Info::of_fault(FPE, float_code(caller, vector), rip),
            17 => Info::of_fault(BUS, 1, 0), // BUS_ADRALN
            _ => Info::of_fault(SEGV, KERNEL, 0),
        },
    );
}

/// What was wrong with floating point: the exceptions that have come and are not masked, in the order in which x87 and SSE have them
/// (SDM vol. 1, 8.5 and 11.5).
fn float_code(caller: &Caller, vector: u8) -> i32 {
    const CODES: [i32; 6] = [7, 5, 3, 4, 5, 6]; // FLTINV, FLTUND for denormals, FLTDIV, FLTOVF, FLTUND, FLTRES
    let fx = caller.context.fx();
    let half = |at: usize| u16::from_le_bytes([fx[at], fx[at + 1]]);
    let come = if vector == 16 { half(2) & !half(0) } else { half(24) & !(half(24) >> 7) };
    CODES.get(come.trailing_zeros() as usize).copied().unwrap_or(0)
}

/// Does what the signals say that the running thread has and does not block, and puts a call right that one of them has
/// interrupted. Before it goes back to its program.
pub(super) fn deliver(caller: &mut Caller) {
    let process = alloc::sync::Arc::clone(caller.process());
    let mut handled = false;
    while let Some(info) = next(caller) {
        let action = process.signals.action(info.signal);
        match action.handler {
            Action::DEFAULT if is_ignored_by_default(info.signal) => {}
            Action::IGNORE => {}
            Action::DEFAULT => {
                log::info!("process {}: {info}, instruction {:#x}", process.pid, caller.context.regs.rip);
                process.end(End::Killed(info.signal));
                return;
            }
            _ => {
                if !handled {
                    sleep::forget();
                    frame::end_call(caller, action.has(flag::RESTART));
                    handled = true;
                }
                if frame::push(caller, &info, &action).is_err() {
                    process.end(End::Killed(SEGV));
                    return;
                }
                if action.has(flag::RESETHAND) {
                    process.signals.set_action(info.signal, Action::default());
                }
            }
        }
    }
    if !handled {
        frame::go_on(caller);
        if let Some(mask) = caller.thread.signals.take_saved_mask() {
            caller.thread.signals.set_mask(mask);
        }
    } else {
        // A handler blocks more than before.
        retarget(&process);
    }
}

/// The next signal for the running thread.
fn next(caller: &Caller) -> Option<Info> {
    let signals = &caller.thread.signals;
    let blocked = signals.mask();
    signals.pending.take(blocked).or_else(|| caller.process().signals.pending.take(blocked))
}

/// Takes a signal of `set`, blocked or not (`sigtimedwait`).
pub(super) fn take(caller: &Caller, set: Set) -> Option<Info> {
    let signals = &caller.thread.signals;
    let others = Set(!set.0);
    signals.pending.take(others).or_else(|| caller.process().signals.pending.take(others))
}

/// Signals that wait for the running thread.
pub(super) fn pending(caller: &Caller) -> Set {
    Set(caller.thread.signals.pending.set().0 | caller.process().signals.pending.set().0)
}

/// A set of signals in an atomic word.
#[derive(Debug, Default)]
pub(super) struct AtomicSet(AtomicU64);

impl AtomicSet {
    pub(super) fn get(&self) -> Set {
        Set(self.0.load(Relaxed))
    }

    pub(super) fn put(&self, set: Set) {
        self.0.store(set.0, Relaxed);
    }
}
