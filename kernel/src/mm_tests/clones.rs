//! Clones of address spaces, on real page tables: who sees whose writes, with the parent's translations in the TLB.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use farpage_mm::{
    Attrs, Entry, Event, HugeAdvice, Level, PAGE_SIZE, PMD_SIZE, Place, SoftKind, VaRange, Vaddr,
};

use super::support::{
    DEV0, Kinds, Space, check, check_zero, counted, counting, fill, frame_at, kinds, map,
    on_the_usual_machine, pages, pattern, resident,
};
use crate::task;
use crate::testing::Unmet;
use crate::vm::user::{user_read_u64, user_write_u64};
use crate::vm::{activate, clone_space, mm, new_space};

/// Runs `work` with `space` loaded.
pub(super) fn on<T>(space: &Space, work: impl FnOnce() -> Result<T, Unmet>) -> Result<T, Unmet> {
    let active = activate(space);
    let result = work();
    drop(active);
    result
}

fn attrs_at(space: &Space, addr: u64) -> Attrs {
    match space.entry_at(Vaddr(addr)).1 {
        Entry::Leaf(leaf) => leaf.attrs,
        Entry::NonPresent(soft) => soft.attrs,
        Entry::None | Entry::Table(_) => Attrs::empty(),
    }
}

/// Two MiB huge, the next small, both filled; loaded and in the TLB.
fn filled(space: &Space, seed: u64) -> Result<VaRange, Unmet> {
    let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
    let small = VaRange::new(range.start.0 + PMD_SIZE, PMD_SIZE);
    space.space().advise_huge(small, HugeAdvice::NoHuge)?;
    on(space, || Ok(fill(pages(range, 0, 512 + 16), seed)?))?;
    Ok(range)
}

