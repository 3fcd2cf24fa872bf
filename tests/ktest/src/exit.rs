//! The numbers that end a run.
//!
//! The guest writes a code to QEMU's `isa-debug-exit` port and QEMU exits with `code << 1 | 1`. So
//! status 0 is never success: a triple fault under `-no-reboot` exits with 0, and must not look well.

use core::fmt;

/// How a guest ended its run on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done.
    Success = 0x10,
    /// The guest ran to its end and something was wrong: a failed test, a missing device, too little RAM.
    Failed = 0x11,
    /// A Rust panic.
    Panic = 0x12,
    /// A CPU exception that nothing handles.
    Fault = 0x13,
}

impl Exit {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Success, Self::Failed, Self::Panic, Self::Fault];

    /// What the guest writes to the exit port.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What QEMU exits with when the guest has written this code.
    #[must_use]
    pub const fn qemu_status(self) -> i32 {
        (self as i32) << 1 | 1
    }

    /// The end that QEMU's exit status stands for; `None` if the guest did not choose to end.
    #[must_use]
    pub fn from_qemu_status(status: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| exit.qemu_status() == status)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Success => "success",
            Self::Failed => "failure",
            Self::Panic => "panic",
            Self::Fault => "fatal fault",
        })
    }
}
