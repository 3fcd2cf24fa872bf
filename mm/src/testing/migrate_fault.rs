//! Migration that faults in what is absent, in one walk of the page table.

use crate::counters::Event;
use crate::cursor::LOOKUPS;
use crate::entry::{Attrs, Entry};
use crate::error::RangeError;
use crate::inject::Site;
use crate::machine::FlushReason;
use crate::migrate::{Cause, MigrateFlags, MigrateOptions, Verdict};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::Config;
use crate::testing::migrate_gaps::hold;
use crate::testing::migrate_options::migrate;
use crate::types::{Level, Place, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};

const DEV1: Place = Place::device(1);

fn two_devices() -> Kit {
    Kit::on(&Config { devices: vec![8 * 512, 8 * 512], ..Config::default() })
}

fn faulting(to: Place) -> MigrateOptions {
    MigrateOptions::to(to).with(MigrateFlags::FAULT)
}

fn writing(to: Place) -> MigrateOptions {
    MigrateOptions::to(to).with(MigrateFlags::FAULT | MigrateFlags::WRITE)
}

fn attrs(kit: &Kit, page: u64) -> (Place, Attrs) {
    match kit.space.entry_at(at(page)).1 {
        Entry::Leaf(leaf) => (leaf.frame.place(), leaf.attrs),
        Entry::NonPresent(soft) => (soft.frame.place(), soft.attrs),
        other => panic!("page {page} is {other:?}"),
    }
}

/// Makes the page at `page` look as a clone leaves it: not writable, and not this mapping's alone.
fn as_cloned(kit: &Kit, page: u64) {
    let mut cursor = kit.space.space().cursor(at(page)).expect("it is mapped");
    match cursor.entry() {
        Entry::Leaf(_) => drop(cursor.restrict(Attrs::WRITE | Attrs::EXCLUSIVE)),
        Entry::NonPresent(mut soft) => {
            soft.attrs.remove(Attrs::WRITE | Attrs::EXCLUSIVE);
            cursor.replace_soft(Entry::NonPresent(soft));
        }
        other => panic!("page {page} is {other:?}"),
    }
}

/// Holes, a zero page, RAM pages, pages of the first and of the second device, small and huge.
fn mixed() -> Kit {
    let kit = two_devices();
    kit.map(0, 2048, Huge);
    kit.map(2048, 60, Small);
    kit.fill(0, 1024);
    kit.try_read(1024).expect("the zero folio");
    kit.fill(2048, 40);
    kit.try_read(2090).expect("the zero page");
    let space = kit.space.space();
    space.migrate(range(0, 512), DEV).expect("it is mapped");
    space.migrate(range(2048, 10), DEV).expect("it is mapped");
    space.migrate(range(2058, 10), DEV1).expect("it is mapped");
    kit
}

const MIXED: u64 = 2048 + 60;

fn check_mixed(kit: &Kit) {
    kit.check_in_place(0, 1024);
    kit.check_in_place(2048, 40);
    kit.audit();
    kit.check(0, 1024);
    kit.check(2048, 40);
    for page in [1024, 1500, 1999, 2088, 2090, 2107] {
        assert_eq!(kit.try_read(page), Ok(0));
    }
    kit.audit();
}

#[test]
fn everything_ends_up_at_the_destination() {
    let kit = mixed();
    let flushes = kit.machine.counted(Event::TlbFlush);
    let (report, units) = migrate(&kit, 0, MIXED, DEV1, &faulting(DEV1));
    assert_eq!(report.failed_pages(), 0, "{report:?}");
    assert_eq!((report.pages, report.holes), (MIXED - 10, 512 + 512 + 20));
    assert!((0..MIXED).all(|page| attrs(&kit, page).0 == DEV1));
    assert_eq!([0, 1].map(|n| kit.machine.mm.device(n).stat().resident), [0, MIXED]);
    assert_eq!(kit.machine.counted(Event::TlbFlush) - flushes, 2, "one for pages, one for zero pages");
    assert_eq!(units.iter().filter(|u| u.verdict == Verdict::Filled).count(), 2 + 20);
    assert_eq!(units.iter().filter(|u| u.verdict == Verdict::Moved).count(), 2 + 30);
    check_mixed(&kit);
}

#[test]
fn the_page_table_is_walked_once() {
    let kit = mixed();
    LOOKUPS.set(0);
    let options = faulting(DEV1);
    let space = kit.space.space();
    let (migration, next) = space.migrate_collect_with(range(0, MIXED), DEV1, &options).expect("memory");
    assert_eq!(next, at(MIXED));
    // Five entries of a PMD table: one look at each, and one hold of a table for each that is not empty.
    assert_eq!(LOOKUPS.get(), 5 + 4, "three huge pages, and one table of PTEs");
    let _report = migration.unmap().copy().commit().finalize();
    check_mixed(&kit);
}

