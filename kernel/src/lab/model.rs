//! The TLB as a model: the same addresses as `tlb-reach`, in the pages that the memory manager has really made.

use alloc::vec::Vec;

use farpage_mm::exercise::Rng;
use farpage_mm::{Advice, HugeAdvice, Level, PAGE_SIZE, PMD_SIZE, VaRange, Vaddr};
use farpage_tlb_model::{Config, Counts, Holds, PRESETS, PageSize, Replacement, Shape, Tlb, WalkCaches};

use super::chase::Chain;
use super::reach::{LARGEST, SMALLEST};
use super::{Axis, Kind, Plot, Ratio, Sheet};
use crate::bench::Stop;
use crate::units::Size;
use crate::vm::user::{UserFault, user_touch_read};

/// Accesses that are counted, after as many that are not. More than any of the models holds.
const COUNTED: u64 = 4096;
/// The working set of the findings.
const SHOWN: u64 = 64 << 20;
/// The memory on which operations and orders are compared: more than any of the models reaches with small pages.
const COMPARED: u64 = 32 << 20;

impl From<farpage_tlb_model::BadConfig> for Stop {
    fn from(error: farpage_tlb_model::BadConfig) -> Self {
        match error {
            farpage_tlb_model::BadConfig::OutOfMemory => {
                Self::DoesNotFit("the heap has no room for the models")
            }
            _ => Self::Wrong("a model cannot be built"),
        }
    }
}

/// Feeds all models with the same addresses, `COUNTED` of which count. The size of each page is what the page table says.
fn feed(
    sheet: &Sheet<'_>,
    addresses: impl Iterator<Item = Result<u64, UserFault>>,
) -> Result<Vec<(Config<'static>, Counts)>, Stop> {
    let mut models = Vec::new();
    for preset in PRESETS {
        models.push((preset, Tlb::new(&preset)?));
    }
    for (n, address) in (0..2 * COUNTED).zip(addresses) {
        let address = address?;
        let size = match sheet.space().entry_at(Vaddr(address)) {
            (Level::Pmd, _) => PageSize::Huge,
            _ => PageSize::Small,
        };
        for (_, model) in &mut models {
            if n == COUNTED {
                model.take_counts();
            }
            model.access(address, size);
        }
    }
    Ok(models.into_iter().map(|(preset, mut model)| (preset, model.take_counts())).collect())
}

/// What is drawn over the size of the working set.
struct Plots {
    walks: Plot,
    loads: Plot,
    first: Plot,
}

