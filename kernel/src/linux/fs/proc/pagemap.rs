//! `pagemap`: a word for each page of the user half.

use alloc::sync::{Arc, Weak};

use farpage_mm::{PAGE_SIZE, USER_END, VaRange};

use super::super::copy::read_by;
use crate::linux::errno::Errno;
use crate::linux::file::{File, Stat, UserRange};
use crate::linux::memory::Memory;
use crate::linux::process::Process;

/// Bytes of a word.
const WORD: u64 = 8;

struct Pagemap {
    stat: Stat,
    /// The memory that the process had at the opening; it may end meanwhile.
    memory: Weak<Memory>,
}

pub(super) fn open(process: &Process, stat: Stat) -> Result<Arc<dyn File>, Errno> {
    let memory = process.memory_if_alive().as_ref().map(Arc::downgrade).unwrap_or_default();
    Ok(Arc::new(Pagemap { stat, memory }))
}

impl File for Pagemap {
    fn stat(&self) -> Stat {
        self.stat
    }

    fn has_position(&self) -> bool {
        true
    }

    fn read(&self, at: u64, to: UserRange) -> Result<u64, Errno> {
        if !at.is_multiple_of(WORD) || !to.len.is_multiple_of(WORD) {
            return Err(Errno::EINVAL);
        }
        let Some(memory) = self.memory.upgrade() else { return Ok(0) };
        let left = (USER_END / PAGE_SIZE * WORD).saturating_sub(at);
        read_by(to.first(left), |done, buffer| {
            let start = (at + done) / WORD * PAGE_SIZE;
            let range = VaRange::new(start, buffer.len() as u64 / WORD * PAGE_SIZE);
            let mut words = buffer.chunks_exact_mut(WORD as usize);
            memory.space().pagemap(range, |_, entry| {
                if let Some(word) = words.next() {
                    word.copy_from_slice(&entry.raw().to_le_bytes());
                }
            })?;
            Ok(buffer.len())
        })
    }
}
