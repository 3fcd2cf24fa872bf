//! A readers-writer lock whose waiters sleep.
//!
//! ```text
//!  31    30      29        28 .. 0
//!  HELD  QUEUED  SLEEPERS  readers
//! ```
//!
//! A reader adds itself and looks at what was there: below [`QUEUED`] it has the lock. Otherwise it takes itself off again,
//! by a full unlock, since a writer may have seen it and gone to sleep for it. A writer that must wait sets [`QUEUED`], which
//! holds new readers back until some writer had its turn, so writers do not starve. For the same reason a thread must not
//! read-lock what it has read-locked already. Who sleeps has set [`SLEEPERS`] first; the unlock that leaves the lock free
//! clears it and wakes all.

use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::{Sleeper, Word};

/// A writer has the lock.
const HELD: u32 = 1 << 31;
/// A writer waits for it.
const QUEUED: u32 = 1 << 30;
/// Somebody sleeps, or is about to.
const SLEEPERS: u32 = 1 << 29;
const READERS: u32 = SLEEPERS - 1;

/// The lock without data, over a word of any make.
#[derive(Debug)]
pub struct RawRwLock<W>(W);

impl<W: Word> Default for RawRwLock<W> {
    fn default() -> Self {
        Self(W::new(0))
    }
}

impl<W: Word> RawRwLock<W> {
    fn key(&self) -> usize {
        ptr::from_ref(self).addr()
    }

    /// Takes it shared.
    #[inline(always)]
    pub fn lock_read<S: Sleeper>(&self) {
        if self.0.fetch_add(1, Acquire) >= QUEUED {
            self.lock_read_later::<S>();
        }
    }

    #[cold]
    fn lock_read_later<S: Sleeper>(&self) {
        loop {
            self.unlock_read::<S>();
            S::wait(self.key(), &|| {
                self.0.load(Relaxed) >= QUEUED && self.0.fetch_or(SLEEPERS, AcqRel) >= QUEUED
            });
            if self.0.fetch_add(1, Acquire) < QUEUED {
                return;
            }
        }
    }

    /// Gives up what [`RawRwLock::lock_read`] took.
    #[inline(always)]
    pub fn unlock_read<S: Sleeper>(&self) {
        if self.0.fetch_sub(1, Release) != 1 {
            self.after_unlock_read::<S>();
        }
    }

    /// Other readers, or somebody waits. Who marks the word after the subtraction has seen it; so what is read here, later in
    /// the same word, shows every mark that matters.
    #[cold]
    fn after_unlock_read<S: Sleeper>(&self) {
        // With readers or a writer there again, it is their unlock that wakes.
        if self.0.load(Relaxed) & (HELD | READERS) == 0 && self.0.fetch_and(!SLEEPERS, AcqRel) & SLEEPERS != 0
        {
            S::wake(self.key());
        }
    }

    /// Takes it alone.
    #[inline]
    pub fn lock_write<S: Sleeper>(&self) {
        if !self.0.replace(0, HELD, Acquire) {
            self.lock_write_later::<S>();
        }
    }

    #[cold]
    fn lock_write_later<S: Sleeper>(&self) {
        loop {
            let word = self.0.load(Relaxed);
            if word & (HELD | READERS) != 0 {
                S::wait(self.key(), &|| self.0.fetch_or(QUEUED | SLEEPERS, AcqRel) & (HELD | READERS) != 0);
            } else if self.0.replace(word, HELD | word & SLEEPERS, Acquire) {
                return; // other writers that wait are woken by the unlock and queue again
            }
        }
    }

    /// Gives up what [`RawRwLock::lock_write`] took.
    #[inline]
    pub fn unlock_write<S: Sleeper>(&self) {
        // Readers that try meanwhile have added themselves: only the bits go.
        if self.0.fetch_and(READERS, Release) & SLEEPERS != 0 {
            S::wake(self.key());
        }
    }
}

#[cfg(test)]
impl<W: Word> RawRwLock<W> {
    /// Does a writer wait?
    pub(crate) fn is_queued(&self) -> bool {
        self.0.load(Relaxed) & QUEUED != 0
    }
}

/// A readers-writer lock around a `T`; its waiters sleep by `S`.
pub struct RwLock<S, T> {
    raw: RawRwLock<AtomicU32>,
    data: UnsafeCell<T>,
    sleeper: PhantomData<fn() -> S>,
}

// SAFETY: a shared reference gives `&T` to several threads at once and `&mut T` to one, as the lock allows.
#[expect(unsafe_code, reason = "this is what a lock with data is")]
unsafe impl<S, T: Send + Sync> Sync for RwLock<S, T> {}

/// A [`RwLock`] held shared.
#[must_use = "the lock is held while this lives"]
pub struct ReadGuard<'a, S: Sleeper, T> {
    lock: &'a RwLock<S, T>,
}

/// A [`RwLock`] held alone.
#[must_use = "the lock is held while this lives"]
pub struct WriteGuard<'a, S: Sleeper, T> {
    lock: &'a RwLock<S, T>,
    /// Neither `Send` nor `Sync` beyond what a `&mut T` is.
    data: PhantomData<&'a mut T>,
}

impl<S, T: Default> Default for RwLock<S, T> {
    fn default() -> Self {
        Self { raw: RawRwLock::default(), data: UnsafeCell::new(T::default()), sleeper: PhantomData }
    }
}

impl<S, T> fmt::Debug for RwLock<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLock").field("word", &self.raw.0).finish_non_exhaustive()
    }
}

impl<S: Sleeper, T> RwLock<S, T> {
    /// Takes it shared, sleeping while a writer has it or waits for it.
    #[inline(always)]
    pub fn read(&self) -> ReadGuard<'_, S, T> {
        self.raw.lock_read::<S>();
        ReadGuard { lock: self }
    }

    /// Takes it alone, sleeping while anybody has it.
    #[inline]
    pub fn write(&self) -> WriteGuard<'_, S, T> {
        self.raw.lock_write::<S>();
        WriteGuard { lock: self, data: PhantomData }
    }

    /// True while anybody holds it.
    pub fn is_locked(&self) -> bool {
        self.raw.0.load(Relaxed) & (HELD | READERS) != 0
    }
}

impl<S: Sleeper, T> Deref for ReadGuard<'_, S, T> {
    type Target = T;
    #[inline(always)]
    #[expect(unsafe_code, reason = "this is what a lock with data is")]
    fn deref(&self) -> &T {
        // SAFETY: the lock is held shared: nobody has a `&mut T`.
        unsafe { &*self.lock.data.get() }
    }
}

impl<S: Sleeper, T> Drop for ReadGuard<'_, S, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.lock.raw.unlock_read::<S>();
    }
}

impl<S: Sleeper, T> Deref for WriteGuard<'_, S, T> {
    type Target = T;
    #[inline(always)]
    #[expect(unsafe_code, reason = "this is what a lock with data is")]
    fn deref(&self) -> &T {
        // SAFETY: the lock is held alone, and this borrow is of the guard.
        unsafe { &*self.lock.data.get() }
    }
}

impl<S: Sleeper, T> DerefMut for WriteGuard<'_, S, T> {
    #[inline(always)]
    #[expect(unsafe_code, reason = "this is what a lock with data is")]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held alone, and this borrow is of the guard.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<S: Sleeper, T> Drop for WriteGuard<'_, S, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.raw.unlock_write::<S>();
    }
}
