//! Sleeps of calls, which a signal ends.

use super::errno::{Errno, Interrupted};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::arch::x86_64::stacks::MAX_THREADS;
use crate::task::timer::{self, NEVER};
use crate::task::{self, Event, Woken, any_event};

/// Sleeps on `event` until `look` finds something; it is asked again whenever the event has happened.
///
/// # Errors
/// A signal has come first; or what `look` says.
pub(super) fn until<T>(
    event: &Event,
    mut look: impl FnMut() -> Result<Option<T>, Errno>,
) -> Result<T, Errno> {
    loop {
        let seen = event.seen();
        if let Some(found) = look()? {
            return Ok(found);
        }
        if event.wait(seen, NEVER) == Woken::Noticed {
            return Err(Interrupted::Restart.into());
        }
    }
}

/// Sleeps until `look` finds something, or until `deadline`: it is asked again whenever anything has happened at all. For who
/// waits for several things.
///
/// # Errors
/// A signal has come first.
pub(super) fn until_any(deadline: u64, mut look: impl FnMut() -> bool) -> Result<(), Errno> {
    any_event(|event| {
        loop {
            let seen = event.seen();
            if look() {
                return Ok(());
            }
            match event.wait(seen, deadline) {
                Woken::ByKey => {}
                Woken::TimedOut => return Ok(()),
                Woken::Noticed => {
                    keep(deadline);
                    return Err(Interrupted::RestartWithoutHandler.into());
                }
            }
        }
    })
}

/// Sleeps until `deadline`, or a notice. Nobody wakes it by its key.
pub(super) fn alone(deadline: u64) -> Woken {
    let nobody = 0_u8;
    task::wait_until(core::ptr::from_ref(&nobody).addr(), deadline, &|| true)
}

/// When the interrupted call of each thread was to end that begins again; 0 for none.
static KEPT: [AtomicU64; MAX_THREADS] = [const { AtomicU64::new(0) }; MAX_THREADS];

/// The deadline that lies so many nanoseconds ahead, or, for a call that begins again, that of its beginning.
pub(super) fn after(nanoseconds: u64) -> u64 {
    match KEPT[task::number()].swap(0, Relaxed) {
        0 => timer::after_nanoseconds(nanoseconds),
        kept => kept,
    }
}

/// The running thread's call is interrupted, and has this deadline if it begins again.
pub(super) fn keep(deadline: u64) {
    if deadline != NEVER {
        KEPT[task::number()].store(deadline, Relaxed);
    }
}

/// It does not begin again by itself: a handler comes first, or another program.
pub(super) fn forget() {
    KEPT[task::number()].store(0, Relaxed);
}
