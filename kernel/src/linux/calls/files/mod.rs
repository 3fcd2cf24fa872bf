//! Calls on files, by kind. Arguments are checked in Linux's order: which of two errors a call answers is part of its result.

mod descriptors;
mod io;
mod names;
mod poll;
mod stat;

use alloc::string::String;
use core::sync::atomic::Ordering::Relaxed;

use super::Answer;
use super::signals::{self, broken_pipe};
use crate::linux::errno::Errno;
use crate::linux::file::open;
use crate::linux::fs::{Path, Place, Walk};
use crate::linux::process::Process;
use crate::linux::signal::Set;
use crate::linux::thread::Caller;
use crate::linux::{limits, strings};
use crate::task::Mutex;
use crate::vm::user::user_read_u64;

/// The directory that a process works in, as a descriptor.
const CWD: u64 = -100_i64 as u64;

/// Flags of calls that take a path.
mod at {
    pub(super) const SYMLINK_NOFOLLOW: u64 = 0x100;
    pub(super) const REMOVEDIR: u64 = 0x200;
    pub(super) const EACCESS: u64 = 0x200;
    pub(super) const SYMLINK_FOLLOW: u64 = 0x400;
    pub(super) const NO_AUTOMOUNT: u64 = 0x800;
    pub(super) const EMPTY_PATH: u64 = 0x1000;
    pub(super) const STATX_SYNC_TYPE: u64 = 0x6000;
}

/// Bytes of a path, its zero included (`PATH_MAX`).
const PATH_MAX: usize = 4096;

/// The path at `addr`.
fn path_text(addr: u64) -> Result<String, Errno> {
    let bytes = strings::text(addr, PATH_MAX - 1)?.ok_or(Errno::ENAMETOOLONG)?;
    // Names are kept as text here; Linux takes any bytes.
    String::from_utf8(bytes).map_err(|_| Errno::ENOENT)
}

/// Where relative paths begin.
fn directory(process: &Process, fd: u64) -> Result<Place, Errno> {
    if fd as i32 == CWD as i32 {
        return Ok(process.place.directory.lock().clone());
    }
    let open = process.files().get(fd)?;
    open.place().filter(|place| place.node().directory().is_some()).cloned().ok_or(Errno::ENOTDIR)
}

/// A path with its beginning.
fn path<'a>(process: &Process, fd: u64, text: &'a str) -> Path<'a> {
    Path { from: directory(process, fd), text }
}

/// A path on its way.
fn walk(process: &Process, fd: u64, text: &str) -> Result<Walk, Errno> {
    Walk::of(process, &path(process, fd, text))
}

/// Permissions that the process lets new files have.
fn masked(process: &Process, mode: u64) -> u32 {
    mode as u32 & 0o7777 & !process.place.umask.load(Relaxed)
}

/// Calls that can be done when the kernel's heap is nearly full: close, unlink, rmdir, unlinkat.
const GIVES_BACK: [u64; 4] = [3, 84, 87, 263];

/// Held by who changes names.
static NAMES: Mutex<()> = Mutex::new(());

/// Does a call change names? An open does if it may make a file.
fn changes_names(number: u64, [flags, flags_at]: [u64; 2]) -> bool {
    let creates = |flags: u64| flags as u32 & open::CREAT != 0;
    match number {
        2 => creates(flags),
        257 => creates(flags_at),
        82..=88 | 258 | 263..=266 | 316 => true,
        _ => false,
    }
}

