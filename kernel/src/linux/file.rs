//! Open files, and the table of a process's descriptors.
//!
//! ```text
//!   Descriptors ── number ──► OpenFile (position, flags; shared by dup and fork) ──► dyn File (what it is)
//! ```
//!
//! A [`File`] is made for each opening; what has contents (a file of `/tmp`, a device) shares them behind it. When the last
//! descriptor of an opening goes, its `OpenFile` is dropped and with it the `File`: its `Drop` is the close.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::task::Mutex;
use crate::vm::Machine;
use farpage_mm::{ObjectRef, Prot, VaRange};

use super::errno::Errno;
use super::fs::{Entry, Place};
use super::process::Process;

/// Flags of an opening (`asm-generic/fcntl.h`).
pub(super) mod open {
    pub(in crate::linux) const ACCESS: u32 = 3;
    pub(in crate::linux) const RDONLY: u32 = 0;
    pub(in crate::linux) const WRONLY: u32 = 1;
    pub(in crate::linux) const RDWR: u32 = 2;
    pub(in crate::linux) const CREAT: u32 = 0o100;
    pub(in crate::linux) const EXCL: u32 = 0o200;
    pub(in crate::linux) const TRUNC: u32 = 0o1000;
    pub(in crate::linux) const APPEND: u32 = 0o2000;
    pub(in crate::linux) const NONBLOCK: u32 = 0o4000;
    pub(in crate::linux) const LARGEFILE: u32 = 0o100_000;
    pub(in crate::linux) const DIRECTORY: u32 = 0o200_000;
    pub(in crate::linux) const NOFOLLOW: u32 = 0o400_000;
    pub(in crate::linux) const CLOEXEC: u32 = 0o2_000_000;
    pub(in crate::linux) const PATH: u32 = 0o10_000_000;
    pub(in crate::linux) const TMPFILE: u32 = 0o20_000_000 | DIRECTORY;
    /// All that mean something; others are ignored, as ever.
    pub(in crate::linux) const KNOWN: u32 =
        ACCESS | CREAT | EXCL | TRUNC | APPEND | NONBLOCK | LARGEFILE | NOFOLLOW | CLOEXEC | PATH | TMPFILE;
}

/// What `poll` tells (`asm-generic/poll.h`).
pub(super) mod poll {
    pub(in crate::linux) const IN: u16 = 1;
    pub(in crate::linux) const OUT: u16 = 4;
    pub(in crate::linux) const ERR: u16 = 8;
    pub(in crate::linux) const HUP: u16 = 16;
    pub(in crate::linux) const NVAL: u16 = 32;
    /// Said wherever `IN` is.
    pub(in crate::linux) const RDNORM: u16 = 64;
    /// Said wherever `OUT` is.
    pub(in crate::linux) const WRNORM: u16 = 256;
}

/// What `stat` tells of a file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stat {
    /// Number of the file in its file system.
    pub(super) ino: u64,
    /// Type and permissions (`S_IFREG | 0o644`).
    pub(super) mode: u32,
    /// Names of it.
    pub(super) nlink: u64,
    /// Bytes.
    pub(super) size: u64,
    /// 4 KiB pages that it has.
    pub(super) pages: u64,
    /// Which device a device file is.
    pub(super) rdev: u64,
    /// Which file system it is in.
    pub(super) dev: u64,
}

/// User memory that a call reads or writes. Not checked: the copy does.
#[derive(Clone, Copy, Debug)]
pub(super) struct UserRange {
    pub(super) addr: u64,
    pub(super) len: u64,
}

/// How a file is to be mapped. The range is free, of whole pages, and in the user half.
#[derive(Clone, Copy, Debug)]
pub(super) struct MapRequest {
    pub(super) range: VaRange,
    pub(super) prot: Prot,
    /// `MAP_SHARED`; else private.
    pub(super) shared: bool,
    /// It may be made writable later: it is open for writing, or private.
    pub(super) may_write: bool,
    /// Page of the file at the range's start.
    pub(super) page: u64,
}

/// What an open descriptor leads to. Calls come from any thread, with interrupts on, and may sleep and fault.
pub(super) trait File: Send + Sync {
    /// What `fstat` tells.
    fn stat(&self) -> Stat;

    /// Has it a position, which reads and writes move?
    fn has_position(&self) -> bool {
        self.seek_is_zero()
    }

    /// Reads from byte `at` on (which means nothing where there is no position); how many bytes came. May sleep for the first.
    ///
    /// # Errors
    /// EFAULT and what the file has to say.
    fn read(&self, _at: u64, _to: UserRange) -> Result<u64, Errno> {
        Err(Errno::EINVAL)
    }

