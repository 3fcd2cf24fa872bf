//! From a path to a program.

use alloc::borrow::Cow;
use alloc::string::String;

use farpage_mm::ObjectRef;

use super::errno::Errno;
use super::fs::{Path, Walk, kind};
use super::memory::MappedFile;
use super::process::Process;
use crate::vm::Machine;

/// A program's file.
pub(super) struct ProgramFile {
    pub(super) path: String,
    pub(super) contents: Cow<'static, [u8]>,
    /// What is mapped of it, and what that is called.
    pub(super) mapped: Mapped,
}

/// A program's file as memory.
pub(super) struct Mapped {
    pub(super) object: ObjectRef<Machine>,
    pub(super) file: MappedFile,
}

/// The program that a path names.
///
/// # Errors
/// Those of a look-up; EACCES for what is no file that can be run.
pub(super) fn program(process: &Process, path: &str) -> Result<ProgramFile, Errno> {
    let path = Path { from: Ok(process.place.directory.lock().clone()), text: path };
    let place = Walk::of(process, &path)?.follow(process)?;
    let node = alloc::sync::Arc::clone(place.node());
    let mode = node.stat().mode;
    if mode & kind::MASK != kind::REGULAR || mode & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    let stat = node.stat();
    let file = node.open(process, 0)?;
    let (contents, object) = (file.contents().ok_or(Errno::EACCES)?, file.object().ok_or(Errno::EACCES)??);
    let path = place.path();
    let file = MappedFile { path: path.clone(), dev: stat.dev, ino: stat.ino };
    Ok(ProgramFile { path, contents, mapped: Mapped { object, file } })
}
