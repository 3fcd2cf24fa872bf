//! A record: what happened, where, and when its phases ended. 64 bytes.

use crate::trace::{Kind, Outcome, Phase};
use crate::types::{Frame, Order, Place, Vaddr};

/// The ticks of phases: their low 32 bits, 0 for a phase that was not gone through.
pub(super) type Ticks = [u32; Phase::COUNT];
pub(super) const NO_TICKS: Ticks = [0; Phase::COUNT];

/// What a record is about, in eight bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(super) struct What {
    number: u32,
    /// The kind in the low half, where it lies now in the high one.
    kind_to: u8,
    pub(super) outcome: Outcome,
    /// The order in the low half, where it came from in the high one.
    pub(super) order_from: u8,
    spare: u8,
}

const _: () = assert!(Kind::COUNT <= 16);

impl What {
    pub(super) const NONE: Self =
        Self { number: 0, kind_to: Kind::Fault as u8, outcome: Outcome::Done, order_from: 0, spare: 0 };

    #[inline(always)]
    pub(super) const fn new(kind: Kind, outcome: Outcome, order: Order, from: Place, to: Frame) -> Self {
        Self {
            number: to.index(),
            kind_to: kind as u8 | to.place().raw() << 4,
            outcome,
            order_from: order.get() | from.raw() << 4,
            spare: 0,
        }
    }
}

/// One thing that happened. 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Record {
    /// When it began, in ticks of [`Machine::now`].
    pub start: u64,
    /// The address that was touched or that the page is mapped at; 0 where there is none.
    pub addr: Vaddr,
    pub(super) at: Ticks,
    pub(super) thread: u64,
    pub(super) what: What,
}

const _: () = assert!(size_of::<Record>() == 64);

impl Record {
    /// One that tells of nothing, to fill a ring with.
    pub const EMPTY: Self = Self { start: 0, addr: Vaddr(0), at: NO_TICKS, thread: 0, what: What::NONE };

    /// What it is about.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        Kind::ALL[(self.what.kind_to & 15) as usize]
    }
    /// How it ended.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        self.what.outcome
    }
    /// How large the page is.
    #[must_use]
    pub const fn order(&self) -> Order {
        Order::from_bits(self.what.order_from as u32)
    }
    /// Where the page was.
    #[must_use]
    pub const fn from(&self) -> Place {
        Place::from_raw(self.what.order_from >> 4)
    }
    /// Where it is now.
    #[must_use]
    pub const fn to(&self) -> Place {
        Place::from_raw(self.what.kind_to >> 4)
    }
    /// The number of its first frame there, or what else the kind counts.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.what.number
    }
    /// The folio's first frame now, where the kind has one.
    #[must_use]
    pub const fn frame(&self) -> Option<Frame> {
        if self.kind().has_frame() { Some(Frame::new(self.to(), self.number())) } else { None }
    }
    /// The number of the thread that did it, which the machine gave it.
    #[must_use]
    pub const fn thread(&self) -> u64 {
        self.thread
    }
    /// The same, done by the thread of this number.
    #[must_use]
    #[inline(always)]
    pub const fn by(mut self, thread: u64) -> Self {
        self.thread = thread;
        self
    }
    /// When it ended.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.tick(Phase::Finalize)
    }
    /// How many ticks after the beginning each phase ended, in order; 0 for one that was not gone through. A fault of more than
    /// 2^32 ticks is beyond this.
    #[must_use]
    pub const fn ends(&self) -> [u32; Phase::COUNT] {
        let mut ends = self.at;
        let mut n = 0;
        while n < Phase::COUNT {
            if ends[n] != 0 {
                ends[n] = ends[n].wrapping_sub(self.start as u32);
            }
            n += 1;
        }
        ends
    }
    /// The phases that were gone through, in order, each with its beginning and its end.
    pub fn phases(&self) -> impl Iterator<Item = (Phase, u64, u64)> {
        let mut begin = self.start;
        let gone = self.gone_through();
        Phase::ALL.iter().copied().filter(move |phase| gone & 1 << *phase as u32 != 0).map(move |phase| {
            let end = self.tick(phase);
            (phase, core::mem::replace(&mut begin, end), end)
        })
    }

    fn gone_through(&self) -> u32 {
        self.at.iter().enumerate().fold(0, |set, (n, at)| set | u32::from(*at != 0) << n)
    }

    const fn tick(&self, phase: Phase) -> u64 {
        let after = self.at[phase as usize].wrapping_sub(self.start as u32);
        self.start + after as u64
    }
}
