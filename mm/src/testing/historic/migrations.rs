//! Migrations, faults and evictions.

use crate::counters::Event;
use crate::entry::Entry;
use crate::fault::{FaultInfo, FaultOutcome};
use crate::folio::LockedFolio;
use crate::inject::Site;
use crate::migrate::{Cause, MigrateOptions, Verdict};
use crate::testing::clone::{fork, read};
use crate::testing::historic::{LEVELS, filled, fragment, frame, ignore};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, one};
use crate::testing::migrate_gaps::{hold, lock};
use crate::testing::migrate_options::migrate;
use crate::types::{Access, Place};
use crate::vma::HugeAdvice::{Default as Small, Huge};

#[test]
fn h11_a_fault_sleeps_on_a_folio_that_is_locked() {
    for (_, advice) in LEVELS {
        for parked in [false, true] {
            let kit = filled(advice, DEV);
            *kit.machine.on_wait.borrow_mut() = Some(if parked {
                let migration = kit.space.space().migrate_collect(range(0, 512), Place::RAM);
                let mut migration = Some(migration.expect("memory for the work").0);
                Box::new(move || drop(migration.take()))
            } else {
                let mut locked = Some(lock(&kit, 5));
                Box::new(move || drop(locked.take().map(LockedFolio::unlock)))
            });
            *kit.machine.on_relax.borrow_mut() = Some(Box::new(|| panic!("it spins")));
            let waits = kit.machine.counted(Event::FaultWait);
            kit.check(5, 1);
            assert_eq!(kit.machine.counted(Event::FaultWait) - waits, 1);
            assert!(kit.machine.on_wait.borrow().is_none(), "it slept");
            assert!(kit.machine.on_relax.take().is_some(), "and did nothing else");
            kit.check(0, 512);
            kit.audit();
        }
    }
}

#[test]
fn h12_the_folio_of_a_fault_is_among_what_the_fault_moves() {
    for (_, advice) in LEVELS {
        for torn in [false, true] {
            let kit = filled(advice, DEV);
            // Shared, so that the general machinery has to do it.
            let child = fork(&kit);
            let held = if torn { fragment(&kit, Place::RAM) } else { Vec::new() };
            let waits = kit.machine.counted(Event::FaultWait);
            let fault = FaultInfo::new(at(5), Access::Read);
            assert_eq!(kit.space.space().handle_fault(&fault), Ok(FaultOutcome::Returned));
            assert_eq!(kit.machine.counted(Event::FaultWait), waits, "it does not wait for itself");
            for space in [kit.space.space(), child.space()] {
                assert!(matches!(space.entry_at(at(5)).1, Entry::Leaf(_)), "it is in RAM");
            }
            assert!(!hold(&kit, 5).is_locked());
            drop(held);
            assert_eq!(read(&kit, &child, 5), Kit::value(5));
            kit.check(0, 512);
            kit.audit();
        }
    }
}

#[test]
fn h15_an_eviction_ends_at_its_range_and_at_no_other_border() {
    // A folio that reaches over both ends goes once, and whole.
    let kit = filled(Huge, DEV);
    let first = frame(&kit.space, 0).index();
    let report = kit.machine.mm.evict_range(DEV, first + 100..first + 300);
    assert_eq!((report.units, report.pages, report.failed_pages()), (1, 512, 0), "{report:?}");
    kit.check_in_place(0, 512);
    kit.audit();
    drop(kit);
    // More folios than a batch has room for.
    let pages = 4096 + 700;
    let config = Config { ram: one(512..512 + 24 * 512), devices: vec![12 * 512], ..Config::default() };
    let kit = Kit::on(&config);
    kit.map(0, pages, Small);
    kit.fill(0, pages);
    assert_eq!(kit.space.space().migrate(range(0, pages), DEV).map(|r| r.pages), Ok(pages));
    let report = kit.machine.mm.evict_range(DEV, 0..12 * 512);
    assert_eq!((report.pages, report.failed_pages()), (pages, 0), "{report:?}");
    assert_eq!(kit.free(DEV), 12 * 512);
    kit.check_in_place(0, pages);
    kit.audit();
}

