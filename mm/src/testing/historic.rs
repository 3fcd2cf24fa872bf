//! Twenty mistakes that were made elsewhere on the way to huge pages on devices, by the first release or by drivers; one test
//! each, of what the mistake would have changed. `docs/TESTING.md` says how each was put in and what noticed it.

use core::cell::Cell;
use std::rc::Rc;

use crate::Advice;
use crate::counters::Event;
use crate::entry::{Attrs, Entry, SoftKind, SoftLeaf, word};
use crate::fault::{FaultInfo, FaultOutcome};
use crate::folio::{FolioRef, LockedFolio};
use crate::inject::Site;
use crate::machine::Machine;
use crate::migrate::{Cause, MigrateOptions, Verdict};
use crate::remap::{RemapFlags, RemapTarget};
use crate::space::{AddressSpace, Space};
use crate::testing::clone::{fork, read, write};
use crate::testing::kinds::{Kind, Setup, all};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, Soft, one};
use crate::testing::migrate_gaps::{hold, lock};
use crate::testing::migrate_options::migrate;
use crate::types::{Access, Frame, Level, Order, PAGE_SIZE, Place, Prot};
use crate::vma::HugeAdvice::{self, Default as Small, Huge};
use crate::zone::Need;

const LEVELS: [(Level, HugeAdvice); 2] = [(Level::Pmd, Huge), (Level::Pte, Small)];

/// Pages 0..512, written, and on the device if `place` says so.
fn filled(advice: HugeAdvice, place: Place) -> Kit {
    let kit = Kit::new();
    kit.map(0, 512, advice);
    kit.fill(0, 512);
    if !place.is_ram() {
        let report = kit.space.space().migrate(range(0, 512), place).expect("it is mapped");
        assert_eq!((report.pages, report.failed_pages()), (512, 0));
    }
    kit
}

/// Takes one page of every 2 MiB of `place`, so that no huge page is free.
fn fragment(kit: &Kit, place: Place) -> Vec<FolioRef<Soft>> {
    let next = || kit.machine.mm.alloc_folio(place, Order::BASE, Need::Reserve).ok();
    let mut held: Vec<_> = core::iter::from_fn(next).collect();
    held.retain(|folio| folio.frame().index() % 512 == 1);
    kit.machine.mm.zone(place).drain();
    held
}

fn frame(space: &Space<Soft>, page: u64) -> Frame {
    let (level, entry) = space.entry_at(at(page));
    let first = match entry {
        Entry::Leaf(leaf) => leaf.frame,
        Entry::NonPresent(soft) => soft.frame,
        other => panic!("page {page} is {other:?}"),
    };
    first.offset(page as u32 & (level.order().pages() - 1))
}

fn kind(space: &Space<Soft>, page: u64) -> Option<SoftKind> {
    match space.entry_at(at(page)).1 {
        Entry::NonPresent(soft) => Some(soft.kind),
        _ => None,
    }
}

/// Whether it worked is not the question.
fn ignore<T>(_: T) {}

fn move_to(space: &'static Space<Soft>, start: u64, len: u64, to: u64) {
    let target = RemapTarget { addr: at(to), len: len * PAGE_SIZE };
    space.remap(range(start, len), target, RemapFlags::empty()).expect("memory");
}

#[test]
fn h01_an_aborted_insert_gives_back_its_lock() {
    for (_, advice) in LEVELS {
        let kit = Kit::new();
        kit.map(0, 512, advice);
        let (holes, _) = kit.space.space().migrate_collect(range(0, 512), DEV).expect("memory for the work");
        let copied = holes.unmap().copy();
        kit.fill(0, 512);
        let report = copied.commit().finalize();
        if !kit.machine.at_rest() {
            core::mem::forget(kit); // its end would wait for the lock for ever
            panic!("a table is still locked");
        }
        assert_eq!((report.pages, report.failed[Cause::Raced as usize]), (0, 512));
        kit.check(0, 512);
        kit.audit();
        assert_eq!(kit.free(DEV), 8 * 512);
    }
}

