//! Sleeps of calls, which a signal ends.

use super::errno::{Errno, Interrupted};
use crate::task::timer::NEVER;
use crate::task::{Event, Woken, any_event};

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
                Woken::Noticed => return Err(Interrupted::RestartWithoutHandler.into()),
            }
        }
    })
}
