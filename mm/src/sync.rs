//! Locks. Every lock of the memory manager is made here, so that one file decides what a lock does besides locking.
//!
//! Order (a lock may be taken only while those to its left are held, or none):
//!
//! ```text
//! VMA lock -> folio (try only, once another folio or a table lock is held) -> AnonSet
//!   -> PMD table -> PTE table -> notifier, mirror -> object -> frame map, buddy, slab, device -> wait queue
//! ```
//!
//! Spin locks turn preemption off and nothing sleeps under one. The VMA lock sleeps.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use farpage_lock::Sleeper;

use crate::machine::{Machine, WaitKey};

/// A spin lock whose holder cannot be preempted.
pub(crate) struct SpinLock<M, T> {
    inner: spin::mutex::SpinMutex<T>,
    machine: PhantomData<fn() -> M>,
}

/// A held [`SpinLock`]. Fields drop in order: the lock is free before preemption comes back.
pub(crate) struct SpinGuard<'a, M: Machine, T> {
    inner: spin::mutex::SpinMutexGuard<'a, T>,
    _pinned: NoPreempt<M>,
}

/// Preemption is off while this lives.
pub(crate) struct NoPreempt<M: Machine>(PhantomData<fn() -> M>);

impl<M: Machine> NoPreempt<M> {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        M::preempt_disable();
        Self(PhantomData)
    }
}

impl<M: Machine> Drop for NoPreempt<M> {
    #[inline(always)]
    fn drop(&mut self) {
        M::preempt_enable();
    }
}

impl<M, T> SpinLock<M, T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { inner: spin::mutex::SpinMutex::new(value), machine: PhantomData }
    }
}

impl<M, T: Default> Default for SpinLock<M, T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<M: Machine, T> SpinLock<M, T> {
    #[inline(always)]
    pub(crate) fn lock(&self) -> SpinGuard<'_, M, T> {
        let pinned = NoPreempt::new();
        SpinGuard { inner: self.inner.lock(), _pinned: pinned }
    }

    /// Locks the one of `locks` that belongs to this CPU.
    #[inline(always)]
    pub(crate) fn lock_of_cpu<const N: usize>(locks: &[Self; N]) -> SpinGuard<'_, M, T> {
        let pinned = NoPreempt::new();
        SpinGuard { inner: locks[M::cpu() % N].inner.lock(), _pinned: pinned }
    }

    pub(crate) fn is_locked(&self) -> bool {
        self.inner.is_locked()
    }
}

impl<M: Machine, T> Deref for SpinGuard<'_, M, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<M: Machine, T> DerefMut for SpinGuard<'_, M, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// How the waiters of a [`farpage_lock`] sleep on this machine.
pub(crate) struct OnMachine<M>(PhantomData<fn() -> M>);

impl<M: Machine> Sleeper for OnMachine<M> {
    fn wait(key: usize, still: &dyn Fn() -> bool) {
        M::wait(WaitKey(key), still);
    }
    fn wake(key: usize) {
        M::wake(WaitKey(key));
    }
}

/// A readers-writer lock whose waiters sleep; for the VMA lock, which is held across allocation and copying. A writer that
/// waits holds new readers back, so no thread may read-lock what it has read-locked already.
pub(crate) type SleepRwLock<M, T> = farpage_lock::RwLock<OnMachine<M>, T>;
