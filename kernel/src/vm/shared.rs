//! An address space that is loaded and owned at once: for lists of actions, which switch between several and end any.

use alloc::rc::Rc;

use farpage_mm::{AddressSpace, Space};

use super::{Active, Machine, activate};

/// The address space is loaded while this lives, and lives as long.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Before the space in the order of fields, so that it is dropped first.
    _active: Active<'static>,
    space: Rc<AddressSpace<Machine>>,
}

impl Loaded {
    /// True when it is this one.
    pub(crate) fn is(&self, space: &Space<Machine>) -> bool {
        self.space.space() == space
    }
}

/// Loads an address space.
///
/// # Panics
/// When one is loaded already.
pub(crate) fn load(space: &Rc<AddressSpace<Machine>>) -> Loaded {
    let space = Rc::clone(space);
    // SAFETY: it points into the memory that `space` keeps alive, and the guard that borrows it is gone before `space`.
    let borrowed: &'static AddressSpace<Machine> = unsafe { &*Rc::as_ptr(&space) };
    Loaded { _active: activate(borrowed), space }
}
