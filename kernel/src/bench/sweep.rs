//! The field's migration benchmark: seven sizes, large pages on and off, both directions.
//!
//! The shape is that of the benchmark that came with large device pages in Linux: fill, one round trip to warm up, five
//! timed round trips by explicit call, nothing touched in between. Two things differ, and make the figures comparable with
//! each other: nothing is read back inside the timed region, and the data is checked once at the end, outside it.
//!
//! What that benchmark times on the way to the device is more than the migration: its driver enters every page in the device's
//! table, reads the whole buffer back through it, and copies that to the program. A third row has the same shape, by the same
//! commands ([`read_back`]). Its three copies of the data all count as data.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use farpage_mm::dmirror::{Dmirror, DmirrorError, PAGE_WORDS};
use farpage_mm::{AddressSpace, HugeAdvice, Order, PAGE_SIZE, PMD_SIZE, Place, Prot, VaRange};
use ktest::record;

use super::Stop;
use super::samples::{Raw, Samples, raw_ns};
use crate::arch::x86_64::uaccess::copy_words_to_user;
use crate::console;
use crate::measure::{Cost, measure};
use crate::vm::user::{user_fill, user_find_other};
use crate::vm::{Machine, activate, mm, new_space};

type Space = AddressSpace<Machine>;

/// What a filter calls it.
pub(super) const NAME: &str = "sweep";

/// The field's sizes, in bytes.
const SIZES: [u64; 7] =
    [PMD_SIZE / 4, PMD_SIZE / 2, PMD_SIZE, 2 * PMD_SIZE, 4 * PMD_SIZE, 8 * PMD_SIZE, 128 * PMD_SIZE];
const ROUNDS: u64 = 5;
const BASE: u64 = 0x20_0000_0000;
/// Pages that pass through the kernel at a time.
const PIECE: usize = 64;
/// Where the program gets what the device read.
const BOUNCE: u64 = BASE + (1 << 36);
const WORD: u64 = 0x0706_0504_0302_0100;

/// A word of `sizes=` that is none.
#[derive(Debug)]
pub(super) struct BadSize<'a>(&'a str);

impl fmt::Display for BadSize<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is no size: whole pages, like 512K, 2M or 1G", self.0)
    }
}

/// The sizes asked for, or the field's.
pub(super) fn sizes(words: &str) -> Result<Vec<u64>, BadSize<'_>> {
    if words.is_empty() {
        return Ok(SIZES.to_vec());
    }
    words.split(',').map(size).collect()
}

fn size(word: &str) -> Result<u64, BadSize<'_>> {
    let (digits, shift) = match word.as_bytes().last() {
        Some(b'K') => (&word[..word.len() - 1], 10),
        Some(b'M') => (&word[..word.len() - 1], 20),
        Some(b'G') => (&word[..word.len() - 1], 30),
        _ => (word, 0),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    bytes.filter(|&n| n > 0 && n.is_multiple_of(PAGE_SIZE) && n < 1 << 40).ok_or(BadSize(word))
}

/// Refuses what the machine is too small for, with `ram` bytes of user memory.
fn fits(size: u64, ram: u64) -> Result<(), Stop> {
    if u64::from(mm().device(0).memory().free) * PAGE_SIZE < size {
        return Err(Stop::DoesNotFit("the device's memory is smaller (--device-size)"));
    }
    if u64::from(mm().zone(Place::RAM).stat().free) * PAGE_SIZE < ram + (ram >> 6) + (8 << 20) {
        return Err(Stop::DoesNotFit("the machine has less free RAM (--memory)"));
    }
    Ok(())
}

/// A new buffer in `space`, every word written.
fn buffer(space: &Space, start: u64, size: u64, advice: HugeAdvice, word: u64) -> Result<VaRange, Stop> {
    let range = VaRange::new(start, size);
    space.space().map_anon(range, Prot::RW, advice)?;
    user_fill(start, size / 8, word)?;
    Ok(range)
}

const fn advice(huge: bool) -> HugeAdvice {
    if huge { HugeAdvice::Huge } else { HugeAdvice::NoHuge }
}

