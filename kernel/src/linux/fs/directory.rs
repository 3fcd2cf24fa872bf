//! A directory that is open.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Entry, Place, kind};
use crate::linux::errno::Errno;
use crate::linux::file::{File, Stat, UserRange};
use crate::linux::process::Process;
use crate::task::Mutex;

/// A directory that is open; or, with `O_PATH`, anything.
pub(super) struct Opened {
    place: Place,
    /// The names as they were when the first was asked for.
    entries: Mutex<Option<Vec<Entry>>>,
}

impl Opened {
    pub(super) fn new(place: Place) -> Self {
        Self { place, entries: Mutex::new(None) }
    }

    fn list(&self, process: &Process) -> Result<Vec<Entry>, Errno> {
        let node = self.place.node();
        let directory = node.directory().ok_or(Errno::ENOTDIR)?;
        if node.stat().nlink == 0 {
            return Err(Errno::ENOENT);
        }
        let itself = |ino, name| Entry { ino, kind: kind::DIRECTORY, name: String::from(name) };
        let mut entries = Vec::new();
        entries.push(itself(node.stat().ino, "."));
        entries.push(itself(self.place.parent().node().stat().ino, ".."));
        entries.extend(directory.entries(process));
        Ok(entries)
    }
}

impl File for Opened {
    fn stat(&self) -> Stat {
        self.place.node().stat()
    }

    fn has_position(&self) -> bool {
        true
    }

    fn read(&self, _at: u64, _to: UserRange) -> Result<u64, Errno> {
        Err(Errno::EISDIR)
    }

    fn entry(&self, process: &Process, index: u64) -> Result<Option<Entry>, Errno> {
        // From the beginning is from anew.
        let known = if index == 0 { None } else { self.entries.lock().take() };
        let entries = match known {
            Some(entries) => entries,
            None => self.list(process)?,
        };
        let entry = usize::try_from(index).ok().and_then(|index| entries.get(index)).cloned();
        *self.entries.lock() = Some(entries);
        Ok(entry)
    }
}