    /// Writes from byte `at` on, or at the end if that is `None` (`O_APPEND`); how many bytes went.
    ///
    /// # Errors
    /// As for reads.
    fn write(&self, _at: Option<u64>, _from: UserRange) -> Result<u64, Errno> {
        Err(Errno::EINVAL)
    }

    /// Makes it so many bytes long.
    ///
    /// # Errors
    /// It has no length to set.
    fn set_len(&self, _len: u64) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    /// Stays a seek where it is, at 0? So it does on `/dev/null` and its like.
    fn seek_is_zero(&self) -> bool {
        false
    }

    /// It is to answer EAGAIN rather than to sleep, or no longer.
    fn set_nonblock(&self, _on: bool) {}

    /// Sets its permissions.
    ///
    /// # Errors
    /// EPERM where they are fixed.
    fn set_mode(&self, _mode: u32) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    /// A command of its own.
    ///
    /// # Errors
    /// ENOTTY for one that it does not know.
    fn ioctl(&self, _process: &Process, _request: u32, _arg: u64) -> Result<u64, Errno> {
        Err(Errno::ENOTTY)
    }

    /// Maps it into the process.
    ///
    /// # Errors
    /// ENODEV where there is nothing to map.
    fn map(&self, _process: &Process, _request: &MapRequest) -> Result<(), Errno> {
        Err(Errno::ENODEV)
    }

    /// What would not wait ([`poll`]). When that changes, an [`Event`](crate::task::Event) happens.
    fn ready(&self) -> u16 {
        poll::IN | poll::OUT
    }

    /// The name of this number in a directory, `.` and `..` first; `None` at the end.
    ///
    /// # Errors
    /// ENOTDIR for what is none.
    fn entry(&self, _process: &Process, _index: u64) -> Result<Option<Entry>, Errno> {
        Err(Errno::ENOTDIR)
    }

    /// The memory that it is, where it can be mapped as a program; making it may fail.
    fn object(&self) -> Option<Result<ObjectRef<Machine>, Errno>> {
        None
    }

    /// All its bytes, for `execve`.
    fn contents(&self) -> Option<alloc::borrow::Cow<'static, [u8]>> {
        None
    }

    /// The process that a pidfd stands for.
    fn process(&self) -> Option<Arc<Process>> {
        None
    }
}

/// An opening of a file.
pub(super) struct OpenFile {
    pub(super) file: Arc<dyn File>,
    pub(super) position: Mutex<u64>,
    /// `O_ACCMODE`, `O_APPEND`, `O_NONBLOCK`, `O_PATH`.
    pub(super) flags: AtomicU32,
    /// Where in the tree it was found.
    place: Option<Place>,
    /// What to call it, if it was not found there.
    name: String,
}

impl OpenFile {
    /// An opening of a file that has no place in the tree; `name` is what `/proc/self/fd` says.
    pub(super) fn new(file: Arc<dyn File>, flags: u32, name: &str) -> Arc<Self> {
        let (position, flags) = (Mutex::new(0), AtomicU32::new(flags));
        Arc::new(Self { file, position, flags, place: None, name: name.into() })
    }

    /// An opening of what stands at `place`.
    pub(super) fn at(file: Arc<dyn File>, flags: u32, place: Place) -> Arc<Self> {
        let (position, flags) = (Mutex::new(0), AtomicU32::new(flags));
        Arc::new(Self { file, position, flags, place: Some(place), name: String::new() })
    }

    /// Where in the tree it was found.
    pub(super) fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// What `/proc/self/fd` and `/proc/self/maps` call it.
    pub(super) fn path(&self) -> String {
        let mut path = self.place.as_ref().map_or_else(|| self.name.clone(), Place::path);
        if path.starts_with('/') && self.file.stat().nlink == 0 {
            path.push_str(" (deleted)");
        }
        path
    }

    /// A flag of it, or several.
    pub(super) fn has(&self, flags: u32) -> bool {
        self.flags.load(Relaxed) & flags != 0
    }

    pub(super) fn can_read(&self) -> bool {
        !self.has(open::PATH) && self.flags.load(Relaxed) & open::ACCESS != open::WRONLY
    }

    pub(super) fn can_write(&self) -> bool {
        !self.has(open::PATH) && self.flags.load(Relaxed) & open::ACCESS != open::RDONLY
    }
}

