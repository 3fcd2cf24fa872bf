//! The memory manager's place in the kernel.

use crate::arch::x86_64::fault::FaultRegs;

/// Handles a fault on a user address, taken in ring 3 or in a user-access routine.
///
/// # Errors
/// Nothing can be done about it: the access fails.
pub(crate) fn user_fault(_regs: FaultRegs) -> Result<(), ()> {
    Err(())
}
