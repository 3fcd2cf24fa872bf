//! Each knob does on this machine what it says: real flushes, real copies, a real BAR.

use farpage_mm::{Cause, Event, FaultError, HugeAdvice, Level, PMD_SIZE, Place, Report};

use super::support::{
    DEV0, Space, check, counted, counting, fill, in_space, kinds, map, order_at, pages, refusal, resident,
};
use crate::arch::x86_64::uaccess::copy_words_from_user;
use crate::knobs::{Turned, turned};
use crate::testing::Unmet;

fn set(settings: &[&str]) -> Result<Turned, Unmet> {
    turned(settings).map_err(Unmet::Failed)
}

/// Reads one word.
fn touch(at: u64) -> Result<(), Unmet> {
    Ok(copy_words_from_user(&mut [0], at)?)
}

/// Fills a huge page and moves it to the device.
fn huge_on_device(space: &Space, seed: u64) -> Result<farpage_mm::VaRange, Unmet> {
    let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
    fill(range, seed)?;
    crate::check_eq!(space.space().migrate(range, DEV0)?.huge_pages, 512);
    Ok(range)
}

crate::ktest! {
    fn a_granule_comes_and_the_rest_stays() {
        for (granule, came) in [("granule=4K", 1), ("granule=64K", 16), ("granule=2M", 512)] {
            in_space(|space| {
                let range = huge_on_device(space, 31)?;
                let knobs = set(&[granule])?;
                let (done, moved) = counting(Event::DevicePagesOut, || touch(range.start.0 + 0x12_3000));
                done?;
                drop(knobs);
                crate::check_eq!((moved, resident(0)), (came, 512 - came));
                let kinds = kinds(space, range);
                let there = if came == 512 { 0 } else { 512 - came as u32 };
                crate::check_eq!((kinds.device, kinds.huge_device, kinds.none), (there, 0, 0));
                check(range, 31)
            })?;
        }
    }
}

crate::ktest! {
    fn no_folio_is_larger_than_max_order() {
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            let (first, second) = (pages(range, 0, 512), pages(range, 512, 512));
            fill(first, 32)?;
            let knobs = set(&["max-order=4"])?;
            fill(second, 32)?;
            crate::check_eq!(order_at(space, second.start.0), Some(0));
            crate::check_eq!(space.space().migrate(first, DEV0)?.torn, 512);
            crate::check_eq!(order_at(space, first.start.0), Some(4));
            drop(knobs);
            check(range, 32)
        })?;
    }
}

crate::ktest! {
    fn huge_is_for_all_or_for_none() {
        for (setting, advice, level) in [
            ("huge=always", HugeAdvice::Default, Level::Pmd),
            ("huge=madvise", HugeAdvice::Default, Level::Pte),
            ("huge=never", HugeAdvice::Huge, Level::Pte),
        ] {
            in_space(|space| {
                let _knobs = set(&[setting])?;
                let range = map(space, PMD_SIZE, advice)?;
                fill(pages(range, 0, 1), 33)?;
                crate::check_eq!(space.entry_at(range.start).0, level);
                check(pages(range, 0, 1), 33)
            })?;
        }
    }
}

crate::ktest! {
    fn a_batch_is_a_flush_round() {
        for (setting, rounds) in [("batch=4096", 1), ("batch=64", 2), ("batch=1", 100)] {
            in_space(|space| {
                let range = map(space, PMD_SIZE, HugeAdvice::NoHuge)?;
                let used = pages(range, 0, 100);
                fill(used, 34)?;
                let _knobs = set(&[setting])?;
                let (report, flushes) = counting(Event::TlbFlush, || space.space().migrate(used, DEV0));
                let report: Report = report?;
                crate::check_eq!((report.units, report.batches, flushes), (100, rounds, rounds));
                check(used, 34)
            })?;
        }
    }
}

/// Flushes of everything, and pages flushed by INVLPG, when `n` pages go.
fn flushes(settings: &[&str], n: u64) -> Result<(u64, u64), Unmet> {
    let mut found = (0, 0);
    in_space(|space| {
        let range = map(space, PMD_SIZE, HugeAdvice::NoHuge)?;
        // One page stays, and with it the table.
        fill(pages(range, 0, n + 1), 35)?;
        let _knobs = set(settings)?;
        let before = (counted(Event::TlbFlushAll), counted(Event::TlbFlushOne));
        space.space().advise(pages(range, 0, n), farpage_mm::Advice::DontNeed)?;
        found = (counted(Event::TlbFlushAll) - before.0, counted(Event::TlbFlushOne) - before.1);
        super::support::check_zero(pages(range, 0, n))?;
        check(pages(range, n, 1), 35)
    })?;
    Ok(found)
}

