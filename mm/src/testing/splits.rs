//! Folios that are mapped from several tables and spaces are split, and those that are held are split later.

use crate::counters::Event;
use crate::entry::{Attrs, Entry, SoftKind};
use crate::error::FaultError;
use crate::folio::{FolioRef, LockedFolio};
use crate::inject::Site;
use crate::migrate::Cause;
use crate::space::{AddressSpace, Space};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::Soft;
use crate::testing::shared::{check_shared, contents, sharer};
use crate::types::{Frame, Level, Order, Place};
use crate::vma::HugeAdvice::Huge;

/// A filled 2 MiB page, on the device if `on` says so, mapped by `n` spaces besides the kit's.
fn shared_by(n: usize, on: Place) -> (Kit, Vec<AddressSpace<Soft>>) {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    if !on.is_ram() {
        let report = kit.space.space().migrate(range(0, 512), on).expect("it is mapped");
        assert_eq!(report.huge_pages, 512);
    }
    let others = (0..n).map(|_| sharer(&kit)).collect();
    kit.audit();
    (kit, others)
}

fn frame(space: &Space<Soft>, page: u64) -> Option<Frame> {
    match space.entry_at(at(page)).1 {
        Entry::Leaf(leaf) => Some(leaf.frame),
        Entry::NonPresent(soft) => Some(soft.frame),
        _ => None,
    }
}

fn order(kit: &Kit, space: &Space<Soft>, page: u64) -> u8 {
    let frame = frame(space, page).expect("it is mapped");
    kit.machine.mm.try_get_folio(frame).expect("a folio").order().get()
}

fn hold(kit: &Kit) -> FolioRef<Soft> {
    kit.machine.mm.try_get_folio(frame(&kit.space, 0).expect("it is mapped")).expect("a folio")
}

#[test]
fn a_half_unmapped_in_one_space_splits_the_folio_of_all_of_them() {
    for on in [DEV, Place::RAM] {
        let (kit, others) = shared_by(2, on);
        let free = kit.free(on);
        let first = frame(&kit.space, 0).expect("it is mapped");
        kit.space.space().unmap(range(0, 256)).expect("memory");
        kit.audit();
        assert_eq!((order(&kit, &others[0], 0), order(&kit, &others[1], 256)), (8, 8), "{on}");
        if on == DEV {
            assert_eq!(kit.free(DEV), free, "both halves are mapped still");
        }
        others.iter().for_each(|space| check_shared(&kit, space, 0, 512));
        check_shared(&kit, kit.space.space(), 256, 256);
        // The other spaces let go of it one by one; with the last its memory is free.
        for (i, space) in others.iter().enumerate() {
            space.space().unmap(range(0, 256)).expect("memory");
            kit.audit();
            assert_eq!(kit.machine.mm.try_get_folio(first).is_some(), i == 0, "{on}");
        }
        if on == DEV {
            assert_eq!(kit.free(DEV), 8 * 512 - 256);
        }
        check_shared(&kit, kit.space.space(), 256, 256);
    }
}

#[test]
fn a_fault_in_one_space_brings_the_page_back_for_all_whatever_is_unmapped_elsewhere() {
    let (kit, others) = shared_by(2, DEV);
    others[0].space().unmap(range(100, 300)).expect("memory");
    others[1].space().unmap(range(0, 1)).expect("memory");
    kit.audit();
    kit.check(0, 512);
    kit.audit();
    check_shared(&kit, others[0].space(), 400, 112);
    check_shared(&kit, others[1].space(), 1, 511);
    assert_eq!(kit.free(DEV), 8 * 512, "nothing is left on the device");
    drop(others);
    kit.audit();
}

#[test]
fn a_split_by_way_of_migration_entries_flushes_once_a_space_and_only_what_was_present() {
    for (on, rounds) in [(DEV, 0), (Place::RAM, 3)] {
        let (kit, others) = shared_by(2, on);
        let frame = frame(kit.space.space(), 0).expect("mapped");
        let folio =
            LockedFolio::try_lock(kit.machine.mm.try_get_folio(frame).expect("a folio")).expect("free");
        let flushes = kit.machine.counted(Event::TlbFlush);
        assert_eq!(kit.space.space().split_folio(&folio, at(0), 1), Ok(()));
        assert_eq!(kit.machine.counted(Event::TlbFlush) - flushes, rounds, "{on}");
        drop(folio.unlock());
        kit.audit();
        assert_eq!((0..3).map(|p| order(&kit, &others[0], 1 << p >> 1)).collect::<Vec<_>>(), [0, 0, 1]);
        check_shared(&kit, others[1].space(), 0, 512);
    }
}

