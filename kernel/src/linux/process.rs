//! What a process has.

use alloc::string::String;
use alloc::sync::Arc;

use farpage_mm::OutOfMemory;

use crate::task::Mutex;

use super::file::Descriptors;
use super::memory::Memory;

/// A process.
pub(super) struct Process {
    memory: Mutex<Arc<Memory>>,
    files: Mutex<Arc<Descriptors>>,
    /// The path of the program that it runs.
    pub(super) exe: Mutex<String>,
}

impl Process {
    /// One with nothing in its address space.
    ///
    /// # Errors
    /// Out of memory.
    pub(super) fn new(exe: &str) -> Result<Arc<Self>, OutOfMemory> {
        let memory = Arc::new(Memory::new()?);
        Ok(Arc::new(Self {
            memory: Mutex::new(memory),
            files: Mutex::new(Arc::new(Descriptors::default())),
            exe: Mutex::new(exe.into()),
        }))
    }

    /// Its memory.
    pub(super) fn memory(&self) -> Arc<Memory> {
        Arc::clone(&self.memory.lock())
    }

    /// Its descriptors.
    pub(super) fn files(&self) -> Arc<Descriptors> {
        Arc::clone(&self.files.lock())
    }
}
