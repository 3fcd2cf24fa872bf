//! Tests of one behaviour each, on a machine at rest.

use crate::counters::Event;
use crate::entry::{Attrs, Entry, SoftKind};
use crate::error::FaultError;
use crate::fault::{FaultBits, FaultInfo, FaultOutcome};
use crate::folio::FolioRef;
use crate::machine::FlushReason;
use crate::migrate::{Cause, Report};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, Soft, one};
use crate::types::{Access, Frame, Level, Order, Place, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};
use crate::zone::Need;

fn migrate(kit: &Kit, start: u64, len: u64, to: Place) -> Report {
    kit.space.space().migrate(range(start, len), to).expect("all of it is mapped")
}

fn level(kit: &Kit, page: u64) -> Level {
    kit.space.entry_at(at(page)).0
}

fn is_on(kit: &Kit, page: u64, place: Place) -> bool {
    match kit.space.entry_at(at(page)).1 {
        Entry::Leaf(leaf) => leaf.frame.place() == place,
        Entry::NonPresent(soft) => soft.kind == SoftKind::DevicePrivate && soft.frame.place() == place,
        _ => false,
    }
}

/// Takes folios of `order` until no more are to be had.
fn exhaust(kit: &Kit, place: Place, order: Order, need: Need) -> Vec<FolioRef<Soft>> {
    core::iter::from_fn(|| kit.machine.mm.alloc_folio(place, order, need).ok()).collect()
}

fn fault(kit: &Kit, page: u64, access: Access) -> Result<FaultOutcome, FaultError> {
    kit.space.space().handle_fault(&FaultInfo::new(at(page), access))
}

#[test]
fn a_huge_page_goes_and_comes_back_as_one() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    let flushes = kit.machine.counted(Event::TlbFlush);
    let report = migrate(&kit, 0, 512, DEV);
    assert_eq!((report.units, report.pages, report.huge_pages, report.batches), (1, 512, 512, 1));
    assert_eq!(kit.machine.counted(Event::TlbFlush) - flushes, 1, "one flush round");
    assert!(is_on(&kit, 0, DEV) && level(&kit, 0) == Level::Pmd);
    kit.audit();
    assert_eq!(fault(&kit, 300, Access::Read), Ok(FaultOutcome::Returned));
    assert!(is_on(&kit, 0, Place::RAM) && level(&kit, 0) == Level::Pmd);
    assert_eq!(kit.free(DEV), 8 * 512, "nothing is left on the device");
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn small_pages_cost_one_flush_round_per_batch() {
    let kit = Kit::new();
    kit.map(0, 512, Small);
    kit.fill(0, 512);
    let flushes = kit.machine.counted(Event::TlbFlush);
    let report = migrate(&kit, 0, 512, DEV);
    assert_eq!((report.units, report.pages, report.huge_pages), (512, 512, 0));
    assert_eq!(kit.machine.counted(Event::TlbFlush) - flushes, 1);
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn unmapping_many_small_pages_is_one_flush_round() {
    let kit = Kit::new();
    kit.map(0, 1024, Small);
    kit.fill(0, 1024);
    let flushes = kit.machine.counted(Event::TlbFlush);
    kit.space.space().unmap(range(0, 600)).expect("two VMAs at most are split");
    // One for the pages, one for the table that has nothing left to map.
    assert_eq!(kit.machine.counted(Event::TlbFlush) - flushes, 2);
    kit.audit();
}

#[test]
fn a_hole_that_is_filled_allows_what_its_mapping_allows_then() {
    let kit = Kit::new();
    let all = range(0, 512);
    kit.map(0, 512, Huge);
    let space = kit.space.space();
    let (migration, _) = space.migrate_collect(all, DEV).expect("it is mapped");
    // The mapping goes, and another takes its place, with its anonymous set too.
    space.unmap(all).expect("it is mapped");
    space.map_anon(all, Prot::READ, Huge).expect("it is free");
    let _report = migration.unmap().copy().commit().finalize();
    if let Entry::NonPresent(soft) = kit.space.entry_at(at(0)).1 {
        assert!(!soft.attrs.contains(Attrs::WRITE), "writable in a read-only mapping");
    }
    kit.audit();
}

#[test]
fn a_commit_that_is_given_up_leaves_a_folio_that_is_held_where_it_is() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    let (migration, _) = kit.space.space().migrate_collect(range(0, 512), DEV).expect("it is mapped");
    let committed = migration.unmap().copy().commit();
    let held: Vec<FolioRef<Soft>> =
        (0..8 * 512).filter_map(|i| kit.machine.mm.try_get_folio(Frame::new(DEV, i))).take(1).collect();
    assert_eq!(held.len(), 1, "the folio is found where it is now");
    let frame = held[0].frame();
    drop(committed);
    assert_eq!(held[0].frame(), frame, "the frames of a folio do not change under a handle");
    assert!(is_on(&kit, 0, DEV));
    drop(held);
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn a_report_counts_every_page_once() {
    let kit = Kit::new();
    kit.map(0, 1024, Huge);
    kit.map(1024, 20, Small);
    kit.fill(0, 512);
    kit.fill(1024, 4);
    kit.try_read(1030).expect("the zero page");
    let report = migrate(&kit, 0, 1044, DEV);
    let expected = Report {
        units: 1 + 1 + 20,
        pages: 1044,
        huge_pages: 1024,
        holes: 512 + 16,
        copied: 0,
        torn: 0,
        failed: [0; Cause::COUNT],
        batches: 1,
    };
    assert_eq!(report, expected);
    let again = migrate(&kit, 0, 1044, DEV);
    assert_eq!(
        again,
        Report { batches: 1, ..Report::default() },
        "what is there is neither moved nor failed"
    );
    kit.check_in_place(0, 512);
    kit.check_in_place(1024, 4);
    kit.audit();
}

#[test]
fn a_range_of_many_batches_is_one_call() {
    let config = Config { ram: one(512..512 + 3 * 512), devices: vec![40 * 512], ..Config::default() };
    let kit = Kit::on(&config);
    kit.map(0, 36 * 512, Huge);
    let report = migrate(&kit, 0, 36 * 512, DEV);
    assert_eq!((report.pages, report.holes, report.batches), (36 * 512, 36 * 512, 3));
    kit.audit();
}

#[test]
fn what_is_there_already_is_not_split() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    migrate(&kit, 0, 512, DEV);
    let report = migrate(&kit, 0, 256, DEV);
    assert_eq!(report, Report { batches: 1, ..Report::default() });
    assert_eq!(level(&kit, 0), Level::Pmd, "the mapping of a page that stays is left alone");
    kit.audit();
}

