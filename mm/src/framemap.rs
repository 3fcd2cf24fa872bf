//! The frame map: from a frame to its owner, in two levels.
//!
//! One *block word* per 2 MiB says `Reserved`, `Free`, `Huge(folio)` or `Small`; one *slot word* per 4 KiB is in use only
//! while its block is `Small` (in free chunks the first slot holds the buddy's links). A 2 MiB folio touches one word,
//! where Linux initialises 512 `struct page`s; the storage is reserved with the range, so no allocation, free or split
//! ever needs memory for the map.
//!
//! Look-up takes no lock: read the word, try to get the folio (fails at zero), and check that the folio *still* covers the
//! frame; a descriptor that was freed and reused meanwhile does not. `Huge` to `Small` writes the slots first and the block
//! word last, with release.

use core::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use crate::entry::run;
/// Frames per block.
pub(crate) const BLOCK: u32 = 512;
/// "No frame" in a buddy link.
pub(crate) const NO_FRAME: u32 = (1 << 28) - 1;

const NEXT_SHIFT: u32 = 8;
const PREV_SHIFT: u32 = 36;

/// The state of a 2 MiB block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Block {
    /// Not ours.
    Reserved,
    /// One free chunk of order 9.
    Free,
    /// One folio of order 9.
    Huge(u32),
    /// Look at the slots.
    Small,
}

/// The state of a frame whose block is `Small` (or, for `FreeHead`, also the first of a `Free` block).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Slot {
    /// Not ours.
    Reserved,
    /// First frame of a free chunk.
    FreeHead { order: u8, next: u32, prev: u32 },
    /// In a CPU's cache of free frames.
    Cached,
    /// Part of a folio of order 0..=8.
    Folio(u32),
    /// A page table.
    Table(u32),
    /// Objects of a slab (of this kind) or pool (kind 0); for ever.
    Objects(u8),
}

/// The words of one range of frames. Numbers here are relative to the range's first frame.
pub(crate) struct FrameMap {
    blocks: &'static [AtomicU64],
    slots: &'static [AtomicU64],
}

impl Block {
    #[inline(always)]
    const fn encode(self) -> u64 {
        match self {
            Self::Reserved => 0,
            Self::Free => 1,
            Self::Small => 2,
            Self::Huge(folio) => 3 | (folio as u64) << 8,
        }
    }
    #[inline(always)]
    const fn decode(word: u64) -> Self {
        match word & 0xff {
            0 => Self::Reserved,
            1 => Self::Free,
            2 => Self::Small,
            _ => Self::Huge((word >> 8) as u32),
        }
    }
}

impl Slot {
    #[inline(always)]
    const fn encode(self) -> u64 {
        match self {
            Self::Reserved => 0,
            Self::FreeHead { order, next, prev } => {
                1 | (order as u64) << 4 | (next as u64) << NEXT_SHIFT | (prev as u64) << PREV_SHIFT
            }
            Self::Cached => 2,
            Self::Folio(i) => 3 | (i as u64) << 8,
            Self::Table(i) => 4 | (i as u64) << 8,
            Self::Objects(kind) => 5 | (kind as u64) << 8,
        }
    }
    #[inline(always)]
    const fn decode(word: u64) -> Self {
        match word & 0xf {
            0 => Self::Reserved,
            1 => Self::FreeHead {
                order: (word >> 4) as u8 & 0xf,
                next: (word >> NEXT_SHIFT) as u32 & NO_FRAME,
                prev: (word >> PREV_SHIFT) as u32 & NO_FRAME,
            },
            2 => Self::Cached,
            3 => Self::Folio((word >> 8) as u32),
            4 => Self::Table((word >> 8) as u32),
            _ => Self::Objects((word >> 8) as u8),
        }
    }
}

impl FrameMap {
    /// A map over zeroed words: everything reserved. `blocks` has one word per 512 of `slots`.
    pub(crate) fn new(blocks: &'static [AtomicU64], slots: &'static [AtomicU64]) -> Self {
        assert_eq!(blocks.len() * BLOCK as usize, slots.len(), "one block word per 512 slots");
        Self { blocks, slots }
    }

    /// Everything is reserved again.
    pub(crate) fn clear(&self) {
        self.blocks.iter().for_each(|block| block.store(Block::Reserved.encode(), Release));
        self.slots.iter().for_each(|slot| slot.store(Slot::Reserved.encode(), Relaxed));
    }

    /// Frames in the map.
    #[inline(always)]
    pub(crate) const fn frames(&self) -> u32 {
        self.slots.len() as u32
    }

