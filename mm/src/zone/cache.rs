//! Frames at hand: each CPU keeps some single ones, so that most page faults do not touch the buddy.

use core::sync::atomic::Ordering::Relaxed;

use crate::error::OutOfMemory;
use crate::framemap::Slot;
use crate::machine::Machine;
use crate::sync::SpinLock;
use crate::types::Order;
use crate::zone::{Need, Zone};

const CACHE: usize = 64;
/// Frames moved between a CPU's cache and the buddy at a time.
pub(super) const BATCH_ORDER: Order = Order::new(5);

/// The frames at hand of one CPU, relative to the zone's first; the last one goes out first.
pub(super) struct Cache {
    pub(super) len: usize,
    pub(super) frames: [u32; CACHE],
}

impl Cache {
    pub(super) const fn new() -> Self {
        Self { len: 0, frames: [0; CACHE] }
    }
}

impl<M: Machine> Zone<M> {
    /// Empties the CPUs' caches into the buddy, so that chunks can coalesce.
    pub fn drain(&self) {
        for cache in &self.caches {
            let mut cache = cache.lock();
            let mut buddy = self.buddy.lock();
            while cache.len > 0 {
                cache.len -= 1;
                buddy.free(self.map(), cache.frames[cache.len], Order::BASE);
            }
        }
    }

    #[inline(always)]
    pub(super) fn alloc_cached(&self, need: Need) -> Result<u32, OutOfMemory> {
        let mut cache = SpinLock::lock_of_cpu(&self.caches);
        if cache.len == 0
            && let Err(oom) = self.refill(&mut cache, need)
        {
            drop(cache);
            return self.alloc_drained(need).ok_or(oom);
        }
        cache.len -= 1;
        Ok(cache.frames[cache.len])
    }

    /// The buddy has no more for us: what lies in the caches of other CPUs is the last resort.
    #[cold]
    fn alloc_drained(&self, need: Need) -> Option<u32> {
        self.drain();
        self.try_chunk(Order::BASE, need)
    }

    /// Moves up to 32 frames into an empty cache: one chunk of order 5 if there is one, else what there is.
    #[cold]
    fn refill(&self, cache: &mut Cache, need: Need) -> Result<(), OutOfMemory> {
        let map = self.map();
        let mut buddy = self.buddy.lock();
        let low_water = self.low_water.load(Relaxed);
        let above = buddy.free_frames().saturating_sub(low_water);
        // Under pressure a single frame, and none is left behind: users take from the caches without asking, so that the
        // reserve must never lie there.
        let mut order = BATCH_ORDER;
        if above < 2 * BATCH_ORDER.pages() {
            self.pressed.store(true, Relaxed);
            order = Order::BASE;
        }
        if need == Need::User && above == 0 {
            return Err(OutOfMemory { order: 0 });
        }
        let chunk = loop {
            match buddy.alloc(map, order) {
                Some(chunk) => break chunk,
                None if order == Order::BASE => return Err(OutOfMemory { order: 0 }),
                None => order = Order::new(order.get() - 1),
            }
        };
        map.set_cached(chunk, order.pages());
        // The lowest comes out first.
        let n = order.pages();
        for (frame, at) in cache.frames[..n as usize].iter_mut().zip((chunk..chunk + n).rev()) {
            *frame = at;
        }
        cache.len = n as usize;
        Ok(())
    }

    /// Under pressure, frames go back to the buddy, where the low-water mark guards them.
    #[cold]
    fn free_pressed(&self, chunk: u32) {
        let mut buddy = self.buddy.lock();
        buddy.free(self.map(), chunk, Order::BASE);
        if buddy.free_frames() >= self.low_water.load(Relaxed) + 4 * BATCH_ORDER.pages() {
            self.pressed.store(false, Relaxed);
        }
    }

    #[inline(always)]
    pub(super) fn free_cached(&self, chunk: u32) {
        if self.pressed.load(Relaxed) {
            return self.free_pressed(chunk);
        }
        self.map().set_slot(chunk, Slot::Cached);
        let mut cache = SpinLock::lock_of_cpu(&self.caches);
        if cache.len == CACHE {
            self.spill(&mut cache);
        }
        let len = cache.len;
        cache.frames[len] = chunk;
        cache.len = len + 1;
    }

    /// Gives half of a full cache, its oldest frames, back to the buddy. Frames that were freed one after the other, up or
    /// down, go back as larger chunks.
    #[cold]
    fn spill(&self, cache: &mut Cache) {
        let half = CACHE / 2;
        let mut buddy = self.buddy.lock();
        let mut rest = &cache.frames[..half];
        while let [first, ..] = *rest {
            let down = rest.get(1).is_some_and(|&second| second < first);
            let step = if down { u32::MAX } else { 1 };
            let len =
                1 + rest.windows(2).take_while(|pair| pair[1].wrapping_sub(pair[0]) == step).count() as u32;
            let start = if down { first - (len - 1) } else { first };
            buddy.free_range(self.map(), start..start + len);
            rest = &rest[len as usize..];
        }
        cache.frames.copy_within(half.., 0);
        cache.len = half;
    }
}