crate::ktest! {
    fn neither_side_sees_the_others_writes() {
        let parent = new_space()?;
        let range = filled(&parent, 71)?;
        let at = |page: u64| range.start.0 + page * PAGE_SIZE;
        // The parent is loaded and has just written: its TLB can write until the clone's flush.
        let active = activate(&parent);
        for page in [0, 7, 512, 519] {
            user_write_u64(at(page), pattern(at(page), 71))?;
        }
        let (child, flushes) = counting(Event::TlbFlush, || clone_space(&parent));
        let child = child?;
        crate::check_eq!(flushes, 1);
        for space in [&parent, &child] {
            crate::check_eq!(kinds(space, pages(range, 0, 528)), Kinds { huge_present: 1, present: 16, ..Kinds::default() });
        }
        crate::check_eq!(frame_at(&child, at(7)), frame_at(&parent, at(7)), "one page for both");
        for page in [7, 519] {
            user_write_u64(at(page), 1)?;
        }
        drop(active);
        on(&child, || {
            check(pages(range, 0, 528), 71)?;
            for page in [7, 8, 519, 520] {
                user_write_u64(at(page), 2)?;
            }
            Ok(())
        })?;
        on(&parent, || {
            check(pages(range, 0, 7), 71)?;
            check(pages(range, 8, 511), 71)?;
            check(pages(range, 520, 8), 71)?;
            crate::check_eq!((user_read_u64(at(7))?, user_read_u64(at(519))?), (1, 1));
            Ok(())
        })?;
        crate::check!(frame_at(&child, at(7)) != frame_at(&parent, at(7)));
        drop(parent);
        on(&child, || {
            check(pages(range, 9, 503), 71)?;
            crate::check_eq!((user_read_u64(at(7))?, user_read_u64(at(520))?), (2, 2));
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn the_last_sharer_takes_the_page_back() {
        let parent = new_space()?;
        let range = filled(&parent, 72)?;
        let at = |page: u64| range.start.0 + page * PAGE_SIZE;
        let frames = [3, 515].map(|page| frame_at(&parent, at(page)));
        drop(clone_space(&parent)?);
        for page in [3, 515] {
            crate::check!(!attrs_at(&parent, at(page)).intersects(Attrs::WRITE | Attrs::EXCLUSIVE));
        }
        let copies = counted(Event::CowCopy);
        on(&parent, || Ok(fill(pages(range, 0, 528), 73)?))?;
        crate::check_eq!(counted(Event::CowCopy), copies);
        crate::check_eq!([3, 515].map(|page| frame_at(&parent, at(page))), frames);
        on(&parent, || check(pages(range, 0, 528), 73))?;
    }
}

crate::ktest! {
    fn pages_on_the_device_are_shared_there_and_come_back_for_all() {
        on_the_usual_machine()?;
        let parent = new_space()?;
        let range = filled(&parent, 74)?;
        let at = |page: u64| range.start.0 + page * PAGE_SIZE;
        parent.space().migrate(pages(range, 0, 528), DEV0)?;
        crate::check_eq!(resident(0), 528);
        let (child, flushes) = counting(Event::TlbFlush, || clone_space(&parent));
        let child = child?;
        crate::check_eq!(flushes, 0, "no TLB knows a page on the device");
        crate::check_eq!(kinds(&child, pages(range, 0, 528)), Kinds { huge_device: 1, device: 16, ..Kinds::default() });
        crate::check_eq!(resident(0), 528, "nothing was copied");
        on(&child, || Ok(user_write_u64(at(5), 5)?))?;
        crate::check_eq!(resident(0), 16, "the huge page came back, for both");
        let first = |space: &Space| frame_at(space, at(0)).map(|frame| frame.place());
        crate::check_eq!((first(&parent), first(&child)), (Some(Place::RAM), Some(Place::RAM)));
        on(&parent, || check(pages(range, 0, 528), 74))?;
        crate::check_eq!(resident(0), 0);
        on(&child, || {
            check(pages(range, 6, 522), 74)?;
            crate::check_eq!(user_read_u64(at(5))?, 5);
            Ok(())
        })?;
        // The shared pages move together, from either side, and stay shared.
        let frames = |page| (frame_at(&parent, at(page)), frame_at(&child, at(page)));
        let report = child.space().migrate(pages(range, 512, 16), DEV0)?;
        crate::check_eq!((report.pages, report.failed_pages()), (16, 0));
        crate::check_eq!(frames(520).0, frames(520).1);
        on(&parent, || check(pages(range, 512, 16), 74))?;
    }
}

crate::ktest! {
    fn zero_pages_stay_shared_and_unwritten() {
        let parent = new_space()?;
        let range = map(&parent, 2 * PMD_SIZE, HugeAdvice::Huge)?;
        on(&parent, || check_zero(range))?;
        let child = clone_space(&parent)?;
        crate::check_eq!(kinds(&child, range), kinds(&parent, range));
        on(&child, || Ok(fill(range, 75)?))?;
        on(&parent, || check_zero(range))?;
        on(&child, || check(range, 75))?;
    }
}

crate::ktest! {
    fn a_parked_migration_finds_the_clone_too() {
        let parent = new_space()?;
        let range = filled(&parent, 76)?;
        let both = pages(range, 0, 528);
        let (parked, _) = parent.space().migrate_collect(both, DEV0)?;
        let child = clone_space(&parent)?;
        let moving = |addr| match child.entry_at(Vaddr(addr)) {
            (Level::Pte, Entry::NonPresent(soft)) => soft.kind == SoftKind::Migration,
            _ => false,
        };
        crate::check!(moving(range.start.0) && moving(range.start.0 + 513 * PAGE_SIZE));
        let report = parked.unmap().copy().commit().finalize();
        crate::check_eq!((report.pages, report.failed_pages()), (528, 0));
        crate::check_eq!(kinds(&child, both), Kinds { device: 528, ..Kinds::default() });
        on(&child, || Ok(user_write_u64(range.start.0, 1)?))?;
        on(&parent, || check(both, 76))?;
        // And one that is given up.
        let (parked, _) = parent.space().migrate_collect(both, DEV0)?;
        let second = clone_space(&parent)?;
        drop(parked);
        on(&second, || check(both, 76))?;
        on(&parent, || check(both, 76))?;
    }
}

crate::ktest! {
    fn a_page_that_a_device_holds_is_waited_for() {
        let parent = Arc::new(new_space()?);
        let range = filled(&parent, 77)?;
        let guard = match parent.space().make_exclusive(range.start, DEV0) {
            Ok(guard) => guard,
            Err(error) => crate::fail!("{error:?}"),
        };
        let done = Arc::new(AtomicBool::new(false));
        let theirs = (Arc::clone(&parent), Arc::clone(&done));
        let cloner = task::spawn("cloner", move || {
            let child = clone_space(&theirs.0);
            theirs.1.store(true, Relaxed);
            child
        });
        for _ in 0..10 {
            task::yield_now();
        }
        crate::check!(!done.load(Relaxed), "the clone waits, and the parent is free for faults meanwhile");
        on(&parent, || Ok(user_write_u64(range.start.0 + PMD_SIZE, pattern(range.start.0 + PMD_SIZE, 77))?))?;
        drop(guard);
        let child = cloner.join()?;
        for space in [&*parent, &child] {
            on(space, || check(pages(range, 0, 528), 77))?;
        }
        crate::check_eq!(kinds(&child, pages(range, 0, 512)).huge_present, 1, "a huge page stays one");
    }
}

crate::ktest! {
    fn a_clone_of_huge_pages_on_the_device_costs_no_memory_for_them() {
        on_the_usual_machine()?;
        let parent = new_space()?;
        let range = map(&parent, 16 * PMD_SIZE, HugeAdvice::Huge)?;
        on(&parent, || Ok(fill(pages(range, 0, 1), 78)?))?;
        parent.space().migrate(range, DEV0)?;
        let free = mm().zone(Place::RAM).stat().free;
        let (child, tables) = counting(Event::TableAlloc, || clone_space(&parent));
        let child = child?;
        crate::check_eq!(tables, 3, "one for each level above the huge entries");
        crate::check_eq!(kinds(&child, range).huge_device, 16);
        crate::check!(free - mm().zone(Place::RAM).stat().free < 16, "a few frames for tables and descriptors");
        drop(parent);
        on(&child, || check(pages(range, 0, 1), 78))?;
    }
}
