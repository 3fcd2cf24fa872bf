//! Files: the console, as 0, 1 and 2.

use alloc::vec;
use core::fmt::Write;

use super::Answer;
use crate::arch::x86_64::uaccess::{copy_from_user, copy_to_user};
use crate::console;
use crate::linux::errno::Errno;
use crate::vm::user::user_read_u64;

/// Bytes that one call writes at most: it may write less than it was asked to.
const WRITE_MAX: u64 = 64 << 10;
/// Vectors of one call (`UIO_MAXIOV`).
const IOV_MAX: u64 = 1024;

pub(super) fn read(fd: u64, _to: u64, _len: u64) -> Answer {
    if fd == 0 { Ok(0) } else { Err(Errno::EBADF) }
}

pub(super) fn write(fd: u64, from: u64, len: u64) -> Answer {
    if !matches!(fd, 1 | 2) {
        return Err(Errno::EBADF);
    }
    let mut bytes = vec![0; len.min(WRITE_MAX) as usize];
    copy_from_user(&mut bytes, from)?;
    console::with(|out| {
        for part in bytes.utf8_chunks() {
            let _ = out.write_str(part.valid());
            if !part.invalid().is_empty() {
                let _ = out.write_char(char::REPLACEMENT_CHARACTER);
            }
        }
    });
    Ok(bytes.len() as u64)
}

pub(super) fn writev(fd: u64, vectors: u64, count: u64) -> Answer {
    if count > IOV_MAX {
        return Err(Errno::EINVAL);
    }
    let mut written = 0;
    for n in 0..count {
        let (base, len) = (user_read_u64(vectors + n * 16)?, user_read_u64(vectors + n * 16 + 8)?);
        match write(fd, base, len) {
            Ok(done) if done == len => written += done,
            Ok(done) => return Ok(written + done),
            Err(error) if written == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(written)
}

pub(super) fn close(fd: u64) -> Answer {
    if fd <= 2 { Ok(0) } else { Err(Errno::EBADF) }
}

/// A character device of `struct stat` (144 bytes).
pub(super) fn fstat(fd: u64, to: u64) -> Answer {
    if fd > 2 {
        return Err(Errno::EBADF);
    }
    let mut stat = [0; 144];
    stat[16..24].copy_from_slice(&1_u64.to_le_bytes()); // st_nlink
    stat[24..28].copy_from_slice(&0o020_620_u32.to_le_bytes()); // st_mode: a terminal
    stat[40..48].copy_from_slice(&0x8801_u64.to_le_bytes()); // st_rdev
    stat[56..64].copy_from_slice(&1024_u64.to_le_bytes()); // st_blksize
    copy_to_user(to, &stat)?;
    Ok(0)
}

pub(super) fn newfstatat(fd: u64, _path: u64, to: u64, flags: u64) -> Answer {
    const AT_EMPTY_PATH: u64 = 0x1000;
    if flags & AT_EMPTY_PATH != 0 { fstat(fd, to) } else { Err(Errno::ENOENT) }
}