#[test]
fn h17_only_the_units_without_memory_stay() {
    let kit = Kit::new();
    kit.map(0, 8, Small);
    kit.fill(0, 8);
    kit.machine.mm.inject.arm(Site::DeviceFolio as u32, 0, 3, 2);
    let (report, units) = migrate(&kit, 0, 8, DEV, &MigrateOptions::to(DEV));
    kit.machine.mm.inject.disarm();
    assert_eq!((report.pages, report.failed[Cause::NoMemory as usize]), (6, 2));
    assert_eq!(units.len(), 8);
    for (page, unit) in (0..8).zip(units) {
        let stays = page == 3 || page == 4;
        let verdict = if stays { Verdict::Stayed(Cause::NoMemory) } else { Verdict::Moved };
        assert_eq!((unit.addr, unit.verdict), (at(page), verdict));
        assert_eq!(frame(&kit.space, page).place(), if stays { Place::RAM } else { DEV }, "page {page}");
    }
    kit.check_in_place(0, 8);
    kit.audit();
    assert_eq!(kit.free(DEV), 8 * 512 - 6);
}

#[test]
fn h18_units_are_not_pages() {
    let kit = Kit::new();
    kit.map(0, 1024, Huge);
    kit.map(1024, 3, Small);
    kit.fill(0, 1027);
    for (i, to) in [DEV, Place::RAM, DEV].into_iter().enumerate() {
        let report = kit.space.space().migrate(range(0, 1027), to).expect("it is mapped");
        assert_eq!((report.units, report.pages, report.huge_pages), (5, 1027, 1024), "trip {i}");
        assert_eq!(report.failed_pages(), 0);
        let there = if to == DEV { 1027 } else { 0 };
        assert_eq!(kit.space.resident().on_device(0), there, "trip {i}");
        assert_eq!(kit.machine.mm.device(0).stat().resident, there, "trip {i}");
    }
    let report = kit.machine.mm.evict_range(DEV, 0..8 * 512);
    assert_eq!((report.units, report.pages, report.huge_pages), (5, 1027, 1024));
    assert_eq!(kit.machine.counted(Event::DevicePagesIn), 2 * 1027);
    kit.check_in_place(0, 1027);
    kit.audit();
}

#[test]
fn h20_a_migration_that_ends_early_keeps_no_memory() {
    let kit = filled(Huge, Place::RAM);
    kit.map(512, 200, Small);
    kit.fill(512, 100);
    let mm = &kit.machine.mm;
    let space = kit.space.space();
    let live = || {
        let records = (mm.batches.live(), mm.units.live(), mm.pieces.live());
        (records, mm.folios.live(), mm.tables.live(), kit.free(Place::RAM), kit.free(DEV))
    };
    let mut before = None;
    for round in 0..12 {
        for phase in 0..4 {
            let (collected, _) = space.migrate_collect(range(0, 612), DEV).expect("memory for the work");
            match phase {
                0 => drop(collected),
                1 => drop(collected.unmap()),
                2 => drop(collected.unmap().copy()),
                _ => drop(collected.unmap().copy().commit()),
            }
        }
        for n in 0..30 {
            mm.inject.arm(Site::ALL, 0, n, u64::MAX);
            ignore(space.migrate(range(0, 612), DEV));
            mm.inject.disarm();
            space.migrate(range(0, 612), Place::RAM).expect("it is mapped");
        }
        let records = mm.batches.live() + mm.units.live() + mm.pieces.live();
        assert_eq!(records, 0, "round {round}: work records in use, with no work");
        // The first round makes what the pools then keep.
        assert_eq!(live(), *before.get_or_insert_with(live), "round {round}");
        kit.audit();
    }
    kit.check(0, 612);
}