#[test]
fn h02_an_aborted_insert_gives_back_its_table() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.map(1024, 1, Small);
    kit.fill(1024, 1); // the upper tables are there
    let held = fragment(&kit, DEV);
    let free = kit.free(DEV);
    let (hole, _) = kit.space.space().migrate_collect(range(0, 512), DEV).expect("memory for the work");
    let tables = kit.machine.mm.tables.live();
    let copied = hole.unmap().copy();
    assert_eq!(kit.machine.mm.tables.live(), tables + 1, "one for the pieces");
    kit.fill(0, 512);
    let report = copied.commit().finalize();
    assert_eq!((report.pages, report.failed[Cause::Raced as usize]), (0, 512));
    assert_eq!(kit.space.entry_at(at(0)).0, Level::Pmd, "the touch needed none");
    assert_eq!(kit.machine.mm.tables.live(), tables);
    assert_eq!(kit.free(DEV), free);
    drop(held);
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn h03_who_meets_a_migration_entry_unlocks_nothing() {
    for (level, _) in LEVELS {
        for (kind, to) in [(Kind::Migration, DEV), (Kind::Returning, Place::RAM)] {
            let mut setup = Setup::new(kind, level);
            let report = setup.kit.space.space().migrate(range(0, 512), to).expect("it is mapped");
            assert_eq!((report.pages, report.failed[Cause::Busy as usize]), (0, 512));
            assert!(setup.kit.machine.at_rest());
            for page in [0, 5, 511] {
                assert!(hold(&setup.kit, page).is_locked(), "{kind:?} {level:?}: by the one that is parked");
                assert!(setup.is(page, kind));
            }
            setup.finish();
            assert!(!hold(&setup.kit, 5).is_locked());
            setup.kit.check(0, 512);
            setup.kit.audit();
        }
    }
}

#[test]
fn h04_no_question_to_a_present_entry_is_answered_by_another() {
    let kinds = [SoftKind::Migration, SoftKind::DevicePrivate, SoftKind::DeviceExclusive, SoftKind::ProtNone];
    for kind in kinds {
        for place in [Place::RAM, DEV] {
            let attrs = Attrs::SOFT_DIRTY | Attrs::YOUNG | Attrs::EXCLUSIVE;
            let soft = Entry::NonPresent(SoftLeaf::new(kind, Frame::new(place, 1024), attrs));
            for level in [Level::Pmd, Level::Pte] {
                let bits = soft.encode(level);
                assert_eq!(Entry::decode(bits, level), soft);
                assert_eq!(word::plain_ram(bits), None, "{soft:?} is no leaf");
                assert!(Entry::try_decode(bits | 1, level).is_err(), "nor one that was made present");
            }
        }
    }
    // What was read as permission to write was soft-dirty, in an entry that was read-only and shared.
    for (level, advice) in LEVELS {
        let kit = filled(advice, DEV);
        let child = fork(&kit);
        let entry = || kit.space.entry_at(at(9));
        let (was, Entry::NonPresent(shared)) = entry() else { panic!("it is on the device") };
        assert_eq!(was, level);
        assert!(shared.attrs.contains(Attrs::SOFT_DIRTY) && !shared.attrs.contains(Attrs::WRITE));
        let parked = kit.space.space().migrate_collect(range(0, 512), Place::RAM).expect("memory");
        let moving = SoftLeaf { kind: SoftKind::Migration, ..shared };
        assert_eq!(entry(), (level, Entry::NonPresent(moving)), "the same attributes");
        parked.0.unmap().copy().commit().finalize();
        write(&kit, &kit.space, 9, 1);
        assert_eq!((read(&kit, &child, 9), read(&kit, &kit.space, 9)), (Kit::value(9), 1));
        kit.audit();
    }
}

