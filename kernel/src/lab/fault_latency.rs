//! What single faults cost, and how that is spread.

use alloc::vec::Vec;

use farpage_mm::{Advice, HugeAdvice, PAGE_SIZE, PMD_SIZE};

use super::sheet::Plot;
use super::{Axis, Kind, Sheet, huge_or_not};
use crate::bench::Stop;
use crate::measure::{Cost, nanoseconds};
use crate::vm::user::{user_fill, user_touch_read, user_write_u64};

/// A kind of fault, and how many of it.
struct Faults {
    name: &'static str,
    advice: HugeAdvice,
    page: u64,
    n: u64,
    /// From the device; else first touches.
    back: bool,
}

const KINDS: [Faults; 4] = [
    Faults { name: "first touch, 4 KiB", advice: HugeAdvice::NoHuge, page: PAGE_SIZE, n: 4096, back: false },
    Faults { name: "fault-back, 4 KiB", advice: HugeAdvice::NoHuge, page: PAGE_SIZE, n: 4096, back: true },
    Faults { name: "first touch, 2 MiB", advice: HugeAdvice::Huge, page: PMD_SIZE, n: 64, back: false },
    Faults { name: "fault-back, 2 MiB", advice: HugeAdvice::Huge, page: PMD_SIZE, n: 64, back: true },
];

crate::experiment! {
    name: "fault-latency",
    question: "What does one fault cost, and how far from the usual are the worst?",
    measures: "touches that fault, one by one, entry and return included",
    fn fault_latency(sheet: &mut Sheet<'_>) -> Result<(), Stop> {
        sheet.needs(160 << 20, 128 << 20)?;
        let (one, share) = (Axis::log("one fault", "cost"), Axis::linear("faults that cost no more", "%"));
        let whole = sheet.plot(Kind::Steps, "Cost of a fault", one, share);
        // On the clock, the words that a fault copies or clears are not the same unit.
        let beyond = (!sheet.is_wall()).then(|| sheet.plot(Kind::Steps, "Cost of a fault beyond its data", one, share));
        for kind in &KINDS {
            let costs = kind.costs(sheet)?;
            curve(sheet, whole, kind.name, costs.iter().map(|cost| cost.ticks));
            let Some(beyond) = beyond else { continue };
            let (median, worst) = curve(sheet, beyond, kind.name, costs.iter().map(|cost| cost.ticks.saturating_sub(cost.bulk)));
            sheet.finding(format_args!("{}, beyond its data: median {median}, worst {worst} of {}", kind.name, kind.n));
        }
        Ok(())
    }
}

impl Faults {
    /// Makes the faults and measures each.
    fn costs(&self, sheet: &mut Sheet<'_>) -> Result<Vec<Cost>, Stop> {
        let range = sheet.map(self.n * self.page, self.advice)?;
        // The first one says of what kind all are, and is none of them.
        user_write_u64(range.start.0, 1)?;
        huge_or_not(sheet, range, self.advice)?;
        sheet.space().advise(range, Advice::DontNeed)?;
        if self.back {
            user_fill(range.start.0, range.len() / 8, 1)?;
            sheet.to_device(range)?;
        }
        let mut costs = Vec::with_capacity(self.n as usize);
        for n in 0..self.n {
            let at = range.start.0 + n * self.page;
            let (touched, cost) =
                sheet.measure(|| if self.back { user_touch_read(at) } else { user_write_u64(at, 1) });
            touched?;
            costs.push(cost);
        }
        sheet.space().unmap(range)?;
        Ok(costs)
    }
}

/// Draws how many of all cost at most so much, in steps; gives the median and the worst.
fn curve(sheet: &mut Sheet<'_>, plot: Plot, series: &str, costs: impl Iterator<Item = u64>) -> (u64, u64) {
    let mut sorted: Vec<u64> = costs.collect();
    sorted.sort_unstable();
    let n = sorted.len();
    let mut below = 0;
    while let Some(&least) = sorted.get(below) {
        // What differs by less than 2 % is one step, so that a curve has some dozens at most.
        let upto = sorted.partition_point(|&cost| cost <= least + least / 64);
        let most = sorted[upto - 1];
        let x = if sheet.is_wall() { nanoseconds(most) } else { most };
        sheet.point(plot, series, x, 100 * upto as u64, n as u64);
        below = upto;
    }
    (sorted[n / 2], sorted[n - 1])
}
