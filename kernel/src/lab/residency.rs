//! How much the TLB holds, found out without any counter: by what it has not noticed.

use core::fmt;

use farpage_mm::{Level, PAGE_SIZE, PMD_SIZE};

use super::scratch::Scratch;
use super::{Axis, Kind, Plot, Sheet};
use crate::arch::x86_64::tlb;
use crate::bench::Stop;
use crate::vm::user::{UserFault, user_read_u64};

/// Runs of which the least and the most is shown.
const RUNS: usize = 10;
/// Pages, few to many.
const COUNTS: [u64; 11] = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];
/// Pages whose distance is varied.
const APART: u64 = 256;
/// Rounds after a rest, and pages read in each.
const ROUNDS: u64 = 12;
const ROUND: u64 = 4096;
/// Flushes of a rest: at some microseconds each, longer than the two times 100 ms in which QEMU makes its table smaller.
const REST: u64 = 100_000;

/// In which order pages are read again, after they were read one after the other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    SameOrder,
    Backwards,
    Shuffled,
}

impl Again {
    /// The `i`th page of `n`, which is a power of two.
    fn page(self, i: u64, n: u64) -> u64 {
        match self {
            Self::SameOrder => i,
            Self::Backwards => n - 1 - i,
            // Odd, so every page comes once.
            Self::Shuffled => i.wrapping_mul(0x9e37_79b9_7f4a_7c15) & (n - 1),
        }
    }
}

/// Which addresses are read.
#[derive(Clone, Copy)]
struct Addresses {
    /// From one page to the next, in bytes.
    stride: u64,
    /// Not the first 4 KiB of each page, but all alike.
    spread: bool,
}

impl Addresses {
    /// Of page `i` of `n`.
    fn at(self, i: u64, n: u64) -> u64 {
        let pieces = PMD_SIZE / PAGE_SIZE;
        // Neighbours in different pieces as long as there are some left: a table of `n` entries for 4 KiB has room for each.
        let piece = if self.spread { i * pieces / n.max(pieces) } else { 0 };
        Scratch::BASE + i * self.stride + piece * PAGE_SIZE
    }
}

/// The least and the most of some runs.
#[derive(Clone, Copy)]
struct Range {
    least: u64,
    most: u64,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.least == self.most {
            return write!(f, "{}", self.least);
        }
        write!(f, "{} to {}", self.least, self.most)
    }
}

impl Range {
    const NONE: Self = Self { least: u64::MAX, most: 0 };

    fn add(&mut self, value: u64) {
        *self = Self { least: self.least.min(value), most: self.most.max(value) };
    }
}

/// Reads `n` pages, puts others in their place without a flush, and reads again: how many are still the old ones.
fn live(scratch: &Scratch<'_>, addresses: Addresses, n: u64, again: Again) -> Result<u64, UserFault> {
    scratch.show(0);
    tlb::flush();
    for i in 0..n {
        user_read_u64(addresses.at(i, n))?;
    }
    scratch.show(1);
    let mut old = 0;
    for i in 0..n {
        old += u64::from(user_read_u64(addresses.at(again.page(i, n), n))? == 0);
    }
    Ok(old)
}

fn live_range(scratch: &Scratch<'_>, addresses: Addresses, n: u64, again: Again) -> Result<Range, UserFault> {
    let mut range = Range::NONE;
    for _ in 0..RUNS {
        range.add(live(scratch, addresses, n, again)?);
    }
    Ok(range)
}

/// Flushes, with hardly a page in use.
fn rest() -> Result<(), UserFault> {
    for _ in 0..REST {
        tlb::flush();
        user_read_u64(Scratch::BASE)?;
    }
    Ok(())
}

fn points(sheet: &mut Sheet<'_>, plot: Plot, series: &str, x: u64, range: Range) {
    for (which, value) in [("least", range.least), ("most", range.most)] {
        sheet.point(plot, &alloc::format!("{series}, {which}"), x, value, 1);
    }
}

/// Some ways to lay pages: what they are called, their level, and whether their pieces are spread.
const LAID: [(&str, Level, bool); 3] = [
    ("4 KiB pages", Level::Pte, false),
    ("2 MiB pages, first words", Level::Pmd, false),
    ("2 MiB pages, a word in each 4 KiB", Level::Pmd, true),
];