#[test]
fn what_entries_remember_survives() {
    let (kit, others) = shared_by(1, DEV);
    let (_, Entry::NonPresent(before)) = kit.space.entry_at(at(0)) else { panic!("on the device") };
    kit.space.space().unmap(range(0, 3)).expect("memory");
    for (space, page) in [(others[0].space(), 0), (others[0].space(), 511), (kit.space.space(), 3)] {
        let (Level::Pte, Entry::NonPresent(soft)) = space.entry_at(at(page)) else { panic!("page {page}") };
        assert_eq!((soft.attrs, soft.kind), (before.attrs, SoftKind::DevicePrivate));
        assert!(!soft.attrs.contains(Attrs::WRITE) && !soft.attrs.contains(Attrs::EXCLUSIVE));
    }
    kit.audit();
}

#[test]
fn a_folio_that_is_held_is_split_when_the_holder_lets_go() {
    for sharers in [0, 1] {
        let (kit, others) = shared_by(sharers, DEV);
        let held = hold(&kit);
        kit.space.space().unmap(range(0, 256)).expect("memory");
        others.iter().for_each(|space| space.space().unmap(range(0, 256)).expect("memory"));
        assert_eq!(held.order(), Order::PMD, "nobody splits what is held");
        assert_eq!(kit.machine.counted(Event::ThpDeferredSplit), 1, "noted once");
        assert_eq!(kit.try_read(300), Err(FaultError::Held(at(300))));
        assert_eq!(kit.machine.mm.split_deferred(DEV), 0);
        assert_eq!(kit.free(DEV), 7 * 512);
        drop(held);
        assert_eq!(kit.machine.mm.split_deferred(DEV), 1);
        assert_eq!(kit.free(DEV), 7 * 512 + 256, "the dead half is free");
        assert_eq!(kit.machine.mm.split_deferred(DEV), 0, "nothing is left to do");
        kit.audit();
        kit.check(256, 256);
        kit.audit();
    }
}

#[test]
fn a_hole_in_the_middle_of_a_held_folio_takes_two_cuts_later() {
    let (kit, _) = shared_by(0, DEV);
    let held = hold(&kit);
    kit.space.space().unmap(range(100, 200)).expect("memory");
    drop(held);
    assert!(kit.machine.mm.split_deferred(DEV) >= 2);
    assert_eq!(kit.free(DEV), 7 * 512 + 200);
    kit.audit();
    kit.check(0, 100);
    kit.check(300, 212);
    kit.audit();
}

#[test]
fn without_memory_a_fault_on_a_cut_folio_says_so() {
    let (kit, others) = shared_by(1, DEV);
    let held = hold(&kit);
    kit.space.space().unmap(range(0, 256)).expect("memory");
    drop(held);
    kit.machine.mm.inject.arm(Site::Object as u32 | Site::Table as u32, 0, 0, u64::MAX);
    assert_eq!(kit.try_read(300), Err(FaultError::Oom(at(300))));
    kit.machine.mm.inject.disarm();
    kit.audit();
    kit.check(256, 256);
    check_shared(&kit, others[0].space(), 0, 512);
    kit.audit();
}

#[test]
fn every_allocation_of_a_general_split_may_fail() {
    for n in 0.. {
        let (kit, others) = shared_by(2, DEV);
        kit.machine.mm.inject.arm(Site::ALL, 0, n, 1);
        let unmapped = kit.space.space().unmap(range(0, 100)).is_ok();
        let asked = kit.machine.mm.inject.disarm();
        kit.audit();
        check_shared(&kit, kit.space.space(), 100, 412);
        if !unmapped {
            check_shared(&kit, kit.space.space(), 0, 100);
        }
        others.iter().for_each(|space| check_shared(&kit, space, 0, 512));
        kit.machine.mm.split_deferred(DEV);
        kit.audit();
        drop(others);
        kit.audit();
        if asked <= n {
            return;
        }
    }
}

#[test]
fn a_part_of_a_shared_page_can_be_collected() {
    for to in [DEV, Place::RAM] {
        let (kit, others) = shared_by(2, if to.is_ram() { DEV } else { Place::RAM });
        let report = kit.space.space().migrate(range(128, 128), to).expect("it is mapped");
        assert_eq!((report.pages, report.failed_pages()), (128, 0), "{report:?}");
        assert_eq!(report.failed[Cause::NotSplit as usize], 0);
        kit.audit();
        for space in others.iter().map(AddressSpace::space).chain([kit.space.space()]) {
            check_shared(&kit, space, 0, 512);
            let there = (0..512).filter(|&p| frame(space, p).is_some_and(|f| f.place() == to)).count();
            assert_eq!(there, 128);
        }
        assert!(contents(&kit, others[0].space(), 130).is_some());
    }
}
