//! One large fault against many small ones.

use farpage_mm::{HugeAdvice, PAGE_SIZE, PMD_SIZE};

use super::{Axis, Kind, Sheet, huge_or_not};
use crate::bench::Stop;
use crate::vm::user::{user_fill, user_touch_read};

/// Units of 2 MiB that are touched in the same way.
const UNITS: u64 = 4;

crate::experiment! {
    name: "granularity",
    question: "How much of 2 MiB must be touched before it is cheaper to bring all of it back at once?",
    measures: "touching some pages of 2 MiB on the device, evenly spread, until all of these are in RAM",
    fn granularity(sheet: &mut Sheet<'_>) -> Result<(), Stop> {
        let touched = Axis::log("touched of each 2 MiB", "pages");
        let plot = sheet.plot(Kind::Lines, "Coming back as needed", touched, Axis::cost("each 2 MiB"));
        let pages = [("2 MiB pages", HugeAdvice::Huge), ("4 KiB pages", HugeAdvice::NoHuge)];
        for (series, advice) in pages {
            for touched in (0..10).map(|shift| 1 << shift) {
                let ticks = touch_some(sheet, advice, touched)?;
                sheet.cost(plot, series, touched, ticks, UNITS);
            }
        }
        // The fewest of small pages that cost more than the large one: halves of what is left.
        let (mut cheaper, mut dearer) = (1, 512);
        while dearer - cheaper > 1 {
            let touched = (cheaper + dearer) / 2;
            let [large, small] = pages.map(|(_, advice)| touch_some(sheet, advice, touched));
            if small? < large? { cheaper = touched } else { dearer = touched }
        }
        sheet.finding(format_args!("one fault for all 2 MiB is cheaper from {dearer} of 512 touched pages on"));
        Ok(())
    }
}

/// Touches so many pages of each unit, all of which are on the device; gives the ticks for all units.
fn touch_some(sheet: &mut Sheet<'_>, advice: HugeAdvice, touched: u64) -> Result<u64, Stop> {
    let range = sheet.map(UNITS * PMD_SIZE, advice)?;
    user_fill(range.start.0, range.len() / 8, 1)?;
    huge_or_not(sheet, range, advice)?;
    sheet.to_device(range)?;
    let (done, cost) = sheet.measure(|| {
        let units = (range.start.0..range.end.0).step_by(PMD_SIZE as usize);
        let pages = units.flat_map(|unit| (0..touched).map(move |n| unit + n * 512 / touched * PAGE_SIZE));
        pages.into_iter().try_for_each(user_touch_read)
    });
    done?;
    sheet.space().unmap(range)?;
    Ok(cost.ticks)
}
