//! The field's migration benchmark: sizes, with large pages and without, there and back by command.

use farpage_programs::area::{Area, Errno, HUGE};
use farpage_programs::dmirror::Device;

use crate::{Rounds, ticks};

/// What a filter calls it.
pub(crate) const NAME: &str = "sizes";

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Those that take no long time.
pub(crate) const USUAL: [usize; 6] = [HUGE / 4, HUGE / 2, HUGE, 2 * HUGE, 4 * HUGE, 8 * HUGE];
const ROUNDS: usize = 5;
const WORD: u64 = 0x0706_0504_0302_0100;

/// Measures sizes of whole pages, one record for each direction.
pub(crate) fn measure(device: &Device, sizes: &[usize]) -> Result<(), Errno> {
    for &size in sizes {
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_NOHUGEPAGE] {
            let (mut there, mut back) = round_trips(device, size, advice)?;
            let (huge, words) = (u8::from(advice == libc::MADV_HUGEPAGE), size / 8);
            for (dir, rounds, bulk) in [("device", &mut there, 3 * words), ("system", &mut back, words)] {
                let total = rounds.median();
                println!("@peer-size size={size} huge={huge} dir={dir} total={total} bulk={bulk} n={ROUNDS}");
            }
        }
    }
    Ok(())
}

fn round_trips(device: &Device, size: usize, advice: i32) -> Result<(Rounds, Rounds), Errno> {
    let area = if size >= HUGE { Area::huge(size, RW)? } else { Area::anon(size, RW)? };
    let to = Area::anon(size, RW)?;
    area.advise(advice)?;
    for word in 0..size / 8 {
        to.write(word, !0);
        area.write(word, WORD);
    }
    let (mut there, mut back) = (Rounds::default(), Rounds::default());
    for round in 0..=ROUNDS {
        let (out, out_ticks) = ticks(|| device.to_device(area, to));
        let (home, home_ticks) = ticks(|| device.to_system(area));
        let pages = area.pages() as u64;
        let is_large = advice == libc::MADV_HUGEPAGE && size >= HUGE;
        let units = if is_large { (size / HUGE) as u64 } else { pages };
        assert_eq!((out?.cpages, home?.cpages), (pages, units), "all of it moves");
        if round > 0 {
            there.push(out_ticks);
            back.push(home_ticks);
        }
    }
    let wrong = (0..size / 8).filter(|&word| area.read(word) != WORD || to.read(word) != WORD).count();
    assert_eq!(wrong, 0, "the data survives");
    to.unmap()?;
    area.unmap()?;
    Ok((there, back))
}
