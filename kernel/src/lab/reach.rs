//! What a load costs when its page is one of many.

use core::fmt;

use farpage_mm::{HugeAdvice, PAGE_SIZE};
use farpage_pmu::Event;

use super::chase::Chain;
use super::{Axis, Kind, Plot, Ratio, Sheet, huge_or_not};
use crate::bench::Stop;
use crate::units::Size;

/// Working sets: from and to, each step twice the one before.
pub(super) const SMALLEST: u64 = 64 << 10;
pub(super) const LARGEST: u64 = 256 << 20;

/// Loads of a measurement: more where single ones are measured by the clock.
const STEPS: u64 = 1 << 14;
const STEPS_BY_CLOCK: u64 = 1 << 18;

/// A working set, and what a load there costs in ticks.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Cost {
    len: u64,
    ticks: u64,
    loads: u64,
}

impl Cost {
    /// How much more a load costs than in another working set, in percent.
    fn percent_of(self, other: Self) -> u64 {
        self.ticks * other.loads * 100 / (other.ticks * self.loads).max(1)
    }
}

/// The costs of one size of pages, as a sentence.
struct Curve<'a> {
    of: &'a str,
    wall: bool,
    least: Cost,
    most: Cost,
    /// The one that costs most in comparison with the one before, if that is half more.
    knee: Option<Cost>,
}

impl fmt::Display for Curve<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = |cost: Cost| {
            let ticks = if self.wall { crate::measure::nanoseconds(cost.ticks) } else { cost.ticks };
            Ratio(ticks, cost.loads)
        };
        let (least, most) = (each(self.least), each(self.most));
        if !self.wall {
            return write!(
                f,
                "{}: {least} to {most} instructions a load up to {}: instructions do not see the TLB; --wall does",
                self.of,
                Size(self.most.len.max(self.least.len))
            );
        }
        write!(f, "{}: {least} ns a load at best, {most} ns at worst ({})", self.of, Size(self.most.len))?;
        match self.knee {
            Some(knee) => write!(f, "; the knee, where doubling costs most, is at {}", Size(knee.len)),
            None => f.write_str("; no knee"),
        }
    }
}

fn curve(
    sheet: &mut Sheet<'_>,
    (plot, walks): (Plot, Option<Plot>),
    series: &str,
    advice: HugeAdvice,
) -> Result<(), Stop> {
    let mut largest = LARGEST;
    while sheet.needs(largest, 0).is_err() && largest > SMALLEST {
        largest /= 2;
    }
    let range = sheet.map(largest, advice)?;
    let steps = if sheet.is_wall() { STEPS_BY_CLOCK } else { STEPS };
    let mut costs = alloc::vec::Vec::new();
    let mut len = SMALLEST;
    while len <= largest {
        let chain = Chain::lay(range.start, len / PAGE_SIZE)?;
        chain.follow(chain.nodes)?;
        let ticks = sheet.typical(|| {
            let (done, cost) = sheet.measure(|| chain.follow(steps));
            done.map(|_| cost.ticks)
        })?;
        sheet.cost(plot, series, len, ticks, steps);
        if let Some(walks) = walks
            && let Ok((done, count)) = sheet.count(Event::PageWalks, || chain.follow(steps))
        {
            done?;
            sheet.point(walks, series, len, count, steps);
        }
        costs.push(Cost { len, ticks, loads: steps });
        len *= 2;
    }
    huge_or_not(sheet, range, advice)?;
    let Some(&least) = costs.iter().min_by_key(|cost| cost.ticks) else { return Ok(()) };
    let most = costs.iter().copied().max_by_key(|cost| cost.ticks).unwrap_or(least);
    let steps = costs.windows(2).map(|pair| (pair[1].percent_of(pair[0]), pair[1]));
    let knee =
        steps.max_by_key(|(percent, _)| *percent).filter(|(percent, _)| *percent > 150).map(|(_, cost)| cost);
    sheet.finding(Curve { of: series, wall: sheet.is_wall(), least, most, knee });
    sheet.space().unmap(range)?;
    Ok(())
}

crate::experiment! {
    name: "tlb-reach",
    question: "What does a load cost when its page is one of more and more?",
    measures: "a chain of pointers, one in each 4 KiB, in random order: a load, a mask, a count and a jump each; the TLB is QEMU's own \
               under TCG, the CPU's under KVM, and only the clock (--wall) sees either",
    fn reach(sheet: &mut Sheet<'_>) -> Result<(), Stop> {
        let (x, y) = (Axis::bytes("working set"), Axis::cost("each load"));
        let plot = sheet.plot(Kind::Lines, "Following pointers", x, y);
        let walks = match sheet.count(Event::PageWalks, || ()) {
            Ok(_) => Some(sheet.plot_that_varies(Kind::Lines, "Page walks", x, Axis::linear("each load", "walks"))),
            Err(why) => {
                sheet.finding(format_args!("page walks are not counted: {why}"));
                None
            }
        };
        curve(sheet, (plot, walks), "4 KiB pages", HugeAdvice::NoHuge)?;
        curve(sheet, (plot, walks), "2 MiB pages", HugeAdvice::Huge)
    }
}
