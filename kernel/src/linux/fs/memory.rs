//! Files and directories in memory (Linux: tmpfs).
//!
//! A file's contents are an object of the memory manager, so that what is mapped is what is read and written. A file of the boot
//! archive begins as bytes of that archive; its object is made when it is first mapped or changed.

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};

use farpage_mm::{HugeAdvice, Object, ObjectRef, PAGE_SIZE};

use super::copy::{read_by, write_by};
use super::{Directory, Entry, New, Node, Target, device, kind};
use crate::linux::errno::Errno;
use crate::linux::file::{File, MapRequest, OpenFile, Stat, UserRange, open};
use crate::linux::limits;
use crate::linux::process::Process;
use crate::task::Mutex;
use crate::vm::Machine;
use crate::vm::bytes::{read_bytes, write_bytes};

/// Longest file (`MAX_LFS_FILESIZE`); what lies beyond the object's most pages is a hole that cannot be filled.
const LEN_MAX: u64 = i64::MAX as u64;

fn next_ino() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Relaxed) + 1
}

/// What all kinds have.
struct Inode {
    /// Which file system it is in.
    dev: u64,
    ino: u64,
    mode: AtomicU32,
    links: AtomicI64,
}

impl Inode {
    fn new(dev: u64, mode: u32, links: i64) -> Self {
        Self { dev, ino: next_ino(), mode: AtomicU32::new(mode), links: AtomicI64::new(links) }
    }

    fn stat(&self) -> Stat {
        Stat {
            ino: self.ino,
            mode: self.mode.load(Relaxed),
            nlink: self.links.load(Relaxed) as u64,
            dev: self.dev,
            ..Stat::default()
        }
    }

    fn set_mode(&self, mode: u32) {
        let kind = self.mode.load(Relaxed) & kind::MASK;
        self.mode.store(kind | mode & 0o7777, Relaxed);
    }
}

/// A directory.
pub(super) struct TmpDirectory {
    inode: Inode,
    names: Mutex<BTreeMap<String, Arc<dyn Node>>>,
}

impl TmpDirectory {
    pub(super) fn new(dev: u64, mode: u32) -> Arc<Self> {
        let inode = Inode::new(dev, kind::DIRECTORY | mode, 2);
        Arc::new(Self { inode, names: Mutex::new(BTreeMap::new()) })
    }

    /// Gives `node` a name, for who builds the tree.
    pub(super) fn add(&self, name: &str, node: Arc<dyn Node>) {
        if node.directory().is_some() {
            self.inode.links.fetch_add(1, Relaxed);
        }
        self.names.lock().insert(name.to_string(), node);
    }

    fn is_removed(&self) -> bool {
        self.inode.links.load(Relaxed) == 0
    }
}

impl Node for TmpDirectory {
    fn stat(&self) -> Stat {
        let size = (self.names.lock().len() as u64 + 2) * 20;
        Stat { size, ..self.inode.stat() }
    }

    fn identity(&self) -> (u64, u32) {
        (self.inode.ino, kind::DIRECTORY)
    }

    fn directory(&self) -> Option<&dyn Directory> {
        Some(self)
    }

    fn set_mode(&self, mode: u32) -> Result<(), Errno> {
        self.inode.set_mode(mode);
        Ok(())
    }

    fn add_links(&self, more: i64) {
        self.inode.links.fetch_add(more, Relaxed);
    }
}

impl Directory for TmpDirectory {
    fn find(&self, _process: &Process, name: &str) -> Result<Arc<dyn Node>, Errno> {
        self.names.lock().get(name).cloned().ok_or(Errno::ENOENT)
    }

    fn entries(&self, _process: &Process) -> Vec<Entry> {
        let names = self.names.lock();
        let entry = |(name, node): (&String, &Arc<dyn Node>)| {
            // Not by `stat`, which takes the lock of a directory: the number and the kind do not change.
            let (ino, kind) = node.identity();
            Entry { ino, kind, name: name.clone() }
        };
        names.iter().map(entry).collect()
    }

