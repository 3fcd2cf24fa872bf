//! Commands that move pages, and that change their size.

use core::fmt;

use farpage_mm::{
    Advice, Cause, Entry, Event, Level, MergeCause, MergeReport, MigrateOptions, PAGE_SIZE, PMD_SIZE, Place,
    Report, SoftKind, SoftLeaf, Sources, Space, VaRange, Vaddr,
};
use ktest::monitor::{Device, Number, Place as Named, Size as Bytes};

use super::counters::{Changes, Plural};
use super::{Done, Refusal};
use crate::measure::measure;
use crate::println;
use crate::units::Grouped;
use crate::vm::{Machine, devmem, mm};

/// The device of this number.
pub(super) fn device(number: usize) -> Result<&'static devmem::Device, Refusal> {
    devmem::device(number).ok_or_else(|| Refusal::NoDevice { number, there_are: devmem::devices().count() })
}

/// The place that is named: which kind of memory a device has, the machine knows.
pub(super) fn place(named: Named) -> Result<Place, Refusal> {
    match named {
        Named::Ram => Ok(Place::RAM),
        Named::Device(number) => Ok(device(number)?.place()),
    }
}

pub(super) fn migrate(space: &'static Space<Machine>, range: VaRange, to: Named) -> Done {
    let to = place(to)?;
    let everywhere_else = Sources::RAM.union(Sources::devices()).without(to);
    let options = MigrateOptions::to(to).from(everywhere_else);
    let changes = Changes::begin();
    let (result, cost) = measure(|| space.migrate_with(range, to, &options, &mut |_| {}));
    let report = result?;
    println!(
        "moved {} of {} pages to {to} in {}, {} of 2 MiB; {}{}",
        Grouped(report.pages),
        Grouped(range.nr_pages()),
        Plural(report.units, "unit"),
        Grouped(report.huge_pages * PAGE_SIZE / PMD_SIZE),
        Plural(changes.of(Event::TlbFlush), "flush round"),
        Rest(&report)
    );
    Ok(Some(cost))
}

pub(super) fn evict(from: Device, first: Option<Number>, count: Option<Number>) -> Done {
    let device = device(from.0)?;
    let pages = (device.len_bytes() / PAGE_SIZE) as u32;
    let clamp =
        |number: Option<Number>, other| number.map_or(other, |n| u32::try_from(n.0).unwrap_or(u32::MAX));
    let start = clamp(first, 0);
    if start >= pages {
        let (place, last) = (device.place(), pages - 1);
        return Err(Refusal::Said(alloc::format!("{place} has no page {start:#x}: its last is {last:#x}")));
    }
    let end = start.saturating_add(clamp(count, pages)).min(pages);
    let frames = device.base() + start..device.base() + end;
    let (report, cost) = measure(|| mm().evict_range(device.place(), frames));
    println!(
        "evicted {} from pages {start:#x} to {end:#x} of {} in {}{}",
        Plural(report.pages, "page"),
        device.place(),
        Plural(report.units, "unit"),
        Rest(&report)
    );
    Ok(Some(cost))
}

/// What else a report says, where there is something to say.
struct Rest<'a>(&'a Report);

impl fmt::Display for Rest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, what) in [
            (self.0.holes, "of them new, for holes"),
            (self.0.copied, "of them copied, since others share them"),
            (self.0.torn, "of them in smaller pieces than before"),
        ] {
            if count != 0 {
                write!(f, "; {} {what}", Grouped(count))?;
            }
        }
        for (cause, count) in Cause::ALL.iter().zip(self.0.failed) {
            if count != 0 {
                write!(f, "; {} stayed: {}", Plural(count, "page"), why_stayed(*cause))?;
            }
        }
        Ok(())
    }
}

fn why_stayed(cause: Cause) -> &'static str {
    match cause {
        Cause::Busy => "locked by somebody else",
        Cause::Pinned => "somebody else holds references",
        Cause::NoMemory => "no memory at the destination",
        Cause::CopyFailed => "the copy failed",
        Cause::Raced => "somebody else filled the hole",
        Cause::NotSplit => "the folio reaches out of the range and could not be split",
        Cause::Foreign => "it lies on another device",
        Cause::NotAnon => "not anonymous memory",
        Cause::Limit => "the space's group may have no more pages",
    }
}

/// Advice on the contents of one page has to cut the mapping that it lies in.
pub(super) fn split(space: &'static Space<Machine>, addr: Vaddr) -> Done {
    match space.entry_at(addr) {
        (Level::Pmd, Entry::Leaf(_) | Entry::NonPresent(_)) => {}
        (_, Entry::None) => return Err(Refusal::said("nothing is there yet; touch makes a page")),
        _ => {
            return Err(Refusal::said("the entries there are of 4 KiB already; collapse makes one of 2 MiB"));
        }
    }
    let page = VaRange::new(addr.align_down(PAGE_SIZE).0, PAGE_SIZE);
    let changes = Changes::begin();
    let (result, cost) = measure(|| space.advise(page, Advice::Cold));
    result?;
    println!(
        "split the huge mapping over {addr} into 512 entries; {}",
        Plural(changes.of(Event::ThpSplitPage), "folio split")
    );
    Ok(Some(cost))
}

pub(super) fn collapse(space: &'static Space<Machine>, addr: Vaddr, size: Option<Bytes>) -> Done {
    let range = match size {
        Some(size) => VaRange::new(addr.0, size.0),
        None => VaRange::new(addr.align_down(PMD_SIZE).0, PMD_SIZE),
    };
    let on_device =
        |entry| matches!(entry, Entry::NonPresent(SoftLeaf { kind: SoftKind::DevicePrivate, .. }));
    let (result, cost) = if on_device(space.entry_at(addr).1) {
        measure(|| space.merge_device(range))
    } else {
        measure(|| space.collapse(range))
    };
    println!("{}", Merged(result?));
    Ok(Some(cost))
}

struct Merged(MergeReport);

impl fmt::Display for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(report) = self;
        write!(
            f,
            "2 MiB pages made: {} by copying, {} in place; {} were one already",
            report.copied, report.in_place, report.already
        )?;
        for (cause, why) in [
            (MergeCause::NotHuge, "no mapping that allows huge pages covers it: advise huge"),
            (MergeCause::Empty, "nothing is there"),
            (MergeCause::Elsewhere, "it lies elsewhere, in part or whole"),
            (MergeCause::Mixed, "the entries do not allow the same"),
            (MergeCause::Busy, "a folio is locked or on its way"),
            (MergeCause::Pinned, "somebody holds a page, or maps it too"),
            (MergeCause::NoMemory, "no 2 MiB are free"),
            (MergeCause::CopyFailed, "the copy failed"),
        ] {
            let stayed = report.failed[cause as usize];
            if stayed != 0 {
                write!(f, "; {stayed} stayed: {why}")?;
            }
        }
        Ok(())
    }
}
