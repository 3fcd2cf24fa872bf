//! The buddy allocator of one range of frames, orders 0 to 9.
//!
//! Free chunks are linked through their first slot word in the frame map, so the allocator owns no memory. Chunks coalesce
//! on every free, on a device as in RAM (Linux never merges split device pages back). A chunk of order 9 is a block: its
//! block word says `Free`, and a smaller chunk's block says `Small`.

use crate::framemap::{Block, FrameMap, NO_FRAME, Slot};
use crate::types::{FrameRange, Order};

/// Number of orders.
pub(crate) const ORDERS: usize = 10;

/// Free lists. Belongs to one [`FrameMap`], which every method is given: the two live side by side in a zone, the map
/// readable without the lock that guards this.
pub(crate) struct Buddy {
    heads: [u32; ORDERS],
    counts: [u32; ORDERS],
    free: u32,
    managed: u32,
}

impl Buddy {
    pub(crate) const fn new() -> Self {
        Self { heads: [NO_FRAME; ORDERS], counts: [0; ORDERS], free: 0, managed: 0 }
    }

    /// Free frames.
    #[inline(always)]
    pub(crate) const fn free_frames(&self) -> u32 {
        self.free
    }
    /// Frames that were ever added.
    pub(crate) const fn managed(&self) -> u32 {
        self.managed
    }
    /// Free chunks of each order.
    pub(crate) const fn counts(&self) -> [u32; ORDERS] {
        self.counts
    }

    /// Adds frames that were reserved until now.
    pub(crate) fn add(&mut self, map: &FrameMap, range: FrameRange) {
        let mut at = range.start;
        while at < range.end {
            let order = Order::largest(at, range.end - at);
            if order < Order::PMD {
                map.set_block(at, Block::Small);
            }
            self.managed += order.pages();
            self.free(map, at, order);
            at += order.pages();
        }
    }

    /// Gives a range of frames back, by the largest chunks.
    pub(crate) fn free_range(&mut self, map: &FrameMap, range: FrameRange) {
        let mut at = range.start;
        while at < range.end {
            let order = Order::largest(at, range.end - at);
            self.free(map, at, order);
            at += order.pages();
        }
    }

    /// Takes all frames back out, if all are free: the map says that it has none, as before [`Buddy::add`].
    pub(crate) fn retire(&mut self, map: &FrameMap) -> bool {
        if self.free != self.managed {
            return false;
        }
        *self = Self::new();
        map.clear();
        true
    }

    /// Takes a chunk of order 9; the caller writes its block word. As [`Buddy::alloc`], but there is nothing to split, and
    /// nothing is ever taken from the middle of this list: it is linked one way only.
    #[inline(always)]
    pub(crate) fn alloc_block(&mut self, map: &FrameMap) -> Option<u32> {
        let chunk = self.pop_block(map)?;
        self.free -= Order::PMD.pages();
        Some(chunk)
    }

    #[inline(always)]
    fn pop_block(&mut self, map: &FrameMap) -> Option<u32> {
        let chunk = self.heads[ORDERS - 1];
        if chunk == NO_FRAME {
            return None;
        }
        self.heads[ORDERS - 1] = map.next(chunk);
        self.counts[ORDERS - 1] -= 1;
        Some(chunk)
    }

    /// Gives a chunk of order 9 back.
    #[inline(always)]
    pub(crate) fn free_block(&mut self, map: &FrameMap, chunk: u32) {
        self.free += Order::PMD.pages();
        self.push_block(map, chunk);
    }

    #[inline(always)]
    fn push_block(&mut self, map: &FrameMap, chunk: u32) {
        let (order, next) = (Order::PMD.get(), self.heads[ORDERS - 1]);
        map.set_slot(chunk, Slot::FreeHead { order, next, prev: NO_FRAME });
        map.set_block(chunk, Block::Free);
        self.heads[ORDERS - 1] = chunk;
        self.counts[ORDERS - 1] += 1;
    }

    /// Takes a chunk of `order`, splitting larger ones. The caller writes its slots, or its block word when the order is 9.
    #[inline]
    pub(crate) fn alloc(&mut self, map: &FrameMap, order: Order) -> Option<u32> {
        let want = order.get() as usize;
        let mut have = want;
        while self.heads[have] == NO_FRAME {
            have += 1;
            if have == ORDERS {
                return None;
            }
        }
        let mut chunk = self.heads[have];
        if have < ORDERS - 1 {
            self.unlink(map, chunk, have);
        } else {
            chunk = self.pop_block(map)?;
            if want < have {
                map.set_block(chunk, Block::Small);
            }
        }
        while have > want {
            have -= 1;
            self.push(map, chunk + (1 << have), have);
        }
        if want < ORDERS - 1 {
            // Before the lock is let go: a buddy freed meanwhile must not take this chunk for a free one.
            map.set_slot(chunk, Slot::Cached);
        }
        self.free -= order.pages();
        Some(chunk)
    }

    /// Gives a chunk back and merges it with its free buddies.
    #[inline]
    pub(crate) fn free(&mut self, map: &FrameMap, chunk: u32, order: Order) {
        self.free += order.pages();
        let mut order = order.get() as usize;
        let mut chunk = chunk;
        while order < ORDERS - 1 {
            let buddy = chunk ^ (1 << order);
            // A buddy's first slot is always current: the buddy of a chunk is never inside a larger chunk.
            match map.slot(buddy) {
                Slot::FreeHead { order: o, .. } if o as usize == order => self.unlink(map, buddy, order),
                _ => break,
            }
            chunk &= !(1 << order);
            order += 1;
        }
        if order == ORDERS - 1 {
            self.push_block(map, chunk);
        } else {
            self.push(map, chunk, order);
        }
    }

