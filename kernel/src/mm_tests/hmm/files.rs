//! Mappings of objects: files, shared memory, a driver's own pages.

use alloc::sync::Arc;

use farpage_mm::dmirror::{DmirrorError, PAGE_WORDS, Snap};
use farpage_mm::{HugeAdvice, Machine as _, Object, ObjectRef, PAGE_SIZE, Prot};

use super::basic::ALL;
use super::kit::{
    Fixture, PAGES, all_are, buffer, check, check_from, device_finds, device_writes, fill_from, ints,
    snapshot, try_to_device,
};
use crate::mm_tests::support::Space;
use crate::testing::Unmet;
use crate::vm::Machine;
use crate::vm::user::user_read_u64;

/// A file with the numbers of a buffer.
fn file() -> Result<ObjectRef<Machine>, Unmet> {
    let file = Object::file(PAGES)?;
    for page in 0..PAGES {
        let words: [u64; PAGE_WORDS] = core::array::from_fn(|i| ints(page * PAGE_WORDS as u64 + i as u64, 0));
        Machine::write_frame(file.page_or_alloc(page)?.frame(), 0, &words);
    }
    Ok(file)
}

/// What is in the file, as `pread` would have it: the numbers of a buffer, each plus `add`.
fn file_holds(file: &ObjectRef<Machine>, add: u32) -> Result<(), Unmet> {
    let mut words = [0; PAGE_WORDS];
    for page in 0..PAGES {
        let Some(folio) = file.page(page) else { crate::fail!("page {page} of the file is not there") };
        Machine::read_frame(folio.frame(), 0, &mut words);
        for (i, &word) in words.iter().enumerate() {
            crate::check_eq!(word, ints(page * PAGE_WORDS as u64 + i as u64, add), "page {page}");
        }
    }
    Ok(())
}

/// The device reads a file through a shared mapping.
pub(super) fn file_read(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let file = file()?;
    let range = buffer(PAGES);
    space.space().map_shared(range, Prot::READ, &file, 0)?;
    let done = device_finds(range.start.0, range, 0, |to| device.read(range.start, to))?;
    crate::check_eq!(done, ALL);
    Ok(())
}

/// The device writes a file; the process and the file have it.
pub(super) fn file_write(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let file = file()?;
    let range = buffer(PAGES);
    space.space().map_shared(range, Prot::RW, &file, 0)?;
    crate::check_eq!(device_writes(&device, range, 5)?, Ok(ALL));
    check_from(range.start.0, range, 5)?;
    file_holds(&file, 5)
}

/// Private copies of a file's pages move like any private page; the file stays as it was.
pub(super) fn migrate_file_private(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let file = file()?;
    let range = buffer(PAGES);
    space.space().map_private(range, Prot::RW, &file, 0, HugeAdvice::Default)?;
    check(range)?;
    fill_from(range.start.0, range, 3)?;
    let done = device_finds(range.start.0, range, 3, |to| device.migrate_to_device(range.start, to))?;
    crate::check_eq!((done.cpages, on.resident(0)), (PAGES, PAGES));
    check_from(range.start.0, range, 3)?;
    file_holds(&file, 0)
}

/// Shared memory does not go to a device, and holes in it are not filled.
pub(super) fn migrate_shared(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let memory = Object::anon_shared(PAGES)?;
    let range = buffer(PAGES);
    space.space().map_shared(range, Prot::RW, &memory, 0)?;
    crate::check_eq!(try_to_device(&device, range), Err(DmirrorError::NotThere));
    crate::check_eq!(on.resident(0), 0);
    crate::check!(memory.page(0).is_none(), "nothing was made for it");
    Ok(())
}

/// A driver's own pages, mapped: the device may read them.
pub(super) fn mixedmap(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let pages = Object::driver(1)?;
    let range = buffer(1);
    space.space().map_device_pages(range, Prot::READ, &pages, 0)?;
    all_are(&snapshot(&device, range)?, Snap::READ)?;
    crate::check_eq!(user_read_u64(range.start.0)?, 0);
    Ok(())
}

const _: () = assert!(PAGE_SIZE as usize == PAGE_WORDS * 8);