/// Measures one size with one kind of pages, both directions.
pub(super) fn run(size: u64, huge: bool, wall: bool) -> Result<(), Stop> {
    fits(size, size)?;
    let (mut there, mut back) = (Samples::default(), Samples::default());
    let space = new_space()?;
    let active = activate(&space);
    let range = buffer(&space, BASE, size, advice(huge), WORD)?;
    for round in 0..=ROUNDS {
        let (out, cost_out) = measure(|| space.space().migrate(range, Place::device(0)));
        let (home, cost_home) = measure(|| space.space().migrate(range, Place::RAM));
        if out?.pages != range.nr_pages() || home?.pages != range.nr_pages() {
            return Err(Stop::Wrong("not every page moved"));
        }
        if round > 0 {
            there.push(cost_out);
            back.push(cost_home);
        }
    }
    if user_find_other(range.start.0, size / 8, WORD)?.is_some() {
        return Err(Stop::Wrong("the data did not survive"));
    }
    drop(active);
    drop(space);
    let is_huge = huge && size >= PMD_SIZE;
    let (order, count) =
        if is_huge { (Order::PMD, size / PMD_SIZE) } else { (Order::BASE, size / PAGE_SIZE) };
    let count = count as u32;
    for (samples, dir, raw) in
        [(&mut there, "dev", Raw::In { order, count }), (&mut back, "sys", Raw::Out { order, count })]
    {
        let sum = samples.sum();
        let times = if wall { Some((samples.median_ns(), raw_ns(raw)?)) } else { None };
        console::with(|out| {
            let _ = match times {
                Some((ns, copy)) => {
                    record!(
                        out,
                        "sweep",
                        size = size,
                        huge = u64::from(huge),
                        dir = dir,
                        rounds = ROUNDS,
                        ns_median = ns,
                        ns_copy = copy
                    )
                }
                None => {
                    record!(
                        out,
                        "sweep",
                        size = size,
                        huge = u64::from(huge),
                        dir = dir,
                        rounds = ROUNDS,
                        total = sum.ticks,
                        bulk = sum.bulk
                    )
                }
            };
        });
    }
    Ok(())
}

/// Measures the way to the device in the field's shape, in instructions.
///
/// The migration, an entry in the device's table for each page, reading all of it through these entries into memory of the kernel,
/// copying that to memory of the program, a piece at a time. The kernel's piece of memory is there before; allocating one for the
/// whole buffer, which that driver does, is not among the costs here.
pub(super) fn read_back(size: u64, huge: bool) -> Result<(), Stop> {
    fits(size, 2 * size)?;
    let failed = |_| Stop::Wrong("a command of the device failed");
    let space = new_space()?;
    let active = activate(&space);
    let range = buffer(&space, BASE, size, advice(huge), WORD)?;
    let bounce = buffer(&space, BOUNCE, size, HugeAdvice::Huge, !0)?;
    let device = Dmirror::open(Place::device(0), &space).map_err(failed)?;
    let mut piece = vec![0; PIECE * PAGE_WORDS];
    let mut samples = Samples::default();
    for round in 0..=ROUNDS {
        let (done, cost) = measure(|| {
            device.migrate_and_read(range, &mut piece, &mut |page, words| {
                let to = bounce.start.0 + page * PAGE_SIZE;
                copy_words_to_user(to, words).map_err(|_| DmirrorError::Fault)
            })
        });
        done.map_err(failed)?;
        device.migrate_to_system(range).map_err(failed)?;
        if round > 0 {
            // The engine counts what it moves; the two copies after that are not its own.
            samples.push(Cost { bulk: cost.bulk + 2 * (size / 8), ..cost });
        }
    }
    for buffer in [range, bounce] {
        if user_find_other(buffer.start.0, size / 8, WORD)?.is_some() {
            return Err(Stop::Wrong("the data did not survive"));
        }
    }
    drop((device, active));
    let (sum, huge) = (samples.sum(), u64::from(huge));
    console::with(|out| {
        let _ = record!(
            out,
            "sweep",
            size = size,
            huge = huge,
            dir = "dev+read",
            rounds = ROUNDS,
            total = sum.ticks,
            bulk = sum.bulk
        );
    });
    Ok(())
}
