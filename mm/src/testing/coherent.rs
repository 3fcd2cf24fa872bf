//! Coherent device memory: mapped present, moved on request only.

use core::sync::atomic::AtomicU64;

use crate::counters::Event;
use crate::device::DeviceKind;
use crate::entry::{Attrs, Entry, Leaf, SoftKind};
use crate::error::RangeError;
use crate::fault::{FaultInfo, FaultOutcome};
use crate::inject::Site;
use crate::migrate::{Cause, Report};
use crate::mm::MapStorage;
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, SoftDevice, coherent_base};
use crate::types::{Access, Frame, Level, Order, Place, Prot, VaRange};
use crate::vma::HugeAdvice::{Default as Small, Huge};
use crate::zone::Need;

const COH: Place = Place::coherent(1);

/// A private device and a coherent one.
fn kit() -> Kit {
    Kit::on(&Config { devices: vec![8 * 512; 2], coherent: vec![1], ..Config::default() })
}

fn migrate(kit: &Kit, start: u64, len: u64, to: Place) -> Report {
    kit.space.space().migrate(range(start, len), to).expect("all of it is mapped")
}

fn leaf(kit: &Kit, page: u64) -> (Level, Leaf) {
    match kit.space.entry_at(at(page)) {
        (level, Entry::Leaf(leaf)) => (level, leaf),
        other => panic!("page {page} is {other:?}"),
    }
}

fn place(kit: &Kit, page: u64) -> Place {
    leaf(kit, page).1.frame.place()
}

fn faults(kit: &Kit) -> u64 {
    kit.machine.counted(Event::PgFault)
}

fn flushes(kit: &Kit) -> u64 {
    kit.machine.counted(Event::TlbFlush)
}

#[test]
fn pages_of_both_sizes_go_are_used_where_they_lie_and_come_back_on_request() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.map(512, 64, Small);
    kit.fill(0, 576);
    let before = flushes(&kit);
    let report = migrate(&kit, 0, 576, COH);
    assert_eq!((report.pages, report.huge_pages, report.failed_pages()), (576, 512, 0));
    assert_eq!(flushes(&kit) - before, 1, "out of RAM: one round");
    assert_eq!((leaf(&kit, 0).0, leaf(&kit, 512).0), (Level::Pmd, Level::Pte));
    assert!((0..576).all(|page| place(&kit, page) == COH));
    let first = leaf(&kit, 0).1.frame;
    assert!(
        first.index() >= coherent_base(1) && first.index().is_multiple_of(512),
        "{first} is a physical frame"
    );
    kit.audit();
    // Reads and writes reach the device without a fault.
    let before = faults(&kit);
    kit.check(0, 576);
    kit.fill(0, 576);
    assert_eq!(faults(&kit), before);
    assert!((0..576).all(|page| place(&kit, page) == COH));
    // Coming back owes a flush as well: CPUs have translations.
    let before = flushes(&kit);
    let report = migrate(&kit, 0, 576, Place::RAM);
    assert_eq!((report.pages, report.huge_pages, report.failed_pages()), (576, 512, 0));
    assert_eq!(flushes(&kit) - before, 1, "out of coherent memory: one round too");
    assert!((0..576).all(|page| place(&kit, page) == Place::RAM));
    assert_eq!(kit.free(COH), 8 * 512, "nothing is left behind");
    kit.check(0, 576);
    kit.audit();
}

#[test]
fn holes_and_zero_pages_of_both_sizes_get_cleared_memory_that_is_mapped() {
    let kit = kit();
    kit.map(0, 1024, Huge);
    kit.map(1024, 3, Small);
    for page in [512, 1024] {
        assert_eq!(kit.try_read(page), Ok(0), "a zero page is there");
    }
    let report = migrate(&kit, 0, 1027, COH);
    assert_eq!((report.pages, report.holes, report.huge_pages), (1027, 1027, 1024));
    let before = faults(&kit);
    for page in [0, 511, 512, 1023, 1024, 1025, 1026] {
        let (_, leaf) = leaf(&kit, page);
        assert_eq!(leaf.frame.place(), COH);
        assert!(!leaf.special && leaf.attrs.contains(Attrs::WRITE | Attrs::EXCLUSIVE));
        assert_eq!(kit.try_read(page), Ok(0));
    }
    kit.fill(0, 1027);
    kit.check(0, 1027);
    assert_eq!(faults(&kit), before);
    kit.audit();
}

