//! The experiment of `docs/EXPERIMENTS.md`, which shows how one is written.

use farpage_mm::{HugeAdvice, PAGE_SIZE};

use super::{Axis, Kind, Sheet};
use crate::bench::Stop;
use crate::vm::user::user_write_u64;

crate::experiment! {
    name: "example",
    question: "What does it cost to touch memory for the first time, by the size of its pages?",
    measures: "a store to every 4 KiB of a new mapping, faults and clearing included, for each 4 KiB",
    fn first_touch(sheet: &mut Sheet<'_>) -> Result<(), Stop> {
        let plot = sheet.plot(Kind::Lines, "First touch", Axis::bytes("memory"), Axis::cost("each 4 KiB"));
        for (series, advice) in [("2 MiB pages", HugeAdvice::Huge), ("4 KiB pages", HugeAdvice::NoHuge)] {
            for len in [2 << 20, 4 << 20, 8 << 20, 16 << 20] {
                let range = sheet.map(len, advice)?;
                let pages = range.nr_pages();
                let mut each = (0..pages).map(|n| range.start.0 + n * PAGE_SIZE);
                let (done, cost) = sheet.measure(|| each.try_for_each(|at| user_write_u64(at, 1)));
                done?;
                sheet.cost(plot, series, len, cost.ticks, pages);
                sheet.space().unmap(range)?;
            }
        }
        Ok(())
    }
}
