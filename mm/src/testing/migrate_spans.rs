//! Folios that are not aligned in the address space: mapped from two tables, or two VMAs, after a move.

use crate::entry::Entry;
use crate::error::FaultError;
use crate::inject::Site;
use crate::migrate::Verdict;
use crate::migrate::{Cause, MigrateOptions};
use crate::remap::{RemapFlags, RemapTarget};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::migrate_gaps::{hold, lock};
use crate::testing::migrate_options::migrate;
use crate::types::{Order, PAGE_SIZE, Place, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};

/// Where the memory is moved to: off the 2 MiB grid by this many pages.
const TO: u64 = 2048 + 200;

/// Three huge pages, filled (with the values of pages 0 to 1535), then moved to page [`TO`].
fn moved(len: u64) -> Kit {
    let kit = Kit::new();
    kit.map(0, len, Huge);
    kit.fill(0, len);
    shift(&kit, 0, len, TO);
    kit
}

fn shift(kit: &Kit, from: u64, len: u64, to: u64) {
    let target = RemapTarget { addr: at(to), len: len * PAGE_SIZE };
    kit.space.space().remap(range(from, len), target, RemapFlags::empty()).expect("memory for the tables");
}

fn check_moved(kit: &Kit, len: u64) {
    for page in 0..len {
        assert_eq!(kit.try_read(TO + page), Ok(Kit::value(page)), "page {page}");
    }
}

/// What a page holds, wherever it lies.
fn content(kit: &Kit, page: u64) -> u64 {
    match kit.space.entry_at(at(page)).1 {
        Entry::Leaf(leaf) => kit.machine.data(leaf.frame)[0].get(),
        Entry::NonPresent(soft) => kit.machine.data(soft.frame)[0].get(),
        other => panic!("page {page} is {other:?}"),
    }
}

fn is_at(kit: &Kit, page: u64, place: Place) -> bool {
    match kit.space.entry_at(at(page)).1 {
        Entry::Leaf(leaf) => leaf.frame.place() == place,
        Entry::NonPresent(soft) => soft.frame.place() == place,
        _ => false,
    }
}

#[test]
fn a_folio_in_two_tables_is_one_unit_both_ways() {
    let kit = moved(1536);
    let (report, units) = migrate(&kit, TO, 1536, DEV, &MigrateOptions::to(DEV));
    assert_eq!((report.units, report.pages, report.failed_pages(), report.torn), (3, 1536, 0, 0));
    assert_eq!(
        units.iter().map(|u| (u.addr, u.verdict)).collect::<Vec<_>>(),
        [0, 512, 1024].map(|p| (at(TO + p), Verdict::Moved))
    );
    assert!((0..1536).all(|page| is_at(&kit, TO + page, DEV)));
    let folio = hold(&kit, TO + 400);
    assert_eq!((folio.order(), folio.map_count()), (Order::PMD, 512));
    drop(folio);
    kit.audit();
    let (report, _) = migrate(&kit, TO, 1536, Place::RAM, &MigrateOptions::to(Place::RAM));
    assert_eq!((report.units, report.pages, report.torn), (3, 1536, 0));
    assert_eq!(hold(&kit, TO + 600).order(), Order::PMD);
    check_moved(&kit, 1536);
    kit.audit();
}

#[test]
fn a_touch_in_either_table_brings_it_back_whole() {
    for touched in [0, 311, 312, 511] {
        let kit = moved(512);
        kit.space.space().migrate(range(TO, 512), DEV).expect("it is mapped");
        assert_eq!(kit.try_read(TO + touched), Ok(Kit::value(touched)));
        assert!((0..512).all(|page| is_at(&kit, TO + page, Place::RAM)), "touched at {touched}");
        assert_eq!(hold(&kit, TO).order(), Order::PMD);
        assert_eq!(kit.free(DEV), 8 * 512);
        check_moved(&kit, 512);
        kit.audit();
    }
}

#[test]
fn two_mappings_side_by_side_share_a_folio() {
    let kit = moved(512);
    let space = kit.space.space();
    space.protect(range(TO + 100, 212), Prot::READ).expect("it is mapped");
    let (report, units) = migrate(&kit, TO, 512, DEV, &MigrateOptions::to(DEV));
    assert_eq!((report.units, report.pages, units.len()), (1, 512, 1));
    assert_eq!(kit.try_write(TO + 150).map_err(|e| matches!(e, FaultError::Access(..))), Err(true));
    check_moved(&kit, 512);
    kit.audit();
}

#[test]
fn a_parked_migration_is_put_back_in_both_tables() {
    for phases in 0..4 {
        let kit = moved(1024);
        let space = kit.space.space();
        let (migration, _) = space.migrate_collect(range(TO, 1024), DEV).expect("it is mapped");
        match phases {
            0 => drop(migration),
            1 => drop(migration.unmap()),
            2 => drop(migration.unmap().copy()),
            _ => drop(migration.unmap().copy().commit()),
        }
        assert!((0..1024).all(|page| is_at(&kit, TO + page, Place::RAM)));
        check_moved(&kit, 1024);
        kit.audit();
    }
}

