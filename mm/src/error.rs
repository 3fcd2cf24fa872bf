//! Errors: facts with addresses in them.

use core::fmt;

use crate::types::{Access, USER_END, VaRange, Vaddr};

/// No memory for an allocation of `order`. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfMemory {
    /// The order asked for.
    pub order: u8,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "out of memory for an allocation of order {}", self.order)
    }
}

/// Why a fault could not be resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultError {
    /// No VMA covers the address (SIGSEGV, `SEGV_MAPERR`).
    NoVma(Vaddr),
    /// The VMA forbids the access (SIGSEGV, `SEGV_ACCERR`).
    Access(Vaddr, Access),
    /// Out of memory; the task that faulted has to go.
    Oom(Vaddr),
    /// The space's group holds as many pages as it may, which is the number; the task that faulted has to go.
    Limit(Vaddr, u64),
    /// The device that holds the page could not give it back (SIGBUS).
    Device(Vaddr),
    /// The page lies on a device and cannot come: somebody has held a reference to it for longer than a fault looks again
    /// (SIGBUS).
    Held(Vaddr),
    /// The object or device file that is mapped has no page there (SIGBUS).
    NoPage(Vaddr),
    /// A reserved bit was set in a present entry: the page table is corrupt.
    Reserved(Vaddr),
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoVma(a) => write!(f, "no mapping at {a}"),
            Self::Access(a, access) => write!(f, "mapping at {a} does not allow {access:?}"),
            Self::Oom(a) => write!(f, "out of memory at {a}"),
            Self::Limit(a, pages) => write!(f, "no page at {a}: its group has all of its {pages} pages"),
            Self::Device(a) => write!(f, "device could not return the page at {a}"),
            Self::Held(a) => write!(f, "the device page at {a} is held by somebody"),
            Self::NoPage(a) => write!(f, "what is mapped at {a} has no page there"),
            Self::Reserved(a) => write!(f, "reserved bit set in the entry for {a}"),
        }
    }
}

/// Why an operation on a range of an address space could not be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeError {
    /// Not page aligned, empty, wrapping, or outside the user half (EINVAL).
    Invalid(VaRange),
    /// Overlaps a mapping (EEXIST).
    Exists(VaRange),
    /// Part of the range is not mapped (ENOMEM, as mprotect and madvise report it).
    NotMapped(Vaddr),
    /// A mapping of the range cannot be migrated (EINVAL).
    NotMigratable(Vaddr),
    /// The mapping at this address may never allow that (EACCES).
    Access(Vaddr),
    /// No device is registered under this number (ENODEV).
    NoDevice(usize),
    /// Memory that begins at this frame number cannot be taken: not aligned, too high, or somebody's already (EINVAL).
    Frames(u32),
    /// The map of device `.0` has room for `.1` pages: it is the one that the number was first registered with (ENOSPC).
    NoRoom(usize, u32),
    /// Device `.0` has had as many owners as it can (EUSERS).
    Owners(usize),
    /// Out of memory; what was changed before is said by the operation (ENOMEM).
    Oom(Vaddr),
    /// The folio at this address is locked or pinned (EAGAIN).
    Busy(Vaddr),
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Invalid(r) if r.end.0 > USER_END => {
                write!(f, "{r} is not all user addresses, which end at {USER_END:#x}")
            }
            Self::Invalid(r) => write!(f, "{r} is not a page-aligned range of user addresses"),
            Self::Exists(r) => write!(f, "{r} overlaps an existing mapping"),
            Self::NotMapped(a) => write!(f, "nothing is mapped at {a}"),
            Self::NotMigratable(a) => write!(f, "the mapping at {a} cannot be migrated"),
            Self::Access(a) => write!(f, "the mapping at {a} may not be made writable"),
            Self::NoDevice(n) => write!(f, "no device {n}"),
            Self::Frames(pfn) => {
                write!(f, "device memory from frame {pfn:#x} on is unaligned, too high or taken")
            }
            Self::NoRoom(n, pages) => write!(f, "the frame map of device {n} has room for {pages} pages"),
            Self::Owners(n) => write!(f, "device {n} has had too many owners"),
            Self::Oom(a) => write!(f, "out of memory at {a}"),
            Self::Busy(a) => write!(f, "the page at {a} is busy"),
        }
    }
}
