//! `/dev/urandom`. Under instruction counting the same in every run. Nothing here is secret.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::arch::x86_64::tsc;
use crate::linux::errno::Errno;
use crate::linux::file::{File, Stat, UserRange};
use crate::linux::fs::copy::read_by;
use crate::linux::process::Process;

struct Random(Stat);

pub(super) fn open(_process: &Process, stat: Stat) -> Result<Arc<dyn File>, Errno> {
    Ok(Arc::new(Random(stat)))
}

/// Fills a buffer with numbers that repeat neither in it nor from call to call.
pub(in crate::linux) fn fill(buffer: &mut [u8]) {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let mut state = tsc::now() ^ CALLS.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
    for part in buffer.chunks_mut(8) {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        part.copy_from_slice(&word.to_le_bytes()[..part.len()]);
    }
}

impl File for Random {
    fn stat(&self) -> Stat {
        self.0
    }

    fn read(&self, _at: u64, to: UserRange) -> Result<u64, Errno> {
        read_by(to, |_, buffer| {
            fill(buffer);
            Ok(buffer.len())
        })
    }

    fn write(&self, _at: Option<u64>, from: UserRange) -> Result<u64, Errno> {
        Ok(from.len)
    }

    fn seek_is_zero(&self) -> bool {
        true
    }
}