/// The counts of a size of pages at [`SHOWN`], or at the largest working set that fits.
type AtShown = Vec<(Config<'static>, Counts)>;

fn working_sets(
    sheet: &mut Sheet<'_>,
    plots: &Plots,
    pages: &str,
    advice: HugeAdvice,
) -> Result<(u64, AtShown), Stop> {
    let mut largest = LARGEST;
    while sheet.needs(largest, 0).is_err() && largest > SMALLEST {
        largest /= 2;
    }
    let range = sheet.map(largest, advice)?;
    let mut shown = (0, Vec::new());
    let mut len = SMALLEST;
    while len <= largest {
        let chain = Chain::lay(range.start, len / PAGE_SIZE)?;
        let counts = feed(sheet, chain.addresses())?;
        for (preset, counts) in &counts {
            let series = alloc::format!("{}, {pages}", preset.name);
            sheet.point(plots.walks, &series, len, counts.walks, counts.accesses);
            sheet.point(plots.loads, &series, len, counts.walk_loads, counts.accesses);
            sheet.point(plots.first, &series, len, counts.first_misses, counts.accesses);
        }
        if len <= SHOWN {
            shown = (len, counts);
        }
        len *= 2;
    }
    sheet.space().unmap(range)?;
    Ok(shown)
}

fn over_working_sets(sheet: &mut Sheet<'_>) -> Result<(), Stop> {
    let x = Axis::bytes("working set");
    let mut plot = |title, y| sheet.plot(Kind::Lines, title, x, Axis::linear(y, ""));
    let plots = Plots {
        walks: plot("Walks, by the models", "walks for each load"),
        loads: plot("Loads of walks, by the models", "page-table loads for each load"),
        first: plot("Misses of the first level, by the models", "misses for each load"),
    };
    let (len, small) = working_sets(sheet, &plots, "4 KiB pages", HugeAdvice::NoHuge)?;
    let (_, huge) = working_sets(sheet, &plots, "2 MiB pages", HugeAdvice::Huge)?;
    let (x, y) = (Axis::words("pages"), Axis::linear("share of loads", ""));
    let found =
        sheet.plot(Kind::Stacked, "Where translations are found, at the largest set up to 64 MiB", x, y);
    for ((preset, small), (_, huge)) in small.iter().zip(&huge) {
        for (pages, counts) in [("4 KiB", small), ("2 MiB", huge)] {
            let bar = alloc::format!("{}, {pages}", preset.name);
            let Counts { accesses, first_misses, walks, .. } = *counts;
            sheet.point(found, "first level", &bar, accesses - first_misses, accesses);
            sheet.point(found, "second level", &bar, first_misses - walks, accesses);
            sheet.point(found, "walk", &bar, walks, accesses);
        }
        sheet.finding(format_args!(
            "{}: {} walks a load at {} with 4 KiB pages ({} page-table loads), {} with 2 MiB pages ({}); it reaches {} and {}",
            preset.name,
            Ratio(small.walks, small.accesses),
            Size(len),
            Ratio(small.walk_loads, small.accesses),
            Ratio(huge.walks, huge.accesses),
            Ratio(huge.walk_loads, huge.accesses),
            Size(preset.reach(PageSize::Small)),
            Size(preset.reach(PageSize::Huge)),
        ));
    }
    Ok(())
}

/// Ways to go through memory: every line, every page, a chain that passes every page once in a round, and pages at random.
fn orders(sheet: &mut Sheet<'_>) -> Result<(), Stop> {
    let y = Axis::linear("walks for each load", "");
    let plot = sheet.plot(Kind::Bars, "Ways through 32 MiB, by the models", Axis::words("order"), y);
    for (pages, advice) in [("4 KiB pages", HugeAdvice::NoHuge), ("2 MiB pages", HugeAdvice::Huge)] {
        let range = sheet.map(COMPARED, advice)?;
        let chain = Chain::lay(range.start, range.nr_pages())?;
        let step = |bytes: u64| (0..).map(move |n| Ok(range.start.0 + n * bytes % range.len()));
        let lines = feed(sheet, step(64))?;
        let columns = feed(sheet, step(PAGE_SIZE))?;
        let round = feed(sheet, chain.addresses())?;
        let mut rng = Rng::new(1);
        let random = feed(sheet, (0..).map(|_| Ok(range.start.0 + rng.below(range.nr_pages()) * PAGE_SIZE)))?;
        for (order, counts) in [
            ("every line", lines),
            ("a line of each page", columns),
            ("a chain", round),
            ("pages at random", random),
        ] {
            for (preset, counts) in counts {
                let series = alloc::format!("{}, {pages}", preset.name);
                sheet.point(plot, &series, order, counts.walks, counts.accesses);
            }
        }
        sheet.space().unmap(range)?;
    }
    Ok(())
}

/// Going round a few pages too many, by what is replaced.
fn replacements(sheet: &mut Sheet<'_>) -> Result<(), Stop> {
    let (x, y) = (Axis::log("pages of a round", "pages"), Axis::linear("walks for each load", ""));
    let plot = sheet.plot(Kind::Lines, "64 entries and a round of pages, by what is replaced", x, y);
    for (series, replacement) in [
        ("LRU", Replacement::Lru),
        ("tree", Replacement::TreePlru),
        ("FIFO", Replacement::Fifo),
        ("random", Replacement::Random),
    ] {
        let full = [Shape { replacement, ..Shape::full(64, Holds::Both) }];
        for pages in [16, 32, 48, 56, 64, 65, 66, 68, 72, 80, 96, 128, 192, 256] {
            let config = Config { name: series, first: &full, second: &[], walks: WalkCaches::NONE };
            let mut model = Tlb::new(&config)?;
            for n in 0..2 * COUNTED {
                if n == COUNTED {
                    model.take_counts();
                }
                model.access(n % pages * PAGE_SIZE, PageSize::Small);
            }
            let counts = model.take_counts();
            sheet.point(plot, series, pages, counts.walks, counts.accesses);
        }
    }
    sheet.finding("Of a round through one page too many LRU and FIFO keep none; chance keeps most of it. So the curves of chains are steps.");
    Ok(())
}

/// Touches every page, which brings what is on the device back.
fn touch(range: VaRange) -> Result<(), UserFault> {
    (0..range.nr_pages()).try_for_each(|n| user_touch_read(range.start.0 + n * PAGE_SIZE))
}

/// What operations leave behind: the page table is the memory manager's answer, the model says what it is worth.
fn operations(sheet: &mut Sheet<'_>) -> Result<(), Stop> {
    let y = Axis::linear("walks for each load", "");
    let plot =
        sheet.plot(Kind::Bars, "After an operation, by the models", Axis::words("32 MiB of memory"), y);
    let range = sheet.map(COMPARED, HugeAdvice::Huge)?;
    let chain = Chain::lay(range.start, range.nr_pages())?;
    let say = |sheet: &mut Sheet<'_>, after: &str| -> Result<(), Stop> {
        for (preset, counts) in feed(sheet, chain.addresses())? {
            sheet.point(plot, preset.name, after, counts.walks, counts.accesses);
        }
        Ok(())
    };
    say(sheet, "2 MiB pages")?;
    sheet.to_device(range)?;
    touch(range)?;
    say(sheet, "moved and back")?;
    for huge in (range.start.0..range.end.0).step_by(PMD_SIZE as usize) {
        sheet.space().migrate(VaRange::new(huge + PMD_SIZE / 2, PAGE_SIZE), Sheet::DEV)?;
    }
    touch(range)?;
    say(sheet, "4 KiB of each moved and back")?;
    sheet.space().advise(range, Advice::Collapse)?;
    say(sheet, "and collapsed")?;
    sheet.space().unmap(range)?;
    Ok(())
}

crate::experiment! {
    name: "tlb-model",
    question: "How often does a CPU's TLB miss, with pages of either size?",
    measures: "a model of three TLBs (desktop-like, server-like, tiny) fed with the addresses of tlb-reach and the page sizes of the real \
               page table: 4096 loads after as many to warm up; no hardware, and the same in every run",
    fn model(sheet: &mut Sheet<'_>) -> Result<(), Stop> {
        sheet.needs(COMPARED, COMPARED)?;
        over_working_sets(sheet)?;
        orders(sheet)?;
        operations(sheet)?;
        replacements(sheet)
    }
}