#[test]
fn to_ram_too() {
    let kit = mixed();
    let (report, _) = migrate(&kit, 0, MIXED, Place::RAM, &faulting(Place::RAM));
    // The zero folio and the zero page stay: for reading, they are in RAM already.
    assert_eq!((report.failed_pages(), report.holes, report.pages), (0, 512 + 19, 532 + 512 + 19));
    assert!((0..MIXED).all(|page| attrs(&kit, page).0 == Place::RAM));
    assert_eq!([0, 1].map(|n| kit.machine.mm.device(n).stat().resident), [0, 0]);
    kit.audit();
    let (report, _) = migrate(&kit, 0, MIXED, Place::RAM, &writing(Place::RAM));
    assert_eq!((report.holes, report.pages, report.failed_pages()), (513, 513, 0));
    check_mixed(&kit);
}

#[test]
fn without_the_flag_foreign_pages_stay() {
    let kit = mixed();
    let (report, _) = migrate(&kit, 0, MIXED, DEV1, &MigrateOptions::to(DEV1));
    assert_eq!(report.failed[Cause::Foreign as usize], 522);
    check_mixed(&kit);
}

#[test]
fn a_shared_page_is_copied_for_a_writer_and_stays_with_the_others() {
    for (huge, home) in
        [(false, Place::RAM), (true, Place::RAM), (false, DEV), (true, DEV), (true, DEV1), (false, DEV1)]
    {
        let kit = two_devices();
        kit.map(0, 512, if huge { Huge } else { Small });
        kit.fill(0, 512);
        if home != Place::RAM {
            kit.space.space().migrate(range(0, 512), home).expect("it is mapped");
        }
        let entries = if huge { 1 } else { 512 };
        let others: Vec<_> = (0..entries)
            .map(|page| {
                as_cloned(&kit, page);
                hold(&kit, page)
            })
            .collect();
        let flushes = kit.machine.counted(Event::TlbFlush);
        let (report, units) = migrate(&kit, 0, 512, DEV1, &writing(DEV1));
        assert_eq!((report.copied, report.pages, report.failed_pages()), (512, 512, 0), "{huge} {home}");
        assert!(units.len() as u64 == entries && units.iter().all(|u| u.verdict == Verdict::Copied));
        assert_eq!(kit.machine.counted(Event::TlbFlush) - flushes, u64::from(home.is_ram()));
        for (page, other) in others.iter().enumerate() {
            assert_eq!((other.place(), other.refs(), other.map_count()), (home, 1, 0));
            assert!(!other.is_locked() && other.migration_entries() == 0);
            assert_eq!(kit.machine.data(other.frame())[0].get(), Kit::value(page as u64));
        }
        for page in 0..512 {
            let (place, attrs) = attrs(&kit, page);
            assert_eq!(place, DEV1);
            assert!(attrs.contains(Attrs::WRITE | Attrs::EXCLUSIVE | Attrs::DIRTY | Attrs::SOFT_DIRTY));
        }
        kit.check_in_place(0, 512);
        // The copy is this mapping's own.
        kit.check(0, 512);
        drop(others);
        kit.audit();
    }
}

#[test]
fn a_page_that_nobody_shares_any_more_moves_and_may_be_written() {
    for (huge, home) in [(false, Place::RAM), (true, Place::RAM), (true, DEV1), (false, DEV1)] {
        let kit = two_devices();
        kit.map(0, 512, if huge { Huge } else { Small });
        kit.fill(0, 512);
        if home != Place::RAM {
            kit.space.space().migrate(range(0, 512), home).expect("it is mapped");
        }
        for page in 0..if huge { 1 } else { 512 } {
            as_cloned(&kit, page);
        }
        let (report, _) = migrate(&kit, 0, 512, DEV1, &writing(DEV1));
        let moved = if home == DEV1 { 0 } else { 512 };
        assert_eq!((report.copied, report.pages, report.failed_pages()), (0, moved, 0));
        let (place, attrs) = attrs(&kit, 77);
        assert!(place == DEV1 && attrs.contains(Attrs::WRITE | Attrs::EXCLUSIVE));
        assert_eq!(kit.machine.mm.device(1).stat().resident, 512);
        kit.check(0, 512);
        kit.audit();
    }
}

#[test]
fn for_reading_a_shared_page_moves_for_all() {
    let kit = two_devices();
    kit.map(0, 4, Small);
    kit.fill(0, 4);
    as_cloned(&kit, 1);
    let (report, _) = migrate(&kit, 0, 4, DEV, &faulting(DEV));
    assert_eq!((report.pages, report.copied), (4, 0));
    let (place, attrs) = attrs(&kit, 1);
    assert!(place == DEV && !attrs.intersects(Attrs::WRITE | Attrs::EXCLUSIVE));
    kit.check(0, 4);
    kit.audit();
}

