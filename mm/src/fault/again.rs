//! Faults that are not done at the first look: those that have to sleep, look again, or look for memory.

use crate::counters::Event;
use crate::error::FaultError;
use crate::fault::{FaultInfo, FaultOutcome, Step, refused};
use crate::folio::Folio;
use crate::machine::Machine;
use crate::space::Space;
use crate::trace::{Kind, Open, Step as Recorded};
use crate::types::Place;

/// How often a fault looks again at a page that somebody holds.
const HELD_LOOKS: u32 = 256;

impl<M: Machine> Space<M> {
    /// After a first look that resolved nothing yet.
    #[cold]
    #[inline(never)]
    pub(super) fn fault_later<const TRACED: bool>(
        &'static self,
        fault: &FaultInfo,
        step: Step,
    ) -> Result<FaultOutcome, FaultError> {
        let result = self.until_done::<TRACED>(fault, step);
        if TRACED {
            Open::end::<M>(&result);
        }
        result
    }

    fn until_done<const TRACED: bool>(
        &'static self,
        fault: &FaultInfo,
        mut step: Step,
    ) -> Result<FaultOutcome, FaultError> {
        loop {
            match step {
                Step::Done(outcome) => return Ok(outcome),
                Step::Again => {}
                Step::Sleep(folio) => sleep_on::<M>(fault, folio),
            }
            step = match self.resolve_later::<TRACED>(fault) {
                Ok(step) => step,
                Err(error) => return self.until_refused::<TRACED>(fault, error),
            };
        }
    }

    /// [`Space::resolve`], out of line.
    #[cold]
    #[inline(never)]
    fn resolve_later<const TRACED: bool>(&'static self, fault: &FaultInfo) -> Result<Step, FaultError> {
        if TRACED {
            M::open().again(M::now());
        }
        self.resolve::<TRACED>(fault)
    }

    /// An error, unless it is only that somebody holds the page for a moment: a look-up without locks, say. Nobody tells when
    /// a reference goes, so this looks again, with no lock held in between. Without memory it looks again for as long as some
    /// is found that nobody uses. A look that only says to look again is no error, whatever the one before said.
    #[cold]
    #[inline(never)]
    pub(super) fn fault_again<const TRACED: bool>(
        &'static self,
        fault: &FaultInfo,
        first: FaultError,
    ) -> Result<FaultOutcome, FaultError> {
        let result = self.until_refused::<TRACED>(fault, first);
        if TRACED {
            Open::end::<M>(&result);
        }
        result
    }

    #[inline(never)]
    fn until_refused<const TRACED: bool>(
        &'static self,
        fault: &FaultInfo,
        first: FaultError,
    ) -> Result<FaultOutcome, FaultError> {
        let (mut looks, mut error) = (0, Some(first));
        loop {
            match error {
                None => {}
                Some(FaultError::Held(_)) if looks < HELD_LOOKS => {
                    looks += 1;
                    M::relax();
                }
                Some(FaultError::Oom(_)) if M::mm().relieve(Place::RAM) => {}
                Some(error) => return Err(refused::<M>(error)),
            }
            error = match self.resolve_later::<TRACED>(fault) {
                Ok(Step::Done(outcome)) => return Ok(outcome),
                Ok(Step::Again) => None,
                Ok(Step::Sleep(folio)) => {
                    sleep_on::<M>(fault, folio);
                    None
                }
                Err(next) => Some(next),
            };
        }
    }
}

/// Sleeps until the folio is free.
fn sleep_on<M: Machine>(fault: &FaultInfo, folio: &Folio) {
    M::count(Event::FaultWait, 1);
    let (step, order, frame) = (Recorded::begin::<M>(), folio.order(), folio.frame());
    folio.wait_unlocked::<M>();
    step.end::<M>(Kind::Sleep, true, fault.addr, order, frame.place(), frame);
}
