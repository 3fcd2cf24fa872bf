//! Memory for the memory manager's own objects.
//!
//! Stable `alloc` cannot report exhaustion, so nothing here uses it. Two forms:
//! - [`Slab`]: *shared* objects, reached as `&'static T` or by a 32-bit key. Their state is in atomics and locks.
//!   Descriptor memory is type-stable: a freed folio descriptor stays a folio descriptor, so that a racing look-up may
//!   read it and find out that it came too late.
//! - [`Pool`]: *owned* objects, a [`PoolBox`] is their only handle.
//!
//! Both grow by one RAM frame at a time and never shrink.

use core::marker::PhantomData;
use core::mem::size_of;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::error::OutOfMemory;
use crate::inject::Site;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::sync::SpinLock;
use crate::types::PAGE_SIZE;

/// No object.
pub(crate) const NIL: u32 = u32::MAX;

/// Bytes in a unit of an object's key. Objects are aligned to it, so a 32-bit key reaches 256 GiB of RAM.
const KEY_BYTES: u64 = 64;

/// What a slab needs of its objects: two words that it keeps in them.
pub(crate) trait Slot: Default + Send + Sync + 'static {
    /// Tells the frames of one slab from those of another in the frame map; not 0.
    const KIND: u8;
    fn header(&self) -> &SlotHeader;
}

/// The slab's part of an object.
#[derive(Debug)]
pub(crate) struct SlotHeader {
    /// The object's own key; fixed for ever once it exists.
    key: AtomicU32,
    /// Next free object while this one is free; free for the object's use (a list link) while it is allocated.
    pub(crate) link: AtomicU32,
}

impl Default for SlotHeader {
    fn default() -> Self {
        Self { key: AtomicU32::new(NIL), link: AtomicU32::new(NIL) }
    }
}

impl SlotHeader {
    /// The object's key, by which [`Slab::get`] finds it.
    #[inline(always)]
    pub(crate) fn key(&self) -> u32 {
        self.key.load(Relaxed)
    }
}

struct Free {
    head: u32,
    /// Objects in use.
    live: u32,
}

/// Shared objects of one type.
pub(crate) struct Slab<M, T: 'static> {
    free: SpinLock<M, Free>,
    objects: PhantomData<fn() -> T>,
}

impl<M: Machine, T: Slot> Slab<M, T> {
    pub(crate) const fn new() -> Self {
        const {
            assert!(size_of::<T>() as u64 <= PAGE_SIZE && (size_of::<T>() as u64).is_multiple_of(KEY_BYTES));
            assert!(T::KIND != 0, "kind 0 is the pools'");
        }
        Self { free: SpinLock::new(Free { head: NIL, live: 0 }), objects: PhantomData }
    }

