//! User memory as tests, the tour and the benchmarks touch it: through the routines that may fault.

use farpage_mm::FaultError;
use spin::Mutex;

pub(crate) use crate::arch::x86_64::uaccess::{
    UserFault, user_fill, user_find_other, user_read_u64, user_touch_read, user_touch_write, user_write_u64,
};

static REFUSAL: Mutex<Option<FaultError>> = Mutex::new(None);

pub(super) fn note_refusal(error: FaultError) {
    *REFUSAL.lock() = Some(error);
}

/// Why the last refused fault was refused; asking forgets it.
pub(crate) fn last_refusal() -> Option<FaultError> {
    REFUSAL.lock().take()
}
