//! The steps of the tour, in order.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use farpage_mm::{
    AddressSpace, Entry, Event, FolioRef, HugeAdvice, Need, Order, PAGE_SIZE, PMD_SIZE, Place, Prot, Report,
    SoftKind, VaRange, Vaddr,
};

use super::contents::Contents;
use super::{DEV, Grouped, HUGE_PAGES, Size, Stop, Tour, counted, dump, free_chunks};
use crate::vm::user::{user_read_u64, user_touch_read, user_write_u64};
use crate::vm::{Machine, devmem, mm};
use crate::{bits, println};

/// Where the tour's own pages lie, and where those that take the rest of RAM.
const BASE: u64 = 0x10_0000_0000;
const REST: u64 = 0x20_0000_0000;
/// 2 MiB frames that are enough to show fragmentation: 256 MiB.
const ENOUGH_CHUNKS: u32 = 128;
/// The small part that is unmapped.
const PART: VaRange = VaRange::new(page(2).start.0 + PMD_SIZE / 2, 64 << 10);

/// The range of the tour's 2 MiB page `n`.
const fn page(n: u64) -> VaRange {
    VaRange::new(BASE + n * PMD_SIZE, PMD_SIZE)
}

impl Tour {
    /// Mapped, filled, moved away, and two pages back.
    pub(super) fn there_and_back(
        &mut self,
        space: &AddressSpace<Machine>,
        contents: &mut Contents,
    ) -> Result<(), Stop> {
        let range = VaRange::new(BASE, HUGE_PAGES * PMD_SIZE);
        let faults = counted(Event::PgFault);
        let ((), cost) = self.step("Map 8 MiB, advise huge pages, touch each once", || {
            space.space().map_anon(range, Prot::RW, HugeAdvice::Huge)?;
            (0..HUGE_PAGES).try_for_each(|n| user_write_u64(page(n).start.0, 0))?;
            Ok(())
        })?;
        let faults = format!("{} page faults", counted(Event::PgFault) - faults);
        self.done(cost, &faults, "clearing");
        println!("the program then writes {} words, no two alike", Grouped(contents.fill(range)?));
        dump(space);
        self.check(space, contents)?;

        let flushes = counted(Event::TlbFlush);
        let (report, cost) = self.step("Move it to the device, in one call", || {
            Ok::<Report, Stop>(space.space().migrate(range, DEV)?)
        })?;
        self.done(cost, &format!("migration of {}", Size(report.pages * PAGE_SIZE)), "copy");
        println!(
            "{} of {} pages moved in {} units of 2 MiB; TLB flush rounds: {}",
            report.huge_pages,
            range.nr_pages(),
            report.units,
            counted(Event::TlbFlush) - flushes
        );
        println!(
            "beyond the copy: {} {} per 2 MiB",
            Grouped(cost.ticks.saturating_sub(cost.bulk) / report.units.max(1)),
            self.unit
        );
        dump(space);
        show_moved(space, page(0).start)?;
        self.check(space, contents)?;

        let at = page(0).start.0 + 0x1238;
        self.fault_back("Read a word: #PF brings its 2 MiB page back", || Ok(user_read_u64(at).map(drop)?))?;
        dump(space);
        self.check(space, contents)?;

        let (at, value) = (page(1).start.0 + 0x5678, 0xfa9_a9e);
        self.fault_back("Write a word: so does a write", || Ok(user_write_u64(at, value)?))?;
        contents.note_write(at, value);
        dump(space);
        self.check(space, contents)
    }

    /// Splits: because a part goes, and because there is no room for a whole.
    pub(super) fn splits(
        &mut self,
        space: &AddressSpace<Machine>,
        contents: &mut Contents,
    ) -> Result<(), Stop> {
        let (before, splits) = (resident(), split_calls());
        let ((), cost) = self.step("Unmap a small part of a page that is on the device", || {
            Ok(space.space().unmap(PART)?)
        })?;
        self.done(cost, &format!("unmap of {}", Size(PART.len())), "clearing of page tables");
        contents.note_unmap(PART);
        println!(
            "device memory in use: {}, was {}; folio splits that the device was told of: {}",
            Size(resident()),
            Size(before),
            split_calls() - splits
        );
        dump(space);
        self.check(space, contents)?;

        let at = page(2).start.0;
        self.fault_back("Touch what is left below the gap: it comes back as one piece", || {
            Ok(user_touch_read(at)?)
        })?;
        dump(space);
        self.check(space, contents)?;

        let aside = set_aside()?;
        if !aside.is_empty() {
            println!();
            println!(
                "(the kernel sets {} of RAM aside, so that the next step is short)",
                Size(aside.len() as u64 * PMD_SIZE)
            );
        }
        let free = free_chunks();
        let (kept, cost) =
            self.step("Fragment all RAM: take 2 MiB pages and keep 4 KiB of each", || fragment(space))?;
        self.done(cost, &format!("{kept} times map, touch, unmap"), "clearing");
        println!("2 MiB frames free: {}, was {free}", free_chunks());
        say_chunks();
        println!("{}", contents.verify(space)?);
        if aside.is_empty() {
            self.audit()?; // which counts handles, and finds those of frames set aside one too many
        }

        let (last, torn) = (page(HUGE_PAGES - 1), counted(Event::MigrateSplit));
        let at = last.end.0 - 8;
        self.fault_back("Read from the last page: there is no 2 MiB frame for it", || {
            Ok(user_read_u64(at).map(drop)?)
        })?;
        if counted(Event::MigrateSplit) == torn {
            return Err(Stop::NotShown("the page came back whole although no 2 MiB frame was free"));
        }
        space.for_each_run(|run| {
            if last.contains(run.range.start) {
                println!("{run}");
            }
        });
        drop(aside);
        self.check(space, contents)
    }

