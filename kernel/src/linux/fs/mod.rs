//! Files by name: one tree of nodes, and the way from a path to one of them.
//!
//! ```text
//!   Place ── name and parent, for `..` and for paths ──► Node: what it is
//!                                                         ├─ Directory: names to nodes     tmpfs, proc
//!                                                         ├─ symbolic link
//!                                                         └─ open() ──► File               tmpfs, text, devices
//! ```
//!
//! File systems are not mounted: `/proc` and `/sys` are nodes of other kinds in a tree of tmpfs, of which `/tmp`, `/dev` and `/dev/shm`
//! are one each: names and links do not move between them. What the boot archive
//! brings lies in the same tree; its bytes stay where they are until somebody writes or maps them.

pub(in crate::linux) mod copy;
mod directory;
mod memory;
mod pipe;
mod proc;
mod sys;
mod tests;
mod text;
mod tree;
mod walk;

use alloc::string::String;
use alloc::sync::Arc;

use super::errno::Errno;
use super::file::{File, OpenFile, Stat, open};
use super::process::Process;

pub(super) use memory::memfd;
pub(super) use pipe::{ROOM as PIPE_ROOM, pipe};
pub(super) use tree::init;
pub(super) use walk::{Last, Place, Walk, root};

/// Types of files (`S_IFMT`).
pub(super) mod kind {
    pub(in crate::linux) const MASK: u32 = 0o170_000;
    pub(in crate::linux) const PIPE: u32 = 0o010_000;
    pub(in crate::linux) const CHAR: u32 = 0o020_000;
    pub(in crate::linux) const DIRECTORY: u32 = 0o040_000;
    pub(in crate::linux) const REGULAR: u32 = 0o100_000;
    pub(in crate::linux) const LINK: u32 = 0o120_000;
}

/// Which file system a file is in (`st_dev`).
pub(super) mod device {
    pub(in crate::linux) const ROOT: u64 = 1;
    pub(in crate::linux) const PROC: u64 = 2;
    pub(in crate::linux) const SYS: u64 = 3;
    pub(in crate::linux) const PIPES: u64 = 4;
    pub(in crate::linux) const DEV: u64 = 5;
    pub(in crate::linux) const SHM: u64 = 6;
    pub(in crate::linux) const TMP: u64 = 7;
}

/// A name's place in a directory.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) ino: u64,
    /// Type of the file ([`kind`]).
    pub(super) kind: u32,
    pub(super) name: String,
}

/// Where a symbolic link leads.
pub(super) enum Target {
    /// To this path.
    Path(String),
    /// To this very place, whatever the path may lead to by now; the path is only told.
    Place(Place, String),
}

/// What a name stands for. Calls come from any thread, with interrupts on.
pub(super) trait Node: Send + Sync {
    /// What `stat` tells.
    fn stat(&self) -> Stat;

    /// Its number and kind, which never change.
    fn identity(&self) -> (u64, u32) {
        let stat = self.stat();
        (stat.ino, stat.mode & kind::MASK)
    }

    /// It as a directory.
    fn directory(&self) -> Option<&dyn Directory> {
        None
    }

    /// Where it leads, if it is a symbolic link.
    ///
    /// # Errors
    /// What it led to is gone.
    fn link(&self, _process: &Process) -> Option<Result<Target, Errno>> {
        None
    }

    /// Opens what is no directory and no link.
    ///
    /// # Errors
    /// Of its own.
    fn open(self: Arc<Self>, _process: &Process, _flags: u32) -> Result<Arc<dyn File>, Errno> {
        Err(Errno::ENXIO)
    }

    /// Makes it so many bytes long.
    ///
    /// # Errors
    /// EINVAL for what has no length.
    fn set_len(&self, _len: u64) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    /// Sets its permissions.
    ///
    /// # Errors
    /// EPERM where they are fixed.
    fn set_mode(&self, _mode: u32) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    /// How many names it has more, or fewer.
    fn add_links(&self, _more: i64) {}
}

/// What a directory can do. The files of one file system stay in it.
pub(super) trait Directory {
    /// What `name` stands for.
    ///
    /// # Errors
    /// ENOENT.
    fn find(&self, process: &Process, name: &str) -> Result<Arc<dyn Node>, Errno>;

    /// All names.
    fn entries(&self, process: &Process) -> alloc::vec::Vec<Entry>;

    /// Makes a node with a name, or, without one, a file that goes with its last descriptor.
    ///
    /// # Errors
    /// EEXIST; EACCES where nothing can be made; ENOENT in a directory that was removed.
    fn make(&self, _name: Option<&str>, _what: New<'_>) -> Result<Arc<dyn Node>, Errno> {
        Err(Errno::EACCES)
    }

    /// Gives a node a name, instead of what has it now. For links and renames; the caller has checked what stands there.
    ///
    /// # Errors
    /// EPERM where nothing can be made.
    fn put(&self, _name: &str, _node: Arc<dyn Node>) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    /// Takes a name away; an empty directory with it.
    ///
    /// # Errors
    /// ENOENT, EISDIR, ENOTDIR, ENOTEMPTY; EPERM where nothing can be removed.
    fn remove(&self, _name: &str, _directory: bool) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    /// Takes a name away and nothing else: the node goes on under another one.
    fn forget(&self, _name: &str) {}

