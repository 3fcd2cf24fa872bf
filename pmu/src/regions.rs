//! Counting in regions: only what lies between a beginning and an end, again and again.

use crate::count::Counts;
use crate::registers::{Refused, Registers};
use crate::scope::Scope;

/// A scope that counts in regions only. Events that do not fit together take turns from region to region.
#[derive(Debug)]
pub struct Regions<'a, R: Registers> {
    scope: Scope<'a, R>,
    ended: u64,
    refused: Option<Refused>,
}

/// What was counted in regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// How many regions there were.
    pub regions: u64,
    /// The counts of all of them together.
    pub counts: Counts,
}

impl<'a, R: Registers> Regions<'a, R> {
    /// Takes a scope, and forgets what it has counted so far: nothing is counted until a region begins.
    ///
    /// # Errors
    /// The CPU refuses a register.
    pub fn new(mut scope: Scope<'a, R>) -> Result<Self, Refused> {
        scope.pause()?;
        scope.forget()?;
        Ok(Self { scope, ended: 0, refused: None })
    }

    /// A region begins. What the CPU refuses is said by [`Regions::read`].
    pub fn begin(&mut self) {
        let done = self.scope.resume();
        self.note(done);
    }

    /// It ends.
    pub fn end(&mut self) {
        let done = self.scope.pause().and_then(|()| self.scope.rotate());
        self.note(done);
        self.ended += 1;
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// The first register that the CPU refused, now or before.
    pub fn read(&mut self) -> Result<Measured, Refused> {
        match self.refused {
            Some(refused) => Err(refused),
            None => Ok(Measured { regions: self.ended, counts: self.scope.read()? }),
        }
    }

    fn note(&mut self, done: Result<(), Refused>) {
        self.refused = self.refused.or(done.err());
    }
}
