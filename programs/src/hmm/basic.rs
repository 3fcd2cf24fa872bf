//! Devices that read and write what a process has, with nothing moving.

use farpage_programs::area::{Area, Errno, HUGE};
use farpage_programs::dmirror::{Done, snap};

use crate::kit::{
    BUFFER, Fixture, Outcome, RW, TIMES, bounce, buffer, check, check_zero, device_expects, device_finds,
    device_writes, equal, fill, fill_part, holds, large, numbers, small_buffer, snapshot_is, to_device,
};
use crate::pool;

/// All pages of the usual buffer, with one round of faults.
pub(crate) const ALL: Done = Done { cpages: (BUFFER / 4096) as u64, faults: 1 };

/// Opens the device and closes it: with nothing there, and with pages that come back.
pub(crate) fn open_close(on: Fixture) -> Outcome {
    drop(on.open(0)?);
    let area = small_buffer()?;
    fill(area);
    let device = on.open(0)?;
    to_device(&device, area)?;
    drop(device);
    snapshot_is(&on.open(0)?, area, snap::WRITE)?;
    check(area)
}

/// The device reads a mapping whose first page is untouched and whose second is the zero page.
pub(crate) fn anon_read(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = buffer()?;
    fill_part(area, area.part(2, area.pages() - 2), 0);
    area.protect(libc::PROT_READ)?;
    check_zero(area.page(1))?;
    let expected = |word| if word < 1024 { 0 } else { numbers(word, 0) };
    let done = device_expects(area, expected, |area, to| device.read(area, to))?;
    equal(done, ALL, "the read")?;
    let again = device_expects(area, expected, |area, to| device.read(area, to))?;
    equal(again, Done { faults: 0, ..ALL }, "another read, of what the device has in its table")
}

/// The device may not read what the process may not, and its buffer stays as it was.
pub(crate) fn anon_read_prot(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = buffer()?;
    fill(area);
    area.protect(libc::PROT_NONE)?;
    let to = bounce(area)?;
    equal(device.read(area, to), Err(Errno(libc::EFAULT)), "a read without permission")?;
    holds(to, |_| !0)?;
    area.protect(libc::PROT_READ)?;
    check(area)
}

/// The device writes where nothing is yet.
pub(crate) fn anon_write(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = buffer()?;
    equal(device_writes(&device, area, 0)?, Ok(ALL), "the write")?;
    check(area)
}

/// The device may not write what the process may only read, and may when that changes.
pub(crate) fn anon_write_prot(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = Area::anon(BUFFER, libc::PROT_READ)?;
    let done = device_expects(area.page(0), |_| 0, |area, to| device.read(area, to))?;
    equal(done, Done { cpages: 1, faults: 1 }, "a read of one page")?;
    equal(device_writes(&device, area, 0)?, Err(Errno(libc::EPERM)), "a write without permission")?;
    check_zero(area)?;
    area.protect(RW)?;
    equal(device_writes(&device, area, 0)?, Ok(ALL), "the write")?;
    check(area)
}

/// The device's first write makes a 2 MiB page.
pub(crate) fn anon_write_huge(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = large(RW, libc::MADV_HUGEPAGE)?;
    equal(device_writes(&device, area, 0)?, Ok(Done { cpages: 512, faults: 1 }), "the write")?;
    snapshot_is(&device, area, snap::WRITE | snap::PMD)?;
    check(area)
}

/// The device writes a page of the pool of large ones.
pub(crate) fn anon_write_hugetlbfs(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let pool = pool::reserve(1)?;
    let area = pool::map(HUGE)?;
    equal(device_writes(&device, area, 0)?, Ok(Done { cpages: 512, faults: 1 }), "the write")?;
    check(area)?;
    area.unmap()?;
    drop(pool);
    Ok(())
}

/// A mapping that goes takes its translations in the device along: what comes after it is not read through them.
pub(crate) fn anon_read_multiple(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    for round in 0..TIMES {
        let area = buffer()?;
        fill_part(area, area, round);
        let done = device_finds(area, round, |area, to| device.read(area, to))?;
        equal(done, ALL, "the read")?;
        area.unmap()?;
        let to = bounce(area)?;
        let gone = device.read(area.part(0, 1), to);
        // Where the memory was, there may be the next one by now.
        if to.start() >= area.start() + area.len() || to.start() + to.len() <= area.start() {
            equal(gone, Err(Errno(libc::EFAULT)), "a read of nothing")?;
        }
        to.unmap()?;
    }
    Ok(())
}
