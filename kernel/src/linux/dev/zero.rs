//! `/dev/zero`, and `/dev/full`, which cannot be written.

use alloc::sync::Arc;

use farpage_mm::{HugeAdvice, Object};

use crate::linux::errno::Errno;
use crate::linux::file::{File, MapRequest, Stat, UserRange};
use crate::linux::fs::copy::read_by;
use crate::linux::process::Process;

struct Zero {
    stat: Stat,
    full: bool,
}

pub(super) fn open(_process: &Process, stat: Stat) -> Result<Arc<dyn File>, Errno> {
    Ok(Arc::new(Zero { stat, full: false }))
}

pub(super) fn open_full(_process: &Process, stat: Stat) -> Result<Arc<dyn File>, Errno> {
    Ok(Arc::new(Zero { stat, full: true }))
}

impl File for Zero {
    fn stat(&self) -> Stat {
        self.stat
    }

    fn read(&self, _at: u64, to: UserRange) -> Result<u64, Errno> {
        read_by(to, |_, buffer| {
            buffer.fill(0);
            Ok(buffer.len())
        })
    }

    fn write(&self, _at: Option<u64>, from: UserRange) -> Result<u64, Errno> {
        if self.full { Err(Errno::ENOSPC) } else { Ok(from.len) }
    }

    fn seek_is_zero(&self) -> bool {
        true
    }

    /// Memory without a file, as if none had been named.
    fn map(&self, process: &Process, request: &MapRequest) -> Result<(), Errno> {
        if self.full {
            return Err(Errno::ENODEV);
        }
        let memory = process.memory();
        let MapRequest { range, prot, shared, .. } = *request;
        if shared {
            memory.space().map_shared(range, prot, &Object::anon_shared(range.nr_pages())?, 0)?;
        } else {
            memory.space().map_anon(range, prot, HugeAdvice::Default)?;
        }
        Ok(())
    }
}
