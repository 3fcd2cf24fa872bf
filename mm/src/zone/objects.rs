//! Frames for descriptors. They never come back, and one of them is enough to keep 2 MiB from being free in one piece for ever. So
//! they lie together: a large chunk is set aside for them, and handed out frame by frame (Linux groups pages by mobility to
//! the same end).

use crate::error::OutOfMemory;
use crate::framemap::{BLOCK, Block, Slot};
use crate::machine::{FreshFrame, Machine};
use crate::types::{FrameRange, Order};
use crate::zone::{Need, Zone};

/// A chunk is set aside only where there is this often as much free.
const SHARE: u32 = 32;
/// The kind of a frame that is set aside and not handed out.
const NOT_YET: u8 = u8::MAX;

impl<M: Machine> Zone<M> {
    /// Takes a frame for descriptors. It never comes back.
    pub(crate) fn alloc_object_frame(&self, kind: u8) -> Result<FreshFrame, OutOfMemory> {
        let mut chunk = self.objects.lock();
        if chunk.is_empty() {
            *chunk = self.set_aside()?;
        }
        let frame = chunk.start;
        chunk.start += 1;
        self.map().set_slot(frame, Slot::Objects(kind));
        Ok(FreshFrame(frame + self.base()))
    }

    /// The largest chunk that is a small share of what is free, relative to the zone's first frame; a single frame if need be.
    #[cold]
    fn set_aside(&self) -> Result<FrameRange, OutOfMemory> {
        let free = self.buddy.lock().free_frames();
        for order in (1..=Order::PMD.get()).rev().map(Order::new) {
            if free / SHARE >= order.pages()
                && let Some(chunk) = self.try_chunk(order, Need::Reserve)
            {
                let range = chunk..chunk + order.pages();
                range.clone().for_each(|frame| self.map().set_slot(frame, Slot::Objects(NOT_YET)));
                if order == Order::PMD {
                    self.map().set_block(chunk, Block::Small);
                }
                return Ok(range);
            }
        }
        let frame = self.alloc_cached(Need::Reserve)?;
        Ok(frame..frame + 1)
    }

    /// Calls `f` for every frame that holds descriptors, with their kind.
    pub(crate) fn for_each_object_frame(&self, f: &mut dyn FnMut(u32, u8)) {
        let map = self.map();
        for block in (0..map.frames()).step_by(BLOCK as usize) {
            if map.block(block) != Block::Small {
                continue;
            }
            let mut frame = block;
            while frame < block + BLOCK {
                frame += match map.slot(frame) {
                    Slot::Objects(kind) => {
                        f(frame + self.base(), kind);
                        1
                    }
                    // An audit comes here a dozen times, and most memory is free.
                    Slot::FreeHead { order, .. } => 1 << order,
                    _ => 1,
                };
            }
        }
    }
}
