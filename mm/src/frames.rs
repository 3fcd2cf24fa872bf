//! Memory that belongs to nobody: on its way to a folio, or on its way back to its zone.
//!
//! [`Frames`] is one chunk as a value; dropping it gives it back. A migration of many small pages takes its destinations from
//! a [`FrameSource`], which takes a large chunk and hands out its pages, and puts what the pages left behind into a
//! [`FrameBin`], which gives neighbours back as one range. Both touch the buddy once per 32 pages or so instead of per page.

use core::marker::PhantomData;

use crate::error::OutOfMemory;
use crate::inject::Site;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::trace::{Kind, Step};
use crate::types::{Frame, Order, Place, Vaddr};
use crate::zone::{Need, Zone};

const ORDER_SHIFT: u32 = 48;

/// A chunk that this value alone owns. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Frames<M: Machine> {
    /// The first frame, and above it the order: a migration has thousands of these.
    packed: u64,
    machine: PhantomData<fn() -> M>,
}

impl<M: Machine> Frames<M> {
    /// Takes over a chunk that the caller owns.
    #[inline(always)]
    pub(crate) const fn own(first: Frame, order: Order) -> Self {
        Self { packed: first.raw() | (order.get() as u64) << ORDER_SHIFT, machine: PhantomData }
    }
    /// The first frame.
    #[inline(always)]
    pub(crate) const fn first(&self) -> Frame {
        Frame::from_raw(self.packed & ((1 << ORDER_SHIFT) - 1))
    }
    #[inline(always)]
    pub(crate) const fn order(&self) -> Order {
        Order::from_bits((self.packed >> ORDER_SHIFT) as u32)
    }
    /// A second value for the same chunk. The caller forgets the first.
    #[inline(always)]
    pub(crate) const fn take_over(&self) -> Self {
        Self { packed: self.packed, machine: PhantomData }
    }
    /// Becomes the chunk that `f` makes of this one.
    #[inline(always)]
    pub(crate) fn replace(&mut self, f: impl FnOnce(Self) -> Self) {
        let new = f(self.take_over());
        self.packed = new.packed;
        core::mem::forget(new);
    }
    /// Gives the chunk to somebody else.
    #[inline(always)]
    pub(crate) const fn into_inner(self) -> (Frame, Order) {
        let inner = (self.first(), self.order());
        core::mem::forget(self);
        inner
    }
}

impl<M: Machine> Drop for Frames<M> {
    #[inline(always)]
    fn drop(&mut self) {
        let mm = M::mm();
        let (first, order) = (self.first(), self.order());
        if let Some(device) = first.place().device_number() {
            mm.device(device).freed(order.pages());
        }
        mm.zone(first.place()).free_frames(first, order);
    }
}

impl<M: Machine> Mm<M> {
    /// Allocates memory without a folio. Its contents are undefined.
    #[inline(always)]
    pub(crate) fn alloc_frames(
        &self,
        place: Place,
        order: Order,
        need: Need,
    ) -> Result<Frames<M>, OutOfMemory> {
        let first = self.zone(place).alloc_frames(&self.inject, order, need)?;
        if let Some(device) = place.device_number() {
            self.device(device).allocated(order, 1);
        }
        Ok(Frames::own(first, order))
    }
}

/// Hands out single pages from chunks.
pub(crate) struct FrameSource<M: Machine> {
    zone: &'static Zone<M>,
    site: Site,
    place: Place,
    need: Need,
    next: u32,
    end: u32,
}

impl<M: Machine> FrameSource<M> {
    pub(crate) fn new(place: Place, need: Need) -> Self {
        let zone = M::mm().zone(place);
        Self { zone, site: zone.site(), place, need, next: 0, end: 0 }
    }

    /// One page; `wanted` (at least 1) is how many more the caller will ask for, so that not much more is taken.
    #[inline(always)]
    pub(crate) fn take(&mut self, wanted: u32) -> Result<Frames<M>, OutOfMemory> {
        M::mm().inject.check(self.site, 0)?;
        if self.next == self.end {
            self.refill(wanted)?;
        }
        let frame = Frame::new(self.place, self.next);
        self.next += 1;
        Ok(Frames::own(frame, Order::BASE))
    }

    #[cold]
    fn refill(&mut self, wanted: u32) -> Result<(), OutOfMemory> {
        let step = Step::begin::<M>();
        let range = self.zone.alloc_run(wanted, self.need)?;
        let (order, first) =
            (Order::largest(0, range.end - range.start), Frame::new(self.place, range.start));
        step.end::<M>(Kind::Frames, true, Vaddr(0), order, self.place, first);
        if let Some(device) = self.place.device_number() {
            M::mm().device(device).allocated(Order::BASE, u64::from(range.end - range.start));
        }
        (self.next, self.end) = (range.start, range.end);
        Ok(())
    }
}

impl<M: Machine> Drop for FrameSource<M> {
    fn drop(&mut self) {
        if self.next != self.end {
            if let Some(device) = self.place.device_number() {
                M::mm().device(device).freed(self.end - self.next);
            }
            self.zone.free_run(self.next..self.end);
        }
    }
}

/// Collects chunks and gives neighbours back as one range.
pub(crate) struct FrameBin<M: Machine> {
    /// The range so far; frames of one place.
    start: Frame,
    end: Frame,
    machine: PhantomData<fn() -> M>,
}

impl<M: Machine> FrameBin<M> {
    pub(crate) const fn new() -> Self {
        Self { start: Frame::ram(0), end: Frame::ram(0), machine: PhantomData }
    }

    /// Takes a chunk, of `pages` pages, to be given back later, at the latest when the bin is dropped.
    #[inline(always)]
    pub(crate) fn add(&mut self, frames: Frames<M>, pages: u32) {
        debug_assert_eq!(frames.order().pages(), pages);
        let first = frames.first();
        core::mem::forget(frames);
        let after = first.offset(pages);
        if first == self.end {
            self.end = after;
        } else if after == self.start {
            self.start = first;
        } else {
            self.empty();
            (self.start, self.end) = (first, after);
        }
    }

    #[inline(never)]
    fn empty(&mut self) {
        let (place, start, end) = (self.start.place(), self.start.index(), self.end.index());
        if start != end {
            let mm = M::mm();
            if let Some(device) = place.device_number() {
                mm.device(device).freed(end - start);
            }
            mm.zone(place).free_run(start..end);
            self.start = self.end;
        }
    }
}

impl<M: Machine> Drop for FrameBin<M> {
    fn drop(&mut self) {
        self.empty();
    }
}