    /// All goes; what the machine counted.
    pub(super) fn end(&mut self, space: AddressSpace<Machine>) -> Result<(), Stop> {
        let ((), cost) = self.step("Exit: everything is unmapped", || {
            drop(space);
            Ok(())
        })?;
        self.done(cost, "exit", "clearing");
        println!("2 MiB frames free: {}; device memory in use: {}", free_chunks(), Size(resident()));
        if resident() != 0 {
            return Err(Stop::NotShown("device memory is still in use after the exit"));
        }
        self.audit()?;
        println!();
        println!("Counters");
        say_counters();
        println!();
        Ok(())
    }

    /// A step that is one page fault on device memory.
    fn fault_back(&mut self, title: &str, touch: impl FnOnce() -> Result<(), Stop>) -> Result<(), Stop> {
        let before = (counted(Event::PgFault), counted(Event::DevicePagesOut));
        let ((), cost) = self.step(title, touch)?;
        let (faults, pages) = (counted(Event::PgFault) - before.0, counted(Event::DevicePagesOut) - before.1);
        let only_copied = cost.bulk == pages * PAGE_SIZE / 8;
        let data = if only_copied { "copy" } else { "copy and a new table" };
        self.done(cost, &format!("fault-back of {}", Size(pages * PAGE_SIZE)), data);
        if faults == 1 && pages > 0 {
            Ok(())
        } else {
            Err(Stop::NotShown("one touch was not one fault-back"))
        }
    }
}

/// Prints the walk to `addr`, which must end at an entry of the device.
fn show_moved(space: &AddressSpace<Machine>, addr: Vaddr) -> Result<(), Stop> {
    match space.space().entry_at(addr).1 {
        Entry::NonPresent(soft) if soft.kind == SoftKind::DevicePrivate => {
            println!("the walk to {addr}, as the CPU does it:");
            bits::show_walk(space.space(), addr);
            Ok(())
        }
        _ => Err(Stop::NotShown("the entry that should be device-private is not")),
    }
}

/// Keeps RAM away from the next step beyond what shows the matter well: to clear many GiB takes long.
fn set_aside() -> Result<Vec<FolioRef<Machine>>, Stop> {
    let mut aside = Vec::new();
    while free_chunks() > ENOUGH_CHUNKS {
        aside.push(mm().alloc_folio(Place::RAM, Order::PMD, Need::User)?);
    }
    Ok(aside)
}

/// Fragments RAM the way programs do: 2 MiB pages, of which all but 4 KiB are given back, until no piece of 2 MiB is free.
/// How many pages are kept.
fn fragment(space: &AddressSpace<Machine>) -> Result<u64, Stop> {
    let mut kept = 0;
    while free_chunks() > 0 {
        let range = VaRange::new(REST + kept * PMD_SIZE, PMD_SIZE);
        space.space().map_anon(range, Prot::RW, HugeAdvice::Huge)?;
        user_write_u64(range.start.0, kept)?;
        space.space().unmap(VaRange::new(range.start.0 + PAGE_SIZE, PMD_SIZE - PAGE_SIZE))?;
        kept += 1;
    }
    Ok(kept)
}

/// Bytes of device memory in use.
fn resident() -> u64 {
    mm().device(0).stat().resident * PAGE_SIZE
}

/// Folio splits that the device's owner was called for.
fn split_calls() -> u64 {
    devmem::device(0).map_or(0, devmem::Device::splits)
}

/// Free RAM by the size of its chunks, as `/proc/buddyinfo` has it.
fn say_chunks() {
    let stat = mm().zone(Place::RAM).stat();
    let mut sizes = String::new();
    let mut counts = String::new();
    for (order, count) in stat.chunks.iter().enumerate() {
        sizes += &format!("{:>7}", PAGE_SIZE << order >> 10);
        counts += &format!("{count:>7}");
    }
    println!("free RAM: {}", Size(u64::from(stat.free) * PAGE_SIZE));
    println!("  chunks of KiB {sizes}");
    println!("  free          {counts}");
}

/// Every counter that is not zero.
fn say_counters() {
    for event in Event::ALL {
        let count = counted(*event);
        if count != 0 {
            println!("{:<26}{:>12}", event.name(), Grouped(count));
        }
    }
}