/// A descriptor.
#[derive(Clone)]
struct Slot {
    open: Arc<OpenFile>,
    close_on_exec: bool,
}

/// How many descriptors there can be (`RLIMIT_NOFILE`).
pub(super) const MAX_FILES: usize = 1024;

/// The descriptors of a process, or of several with `CLONE_FILES`.
#[derive(Default)]
pub(super) struct Descriptors(Mutex<Vec<Option<Slot>>>);

impl Descriptors {
    /// What descriptor `fd` leads to.
    ///
    /// # Errors
    /// EBADF.
    pub(super) fn get(&self, fd: u64) -> Result<Arc<OpenFile>, Errno> {
        let slots = self.0.lock();
        let slot = usize::try_from(fd as u32).ok().and_then(|fd| slots.get(fd)).and_then(Option::as_ref);
        slot.map(|slot| Arc::clone(&slot.open)).ok_or(Errno::EBADF)
    }

    /// The lowest free number from `lowest` on for `open`.
    ///
    /// # Errors
    /// EMFILE.
    pub(super) fn add(&self, open: Arc<OpenFile>, lowest: usize, close_on_exec: bool) -> Result<u64, Errno> {
        let mut slots = self.0.lock();
        let free = (lowest..slots.len()).find(|&fd| slots[fd].is_none()).unwrap_or(slots.len().max(lowest));
        if free >= MAX_FILES {
            return Err(Errno::EMFILE);
        }
        put(&mut slots, free, Some(Slot { open, close_on_exec }));
        Ok(free as u64)
    }

    /// Makes `fd` lead to `open`; what it led to before is closed.
    ///
    /// # Errors
    /// EBADF for a number that cannot be.
    pub(super) fn replace(&self, fd: u64, open: Arc<OpenFile>, close_on_exec: bool) -> Result<(), Errno> {
        let fd = usize::try_from(fd).ok().filter(|&fd| fd < MAX_FILES).ok_or(Errno::EBADF)?;
        let old = put(&mut self.0.lock(), fd, Some(Slot { open, close_on_exec }));
        drop(old);
        Ok(())
    }

    /// Takes a descriptor away.
    ///
    /// # Errors
    /// EBADF.
    pub(super) fn close(&self, fd: u64) -> Result<(), Errno> {
        let slot = {
            let mut slots = self.0.lock();
            usize::try_from(fd as u32).ok().and_then(|fd| slots.get_mut(fd)).and_then(Option::take)
        };
        // Dropped here, with no lock held: a close may take its time.
        slot.map(drop).ok_or(Errno::EBADF)
    }

    /// `FD_CLOEXEC` of a descriptor.
    ///
    /// # Errors
    /// EBADF.
    pub(super) fn close_on_exec(&self, fd: u64) -> Result<bool, Errno> {
        let slots = self.0.lock();
        let slot = usize::try_from(fd).ok().and_then(|fd| slots.get(fd)).and_then(Option::as_ref);
        slot.map(|slot| slot.close_on_exec).ok_or(Errno::EBADF)
    }

    /// Sets it.
    ///
    /// # Errors
    /// EBADF.
    pub(super) fn set_close_on_exec(&self, fd: u64, on: bool) -> Result<(), Errno> {
        let mut slots = self.0.lock();
        let slot = usize::try_from(fd).ok().and_then(|fd| slots.get_mut(fd)).and_then(Option::as_mut);
        slot.map(|slot| slot.close_on_exec = on).ok_or(Errno::EBADF)
    }

    /// The numbers that lead somewhere.
    pub(super) fn numbers(&self) -> Vec<u32> {
        let slots = self.0.lock();
        (0..).zip(slots.iter()).filter(|(_, slot)| slot.is_some()).map(|(fd, _)| fd).collect()
    }

    /// Those of a new process: the same openings.
    pub(super) fn copy(&self) -> Self {
        Self(Mutex::new(self.0.lock().clone()))
    }

    /// Closes what an exec closes.
    pub(super) fn exec(&self) {
        let closed: Vec<Slot> = {
            let mut slots = self.0.lock();
            let goes = |slot: &mut Option<Slot>| slot.take_if(|slot| slot.close_on_exec);
            slots.iter_mut().filter_map(goes).collect()
        };
        drop(closed);
    }
}

fn put(slots: &mut Vec<Option<Slot>>, fd: usize, slot: Option<Slot>) -> Option<Slot> {
    if slots.len() <= fd {
        slots.resize_with(fd + 1, || None);
    }
    core::mem::replace(&mut slots[fd], slot)
}
