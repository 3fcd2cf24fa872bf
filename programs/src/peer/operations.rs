//! Single operations.

use farpage_programs::area::{Area, Errno, HUGE, PAGE};
use farpage_programs::dmirror::Device;

use crate::{Rounds, Row, ticks};

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Rounds with large pages, and large pages of the rows that have many at once.
const FEW: usize = 9;
const MANY: usize = 16;
/// Words of both sizes of pages.
const HUGE_WORDS: u64 = (HUGE / 8) as u64;
const WORDS: u64 = (PAGE / 8) as u64;

/// All of them. The goals are those of the project.
pub(crate) const ROWS: &[Row] = &[
    Row { name: "null system call", bulk: 0, goal: 150, measure: null_call },
    Row {
        name: "first touch of a 2 MiB page",
        bulk: HUGE_WORDS,
        goal: 3000,
        measure: |_, rounds| first_touch_large(rounds),
    },
    Row {
        name: "first touch of 4 KiB, new table",
        bulk: 2 * WORDS,
        goal: 900,
        measure: |_, rounds| first_touch(rounds, HUGE),
    },
    Row {
        name: "first touch of 4 KiB, table present",
        bulk: WORDS,
        goal: 700,
        measure: |_, rounds| first_touch(rounds, PAGE),
    },
    Row {
        name: "to device, 2 MiB",
        bulk: 3 * HUGE_WORDS,
        goal: 12_000,
        measure: |device, rounds| migrate(device, rounds, libc::MADV_HUGEPAGE, true),
    },
    Row {
        name: "to device, 512 x 4 KiB",
        bulk: 3 * HUGE_WORDS,
        goal: 400_000,
        measure: |device, rounds| migrate(device, rounds, libc::MADV_NOHUGEPAGE, true),
    },
    Row {
        name: "fault-back of 2 MiB, by a read",
        bulk: HUGE_WORDS,
        goal: 3000,
        measure: |device, rounds| fault_back_large(device, rounds, |area| _ = area.read(0)),
    },
    Row {
        name: "fault-back of 2 MiB, by a write",
        bulk: HUGE_WORDS,
        goal: 3000,
        measure: |device, rounds| fault_back_large(device, rounds, |area| area.write(0, 1)),
    },
    Row { name: "fault-back of 4 KiB", bulk: WORDS, goal: 700, measure: fault_back },
    Row {
        name: "to system, 2 MiB, by command",
        bulk: HUGE_WORDS,
        goal: 5000,
        measure: |device, rounds| migrate(device, rounds, libc::MADV_HUGEPAGE, false),
    },
    Row {
        name: "to system, 512 x 4 KiB, by command",
        bulk: HUGE_WORDS,
        goal: 200_000,
        measure: |device, rounds| migrate(device, rounds, libc::MADV_NOHUGEPAGE, false),
    },
    Row { name: "mprotect of 2 MiB on the device", bulk: 0, goal: 3000, measure: protect },
    Row { name: "munmap of half of 2 MiB on the device", bulk: 0, goal: 8000, measure: unmap_half },
    Row { name: "first fault after that split", bulk: HUGE_WORDS / 2, goal: 5000, measure: fault_after },
    Row { name: "fork with 16 x 2 MiB on the device", bulk: 0, goal: 100_000, measure: fork },
    Row { name: "munmap of 16 x 2 MiB on the device", bulk: 0, goal: 20_000, measure: unmap_many },
];

/// Calls of one round.
const CALLS: u64 = 100;

fn null_call(_: &Device, rounds: &mut Rounds) -> Result<(), Errno> {
    for _ in 0..FEW {
        let ((), all) = ticks(|| {
            for _ in 0..CALLS {
                // SAFETY: asks for a number.
                unsafe { libc::getppid() };
            }
        });
        rounds.push(all / CALLS);
    }
    Ok(())
}

/// Pages of 2 MiB or of 4 KiB, not touched.
fn map(pages: usize, advice: i32) -> Result<Area, Errno> {
    let area = Area::huge(pages * HUGE, RW)?;
    area.advise(advice)?;
    Ok(area)
}

/// The 2 MiB of a large page of an area.
fn large(area: Area, number: usize) -> Area {
    area.part(number * (HUGE / PAGE), HUGE / PAGE)
}

/// Memory on the device.
fn on_device(device: &Device, pages: usize, advice: i32) -> Result<Area, Errno> {
    let area = map(pages, advice)?;
    fill(area);
    let to = Area::anon(area.len(), RW)?;
    device.to_device(area, to)?;
    to.unmap()?;
    Ok(area)
}