    #[inline(always)]
    pub(crate) fn block(&self, frame: u32) -> Block {
        Block::decode(self.blocks[(frame / BLOCK) as usize].load(Acquire))
    }
    #[inline(always)]
    pub(crate) fn set_block(&self, frame: u32, block: Block) {
        self.blocks[(frame / BLOCK) as usize].store(block.encode(), Release);
    }
    #[inline(always)]
    pub(crate) fn slot(&self, frame: u32) -> Slot {
        Slot::decode(self.slots[frame as usize].load(Acquire))
    }
    #[inline(always)]
    pub(crate) fn set_slot(&self, frame: u32, slot: Slot) {
        self.slots[frame as usize].store(slot.encode(), Release);
    }

    /// The next free chunk, from the slot of a free one.
    #[inline(always)]
    pub(crate) fn next(&self, frame: u32) -> u32 {
        let word = self.slots[frame as usize].load(Relaxed);
        debug_assert!(
            matches!(Slot::decode(word), Slot::FreeHead { .. }),
            "the link of a chunk that is not free"
        );
        (word >> NEXT_SHIFT) as u32 & NO_FRAME
    }

    /// Changes the link to the next free chunk in the slot of a free one.
    #[inline(always)]
    pub(crate) fn set_next(&self, frame: u32, next: u32) {
        self.set_link(frame, NEXT_SHIFT, next);
    }
    /// Changes the link to the free chunk before.
    #[inline(always)]
    pub(crate) fn set_prev(&self, frame: u32, prev: u32) {
        self.set_link(frame, PREV_SHIFT, prev);
    }
    /// The word of a free chunk is only changed with the buddy's lock held.
    #[inline(always)]
    fn set_link(&self, frame: u32, shift: u32, to: u32) {
        let slot = &self.slots[frame as usize];
        let word = slot.load(Relaxed);
        debug_assert!(
            matches!(Slot::decode(word), Slot::FreeHead { .. }),
            "a link in a chunk that is not free"
        );
        slot.store(word & !(u64::from(NO_FRAME) << shift) | u64::from(to) << shift, Release);
    }

    /// Names `folio` as the owner of `pages` frames from `first`.
    #[inline(always)]
    pub(crate) fn set_folio(&self, first: u32, pages: u32, folio: u32) {
        let word = Slot::Folio(folio).encode();
        run::for_each(&self.slots[first as usize..(first + pages) as usize], |slot| {
            slot.store(word, Relaxed);
        });
    }

    /// Marks `pages` frames from `first` as in a CPU's cache, or otherwise in somebody's hands.
    #[inline(always)]
    pub(crate) fn set_cached(&self, first: u32, pages: u32) {
        let word = Slot::Cached.encode();
        run::for_each(&self.slots[first as usize..(first + pages) as usize], |slot| {
            slot.store(word, Relaxed);
        });
    }

    /// The index of the folio that owns `frame`, if one does.
    #[inline(always)]
    pub(crate) fn folio(&self, frame: u32) -> Option<u32> {
        match self.block(frame) {
            Block::Huge(folio) => Some(folio),
            Block::Small => match self.slot(frame) {
                Slot::Folio(folio) => Some(folio),
                _ => None,
            },
            Block::Free | Block::Reserved => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_as_they_were() {
        let numbers = [0, 1, 511, 0x00ff_ffff, NO_FRAME, u32::MAX];
        for n in numbers {
            for block in [Block::Reserved, Block::Free, Block::Small, Block::Huge(n)] {
                assert_eq!(Block::decode(block.encode()), block);
            }
            let kind = n as u8;
            let plain = [Slot::Reserved, Slot::Cached, Slot::Folio(n), Slot::Table(n), Slot::Objects(kind)];
            for slot in plain {
                assert_eq!(Slot::decode(slot.encode()), slot);
            }
            for order in 0..10 {
                for next in numbers.map(|n| n & NO_FRAME) {
                    let slot = Slot::FreeHead { order, next, prev: n & NO_FRAME };
                    assert_eq!(Slot::decode(slot.encode()), slot);
                }
            }
        }
        assert_eq!((Block::decode(0), Slot::decode(0)), (Block::Reserved, Slot::Reserved), "a fresh map");
    }

    #[test]
    fn slots_count_only_while_their_block_is_small() {
        let words =
            |n: usize| -> &'static [AtomicU64] { Box::leak((0..n).map(|_| AtomicU64::new(0)).collect()) };
        let map = FrameMap::new(words(2), words(2 * BLOCK as usize));
        map.set_folio(BLOCK + 8, 4, 77);
        assert_eq!(map.folio(BLOCK + 8), None, "reserved");
        map.set_block(BLOCK, Block::Small);
        let owners: Vec<_> = (BLOCK + 7..BLOCK + 13).map(|f| map.folio(f)).collect();
        assert_eq!(owners, [None, Some(77), Some(77), Some(77), Some(77), None]);
        map.set_block(BLOCK, Block::Huge(5));
        assert_eq!(map.folio(BLOCK + 8), Some(5), "what slots say is of no interest");
        map.set_block(BLOCK, Block::Free);
        assert_eq!(map.folio(BLOCK + 8), None);
        assert_eq!(map.folio(0), None);
    }
}
