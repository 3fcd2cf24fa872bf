//! Commands that look and change nothing: the page table, a folio, the devices.

use farpage_mm::{Entry, Frame, PAGE_SIZE, PMD_SIZE, Run, Space, USER_END, VaRange, Vaddr};
use ktest::monitor::{Address, Size as Bytes, Target};

use super::memory::frame_of;
use super::moves::place;
use super::spaces::Spaces;
use super::{Done, Refusal, user};
use crate::println;
use crate::units::{Grouped, Size};
use crate::vm::{Machine, devmem, mm};

pub(super) fn page_table(space: &Space<Machine>, addr: Option<Address>, size: Option<Bytes>) -> Done {
    let range = match addr {
        Some(addr) => VaRange::new(user(addr)?.0, size.map_or(PMD_SIZE, |size| size.0)),
        None => VaRange::new(0, USER_END),
    };
    let mut runs = 0;
    space.for_each_run(|run| {
        if !run.range.intersect(range).is_empty() {
            println!("{run}");
            runs += 1;
        }
    });
    if runs == 0 {
        println!("no entry: nothing there was touched yet");
    }
    Ok(None)
}

pub(super) fn folio(spaces: &Spaces, target: Target) -> Done {
    let frame = match target {
        Target::Frame(at, index) => Frame::new(place(at)?, index),
        Target::Address(addr) => {
            let found = frame_of(spaces.space(), user(Address(addr))?);
            found
                .ok_or_else(|| Refusal::Said(alloc::format!("no page is at {:#x}; touch makes one", addr)))?
        }
    };
    let folio = mm().try_get_folio(frame);
    let folio = folio.ok_or_else(|| {
        Refusal::Said(alloc::format!("no folio owns frame {frame}: it is free, a table, or not there"))
    })?;
    println!(
        "folio {}: order {} ({}) in {}",
        folio.frame(),
        folio.order().get(),
        Size(folio.order().bytes()),
        folio.place()
    );
    println!(
        "  references {} (less the one of this look), entries that map it {}, migration entries {}, pins {}",
        folio.refs() - 1,
        folio.map_count(),
        folio.migration_entries(),
        folio.pins()
    );
    println!(
        "  {}, {}, driver's word {:#x}",
        if folio.is_locked() { "locked" } else { "not locked" },
        if folio.is_dirty() { "dirty" } else { "clean" },
        folio.driver_word()
    );
    for (number, space) in spaces.iter() {
        space.for_each_run(|run| {
            if let Some(range) = part_in(run, folio.frame(), folio.order().pages()) {
                println!(
                    "  space {number} maps it: {range}, {} x {}",
                    range.len() / run.level.size(),
                    Size(run.level.size())
                );
            }
        });
    }
    Ok(None)
}

/// The addresses of a run whose frames are among `pages` from `first` on.
fn part_in(run: &Run, first: Frame, pages: u32) -> Option<VaRange> {
    let frame = match run.entry {
        Entry::Leaf(leaf) if !leaf.special => leaf.frame,
        Entry::NonPresent(soft) => soft.frame,
        _ => return None,
    };
    if frame.place() != first.place() {
        return None;
    }
    let at = |index: u64| run.range.start.0 + (index - u64::from(frame.index())) * PAGE_SIZE;
    let start = u64::from(first.index()).max(frame.index().into());
    let end =
        (u64::from(first.index()) + u64::from(pages)).min(u64::from(frame.index()) + run.range.nr_pages());
    (start < end).then(|| VaRange::between(Vaddr(at(start)), Vaddr(at(end))))
}

pub(super) fn devices() -> Done {
    if devmem::devices().count() == 0 {
        println!("the machine has no device; --device-count N gives it some");
    }
    for device in devmem::devices() {
        let Some(number) = device.place().device_number() else { continue };
        let of_mm = mm().device(number);
        let (memory, kind) =
            (of_mm.memory(), if device.place().is_coherent() { "coherent" } else { "private" });
        println!(
            "{}: {} of {kind} memory at {:#x}, pages from {:#x} on; {} of {} pages are free",
            device.place(),
            Size(device.len_bytes()),
            device.phys(),
            device.base(),
            Grouped(memory.free.into()),
            Grouped(memory.managed.into())
        );
        for (order, chunks) in memory.chunks.iter().enumerate().filter(|(_, chunks)| **chunks != 0) {
            println!("    free chunks of {}: {chunks}", Size(PAGE_SIZE << order));
        }
        of_mm.vmstat(&mut |name, value| {
            if value != 0 {
                println!("    {name:<28} {value:>12}");
            }
        });
    }
    Ok(None)
}
