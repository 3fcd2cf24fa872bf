//! Pages that are lent to a device for atomic access.

use farpage_programs::area::Errno;

use crate::kit::{Fixture, Outcome, buffer, check_part, device_finds, device_writes, equal, fill, increment};

/// The device borrows all pages; a program's next touch takes each back.
pub(crate) fn exclusive(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = buffer()?;
    fill(area);
    let done = device_finds(area, 0, |area, to| device.exclusive(area, to))?;
    equal(done.cpages, area.pages() as u64, "pages lent")?;
    equal(device.check_exclusive(area), Err(Errno(libc::EPERM)), "they are lent")?;
    increment(area);
    check_part(area, area, 1)?;
    equal(device.check_exclusive(area), Ok(()), "they are back")
}

/// A change of protection takes the pages back.
pub(crate) fn exclusive_mprotect(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = buffer()?;
    fill(area);
    let done = device_finds(area, 0, |area, to| device.exclusive(area, to))?;
    equal(done.cpages, area.pages() as u64, "pages lent")?;
    area.protect(libc::PROT_READ)?;
    equal(device_writes(&device, area, 9)?, Err(Errno(libc::EPERM)), "a write without permission")?;
    check_part(area, area, 0)
}
