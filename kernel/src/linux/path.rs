//! From a path to a program.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::sync::Arc;

use spin::Once;

use super::errno::Errno;
use super::process::Process;

/// A program's file.
pub(super) struct ProgramFile {
    pub(super) path: String,
    pub(super) contents: Cow<'static, [u8]>,
}

/// The program that was asked for.
pub(super) static FIRST: Once<&'static [u8]> = Once::new();

/// The program that a path names.
///
/// # Errors
/// ENOENT.
pub(super) fn program(process: &Arc<Process>, path: &str) -> Result<ProgramFile, Errno> {
    let own = process.exe.lock().clone();
    if path != "/proc/self/exe" && path != own {
        return Err(Errno::ENOENT);
    }
    let contents = FIRST.get().copied().ok_or(Errno::ENOENT)?;
    Ok(ProgramFile { path: own, contents: Cow::Borrowed(contents) })
}
