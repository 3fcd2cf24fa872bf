//! What a device finds without touching anything.

use farpage_programs::area::{Area, HUGE, PAGE};
use farpage_programs::dmirror::{Done, snap};

use crate::kit::{
    Fixture, Outcome, RW, check_zero, device_finds, equal, fill, fill_part, snapshot as look, snapshot_is,
    to_device, try_to_device,
};
use crate::pool;

/// A page of the pool of large ones is told of by all its parts.
pub(crate) fn compound(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let pool = pool::reserve(1)?;
    let area = pool::map(HUGE)?;
    fill(area);
    snapshot_is(&device, area, snap::WRITE | snap::PMD)?;
    area.protect(libc::PROT_READ)?;
    snapshot_is(&device, area, snap::READ | snap::PMD)?;
    area.unmap()?;
    drop(pool);
    Ok(())
}

/// One page of each kind, as the first device sees it.
pub(crate) fn snapshot(on: Fixture) -> Outcome {
    let (first, second) = (on.open(0)?, on.open(1)?);
    // Larger than what is mapped later, so that none of that comes to lie in the hole.
    let area = Area::anon(7 * PAGE, libc::PROT_NONE)?;
    area.page(2).protect(libc::PROT_READ)?;
    check_zero(area.page(2))?;
    area.page(3).protect(RW)?;
    fill_part(area, area.page(3), 0);
    area.page(3).protect(libc::PROT_READ)?;
    area.part(4, 3).protect(RW)?;
    fill_part(area, area.part(4, 3), 0);
    equal(try_to_device(&first, area.page(5))?.map(|done| done.cpages), Ok(1), "to the first device")?;
    equal(try_to_device(&second, area.page(6))?.map(|done| done.cpages), Ok(1), "to the second device")?;
    let to = Area::anon(PAGE, RW)?;
    area.page(1).unmap()?;
    let found = first.snapshot(area, to);
    equal(found, Ok(Done { cpages: 7, faults: 0 }), "the snapshot")?;
    let remote = if on.is_coherent() { snap::COHERENT_REMOTE | snap::WRITE } else { 0 };
    let expected = [
        snap::ERROR,
        snap::ERROR,
        snap::ZERO | snap::READ,
        snap::READ,
        snap::WRITE,
        on.local() | snap::WRITE,
        remote,
    ];
    equal(to.read(0).to_le_bytes()[..7].to_vec(), expected.to_vec(), "the bytes of the snapshot")
}

/// Two devices map one process; what moves to the second is brought back for the first.
pub(crate) fn double_map(on: Fixture) -> Outcome {
    let (first, second) = (on.open(0)?, on.open(1)?);
    let area = Area::anon(6 * PAGE, RW)?;
    fill(area);
    area.protect(libc::PROT_READ)?;
    let once = Done { cpages: 6, faults: 1 };
    for device in [&first, &second] {
        let done = device_finds(area, 0, |area, to| device.read(area, to))?;
        equal(done, once, "a read")?;
    }
    to_device(&second, area)?;
    equal(look(&second, area)?, vec![on.local() | snap::READ; 6], "on the second device")?;
    let done = device_finds(area, 0, |area, to| first.read(area, to))?;
    equal(done, once, "a read of what the other has")?;
    let after = if on.is_coherent() { on.local() | snap::READ } else { snap::READ };
    snapshot_is(&second, area, after)
}
