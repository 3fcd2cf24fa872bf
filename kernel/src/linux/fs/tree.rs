//! What stands in the tree from the start.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use farpage_boot::cpio;
use spin::Once;

use super::memory::{TmpDirectory, TmpFile, link};
use super::{Directory, Entry, Node, device, kind, proc, sys};
use crate::linux::dev;
use crate::linux::errno::Errno;
use crate::linux::file::Stat;
use crate::linux::process::Process;

/// Files of the boot archive whose names begin so stand in the root.
const ROOT: &[u8] = b"root/";
/// Where the program lies in the archive, and in the tree if the archive has it under no name.
const PROGRAM: (&[u8], &str) = (b"exec/program", "program");

static ARCHIVE: Once<&'static [u8]> = Once::new();

/// Says what the boot archive is. Before the tree is used first.
pub(in crate::linux) fn init(archive: &'static [u8]) {
    ARCHIVE.call_once(|| archive);
}

/// Makes the tree.
pub(super) fn build() -> Arc<dyn Node> {
    let root = TmpDirectory::new(device::ROOT, 0o755);
    let devices = TmpDirectory::new(device::DEV, 0o755);
    devices.add("shm", TmpDirectory::new(device::SHM, 0o1777));
    for (name, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        devices.add(name, link(to));
    }
    for device in dev::DEVICES.iter().filter(|device| device.is_there()) {
        devices.add(device.name, dev::node(device));
    }
    root.add("dev", devices);
    root.add("tmp", TmpDirectory::new(device::TMP, 0o1777));
    root.add("proc", proc::root());
    root.add("sys", sys::root());
    let archive = ARCHIVE.get().copied().unwrap_or_default();
    // A bad archive would have been found by the loader, which read the kernel from it.
    let _ = cpio::for_each(archive, |name, data| {
        if let Some(path) = name.strip_prefix(ROOT).and_then(|path| core::str::from_utf8(path).ok()) {
            add(&root, path, data);
        } else if name == PROGRAM.0 {
            root.add(PROGRAM.1, TmpFile::of_archive(data));
        }
    });
    root
}

/// A file of the archive, and the directories above it.
fn add(root: &Arc<TmpDirectory>, path: &str, data: &'static [u8]) {
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut at: Arc<dyn Node> = Arc::clone(root) as Arc<dyn Node>;
    for part in above.split('/').filter(|part| !part.is_empty()) {
        let Some(next) = at.directory().and_then(|directory| directory.subdirectory(part)) else { return };
        at = next;
    }
    if let Some(directory) = at.directory() {
        // Where there is something else already, that stays.
        let _ = directory.put(name, TmpFile::of_archive(data));
    }
}

/// A directory that never changes.
pub(super) struct Fixed {
    dev: u64,
    ino: u64,
    names: Vec<(&'static str, Arc<dyn Node>)>,
}

impl Fixed {
    pub(super) const fn new(dev: u64, ino: u64) -> Self {
        Self { dev, ino, names: Vec::new() }
    }

    pub(super) fn add(&mut self, name: &'static str, node: Arc<dyn Node>) {
        self.names.push((name, node));
    }
}

impl Node for Fixed {
    fn stat(&self) -> Stat {
        let below = self.names.iter().filter(|(_, node)| node.directory().is_some()).count() as u64;
        let mode = kind::DIRECTORY | 0o555;
        Stat { ino: self.ino, mode, nlink: 2 + below, dev: self.dev, ..Stat::default() }
    }

    fn directory(&self) -> Option<&dyn Directory> {
        Some(self)
    }
}

impl Directory for Fixed {
    fn find(&self, _process: &Process, name: &str) -> Result<Arc<dyn Node>, Errno> {
        let found = self.names.iter().find(|(known, _)| *known == name);
        found.map(|(_, node)| Arc::clone(node)).ok_or(Errno::ENOENT)
    }

    fn entries(&self, _process: &Process) -> Vec<Entry> {
        let entry = |(name, node): &(&str, Arc<dyn Node>)| {
            let (ino, kind) = node.identity();
            Entry { ino, kind, name: String::from(*name) }
        };
        self.names.iter().map(entry).collect()
    }
}
