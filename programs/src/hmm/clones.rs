//! Two processes: what one of them, or its device, does after a fork is not seen by the other, unless they share on purpose.

use farpage_programs::area::Area;
use farpage_programs::dmirror::{Done, snap};

use crate::kit::{
    BUFFER, Fixture, Outcome, RW, buffer, check, check_part, device_finds, device_writes, equal, fill,
    fill_part, increment, large, snapshot_is, to_device,
};
use crate::process::fork;

/// What the child adds to every number.
const OTHER: u32 = 0x1000_0000;

/// A child's device writes; the parent keeps what it had, whether it was on a device or not, large or not.
pub(crate) fn anon_write_child(on: Fixture) -> Outcome {
    for migrate in [false, true] {
        for thp in [false, true] {
            let area = if thp { large(RW, libc::MADV_HUGEPAGE)? } else { buffer()? };
            if !thp {
                area.advise(libc::MADV_NOHUGEPAGE)?;
            }
            fill(area);
            let device = on.open(0)?;
            if migrate {
                to_device(&device, area)?;
            }
            fork(|| child_writes(on, area))?.join()?;
            check(area)?;
            area.unmap()?;
        }
    }
    Ok(())
}

fn child_writes(on: Fixture, area: Area) -> Outcome {
    check(area)?;
    let device = on.open(0)?;
    let all = Done { cpages: area.pages() as u64, faults: 1 };
    equal(device_writes(&device, area, OTHER)?, Ok(all), "the child's write")?;
    check_part(area, area, OTHER)
}

/// Shared memory is shared: what the child's device writes, the parent reads.
pub(crate) fn anon_write_child_shared(on: Fixture) -> Outcome {
    drop(on.open(0)?);
    let area = Area::map(BUFFER, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)?;
    fill(area);
    fork(|| child_writes(on, area))?.join()?;
    check_part(area, area, OTHER)
}

/// Pages that are lent to the device are forked as if they had come back first: each side sees its own changes.
pub(crate) fn exclusive_cow(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = buffer()?;
    fill(area);
    let done = device_finds(area, 0, |area, to| device.exclusive(area, to))?;
    equal(done.cpages, area.pages() as u64, "pages lent")?;
    let child = fork(|| {
        increment(area);
        check_part(area, area, 1)
    })?;
    increment(area);
    check_part(area, area, 1)?;
    child.join()
}

/// A write to what two processes have on the device: it is theirs in RAM then, each its own.
pub(crate) fn hmm_cow_in_device(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let area = Area::anon(4 * 4096, RW)?;
    fill(area);
    to_device(&device, area)?;
    let waits = fork(|| {
        loop {
            // SAFETY: waits for a signal, which is all this process does.
            unsafe { libc::usleep(1000) };
        }
    })?;
    fill_part(area, area, OTHER);
    waits.kill(libc::SIGTERM)?;
    waits.dies_by(libc::SIGTERM)?;
    snapshot_is(&device, area, snap::WRITE)?;
    check_part(area, area, OTHER)?;
    // The other way round: the child has what was there at the fork.
    to_device_again(on, area)
}

fn to_device_again(on: Fixture, area: Area) -> Outcome {
    let device = on.open(1)?;
    fill(area);
    to_device(&device, area)?;
    let child = fork(|| check(area))?;
    fill_part(area, area, OTHER);
    child.join()?;
    check_part(area, area, OTHER)
}