    fn make(&self, name: Option<&str>, what: New<'_>) -> Result<Arc<dyn Node>, Errno> {
        let dev = self.inode.dev;
        let node: Arc<dyn Node> = match what {
            New::File(mode) => TmpFile::new(dev, mode, i64::from(name.is_some())),
            New::Directory(mode) => Self::new(dev, mode),
            New::Link(target) => {
                Arc::new(TmpLink { inode: Inode::new(dev, kind::LINK | 0o777, 1), target: target.into() })
            }
        };
        let Some(name) = name else { return Ok(node) };
        let mut names = self.names.lock();
        if self.is_removed() {
            return Err(Errno::ENOENT);
        }
        if names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        names.insert(name.to_string(), Arc::clone(&node));
        if matches!(what, New::Directory(_)) {
            self.inode.links.fetch_add(1, Relaxed);
        }
        Ok(node)
    }

    fn put(&self, name: &str, node: Arc<dyn Node>) -> Result<(), Errno> {
        if self.is_removed() {
            return Err(Errno::ENOENT);
        }
        let is_directory = node.directory().is_some();
        let old = self.names.lock().insert(name.to_string(), node);
        self.inode.links.fetch_add(i64::from(is_directory), Relaxed);
        if let Some(old) = old {
            self.let_go(&old);
        }
        Ok(())
    }

    fn remove(&self, name: &str, directory: bool) -> Result<(), Errno> {
        let mut names = self.names.lock();
        let node = names.get(name).ok_or(Errno::ENOENT)?;
        match node.directory() {
            Some(_) if !directory => return Err(Errno::EISDIR),
            None if directory => return Err(Errno::ENOTDIR),
            Some(below) if !below.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        let node = names.remove(name);
        drop(names);
        if let Some(node) = node {
            self.let_go(&node);
        }
        Ok(())
    }

    fn forget(&self, name: &str) {
        let node = self.names.lock().remove(name);
        if node.is_some_and(|node| node.directory().is_some()) {
            self.inode.links.fetch_sub(1, Relaxed);
        }
    }

    fn is_empty(&self) -> bool {
        self.names.lock().is_empty()
    }

    fn subdirectory(&self, name: &str) -> Option<Arc<dyn Node>> {
        if let Some(node) = self.names.lock().get(name) {
            return node.directory().is_some().then(|| Arc::clone(node));
        }
        let made: Arc<dyn Node> = Self::new(self.inode.dev, 0o755);
        self.add(name, Arc::clone(&made));
        Some(made)
    }
}

impl TmpDirectory {
    /// A name of `node` is gone.
    fn let_go(&self, node: &Arc<dyn Node>) {
        if node.directory().is_some() {
            self.inode.links.fetch_sub(1, Relaxed);
            node.add_links(-2);
        } else {
            node.add_links(-1);
        }
    }
}

/// A symbolic link.
struct TmpLink {
    inode: Inode,
    target: String,
}

impl Node for TmpLink {
    fn stat(&self) -> Stat {
        Stat { size: self.target.len() as u64, ..self.inode.stat() }
    }

    fn link(&self, _process: &Process) -> Option<Result<Target, Errno>> {
        Some(Ok(Target::Path(self.target.clone())))
    }

    fn add_links(&self, more: i64) {
        self.inode.links.fetch_add(more, Relaxed);
    }
}

/// Makes a symbolic link, for who builds the tree.
pub(super) fn link(target: &str) -> Arc<dyn Node> {
    Arc::new(TmpLink { inode: Inode::new(device::DEV, kind::LINK | 0o777, 1), target: target.into() })
}

/// Contents of a file.
enum Data {
    /// Nobody has changed or mapped them.
    Archive(&'static [u8]),
    Object(Contents),
}

/// Contents that can be mapped.
#[derive(Clone)]
struct Contents {
    object: ObjectRef<Machine>,
    /// Bytes. The object has as many pages as hold them, up to its most.
    len: u64,
    /// The same in the boot archive, while nobody can have changed them.
    archive: Option<&'static [u8]>,
}

/// A file.
pub(super) struct TmpFile {
    inode: Inode,
    data: Mutex<Data>,
}

impl TmpFile {
    fn new(dev: u64, mode: u32, links: i64) -> Arc<Self> {
        let inode = Inode::new(dev, kind::REGULAR | mode & 0o7777, links);
        Arc::new(Self { inode, data: Mutex::new(Data::Archive(&[])) })
    }

