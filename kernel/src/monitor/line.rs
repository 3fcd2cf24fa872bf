//! Lines from the serial port, of bounded length. What does not fit or was lost is told, and the rest of such a line is no command.

use core::fmt;

use ktest::monitor::LINE_MAX;

use crate::arch::x86_64::serial::{self, Received};

/// Why a line is not obeyed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lost {
    /// It is too long.
    TooLong { bytes: usize },
    /// The port lost bytes of it.
    Overrun,
    /// It is not text.
    NotText,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { bytes } => {
                write!(
                    f,
                    "the line has {bytes} bytes and {LINE_MAX} fit; it was not obeyed: send it in parts"
                )
            }
            Self::Overrun => {
                f.write_str("the serial port lost bytes of the line; it was not obeyed: send it again")
            }
            Self::NotText => f.write_str("the line is not UTF-8; it was not obeyed"),
        }
    }
}

/// The line that is read.
pub(super) struct Line {
    bytes: [u8; LINE_MAX],
}

impl Line {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; LINE_MAX] }
    }

    /// Sleeps until a whole line has come.
    pub(super) fn read(&mut self) -> Result<&str, Lost> {
        let (mut len, mut overrun) = (0, false);
        loop {
            let Received { byte, after_loss } = serial::receive();
            overrun |= after_loss;
            match byte {
                b'\n' => break,
                b'\r' => {}
                _ => {
                    if let Some(place) = self.bytes.get_mut(len) {
                        *place = byte;
                    }
                    len += 1;
                }
            }
        }
        if overrun {
            return Err(Lost::Overrun);
        }
        let bytes = self.bytes.get(..len).ok_or(Lost::TooLong { bytes: len })?;
        core::str::from_utf8(bytes).map_err(|_| Lost::NotText)
    }
}
