//! Memory that goes to the device and comes back.

use farpage_programs::area::{Area, Errno, PAGE};
use farpage_programs::dmirror::snap;

use crate::kit::{
    Fixture, Outcome, RW, TIMES, check, check_part, check_zero, device_expects, equal, fill, fill_part,
    numbers, small_buffer, snapshot_is, to_device, try_to_device,
};

/// Everything moves, and goes with its mapping.
pub(crate) fn migrate(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = small_buffer()?;
    fill(area);
    to_device(&device, area)?;
    snapshot_is(&device, area, on.local() | snap::WRITE)?;
    Ok(area.unmap()?)
}

/// A touch brings single pages back; then the mixed range moves again.
pub(crate) fn migrate_fault(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = small_buffer()?;
    fill(area);
    to_device(&device, area)?;
    let half = area.pages() / 2;
    check_part(area, area.part(0, half), 0)?;
    let back = if on.is_coherent() { on.local() | snap::WRITE } else { snap::WRITE };
    snapshot_is(&device, area.part(0, half), back)?;
    snapshot_is(&device, area.part(half, half), on.local() | snap::WRITE)?;
    to_device(&device, area)?;
    snapshot_is(&device, area, on.local() | snap::WRITE)?;
    check(area)
}

/// The driver takes back all that is on its device, without being told where it is mapped.
pub(crate) fn migrate_release(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = small_buffer()?;
    fill(area);
    to_device(&device, area)?;
    device.release()?;
    snapshot_is(&device, area, snap::WRITE)?;
    check_part(area, area.part(0, area.pages() / 2), 0)?;
    check(area)
}

/// Ten round trips.
pub(crate) fn migrate_multiple(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    for _ in 0..TIMES {
        let area = small_buffer()?;
        fill(area);
        to_device(&device, area)?;
        if on.is_coherent() {
            equal(device.to_system(area)?.cpages, area.pages() as u64, "pages moved to RAM")?;
        }
        check(area)?;
        snapshot_is(&device, area, snap::WRITE)?;
        area.unmap()?;
    }
    Ok(())
}

/// Holes, protections, zero pages, and a page of another device.
pub(crate) fn migrate_mixed(on: Fixture) -> Outcome {
    let (first, second) = (on.open(0)?, on.open(1)?);
    let area = Area::anon(6 * PAGE, libc::PROT_NONE)?;
    equal(try_to_device(&second, area)?, Err(Errno(libc::EINVAL)), "what may not be read")?;
    area.page(1).unmap()?;
    // The memory for what is read could come to lie in the hole: it is made before, and larger.
    let to = Area::anon(64 * PAGE, RW)?;
    equal(second.to_device(area.part(0, 3), to), Err(Errno(libc::EINVAL)), "a hole")?;
    area.page(2).protect(libc::PROT_READ)?;
    check_zero(area.page(2))?;
    area.page(3).protect(RW)?;
    fill_part(area, area.page(3), 0);
    area.page(3).protect(libc::PROT_READ)?;
    area.part(4, 2).protect(RW)?;
    fill_part(area, area.part(4, 2), 0);
    // Pages 2 to 5 go to the second device: several mappings, one of them of the zero page.
    let expected = |word| if word < 512 { 0 } else { numbers(2 * 512 + word, 0) };
    let done = device_expects(area.part(2, 4), expected, |area, to| second.to_device(area, to))?;
    equal(done.cpages, 4, "pages found on the device")?;
    // The first does not take what is the second's.
    equal(try_to_device(&first, area.page(5))?, Err(Errno(libc::ENOENT)), "another device's page")?;
    snapshot_is(&second, area.page(5), on.local() | snap::WRITE)?;
    check_part(area, area.part(3, 3), 0)
}
