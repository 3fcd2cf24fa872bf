//! Where pages are taken from, from one device straight to another, and what is told of every unit.

use crate::counters::Event;
use crate::entry::Entry;
use crate::inject::Site;
use crate::migrate::{Cause, MigrateOptions, Report, Sources, UnitReport, Verdict};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::Config;
use crate::testing::migrate_gaps::lock;
use crate::types::{Frame, Order, Place};
use crate::vma::HugeAdvice::{Default as Small, Huge};

const DEV1: Place = Place::device(1);

fn two_devices() -> Kit {
    Kit::on(&Config { devices: vec![8 * 512, 8 * 512], ..Config::default() })
}

fn place(kit: &Kit, page: u64) -> Option<Place> {
    match kit.space.entry_at(at(page)).1 {
        Entry::Leaf(leaf) => Some(leaf.frame.place()),
        Entry::NonPresent(soft) => Some(soft.frame.place()),
        Entry::None | Entry::Table(_) => None,
    }
}

/// Migrates with options, and keeps what was told.
pub(super) fn migrate(
    kit: &Kit,
    start: u64,
    len: u64,
    to: Place,
    options: &MigrateOptions,
) -> (Report, Vec<UnitReport>) {
    let mut units = Vec::new();
    let space = kit.space.space();
    let report = space.migrate_with(range(start, len), to, options, &mut |unit| units.push(*unit));
    (report.expect("all of it is mapped"), units)
}

const fn unit(page: u64, order: u8, verdict: Verdict) -> UnitReport {
    UnitReport { addr: at(page), order: Order::new(order), pages: 1 << order, verdict }
}

#[test]
fn from_one_device_straight_to_another() {
    let kit = two_devices();
    kit.map(0, 512, Huge);
    kit.map(512, 20, Small);
    kit.fill(0, 532);
    kit.space.space().migrate(range(0, 532), DEV).expect("it is mapped");
    let ram = kit.free(Place::RAM);
    let flushes = kit.machine.counted(Event::TlbFlush);
    let c = |event| kit.machine.counted(event);
    let before = [Event::DevicePagesIn, Event::DevicePagesOut, Event::DeviceIn, Event::DeviceOut].map(c);
    let options = MigrateOptions::to(DEV1).from(Sources::of(DEV));
    let (report, units) = migrate(&kit, 0, 532, DEV1, &options);
    assert_eq!((report.units, report.pages, report.huge_pages, report.failed_pages()), (21, 532, 512, 0));
    assert_eq!(units[0], unit(0, 9, Verdict::Moved));
    assert_eq!(units.len(), 21);
    assert_eq!(kit.free(Place::RAM), ram, "nothing went through RAM");
    assert_eq!(c(Event::TlbFlush), flushes, "no CPU can have had a translation");
    assert_eq!((kit.free(DEV), place(&kit, 3), place(&kit, 530)), (8 * 512, Some(DEV1), Some(DEV1)));
    let stats = [0, 1].map(|n| kit.machine.mm.device(n).stat().resident);
    assert_eq!(stats, [0, 532], "out of one and into the other");
    let after = [Event::DevicePagesIn, Event::DevicePagesOut, Event::DeviceIn, Event::DeviceOut].map(c);
    assert_eq!([0, 1, 2, 3].map(|i| after[i] - before[i]), [532, 532, 21, 21]);
    assert_eq!(kit.machine.freed_pages.get(), 532, "the first owner was told");
    kit.check_in_place(0, 532);
    kit.audit();
    kit.check(0, 532);
    kit.audit();
}

