//! Descriptors: closing, doubling, flags; and files that have no name.

use core::sync::atomic::Ordering::Relaxed;

use super::Answer;
use crate::arch::x86_64::uaccess::copy_to_user;
use crate::linux::calls::read_u32;
use crate::linux::errno::Errno;
use crate::linux::file::{MAX_FILES, open};
use crate::linux::fs::{self, kind};
use crate::linux::process::Process;
use crate::linux::strings;

pub(super) fn close(process: &Process, fd: u64) -> Answer {
    process.files().close(fd)?;
    Ok(0)
}

pub(super) fn dup(process: &Process, fd: u64) -> Answer {
    let files = process.files();
    files.add(files.get(fd)?, 0, false)
}

pub(super) fn dup2(process: &Process, old: u64, new: u64) -> Answer {
    let (old, new) = (old & u64::from(u32::MAX), new & u64::from(u32::MAX));
    if old == new {
        process.files().get(old)?;
        return Ok(new);
    }
    put(process, old, new, false)
}

pub(super) fn dup3(process: &Process, old: u64, new: u64, flags: u64) -> Answer {
    let (old, new) = (old & u64::from(u32::MAX), new & u64::from(u32::MAX));
    if flags as u32 & !open::CLOEXEC != 0 || old == new {
        return Err(Errno::EINVAL);
    }
    put(process, old, new, flags != 0)
}

fn put(process: &Process, old: u64, new: u64, close_on_exec: bool) -> Answer {
    let files = process.files();
    if new >= MAX_FILES as u64 {
        return Err(Errno::EBADF);
    }
    files.replace(new, files.get(old)?, close_on_exec)?;
    Ok(new)
}

/// Commands of `fcntl` (`asm-generic/fcntl.h`, `linux/fcntl.h`).
mod f {
    pub(super) const DUPFD: u64 = 0;
    pub(super) const GETFD: u64 = 1;
    pub(super) const SETFD: u64 = 2;
    pub(super) const GETFL: u64 = 3;
    pub(super) const SETFL: u64 = 4;
    pub(super) const DUPFD_CLOEXEC: u64 = 1030;
    pub(super) const GETPIPE_SZ: u64 = 1032;
}

pub(super) fn fcntl(process: &Process, fd: u64, command: u64, arg: u64) -> Answer {
    const CLOEXEC: u64 = 1;
    let files = process.files();
    let open = files.get(fd)?;
    let command = command & u64::from(u32::MAX);
    if open.has(open::PATH)
        && !matches!(command, f::DUPFD | f::DUPFD_CLOEXEC | f::GETFD | f::SETFD | f::GETFL)
    {
        return Err(Errno::EBADF);
    }
    match command {
        f::DUPFD | f::DUPFD_CLOEXEC => {
            let lowest = usize::try_from(arg as u32).ok().filter(|&lowest| lowest < MAX_FILES);
            files.add(open, lowest.ok_or(Errno::EINVAL)?, command == f::DUPFD_CLOEXEC)
        }
        f::GETFD => Ok(files.close_on_exec(fd)?.into()),
        f::SETFD => {
            files.set_close_on_exec(fd, arg & CLOEXEC != 0)?;
            Ok(0)
        }
        f::GETFL => Ok(open.flags.load(Relaxed).into()),
        f::SETFL => {
            let settable = open::APPEND | open::NONBLOCK;
            let flags = open.flags.load(Relaxed) & !settable | arg as u32 & settable;
            open.flags.store(flags, Relaxed);
            open.file.set_nonblock(flags & open::NONBLOCK != 0);
            Ok(0)
        }
        f::GETPIPE_SZ if open.file.stat().mode & kind::MASK == kind::PIPE => Ok(fs::PIPE_ROOM as u64),
        f::GETPIPE_SZ => Err(Errno::EBADF),
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn ioctl(process: &Process, fd: u64, request: u64, arg: u64) -> Answer {
    const FIONCLEX: u32 = 0x5450;
    const FIOCLEX: u32 = 0x5451;
    const FIONBIO: u32 = 0x5421;
    let files = process.files();
    let open = files.get(fd)?;
    if open.has(open::PATH) {
        return Err(Errno::EBADF);
    }
    match request as u32 {
        request @ (FIOCLEX | FIONCLEX) => files.set_close_on_exec(fd, request == FIOCLEX)?,
        FIONBIO => {
            let on = read_u32(arg)? != 0;
            let flag = if on { open::NONBLOCK } else { 0 };
            open.flags.store(open.flags.load(Relaxed) & !open::NONBLOCK | flag, Relaxed);
            open.file.set_nonblock(on);
        }
        request => return open.file.ioctl(process, request, arg),
    }
    Ok(0)
}

pub(super) fn close_range(process: &Process, first: u64, last: u64, flags: u64) -> Answer {
    const UNSHARE: u32 = 2;
    const CLOEXEC: u32 = 4;
    let (first, last, flags) = (first as u32, last as u32, flags as u32);
    if flags & !(UNSHARE | CLOEXEC) != 0 || first > last {
        return Err(Errno::EINVAL);
    }
    let files = process.files();
    for fd in u64::from(first)..u64::from(last).saturating_add(1).min(MAX_FILES as u64) {
        // A number that leads nowhere is fine.
        let _ = if flags & CLOEXEC != 0 { files.set_close_on_exec(fd, true) } else { files.close(fd) };
    }
    Ok(0)
}

pub(super) fn pipe2(process: &Process, to: u64, flags: u64) -> Answer {
    let flags = flags as u32;
    if flags & !(open::CLOEXEC | open::NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let (reader, writer) = fs::pipe(flags);
    let (files, close_on_exec) = (process.files(), flags & open::CLOEXEC != 0);
    let first = files.add(reader, 0, close_on_exec)?;
    let told = match files.add(writer, 0, close_on_exec) {
        Ok(second) => {
            let numbers = [(first as u32).to_le_bytes(), (second as u32).to_le_bytes()].concat();
            let told = copy_to_user(to, &numbers).map_err(Errno::from);
            if told.is_err() {
                files.close(second)?;
            }
            told
        }
        Err(error) => Err(error),
    };
    if told.is_err() {
        files.close(first)?;
    }
    told.map(|()| 0)
}

pub(super) fn memfd_create(process: &Process, name: u64, flags: u64) -> Answer {
    const CLOEXEC: u32 = 1;
    const ALLOW_SEALING: u32 = 2;
    const NOEXEC_SEAL: u32 = 8;
    const EXEC: u32 = 16;
    const NAME_MAX: usize = 249;
    let flags = flags as u32;
    if flags & !(CLOEXEC | ALLOW_SEALING | NOEXEC_SEAL | EXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    let name = strings::text(name, NAME_MAX)?.ok_or(Errno::EINVAL)?;
    let name = alloc::string::String::from_utf8_lossy(&name);
    process.files().add(fs::memfd(&name), 0, flags & CLOEXEC != 0)
}

/// What is written is there: files lie in memory.
pub(super) fn fsync(process: &Process, fd: u64) -> Answer {
    let open = process.files().get(fd)?;
    match open.file.stat().mode & kind::MASK {
        _ if open.has(open::PATH) => Err(Errno::EBADF),
        kind::REGULAR | kind::DIRECTORY => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// Nobody else uses the files: a lock is always to be had.
pub(super) fn flock(process: &Process, fd: u64) -> Answer {
    process.files().get(fd)?;
    Ok(0)
}