#[test]
fn a_part_that_is_unmapped_on_the_way_stays_unmapped() {
    for (start, len) in [(TO + 300, 100), (TO, 312), (TO + 312, 200)] {
        for finish in [false, true] {
            let kit = moved(512);
            let space = kit.space.space();
            let (migration, _) = space.migrate_collect(range(TO, 512), DEV).expect("it is mapped");
            let copied = migration.unmap().copy();
            space.unmap(range(start, len)).expect("it is mapped");
            if finish {
                let _ = copied.commit().finalize();
            } else {
                drop(copied);
            }
            for page in 0..512 {
                if !(start..start + len).contains(&(TO + page)) {
                    assert_eq!(content(&kit, TO + page), Kit::value(page));
                }
            }
            kit.audit();
        }
    }
}

#[test]
fn it_moves_again_while_it_is_on_its_way() {
    for finish in [false, true] {
        let kit = moved(512);
        let space = kit.space.space();
        let (migration, _) = space.migrate_collect(range(TO, 512), DEV).expect("it is mapped");
        let copied = migration.unmap().copy();
        shift(&kit, TO, 512, 5000);
        if finish {
            assert_eq!(copied.commit().finalize().pages, 512);
        } else {
            drop(copied);
        }
        for page in 0..512 {
            assert_eq!(kit.try_read(5000 + page), Ok(Kit::value(page)));
        }
        kit.audit();
    }
}

#[test]
fn it_arrives_in_pieces_when_it_must() {
    let kit = moved(512);
    kit.machine.mm.inject.arm(Site::DeviceFolio as u32, 9, 0, 1);
    let report = kit.space.space().migrate(range(TO, 512), DEV).expect("it is mapped");
    kit.machine.mm.inject.disarm();
    assert_eq!((report.pages, report.torn), (512, 512));
    check_moved(&kit, 512);
    kit.audit();
}

#[test]
fn one_that_is_busy_counts_once_for_both_tables() {
    let kit = moved(512);
    let busy = lock(&kit, TO);
    let before = kit.machine.counted(crate::counters::Event::MigrateFail);
    let (report, units) = migrate(&kit, TO, 512, DEV, &MigrateOptions::to(DEV));
    assert_eq!((report.failed[Cause::Busy as usize], report.failed_pages(), report.pages), (512, 512, 0));
    assert_eq!(units.iter().map(|u| u.pages).collect::<Vec<_>>(), [312, 200]);
    assert_eq!(kit.machine.counted(crate::counters::Event::MigrateFail) - before, 1);
    drop(busy.unlock());
    check_moved(&kit, 512);
    kit.audit();
}

#[test]
fn every_order_at_every_offset_to_a_table() {
    for order in 1..=8_u64 {
        let len = 1 << order;
        for before in [1, len / 2, len - 1] {
            let kit = Kit::new();
            kit.map(0, 512, Huge);
            kit.fill(0, 512);
            kit.space.space().unmap(range(len, 512 - len)).expect("memory for the split");
            let to = 4096 - before;
            shift(&kit, 0, len, to);
            kit.map(6000, 1, Small);
            for place in [DEV, Place::RAM] {
                let report = kit.space.space().migrate(range(to, len), place).expect("it is mapped");
                assert_eq!(
                    (report.units, report.pages),
                    (1, len),
                    "order {order}, {before} pages before the border"
                );
                kit.audit();
            }
            for page in 0..len {
                assert_eq!(kit.try_read(to + page), Ok(Kit::value(page)));
            }
        }
    }
}

#[test]
fn what_an_unmap_leaves_of_it_in_the_other_table_is_split_off() {
    // TO + 512 is the first page of the second folio; 2,560 + 512 its border between two tables.
    let (second, border) = (TO + 512, 2560 + 512);
    for (dead, place) in [(second..border, DEV), (border..second + 512, DEV), (second..border, Place::RAM)] {
        let kit = moved(1536);
        if place == DEV {
            migrate(&kit, TO, 1536, DEV, &MigrateOptions::to(DEV));
        }
        let (before, len) = (kit.free(place), dead.end - dead.start);
        kit.space.space().unmap(range(dead.start, len)).expect("memory for the pieces");
        assert!(u64::from(kit.free(place) - before) >= len, "{dead:?}: the dead part is free");
        for page in (TO..TO + 1536).filter(|page| !dead.contains(page)) {
            assert_eq!(kit.try_read(page), Ok(Kit::value(page - TO)), "page {page}");
        }
        kit.audit();
    }
}
