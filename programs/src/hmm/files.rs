//! Mappings of objects: files, shared memory, a driver's own pages.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use farpage_programs::area::{Area, Errno, PAGE};
use farpage_programs::dmirror::snap;

use crate::basic::ALL;
use crate::kit::{
    BUFFER, Fixture, Outcome, RW, Unmet, check, check_part, check_zero, device_finds, device_writes, equal,
    failed, fill_part, numbers, snapshot_is, try_to_device,
};

/// A file without a name, with the numbers of a buffer in it.
fn file() -> Result<File, Unmet> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_TMPFILE | libc::O_EXCL).mode(0o600);
    let file = options.open("/tmp")?;
    let bytes: Vec<u8> = (0..BUFFER / 8).flat_map(|word| numbers(word, 0).to_le_bytes()).collect();
    file.write_all_at(&bytes, 0)?;
    Ok(file)
}

/// What is in the file: the numbers of a buffer, each plus `add`.
fn file_holds(file: &File, add: u32) -> Outcome {
    let mut bytes = vec![0; BUFFER];
    file.read_exact_at(&mut bytes, 0)?;
    for (word, bytes) in bytes.chunks_exact(8).enumerate() {
        if bytes != numbers(word, add).to_le_bytes() {
            return Err(failed(&format_args!("word {word} of the file")));
        }
    }
    Ok(())
}

/// The device reads a file through a shared mapping.
pub(crate) fn file_read(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let file = file()?;
    let area = Area::map(BUFFER, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd())?;
    let done = device_finds(area, 0, |area, to| device.read(area, to))?;
    equal(done, ALL, "the read")
}

/// The device writes a file; the process and the file have it.
pub(crate) fn file_write(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let file = file()?;
    let area = Area::map(BUFFER, RW, libc::MAP_SHARED, file.as_raw_fd())?;
    equal(device_writes(&device, area, 5)?, Ok(ALL), "the write")?;
    check_part(area, area, 5)?;
    file_holds(&file, 5)
}

/// Private copies of a file's pages move like any private page; the file stays as it was.
pub(crate) fn migrate_file_private(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let file = file()?;
    let area = Area::map(BUFFER, RW, libc::MAP_PRIVATE, file.as_raw_fd())?;
    check(area)?;
    fill_part(area, area, 3);
    let done = device_finds(area, 3, |area, to| device.to_device(area, to))?;
    equal(done.cpages, ALL.cpages, "pages found on the device")?;
    snapshot_is(&device, area, on.local() | snap::WRITE)?;
    check_part(area, area, 3)?;
    file_holds(&file, 0)
}

/// Shared memory does not go to a device, and holes in it are not filled.
pub(crate) fn migrate_shared(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = Area::map(BUFFER, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)?;
    equal(try_to_device(&device, area)?, Err(Errno(libc::ENOENT)), "shared memory to the device")?;
    snapshot_is(&device, area, 0)
}

/// A driver's own pages, mapped: the device may read them.
pub(crate) fn mixedmap(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = Area::map(PAGE, RW, libc::MAP_PRIVATE, device.fd())?;
    snapshot_is(&device, area, snap::READ)?;
    check_zero(area)
}