fn fill(area: Area) {
    for page in 0..area.pages() {
        area.write(page * (PAGE / 8), page as u64);
    }
}

fn first_touch_large(rounds: &mut Rounds) -> Result<(), Errno> {
    let area = map(FEW + 1, libc::MADV_HUGEPAGE)?;
    area.write(0, 1); // the tables above
    for number in 1..=FEW {
        rounds.time(|| large(area, number).write(0, 1));
    }
    area.unmap()
}

/// The first touch of a small page in every `step` bytes.
fn first_touch(rounds: &mut Rounds, step: usize) -> Result<(), Errno> {
    let area = map(FEW + 1, libc::MADV_NOHUGEPAGE)?;
    area.write(0, 1);
    for number in 1..=FEW {
        rounds.time(|| area.write(number * step / 8, 1));
    }
    area.unmap()
}

fn fault_back_large(device: &Device, rounds: &mut Rounds, touch: fn(Area)) -> Result<(), Errno> {
    let area = on_device(device, FEW, libc::MADV_HUGEPAGE)?;
    for number in 0..FEW {
        let page = large(area, number);
        rounds.time(|| touch(page));
    }
    area.unmap()
}

fn fault_back(device: &Device, rounds: &mut Rounds) -> Result<(), Errno> {
    let area = on_device(device, 1, libc::MADV_NOHUGEPAGE)?;
    for page in 0..area.pages() {
        rounds.time(|| area.read(page * (PAGE / 8)));
    }
    area.unmap()
}

/// One command for 2 MiB, there or back.
fn migrate(device: &Device, rounds: &mut Rounds, advice: i32, there: bool) -> Result<(), Errno> {
    let area = map(1, advice)?;
    fill(area);
    let to = Area::anon(area.len(), RW)?;
    fill(to);
    for round in 0..=FEW {
        let (out, there_ticks) = ticks(|| device.to_device(area, to));
        let (home, back_ticks) = ticks(|| device.to_system(area));
        out?;
        home?;
        if round > 0 {
            rounds.push(if there { there_ticks } else { back_ticks });
        }
    }
    to.unmap()?;
    area.unmap()
}

/// One page after the other, whose mappings are one before and after.
fn protect(device: &Device, rounds: &mut Rounds) -> Result<(), Errno> {
    let area = on_device(device, FEW + 1, libc::MADV_HUGEPAGE)?;
    large(area, 0).protect(libc::PROT_READ)?;
    for number in 1..=FEW {
        rounds.time(|| large(area, number).protect(libc::PROT_READ))?;
    }
    area.unmap()
}

/// The lower half of a large page.
fn half(area: Area, number: usize) -> Area {
    area.part(number * (HUGE / PAGE), HUGE / PAGE / 2)
}

fn unmap_half(device: &Device, rounds: &mut Rounds) -> Result<(), Errno> {
    let area = on_device(device, FEW + 1, libc::MADV_HUGEPAGE)?;
    half(area, 0).unmap()?;
    for number in 1..=FEW {
        rounds.time(|| half(area, number).unmap())?;
    }
    area.unmap()
}

fn fault_after(device: &Device, rounds: &mut Rounds) -> Result<(), Errno> {
    let area = on_device(device, FEW, libc::MADV_HUGEPAGE)?;
    for number in 0..FEW {
        half(area, number).unmap()?;
        let left = large(area, number).part(HUGE / PAGE / 2, HUGE / PAGE / 2);
        rounds.time(|| left.read(0));
    }
    area.unmap()
}

fn fork(device: &Device, rounds: &mut Rounds) -> Result<(), Errno> {
    let area = on_device(device, MANY, libc::MADV_HUGEPAGE)?;
    for round in 0..=FEW {
        // SAFETY: no other thread runs here; the child ends at once.
        let (pid, cost) = ticks(|| unsafe { libc::fork() });
        match pid {
            -1 => return Err(Errno::last()),
            // SAFETY: ends the process, and does nothing else.
            0 => unsafe { libc::_exit(0) },
            _ => {}
        }
        // SAFETY: its end is not asked for.
        if unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } != pid {
            return Err(Errno::last());
        }
        if round > 0 {
            rounds.push(cost);
        }
    }
    area.unmap()
}

fn unmap_many(device: &Device, rounds: &mut Rounds) -> Result<(), Errno> {
    for _ in 0..FEW {
        let area = on_device(device, MANY, libc::MADV_HUGEPAGE)?;
        rounds.time(|| area.unmap())?;
    }
    Ok(())
}