    /// A file of the boot archive.
    pub(super) fn of_archive(bytes: &'static [u8]) -> Arc<Self> {
        let inode = Inode::new(device::ROOT, kind::REGULAR | 0o755, 1);
        Arc::new(Self { inode, data: Mutex::new(Data::Archive(bytes)) })
    }

    fn read_at(&self, at: u64, to: &mut [u8]) -> usize {
        let data = self.data.lock();
        let contents = match &*data {
            Data::Archive(bytes) => {
                let from = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
                let len = from.len().min(to.len());
                to[..len].copy_from_slice(&from[..len]);
                return len;
            }
            Data::Object(contents) => contents,
        };
        let len = (contents.len.saturating_sub(at)).min(to.len() as u64) as usize;
        for (index, offset, part) in pages(at, len) {
            let to = &mut to[part];
            match contents.object.page(index) {
                Some(page) => read_bytes(&page, offset, to),
                None => to.fill(0),
            }
        }
        len
    }

    fn write_at(&self, at: Option<u64>, from: &[u8]) -> Result<usize, Errno> {
        let mut data = self.data.lock();
        let contents = changeable(&mut data)?;
        let at = at.unwrap_or(contents.len);
        let end = at.checked_add(from.len() as u64).filter(|&end| end <= LEN_MAX).ok_or(Errno::EFBIG)?;
        if end > contents.len {
            contents.object.resize(pages_of(end)).map_err(|_| Errno::ENOSPC)?;
        }
        let mut done = 0;
        for (index, offset, part) in pages(at, from.len()) {
            let Ok(page) = contents.object.page_or_alloc(index) else { break };
            done += part.len();
            write_bytes(&page, offset, &from[part]);
            page.set_dirty();
        }
        if done != 0 {
            contents.len = contents.len.max(at + done as u64);
        }
        if done < from.len() {
            let _ = contents.object.resize(pages_of(contents.len));
        }
        if done == 0 && !from.is_empty() { Err(Errno::ENOSPC) } else { Ok(done) }
    }

    fn resize(&self, len: u64) -> Result<(), Errno> {
        if len > LEN_MAX {
            return Err(Errno::EFBIG);
        }
        let mut data = self.data.lock();
        let contents = changeable(&mut data)?;
        let (index, offset) = (len / PAGE_SIZE, (len % PAGE_SIZE) as usize);
        if len < contents.len
            && offset != 0
            && let Some(page) = contents.object.page(index)
        {
            const ZEROS: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
            write_bytes(&page, offset, &ZEROS[offset..]);
        }
        contents.len = len;
        contents.object.resize(pages_of(len)).map_err(|_| Errno::ENOSPC)
    }

    fn len(&self) -> u64 {
        match &*self.data.lock() {
            Data::Archive(bytes) => bytes.len() as u64,
            Data::Object(contents) => contents.len,
        }
    }
}

/// The object of a file, to be changed.
fn changeable(data: &mut Data) -> Result<&mut Contents, Errno> {
    let contents = mappable(data)?;
    contents.archive = None;
    Ok(contents)
}

/// The object of a file, made if there is none.
fn mappable(data: &mut Data) -> Result<&mut Contents, Errno> {
    if let Data::Archive(bytes) = *data {
        let len = bytes.len() as u64;
        let object = Object::file(pages_of(len)).map_err(|_| Errno::ENOSPC)?;
        for (index, offset, part) in pages(0, bytes.len()) {
            let page = object.page_or_alloc(index).map_err(|_| Errno::ENOSPC)?;
            write_bytes(&page, offset, &bytes[part]);
        }
        *data = Data::Object(Contents { object, len, archive: Some(bytes) });
    }
    match data {
        Data::Object(contents) => Ok(contents),
        Data::Archive(_) => unreachable!("it has an object now"),
    }
}

/// Pages of an object that hold `len` bytes.
fn pages_of(len: u64) -> u64 {
    len.div_ceil(PAGE_SIZE).min(Object::<Machine>::MAX_PAGES)
}

/// `len` bytes from byte `at` on, page by page: index, first byte in the page, and which of the bytes.
fn pages(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, core::ops::Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let (index, offset) = ((at + done as u64) / PAGE_SIZE, ((at + done as u64) % PAGE_SIZE) as usize);
        let part = done..len.min(done + PAGE_SIZE as usize - offset);
        done = part.end;
        (!part.is_empty()).then_some((index, offset, part))
    })
}

