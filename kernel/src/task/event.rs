//! Something that happens again and again, and that threads wait for.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::{Woken, wait_until, wake};

/// Counts how often it has happened. Who waits says how far it has seen: so nothing is missed between a look and the sleep, and no lock
/// is taken to ask whether to sleep.
#[derive(Debug, Default)]
pub(crate) struct Event(AtomicU64);

/// How often an event had happened when somebody looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen(u64);

/// What happens whenever an event does, while somebody waits for it; and how many do.
static ANY: Event = Event::new();
static WAIT_FOR_ANY: AtomicUsize = AtomicUsize::new(0);

/// Does `work` with an event that happens whenever any does: for who waits for several.
pub(crate) fn any_event<T>(work: impl FnOnce(&Event) -> T) -> T {
    WAIT_FOR_ANY.fetch_add(1, Relaxed);
    let result = work(&ANY);
    WAIT_FOR_ANY.fetch_sub(1, Relaxed);
    result
}

impl Event {
    /// One that has not happened yet.
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// How often until now. Before the look at what it is about.
    pub(crate) fn seen(&self) -> Seen {
        Seen(self.0.load(Relaxed))
    }

    /// It has happened.
    pub(crate) fn happens(&self) {
        self.0.fetch_add(1, Relaxed);
        wake(self.key());
        if WAIT_FOR_ANY.load(Relaxed) != 0 {
            ANY.0.fetch_add(1, Relaxed);
            wake(ANY.key());
        }
    }

    /// Sleeps until it happens once more, a notice comes, or `deadline`.
    pub(crate) fn wait(&self, seen: Seen, deadline: u64) -> Woken {
        wait_until(self.key(), deadline, &|| self.seen() == seen)
    }

    /// Sleeps until it happens once more, whatever else comes.
    pub(crate) fn wait_only(&self, seen: Seen) {
        super::wait(self.key(), &|| self.seen() == seen);
    }

    fn key(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }
}
