//! Bytes between the kernel and user memory, through a buffer: no lock is held while user memory is touched.

use alloc::vec;

use crate::arch::x86_64::uaccess::{self, USER_END};
use crate::linux::errno::Errno;
use crate::linux::file::UserRange;

/// Bytes of a buffer at most.
pub(in crate::linux) const CHUNK: u64 = 64 << 10;

impl UserRange {
    /// Refuses what is not all user addresses (Linux: `access_ok`).
    ///
    /// # Errors
    /// EFAULT.
    pub(in crate::linux) fn check(self) -> Result<Self, Errno> {
        let end = self.addr.checked_add(self.len).filter(|&end| end <= USER_END);
        end.map(|_| self).ok_or(Errno::EFAULT)
    }

    /// Its first bytes.
    pub(in crate::linux) fn first(self, len: u64) -> Self {
        Self { len: self.len.min(len), ..self }
    }
}

/// Copies to user memory; how many bytes went before the first that did not.
pub(in crate::linux) fn put(to: u64, bytes: &[u8]) -> usize {
    let Err(fault) = uaccess::copy_to_user(to, bytes) else { return bytes.len() };
    // Words were copied: those that end at the fault are copied again, to the last byte.
    let done = (fault.addr.saturating_sub(to) as usize).min(bytes.len());
    let again = done.saturating_sub(8);
    match uaccess::copy_to_user(to + again as u64, &bytes[again..done]) {
        Ok(()) => done,
        Err(_) => again,
    }
}

/// Copies from user memory; how many bytes came before the first that did not.
pub(in crate::linux) fn get(bytes: &mut [u8], from: u64) -> usize {
    let Err(fault) = uaccess::copy_from_user(bytes, from) else { return bytes.len() };
    let done = (fault.addr.saturating_sub(from) as usize).min(bytes.len());
    let again = done.saturating_sub(8);
    match uaccess::copy_from_user(&mut bytes[again..done], from + again as u64) {
        Ok(()) => done,
        Err(_) => again,
    }
}

/// Fills user memory from `source`, which is handed a buffer and says how much of it it has filled; 0 is the end. What came.
///
/// # Errors
/// EFAULT when nothing could be copied; the source's when nothing came.
pub(in crate::linux) fn read_by(
    to: UserRange,
    mut source: impl FnMut(u64, &mut [u8]) -> Result<usize, Errno>,
) -> Result<u64, Errno> {
    let mut buffer = vec![0; to.len.min(CHUNK) as usize];
    let mut done = 0;
    while done < to.len {
        let part = (to.len - done).min(CHUNK) as usize;
        let came = match source(done, &mut buffer[..part]) {
            Ok(0) => break,
            Ok(came) => came,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        };
        let went = put(to.addr + done, &buffer[..came]);
        done += went as u64;
        if went < came {
            return if done == 0 { Err(Errno::EFAULT) } else { Ok(done) };
        }
        if came < part {
            break;
        }
    }
    Ok(done)
}

/// Hands user memory to `sink`, buffer by buffer; it says how much it took. What went.
///
/// # Errors
/// EFAULT when nothing could be read; the sink's when nothing went.
pub(in crate::linux) fn write_by(
    from: UserRange,
    mut sink: impl FnMut(u64, &[u8]) -> Result<usize, Errno>,
) -> Result<u64, Errno> {
    let mut buffer = vec![0; from.len.min(CHUNK) as usize];
    let mut done = 0;
    while done < from.len {
        let part = (from.len - done).min(CHUNK) as usize;
        let came = get(&mut buffer[..part], from.addr + done);
        if came == 0 {
            return if done == 0 { Err(Errno::EFAULT) } else { Ok(done) };
        }
        let went = match sink(done, &buffer[..came]) {
            Ok(went) => went,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        };
        done += went as u64;
        if went < came || came < part {
            break;
        }
    }
    Ok(done)
}
