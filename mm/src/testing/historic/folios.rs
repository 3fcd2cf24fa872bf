//! Folios, and the memory of tables and descriptors.

use core::cell::Cell;
use std::rc::Rc;

use crate::machine::Machine;
use crate::migrate::Cause;
use crate::space::AddressSpace;
use crate::testing::clone::{fork, read};
use crate::testing::historic::{LEVELS, filled, fragment, frame, ignore};
use crate::testing::kinds::{Kind, Setup};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::Soft;
use crate::testing::migrate_gaps::hold;
use crate::types::{Level, Order, Place, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};
use crate::zone::Need;

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