#[test]
fn what_lies_on_another_device_or_is_there_already_stays() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.map(512, 512, Huge);
    kit.map(1024, 2, Small);
    kit.fill(0, 1026);
    migrate(&kit, 0, 512, DEV);
    migrate(&kit, 512, 513, COH);
    // Page 1025 is in RAM still.
    let report = migrate(&kit, 0, 1026, COH);
    assert_eq!((report.pages, report.failed[Cause::Foreign as usize], report.failed_pages()), (1, 512, 512));
    let report = migrate(&kit, 0, 1026, DEV);
    assert_eq!((report.pages, report.failed[Cause::Foreign as usize], report.failed_pages()), (0, 514, 514));
    assert!((512..1026).all(|page| place(&kit, page) == COH));
    // One call brings back what lies on either.
    let report = migrate(&kit, 0, 1026, Place::RAM);
    assert_eq!((report.pages, report.failed_pages()), (1026, 0));
    assert!((0..1026).all(|page| place(&kit, page) == Place::RAM));
    kit.check(0, 1026);
    kit.audit();
}

#[test]
fn a_part_of_a_huge_page_comes_back_and_leaves_the_rest() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    migrate(&kit, 0, 512, COH);
    let report = migrate(&kit, 128, 128, Place::RAM);
    assert_eq!((report.pages, report.failed_pages()), (128, 0));
    for page in 0..512 {
        let expected = if (128..256).contains(&page) { Place::RAM } else { COH };
        assert_eq!(place(&kit, page), expected, "page {page}");
    }
    kit.check(0, 512);
    kit.audit();
    // Half of what is left is unmapped: its memory is free at once.
    kit.space.space().unmap(range(256, 256)).expect("it is mapped");
    assert_eq!(kit.free(COH), 8 * 512 - 128);
    kit.check(0, 256);
    kit.audit();
}

#[test]
fn pieces_fill_a_huge_page_when_no_whole_one_is_free() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    // A page of every 2 MiB is taken.
    let mm = &kit.machine.mm;
    let all: Vec<_> = core::iter::from_fn(|| mm.alloc_folio(COH, Order::BASE, Need::User).ok()).collect();
    let held: Vec<_> = all.into_iter().filter(|folio| folio.frame().index() % 512 == 7).collect();
    let report = migrate(&kit, 0, 512, COH);
    assert_eq!((report.pages, report.torn, report.failed_pages()), (512, 512, 0));
    assert!((0..512).all(|page| place(&kit, page) == COH));
    assert_eq!(leaf(&kit, 0).0, Level::Pte);
    kit.check(0, 512);
    drop(held);
    migrate(&kit, 0, 512, Place::RAM);
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn full_memory_and_a_failed_copy_leave_pages_where_they_were() {
    let config = Config { devices: vec![512, 512], coherent: vec![1], ..Config::default() };
    let kit = Kit::on(&config);
    kit.map(0, 1024, Huge);
    kit.fill(0, 1024);
    let report = migrate(&kit, 0, 1024, COH);
    assert_eq!((report.pages, report.failed[Cause::NoMemory as usize]), (512, 512));
    kit.machine.fail_copies(0, 1);
    let report = migrate(&kit, 0, 1024, Place::RAM);
    assert_eq!((report.pages, report.failed[Cause::CopyFailed as usize]), (0, 512));
    assert_eq!((place(&kit, 0), place(&kit, 512)), (COH, Place::RAM));
    let (_, entry) = leaf(&kit, 0);
    assert!(entry.attrs.contains(Attrs::WRITE | Attrs::EXCLUSIVE), "put back as it was");
    kit.check(0, 1024);
    kit.audit();
}

#[test]
fn a_held_page_is_pinned_in_coherent_memory() {
    let kit = kit();
    kit.map(0, 4, Small);
    kit.fill(0, 4);
    migrate(&kit, 0, 4, COH);
    let held = kit.machine.mm.try_get_folio(leaf(&kit, 1).1.frame).expect("it has a folio");
    let report = migrate(&kit, 0, 4, Place::RAM);
    assert_eq!((report.pages, report.failed[Cause::Pinned as usize]), (3, 1));
    assert_eq!((place(&kit, 0), place(&kit, 1)), (Place::RAM, COH));
    drop(held);
    kit.check(0, 4);
    kit.audit();
}