#[test]
fn without_a_free_huge_frame_a_page_comes_back_in_pieces() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    migrate(&kit, 0, 512, DEV);
    // No 2 MiB in RAM, but 4 MiB in smaller pieces.
    let mut held = exhaust(&kit, Place::RAM, Order::PMD, Need::Reserve);
    held.extend(exhaust(&kit, Place::RAM, Order::new(8), Need::Reserve));
    let mut kept = Vec::new();
    for (i, folio) in held.into_iter().enumerate() {
        if folio.order() == Order::PMD && i >= 2 {
            kept.push(folio);
        }
    }
    let small = exhaust(&kit, Place::RAM, Order::BASE, Need::Reserve);
    let every_other: Vec<_> = small.into_iter().filter(|folio| folio.frame().index() % 2 == 0).collect();
    assert_eq!(kit.machine.mm.ram.stat().chunks[9], 0, "no huge frame is free");
    kit.check(0, 512);
    assert_eq!(level(&kit, 0), Level::Pte);
    assert_eq!(kit.machine.counted(Event::MigrateSplit), 1);
    assert_eq!(kit.free(DEV), 8 * 512);
    drop((kept, every_other));
    kit.audit();
}

#[test]
fn without_a_free_huge_frame_a_page_goes_in_pieces() {
    let kit = Kit::on(&Config { devices: vec![3 * 512], ..Config::default() });
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    let held = exhaust(&kit, DEV, Order::new(8), Need::User);
    let every_other: Vec<_> = held.into_iter().filter(|f| f.frame().index() % 512 == 0).collect();
    let report = migrate(&kit, 0, 512, DEV);
    assert_eq!((report.pages, report.torn, report.huge_pages), (512, 512, 0));
    assert!(is_on(&kit, 511, DEV) && level(&kit, 0) == Level::Pte);
    kit.check(0, 512);
    drop(every_other);
    kit.audit();
}

#[test]
fn the_dead_part_of_an_unmapped_device_page_is_free_at_once() {
    for (start, len) in [(0, 256), (256, 256), (0, 1), (511, 1), (100, 56), (3, 500)] {
        let kit = Kit::new();
        kit.map(0, 512, Huge);
        kit.fill(0, 512);
        migrate(&kit, 0, 512, DEV);
        let before = kit.free(DEV);
        kit.space.space().unmap(range(start, len)).expect("memory for the split");
        assert_eq!(kit.free(DEV) - before, len as u32, "pages {start}+{len}");
        assert_eq!(kit.machine.freed_pages.get(), len, "the owner heard of them");
        kit.audit();
        kit.check(0, start);
        kit.check(start + len, 512 - start - len);
        kit.audit();
        assert_eq!(kit.free(DEV), 8 * 512);
    }
}