    /// Calls `f` with the first frame and order of every free chunk, checking the links on the way.
    ///
    /// # Panics
    /// When a link or an order is wrong.
    pub(crate) fn for_each_free(&self, map: &FrameMap, f: &mut dyn FnMut(u32, Order)) {
        for order in 0..ORDERS {
            let (mut at, mut before, mut n) = (self.heads[order], NO_FRAME, 0);
            while at != NO_FRAME {
                let Slot::FreeHead { order: o, next, prev } = map.slot(at) else {
                    panic!("frame {at:#x} on the free list of order {order} is not free");
                };
                let linked_back = if order == ORDERS - 1 { NO_FRAME } else { before };
                assert_eq!(
                    (o as usize, prev),
                    (order, linked_back),
                    "free list of order {order} is broken at {at:#x}"
                );
                let block = if order == ORDERS - 1 { Block::Free } else { Block::Small };
                assert_eq!(map.block(at), block, "block of free chunk {at:#x} of order {order}");
                f(at, Order::new(order as u8));
                (before, at, n) = (at, next, n + 1);
            }
            assert_eq!(n, self.counts[order], "count of free chunks of order {order}");
        }
    }

    #[inline(always)]
    fn push(&mut self, map: &FrameMap, chunk: u32, order: usize) {
        let next = self.heads[order];
        map.set_slot(chunk, Slot::FreeHead { order: order as u8, next, prev: NO_FRAME });
        if next != NO_FRAME {
            map.set_prev(next, chunk);
        }
        self.heads[order] = chunk;
        self.counts[order] += 1;
    }

    #[inline(always)]
    fn unlink(&mut self, map: &FrameMap, chunk: u32, order: usize) {
        let Slot::FreeHead { next, prev, .. } = map.slot(chunk) else {
            panic!("unlinked a chunk that is not free");
        };
        if prev == NO_FRAME {
            self.heads[order] = next;
        } else {
            map.set_next(prev, next);
        }
        if next != NO_FRAME {
            map.set_prev(next, prev);
        }
        self.counts[order] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framemap::BLOCK;
    use core::sync::atomic::AtomicU64;
    use proptest::prelude::*;

    fn map(blocks: usize) -> FrameMap {
        let words =
            |n: usize| -> &'static [AtomicU64] { Box::leak((0..n).map(|_| AtomicU64::new(0)).collect()) };
        FrameMap::new(words(blocks), words(blocks * BLOCK as usize))
    }

    #[test]
    fn whole_blocks_come_back_as_blocks() {
        let map = map(4);
        let mut buddy = Buddy::new();
        buddy.add(&map, 0..4 * BLOCK);
        assert_eq!(buddy.counts()[9], 4);
        let all: Vec<u32> =
            (0..4 * BLOCK).map(|_| buddy.alloc(&map, Order::BASE).expect("frames are left")).collect();
        assert_eq!(buddy.alloc(&map, Order::BASE), None);
        for frame in all {
            buddy.free(&map, frame, Order::BASE);
        }
        assert_eq!(buddy.counts()[9], 4, "512 single frees coalesce to a block");
        assert_eq!(map.block(0), Block::Free);
    }

    #[test]
    fn holes_are_never_handed_out() {
        let map = map(2);
        let mut buddy = Buddy::new();
        buddy.add(&map, 3..5);
        buddy.add(&map, 700..701);
        let mut got: Vec<u32> = core::iter::from_fn(|| buddy.alloc(&map, Order::BASE)).collect();
        got.sort_unstable();
        assert_eq!(got, [3, 4, 700]);
        for frame in got {
            buddy.free(&map, frame, Order::BASE);
        }
        assert_eq!(buddy.free_frames(), 3);
        buddy.for_each_free(&map, &mut |_, order| assert!(order < Order::new(1)));
    }

    #[derive(Clone, Debug)]
    enum Action {
        Alloc(u8),
        Free(usize),
    }

    proptest! {
        /// Against the obvious model: a bitmap of frames in use.
        #[test]
        fn agrees_with_a_bitmap(actions in prop::collection::vec(
            prop_oneof![(0u8..10).prop_map(Action::Alloc), any::<usize>().prop_map(Action::Free)], 1..400)) {
            let map = map(3);
            let mut buddy = Buddy::new();
            buddy.add(&map, 5..3 * BLOCK - 7);
            let managed = buddy.managed();
            let mut used = vec![false; 3 * BLOCK as usize];
            let mut live: Vec<(u32, Order)> = Vec::new();
            for action in actions {
                match action {
                    Action::Alloc(n) => {
                        let order = Order::new(n);
                        if let Some(at) = buddy.alloc(&map, order) {
                            prop_assert_eq!(at % order.pages(), 0);
                            for f in at..at + order.pages() {
                                prop_assert!((5..3 * BLOCK - 7).contains(&f));
                                prop_assert!(!used[f as usize], "frame {} handed out twice", f);
                                used[f as usize] = true;
                            }
                            if n == 9 { map.set_block(at, Block::Huge(1)) } else { map.set_folio(at, order.pages(), 1) }
                            live.push((at, order));
                        }
                    }
                    Action::Free(i) if !live.is_empty() => {
                        let (at, order) = live.swap_remove(i % live.len());
                        for f in at..at + order.pages() { used[f as usize] = false; }
                        buddy.free(&map, at, order);
                    }
                    Action::Free(_) => {}
                }
                let in_use: u32 = live.iter().map(|(_, o)| o.pages()).sum();
                prop_assert_eq!(buddy.free_frames() + in_use, managed);
                buddy.for_each_free(&map, &mut |at, order| {
                    for f in at..at + order.pages() { assert!(!used[f as usize]); }
                });
            }
        }
    }
}