/// More and fewer pages side by side: the capacity. Every second run begins with the most, so that a table that grows with its use is
/// met small and large.
fn capacity(sheet: &mut Sheet<'_>, plot: Plot) -> Result<(), Stop> {
    for (series, level, spread) in LAID {
        let scratch = Scratch::hang(sheet.address_space(), level)?;
        let addresses = Addresses { stride: scratch.page_size(), spread };
        let mut ranges = [Range::NONE; COUNTS.len()];
        rest()?;
        for run in 0..RUNS {
            for i in 0..COUNTS.len() {
                let i = if run % 2 == 0 { COUNTS.len() - 1 - i } else { i };
                ranges[i].add(live(&scratch, addresses, COUNTS[i], Again::Backwards)?);
            }
        }
        for (n, range) in COUNTS.into_iter().zip(ranges) {
            points(sheet, plot, series, n, range);
        }
        let counts = || COUNTS.into_iter().zip(ranges);
        let always = counts().take_while(|(n, range)| range.least == *n).last().map_or(0, |(n, _)| n);
        let once = counts().rfind(|(n, range)| range.most == *n).map_or(0, |(n, _)| n);
        match counts().find(|(n, range)| range.least < *n) {
            None => {
                sheet.finding(format_args!("{series}: all of {always} stay in the TLB in each of {RUNS} runs"));
            }
            Some((n, range)) if always == 0 => {
                sheet.finding(format_args!("{series}: not even {n} all stay: {range} do"));
            }
            Some((n, range)) => sheet.finding(format_args!(
                "{series}: up to {always} all stay in each of {RUNS} runs, up to {once} in some; of {n}, {range} do"
            )),
        }
    }
    Ok(())
}

/// The same again and again after a rest: a TLB of hardware has the size it has, that of a translator grows.
fn growth(sheet: &mut Sheet<'_>, plot: Plot) -> Result<(), Stop> {
    for (series, level, spread) in LAID {
        let scratch = Scratch::hang(sheet.address_space(), level)?;
        let addresses = Addresses { stride: scratch.page_size(), spread };
        rest()?;
        let (mut first, mut last) = (0, 0);
        for round in 1..=ROUNDS {
            last = live(&scratch, addresses, ROUND, Again::Backwards)?;
            first = if round == 1 { last } else { first };
            sheet.point(plot, series, round, last, 1);
        }
        sheet.finding(format_args!(
            "{series}: of {ROUND} {first} stay in the first round after a rest, {last} in the last of {ROUNDS}"
        ));
    }
    Ok(())
}

/// Few pages, further and further apart: which bits of the address choose the set.
fn distance(sheet: &mut Sheet<'_>, plot: Plot, series: &str, level: Level) -> Result<(), Stop> {
    let scratch = Scratch::hang(sheet.address_space(), level)?;
    let (mut near, mut far) = (Range::NONE, Range::NONE);
    for pages in (0..10).map(|shift| 1 << shift) {
        let addresses = Addresses { stride: scratch.page_size() * pages, spread: false };
        far = live_range(&scratch, addresses, APART, Again::Backwards)?;
        near = if pages == 1 { far } else { near };
        points(sheet, plot, series, pages, far);
    }
    sheet.finding(format_args!(
        "{series}: of {APART} side by side {near} stay, of {APART} that are 512 pages apart {far}"
    ));
    Ok(())
}

/// The same pages read again in several orders, from a rest on: which ones were dropped.
fn order(sheet: &mut Sheet<'_>, plot: Plot) -> Result<(), Stop> {
    let scratch = Scratch::hang(sheet.address_space(), Level::Pte)?;
    let addresses = Addresses { stride: PAGE_SIZE, spread: false };
    let orders =
        [("same order", Again::SameOrder), ("backwards", Again::Backwards), ("shuffled", Again::Shuffled)];
    for (series, again) in orders {
        rest()?;
        for round in 1..=ROUNDS {
            sheet.point(plot, series, round, live(&scratch, addresses, ROUND, again)?, 1);
        }
    }
    sheet.finding(
        "Read again in the same order, each miss drops a page that is still to come, if the oldest goes; backwards, the youngest are \
         all met first. What lies between the two curves is what replacement does.",
    );
    Ok(())
}

crate::experiment! {
    name: "tlb-residency",
    question: "How many translations does the TLB keep, of pages of either size, near and far, and which does it drop?",
    measures: "pages that still show what was there before their entries were changed without a flush: under TCG those of QEMU's \
               software TLB, whose size follows the host's clock, under KVM those of the CPU's; the least and the most of 10 runs",
    fn residency(sheet: &mut Sheet<'_>) -> Result<(), Stop> {
        let live = Axis::log("still live", "translations");
        let filled = Axis::log("pages read", "pages");
        let plot = sheet.plot_that_varies(Kind::Lines, "Translations that are still live", filled, live);
        capacity(sheet, plot)?;
        sheet.finding("A TLB that keeps 2 MiB as one entry does not care where in a page one reads; the two kinds of 2 MiB pages are alike then.");

        let title = "4096 pages again and again after a rest: still live";
        let plot = sheet.plot_that_varies(Kind::Lines, title, Axis::linear("round", ""), live);
        growth(sheet, plot)?;

        let apart = Axis::log("from page to page", "pages");
        let plot = sheet.plot_that_varies(Kind::Lines, "256 pages at a distance: still live", apart, live);
        distance(sheet, plot, "4 KiB pages", Level::Pte)?;
        distance(sheet, plot, "2 MiB pages", Level::Pmd)?;

        let title = "4096 pages of 4 KiB read again in some order, after a rest: still live";
        let plot =
            sheet.plot_that_varies(Kind::Lines, title, Axis::linear("round", ""), Axis::linear("still live", "translations"));
        order(sheet, plot)
    }
}