    /// Has it no names?
    fn is_empty(&self) -> bool {
        false
    }

    /// The directory of this name, made if nothing is there: for who builds the tree.
    fn subdirectory(&self, _name: &str) -> Option<Arc<dyn Node>> {
        None
    }
}

/// What is to be made.
#[derive(Clone, Copy)]
pub(super) enum New<'a> {
    File(u32),
    Directory(u32),
    Link(&'a str),
}

/// The path of `openat`: where it begins, if it is relative, and its text.
pub(super) struct Path<'a> {
    pub(super) from: Result<Place, Errno>,
    pub(super) text: &'a str,
}

/// Opens a file.
///
/// # Errors
/// Those of `openat`.
pub(super) fn open(
    process: &Process,
    path: &Path<'_>,
    flags: u32,
    mode: u32,
) -> Result<Arc<OpenFile>, Errno> {
    let flags = checked(flags)?;
    if flags & open::TMPFILE == open::TMPFILE {
        let place = Walk::of(process, path)?.follow(process)?;
        let directory = place.node().directory().ok_or(Errno::ENOTDIR)?;
        let node = directory.make(None, New::File(mode)).map_err(|error| match error {
            Errno::EACCES => Errno::EOPNOTSUPP,
            error => error,
        })?;
        let name = alloc::format!("#{}", node.stat().ino);
        return opened(process, place.child(&name, node), flags);
    }
    let walk = Walk::of(process, path)?;
    let place = if flags & open::CREAT != 0 {
        match create(process, walk, flags, mode)? {
            Made::Now(place) => return opened(process, place, flags & !open::TRUNC),
            Made::Before(place) => place,
        }
    } else if flags & open::NOFOLLOW != 0 {
        let place = walk.here(process)?;
        if place.node().link(process).is_some() && flags & open::PATH == 0 {
            return Err(Errno::ELOOP);
        }
        place
    } else {
        walk.follow(process)?
    };
    opened(process, place, flags)
}

/// Flags that go together, as the call sees them.
fn checked(flags: u32) -> Result<u32, Errno> {
    let flags = flags & open::KNOWN;
    let writes = flags & open::ACCESS != open::RDONLY;
    if flags & open::PATH != 0 {
        return Ok(flags & (open::PATH | open::DIRECTORY | open::NOFOLLOW | open::CLOEXEC));
    }
    if flags & open::TMPFILE & !open::DIRECTORY != 0 {
        let whole = flags & open::TMPFILE == open::TMPFILE;
        return if whole && writes && flags & open::CREAT == 0 { Ok(flags) } else { Err(Errno::EINVAL) };
    }
    let both = open::CREAT | open::DIRECTORY;
    if flags & both == both { Err(Errno::EINVAL) } else { Ok(flags) }
}

/// A file that was asked for with `O_CREAT`.
enum Made {
    Now(Place),
    Before(Place),
}

fn create(process: &Process, walk: Walk, flags: u32, mode: u32) -> Result<Made, Errno> {
    let exclusive = flags & open::EXCL != 0;
    let last = if exclusive { walk.last(process)? } else { walk.last_followed(process)? };
    let Last::Name { parent, name, slash, found } = last else {
        return Err(if exclusive { Errno::EEXIST } else { Errno::EISDIR });
    };
    if slash {
        return Err(Errno::EISDIR);
    }
    match found {
        Some(_) if exclusive => Err(Errno::EEXIST),
        Some(place) if place.node().directory().is_some() => Err(Errno::EISDIR),
        Some(place) => Ok(Made::Before(place)),
        None => {
            let directory = parent.node().directory().ok_or(Errno::ENOTDIR)?;
            let node = directory.make(Some(&name), New::File(mode))?;
            Ok(Made::Now(parent.child(&name, node)))
        }
    }
}

/// Opens what stands at `place`.
fn opened(process: &Process, place: Place, flags: u32) -> Result<Arc<OpenFile>, Errno> {
    let node = Arc::clone(place.node());
    let writes = flags & open::ACCESS != open::RDONLY;
    if flags & open::DIRECTORY != 0 && flags & open::TMPFILE != open::TMPFILE && node.directory().is_none() {
        return Err(Errno::ENOTDIR);
    }
    // What `F_GETFL` tells.
    let large = if flags & open::PATH == 0 { open::LARGEFILE } else { 0 };
    let kept = large | flags & !(open::CREAT | open::EXCL | open::TRUNC | open::CLOEXEC);
    let file: Arc<dyn File> = if node.directory().is_some() || flags & open::PATH != 0 {
        if writes && flags & open::PATH == 0 {
            return Err(Errno::EISDIR);
        }
        Arc::new(directory::Opened::new(place.clone()))
    } else {
        if flags & open::TRUNC != 0 && node.stat().mode & kind::MASK == kind::REGULAR {
            node.set_len(0)?;
        }
        node.open(process, flags)?
    };
    Ok(OpenFile::at(file, kept, place))
}
