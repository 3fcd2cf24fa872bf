//! Reading and writing.

use alloc::vec::Vec;

use super::{Answer, CWD, path_text, walk};
use crate::linux::errno::Errno;
use crate::linux::file::{OpenFile, UserRange, open, poll};
use crate::linux::fs::kind;
use crate::linux::process::Process;
use crate::vm::user::user_read_u64;

/// Bytes that one call moves at most (`MAX_RW_COUNT`).
const COUNT_MAX: u64 = 0x7fff_f000;
/// Vectors of one call (`UIO_MAXIOV`).
const IOV_MAX: u64 = 1024;

pub(super) fn read(process: &Process, fd: u64, to: u64, len: u64) -> Answer {
    let open = process.files().get(fd)?;
    if !open.can_read() {
        return Err(Errno::EBADF);
    }
    let to = UserRange { addr: to, len }.check()?.first(COUNT_MAX);
    read_one(&open, to)
}

pub(super) fn write(process: &Process, fd: u64, from: u64, len: u64) -> Answer {
    let open = process.files().get(fd)?;
    if !open.can_write() {
        return Err(Errno::EBADF);
    }
    let from = UserRange { addr: from, len }.check()?.first(COUNT_MAX);
    write_one(&open, from)
}

/// Reads at the position, which moves. It is held meanwhile: who shares the opening reads what comes after.
fn read_one(open: &OpenFile, to: UserRange) -> Answer {
    if !open.file.has_position() {
        return open.file.read(0, to);
    }
    let mut position = open.position.lock();
    let came = open.file.read(*position, to)?;
    *position += came;
    Ok(came)
}

fn write_one(open: &OpenFile, from: UserRange) -> Answer {
    if !open.file.has_position() {
        return open.file.write(None, from);
    }
    let mut position = open.position.lock();
    if open.has(open::APPEND) {
        let went = open.file.write(None, from)?;
        *position = open.file.stat().size;
        return Ok(went);
    }
    let went = open.file.write(Some(*position), from)?;
    *position += went;
    Ok(went)
}

pub(super) fn pread64(process: &Process, fd: u64, to: u64, len: u64, at: u64) -> Answer {
    let open = positioned(process, fd, at)?;
    if !open.can_read() {
        return Err(Errno::EBADF);
    }
    open.file.read(at, UserRange { addr: to, len }.check()?.first(COUNT_MAX))
}

pub(super) fn pwrite64(process: &Process, fd: u64, from: u64, len: u64, at: u64) -> Answer {
    let open = positioned(process, fd, at)?;
    if !open.can_write() {
        return Err(Errno::EBADF);
    }
    let at = if open.has(open::APPEND) { None } else { Some(at) };
    open.file.write(at, UserRange { addr: from, len }.check()?.first(COUNT_MAX))
}

/// An opening that can be read and written anywhere.
fn positioned(process: &Process, fd: u64, at: u64) -> Result<alloc::sync::Arc<OpenFile>, Errno> {
    if (at as i64) < 0 {
        return Err(Errno::EINVAL);
    }
    let open = process.files().get(fd)?;
    if open.file.has_position() { Ok(open) } else { Err(Errno::ESPIPE) }
}

/// The ranges that `count` vectors at `vectors` name.
fn vectors(vectors: u64, count: u64) -> Result<Vec<UserRange>, Errno> {
    if count > IOV_MAX {
        return Err(Errno::EINVAL);
    }
    let mut ranges = Vec::with_capacity(count as usize);
    let mut total = 0;
    for n in 0..count {
        let at = vectors.wrapping_add(n * 16);
        let range = UserRange { addr: user_read_u64(at)?, len: user_read_u64(at.wrapping_add(8))? };
        if (range.len as i64) < 0 {
            return Err(Errno::EINVAL);
        }
        let range = range.check()?.first(COUNT_MAX - total);
        total += range.len;
        ranges.push(range);
    }
    Ok(ranges)
}

