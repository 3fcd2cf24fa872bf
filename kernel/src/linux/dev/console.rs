//! The console: descriptors 0, 1 and 2 of the first program, and `/dev/tty`. Bytes pass unchanged both ways. It says that it is no
//! terminal (ENOTTY), so that a program's output is the same as into a pipe.
//!
//! What is typed waits in the serial port, and beyond its queue with the sender, until a program reads it. A byte of its own ends
//! it: where that byte is meant itself, another one stands before it. What comes before the beginning is filler, for the port to
//! lose while it is set up.

use alloc::sync::Arc;

use crate::arch::x86_64::serial;
use crate::linux::errno::Errno;
use crate::linux::file::{File, OpenFile, Stat, UserRange, open, poll};
use crate::linux::fs::copy::{self, CHUNK, write_by};
use crate::linux::process::Process;
use crate::linux::sleep;
use crate::task::{self, Mutex};
use crate::{boot, console};

/// The input begins after this.
const BEGIN: u8 = 2;
/// The input ends here.
const END: u8 = 4;
/// The next byte is meant as it is.
const ESCAPE: u8 = 16;

struct Console(Stat);

pub(super) fn open(_process: &Process, stat: Stat) -> Result<Arc<dyn File>, Errno> {
    Ok(Arc::new(Console(stat)))
}

/// The opening that the first program finds as 0, 1 and 2.
pub(in crate::linux) fn standard() -> Arc<OpenFile> {
    let stat = super::DEVICES.iter().find(|device| device.name == "console").map(super::Device::stat);
    OpenFile::new(Arc::new(Console(stat.unwrap_or_default())), open::RDWR, "/dev/console")
}

/// How far the input is.
struct Input {
    begun: bool,
    escaped: bool,
    ended: bool,
}

static INPUT: Mutex<Input> = Mutex::new(Input { begun: false, escaped: false, ended: false });

impl Input {
    /// Takes what has come, up to `to.len()` bytes; `None` when nothing has, and more may come.
    fn take(&mut self, to: &mut [u8]) -> Option<usize> {
        let mut len = 0;
        while len < to.len() && !self.ended {
            let Some(byte) = serial::take_byte() else { break };
            match byte {
                _ if !self.begun => self.begun = byte == BEGIN,
                END if !self.escaped => self.ended = true,
                ESCAPE if !self.escaped => self.escaped = true,
                byte => {
                    self.escaped = false;
                    to[len] = byte;
                    len += 1;
                }
            }
        }
        (len != 0 || self.ended).then_some(len)
    }

    /// Has the interrupt of the next byte tell who sleeps, and the scheduler that it may come.
    fn expect(&self) {
        serial::expect_byte();
        task::expect_input(!self.ended);
    }
}

impl File for Console {
    fn stat(&self) -> Stat {
        self.0
    }

    fn read(&self, _at: u64, to: UserRange) -> Result<u64, Errno> {
        if !boot().command.stdin || to.len == 0 {
            return Ok(0);
        }
        let mut buffer = alloc::vec![0; to.len.min(CHUNK) as usize];
        let came = sleep::until(&serial::BYTE_CAME, || {
            let mut input = INPUT.lock();
            let came = input.take(&mut buffer);
            match came {
                Some(_) => task::expect_input(false),
                None => input.expect(),
            }
            Ok(came)
        })?;
        if copy::put(to.addr, &buffer[..came]) < came {
            return Err(Errno::EFAULT);
        }
        Ok(came as u64)
    }

    fn write(&self, _at: Option<u64>, from: UserRange) -> Result<u64, Errno> {
        write_by(from, |_, bytes| {
            console::with(|out| out.write_bytes(bytes));
            Ok(bytes.len())
        })
    }

    fn ready(&self) -> u16 {
        let input = INPUT.lock();
        if !boot().command.stdin || input.ended || serial::has_byte() {
            return poll::IN | poll::OUT;
        }
        input.expect();
        poll::OUT
    }
}
