//! Why a command was not done, each in one sentence that ends with a way out where there is one.

use alloc::string::{String, ToString};
use core::fmt;

use farpage_mm::{AuditError, FaultError, OutOfMemory, RangeError, Vaddr};

use super::counters::Plural;
use super::line::Lost;
use crate::vm::user::{UserFault, last_refusal};

/// Why a command was not done.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The line did not come whole.
    Line(Lost),
    /// An operation was refused.
    Range(RangeError),
    /// A touch failed, and why if the memory manager refused it.
    Fault(UserFault, Option<FaultError>),
    /// No memory for the work itself.
    Oom(OutOfMemory),
    /// An invariant does not hold.
    Audit(AuditError),
    /// Not a user address.
    NotUser(u64),
    /// Words that are not what was filled in.
    Words { first: Vaddr, found: Option<u64>, expected: u64, wrong: u64 },
    /// There is no such device.
    NoDevice { number: usize, there_are: usize },
    /// Something else.
    Said(String),
}

impl Refusal {
    pub(super) fn said(what: &(impl fmt::Display + ?Sized)) -> Self {
        Self::Said(what.to_string())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(lost) => write!(f, "{lost}"),
            Self::Range(error) => write!(f, "{error}{}", way_out_of_range(error)),
            Self::Fault(fault, Some(why)) => write!(f, "{fault}: {why}{}", way_out_of_fault(why)),
            Self::Fault(fault, None) => {
                write!(f, "{fault}: user addresses end at {:#x}", farpage_mm::USER_END)
            }
            Self::Oom(error) => write!(f, "{error}; unmap something first"),
            Self::Audit(error) => write!(f, "{error}"),
            Self::NotUser(addr) => {
                write!(f, "{addr:#x} is not a user address: those end at {:#x}", farpage_mm::USER_END)
            }
            Self::Words { first, found: Some(found), expected, wrong } => write!(
                f,
                "{wrong} words are wrong; the first is at {first}: {found:#x}, and {expected:#x} was filled in there"
            ),
            Self::Words { first, found: None, wrong, .. } => {
                write!(f, "{wrong} words are missing: nothing holds the one at {first}; fill writes them")
            }
            Self::NoDevice { number, there_are } => write!(
                f,
                "there is no dev{number}: the machine has {}; --device-count N gives it more",
                Plural(*there_are as u64, "device")
            ),
            Self::Said(what) => f.write_str(what),
        }
    }
}

fn way_out_of_range(error: &RangeError) -> &'static str {
    match error {
        // That sentence says where they end.
        RangeError::Invalid(range) if range.end.0 > farpage_mm::USER_END => "",
        RangeError::Invalid(_) => "; addresses and sizes are multiples of 4K here",
        RangeError::Exists(_) => "; unmap it first, or go elsewhere: spaces lists what is mapped",
        RangeError::NotMapped(_) => "; spaces lists what is mapped",
        RangeError::NoDevice(_) => "; dev lists the devices",
        RangeError::Oom(_) => "; unmap something first",
        _ => "",
    }
}

fn way_out_of_fault(error: &FaultError) -> &'static str {
    match error {
        FaultError::NoVma(_) => "; spaces lists what is mapped, map makes more",
        FaultError::Access(..) => "; protect changes that",
        FaultError::Oom(_) => "; unmap something first",
        _ => "",
    }
}

impl From<RangeError> for Refusal {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}
impl From<UserFault> for Refusal {
    fn from(fault: UserFault) -> Self {
        Self::Fault(fault, last_refusal())
    }
}
impl From<OutOfMemory> for Refusal {
    fn from(error: OutOfMemory) -> Self {
        Self::Oom(error)
    }
}
impl From<AuditError> for Refusal {
    fn from(error: AuditError) -> Self {
        Self::Audit(error)
    }
}
