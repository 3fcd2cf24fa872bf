//! Where a process is among the files, and which permissions its new files do not get.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::fs::{Place, root};
use crate::task::Mutex;

/// Working directory and mask.
pub(super) struct Whereabouts {
    pub(super) directory: Mutex<Place>,
    pub(super) umask: AtomicU32,
}

impl Default for Whereabouts {
    fn default() -> Self {
        Self { directory: Mutex::new(root()), umask: AtomicU32::new(0o22) }
    }
}

impl Whereabouts {
    /// That of a new process.
    pub(super) fn copy(&self) -> Self {
        let directory = Mutex::new(self.directory.lock().clone());
        Self { directory, umask: AtomicU32::new(self.umask.load(Relaxed)) }
    }
}
