//! Names: opening, making, moving and removing.

use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use super::{Answer, CWD, at, masked, path, path_text, walk};
use crate::arch::x86_64::uaccess::copy_to_user;
use crate::linux::errno::Errno;
use crate::linux::file::open;
use crate::linux::fs::{self, Directory, Last, New, Node, Place, Target, kind};
use crate::linux::process::Process;

pub(super) fn open_at(process: &Process, fd: u64, name: u64, flags: u64, mode: u64) -> Answer {
    let flags = flags as u32;
    let text = path_text(name)?;
    let open = fs::open(process, &path(process, fd, &text), flags, masked(process, mode))?;
    process.files().add(open, 0, flags & open::CLOEXEC != 0)
}

pub(super) fn creat(process: &Process, name: u64, mode: u64) -> Answer {
    let flags = open::CREAT | open::WRONLY | open::TRUNC;
    open_at(process, CWD, name, flags.into(), mode)
}

/// The directory that a new name goes to, and the name.
fn new_name(process: &Process, fd: u64, text: &str, for_directory: bool) -> Result<(Place, String), Errno> {
    match walk(process, fd, text)?.last(process)? {
        Last::Dots(_) => Err(Errno::EEXIST),
        Last::Name { found: Some(_), .. } => Err(Errno::EEXIST),
        Last::Name { slash: true, .. } if !for_directory => Err(Errno::ENOENT),
        Last::Name { parent, name, .. } => Ok((parent, name)),
    }
}

fn directory_of(place: &Place) -> Result<&dyn Directory, Errno> {
    place.node().directory().ok_or(Errno::ENOTDIR)
}

pub(super) fn mkdir_at(process: &Process, fd: u64, name: u64, mode: u64) -> Answer {
    let text = path_text(name)?;
    let (parent, name) = new_name(process, fd, &text, true)?;
    let mode = masked(process, mode) & 0o1777;
    directory_of(&parent)?.make(Some(&name), New::Directory(mode)).map_err(not_made)?;
    Ok(0)
}

pub(super) fn symlink_at(process: &Process, target: u64, fd: u64, name: u64) -> Answer {
    let target = path_text(target)?;
    if target.is_empty() {
        return Err(Errno::ENOENT);
    }
    let text = path_text(name)?;
    let (parent, name) = new_name(process, fd, &text, false)?;
    directory_of(&parent)?.make(Some(&name), New::Link(&target)).map_err(not_made)?;
    Ok(0)
}

/// Where no file can be made, nothing else can, and that is another error.
fn not_made(error: Errno) -> Errno {
    if error == Errno::EACCES { Errno::EPERM } else { error }
}

