//! The record that a thread fills while it handles a fault.

use core::cell::Cell;

use crate::error::FaultError;
use crate::fault::FaultOutcome;
use crate::folio::Folio;
use crate::machine::Machine;
use crate::trace::record::What;
use crate::trace::{Kind, Outcome, Phase, Record, Tracing};
use crate::types::{Frame, Order, Place, Vaddr};

/// The record that a thread is filling. It is the thread's own, wherever it runs: not `Sync`, so that a reference to it stays
/// with the thread that asked.
///
/// All zero is one that nobody fills, so a machine may make it of zeroed words.
#[derive(Debug)]
#[repr(transparent)]
pub struct Open(pub(super) Cell<Record>);

impl From<Record> for Open {
    fn from(record: Record) -> Self {
        Self(Cell::new(record))
    }
}

impl Default for Open {
    fn default() -> Self {
        Self::new()
    }
}

impl Open {
    /// Where in it the low half of the tick of the first phase stands; 32 bits for each.
    pub const TICKS_OFFSET: usize = core::mem::offset_of!(Record, at);

    /// One that nobody fills.
    #[must_use]
    pub const fn new() -> Self {
        Self(Cell::new(Record::EMPTY))
    }

    /// A phase ends now.
    #[inline(always)]
    pub fn mark(&self, phase: usize, now: u64) {
        let mut record = self.0.get();
        record.at[phase] = now as u32;
        self.0.set(record);
    }

    /// A fault on `addr` begins.
    #[inline(always)]
    pub(crate) fn begin(&self, addr: Vaddr, now: u64) {
        let thread = self.0.get().thread;
        self.0.set(Record { start: now, addr, thread, ..Record::EMPTY });
    }

    /// What was done so far came to nothing: `now` is the end of waiting.
    #[cold]
    pub(crate) fn again(&self, now: u64) {
        let Record { start, addr, .. } = self.0.get();
        self.begin(addr, start);
        self.mark(Phase::Wait as usize, now);
    }

    /// The page is of `order`, was at `from`, and is `to` now.
    #[inline(always)]
    pub(crate) fn about(&self, outcome: Outcome, order: Order, from: Place, to: Frame) {
        self.0.set(Record { what: What::new(Kind::Fault, outcome, order, from, to), ..self.0.get() });
    }

    /// Where the record is.
    #[must_use]
    #[inline(always)]
    pub const fn as_ptr(&self) -> *const Record {
        self.0.as_ptr()
    }

    /// As it stands.
    #[must_use]
    #[inline(always)]
    pub const fn get(&self) -> Record {
        self.0.get()
    }

    /// Says whose it is. It is the machine's to say, once for each thread.
    pub fn set_thread(&self, thread: u64) {
        self.0.set(self.0.get().by(thread));
    }

    /// The fault is resolved.
    #[inline(always)]
    pub(crate) fn end_resolved<M: Machine>(outcome: FaultOutcome) {
        if outcome != FaultOutcome::Returned {
            M::open().end_otherwise(&Ok(outcome));
        }
        M::record_open();
    }

    /// The fault is resolved or refused, and not at the first look.
    #[cold]
    #[inline(never)]
    pub(crate) fn end<M: Machine>(result: &Result<FaultOutcome, FaultError>) {
        M::open().end_otherwise(result);
        M::record_open();
    }

    /// Not as the commonest, of which [`Open::about`] has told all.
    #[inline(never)]
    fn end_otherwise(&self, result: &Result<FaultOutcome, FaultError>) {
        let mut record = self.0.get();
        record.what.outcome = Outcome::of_fault(result);
        if let Ok(FaultOutcome::ZeroPage(order)) = result {
            record.what.order_from = order.get();
        }
        self.0.set(record);
    }
}

/// A phase of the running thread's fault ends.
#[inline(always)]
pub(crate) fn mark<M: Machine, const TRACED: bool>(phase: Phase) {
    if TRACED {
        M::mark(phase);
    }
}

/// A fault has its page, with its contents, which were at `from`.
#[inline(always)]
pub(crate) fn copied_if_traced<M: Machine>(from: Place, page: &Folio) {
    if M::tracing() != Tracing::Off {
        mark::<M, true>(Phase::Copy);
        M::open().about(Outcome::Done, page.order(), from, page.frame());
    }
}
