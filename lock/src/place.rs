//! A reference in a word, to something that lives for ever: it can be replaced while others read it, and reading it is one load.

use core::fmt;
use core::ptr::null_mut;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::{Acquire, Release};

/// A place for a reference; empty at first.
pub struct StaticRef<T: 'static>(AtomicPtr<T>);

impl<T: Sync> StaticRef<T> {
    /// An empty place.
    #[must_use]
    pub const fn empty() -> Self {
        Self(AtomicPtr::new(null_mut()))
    }

    /// What was put here last.
    #[inline(always)]
    #[expect(unsafe_code, reason = "a pointer that was a reference becomes one again")]
    pub fn get(&self) -> Option<&'static T> {
        let there = self.0.load(Acquire);
        // SAFETY: it is null, or `set` was given it as a shared reference that is good for ever, from whatever thread.
        unsafe { there.as_ref() }
    }

    /// Puts `new` here. Who reads it sees what was written to it before.
    pub fn set(&self, new: &'static T) {
        self.0.store(core::ptr::from_ref(new).cast_mut(), Release);
    }
}

impl<T: Sync + fmt::Debug> fmt::Debug for StaticRef<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}
