//! Holes and zero pages: orders, one flush for all, and touches that come in between.

use crate::counters::Event;
use crate::entry::{Attrs, Entry};
use crate::inject::Site;
use crate::machine::FlushReason;
use crate::migrate::{Cause, MigrateOptions, Verdict};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, one};
use crate::testing::migrate_gaps::hold;
use crate::testing::migrate_options::migrate;
use crate::types::{Level, Order, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};

fn zeros(kit: &Kit, start: u64, len: u64) {
    for page in start..start + len {
        assert_eq!(kit.try_read(page), Ok(0), "page {page}");
    }
}

#[test]
fn all_zero_pages_of_a_batch_share_one_flush() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.map(512, 100, Small);
    kit.map(700, 4, Small);
    kit.try_read(0).expect("the zero folio");
    zeros(&kit, 512, 50);
    zeros(&kit, 700, 4);
    let space = kit.space.space();
    space.protect(range(700, 4), Prot::READ).expect("it is mapped");
    let before = kit.machine.counted(Event::TlbFlush);
    let report = space.migrate(range(0, 612), DEV).expect("it is mapped");
    assert_eq!((report.holes, report.pages, report.failed_pages()), (612, 612, 0));
    assert_eq!(kit.machine.counted(Event::TlbFlush) - before, 1, "51 zero pages, one round");
    space.migrate(range(700, 4), DEV).expect("it is mapped");
    assert_eq!(kit.machine.flushed(FlushReason::ZeroReplaced), 2);
    let Entry::NonPresent(soft) = kit.space.entry_at(at(701)).1 else { panic!("it is on the device") };
    assert!(!soft.attrs.contains(Attrs::WRITE) && soft.attrs.contains(Attrs::EXCLUSIVE));
    zeros(&kit, 0, 612);
    zeros(&kit, 700, 4);
    kit.fill(0, 612);
    kit.check(0, 612);
    kit.audit();
}

#[test]
fn a_page_that_was_touched_in_between_is_its_touchers() {
    for huge in [false, true] {
        let kit = Kit::new();
        kit.map(0, 512, if huge { Huge } else { Small });
        kit.try_read(3).expect("zeros");
        let space = kit.space.space();
        let (migration, _) = space.migrate_collect(range(0, 512), DEV).expect("it is mapped");
        let copied = migration.unmap().copy();
        kit.fill(3, 1);
        let mut stayed = Vec::new();
        let report = copied.commit().finalize_with(&mut |unit| {
            if unit.verdict == Verdict::Stayed(Cause::Raced) {
                stayed.push(unit.addr);
            }
        });
        let pages = if huge { 512 } else { 1 };
        assert_eq!((report.failed[Cause::Raced as usize], report.pages), (pages, 512 - pages));
        assert_eq!(stayed, [at(if huge { 0 } else { 3 })]);
        kit.check(3, 1);
        assert_eq!(kit.try_read(4), Ok(0));
        kit.audit();
    }
}

#[test]
fn a_zero_page_that_is_unmapped_or_moved_in_between_stays_so() {
    let kit = Kit::new();
    kit.map(0, 16, Small);
    zeros(&kit, 0, 16);
    let space = kit.space.space();
    let (migration, _) = space.migrate_collect(range(0, 16), DEV).expect("it is mapped");
    let copied = migration.unmap().copy();
    space.unmap(range(4, 4)).expect("it is mapped");
    let report = copied.commit().finalize();
    assert_eq!((report.pages, report.failed[Cause::Raced as usize]), (12, 4));
    assert_eq!(kit.machine.mm.device(0).stat().resident, 12);
    zeros(&kit, 0, 4);
    zeros(&kit, 8, 8);
    kit.audit();
}

#[test]
fn holes_can_get_memory_of_any_order() {
    for order in 0..=8 {
        let kit = Kit::new();
        kit.map(0, 1024, Small);
        kit.fill(700, 1);
        zeros(&kit, 600, 3);
        let options = MigrateOptions { hole_order: Order::new(order), ..MigrateOptions::to(DEV) };
        let (report, units) = migrate(&kit, 0, 1024, DEV, &options);
        assert_eq!((report.pages, report.holes, report.failed_pages()), (1024, 1023, 0));
        // No PTE table there: cut up evenly.
        assert_eq!(units.iter().filter(|u| u.addr < at(512)).count(), 512 >> order);
        assert_eq!(hold(&kit, 100).order().get(), order);
        // Around the page that was there already, as large as fits.
        let near = hold(&kit, 701).order().get();
        assert_eq!(near, 0);
        assert_eq!(hold(&kit, 600).order().get(), order.min(7), "zero pages are holes too");
        assert_eq!(kit.machine.flushed(FlushReason::ZeroReplaced), u64::from(order < 9));
        kit.audit();
        zeros(&kit, 590, 20);
        kit.check(700, 1);
        kit.audit();
    }
}

#[test]
fn a_hole_of_an_order_that_is_not_free_is_filled_in_pieces() {
    let kit = Kit::new();
    kit.map(0, 64, Small);
    zeros(&kit, 5, 1);
    kit.machine.mm.inject.arm(Site::DeviceFolio as u32, 4, 0, 3);
    let options = MigrateOptions { hole_order: Order::new(6), ..MigrateOptions::to(DEV) };
    let (report, units) = migrate(&kit, 0, 64, DEV, &options);
    kit.machine.mm.inject.disarm();
    assert_eq!((report.pages, report.torn, units.len()), (64, 64, 1));
    assert_eq!(units[0].verdict, Verdict::Filled);
    assert!(hold(&kit, 5).order().get() < 6);
    zeros(&kit, 0, 64);
    kit.audit();
}

#[test]
fn failures_while_holes_of_every_order_are_filled() {
    for n in 0..24 {
        let kit = Kit::new();
        kit.map(0, 600, Small);
        zeros(&kit, 30, 2);
        kit.fill(64, 2);
        let options = MigrateOptions { hole_order: Order::new(4), ..MigrateOptions::to(DEV) };
        kit.machine.mm.inject.arm(Site::ALL, 0, n, 1);
        let (report, units) = migrate(&kit, 0, 600, DEV, &options);
        kit.machine.mm.inject.disarm();
        assert_eq!(report.pages + report.failed_pages(), 600, "failure {n}: {report:?}");
        assert_eq!(units.iter().map(|u| u64::from(u.pages)).sum::<u64>(), 600);
        kit.check_in_place(64, 2);
        kit.audit();
        zeros(&kit, 0, 64);
        kit.check(64, 2);
        kit.audit();
    }
}

#[test]
fn a_gigabyte_of_holes_is_one_call() {
    let pages = 512 * 512;
    let config = Config { ram: one(512..512 + 4 * 512), devices: vec![pages as u32], ..Config::default() };
    let kit = Kit::on(&config);
    kit.map(0, pages, Huge);
    let report = kit.space.space().migrate(range(0, pages), DEV).expect("it is mapped");
    assert_eq!((report.units, report.pages, report.huge_pages, report.holes), (512, pages, pages, pages));
    assert_eq!((report.batches, report.failed_pages(), kit.free(DEV)), (32, 0, 0));
    assert_eq!(kit.space.entry_at(at(511 * 512)).0, Level::Pmd);
    kit.audit();
    assert_eq!(kit.try_read(pages - 1), Ok(0));
    assert_eq!(kit.space.entry_at(at(pages - 1)).0, Level::Pmd);
    kit.audit();
}
