//! One page after the other, or all at once: what a flush costs, and what it costs to come back.

use farpage_mm::{HugeAdvice, Level, Machine as _, PAGE_SIZE, VaRange, Vaddr};
use x86_64::VirtAddr;

use super::chase::Chain;
use super::scratch::Scratch;
use super::{Axis, Kind, Plot, Sheet};
use crate::arch::x86_64::tlb;
use crate::bench::Stop;
use crate::vm::user::{UserFault, user_read_u64};
use crate::vm::{Machine, mm};

/// Pages that are in use, and that one comes back to.
const IN_USE: u64 = 512;
/// How many of them are flushed.
const FLUSHED: [u64; 16] = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512];
/// Pages that are touched first after a flush.
const FIRST: u64 = 64;

/// What becomes of translations.
#[derive(Clone, Copy)]
enum Flush {
    Nothing,
    Pages(u64),
    All,
    Global,
}

impl Flush {
    /// Does it to the first of the pages from `start` on.
    #[inline(always)]
    fn run(self, start: u64) {
        match self {
            Self::Nothing => {}
            Self::Pages(n) => (0..n).for_each(|i| tlb::invlpg(VirtAddr::new_truncate(start + i * PAGE_SIZE))),
            Self::All => tlb::flush(),
            Self::Global => tlb::flush_global(),
        }
    }
}

/// The ticks of a flush, and of the flush and one load from each page that is in use.
fn flush_and_back(sheet: &Sheet<'_>, chain: Chain, flush: Flush) -> Result<(u64, u64), Stop> {
    let start = chain.start();
    let alone = sheet.typical(|| {
        chain.follow(IN_USE)?;
        let ((), cost) = sheet.measure(|| flush.run(start));
        Ok::<_, UserFault>(cost.ticks)
    })?;
    let both = sheet.typical(|| {
        chain.follow(IN_USE)?;
        let (done, cost) = sheet.measure(|| {
            flush.run(start);
            chain.follow(IN_USE)
        });
        done.map(|_| cost.ticks)
    })?;
    Ok((alone, both))
}

/// The first of a list of counts at which single flushes cost more than one of all.
fn crossover(costs: &[(u64, u64)], all: u64) -> alloc::string::String {
    match costs.iter().find(|(_, ticks)| *ticks > all) {
        Some((n, _)) => alloc::format!("from {n} on"),
        None => alloc::format!("not up to {IN_USE}"),
    }
}

fn one_by_one(sheet: &mut Sheet<'_>, plot: Plot) -> Result<(), Stop> {
    let range = sheet.map(IN_USE * PAGE_SIZE, HugeAdvice::NoHuge)?;
    let chain = Chain::lay(range.start, IN_USE)?;
    let (all, all_and_back) = flush_and_back(sheet, chain, Flush::All)?;
    let (_, untouched) = flush_and_back(sheet, chain, Flush::Nothing)?;
    let (mut single, mut single_and_back) = (alloc::vec::Vec::new(), alloc::vec::Vec::new());
    for n in FLUSHED {
        let (alone, back) = flush_and_back(sheet, chain, Flush::Pages(n))?;
        for (series, ticks) in [
            ("INVLPG of each", alone),
            ("CR3 loaded once", all),
            ("INVLPG of each, then 512 loads", back),
            ("CR3 loaded once, then 512 loads", all_and_back),
            ("512 loads alone", untouched),
        ] {
            sheet.cost(plot, series, n, ticks, 1);
        }
        single.push((n, alone));
        single_and_back.push((n, back));
    }
    sheet.finding(format_args!(
        "Pages of which one flush of everything is cheaper: {}; with coming back to {IN_USE} pages: {}. The kernel flushes everything \
         above {}.",
        crossover(&single, all),
        crossover(&single_and_back, all_and_back),
        mm().policy.flush_pages(),
    ));
    if !sheet.is_wall() {
        sheet.finding(
            "Instructions count the flush and not the misses after it, so they favour the flush of everything; --wall sees both.",
        );
    }
    sheet.space().unmap(range)?;
    Ok(())
}

/// The flushes whose first accesses after are looked at.
const AFTER: [(&str, Flush); 4] = [
    ("nothing", Flush::Nothing),
    ("INVLPG of each", Flush::Pages(FIRST)),
    ("CR3 loaded", Flush::All),
    ("PGE off and on", Flush::Global),
];

