//! Locks whose waiters sleep, each in one word.
//!
//! Two locks: [`RwLock`] with data behind it, for what is held across allocation and copying; and [`BitLock`], without data,
//! for what is locked as a thing (a folio). Both keep in their own word whether somebody sleeps, so an unlock knows from the
//! word it changes anyway, and a lock that nobody waits for costs nothing beyond itself.
//!
//! And [`StaticRef`], a word that is no lock: it spares readers one.
//!
//! Sleep and wake-up come from outside ([`Sleeper`]). The tests run the very same code over words that stop before each
//! access, and try every order of accesses of several threads (`explore`).

#![no_std]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

mod bit;
mod place;
mod rw;
mod word;

#[cfg(test)]
mod explore;
#[cfg(test)]
mod tests;

pub use bit::{BitLock, RawBitLock};
pub use place::StaticRef;
pub use rw::{RawRwLock, ReadGuard, RwLock, WriteGuard};
pub use word::Word;

/// Who puts threads to sleep and wakes them.
pub trait Sleeper {
    /// Sleeps until a [`Sleeper::wake`] of `key`, if `still()` says that there is something to wait for. A wake-up that comes
    /// after `still()` was asked is not lost: `still()` is asked under a lock that `wake` takes too.
    fn wait(key: usize, still: &dyn Fn() -> bool);
    /// Wakes all sleepers on `key`.
    fn wake(key: usize);
}
