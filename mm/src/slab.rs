//! Memory for the memory manager's own objects.
//!
//! Stable `alloc` cannot report exhaustion, so nothing here uses it. Two forms:
//! - [`Slab`]: *shared* objects, reached as `&'static T` or by a 32-bit index. Their state is in atomics and locks.
//!   Descriptor memory is type-stable: a freed folio descriptor stays a folio descriptor, so that a racing look-up may
//!   read it and find out that it came too late.
//! - [`Pool`]: *owned* objects, a [`PoolBox`] is their only handle.
//!
//! Both grow by one RAM frame at a time and never shrink.

use core::marker::PhantomData;
use core::mem::size_of;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use spin::Once;

use crate::error::OutOfMemory;
use crate::inject::Site;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::sync::SpinLock;
use crate::types::PAGE_SIZE;

/// No object.
pub(crate) const NIL: u32 = u32::MAX;

/// What a slab needs of its objects: two words that it keeps in them.
pub(crate) trait Slot: Default + Sync + 'static {
    fn header(&self) -> &SlotHeader;
}

/// The slab's part of an object.
#[derive(Debug)]
pub(crate) struct SlotHeader {
    /// The object's own index; fixed for ever once its chunk exists.
    index: AtomicU32,
    /// Next free object while this one is free; free for the object's use (a list link) while it is allocated.
    pub(crate) link: AtomicU32,
}

impl Default for SlotHeader {
    fn default() -> Self {
        Self { index: AtomicU32::new(NIL), link: AtomicU32::new(NIL) }
    }
}

impl SlotHeader {
    #[inline(always)]
    pub(crate) fn index(&self) -> u32 {
        self.index.load(Relaxed)
    }
}

type Chunk<T> = &'static [T];
type Leaf<T> = &'static [Once<Chunk<T>>];

const LEAF_BITS: u32 = 7;
const DIRECTORY: usize = 512;

struct Free {
    head: u32,
    /// Chunks made so far.
    chunks: u32,
    /// Objects in use.
    live: u32,
}

/// Shared objects of one type.
pub(crate) struct Slab<M, T: 'static> {
    directory: [Once<Leaf<T>>; DIRECTORY],
    free: SpinLock<M, Free>,
}

impl<M: Machine, T: Slot> Slab<M, T> {
    /// log2 of the objects in a chunk of one frame.
    const CHUNK_BITS: u32 = (PAGE_SIZE as usize / size_of::<T>()).ilog2();

    pub(crate) const fn new() -> Self {
        const {
            assert!(size_of::<T>() <= PAGE_SIZE as usize);
            assert!(size_of::<Once<Chunk<T>>>() << LEAF_BITS <= PAGE_SIZE as usize);
        }
        Self {
            directory: [const { Once::new() }; DIRECTORY],
            free: SpinLock::new(Free { head: NIL, chunks: 0, live: 0 }),
        }
    }

    /// The object of this index.
    ///
    /// # Panics
    /// When no such object was ever made.
    #[inline(always)]
    pub(crate) fn get(&self, index: u32) -> &'static T {
        let chunk = index >> Self::CHUNK_BITS;
        let leaf = self.directory[(chunk >> LEAF_BITS) as usize & (DIRECTORY - 1)].get();
        let chunk = leaf.and_then(|leaf| leaf[(chunk & ((1 << LEAF_BITS) - 1)) as usize].get());
        match chunk {
            Some(chunk) => &chunk[(index & ((1 << Self::CHUNK_BITS) - 1)) as usize],
            None => panic!("index of an object that does not exist"),
        }
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
        free.head = object.header().index();
        free.live -= 1;
    }

    /// Objects in use.
    pub(crate) fn live(&self) -> u32 {
        self.free.lock().live
    }

    /// Objects made, in use or not: indices run from 0 to this.
    pub(crate) fn made(&self) -> u32 {
        self.free.lock().chunks << Self::CHUNK_BITS
    }

    #[cold]
    fn grow(&self, mm: &Mm<M>) -> Result<(), OutOfMemory> {
        let chunk = M::objects::<T>(mm.ram.alloc_object_frame()?);
        let mut free = self.free.lock();
        let number = free.chunks;
        let dir = &self.directory[(number >> LEAF_BITS) as usize];
        if dir.get().is_none() {
            // Rare (every 128th chunk), so a frame may be taken with the slab's lock held: buddy locks are of its rank
            // but never taken around it.
            let leaf = M::objects::<Once<Chunk<T>>>(mm.ram.alloc_object_frame()?);
            dir.call_once(|| leaf);
        }
        let base = number << Self::CHUNK_BITS;
        let chunk = &chunk[..1 << Self::CHUNK_BITS];
        for (i, object) in chunk.iter().enumerate() {
            let next = if i + 1 < chunk.len() { base + i as u32 + 1 } else { free.head };
            object.header().index.store(base + i as u32, Relaxed);
            object.header().link.store(next, Relaxed);
        }
        if let Some(leaf) = dir.get() {
            leaf[(number & ((1 << LEAF_BITS) - 1)) as usize].call_once(|| chunk);
        }
        free.head = base;
        free.chunks += 1;
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
            let fresh = M::objects::<Node<T>>(mm.ram.alloc_object_frame()?);
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