/// Loads from user pages, and from the kernel's global map of the same memory.
fn first_access(sheet: &mut Sheet<'_>, plot: Plot) -> Result<(), Stop> {
    let range = sheet.map(FIRST * PAGE_SIZE, HugeAdvice::NoHuge)?;
    let chain = Chain::lay(range.start, FIRST)?;
    let frames: alloc::vec::Vec<u32> = (0..FIRST)
        .filter_map(|n| match sheet.space().entry_at(Vaddr(range.start.0 + n * PAGE_SIZE)) {
            (Level::Pte, farpage_mm::Entry::Leaf(leaf)) => Some(leaf.frame.index()),
            _ => None,
        })
        .collect();
    let global = || {
        for &frame in &frames {
            core::hint::black_box(Machine::table_words(frame)[0].load(core::sync::atomic::Ordering::Relaxed));
        }
    };
    for (after, flush) in AFTER {
        let user = sheet.typical(|| {
            chain.follow(FIRST)?;
            flush.run(range.start.0);
            let (done, cost) = sheet.measure(|| chain.follow(FIRST));
            done.map(|_| cost.ticks)
        })?;
        let kernel = sheet.typical(|| {
            global();
            match flush {
                Flush::Pages(_) => frames.iter().for_each(|&frame| {
                    tlb::invlpg(VirtAddr::from_ptr(Machine::table_words(frame)));
                }),
                flush => flush.run(0),
            }
            let ((), cost) = sheet.measure(global);
            Ok::<_, UserFault>(cost.ticks)
        })?;
        sheet.cost(plot, "user pages", after, user, FIRST);
        sheet.cost(plot, "kernel pages, global", after, kernel, FIRST);
    }
    sheet.space().unmap(range)?;
    Ok(())
}

/// How many of some translations are still there after a flush, by what is read through them.
fn survivors(sheet: &mut Sheet<'_>, plot: Plot) -> Result<(), Stop> {
    let mut after_cr3 = 0;
    for (series, global) in [("pages of a space", false), ("global pages", true)] {
        let scratch = Scratch::hang(sheet.address_space(), Level::Pte)?;
        let scratch = if global { scratch.global() } else { scratch };
        for (after, flush) in &AFTER[1..] {
            scratch.show(0);
            tlb::flush_global();
            let pages = VaRange::new(Scratch::BASE, FIRST * PAGE_SIZE);
            let at = |n: u64| pages.start.0 + n * PAGE_SIZE;
            (0..FIRST).try_for_each(|n| user_read_u64(at(n)).map(drop))?;
            scratch.show(1);
            flush.run(pages.start.0);
            let mut old = 0;
            for n in 0..FIRST {
                old += u64::from(user_read_u64(at(n))? == 0);
            }
            if matches!(flush, Flush::All) && global {
                after_cr3 = old;
            }
            sheet.point(plot, series, after, old, 1);
        }
    }
    sheet.finding(format_args!(
        "Of {FIRST} global translations {after_cr3} outlive a load of CR3. A CPU keeps as many as it has room for; QEMU's translator \
         drops them all."
    ));
    Ok(())
}

crate::experiment! {
    name: "tlb-flush",
    question: "When is it cheaper to flush everything than page by page, and what are global pages spared?",
    measures: "INVLPG of n pages against one load of CR3, and the loads of 512 pages after; the misses are QEMU's under TCG, where \
               INVLPG and flushes cost what QEMU makes of them, the CPU's under KVM, and only the clock (--wall) sees them",
    fn flush(sheet: &mut Sheet<'_>) -> Result<(), Stop> {
        let x = Axis::log("pages flushed", "pages");
        let plot = sheet.plot(Kind::Lines, "Flushing n of 512 pages", x, Axis::cost("all together"));
        one_by_one(sheet, plot)?;
        let title = "The first 64 loads after a flush";
        let plot = sheet.plot(Kind::Bars, title, Axis::words("after"), Axis::cost("each load"));
        first_access(sheet, plot)?;
        let y = Axis::linear("still live of 64", "translations");
        let plot = sheet.plot(Kind::Bars, "Translations that outlive a flush", Axis::words("after"), y);
        survivors(sheet, plot)
    }
}