/// Does a call on files, by its number in `arch/x86/entry/syscalls/syscall_64.tbl`; `None` if it is none.
#[inline(never)]
pub(super) fn call(caller: &Caller, number: u64, [a, b, c, d, e]: [u64; 5]) -> Option<Answer> {
    let process = caller.process();
    if !GIVES_BACK.contains(&number) && !limits::have_room() {
        return Some(Err(Errno::ENOMEM));
    }
    // From the look-up of a name to its change, nobody else changes one.
    let _alone = changes_names(number, [b, c]).then(|| NAMES.lock());
    Some(match number {
        0 => io::read(process, a, b, c),
        1 => broken_pipe(caller, io::write(process, a, b, c)),
        2 => names::open_at(process, CWD, a, b, c),
        3 => descriptors::close(process, a),
        4 => stat::stat(process, a, b, true),
        5 => stat::fstat(process, a, b),
        6 => stat::stat(process, a, b, false),
        7 => poll::poll(process, a, b, c),
        8 => io::lseek(process, a, b, c),
        16 => descriptors::ioctl(process, a, b, c),
        17 => io::pread64(process, a, b, c, d),
        18 => io::pwrite64(process, a, b, c, d),
        19 => io::readv(process, a, b, c),
        20 => broken_pipe(caller, io::writev(process, a, b, c)),
        21 => stat::access_at(process, CWD, a, b, 0),
        22 => descriptors::pipe2(process, a, 0),
        23 => poll::select(process, a, [b, c, d], e),
        32 => descriptors::dup(process, a),
        33 => descriptors::dup2(process, a, b),
        40 => io::sendfile(process, a, b),
        72 => descriptors::fcntl(process, a, b, c),
        73 => descriptors::flock(process, a),
        74 | 75 => descriptors::fsync(process, a),
        76 => io::truncate(process, a, b),
        77 => io::ftruncate(process, a, b),
        79 => names::getcwd(process, a, b),
        80 => names::chdir(process, a),
        81 => names::fchdir(process, a),
        82 => names::rename_at(process, (CWD, a), (CWD, b), 0),
        83 => names::mkdir_at(process, CWD, a, b),
        84 => names::unlink_at(process, CWD, a, at::REMOVEDIR),
        85 => names::creat(process, a, b),
        86 => names::link_at(process, (CWD, a), (CWD, b), 0),
        87 => names::unlink_at(process, CWD, a, 0),
        88 => names::symlink_at(process, a, CWD, b),
        89 => names::readlink_at(process, CWD, a, b, c),
        90 => names::chmod_at(process, CWD, a, b),
        91 => names::fchmod(process, a, b),
        92 | 94 => names::chown_at(process, CWD, a),
        93 => descriptors::fsync(process, a),
        95 => names::umask(process, a),
        137 => stat::statfs(process, a, b),
        138 => stat::fstatfs(process, a, b),
        217 => stat::getdents64(process, a, b, c),
        257 => names::open_at(process, a, b, c, d),
        258 => names::mkdir_at(process, a, b, c),
        260 => names::chown_at(process, a, b),
        262 => stat::newfstatat(process, a, b, c, d),
        263 => names::unlink_at(process, a, b, c),
        264 => names::rename_at(process, (a, b), (c, d), 0),
        265 => names::link_at(process, (a, b), (c, d), e),
        266 => names::symlink_at(process, a, b, c),
        267 => names::readlink_at(process, a, b, c, d),
        268 => names::chmod_at(process, a, b, c),
        269 => stat::access_at(process, a, b, c, 0),
        270 => mask_of_pselect(caller).and_then(|(mask, len)| {
            with_mask(caller, mask, len, || poll::pselect6(process, a, [b, c, d], e))
        }),
        271 => with_mask(caller, d, e, || poll::ppoll(process, a, b, c)),
        280 => names::utimensat(process, a, b),
        285 => io::fallocate(process, a, b, c, d),
        292 => descriptors::dup3(process, a, b, c),
        293 => descriptors::pipe2(process, a, b),
        295 => io::preadv(process, a, b, c, d),
        296 => io::pwritev(process, a, b, c, d),
        316 => names::rename_at(process, (a, b), (c, d), e),
        319 => descriptors::memfd_create(process, a, b),
        332 => stat::statx(process, a, b, c, d, e),
        436 => descriptors::close_range(process, a, b, c),
        439 => stat::access_at(process, a, b, c, d),
        _ => return None,
    })
}

/// The sixth argument of pselect6: where a mask is, and how long that is.
fn mask_of_pselect(caller: &Caller) -> Result<(u64, u64), Errno> {
    match caller.context.regs.r9 {
        0 => Ok((0, 0)),
        at => Ok((user_read_u64(at)?, user_read_u64(at.wrapping_add(8))?)),
    }
}

/// Waits with the mask that stands at `mask`, if there is one. After an interruption the mask of before comes back with the
/// handler's return.
fn with_mask(caller: &Caller, mask: u64, len: u64, wait: impl FnOnce() -> Answer) -> Answer {
    if mask == 0 {
        return wait();
    }
    if len != 8 {
        return Err(Errno::EINVAL);
    }
    signals::mask_for_now(caller, Set(user_read_u64(mask)?));
    let answer = wait();
    if !answer.is_err_and(Errno::is_interrupted)
        && let Some(before) = caller.thread.signals.take_saved_mask()
    {
        caller.thread.signals.set_mask(before);
    }
    answer
}