/// Does `one` for each range until one is not done wholly; how many bytes in all.
fn each(ranges: &[UserRange], mut one: impl FnMut(u64, UserRange) -> Answer) -> Answer {
    let mut done = 0;
    for range in ranges.iter().filter(|range| range.len != 0) {
        match one(done, *range) {
            Ok(part) => {
                done += part;
                if part < range.len {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

pub(super) fn readv(process: &Process, fd: u64, at: u64, count: u64) -> Answer {
    let open = process.files().get(fd)?;
    if !open.can_read() {
        return Err(Errno::EBADF);
    }
    each(&vectors(at, count)?, |done, range| {
        // What has come is not made to wait for more.
        if done != 0 && open.file.ready() & (poll::IN | poll::HUP) == 0 {
            return Ok(0);
        }
        read_one(&open, range)
    })
}

pub(super) fn writev(process: &Process, fd: u64, at: u64, count: u64) -> Answer {
    let open = process.files().get(fd)?;
    if !open.can_write() {
        return Err(Errno::EBADF);
    }
    each(&vectors(at, count)?, |_, range| write_one(&open, range))
}

pub(super) fn preadv(process: &Process, fd: u64, iov: u64, count: u64, at: u64) -> Answer {
    let open = positioned(process, fd, at)?;
    if !open.can_read() {
        return Err(Errno::EBADF);
    }
    each(&vectors(iov, count)?, |done, range| open.file.read(at + done, range))
}

pub(super) fn pwritev(process: &Process, fd: u64, iov: u64, count: u64, at: u64) -> Answer {
    let open = positioned(process, fd, at)?;
    if !open.can_write() {
        return Err(Errno::EBADF);
    }
    let append = open.has(open::APPEND);
    each(&vectors(iov, count)?, |done, range| {
        open.file.write(if append { None } else { Some(at + done) }, range)
    })
}

pub(super) fn lseek(process: &Process, fd: u64, by: u64, whence: u64) -> Answer {
    const DATA: u64 = 3;
    const HOLE: u64 = 4;
    let open = process.files().get(fd)?;
    if open.has(open::PATH) {
        return Err(Errno::EBADF);
    }
    if whence > HOLE {
        return Err(Errno::EINVAL);
    }
    if !open.file.has_position() {
        return Err(Errno::ESPIPE);
    }
    if open.file.seek_is_zero() {
        return Ok(0);
    }
    let mut position = open.position.lock();
    let size = open.file.stat().size;
    let new = match whence {
        0 => Some(by),
        1 => position.checked_add_signed(by as i64),
        2 => size.checked_add_signed(by as i64),
        // Nothing is said of holes: all is data, up to a hole behind the end.
        DATA | HOLE if by >= size => return Err(Errno::ENXIO),
        DATA => Some(by),
        _ => Some(size),
    };
    *position = new.filter(|&new| new as i64 >= 0).ok_or(Errno::EINVAL)?;
    Ok(*position)
}

pub(super) fn ftruncate(process: &Process, fd: u64, len: u64) -> Answer {
    if (len as i64) < 0 {
        return Err(Errno::EINVAL);
    }
    let open = process.files().get(fd)?;
    if open.has(open::PATH) {
        return Err(Errno::EBADF);
    }
    if open.file.stat().mode & kind::MASK != kind::REGULAR || !open.can_write() {
        return Err(Errno::EINVAL);
    }
    open.file.set_len(len)?;
    Ok(0)
}

pub(super) fn truncate(process: &Process, name: u64, len: u64) -> Answer {
    if (len as i64) < 0 {
        return Err(Errno::EINVAL);
    }
    let text = path_text(name)?;
    let place = walk(process, CWD, &text)?.follow(process)?;
    match place.node().stat().mode & kind::MASK {
        kind::DIRECTORY => return Err(Errno::EISDIR),
        kind::REGULAR => place.node().set_len(len)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// Room is made only by growing: what it would set aside is made when it is written.
pub(super) fn fallocate(process: &Process, fd: u64, mode: u64, at: u64, len: u64) -> Answer {
    const KEEP_SIZE: u32 = 1;
    let open = process.files().get(fd)?;
    if (at as i64) < 0 || (len as i64) <= 0 {
        return Err(Errno::EINVAL);
    }
    if mode as u32 & !KEEP_SIZE != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if !open.can_write() {
        return Err(Errno::EBADF);
    }
    match open.file.stat().mode & kind::MASK {
        kind::PIPE => return Err(Errno::ESPIPE),
        kind::DIRECTORY => return Err(Errno::EISDIR),
        kind::REGULAR => {}
        _ => return Err(Errno::ENODEV),
    }
    let end = at.checked_add(len).filter(|&end| end as i64 > 0).ok_or(Errno::EFBIG)?;
    if mode as u32 & KEEP_SIZE == 0 && end > open.file.stat().size {
        open.file.set_len(end)?;
    }
    Ok(0)
}

/// From file to file without the program's memory: not here. So Linux answers where a file cannot be mapped, and programs copy by
/// themselves then.
pub(super) fn sendfile(process: &Process, to: u64, from: u64) -> Answer {
    let files = process.files();
    let (to, from) = (files.get(to)?, files.get(from)?);
    if !from.can_read() || !to.can_write() {
        return Err(Errno::EBADF);
    }
    Err(Errno::EINVAL)
}