#[test]
fn the_dead_part_of_an_unmapped_ram_page_is_free_at_once() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    kit.space.space().unmap(range(100, 300)).expect("memory for the split");
    let folios = kit.machine.mm.folios_in_use();
    assert!(folios > 2, "the rest is in pieces");
    kit.check(0, 100);
    kit.check(400, 112);
    kit.audit();
}

#[test]
fn user_pages_leave_the_reserve_to_pages_that_come_back() {
    let kit = Kit::new();
    kit.map(0, 4, Small);
    kit.map(512, 8 * 512, Small);
    kit.fill(0, 4);
    migrate(&kit, 0, 4, DEV);
    let mut page = 512;
    while kit.try_write(page).is_ok() {
        page += 1;
    }
    assert!(kit.free(Place::RAM) >= 32, "the low-water mark: {}", kit.free(Place::RAM));
    assert_eq!(kit.try_write(page), Err(FaultError::Oom(at(page))));
    kit.check(0, 4);
    kit.audit();
}

#[test]
fn what_comes_out_of_the_reserve_goes_back_to_it() {
    let kit = Kit::new();
    kit.map(0, 101, Small);
    kit.map(512, 8 * 512, Small);
    kit.fill(0, 101); // the last one stays, so that their table does
    migrate(&kit, 0, 100, DEV);
    let mut page = 512;
    while kit.try_write(page).is_ok() {
        page += 1;
    }
    let reserve = kit.free(Place::RAM);
    for i in 0..100 {
        // Back by a touch, from the reserve, and unmapped: what it leaves behind is no user's.
        kit.check(i, 1);
        kit.space.space().unmap(range(i, 1)).expect("nothing is needed for this");
        assert_eq!(kit.try_write(page), Err(FaultError::Oom(at(page))), "after {i} rounds");
    }
    // Descriptors may take a frame of it for good.
    assert!(kit.free(Place::RAM) + 2 >= reserve, "{} of {reserve} are left", kit.free(Place::RAM));
    kit.audit();
}

#[test]
fn a_page_that_another_cpu_has_in_its_cache_is_not_out_of_reach() {
    for place in [Place::RAM, DEV] {
        let kit = Kit::on(&Config { cpus: 2, ..Config::default() });
        drop(exhaust(&kit, place, Order::BASE, Need::Reserve));
        kit.machine.cpu.set(1);
        let held = exhaust(&kit, place, Order::BASE, Need::Reserve);
        assert_eq!(kit.free(place), 0, "{place}: pages stay in the cache of a CPU that has no use for them");
        drop(held);
        kit.audit();
    }
}

#[test]
fn zero_pages_are_shared_and_not_counted() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.map(512, 4, Small);
    assert_eq!(fault(&kit, 7, Access::Read), Ok(FaultOutcome::ZeroPage(Order::PMD)));
    assert_eq!(fault(&kit, 512, Access::Read), Ok(FaultOutcome::ZeroPage(Order::BASE)));
    assert_eq!(kit.machine.mm.folios_in_use(), 0);
    assert_eq!(kit.try_read(7), Ok(0));
    kit.audit();
    assert_eq!(fault(&kit, 7, Access::Write), Ok(FaultOutcome::Allocated(Order::PMD)));
    assert_eq!(fault(&kit, 512, Access::Write), Ok(FaultOutcome::Allocated(Order::BASE)));
    assert_eq!(kit.machine.flushed(FlushReason::CopyOnWrite), 2);
    kit.audit();
}

#[test]
fn zero_pages_are_holes_to_a_migration() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.map(512, 4, Small);
    kit.try_read(7).expect("the zero folio");
    kit.try_read(512).expect("the zero page");
    let report = migrate(&kit, 0, 516, DEV);
    assert_eq!((report.holes, report.failed_pages()), (516, 0));
    assert_eq!(kit.machine.flushed(FlushReason::ZeroReplaced), 1, "one round for both");
    assert_eq!((kit.try_read(7), kit.try_read(512)), (Ok(0), Ok(0)));
    kit.audit();
}

#[test]
fn without_memory_for_a_huge_copy_of_zeros_small_pages_are_taken() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.try_read(7).expect("the zero folio");
    let held = exhaust(&kit, Place::RAM, Order::PMD, Need::Reserve);
    kit.fill(7, 1);
    assert_eq!(level(&kit, 7), Level::Pte);
    assert_eq!(kit.try_read(8), Ok(0));
    drop(held);
    kit.check(7, 1);
    kit.audit();
}

#[test]
fn a_fault_on_what_is_there_is_spurious() {
    let kit = Kit::new();
    kit.map(0, 4, Small);
    kit.fill(0, 1);
    assert_eq!(fault(&kit, 0, Access::Write), Ok(FaultOutcome::Spurious));
    assert_eq!(fault(&kit, 9, Access::Read), Err(FaultError::NoVma(at(9))));
    assert_eq!(fault(&kit, 0, Access::Exec), Err(FaultError::Access(at(0), Access::Exec)));
    let reserved = FaultInfo { bits: FaultBits::RSVD, ..FaultInfo::new(at(0), Access::Read) };
    assert_eq!(kit.space.space().handle_fault(&reserved), Err(FaultError::Reserved(at(0))));
    kit.audit();
}

