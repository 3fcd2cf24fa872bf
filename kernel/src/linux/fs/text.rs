//! Files that are made when they are opened: what the kernel knows, as text.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::copy::{get, read_by};
use super::{Node, kind};
use crate::linux::errno::Errno;
use crate::linux::file::{File, Stat, UserRange};
use crate::linux::process::Process;

/// Makes the text. It is as it was at the opening.
type Make = fn(&Process) -> Result<Vec<u8>, Errno>;
/// Takes what is written, all at once.
type Take = fn(&str) -> Result<(), Errno>;

/// Bytes of a text that is written, at most.
const WRITE_MAX: u64 = 4096;

/// A file of text.
pub(super) struct Text {
    ino: u64,
    dev: u64,
    /// Bytes that `stat` tells; those of `/proc` tell none.
    size: u64,
    make: Make,
    take: Option<Take>,
}

impl Text {
    pub(super) fn node(dev: u64, ino: u64, make: Make) -> Arc<dyn Node> {
        Arc::new(Self { ino, dev, size: 0, make, take: None })
    }

    /// One that can be written too.
    pub(super) fn writable(dev: u64, ino: u64, make: Make, take: Take) -> Arc<dyn Node> {
        Arc::new(Self { ino, dev, size: 0, make, take: Some(take) })
    }

    /// Says a size of a page, as files of `/sys` do.
    pub(super) fn of_sys(ino: u64, make: Make, take: Option<Take>) -> Arc<dyn Node> {
        Arc::new(Self { ino, dev: super::device::SYS, size: 4096, make, take })
    }
}

impl Node for Text {
    fn stat(&self) -> Stat {
        let mode = kind::REGULAR | if self.take.is_some() { 0o644 } else { 0o444 };
        Stat { ino: self.ino, dev: self.dev, mode, nlink: 1, size: self.size, ..Stat::default() }
    }

    fn set_len(&self, _len: u64) -> Result<(), Errno> {
        Ok(()) // O_TRUNC, as the shell's `>` has it
    }

    fn open(self: Arc<Self>, process: &Process, _flags: u32) -> Result<Arc<dyn File>, Errno> {
        let bytes = (self.make)(process)?;
        Ok(Arc::new(OpenText { stat: self.stat(), bytes, take: self.take }))
    }
}

/// A file of this text.
pub(super) fn opened(stat: Stat, bytes: Vec<u8>) -> Arc<dyn File> {
    Arc::new(OpenText { stat, bytes, take: None })
}

struct OpenText {
    stat: Stat,
    bytes: Vec<u8>,
    take: Option<Take>,
}

impl File for OpenText {
    fn stat(&self) -> Stat {
        self.stat
    }

    fn has_position(&self) -> bool {
        true
    }

    fn read(&self, at: u64, to: UserRange) -> Result<u64, Errno> {
        let rest = usize::try_from(at).ok().and_then(|at| self.bytes.get(at..)).unwrap_or_default();
        read_by(to.first(rest.len() as u64), |done, buffer| {
            let rest = &rest[done as usize..];
            let len = rest.len().min(buffer.len());
            buffer[..len].copy_from_slice(&rest[..len]);
            Ok(len)
        })
    }

    fn write(&self, _at: Option<u64>, from: UserRange) -> Result<u64, Errno> {
        let take = self.take.ok_or(Errno::EIO)?;
        let mut bytes = alloc::vec![0; from.len.min(WRITE_MAX) as usize];
        if get(&mut bytes, from.addr) < bytes.len() {
            return Err(Errno::EFAULT);
        }
        take(core::str::from_utf8(&bytes).map_err(|_| Errno::EINVAL)?.trim())?;
        Ok(from.len)
    }

    fn set_len(&self, _len: u64) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }
}
