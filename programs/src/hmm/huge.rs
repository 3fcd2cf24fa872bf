//! Large pages on their way: empty ones, the zero page, those that were put together, and advice on what is away.

use std::fs::File;
use std::os::unix::fs::FileExt;

use farpage_programs::area::{Area, Errno, PAGE};
use farpage_programs::dmirror::{Device, snap};

use crate::kit::{
    Fixture, Outcome, RW, Unmet, check, check_zero, device_expects, equal, failed, fill, large, number,
    snapshot_is, to_device,
};

/// What one large page on the device is in its snapshot.
const fn there(on: Fixture, access: u8) -> u8 {
    on.local() | access | snap::PMD
}

/// Moves zeros to the device, all 512 pages of them.
fn zeros_to_device(device: &Device, area: Area) -> Outcome {
    let done = device_expects(area, |_| 0, |area, to| device.to_device(area, to))?;
    equal(done.cpages, 512, "pages found on the device")
}

/// A large hole becomes a large page of zeros on the device.
pub(crate) fn migrate_anon_huge_empty(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = large(libc::PROT_READ, libc::MADV_HUGEPAGE)?;
    zeros_to_device(&device, area)?;
    snapshot_is(&device, area, there(on, snap::READ))?;
    check_zero(area)
}

/// So does the large zero page, and it comes back as one.
pub(crate) fn migrate_anon_huge_zero(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = large(libc::PROT_READ, libc::MADV_HUGEPAGE)?;
    equal(area.read(0), 0, "the first word")?;
    zeros_to_device(&device, area)?;
    snapshot_is(&device, area, there(on, snap::READ))?;
    equal(area.read(0), 0, "the first word, later")?;
    let back = if on.is_coherent() { there(on, snap::READ) } else { snap::READ | snap::PMD };
    snapshot_is(&device, area, back)?;
    check_zero(area)
}

/// Advice to free what is on the device is taken, and does nothing.
pub(crate) fn migrate_anon_huge_free(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = large(RW, libc::MADV_HUGEPAGE)?;
    fill(area);
    to_device(&device, area)?;
    area.advise(libc::MADV_FREE)?;
    snapshot_is(&device, area, there(on, snap::WRITE))?;
    Ok(area.unmap()?)
}

/// Small pages that were put together go to the device as one, and come back as one.
pub(crate) fn migrate_anon_huge_fault(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = large(RW, libc::MADV_NOHUGEPAGE)?;
    fill(area);
    snapshot_is(&device, area, snap::WRITE)?;
    area.advise(libc::MADV_HUGEPAGE)?;
    match area.advise(libc::MADV_COLLAPSE) {
        Err(Errno(libc::EINVAL)) => return Err(Unmet::Skip("pages cannot be put together here".into())),
        collapsed => collapsed?,
    }
    snapshot_is(&device, area, snap::WRITE | snap::PMD)?;
    to_device(&device, area)?;
    snapshot_is(&device, area, there(on, snap::WRITE))?;
    pagemap_is(area, on.is_coherent())?;
    check(area)?;
    let back = if on.is_coherent() { there(on, snap::WRITE) } else { snap::WRITE | snap::PMD };
    snapshot_is(&device, area, back)
}

/// Every page is there, or every page is away, as `/proc/self/pagemap` has it.
fn pagemap_is(area: Area, present: bool) -> Outcome {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    let mut bytes = vec![0; area.pages() * 8];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut bytes, (area.start() / PAGE * 8) as u64)?;
    for (page, word) in bytes.chunks_exact(8).enumerate() {
        let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
        let found = (word & PRESENT != 0, word & SWAPPED != 0);
        if found != (present, !present) {
            return Err(failed(&format_args!("page {page}: (present, swapped) are {found:?}")));
        }
    }
    Ok(())
}

/// No large page at the destination, once each way: 512 single ones take its place.
pub(crate) fn migrate_anon_huge_err(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = large(RW, libc::MADV_HUGEPAGE)?;
    fill(area);
    device.fail_next_huge()?;
    to_device(&device, area)?;
    snapshot_is(&device, area, on.local() | snap::WRITE)?;
    // It is in page 2.
    equal(number(area, 2048), 2048, "number 2048")?;
    area.unmap()?;

    let area = large(RW, libc::MADV_HUGEPAGE)?;
    fill(area);
    to_device(&device, area)?;
    snapshot_is(&device, area, there(on, snap::WRITE))?;
    device.fail_next_huge()?;
    equal(device.to_system(area)?.cpages, 512, "pages moved to RAM")?;
    snapshot_is(&device, area, snap::WRITE)?;
    equal(number(area, 2048), 2048, "number 2048")?;
    check(area)
}

/// The same for a large hole, and for the large zero page.
pub(crate) fn migrate_anon_huge_zero_err(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    for touched in [false, true] {
        let area = large(RW, libc::MADV_HUGEPAGE)?;
        if touched {
            equal(area.read(0), 0, "the first word")?;
        }
        device.fail_next_huge()?;
        zeros_to_device(&device, area)?;
        snapshot_is(&device, area, on.local() | snap::WRITE)?;
        check_zero(area)?;
        area.unmap()?;
    }
    Ok(())
}