#[test]
fn a_page_in_pieces_leaves_its_device_too() {
    let kit = two_devices();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    kit.space.space().migrate(range(0, 512), DEV).expect("it is mapped");
    kit.machine.mm.inject.arm(Site::DeviceFolio as u32, 9, 0, 1);
    let options = MigrateOptions::to(DEV1).from(Sources::of(DEV));
    let (report, units) = migrate(&kit, 0, 512, DEV1, &options);
    kit.machine.mm.inject.disarm();
    assert_eq!((report.pages, report.torn, report.huge_pages), (512, 512, 0));
    assert_eq!(units, [unit(0, 9, Verdict::InPieces)]);
    assert_eq!([0, 1].map(|n| kit.machine.mm.device(n).stat().resident), [0, 512]);
    kit.audit();
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn a_commit_between_devices_that_is_given_up_goes_back() {
    let kit = two_devices();
    kit.map(0, 512, Huge);
    kit.map(512, 4, Small);
    kit.fill(0, 516);
    kit.space.space().migrate(range(0, 516), DEV).expect("it is mapped");
    let options = MigrateOptions::to(DEV1).from(Sources::of(DEV));
    let space = kit.space.space();
    let (migration, _) = space.migrate_collect_with(range(0, 516), DEV1, &options).expect("it is mapped");
    drop(migration.unmap().copy().commit());
    assert_eq!((place(&kit, 0), place(&kit, 515), kit.free(DEV1)), (Some(DEV), Some(DEV), 8 * 512));
    kit.check_in_place(0, 516);
    kit.audit();
}

#[test]
fn only_what_was_selected_is_taken() {
    let kit = two_devices();
    kit.map(0, 30, Small);
    kit.fill(0, 30);
    let space = kit.space.space();
    space.migrate(range(0, 10), DEV).expect("it is mapped");
    space.migrate(range(10, 10), DEV1).expect("it is mapped");
    // Home, but only from the second device; the pages of the first are somebody else's.
    let options = MigrateOptions::to(Place::RAM).from(Sources::of(DEV1));
    let (report, units) = migrate(&kit, 0, 30, Place::RAM, &options);
    assert_eq!((report.pages, report.failed[Cause::Foreign as usize], report.failed_pages()), (10, 10, 10));
    assert_eq!(units[0], unit(0, 0, Verdict::Stayed(Cause::Foreign)));
    assert_eq!(units[10], unit(10, 0, Verdict::Moved));
    assert_eq!(units.len(), 20, "pages that are there already are no units");
    // RAM and the first device together.
    let options = MigrateOptions::to(DEV1).from(Sources::RAM.and(DEV));
    let (report, _) = migrate(&kit, 0, 30, DEV1, &options);
    assert_eq!((report.pages, report.failed_pages()), (30, 0));
    assert_eq!(kit.machine.mm.device(1).stat().resident, 30);
    kit.check(0, 30);
    kit.audit();
}

#[test]
fn sources_are_sets_of_places() {
    let all = Sources::RAM.union(Sources::devices());
    for n in 0..4 {
        for place in [Place::device(n), Place::coherent(n)] {
            assert!(all.contains(place) && !all.without(place).contains(place));
            assert!(!Sources::RAM.contains(place) && Sources::of(place).contains(place));
        }
    }
    let some = Sources::RAM.and(DEV1).and(Place::coherent(3));
    assert_eq!(format!("{some:?}"), "{ram dev1 coh3}");
}

#[test]
fn every_unit_is_told_of_with_its_cause() {
    let kit = two_devices();
    kit.map(0, 1024, Huge);
    kit.map(1024, 40, Small);
    kit.fill(0, 512); // a huge page
    kit.fill(1024, 10); // small pages; the rest are holes
    kit.try_read(1030).expect("memory");
    kit.space.space().migrate(range(1024, 2), DEV1).expect("it is mapped");
    let busy = lock(&kit, 1027);
    let pinned = super::migrate_gaps::hold(&kit, 1028);
    kit.machine.fail_copies(4, 1);
    let (report, units) = migrate(&kit, 0, 1064, DEV, &MigrateOptions::to(DEV));
    drop((busy.unlock(), pinned));
    let of = |page: u64| units.iter().filter(move |unit| unit.addr == at(page)).map(|unit| unit.verdict);
    assert_eq!(units[0], unit(0, 9, Verdict::Moved));
    assert_eq!(units[1], unit(512, 9, Verdict::Filled));
    for (page, verdict) in [
        (1024, Verdict::Stayed(Cause::Foreign)),
        (1025, Verdict::Stayed(Cause::Foreign)),
        (1026, Verdict::Moved),
        (1027, Verdict::Stayed(Cause::Busy)),
        (1028, Verdict::Stayed(Cause::Pinned)),
        (1040, Verdict::Filled),
    ] {
        assert_eq!(of(page).collect::<Vec<_>>(), [verdict], "page {page}");
    }
    assert_eq!(units.iter().filter(|u| u.verdict == Verdict::Stayed(Cause::CopyFailed)).count(), 1);
    // Told once each, in order, and the report is their sum.
    assert!(units.is_sorted_by_key(|unit| unit.addr));
    let sum = |f: fn(&Verdict) -> bool| -> u64 {
        units.iter().filter(|u| f(&u.verdict)).map(|u| u64::from(u.pages)).sum()
    };
    assert_eq!(sum(|v| matches!(v, Verdict::Stayed(_))), report.failed_pages());
    assert_eq!(sum(|v| matches!(v, Verdict::Filled)), report.holes);
    assert_eq!(sum(|v| !matches!(v, Verdict::Stayed(_))), report.pages);
    kit.check_in_place(0, 512);
    kit.check_in_place(1024, 10);
    kit.audit();
}

#[test]
fn without_memory_for_the_work_one_unit_stands_for_the_rest() {
    let kit = two_devices();
    kit.map(0, 8, Small);
    kit.fill(0, 8);
    kit.machine.mm.inject.arm(Site::Object as u32, 0, 0, u64::MAX);
    let (report, units) = migrate(&kit, 0, 8, DEV, &MigrateOptions::to(DEV));
    kit.machine.mm.inject.disarm();
    let expected = UnitReport { pages: 8, ..unit(0, 0, Verdict::Stayed(Cause::NoMemory)) };
    assert_eq!((report.failed[Cause::NoMemory as usize], units.as_slice()), (8, [expected].as_slice()));
    kit.check_in_place(0, 8);
    kit.audit();
}

#[test]
fn to_a_device_and_home_in_every_order() {
    for order in 1..=9 {
        let kit = two_devices();
        kit.map(0, 512, Huge);
        kit.fill(0, 512);
        let len = 1_u64 << order;
        if order < 9 {
            // The part from 0 on becomes a folio of its own.
            kit.space.space().unmap(range(len, 512 - len)).expect("memory for the split");
        }
        let (report, units) = migrate(&kit, 0, len, DEV, &MigrateOptions::to(DEV));
        assert_eq!((report.units, report.pages), (1, len), "order {order}");
        assert_eq!(units, [unit(0, order, Verdict::Moved)]);
        let folio = super::migrate_gaps::hold(&kit, 0);
        assert_eq!((folio.order().get(), folio.place()), (order, DEV));
        assert_eq!(folio.frame(), Frame::new(DEV, folio.frame().index() & !(len as u32 - 1)));
        drop(folio);
        let (report, units) = migrate(&kit, 0, len, Place::RAM, &MigrateOptions::to(Place::RAM));
        assert_eq!((report.units, units.as_slice()), (1, [unit(0, order, Verdict::Moved)].as_slice()));
        kit.check(0, len);
        kit.audit();
    }
}
