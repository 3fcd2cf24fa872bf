//! Handles of folios: a reference, and a reference with the lock. The last one to go frees the folio.

use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use super::{Folio, GROUP, POOLED, RESIDENT};
use crate::counters::Event;
use crate::frames::Frames;
use crate::machine::Machine;
use crate::slab::NIL;

/// A counted handle of a folio.
pub struct FolioRef<M: Machine> {
    folio: &'static Folio,
    machine: PhantomData<fn() -> M>,
}

impl<M: Machine> FolioRef<M> {
    /// Takes over one reference that the caller owns already (a mapping's, say).
    #[inline(always)]
    pub(crate) const fn from_owned(folio: &'static Folio) -> Self {
        Self { folio, machine: PhantomData }
    }

    /// Adds a reference to a folio that a mapping under the caller's table lock keeps alive.
    #[inline(always)]
    pub(crate) fn get(folio: &'static Folio) -> Self {
        folio.refs.fetch_add(1, Relaxed);
        Self::from_owned(folio)
    }

    /// Gets a reference unless the folio is being freed or was never allocated.
    pub(crate) fn try_get(folio: &'static Folio) -> Option<Self> {
        if folio.try_get() { Some(Self::from_owned(folio)) } else { None }
    }

    /// The descriptor, for as long as the caller knows that it lives.
    #[inline(always)]
    pub(crate) const fn folio(&self) -> &'static Folio {
        self.folio
    }

    /// Gives the reference to somebody else (a mapping): the count stays.
    #[inline(always)]
    pub(crate) fn into_owned(self) -> &'static Folio {
        let folio = self.folio;
        core::mem::forget(self);
        folio
    }
}

impl<M: Machine> Clone for FolioRef<M> {
    fn clone(&self) -> Self {
        Self::get(self.folio)
    }
}

impl<M: Machine> Deref for FolioRef<M> {
    type Target = Folio;
    #[inline(always)]
    fn deref(&self) -> &Folio {
        self.folio
    }
}

impl<M: Machine> fmt::Debug for FolioRef<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "folio {} order {}", self.frame(), self.order().get())
    }
}

impl<M: Machine> Drop for FolioRef<M> {
    #[inline(always)]
    fn drop(&mut self) {
        put_many::<M>(self.folio, 1);
    }
}

/// Drops `n` references that the caller owns.
#[inline(always)]
pub(crate) fn put_many<M: Machine>(folio: &'static Folio, n: u32) {
    if folio.refs.fetch_sub(n, AcqRel) == n {
        free::<M>(folio);
    }
}

/// The last reference is gone.
#[inline]
fn free<M: Machine>(folio: &'static Folio) {
    debug_assert_eq!(folio.maps.load(Relaxed), 0, "freed while mapped");
    let meta = folio.meta.load(Relaxed);
    if meta & (RESIDENT | GROUP | POOLED) != 0 {
        if meta & POOLED != 0 {
            return free_pooled::<M>(folio);
        }
        if meta & RESIDENT != 0 {
            M::count(Event::DevicePagesDropped, u64::from(folio.order().pages()));
            if let Some(number) = folio.place().device_number() {
                M::mm().device(number).dropped(folio.order().pages());
            }
        }
        if meta & GROUP != 0 {
            M::mm().uncharge(folio);
        }
    }
    let frames = Frames::own(folio.frame(), folio.order());
    folio.tell_left::<M>(&frames);
    // The descriptor goes first: once the frames are free, somebody else may own them at another order.
    folio.anon.store(NIL, Relaxed);
    M::mm().folios.free(folio);
    drop(frames);
}

/// Its memory goes back to the pool of huge pages.
#[cold]
fn free_pooled<M: Machine>(folio: &'static Folio) {
    let frames = Frames::own(folio.frame(), folio.order());
    folio.anon.store(NIL, Relaxed);
    M::mm().folios.free(folio);
    M::mm().huge_pool.give_back(frames);
}

/// A folio whose lock this value holds, with the reference that keeps it. It is `Send`: a migration may be parked by one
/// thread and finished by another.
#[derive(Debug)]
pub struct LockedFolio<M: Machine>(pub(super) FolioRef<M>);

impl<M: Machine> LockedFolio<M> {
    /// Locks the folio if nobody else has. Takes the reference either way; gives it back when the lock is taken.
    #[inline(always)]
    pub(crate) fn try_lock(folio: FolioRef<M>) -> Result<Self, FolioRef<M>> {
        if folio.try_lock_raw() { Ok(Self(folio)) } else { Err(folio) }
    }

    /// Locks a folio that an entry under the caller's table lock maps, and takes over that *mapping's* reference: the caller
    /// either turns the entry into a migration entry, or calls [`LockedFolio::with_reference`]. `None` when somebody else
    /// holds the lock.
    #[inline(always)]
    pub(crate) fn try_lock_mapped(folio: &'static Folio) -> Option<Self> {
        if folio.try_lock_raw() { Some(Self(FolioRef::from_owned(folio))) } else { None }
    }

    /// Adds the reference that [`LockedFolio::try_lock_mapped`] left to the mapping. Under the same table lock.
    pub(crate) fn with_reference(self) -> Self {
        self.folio().refs.fetch_add(1, Relaxed);
        self
    }

    /// The value for a folio that was born locked ([`Folio::lock_new`]).
    #[inline(always)]
    pub(crate) const fn born(folio: FolioRef<M>) -> Self {
        Self(folio)
    }

    /// A second value for the same lock and reference. The caller forgets the first.
    #[inline(always)]
    pub(crate) const fn take_over(&self) -> Self {
        Self(FolioRef::from_owned(self.0.folio))
    }

    /// Unlocks; the reference stays.
    #[inline(always)]
    pub(crate) fn unlock(self) -> FolioRef<M> {
        let folio = FolioRef::from_owned(self.0.folio);
        folio.unlock_raw::<M>();
        core::mem::forget(self);
        folio
    }

    #[inline(always)]
    pub(crate) const fn folio(&self) -> &'static Folio {
        self.0.folio
    }
}

impl<M: Machine> Deref for LockedFolio<M> {
    type Target = Folio;
    #[inline(always)]
    fn deref(&self) -> &Folio {
        self.0.folio
    }
}

impl<M: Machine> Drop for LockedFolio<M> {
    #[inline(always)]
    fn drop(&mut self) {
        self.0.folio.unlock_raw::<M>();
    }
}