#[test]
fn a_copy_in_pieces_where_no_whole_one_is_free() {
    let kit = two_devices();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    as_cloned(&kit, 0);
    let other = hold(&kit, 0);
    kit.machine.mm.inject.arm(Site::DeviceFolio as u32, 9, 0, 1);
    let (report, _) = migrate(&kit, 0, 512, DEV, &writing(DEV));
    kit.machine.mm.inject.disarm();
    assert_eq!((report.copied, report.torn, report.pages), (512, 512, 512));
    assert_eq!(kit.space.entry_at(at(0)).0, Level::Pte);
    drop(other);
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn a_copy_that_is_given_up_goes_back_to_the_shared_page() {
    for phases in 0..4 {
        let kit = two_devices();
        kit.map(0, 512, Huge);
        kit.map(512, 3, Small);
        kit.fill(0, 515);
        as_cloned(&kit, 0);
        as_cloned(&kit, 513);
        let others = [hold(&kit, 0), hold(&kit, 513)];
        let space = kit.space.space();
        let all = range(0, 515);
        let (migration, _) = space.migrate_collect_with(all, DEV, &writing(DEV)).expect("it is mapped");
        match phases {
            0 => drop(migration),
            1 => drop(migration.unmap()),
            2 => drop(migration.unmap().copy()),
            // What a commit has mapped stays, as a hole does that it has filled.
            _ => drop(migration.unmap().copy().commit()),
        }
        let copied = phases == 3;
        assert_eq!(attrs(&kit, 0).0 == DEV, copied);
        assert_eq!(attrs(&kit, 0).1.contains(Attrs::WRITE), copied);
        kit.check_in_place(0, 515);
        drop(others);
        kit.check(0, 515);
        kit.audit();
    }
}

#[test]
fn a_copy_whose_mapping_went_or_moved_is_dropped() {
    use crate::remap::{RemapFlags, RemapTarget};
    for moved in [false, true] {
        let kit = two_devices();
        kit.map(0, 8, Small);
        kit.fill(0, 8);
        (0..8).for_each(|page| as_cloned(&kit, page));
        let others: Vec<_> = (0..8).map(|page| hold(&kit, page)).collect();
        let space = kit.space.space();
        let (migration, _) = space.migrate_collect_with(range(0, 8), DEV, &writing(DEV)).expect("mapped");
        let copied = migration.unmap().copy();
        if moved {
            let target = RemapTarget { addr: at(1000), len: 4 * 4096 };
            space.remap(range(0, 4), target, RemapFlags::empty()).expect("memory");
        } else {
            space.unmap(range(0, 4)).expect("memory");
        }
        let report = copied.commit().finalize();
        assert_eq!((report.copied, report.failed[Cause::Raced as usize]), (4, 4));
        assert_eq!(kit.machine.mm.device(0).stat().resident, 4);
        drop(others);
        if moved {
            assert_eq!(kit.try_read(1002), Ok(Kit::value(2)));
        }
        kit.check(4, 4);
        kit.audit();
    }
}

#[test]
fn a_mapping_that_may_not_be_written_is_refused_for_a_writer() {
    let kit = two_devices();
    kit.map(0, 8, Small);
    kit.fill(0, 8);
    let space = kit.space.space();
    space.protect(range(4, 4), Prot::READ).expect("it is mapped");
    let refused = space.migrate_with(range(0, 8), DEV, &writing(DEV), &mut |_| {});
    assert_eq!(refused, Err(RangeError::NotMigratable(at(4))));
    assert_eq!(kit.machine.mm.device(0).stat().resident, 0);
    // For a reader it is fine, and stays as it was.
    assert_eq!(migrate(&kit, 0, 8, DEV, &faulting(DEV)).0.pages, 8);
    assert!(!attrs(&kit, 5).1.contains(Attrs::WRITE));
    kit.audit();
}

#[test]
fn a_failure_of_any_allocation_leaves_every_page_somewhere() {
    for n in (0..60).chain([80, 120]) {
        let kit = mixed();
        as_cloned(&kit, 2070);
        let other = hold(&kit, 2070);
        kit.machine.mm.inject.arm(Site::ALL, 0, n, 2);
        let (report, units) = migrate(&kit, 0, MIXED, DEV1, &writing(DEV1));
        kit.machine.mm.inject.disarm();
        drop(other);
        let told: u64 = units.iter().map(|u| u64::from(u.pages)).sum();
        assert_eq!(told, report.pages + report.failed_pages(), "failure {n}");
        check_mixed(&kit);
    }
}

#[test]
fn flushes_that_are_left_out_are_noticed() {
    // The zero pages' flush, by the walk that looks for stale translations.
    let kit = mixed();
    kit.machine.skip.set(Some(FlushReason::ZeroReplaced));
    let _ = migrate(&kit, 0, MIXED, DEV1, &faulting(DEV1));
    let stale = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| kit.audit()));
    assert!(stale.is_err(), "the CPU still reads zeros there");
}
