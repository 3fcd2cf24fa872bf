//! Texts in a program's memory.

use alloc::string::String;
use alloc::vec::Vec;

use super::errno::Errno;
use crate::arch::x86_64::uaccess::copy_from_user;

/// The longest path, its zero byte among it (`PATH_MAX`).
const PATH_MAX: usize = 4096;

/// The text at `at` that a zero byte ends; `None` if it is longer than `most`.
///
/// # Errors
/// EFAULT.
pub(super) fn text(at: u64, most: usize) -> Result<Option<Vec<u8>>, Errno> {
    let mut text = Vec::new();
    loop {
        // Not over the edge of a page: what lies behind it need not be there.
        let from = at.wrapping_add(text.len() as u64);
        let mut part = [0; 256];
        let len = part.len().min(4096 - (from % 4096) as usize);
        copy_from_user(&mut part[..len], from)?;
        match part[..len].iter().position(|byte| *byte == 0) {
            Some(end) => {
                text.extend_from_slice(&part[..end]);
                return Ok((text.len() <= most).then_some(text));
            }
            None if text.len() > most => return Ok(None),
            None => text.extend_from_slice(&part[..len]),
        }
    }
}

/// A path.
///
/// # Errors
/// EFAULT; ENAMETOOLONG; ENOENT for an empty one and for what is no UTF-8, as which all names here are kept.
pub(super) fn path(at: u64) -> Result<String, Errno> {
    let bytes = text(at, PATH_MAX - 1)?.ok_or(Errno::ENAMETOOLONG)?;
    if bytes.is_empty() {
        return Err(Errno::ENOENT);
    }
    String::from_utf8(bytes).map_err(|_| Errno::ENOENT)
}
