//! The console: descriptors 0, 1 and 2 of the first program, and `/dev/tty`. Bytes pass unchanged. It says that it is no terminal
//! (ENOTTY), so that a program's output is the same as into a pipe.

use alloc::sync::Arc;

use crate::console;
use crate::linux::errno::Errno;
use crate::linux::file::{File, OpenFile, Stat, UserRange, open, poll};
use crate::linux::fs::copy::write_by;
use crate::linux::process::Process;

struct Console(Stat);

pub(super) fn open(_process: &Process, stat: Stat) -> Result<Arc<dyn File>, Errno> {
    Ok(Arc::new(Console(stat)))
}

/// The opening that the first program finds as 0, 1 and 2.
pub(in crate::linux) fn standard() -> Arc<OpenFile> {
    let stat = super::DEVICES.iter().find(|device| device.name == "console").map(super::Device::stat);
    OpenFile::new(Arc::new(Console(stat.unwrap_or_default())), open::RDWR, "/dev/console")
}

impl File for Console {
    fn stat(&self) -> Stat {
        self.0
    }

    fn read(&self, _at: u64, _to: UserRange) -> Result<u64, Errno> {
        Ok(0)
    }

    fn write(&self, _at: Option<u64>, from: UserRange) -> Result<u64, Errno> {
        write_by(from, |_, bytes| {
            console::with(|out| out.write_bytes(bytes));
            Ok(bytes.len())
        })
    }

    fn ready(&self) -> u16 {
        poll::IN | poll::OUT
    }
}