crate::ktest! {
    fn the_flush_knobs_choose_between_invlpg_and_cr3() {
        crate::check_eq!((flushes(&[], 32)?, flushes(&[], 33)?), ((0, 32), (1, 0)));
        crate::check_eq!(flushes(&["flush-threshold=100"], 100)?, (0, 100));
        crate::check_eq!(flushes(&["flush-threshold=0"], 1)?, (1, 0));
        crate::check_eq!(flushes(&["flush-policy=full"], 1)?, (1, 0));
        crate::check_eq!(flushes(&["flush-policy=ranged"], 400)?, (0, 400));
    }
}

crate::ktest! {
    fn every_copy_routine_copies_the_same() {
        for setting in ["copy=movsq", "copy=movsb", "copy=sse", "copy=streaming", "copy=words"] {
            in_space(|space| {
                let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
                fill(range, 36)?;
                let _knobs = set(&[setting])?;
                // To the device, on it, and back: whole, and page by page.
                crate::check_eq!(space.space().migrate(range, DEV0)?.pages, 1024);
                space.space().merge_device(range)?;
                touch(range.start.0)?;
                space.space().migrate(pages(range, 600, 7), Place::RAM)?;
                space.space().migrate(pages(range, 602, 3), DEV0)?;
                check(range, 36)?;
                // From RAM to RAM: a writer's own copy.
                let clone = crate::vm::clone_space(space)?;
                fill(pages(range, 0, 3), 37)?;
                drop(clone);
                check(pages(range, 0, 3), 37)?;
                check(pages(range, 3, 1021), 36)
            })?;
        }
    }
}

crate::ktest! {
    fn copies_of_the_first_device_fail_as_often_as_asked() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::NoHuge)?;
            let used = pages(range, 0, 8);
            fill(used, 38)?;
            let knobs = set(&["fail-copies=3"])?;
            let report = space.space().migrate(used, DEV0)?;
            crate::check_eq!((report.pages, report.failed[Cause::CopyFailed as usize]), (5, 3));
            crate::check_eq!(space.space().migrate(used, DEV0)?.failed_pages(), 0);
            drop(knobs);
            let _knobs = set(&["fail-copies=1"])?;
            let read = refusal(copy_words_from_user(&mut [0], used.start.0));
            crate::check_eq!(read, Err((used.start.0, Some(FaultError::Device(used.start)))));
            check(used, 38)
        })?;
    }
}

crate::ktest! {
    fn a_plan_of_failures_hits_its_site() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::NoHuge)?;
            let used = pages(range, 0, 8);
            fill(used, 39)?;
            let knobs = set(&["fail-plan=device-folio:0:1000"])?;
            let report = space.space().migrate(used, DEV0)?;
            crate::check_eq!((report.pages, report.failed[Cause::NoMemory as usize]), (0, 8));
            // RAM is another site.
            fill(pages(range, 8, 8), 39)?;
            drop(knobs);
            crate::check_eq!(space.space().migrate(used, DEV0)?.pages, 8);
            check(pages(range, 0, 16), 39)
        })?;
    }
}

crate::ktest! {
    fn a_limit_is_for_spaces_that_come_after_it() {
        let knobs = set(&["group-limit=16p"])?;
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::NoHuge)?;
            fill(pages(range, 0, 16), 40)?;
            let more = refusal(fill(pages(range, 16, 1), 40));
            let at = pages(range, 16, 1).start;
            crate::check_eq!(more, Err((at.0, Some(FaultError::Limit(at, 16)))));
            check(pages(range, 0, 16), 40)
        })?;
        drop(knobs);
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::NoHuge)?;
            fill(pages(range, 0, 40), 40)?;
            check(pages(range, 0, 40), 40)
        })?;
    }
}

crate::ktest! {
    fn the_new_before_the_old_is_right_on_one_cpu() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 41)?;
            let _knobs = set(&["break-before-make=off"])?;
            let (done, splits) = counting(Event::ThpSplitPmd, || space.space().unmap(pages(range, 500, 12)));
            done?;
            crate::check_eq!(splits, 1);
            let clone = crate::vm::clone_space(space)?;
            fill(pages(range, 0, 2), 42)?;
            drop(clone);
            check(pages(range, 0, 2), 42)?;
            check(pages(range, 2, 498), 41)
        })?;
    }
}