    /// The object of this key.
    #[inline(always)]
    pub(crate) fn get(&self, key: u32) -> &'static T {
        debug_assert_ne!(key, NIL, "a key that names nothing");
        M::object(key)
    }

    /// Takes an object. Its contents are what its last user left: the caller sets every field.
    #[inline(always)]
    pub(crate) fn alloc(&self, mm: &Mm<M>) -> Result<&'static T, OutOfMemory> {
        mm.inject.check(Site::Object, 0)?;
        loop {
            let mut free = self.free.lock();
            if free.head != NIL {
                let object = self.get(free.head);
                free.head = object.header().link.load(Relaxed);
                free.live += 1;
                return Ok(object);
            }
            drop(free);
            self.grow(mm)?;
        }
    }

    /// Gives an object back.
    #[inline(always)]
    pub(crate) fn free(&self, object: &'static T) {
        let mut free = self.free.lock();
        object.header().link.store(free.head, Relaxed);
        free.head = object.header().key();
        free.live -= 1;
    }

    /// Objects in use.
    pub(crate) fn live(&self) -> u32 {
        self.free.lock().live
    }

    /// Calls `f` for every object, in use or not.
    pub(crate) fn for_each(&self, mm: &Mm<M>, f: &mut dyn FnMut(&'static T)) {
        mm.ram.for_each_object_frame(&mut |pfn, kind| {
            if kind == T::KIND {
                (0..Self::per_frame()).for_each(|i| f(self.get(Self::key_in(pfn, i))));
            }
        });
    }

    const fn per_frame() -> u32 {
        (PAGE_SIZE / size_of::<T>() as u64) as u32
    }

    /// The key of object `i` of a frame.
    const fn key_in(pfn: u32, i: u32) -> u32 {
        ((pfn as u64 * PAGE_SIZE + i as u64 * size_of::<T>() as u64) / KEY_BYTES) as u32
    }

    #[cold]
    fn grow(&self, mm: &Mm<M>) -> Result<(), OutOfMemory> {
        let frame = mm.ram.alloc_object_frame(T::KIND)?;
        let pfn = frame.pfn();
        let objects = M::shared_objects::<T>(frame);
        let mut free = self.free.lock();
        for (i, object) in objects.iter().take(Self::per_frame() as usize).enumerate().rev() {
            let key = Self::key_in(pfn, i as u32);
            object.header().key.store(key, Relaxed);
            object.header().link.store(free.head, Relaxed);
            free.head = key;
        }
        Ok(())
    }
}

/// A cell of a [`Pool`].
pub(crate) struct Node<T: 'static> {
    next: Option<&'static mut Self>,
    value: T,
}

impl<T: Default> Default for Node<T> {
    fn default() -> Self {
        Self { next: None, value: T::default() }
    }
}

/// Owned objects of one type.
pub(crate) struct Pool<M, T: 'static> {
    free: SpinLock<M, (Option<&'static mut Node<T>>, u32)>,
}

/// Which pool a type's boxes go back to.
pub(crate) trait Pooled<M: Machine>: Default + Send + 'static {
    fn pool(mm: &Mm<M>) -> &Pool<M, Self>;
}

/// The only handle to an object of a [`Pool`]; dropping it gives the object back, as it is.
pub(crate) struct PoolBox<M: Machine, T: Pooled<M>> {
    node: Option<&'static mut Node<T>>,
    machine: PhantomData<fn() -> M>,
}

impl<M: Machine, T: Pooled<M>> Pool<M, T> {
    pub(crate) const fn new() -> Self {
        const { assert!(size_of::<Node<T>>() <= PAGE_SIZE as usize) };
        Self { free: SpinLock::new((None, 0)) }
    }

    /// Takes an object. Its contents are what its last user left.
    pub(crate) fn alloc(&self, mm: &Mm<M>) -> Result<PoolBox<M, T>, OutOfMemory> {
        mm.inject.check(Site::Object, 0)?;
        loop {
            let mut free = self.free.lock();
            if let Some(node) = free.0.take() {
                free.0 = node.next.take();
                free.1 += 1;
                return Ok(PoolBox { node: Some(node), machine: PhantomData });
            }
            drop(free);
            let fresh = M::objects::<Node<T>>(mm.ram.alloc_object_frame(0)?);
            let mut free = self.free.lock();
            for node in fresh {
                node.next = free.0.take();
                free.0 = Some(node);
            }
        }
    }

    /// Objects in use.
    pub(crate) fn live(&self) -> u32 {
        self.free.lock().1
    }
}

impl<M: Machine, T: Pooled<M>> Drop for PoolBox<M, T> {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            let mut free = T::pool(M::mm()).free.lock();
            node.next = free.0.take();
            free.0 = Some(node);
            free.1 -= 1;
        }
    }
}

impl<M: Machine, T: Pooled<M>> Deref for PoolBox<M, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        match &self.node {
            Some(node) => &node.value,
            None => unreachable!("a pool box is emptied only by its drop"),
        }
    }
}

impl<M: Machine, T: Pooled<M>> DerefMut for PoolBox<M, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.node {
            Some(node) => &mut node.value,
            None => unreachable!("a pool box is emptied only by its drop"),
        }
    }
}
