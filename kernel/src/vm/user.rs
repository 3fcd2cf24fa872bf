//! User memory as tests, the tour and the benchmarks touch it: through the routines that may fault.

use farpage_mm::FaultError;
use spin::Mutex;

use crate::arch::x86_64::percpu;
use crate::arch::x86_64::stacks::MAX_THREADS;

pub(crate) use crate::arch::x86_64::uaccess::{
    UserFault, user_chase, user_fill, user_find_other, user_read_u64, user_touch_read, user_touch_write,
    user_write_u64,
};

/// The last of each thread.
static REFUSAL: [Mutex<Option<FaultError>>; MAX_THREADS] = [const { Mutex::new(None) }; MAX_THREADS];

pub(super) fn note_refusal(error: FaultError) {
    *REFUSAL[percpu::current_thread()].lock() = Some(error);
}

/// Why the last refused fault of this thread was refused; asking forgets it.
pub(crate) fn last_refusal() -> Option<FaultError> {
    REFUSAL[percpu::current_thread()].lock().take()
}
