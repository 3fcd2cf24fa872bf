//! Page faults: who handles which.
//!
//! A fault on a user address, from ring 3 or from one of the user-access routines, goes to the memory manager
//! ([`crate::vm::user_fault`]). If that refuses, the routine returns an error. Every other fault is a bug in the kernel
//! and stops the machine with a report.

use core::sync::atomic::{AtomicPtr, Ordering};

use super::trap::TrapFrame;
use super::user::{self, Why};
use super::{percpu, uaccess};
use crate::report::{self, Kind};

/// What the memory manager needs to know about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FaultRegs {
    /// The address (CR2).
    pub(crate) addr: u64,
    /// The error code, as the SDM has it.
    pub(crate) error_code: u64,
    /// The instruction.
    pub(crate) rip: u64,
}

/// A fault that comes back this often although nothing is wrong is a kernel bug.
const SPURIOUS_LIMIT: u64 = 8;

/// The handler that the stub calls: another one while faults are recorded, so that nobody has to ask. The call costs the same
/// either way.
pub(super) static PAGE_FAULT: AtomicPtr<()> = AtomicPtr::new(page_fault::<false> as *const () as *mut ());

/// Chooses the handler: whether page faults are recorded from now on.
pub(crate) fn record_faults(on: bool) {
    let handler = if on { page_fault::<true> as *const () } else { page_fault::<false> as *const () };
    PAGE_FAULT.store(handler.cast_mut(), Ordering::Relaxed);
}

/// A handler, with interrupts as they were.
#[inline]
extern "C" fn page_fault<const TRACED: bool>(frame: &mut TrapFrame, cr2: u64) {
    percpu::count_page_fault();
    let user_address = cr2 as i64 >= 0;
    if user_address && (uaccess::covers(frame.rip) || frame.is_from_user()) {
        let regs = FaultRegs { addr: cr2, error_code: frame.error, rip: frame.rip };
        if crate::vm::user_fault::<TRACED>(regs).is_ok() {
            return;
        }
    }
    refuse(frame, cr2);
}

/// Nobody handles it: the user-access routine returns an error, anything else is fatal.
#[cold]
fn refuse(frame: &mut TrapFrame, cr2: u64) {
    if frame.is_from_user() {
        user::leave(frame, Why::PageFault { addr: cr2, error: frame.error });
    }
    match uaccess::fixup(frame.rip) {
        Some(landing) if cr2 as i64 >= 0 => {
            frame.rax = cr2;
            frame.rip = landing;
        }
        _ => report::fatal(Kind::PageFault, frame, Some(cr2)),
    }
}

/// Called by the memory manager for a fault that it found already resolved: a translation another CPU made, or a stale
/// one that is gone now.
///
/// # Panics
/// The same instruction has faulted on the same address so for the eighth time running: nothing will ever come of it.
#[cold]
pub(crate) fn spurious(regs: &FaultRegs) {
    let block = percpu::this();
    let number = block.page_faults.load(Ordering::Relaxed);
    let [addr, rip, last, running] = &block.spurious;
    let again = addr.load(Ordering::Relaxed) == regs.addr
        && rip.load(Ordering::Relaxed) == regs.rip
        && last.load(Ordering::Relaxed) + 1 == number;
    let times = if again { running.load(Ordering::Relaxed) + 1 } else { 1 };
    addr.store(regs.addr, Ordering::Relaxed);
    rip.store(regs.rip, Ordering::Relaxed);
    last.store(number, Ordering::Relaxed);
    running.store(times, Ordering::Relaxed);
    if times >= SPURIOUS_LIMIT {
        panic!(
            "the fault at {:#x} by the instruction at {:#x} (error code {:#x}) was spurious {times} times running",
            regs.addr, regs.rip, regs.error_code
        );
    }
}

/// How many page faults this CPU has taken.
pub(crate) fn page_faults() -> u64 {
    percpu::this().page_faults.load(Ordering::Relaxed)
}