#[test]
fn a_touch_finds_a_migration_entry_and_never_asks_the_device() {
    let kit = kit();
    kit.map(0, 1, Small);
    kit.fill(0, 1);
    migrate(&kit, 0, 1, COH);
    let (parked, _) = kit.space.space().migrate_collect(range(0, 1), Place::RAM).expect("it is mapped");
    let (_, entry) = kit.space.entry_at(at(0));
    assert!(matches!(entry, Entry::NonPresent(soft) if soft.kind == SoftKind::Migration), "{entry:?}");
    drop(parked);
    assert_eq!(place(&kit, 0), COH);
    let fault = FaultInfo::new(at(0), Access::Write);
    assert_eq!(kit.space.space().handle_fault(&fault), Ok(FaultOutcome::Spurious));
    assert_eq!(kit.machine.counted(Event::DeviceFault), 0);
    kit.check(0, 1);
    kit.audit();
}

#[test]
fn the_kind_and_the_frames_of_a_device_are_checked() {
    let kit = kit();
    let words: &'static [AtomicU64] =
        Box::leak((0..MapStorage::words_for(512)).map(|_| AtomicU64::new(0)).collect());
    let register = |number, pages, kind| {
        kit.machine.mm.register_device(number, pages, kind, MapStorage::new(words), SoftDevice::number(2))
    };
    let coherent = |base_pfn| DeviceKind::Coherent { base_pfn };
    for base in [coherent_base(0) + 1, u32::MAX - 511, 512, coherent_base(1) + 7 * 512] {
        let expected = Err(RangeError::Frames(base));
        let pages = if base > u32::MAX - 512 { 1024 } else { 512 };
        assert_eq!(register(2, pages, coherent(base)), expected, "{base:#x}");
    }
    assert_eq!(register(1, 512, DeviceKind::Private), Err(RangeError::NoDevice(1)));
    assert_eq!(register(4, 512, DeviceKind::Private), Err(RangeError::NoDevice(4)));
    kit.map(0, 1, Small);
    // Memory of the other kind than the device has is no place to go to.
    for wrong in [Place::coherent(0), Place::device(1), Place::coherent(2)] {
        let number = wrong.device_number().expect("a device");
        assert_eq!(kit.space.space().migrate(range(0, 1), wrong), Err(RangeError::NoDevice(number)));
    }
    assert_eq!(register(2, 512, coherent(coherent_base(2))), Ok(Place::coherent(2)));
    kit.audit();
}

#[test]
fn every_allocation_may_fail_on_the_way_there_and_back() {
    for n in 0.. {
        let kit = kit();
        kit.map(0, 512, Huge);
        kit.map(512, 8, Small);
        kit.fill(0, 516);
        kit.machine.mm.inject.arm(Site::ALL, 0, n, 1);
        let there = migrate(&kit, 0, 520, COH);
        kit.check_in_place(0, 516);
        let back = migrate(&kit, 0, 520, Place::RAM);
        let asked = kit.machine.mm.inject.disarm();
        kit.check(0, 516);
        kit.audit();
        if asked <= n {
            assert_eq!((there.failed_pages(), back.failed_pages()), (0, 0));
            break;
        }
    }
}

#[test]
fn a_read_only_page_keeps_its_permission_on_the_way() {
    let kit = kit();
    let here: VaRange = range(0, 512);
    kit.space.space().map_anon(here, Prot::READ, Huge).expect("it is free");
    let report = migrate(&kit, 0, 512, COH);
    assert_eq!((report.pages, report.holes), (512, 512));
    assert!(!leaf(&kit, 0).1.attrs.contains(Attrs::WRITE));
    migrate(&kit, 0, 512, Place::RAM);
    assert!(!leaf(&kit, 0).1.attrs.contains(Attrs::WRITE));
    assert_eq!(kit.try_read(5), Ok(0));
    kit.audit();
}

#[test]
fn a_frame_is_found_by_the_kind_of_its_device_too() {
    let kit = kit();
    kit.map(0, 1, Small);
    kit.fill(0, 1);
    migrate(&kit, 0, 1, COH);
    let frame = leaf(&kit, 0).1.frame;
    assert!(kit.machine.mm.try_get_folio(frame).is_some());
    let private = Frame::new(Place::device(1), frame.index());
    assert!(kit.machine.mm.try_get_folio(private).is_none(), "the kind is part of a frame's name");
    kit.audit();
}
