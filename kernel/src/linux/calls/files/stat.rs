//! What files are.

use super::{Answer, CWD, at, directory, names::type_of, path_text, walk};
use crate::arch::x86_64::uaccess::copy_to_user;
use crate::linux::errno::Errno;
use crate::linux::file::{Stat, UserRange};
use crate::linux::fs::{device, kind};
use crate::linux::process::Process;

const PAGE: u64 = 4096;
/// Units of `st_blocks`.
const BLOCKS_OF_PAGE: u64 = 8;

/// Writes numbers into a structure, by their offsets.
struct Fields<const N: usize>([u8; N]);

impl<const N: usize> Fields<N> {
    fn u64(&mut self, at: usize, value: u64) -> &mut Self {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self
    }
}

/// `struct stat` (`asm/stat.h`).
fn put_stat(to: u64, stat: &Stat) -> Answer {
    let mut fields = Fields([0; 144]);
    fields.u64(0, stat.dev).u64(8, stat.ino).u64(16, stat.nlink).u32(24, stat.mode).u64(40, stat.rdev);
    fields.u64(48, stat.size).u64(56, PAGE).u64(64, stat.pages * BLOCKS_OF_PAGE);
    copy_to_user(to, &fields.0)?;
    Ok(0)
}

/// The stat of what a path leads to, or of the descriptor itself.
fn stat_at(process: &Process, fd: u64, name: u64, flags: u64) -> Result<Stat, Errno> {
    let text = if name == 0 && flags & at::EMPTY_PATH != 0 { Default::default() } else { path_text(name)? };
    if text.is_empty() && flags & at::EMPTY_PATH != 0 {
        if fd as i32 == CWD as i32 {
            return Ok(directory(process, fd)?.node().stat());
        }
        return Ok(process.files().get(fd)?.file.stat());
    }
    let known = at::SYMLINK_NOFOLLOW | at::NO_AUTOMOUNT | at::EMPTY_PATH | at::STATX_SYNC_TYPE;
    if flags as u32 & !(known as u32) != 0 {
        return Err(Errno::EINVAL);
    }
    let walk = walk(process, fd, &text)?;
    let nofollow = flags & at::SYMLINK_NOFOLLOW != 0;
    let place = if nofollow { walk.here(process)? } else { walk.follow(process)? };
    Ok(place.node().stat())
}

pub(super) fn newfstatat(process: &Process, fd: u64, name: u64, to: u64, flags: u64) -> Answer {
    put_stat(to, &stat_at(process, fd, name, flags)?)
}

pub(super) fn stat(process: &Process, name: u64, to: u64, follow: bool) -> Answer {
    newfstatat(process, CWD, name, to, if follow { 0 } else { at::SYMLINK_NOFOLLOW })
}

pub(super) fn fstat(process: &Process, fd: u64, to: u64) -> Answer {
    put_stat(to, &process.files().get(fd)?.file.stat())
}

pub(super) fn statx(process: &Process, fd: u64, name: u64, flags: u64, mask: u64, to: u64) -> Answer {
    const BASIC: u32 = 0x7ff;
    const RESERVED: u64 = 1 << 31;
    if mask & RESERVED != 0 || flags & at::STATX_SYNC_TYPE == at::STATX_SYNC_TYPE {
        return Err(Errno::EINVAL);
    }
    let stat = stat_at(process, fd, name, flags)?;
    let split = |dev: u64| ((dev >> 8 & 0xfff) as u32, (dev & 0xff | dev >> 12 & !0xff) as u32);
    let ((rdev_major, rdev_minor), (major, minor)) = (split(stat.rdev), split(stat.dev));
    let mut fields = Fields([0; 256]);
    fields.u32(0, BASIC).u32(4, PAGE as u32).u32(16, stat.nlink as u32).u32(28, stat.mode);
    fields.u64(32, stat.ino).u64(40, stat.size).u64(48, stat.pages * BLOCKS_OF_PAGE);
    fields.u32(128, rdev_major).u32(132, rdev_minor).u32(136, major).u32(140, minor);
    copy_to_user(to, &fields.0)?;
    Ok(0)
}

pub(super) fn access_at(process: &Process, fd: u64, name: u64, mode: u64, flags: u64) -> Answer {
    const EXECUTE: u64 = 1;
    if mode & !7 != 0 || flags & !(at::EACCESS | at::SYMLINK_NOFOLLOW | at::EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let stat = stat_at(process, fd, name, flags & !at::EACCESS)?;
    // Root may read and write all, but execute only what somebody may.
    let is_file = stat.mode & kind::MASK != kind::DIRECTORY;
    if mode & EXECUTE != 0 && is_file && stat.mode & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    Ok(0)
}

/// `struct statfs`.
fn put_statfs(to: u64, dev: u64) -> Answer {
    const TMPFS: u64 = 0x0102_1994;
    const PROC: u64 = 0x9fa0;
    const SYSFS: u64 = 0x6265_6572;
    const PIPEFS: u64 = 0x5049_5045;
    let magic = match dev {
        device::PROC => PROC,
        device::SYS => SYSFS,
        device::PIPES => PIPEFS,
        _ => TMPFS,
    };
    let mut fields = Fields([0; 120]);
    let frames = crate::vm::mm().zone(farpage_mm::Place::RAM).stat();
    let (total, free) = if magic == TMPFS { (frames.managed.into(), frames.free.into()) } else { (0, 0) };
    fields.u64(0, magic).u64(8, PAGE).u64(16, total).u64(24, free).u64(32, free).u64(64, 255).u64(72, PAGE);
    copy_to_user(to, &fields.0)?;
    Ok(0)
}

pub(super) fn statfs(process: &Process, name: u64, to: u64) -> Answer {
    let text = path_text(name)?;
    put_statfs(to, walk(process, CWD, &text)?.follow(process)?.node().stat().dev)
}

pub(super) fn fstatfs(process: &Process, fd: u64, to: u64) -> Answer {
    put_statfs(to, process.files().get(fd)?.file.stat().dev)
}

/// `struct linux_dirent64`: number, offset of the next, length, kind, name.
pub(super) fn getdents64(process: &Process, fd: u64, to: u64, len: u64) -> Answer {
    const HEAD: usize = 19;
    let open = process.files().get(fd)?;
    if !open.can_read() {
        return Err(Errno::EBADF);
    }
    let to = UserRange { addr: to, len: len & u64::from(u32::MAX) };
    let mut position = open.position.lock();
    let mut done = 0;
    while let Some(entry) = open.file.entry(process, *position)? {
        let size = (HEAD + entry.name.len() + 1).next_multiple_of(8);
        if done + size as u64 > to.len {
            if done == 0 {
                return Err(Errno::EINVAL);
            }
            break;
        }
        let mut record = alloc::vec![0; size];
        record[..8].copy_from_slice(&entry.ino.to_le_bytes());
        record[8..16].copy_from_slice(&(*position + 1).to_le_bytes());
        record[16..18].copy_from_slice(&(size as u16).to_le_bytes());
        record[18] = type_of(entry.kind);
        record[HEAD..HEAD + entry.name.len()].copy_from_slice(entry.name.as_bytes());
        if let Err(fault) = copy_to_user(to.addr.wrapping_add(done), &record) {
            if done == 0 {
                return Err(fault.into());
            }
            break;
        }
        *position += 1;
        done += size as u64;
    }
    Ok(done)
}