#[test]
fn h05_a_walk_leaves_what_is_not_of_the_folio() {
    for (level, advice) in LEVELS {
        for own_on_device in [false, true] {
            let kit = filled(advice, Place::RAM);
            // The walk comes by the page's namesake before it has found all: the last clone stands first.
            let [other, own] = [fork(&kit), fork(&kit)];
            write(&kit, &own, 3, 77);
            let pages = if level == Level::Pmd { range(0, 512) } else { range(3, 1) };
            if own_on_device {
                own.space().migrate(pages, DEV).expect("it is mapped");
            }
            let before = own.entry_at(at(3));
            assert_eq!(before.0, level);
            let report = kit.space.space().migrate(pages, DEV).expect("it is mapped");
            assert_eq!(report.failed_pages(), 0, "{report:?}");
            assert_eq!(own.entry_at(at(3)), before, "another page at the same address");
            assert_eq!(frame(&other, 3), frame(&kit.space, 3), "the same page at the same address");
            assert_eq!(frame(&kit.space, 3).place(), DEV);
            kit.audit();
            assert_eq!(read(&kit, &own, 3), 77);
            assert_eq!(read(&kit, &other, 3), Kit::value(3));
            kit.check(0, 512);
            kit.audit();
        }
    }
}

#[test]
fn h06_a_walk_for_migration_entries_takes_no_entry_of_another_kind() {
    for (level, advice) in LEVELS {
        let kit = filled(advice, DEV);
        let child = fork(&kit);
        let (parked, _) = child.space().migrate_collect(range(0, 512), Place::RAM).expect("memory");
        // The walk comes by the parent's entries, which name the same frames, before it finds the child's.
        move_to(child.space(), 0, 512, 1024);
        let before = kit.space.entry_at(at(7));
        assert_eq!((before.0, kind(&kit.space, 7)), (level, Some(SoftKind::DevicePrivate)));
        let folio = hold(&kit, 7);
        let maps = folio.map_count();
        drop(parked);
        assert_eq!(kit.space.entry_at(at(7)), before);
        assert_eq!(kind(&child, 1024 + 7), Some(SoftKind::DevicePrivate), "put back where it is now");
        assert_eq!((folio.map_count(), folio.migration_entries()), (maps + 1, 0), "the child's came back");
        drop(folio);
        kit.audit();
        assert_eq!(read(&kit, &child, 1024 + 7), Kit::value(7));
        kit.check(0, 512);
        kit.audit();
    }
}

#[test]
fn h07_a_change_of_protection_keeps_write_protection_by_a_tracker() {
    for (kind, level) in all().filter(|(kind, _)| kind.has_data() && *kind != Kind::Exclusive) {
        let mut setup = Setup::new(kind, level);
        let space = setup.kit.space.space();
        space.write_protect(range(0, 512), true).expect("memory");
        for prot in [Prot::READ, Prot::RW, Prot::empty(), Prot::RW] {
            space.protect(range(0, 512), prot).expect("it is mapped");
            let attrs = setup.attrs(100);
            assert!(attrs.contains(Attrs::UFFD_WP), "{kind:?} {level:?} {prot:?}");
            assert!(!attrs.contains(Attrs::WRITE), "{kind:?} {level:?} {prot:?}");
        }
        setup.finish();
        assert!(setup.attrs(100).contains(Attrs::UFFD_WP), "{kind:?} {level:?}");
        setup.check(0, 512);
    }
}

#[test]
fn h08_young_and_dirty_are_those_of_the_entry_that_moved() {
    for (level, advice) in LEVELS {
        for clean in [false, true] {
            let kit = filled(advice, Place::RAM);
            let space = kit.space.space();
            if clean {
                space.advise(range(0, 512), Advice::Free).expect("it is mapped");
            }
            let attrs = || crate::testing::kinds::attrs_of(kit.space.entry_at(at(11)).1);
            let before = attrs();
            assert_eq!(before.contains(Attrs::YOUNG | Attrs::DIRTY), !clean);
            for to in [DEV, Place::RAM, DEV, Place::RAM] {
                space.migrate(range(0, 512), to).expect("it is mapped");
                assert_eq!(attrs(), before, "{level:?}, clean {clean}, to {to}");
            }
            kit.check(0, 512);
            kit.audit();
        }
    }
}