#[test]
fn a_pinned_page_stays_and_says_so() {
    let kit = Kit::new();
    kit.map(0, 4, Small);
    kit.fill(0, 4);
    let (_, Entry::Leaf(leaf)) = kit.space.entry_at(at(1)) else { panic!("page 1 is mapped") };
    let pin = kit.machine.mm.try_get_folio(leaf.frame).expect("it has a folio");
    let report = migrate(&kit, 0, 4, DEV);
    assert_eq!((report.pages, report.failed[Cause::Pinned as usize]), (3, 1));
    assert!(is_on(&kit, 1, Place::RAM));
    drop(pin);
    kit.check_in_place(0, 4);
    kit.audit();
}

#[test]
fn a_failed_copy_leaves_its_page_where_it_was() {
    for late_copies in [false, true] {
        let kit = Kit::on(&Config { late_copies, ..Config::default() });
        kit.map(0, 512, Huge);
        kit.map(512, 40, Small);
        kit.fill(0, 552);
        kit.machine.fail_copies(2, 3);
        let report = migrate(&kit, 0, 552, DEV);
        assert_eq!(report.failed[Cause::CopyFailed as usize], 3);
        kit.check_in_place(0, 552);
        kit.audit();
        kit.machine.fail_copies(0, 1);
        assert_eq!(fault(&kit, 3, Access::Read), Err(FaultError::Device(at(3))));
        kit.check(0, 552);
        kit.audit();
    }
}

/// One unit of each kind is collected, the migration goes on for `phases` phases and is parked, the space ends, and only
/// then the migration does.
fn space_ends_meanwhile(phases: u32, finish: bool, reuse: bool) {
    let Kit { space, machine } = {
        let kit = Kit::new();
        kit.map(0, 1024, Huge);
        kit.map(1024, 8, Small);
        kit.fill(0, 512);
        kit.fill(1024, 4);
        kit
    };
    let (parked, _) = space.space().migrate_collect(range(0, 1032), DEV).expect("memory for the work");
    machine.mmu.borrow_mut().unload(0);
    let mut recycled = Vec::new();
    let end = || {
        drop(space);
        if reuse {
            // What were its tables are somebody's pages now, with anything in them.
            while let Ok(folio) = machine.mm.alloc_folio(Place::RAM, Order::BASE, Need::Reserve) {
                let words = machine.state().table(folio.frame().index());
                words.iter().for_each(|word| word.store(!0, core::sync::atomic::Ordering::Relaxed));
                recycled.push(folio);
            }
        }
    };
    match (phases, finish) {
        (0, true) => {
            end();
            parked.unmap().copy().commit().finalize();
        }
        (0, false) => {
            end();
            drop(parked);
        }
        (1, _) => {
            let parked = parked.unmap();
            end();
            if finish {
                let _ = parked.copy().commit().finalize();
            } else {
                drop(parked);
            }
        }
        (2, _) => {
            let parked = parked.unmap().copy();
            end();
            if finish {
                let _ = parked.commit().finalize();
            } else {
                drop(parked);
            }
        }
        _ => {
            let parked = parked.unmap().copy().commit();
            end();
            if finish {
                let _ = parked.finalize();
            } else {
                drop(parked);
            }
        }
    }
    drop(recycled);
    assert_eq!(machine.mm.folios_in_use(), 0);
    machine.mm.audit().unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_space_may_end_while_its_pages_are_on_their_way() {
    for phases in 0..4 {
        for finish in [false, true] {
            space_ends_meanwhile(phases, finish, false);
        }
    }
}

#[test]
fn a_migration_does_not_look_into_tables_of_a_space_that_is_gone() {
    for phases in 0..4 {
        for finish in [false, true] {
            space_ends_meanwhile(phases, finish, true);
        }
    }
}

#[test]
fn counters_of_a_device_add_up() {
    let kit = Kit::new();
    kit.map(0, 1024, Huge);
    kit.fill(0, 1024);
    migrate(&kit, 0, 1024, DEV);
    kit.check(0, 1);
    kit.space.space().unmap(range(600, 424)).expect("memory for the split");
    let c = |event| kit.machine.counted(event);
    assert_eq!(c(Event::DevicePagesIn), 1024);
    assert_eq!(c(Event::DevicePagesOut), 512);
    assert_eq!(c(Event::DevicePagesDropped), 424);
    assert_eq!(kit.machine.mm.device(0).stat().resident, 88);
    kit.audit();
}
