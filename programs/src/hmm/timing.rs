//! Round trips by command, with their times.

use std::time::{Duration, Instant};

use farpage_programs::area::{Area, HUGE};

use crate::kit::{Fixture, Outcome, RW, equal, holds, snapshot_is};
use farpage_programs::dmirror::snap;

/// The sizes that are measured, and those that take long.
const SIZES: [usize; 4] = [HUGE / 4, HUGE / 2, HUGE, 2 * HUGE];
const LARGE: [usize; 3] = [4 * HUGE, 8 * HUGE, 128 * HUGE];
/// Round trips of a size.
const ROUNDS: u32 = 5;
/// The word in all memory that moves.
const WORD: u64 = 0x0706_0504_0302_0100;

/// Round trips of several sizes, as large and as small pages. With `all` the sizes go up to 256 MiB.
pub(crate) fn benchmark_thp_migration(on: Fixture, all: bool) -> Outcome {
    let large = if all { &LARGE[..] } else { &[] };
    for &size in SIZES.iter().chain(large) {
        let with = round_trips(on, size, libc::MADV_HUGEPAGE)?;
        let without = round_trips(on, size, libc::MADV_NOHUGEPAGE)?;
        for (to, with, without) in [("device", with.0, without.0), ("system", with.1, without.1)] {
            println!(
                "# {} KiB to {to}: {:.3} ms with large pages, {:.3} ms without",
                size >> 10,
                with.as_secs_f64() * 1000.0,
                without.as_secs_f64() * 1000.0
            );
        }
    }
    Ok(())
}

/// The mean time there and back.
fn round_trips(on: Fixture, size: usize, advice: i32) -> Result<(Duration, Duration), crate::kit::Unmet> {
    let device = on.open(0)?;
    let area = if size >= HUGE { Area::huge(size, RW)? } else { Area::anon(size, RW)? };
    let to = Area::anon(size, RW)?;
    area.advise(advice)?;
    for word in 0..size / 8 {
        to.write(word, !0);
        area.write(word, WORD);
    }
    let is_large = advice == libc::MADV_HUGEPAGE && size >= HUGE;
    let units = if is_large { size / HUGE } else { area.pages() };
    let (mut there, mut back) = (Duration::ZERO, Duration::ZERO);
    for round in 0..=ROUNDS {
        let start = Instant::now();
        let out = device.to_device(area, to)?;
        let turn = Instant::now();
        let home = device.to_system(area)?;
        let end = Instant::now();
        equal(out.cpages, area.pages() as u64, "pages found on the device")?;
        equal(home.cpages, units as u64, "pages moved to RAM")?;
        if round > 0 {
            (there, back) = (there + (turn - start), back + (end - turn));
        }
    }
    snapshot_is(&device, area, if is_large { snap::WRITE | snap::PMD } else { snap::WRITE })?;
    for area in [area, to] {
        holds(area, |_| WORD)?;
        area.unmap()?;
    }
    Ok((there / ROUNDS, back / ROUNDS))
}