pub(super) fn link_at(process: &Process, from: (u64, u64), to: (u64, u64), flags: u64) -> Answer {
    if flags & !(at::SYMLINK_FOLLOW | at::EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let text = path_text(from.1)?;
    let walk = walk(process, from.0, &text)?;
    let follows = flags & at::SYMLINK_FOLLOW != 0;
    let old = if follows { walk.follow(process)? } else { walk.here(process)? };
    let text = path_text(to.1)?;
    let (parent, name) = new_name(process, to.0, &text, false)?;
    let stat = old.node().stat();
    if stat.dev != parent.node().stat().dev {
        return Err(Errno::EXDEV);
    }
    if old.node().directory().is_some() {
        return Err(Errno::EPERM);
    }
    if stat.nlink == 0 {
        return Err(Errno::ENOENT);
    }
    directory_of(&parent)?.put(&name, Arc::clone(old.node()))?;
    old.node().add_links(1);
    Ok(0)
}

pub(super) fn unlink_at(process: &Process, fd: u64, name: u64, flags: u64) -> Answer {
    if flags & !at::REMOVEDIR != 0 {
        return Err(Errno::EINVAL);
    }
    let removes_directory = flags & at::REMOVEDIR != 0;
    let text = path_text(name)?;
    let last = walk(process, fd, &text)?.last(process)?;
    let Last::Name { parent, name, slash, found } = last else {
        return Err(match text.trim_end_matches('/').rsplit('/').next() {
            _ if !removes_directory => Errno::EISDIR,
            Some(".") => Errno::EINVAL,
            Some("..") => Errno::ENOTEMPTY,
            _ => Errno::EBUSY,
        });
    };
    let node = found.ok_or(Errno::ENOENT)?;
    if slash && !removes_directory {
        let is_directory = node.node().directory().is_some();
        return Err(if is_directory { Errno::EISDIR } else { Errno::ENOTDIR });
    }
    directory_of(&parent)?.remove(&name, removes_directory)?;
    Ok(0)
}

pub(super) fn rename_at(process: &Process, from: (u64, u64), to: (u64, u64), flags: u64) -> Answer {
    const NOREPLACE: u64 = 1;
    if flags & !NOREPLACE != 0 {
        return Err(Errno::EINVAL); // an exchange is not here
    }
    let (old_text, new_text) = (path_text(from.1)?, path_text(to.1)?);
    let old = walk(process, from.0, &old_text)?.last(process)?;
    let new = walk(process, to.0, &new_text)?.last(process)?;
    let dev = |last: &Last| match last {
        Last::Dots(place) | Last::Name { parent: place, .. } => place.node().stat().dev,
    };
    if dev(&old) != dev(&new) {
        return Err(Errno::EXDEV);
    }
    let Last::Name { parent: old_parent, name: old_name, found, slash: old_slash } = old else {
        return Err(Errno::EBUSY);
    };
    let Last::Name { parent: new_parent, name: new_name, found: there, slash: new_slash } = new else {
        return Err(if flags & NOREPLACE != 0 { Errno::EEXIST } else { Errno::EBUSY });
    };
    let node = Arc::clone(found.ok_or(Errno::ENOENT)?.node());
    if there.is_some() && flags & NOREPLACE != 0 {
        return Err(Errno::EEXIST);
    }
    let is_directory = node.directory().is_some();
    if !is_directory && (old_slash || new_slash) {
        return Err(Errno::ENOTDIR);
    }
    if is_directory && new_parent.is_in(&node) {
        return Err(Errno::EINVAL);
    }
    if let Some(there) = &there {
        if Arc::ptr_eq(there.node(), &node) {
            return Ok(0);
        }
        if old_parent.is_in(there.node()) {
            return Err(Errno::ENOTEMPTY);
        }
        replaceable(there.node(), is_directory)?;
    }
    directory_of(&new_parent)?.put(&new_name, node)?;
    directory_of(&old_parent)?.forget(&old_name);
    Ok(0)
}

/// May what stands there make way for a directory, or for something else?
fn replaceable(there: &Arc<dyn Node>, by_directory: bool) -> Result<(), Errno> {
    match (there.directory(), by_directory) {
        (Some(_), false) => Err(Errno::EISDIR),
        (None, true) => Err(Errno::ENOTDIR),
        (Some(directory), true) if !directory.is_empty() => Err(Errno::ENOTEMPTY),
        _ => Ok(()),
    }
}

pub(super) fn readlink_at(process: &Process, fd: u64, name: u64, to: u64, len: u64) -> Answer {
    if len as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let text = path_text(name)?;
    let place = walk(process, fd, &text)?.here(process)?;
    let target = match place.node().link(process).ok_or(Errno::EINVAL)?? {
        Target::Path(text) | Target::Place(_, text) => text,
    };
    let bytes = &target.as_bytes()[..target.len().min(len as u32 as usize)];
    copy_to_user(to, bytes)?;
    Ok(bytes.len() as u64)
}

pub(super) fn getcwd(process: &Process, to: u64, len: u64) -> Answer {
    let place = process.place.directory.lock().clone();
    if place.node().stat().nlink == 0 {
        return Err(Errno::ENOENT);
    }
    let mut path = place.path();
    path.push('\0');
    if path.len() as u64 > len {
        return Err(Errno::ERANGE);
    }
    copy_to_user(to, path.as_bytes())?;
    Ok(path.len() as u64)
}

pub(super) fn chdir(process: &Process, name: u64) -> Answer {
    let text = path_text(name)?;
    let place = walk(process, CWD, &text)?.follow(process)?;
    directory_of(&place)?;
    *process.place.directory.lock() = place;
    Ok(0)
}

pub(super) fn fchdir(process: &Process, fd: u64) -> Answer {
    let open = process.files().get(fd)?;
    let place = open.place().cloned().ok_or(Errno::ENOTDIR)?;
    directory_of(&place)?;
    *process.place.directory.lock() = place;
    Ok(0)
}

pub(super) fn umask(process: &Process, mask: u64) -> Answer {
    Ok(process.place.umask.swap(mask as u32 & 0o777, Relaxed).into())
}

pub(super) fn chmod_at(process: &Process, fd: u64, name: u64, mode: u64) -> Answer {
    let text = path_text(name)?;
    walk(process, fd, &text)?.follow(process)?.node().set_mode(mode as u32)?;
    Ok(0)
}

pub(super) fn fchmod(process: &Process, fd: u64, mode: u64) -> Answer {
    let open = process.files().get(fd)?;
    if open.has(open::PATH) {
        return Err(Errno::EBADF);
    }
    open.file.set_mode(mode as u32)?;
    Ok(0)
}

/// All files are root's, and stay so.
pub(super) fn chown_at(process: &Process, fd: u64, name: u64) -> Answer {
    let text = path_text(name)?;
    walk(process, fd, &text)?.follow(process)?;
    Ok(0)
}

/// Files have no times here: they are set, and forgotten.
pub(super) fn utimensat(process: &Process, fd: u64, name: u64) -> Answer {
    if name == 0 {
        process.files().get(fd)?;
        return Ok(0);
    }
    chown_at(process, fd, name)
}

/// What kind of file `mode` says.
pub(super) fn type_of(mode: u32) -> u8 {
    ((mode & kind::MASK) >> 12) as u8
}
