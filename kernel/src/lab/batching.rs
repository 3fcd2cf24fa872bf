//! One call for many pages against one call for each: what the gather's single flush saves.

use farpage_mm::{Event, HugeAdvice, Machine as _, PAGE_SIZE, PMD_SIZE, Place, VaRange};

use super::{Axis, Kind, Plot, Sheet, huge_or_not};
use crate::bench::Stop;
use crate::vm::Machine;
use crate::vm::user::user_write_u64;

/// Something that is done to a range.
type Work = fn(&Sheet<'_>, VaRange) -> Result<(), Stop>;

/// A size of pages: its name, the advice that gives it, and how many at once.
type Size = (&'static str, u64, HugeAdvice, &'static [u64]);

const SIZES: [Size; 2] = [
    ("4 KiB", PAGE_SIZE, HugeAdvice::NoHuge, &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512]),
    ("2 MiB", PMD_SIZE, HugeAdvice::Huge, &[1, 2, 4, 8, 16]),
];

/// What `work` costs with one call for all pages and with one for each: flushes, and the rest.
fn one(sheet: &mut Sheet<'_>, plots: (Plot, Plot), size: Size, work: Work) -> Result<(u64, u64), Stop> {
    let (name, bytes, advice, counts) = size;
    let mut last = (0, 0);
    for &n in counts {
        for (call, step) in [("one call", n), ("a call for each", 1)] {
            let range = sheet.map(n * bytes, advice)?;
            let mut pages = (0..n).map(|page| range.start.0 + page * bytes);
            pages.try_for_each(|at| user_write_u64(at, at))?;
            huge_or_not(sheet, range, advice)?;
            let flushes = Machine::counted(Event::TlbFlush);
            let (done, cost) = sheet.measure(|| {
                let mut parts = (0..n).step_by(step as usize);
                parts.try_for_each(|page| {
                    work(sheet, VaRange::new(range.start.0 + page * bytes, step * bytes))
                })
            });
            done?;
            let flushes = Machine::counted(Event::TlbFlush) - flushes;
            let series = alloc::format!("{name} pages, {call}");
            sheet.point(plots.0, &series, n, flushes, 1);
            sheet.cost(plots.1, &series, n, cost.ticks.saturating_sub(cost.bulk), n);
            last = if step == n { (flushes, last.1) } else { (last.0, flushes) };
            sheet.space().unmap(range)?;
        }
    }
    Ok(last)
}

fn unmap(sheet: &Sheet<'_>, range: VaRange) -> Result<(), Stop> {
    Ok(sheet.space().unmap(range)?)
}

fn migrate(sheet: &Sheet<'_>, range: VaRange) -> Result<(), Stop> {
    sheet.to_device(range)
}

fn migrate_back(sheet: &Sheet<'_>, range: VaRange) -> Result<(), Stop> {
    let back = sheet.space().migrate(range, Place::RAM)?;
    if back.failed_pages() == 0 { Ok(()) } else { Err(Stop::Wrong("not every page came back")) }
}

/// There and back: pages on a device are in no TLB, so the way back owes nothing.
fn there_and_back(sheet: &Sheet<'_>, range: VaRange) -> Result<(), Stop> {
    migrate(sheet, range)?;
    migrate_back(sheet, range)
}

crate::experiment! {
    name: "flush-batching",
    question: "What does it save to flush once for many pages?",
    measures: "flush rounds (nr_tlb_flush), and what a page costs beyond its data, with one call for all pages and with one for each; on \
               one CPU a round costs little, on many it is an interrupt to each",
    fn batching(sheet: &mut Sheet<'_>) -> Result<(), Stop> {
        sheet.needs(32 << 20, 32 << 20)?;
        let works: [(&str, &str, &str, Work); 3] = [
            ("unmap", "Unmapping: flush rounds", "Unmapping: cost of a page", unmap),
            ("migrate", "Moving to a device: flush rounds", "Moving to a device: cost of a page", migrate),
            ("migrate, there and back", "There and back: flush rounds", "There and back: cost of a page", there_and_back),
        ];
        for (what, rounds, costs, work) in works {
            let x = Axis::log("pages", "pages");
            let plots = (
                sheet.plot(Kind::Lines, rounds, x, Axis::log("flushes", "rounds")),
                sheet.plot(Kind::Lines, costs, x, Axis::cost("each page, less its data")),
            );
            for size in SIZES {
                let most = size.3.last().copied().unwrap_or(0);
                let (batched, single) = one(sheet, plots, size, work)?;
                sheet.finding(format_args!(
                    "{what} of {most} x {}: flush rounds {batched} with one call, {single} with a call for each",
                    size.0
                ));
            }
        }
        Ok(())
    }
}