#[test]
fn h09_memory_that_is_used_again_at_another_order_remembers_nothing() {
    let kit = filled(Huge, DEV);
    let folio = hold(&kit, 0);
    folio.set_dirty();
    folio.set_driver_word(7);
    drop(folio);
    kit.space.space().unmap(range(0, 512)).expect("it is mapped");
    let mm = &kit.machine.mm;
    for (order, count) in [(Order::BASE, 8 * 512), (Order::PMD, 8), (Order::new(3), 512)] {
        let take = |_| mm.alloc_folio(DEV, order, Need::User).expect("all of it is free");
        let taken: Vec<_> = (0..count).map(take).collect();
        for folio in &taken {
            let counts = (folio.refs(), folio.map_count(), folio.migration_entries());
            assert_eq!((folio.order(), counts), (order, (1, 0, 0)));
            assert!(!folio.is_dirty() && !folio.is_locked() && !folio.is_resident() && !folio.is_partial());
            assert_eq!(folio.driver_word(), 0);
            let last = folio.frame().offset(order.pages() - 1);
            assert_eq!(mm.try_get_folio(last).map(|found| found.frame()), Some(folio.frame()));
            folio.set_dirty();
            folio.set_driver_word(9);
        }
        drop(taken);
    }
    kit.audit();
}

#[test]
fn h10_what_a_driver_is_told_to_free_is_neither_known_nor_free_yet() {
    let frees: [fn(&Kit); 4] = [
        |kit| kit.space.space().unmap(range(0, 512)).expect("it is mapped"),
        |kit| ignore(kit.space.space().migrate(range(0, 512), Place::RAM)),
        |kit| assert_eq!(kit.try_read(0), Ok(Kit::value(0))),
        |kit| ignore(kit.machine.mm.evict_range(DEV, 0..8 * 512)),
    ];
    for (i, free) in frees.iter().enumerate() {
        for (pages, advice) in [(512, Huge), (1, Small)] {
            let kit = Kit::new();
            kit.map(0, 512, advice);
            kit.fill(0, pages);
            kit.space.space().migrate(range(0, pages), DEV).expect("it is mapped");
            let before = kit.free(DEV);
            let told = Rc::new(Cell::new(0));
            let note = told.clone();
            *kit.machine.on_free.borrow_mut() = Some(Box::new(move |first, order| {
                note.set(note.get() + order.pages());
                assert_eq!(Soft::mm().zone(DEV).stat().free, before, "way {i}: it may be somebody else's");
                assert!(Soft::mm().try_get_folio(first).is_none(), "way {i}: its folio is still there");
            }));
            free(&kit);
            *kit.machine.on_free.borrow_mut() = None;
            assert_eq!((u64::from(told.get()), kit.free(DEV)), (pages, 8 * 512), "way {i}");
            kit.audit();
        }
    }
}

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
fn h13_a_migration_entry_is_found_where_it_has_moved_to() {
    for kind in [Kind::Migration, Kind::Returning] {
        for (level, _) in LEVELS {
            for to in [1024, 1024 + 128] {
                for finish in [true, false] {
                    let mut setup = Setup::new(kind, level);
                    move_to(setup.kit.space.space(), 0, 512, to);
                    if finish {
                        setup.finish();
                    } else {
                        setup.give_up();
                    }
                    let on_device = finish == (kind == Kind::Migration);
                    let now = if on_device { Kind::Device } else { Kind::Present };
                    for page in 0..512 {
                        assert!(
                            setup.is(to + page, now),
                            "{kind:?} {level:?} page {page}, finished {finish}"
                        );
                    }
                    assert_eq!(setup.kit.try_read(to + 9), Ok(Kit::value(9)));
                    setup.kit.audit();
                }
            }
        }
    }
}

