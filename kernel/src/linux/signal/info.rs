//! What a handler is told of its signal (`siginfo_t`).

use core::fmt;

use crate::linux::process::End;

/// Why a signal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Info {
    pub(in crate::linux) signal: u8,
    pub(in crate::linux) code: i32,
    about: About,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// Who sent it.
    Sender { pid: u32 },
    /// What could not be done.
    Fault { addr: u64 },
    /// How a child ended.
    Child { pid: u32, status: u32 },
}

impl Info {
    /// Sent by `kill` (code 0) or `tgkill` (code -6).
    pub(in crate::linux) fn of_sender(signal: u8, code: i32, pid: u32) -> Self {
        Self { signal, code, about: About::Sender { pid } }
    }

    /// Sent by the kernel (`SI_KERNEL`).
    pub(in crate::linux) fn of_kernel(signal: u8) -> Self {
        Self { signal, code: 0x80, about: About::Sender { pid: 0 } }
    }

    /// Brought by the thread's own access or instruction.
    pub(in crate::linux) fn of_fault(signal: u8, code: i32, addr: u64) -> Self {
        Self { signal, code, about: About::Fault { addr } }
    }

    /// A child has ended.
    pub(in crate::linux) fn of_child(signal: u8, pid: u32, how: End) -> Self {
        let (code, status) = match how {
            End::Exited(status) => (1, u32::from(status)), // CLD_EXITED
            End::Killed(signal) => (2, u32::from(signal)), // CLD_KILLED
        };
        Self { signal, code, about: About::Child { pid, status } }
    }

    /// Is it about an access or instruction of the thread itself?
    pub(super) fn is_of_fault(&self) -> bool {
        matches!(self.about, About::Fault { .. })
    }

    /// As programs get it.
    pub(in crate::linux) fn bytes(&self) -> [u8; 128] {
        let mut bytes = [0; 128];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &u32::from(self.signal).to_le_bytes());
        put(8, &self.code.to_le_bytes());
        match self.about {
            About::Sender { pid } => put(16, &pid.to_le_bytes()),
            About::Fault { addr } => put(16, &addr.to_le_bytes()),
            About::Child { pid, status } => {
                put(16, &pid.to_le_bytes());
                put(24, &status.to_le_bytes());
            }
        }
        bytes
    }
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "signal {}", self.signal)?;
        match self.about {
            About::Sender { pid } => write!(f, " from process {pid}"),
            About::Fault { addr } => write!(f, " (code {}) at {addr:#x}", self.code),
            About::Child { pid, .. } => write!(f, " of child {pid}"),
        }
    }
}