impl Node for TmpFile {
    fn identity(&self) -> (u64, u32) {
        (self.inode.ino, kind::REGULAR)
    }

    fn stat(&self) -> Stat {
        let pages = match &*self.data.lock() {
            Data::Archive(bytes) => (bytes.len() as u64).div_ceil(PAGE_SIZE),
            Data::Object(contents) => contents.object.present(),
        };
        Stat { size: self.len(), pages, ..self.inode.stat() }
    }

    fn open(self: Arc<Self>, _process: &Process, _flags: u32) -> Result<Arc<dyn File>, Errno> {
        Ok(Arc::new(OpenTmp(self)))
    }

    fn set_len(&self, len: u64) -> Result<(), Errno> {
        self.resize(len)
    }

    fn set_mode(&self, mode: u32) -> Result<(), Errno> {
        self.inode.set_mode(mode);
        Ok(())
    }

    fn add_links(&self, more: i64) {
        self.inode.links.fetch_add(more, Relaxed);
    }
}

/// A file that is open.
struct OpenTmp(Arc<TmpFile>);

impl File for OpenTmp {
    fn stat(&self) -> Stat {
        self.0.stat()
    }

    fn has_position(&self) -> bool {
        true
    }

    fn read(&self, at: u64, to: UserRange) -> Result<u64, Errno> {
        read_by(to.first(self.0.len().saturating_sub(at)), |done, buffer| {
            Ok(self.0.read_at(at + done, buffer))
        })
    }

    fn write(&self, at: Option<u64>, from: UserRange) -> Result<u64, Errno> {
        if at.is_some_and(|at| at >= LEN_MAX) && from.len != 0 {
            return Err(Errno::EFBIG);
        }
        write_by(from, |done, bytes| self.0.write_at(at.map(|at| at + done), bytes))
    }

    fn set_len(&self, len: u64) -> Result<(), Errno> {
        self.0.resize(len)
    }

    fn set_mode(&self, mode: u32) -> Result<(), Errno> {
        self.0.set_mode(mode)
    }

    fn map(&self, process: &Process, request: &MapRequest) -> Result<(), Errno> {
        let writes = request.shared && request.may_write;
        let get = if writes { changeable } else { mappable };
        let object = get(&mut self.0.data.lock())?.object.clone();
        let memory = process.memory();
        let MapRequest { range, prot, page, shared, may_write } = *request;
        if shared && !may_write {
            memory.space().map_shared_read_only(range, prot, &object, page)?;
        } else if shared {
            memory.space().map_shared(range, prot, &object, page)?;
        } else {
            memory.space().map_private(range, prot, &object, page, HugeAdvice::Default)?;
        }
        Ok(())
    }

    fn object(&self) -> Option<Result<ObjectRef<Machine>, Errno>> {
        Some(mappable(&mut self.0.data.lock()).map(|contents| contents.object.clone()))
    }

    fn contents(&self) -> Option<Cow<'static, [u8]>> {
        let data = self.0.data.lock();
        if let Data::Archive(bytes) | Data::Object(Contents { archive: Some(bytes), .. }) = *data {
            return Some(Cow::Borrowed(bytes));
        }
        drop(data);
        let mut bytes = Vec::new();
        if !limits::have_room_for(self.0.len() as usize) {
            return None;
        }
        bytes.try_reserve_exact(self.0.len() as usize).ok()?;
        bytes.resize(self.0.len() as usize, 0);
        let len = self.0.read_at(0, &mut bytes);
        bytes.truncate(len);
        Some(Cow::Owned(bytes))
    }
}

/// A file without a name in any directory (`memfd_create`).
pub(in crate::linux) fn memfd(name: &str) -> Arc<OpenFile> {
    let node = TmpFile::new(device::ROOT, 0o777, 0);
    let path = alloc::format!("/memfd:{name}");
    OpenFile::new(Arc::new(OpenTmp(node)), open::RDWR | open::LARGEFILE, &path)
}
