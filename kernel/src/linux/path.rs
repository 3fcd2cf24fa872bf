//! From a path to a program.

use alloc::borrow::Cow;
use alloc::string::String;

use super::errno::Errno;
use super::fs::{Path, Walk, kind};
use super::process::Process;

/// A program's file.
pub(super) struct ProgramFile {
    pub(super) path: String,
    pub(super) contents: Cow<'static, [u8]>,
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
    let contents = node.open(process, 0)?.contents().ok_or(Errno::EACCES)?;
    Ok(ProgramFile { path: place.path(), contents })
}
