//! Reading one file out of a `newc` cpio archive, in place.
//!
//! The archive is QEMU's one PVH module. Only what finding a file needs is read: the size of the name and of the
//! data, in hexadecimal, at fixed places of a 110-byte header; name and data are padded to four bytes.

use crate::error::LoadError;

const HEADER_LEN: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";

/// Where a file's data lies in its archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'a> {
    /// Offset of the first byte.
    pub offset: usize,
    /// The bytes.
    pub data: &'a [u8],
}

/// Finds the file `name`; `Ok(None)` if the archive is whole and does not hold it.
///
/// # Errors
/// [`LoadError::BadArchive`] where the archive breaks off or is something else.
pub fn find<'a>(archive: &'a [u8], name: &[u8]) -> Result<Option<Found<'a>>, LoadError> {
    let mut at = 0;
    while let Some((this, found)) = member(archive, &mut at)? {
        if this == name {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Calls `f` with the name and the data of every file, in the order of the archive.
///
/// # Errors
/// As [`find`]; what stands before was told.
pub fn for_each<'a>(archive: &'a [u8], mut f: impl FnMut(&'a [u8], &'a [u8])) -> Result<(), LoadError> {
    let mut at = 0;
    while let Some((name, found)) = member(archive, &mut at)? {
        f(name, found.data);
    }
    Ok(())
}

/// The file whose header stands at `at`, which becomes that of the next; none at the end.
fn member<'a>(archive: &'a [u8], at: &mut usize) -> Result<Option<(&'a [u8], Found<'a>)>, LoadError> {
    let bad = LoadError::BadArchive { offset: *at };
    let header = archive.get(*at..).and_then(|rest| rest.get(..HEADER_LEN)).ok_or(bad)?;
    if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
        return Err(bad);
    }
    let len_data = hex_field(header, 6).ok_or(bad)?;
    let len_name = hex_field(header, 11).ok_or(bad)?;
    let name_at = *at + HEADER_LEN;
    let data_at = align4(name_at.checked_add(len_name).ok_or(bad)?).ok_or(bad)?;
    let data_end = data_at.checked_add(len_data).ok_or(bad)?;
    let name = archive.get(name_at..name_at + len_name).ok_or(bad)?;
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    if name == TRAILER {
        return Ok(None);
    }
    let data = archive.get(data_at..data_end).ok_or(bad)?;
    *at = align4(data_end).ok_or(bad)?;
    Ok(Some((name.strip_prefix(b"./").unwrap_or(name), Found { offset: data_at, data })))
}

/// Header field `index` (eight hexadecimal digits each, after the six of the magic).
fn hex_field(header: &[u8], index: usize) -> Option<usize> {
    let start = 6 + index * 8;
    let digits = header.get(start..start + 8)?;
    digits.iter().try_fold(0usize, |value, &digit| {
        let digit = (digit as char).to_digit(16)?;
        Some(value << 4 | digit as usize)
    })
}

fn align4(value: usize) -> Option<usize> {
    value.checked_next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(out: &mut Vec<u8>, name: &str, data: &[u8]) {
        let fields = [1, 0o100_644, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
        out.extend_from_slice(b"070701");
        for field in fields {
            out.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(4), 0);
    }

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, data) in members {
            member(&mut out, name, data);
        }
        member(&mut out, "TRAILER!!!", &[]);
        out
    }

    #[test]
    fn finds_a_file_behind_others() {
        let bytes = archive(&[("a", b"12345"), ("./kernel", b"ELF"), ("z", b"")]);
        let found = find(&bytes, b"kernel").unwrap().unwrap();
        assert_eq!(found.data, b"ELF");
        assert_eq!(&bytes[found.offset..found.offset + 3], b"ELF");
    }

    #[test]
    fn all_files_are_told_in_order() {
        let bytes = archive(&[("a", b"12345"), ("./root/b", b""), ("c", b"6")]);
        let mut told = Vec::new();
        for_each(&bytes, |name, data| told.push((name, data))).unwrap();
        assert_eq!(told, [(&b"a"[..], &b"12345"[..]), (b"root/b", b""), (b"c", b"6")]);
        assert!(for_each(&bytes[..bytes.len() - 130], |_, _| ()).is_err());
    }

    #[test]
    fn a_whole_archive_without_the_file_is_not_an_error() {
        assert_eq!(find(&archive(&[("kernel2", b"x")]), b"kernel"), Ok(None));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = archive(&[("a", b"12345"), ("b", b"6")]);
        let trailer = bytes.len() - 124;
        for len in 0..trailer + HEADER_LEN {
            assert!(matches!(find(&bytes[..len], b"kernel"), Err(LoadError::BadArchive { .. })), "{len}");
        }
    }

    #[test]
    fn other_files_and_bad_digits_are_errors() {
        assert_eq!(find(&[0x7f; 4096], b"kernel"), Err(LoadError::BadArchive { offset: 0 }));
        let mut bytes = archive(&[("a", b"12345")]);
        bytes[60] = b'x';
        assert_eq!(find(&bytes, b"kernel"), Err(LoadError::BadArchive { offset: 0 }));
    }

    #[test]
    fn sizes_near_the_end_of_memory_do_not_wrap() {
        let mut bytes = archive(&[("a", b"12345")]);
        bytes[54..62].copy_from_slice(b"FFFFFFFF");
        assert_eq!(find(&bytes, b"kernel"), Err(LoadError::BadArchive { offset: 0 }));
    }
}
