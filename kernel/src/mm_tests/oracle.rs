//! Somebody else looks at the tables: the kernel's own walker, and, where a host program watches, QEMU's and the file
//! behind the BAR.
//!
//! How the test and a host program that watches find each other is said in [`ktest::watch`].

use farpage_device::DeviceAddr;
use farpage_mm::{Attrs, Entry, HugeAdvice, Level, PAGE_SIZE, PMD_SIZE, Prot, VaRange, Vaddr};
use ktest::watch;

use super::support::{BASE, DEV0, Held, Space, check, check_zero, fill, frame_at, in_space, map, pages};
use crate::arch::x86_64::tlb;
use crate::arch::x86_64::walk::Walk;
use crate::console;
use crate::testing::Unmet;
use crate::vm::devmem::{self, Device};

/// The seed of the pattern on the device.
const SEED: u64 = 0xb0;

/// Memory of every kind: huge, small, read-only, zero, on the device, and nothing.
fn furnish(space: &Space) -> Result<VaRange, Unmet> {
    let range = map(space, 6 * PMD_SIZE, HugeAdvice::Huge)?;
    space.space().advise_huge(pages(range, 1024, 512), HugeAdvice::NoHuge)?;
    fill(pages(range, 0, 1024), SEED)?;
    fill(pages(range, 1024, 20), SEED)?;
    fill(pages(range, 1050, 7), SEED)?;
    check_zero(pages(range, 1060, 2))?;
    check_zero(pages(range, 1536, 1))?;
    fill(pages(range, 2048, 1024), SEED)?;
    let read_only = VaRange::new(BASE + (1 << 32), 3 * PAGE_SIZE);
    space.space().map_anon(read_only, Prot::READ | Prot::EXEC, HugeAdvice::NoHuge)?;
    check_zero(read_only)?;
    // A huge page, a part of one, and small pages go to the device.
    space.space().migrate(pages(range, 512, 512), DEV0)?;
    space.space().migrate(pages(range, 2100, 40), DEV0)?;
    space.space().migrate(pages(range, 1052, 3), DEV0)?;
    Ok(range)
}

/// The parts that [`furnish`] put on the device.
fn moved(range: VaRange) -> [VaRange; 3] {
    [pages(range, 512, 512), pages(range, 2100, 40), pages(range, 1052, 3)]
}

fn verify(range: VaRange) -> Result<(), Unmet> {
    check(pages(range, 0, 1044), SEED)?;
    check(pages(range, 1050, 7), SEED)?;
    check_zero(pages(range, 1057, 479))?;
    check(pages(range, 2048, 1024), SEED)
}

/// The kernel's walker, which knows nothing of the memory manager, finds the same.
fn compare_with_walker(space: &Space, range: VaRange) -> Result<(), Unmet> {
    let root = tlb::root().start_address().as_u64();
    for page in (range.start.0..range.end.0).step_by(PAGE_SIZE as usize) {
        let found = Walk::new(root, page).translate(page);
        let expected = match space.entry_at(Vaddr(page)).1 {
            Entry::Leaf(_) => frame_at(space, page).map(|frame| u64::from(frame.index()) * PAGE_SIZE),
            _ => None,
        };
        crate::check_eq!(found, expected, "{page:#x}");
    }
    Ok(())
}

/// One record for each run of the dump.
fn print_runs(space: &Space) {
    space.space().for_each_run(|run| {
        let (frame, attrs, present) = match run.entry {
            Entry::Leaf(leaf) => (leaf.frame, leaf.attrs, 1),
            Entry::NonPresent(soft) => (soft.frame, soft.attrs, 0),
            Entry::None | Entry::Table(_) => return,
        };
        let zero = matches!(run.entry, Entry::Leaf(leaf) if leaf.special);
        console::with(|out| {
            // A console cannot fail.
            let _ = ktest::record!(
                out,
                watch::RUN,
                start = format_args!("{:#x}", run.range.start.0),
                end = format_args!("{:#x}", run.range.end.0),
                level = u8::from(run.level == Level::Pmd) + 1,
                present = present,
                zero = u8::from(zero),
                frame = frame.index(),
                write = u8::from(attrs.contains(Attrs::WRITE)),
                exec = u8::from(attrs.contains(Attrs::EXEC)),
            );
        });
    });
}

/// One record for each page of device memory in use: where it lies in the BAR, and what must be there.
fn print_bar(space: &Space, range: VaRange) {
    for part in moved(range) {
        for page in (part.start.0..part.end.0).step_by(PAGE_SIZE as usize) {
            let Some(frame) = frame_at(space, page) else { continue };
            console::with(|out| {
                // A console cannot fail.
                let _ = ktest::record!(
                    out,
                    watch::BAR,
                    offset = u64::from(frame.index()) * PAGE_SIZE,
                    addr = format_args!("{page:#x}"),
                    seed = SEED,
                );
            });
        }
    }
}

/// Shows everything to the host and waits until it has looked.
fn show_to_host(space: &Space, range: VaRange, device: &Device) {
    print_runs(space);
    print_bar(space, range);
    crate::println!("@{}", watch::LOOK);
    while device.read(word_of(device)) != Some(watch::GO) {
        core::hint::spin_loop();
    }
}

/// The first page of the device's last 2 MiB.
fn last_huge_page(device: &Device) -> u32 {
    ((device.len_bytes() - PMD_SIZE) / PAGE_SIZE) as u32
}

const fn word_of(device: &Device) -> DeviceAddr {
    DeviceAddr(device.len_bytes() - 8)
}

crate::ktest! {
    fn other_walkers_find_the_same_in_the_tables() {
        let Some(device) = devmem::device(0) else { crate::skip!("is for a machine with a device") };
        let watched = device.read(word_of(device)) == Some(watch::HELLO);
        // The device's end is where host and guest meet: nobody else may have it.
        let meeting_point = Held::only(DEV0, last_huge_page(device));
        crate::check_eq!(meeting_point.len(), 1);
        in_space(|space| {
            let range = furnish(space)?;
            compare_with_walker(space, range)?;
            if watched {
                show_to_host(space, range, device);
            }
            verify(range)
        })?;
        drop(meeting_point);
    }
}
