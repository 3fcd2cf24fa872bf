//! Marks of a batch and its units, which go with it; and single steps.

use crate::machine::Machine;
use crate::trace::record::{NO_TICKS, Ticks, What};
use crate::trace::{Kind, Outcome, Phase, Record, Tracing};
use crate::types::{Frame, Order, Place, Vaddr};

/// The marks of a batch. They go with it, also to another thread.
pub(crate) struct Marks {
    traced: bool,
    start: u64,
    at: Ticks,
}

impl Marks {
    pub(crate) const NONE: Self = Self { traced: false, start: 0, at: NO_TICKS };

    /// Is the batch recorded?
    #[inline(always)]
    pub(crate) const fn is_traced(&self) -> bool {
        self.traced
    }

    /// A batch begins; whether it is recorded is decided now.
    #[inline(always)]
    pub(crate) fn begin<M: Machine>(&mut self) {
        self.traced = false;
        if M::tracing() != Tracing::Off {
            self.begin_traced(M::now());
        }
    }

    #[cold]
    #[inline(never)]
    fn begin_traced(&mut self, now: u64) {
        *self = Self { traced: true, start: now, at: NO_TICKS };
    }

    /// A phase of the batch ends.
    #[inline(always)]
    pub(crate) fn mark<M: Machine>(&mut self, phase: Phase) {
        if self.traced {
            self.mark_traced::<M>(phase);
        }
    }

    #[cold]
    #[inline(never)]
    fn mark_traced<M: Machine>(&mut self, phase: Phase) {
        self.at[phase as usize] = M::now() as u32;
    }

    /// Everything is copied, which took engines so many ticks; allocations alternate with that, and all of them count as the
    /// first part.
    #[cold]
    pub(crate) fn copied<M: Machine>(&mut self, copying: u32) {
        self.mark_traced::<M>(Phase::Alloc);
        if copying != 0 {
            let now = self.at[Phase::Alloc as usize];
            self.at[Phase::Copy as usize] = now;
            self.at[Phase::Alloc as usize] = now.wrapping_sub(copying);
        }
    }

    /// A unit was taken just now; when that was, 0 if nobody wants to know.
    #[inline(always)]
    pub(crate) fn unit_taken<M: Machine>(&self) -> u32 {
        if self.traced { M::now() as u32 } else { 0 }
    }

    /// The batch ends. One that a fault of this thread began gives it its marks; any other is recorded.
    #[cold]
    #[inline(never)]
    pub(crate) fn end<M: Machine>(&mut self, outcome: Outcome, batch: &BatchFacts) {
        let now = M::now();
        self.traced = false;
        if batch.fault != Vaddr(0) {
            let open = M::open();
            let mut record = open.0.get();
            if record.addr == batch.fault {
                for (to, mark) in record.at.iter_mut().zip(self.at).skip(Phase::Unmap as usize) {
                    *to = mark;
                }
                open.0.set(record);
                open.about(Outcome::Returned, batch.order, batch.from, batch.first);
            }
            return;
        }
        let to = Frame::new(batch.to, batch.units);
        let what = What::new(Kind::Batch, outcome, batch.order, batch.from, to);
        let mut record = Record { start: self.start, addr: batch.addr, at: self.at, what, ..Record::EMPTY };
        record.at[Phase::Finalize as usize] = now as u32;
        M::record(record);
    }

    /// A unit has arrived. Its record begins when it was taken: from there on nobody could reach the page. The phases that it
    /// shares with its batch end when those of the batch do.
    #[inline(always)]
    pub(crate) fn unit_arrived<M: Machine>(&self, unit: &UnitFacts, outcome: Outcome) {
        let now = M::now();
        let what = What::new(Kind::Unit, outcome, unit.order, unit.from, unit.to);
        let start = now - u64::from((now as u32).wrapping_sub(unit.taken));
        let mut record = Record { start, addr: unit.addr, at: self.at, what, ..Record::EMPTY };
        record.at[Phase::Collect as usize] = 0;
        record.at[Phase::Finalize as usize] = now as u32;
        M::record(record);
    }
}

/// A unit that was taken in a batch that is recorded stays where it was.
#[cold]
pub(crate) fn unit_stayed<M: Machine>(unit: &UnitFacts, outcome: Outcome) {
    if M::tracing() != Tracing::Off && unit.taken != 0 {
        Marks::NONE.unit_arrived::<M>(unit, outcome);
    }
}

/// What is to be said of a batch.
pub(crate) struct BatchFacts {
    pub(crate) fault: Vaddr,
    pub(crate) addr: Vaddr,
    pub(crate) order: Order,
    pub(crate) from: Place,
    pub(crate) to: Place,
    /// Where the folio of the first unit lies now.
    pub(crate) first: Frame,
    pub(crate) units: u32,
}

/// What is to be said of a unit.
pub(crate) struct UnitFacts {
    /// When it was taken, the low half.
    pub(crate) taken: u32,
    pub(crate) addr: Vaddr,
    pub(crate) order: Order,
    pub(crate) from: Place,
    pub(crate) to: Frame,
}

/// A single step, recorded at level 2 only. It lies within one phase of whatever it is a part of.
#[must_use = "a step is recorded when it ends"]
pub(crate) struct Step(u64);

impl Step {
    #[inline(always)]
    pub(crate) fn begin<M: Machine>() -> Self {
        if M::tracing() == Tracing::Steps { Self(M::now()) } else { Self(0) }
    }

    /// One that began at a time that was noted anyway.
    #[cold]
    pub(crate) fn since<M: Machine>(began: u64) -> Self {
        if M::tracing() == Tracing::Steps { Self(began) } else { Self(0) }
    }

    /// Is it recorded?
    #[inline(always)]
    pub(crate) const fn is_taken(&self) -> bool {
        self.0 != 0
    }

    /// The step ends. `to` is a frame, or the number that the kind counts and a place.
    #[inline(always)]
    pub(crate) fn end<M: Machine>(
        self,
        kind: Kind,
        done: bool,
        addr: Vaddr,
        order: Order,
        from: Place,
        to: Frame,
    ) {
        if self.0 != 0 {
            self.end_traced::<M>(What::new(kind, Outcome::of(done), order, from, to), addr);
        }
    }

    #[cold]
    #[inline(never)]
    fn end_traced<M: Machine>(self, what: What, addr: Vaddr) {
        let mut at = NO_TICKS;
        at[Phase::Finalize as usize] = M::now() as u32;
        M::record(Record { start: self.0, addr, at, what, ..Record::EMPTY });
    }
}
