//! Writing the `newc` cpio archive that the loader reads.

/// An archive of ordinary files, in the order given.
///
/// # Panics
/// If a file is 4 GiB or longer: the format has no room for that.
#[must_use]
pub fn archive<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let mut out = Vec::new();
    for (inode, (name, data)) in (1..).zip(files) {
        member(&mut out, inode, name, data);
    }
    member(&mut out, 0, "TRAILER!!!", &[]);
    out
}

/// The same files as in `archive`, and these behind them.
///
/// # Panics
/// As [`archive`](self::archive).
#[must_use]
pub fn extended<'a>(archive: &[u8], files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let end = self::archive([]);
    let mut out = archive.strip_suffix(end.as_slice()).unwrap_or(archive).to_vec();
    for (inode, (name, data)) in (2..).zip(files) {
        member(&mut out, inode, name, data);
    }
    out.extend(end);
    out
}

fn member(out: &mut Vec<u8>, inode: u32, name: &str, data: &[u8]) {
    let length = |len: usize| u32::try_from(len).expect("a file in the archive is below 4 GiB");
    let mode = if inode == 0 { 0 } else { 0o100_644 };
    // Inode, mode, owner, group, links, time, size, four device numbers, name length, checksum.
    let fields = [inode, mode, 0, 0, 1, 0, length(data.len()), 0, 0, 0, 0, length(name.len() + 1), 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(data);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_archive_is_its_trailer() {
        let bytes = archive([]);
        assert_eq!(bytes.len(), 124);
        assert!(bytes.starts_with(b"070701"));
        assert_eq!(&bytes[110..120], b"TRAILER!!!");
    }

    #[test]
    fn names_and_data_are_padded_to_words() {
        let bytes = archive([("kernel", b"12345".as_slice())]);
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[94..102], b"00000007");
        assert_eq!(&bytes[110..120], b"kernel\0\0\0\0");
        assert_eq!(&bytes[120..128], b"12345\0\0\0");
        assert_eq!(&bytes[128..134], b"070701");
        assert_eq!(bytes.len(), 128 + 124);
    }
}
