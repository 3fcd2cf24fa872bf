//! What an action list needs of the place where it runs.

use alloc::rc::Rc;
use alloc::string::String;
use core::cell::RefCell;

use crate::device::StillInUse;
use crate::error::{FaultError, OutOfMemory};
use crate::exercise::actions::Step;
use crate::exercise::model::{Model, WORDS};
use crate::machine::Machine;
use crate::space::{AddressSpace, Space};
use crate::types::{VaRange, Vaddr};

/// A place where action lists run. One list at a time; spaces have the runner's numbers.
pub trait World {
    /// The machine below it.
    type Machine: Machine;
    /// Steps between two audits with a look at every page: as many as the place can pay for.
    const BATCH: usize;
    /// Which words of a page are looked at.
    const AT: [usize; WORDS];

    /// CPUs that programs run on.
    fn cpus(&self) -> usize;
    /// Devices, numbered from 0.
    fn devices(&self) -> usize;
    /// The model: here, because programs of other CPUs may change it at any time.
    fn model(&self) -> &RefCell<Model>;

    /// Notes that something is wrong; the first note counts.
    fn fail(&self, what: impl FnOnce() -> String);
    /// The first note.
    fn failure(&self) -> Option<String>;

    /// A step begins; all chance in it comes from its seed.
    fn begin(&self, step: &Step);
    /// A step has ended: nothing may be half done or held. Notes what is.
    fn rest(&self);

    /// A new address space.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn new_space(&self) -> Result<AddressSpace<Self::Machine>, OutOfMemory>;
    /// A clone of an address space.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn clone_space(
        &self,
        of: &AddressSpace<Self::Machine>,
    ) -> Result<AddressSpace<Self::Machine>, OutOfMemory>;
    /// The number of the space that a CPU has loaded.
    fn loaded(&self, cpu: usize) -> Option<usize>;
    /// A CPU loads space `n`, and leaves the one before.
    fn load(&self, cpu: usize, n: usize, space: &Rc<AddressSpace<Self::Machine>>);
    /// A CPU leaves its space.
    fn unload(&self, cpu: usize);

    /// A program on `cpu`, where `space` is loaded, reads or writes a sampled word of a page; faults are handled on the way.
    /// What it read, or wrote.
    ///
    /// # Errors
    /// The fault that could not be handled.
    fn access(
        &self,
        cpu: usize,
        space: &'static Space<Self::Machine>,
        page: Vaddr,
        word: usize,
        value: Option<u64>,
    ) -> Result<u64, FaultError>;
    /// After `skip` copies of the engines, `times` fail.
    fn fail_copies(&self, skip: u64, times: u64);
    /// `n` disturbances, where there is somebody to disturb.
    fn disturb(&self, n: u8);
    /// Takes device `n` out, and registers it again. `None` where that cannot be done.
    fn replug(&self, _n: usize) -> Option<Result<(), StillInUse>> {
        None
    }
    /// A range was just unmapped: notes whoever can still reach it.
    fn unmapped(&self, space: &'static Space<Self::Machine>, range: VaRange);
    /// These pages are lent to a device: no CPU may reach them, if there is a way to look without taking them back.
    fn lent(&self, _space: &'static Space<Self::Machine>, _range: VaRange) {}
}