#[test]
fn h14_a_walker_takes_no_entry_for_a_migration_because_it_is_not_present() {
    for (kind, level) in all() {
        let mut setup = Setup::new(kind, level);
        let space = setup.kit.space.space();
        let mut kept = 0;
        let mut note = |word: crate::PagemapEntry| match word.kept() {
            Some((SoftKind::Migration, _)) => assert!(matches!(kind, Kind::Migration | Kind::Returning)),
            Some((SoftKind::DevicePrivate, _)) => assert_eq!(kind, Kind::Device),
            Some((SoftKind::DeviceExclusive, _)) => assert_eq!(kind, Kind::Exclusive),
            Some((SoftKind::ProtNone, _)) | None => kept += 1,
        };
        space.pagemap(range(0, 512), |_, word| note(word)).expect("a range");
        let present = matches!(kind, Kind::Present | Kind::Zero | Kind::ProtNone);
        assert_eq!(kept, if present { 512 } else { 0 }, "{kind:?} {level:?}");
        for advice in [Advice::Cold, Advice::PageOut, Advice::Free] {
            space.advise(range(0, 512), advice).expect("it is mapped");
            space.advise(range(20, 30), advice).expect("it is mapped");
        }
        assert!(setup.is(300, kind) || kind == Kind::Exclusive, "{kind:?} {level:?}: {:?}", setup.entry(300));
        space.for_each_run(|_| {});
        ignore((space.collapse(range(0, 512)), space.merge_device(range(0, 512))));
        setup.check(0, 512);
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
fn h16_the_pieces_of_a_split_are_counted_in_and_out() {
    let kit = filled(Huge, DEV);
    let device = kit.machine.mm.device(0);
    let space = kit.space.space();
    space.unmap(range(100, 50)).expect("memory for the split");
    let folios = device.folios();
    assert_eq!((device.stat().resident, folios.pages()), (462, 462), "by count and by the frame map");
    assert!(folios.folios() > 2 && device.stat().splits > 0);
    assert_eq!(device.stat().pages_dropped, 50);
    kit.check(200, 1);
    let left = device.stat().out.pages();
    assert!(left > 0);
    space.unmap(range(0, 100)).expect("it is mapped");
    space.unmap(range(150, 362)).expect("it is mapped");
    let stat = device.stat();
    assert_eq!((stat.resident, device.folios().folios(), stat.freed_pages), (0, 0, 512));
    assert_eq!(stat.pages_dropped + left, stat.pages_in, "all that came has left or was dropped");
    assert_eq!(kit.machine.freed_pages.get(), 512, "the driver has heard of each page once");
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
fn h19_a_huge_page_moves_though_others_map_it_in_pieces() {
    let kit = filled(Huge, Place::RAM);
    let children: [AddressSpace<Soft>; 3] = core::array::from_fn(|_| fork(&kit));
    children[0].space().protect(range(0, 100), Prot::READ).expect("memory for a table");
    children[2].space().protect(range(511, 1), Prot::READ).expect("memory for a table");
    let levels = [Level::Pte, Level::Pmd, Level::Pte];
    for to in [DEV, Place::RAM] {
        let report = kit.space.space().migrate(range(0, 512), to).expect("it is mapped");
        assert_eq!((report.units, report.huge_pages, report.failed_pages()), (1, 512, 0), "{report:?}");
        assert_eq!((kit.space.entry_at(at(0)).0, frame(&kit.space, 0).place()), (Level::Pmd, to));
        for (child, level) in children.iter().zip(levels) {
            assert_eq!(child.entry_at(at(0)).0, level, "a mapping keeps its shape");
            for page in [0, 99, 100, 511] {
                assert_eq!(frame(child, page), frame(&kit.space, page));
            }
        }
        kit.audit();
    }
    children.iter().for_each(|child| assert_eq!(read(&kit, child, 300), Kit::value(300)));
    kit.check(0, 512);
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
