//! A lock without data, which is only ever tried; who does not get it may sleep until it is free, and try again.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::{Sleeper, Word};

const LOCKED: u32 = 1;
/// Somebody sleeps, or is about to.
const WAITERS: u32 = 2;

/// The lock over a word of any make.
#[derive(Debug, Default)]
pub struct RawBitLock<W>(W);

/// The lock.
pub type BitLock = RawBitLock<AtomicU32>;

impl<W: Word> RawBitLock<W> {
    /// A lock that is free.
    #[must_use]
    pub fn new() -> Self {
        Self(W::new(0))
    }

    /// True while somebody holds it.
    #[inline(always)]
    pub fn is_locked(&self) -> bool {
        self.0.load(Relaxed) & LOCKED != 0
    }

    /// Takes it, if it is free.
    #[inline(always)]
    pub fn try_lock(&self) -> bool {
        self.0.fetch_or(LOCKED, Acquire) & LOCKED == 0
    }

    /// Frees it, and wakes those who sleep on `key`.
    #[inline(always)]
    pub fn unlock<S: Sleeper>(&self, key: impl FnOnce() -> usize) {
        if self.0.swap(0, Release) & WAITERS != 0 {
            S::wake(key());
        }
    }

    /// Sleeps until it is free. It may be held again when this returns.
    pub fn wait_free<S: Sleeper>(&self, key: usize) {
        // The mark is made and the lock asked for in one access: an unlock after it sees the mark and wakes, one before it
        // leaves nothing to wait for. A mark on a lock that is free costs one wake-up of nobody.
        S::wait(key, &|| {
            self.0.load(Relaxed) & LOCKED != 0 && self.0.fetch_or(WAITERS, AcqRel) & LOCKED != 0
        });
    }

    /// Makes it free, whatever it was: for an object that nobody can reach, and that begins a new life.
    #[inline(always)]
    pub fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}
