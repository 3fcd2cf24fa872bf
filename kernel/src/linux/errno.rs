//! Linux's error numbers, and what the memory manager's errors are as such.

use farpage_mm::{OutOfMemory, RangeError};

use super::image::BadProgram;
use crate::vm::user::UserFault;

/// An error number of the Linux ABI (`asm-generic/errno-base.h`, `errno.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(u16);

/// Declares the numbers.
macro_rules! errnos {
    ($($name:ident = $number:literal,)*) => {
        impl Errno {
            $(pub(super) const $name: Self = Self($number);)*
        }
    };
}

errnos! {
    EPERM = 1,
    ENOENT = 2,
    ESRCH = 3,
    EINTR = 4,
    EIO = 5,
    ENXIO = 6,
    E2BIG = 7,
    ENOEXEC = 8,
    EBADF = 9,
    ECHILD = 10,
    EAGAIN = 11,
    ENOMEM = 12,
    EACCES = 13,
    EFAULT = 14,
    EBUSY = 16,
    EEXIST = 17,
    EXDEV = 18,
    ENODEV = 19,
    ENOTDIR = 20,
    EISDIR = 21,
    EINVAL = 22,
    EMFILE = 24,
    ENOTTY = 25,
    EFBIG = 27,
    ENOSPC = 28,
    ESPIPE = 29,
    EPIPE = 32,
    ERANGE = 34,
    ENAMETOOLONG = 36,
    ENOSYS = 38,
    ENOTEMPTY = 39,
    ELOOP = 40,
    EOPNOTSUPP = 95,
    EOVERFLOW = 75,
    ETIMEDOUT = 110,
}

/// What a call answers that a signal has interrupted. No program sees it: before it goes on, the call begins again or fails with
/// EINTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interrupted {
    /// It begins again if no handler runs, or one that wants that (`SA_RESTART`).
    Restart,
    /// It begins again only if no handler runs.
    RestartWithoutHandler,
}

impl Interrupted {
    const RESTART: u16 = 512;
    const WITHOUT_HANDLER: u16 = 514;

    /// As RAX has it.
    pub(super) fn of_rax(rax: u64) -> Option<Self> {
        match rax.wrapping_neg() {
            n if n == u64::from(Self::RESTART) => Some(Self::Restart),
            n if n == u64::from(Self::WITHOUT_HANDLER) => Some(Self::RestartWithoutHandler),
            _ => None,
        }
    }
}

impl From<Interrupted> for Errno {
    fn from(interrupted: Interrupted) -> Self {
        Self(match interrupted {
            Interrupted::Restart => Interrupted::RESTART,
            Interrupted::RestartWithoutHandler => Interrupted::WITHOUT_HANDLER,
        })
    }
}

impl Errno {
    /// Is it an [`Interrupted`]?
    pub(super) fn is_interrupted(self) -> bool {
        Interrupted::of_rax(self.to_rax()).is_some()
    }

    /// What RAX says.
    pub(super) fn to_rax(self) -> u64 {
        u64::from(self.0).wrapping_neg()
    }
}

impl From<UserFault> for Errno {
    fn from(_: UserFault) -> Self {
        Self::EFAULT
    }
}

impl From<OutOfMemory> for Errno {
    fn from(_: OutOfMemory) -> Self {
        Self::ENOMEM
    }
}

impl From<BadProgram> for Errno {
    fn from(error: BadProgram) -> Self {
        match error {
            BadProgram::File(_) => Self::ENOEXEC,
            BadProgram::Range(_) | BadProgram::Memory(_) => Self::ENOMEM,
            BadProgram::Fault(_) => Self::EFAULT,
        }
    }
}

impl From<RangeError> for Errno {
    fn from(error: RangeError) -> Self {
        match error {
            RangeError::Exists(_) => Self::EEXIST,
            RangeError::NotMapped(_) | RangeError::Oom(_) => Self::ENOMEM,
            RangeError::Busy(_) => Self::EAGAIN,
            RangeError::NoDevice(_) => Self::ENODEV,
            RangeError::Access(_) => Self::EACCES,
            _ => Self::EINVAL,
        }
    }
}
