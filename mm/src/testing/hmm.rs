//! Range fault and snapshot: every kind of entry at both levels.

use crate::counters::Event;
use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf};
use crate::hmm::{HmmError, HmmPfn, HmmWant, RangeFault};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, Soft};
use crate::types::{Frame, Level, Order, Place, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};

const DEV1: Place = Place::device(1);

fn kit() -> Kit {
    Kit::on(&Config { devices: vec![8 * 512; 2], ..Config::default() })
}

fn ask(kit: &Kit, start: u64, len: u64, want: HmmWant) -> Result<Vec<HmmPfn>, HmmError> {
    let mut out = vec![HmmPfn::NONE; len as usize];
    let request =
        RangeFault { range: range(start, len), want, per_page: false, owner: Some(DEV), under: None };
    kit.space.space().range_fault(&request, &mut out)?;
    Ok(out)
}

fn snapshot(kit: &Kit, start: u64, len: u64) -> Vec<HmmPfn> {
    let faults = kit.machine.counted(Event::PgFault);
    let found = ask(kit, start, len, HmmWant::empty()).expect("a snapshot refuses nothing");
    assert_eq!(kit.machine.counted(Event::PgFault), faults, "a snapshot does not fault");
    found
}

fn entry(kit: &Kit, page: u64) -> (Level, Frame, Attrs) {
    match kit.space.entry_at(at(page)) {
        (level, Entry::Leaf(leaf)) => (level, leaf.frame, leaf.attrs),
        (level, Entry::NonPresent(soft)) => (level, soft.frame, soft.attrs),
        other => panic!("page {page} is {other:?}"),
    }
}

fn migrate(kit: &Kit, start: u64, len: u64, to: Place) {
    kit.space.space().migrate(range(start, len), to).expect("all of it is mapped");
}

/// Changes the attributes of an entry by hand.
fn set_attrs(kit: &Kit, page: u64, change: impl Fn(Attrs) -> Attrs) {
    let mut cursor = kit.space.space().cursor(at(page)).expect("a table");
    match cursor.entry() {
        Entry::NonPresent(soft) => {
            cursor.replace_soft(Entry::NonPresent(SoftLeaf { attrs: change(soft.attrs), ..soft }));
        }
        Entry::Leaf(leaf) => {
            drop(cursor.clear_leaf());
            cursor.install(Entry::Leaf(Leaf { attrs: change(leaf.attrs), ..leaf }));
        }
        other => panic!("page {page} is {other:?}"),
    }
}

#[test]
fn a_huge_page_is_reported_page_by_page_wherever_the_walk_begins() {
    let kit = kit();
    kit.map(0, 1024, Huge);
    kit.fill(0, 512);
    kit.fill(512, 1);
    migrate(&kit, 512, 512, DEV);
    for (base, place) in [(0, Place::RAM), (512, DEV)] {
        let (level, head, _) = entry(&kit, base);
        assert_eq!((level, head.place()), (Level::Pmd, place));
        for start in [0, 1, 37, 480, 511] {
            for (i, pfn) in snapshot(&kit, base + start, (512 - start).min(32)).into_iter().enumerate() {
                assert_eq!(
                    pfn.frame(),
                    Some(head.offset(start as u32 + i as u32)),
                    "{place}, from {start}, page {i}"
                );
                assert!(pfn.is_writable() && pfn.map_order() == Order::PMD && !pfn.is_zero());
            }
        }
    }
    // Over the border between the two.
    let both = snapshot(&kit, 500, 24);
    assert_eq!(both[12].frame(), Some(entry(&kit, 512).1));
    kit.audit();
}

#[test]
fn what_is_not_there_is_not_there_and_what_nobody_may_have_is_an_error() {
    let kit = kit();
    kit.map(0, 16, Small);
    kit.fill(0, 2);
    let space = kit.space.space();
    kit.try_read(2).expect("the zero page");
    space.protect(range(4, 1), Prot::empty()).expect("mapped");
    space.unmap(range(5, 1)).expect("memory");
    space.protect(range(1, 1), Prot::READ).expect("mapped");
    let found = snapshot(&kit, 0, 8);
    assert!(found[0].is_writable() && found[0].map_order() == Order::BASE);
    assert!(found[1].is_valid() && !found[1].is_writable());
    assert!(found[2].is_zero() && !found[2].is_writable());
    assert!(!found[3].is_valid() && !found[3].is_error(), "a hole");
    assert!(found[4].is_error() && found[5].is_error());
    assert!(!found[6].is_valid() && !found[6].is_error());
    assert_eq!(ask(&kit, 0, 8, HmmWant::FAULT), Err(HmmError::Fault(at(4))));
    assert_eq!(ask(&kit, 5, 1, HmmWant::FAULT), Err(HmmError::Fault(at(5))));
    assert_eq!(ask(&kit, 1, 1, HmmWant::WRITE), Err(HmmError::Perm(at(1))));
    assert!(ask(&kit, 1, 1, HmmWant::FAULT).is_ok());
    kit.audit();
}

#[test]
fn only_what_is_wanted_is_faulted_in() {
    let kit = kit();
    kit.map(0, 8, Small);
    let found = ask(&kit, 0, 2, HmmWant::FAULT).expect("memory");
    assert!(found.iter().all(|pfn| pfn.is_zero() && !pfn.is_writable()));
    let mut out =
        [HmmPfn::NONE, HmmPfn::wanting(HmmWant::WRITE), HmmPfn::NONE, HmmPfn::wanting(HmmWant::FAULT)];
    let request =
        RangeFault { range: range(0, 4), want: HmmWant::empty(), per_page: true, owner: None, under: None };
    kit.space.space().range_fault(&request, &mut out).expect("memory");
    assert!(out[0].is_zero() && out[1].is_writable() && !out[2].is_valid() && out[3].is_zero());
    assert!(out[1].is_written(), "a write is noted before it is granted");
    kit.audit();
}

#[test]
fn foreign_pages_come_back_at_both_levels_and_are_nothing_to_a_snapshot() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.map(512, 4, Small);
    kit.fill(0, 516);
    migrate(&kit, 0, 516, DEV1);
    assert!(snapshot(&kit, 3, 4).iter().chain(&snapshot(&kit, 512, 4)).all(|pfn| *pfn == HmmPfn::NONE));
    for (page, order) in [(3, Order::PMD), (512, Order::BASE)] {
        let found = ask(&kit, page, 2, HmmWant::FAULT).expect("memory");
        assert!(
            found
                .iter()
                .all(|pfn| pfn.frame().is_some_and(|f| f.place().is_ram()) && pfn.map_order() == order)
        );
    }
    assert_eq!(entry(&kit, 514).1.place(), DEV1, "not asked for");
    kit.check(0, 516);
    kit.audit();
}

#[test]
fn own_pages_stay_and_a_write_is_granted_where_nobody_shares_them() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.map(512, 2, Small);
    kit.fill(0, 514);
    migrate(&kit, 0, 514, DEV);
    let faults = kit.machine.counted(Event::PgFault);
    for page in [5, 512] {
        // As after a protection that took the write and gave it back, and a tracker that cleared its mark.
        set_attrs(&kit, page, |attrs| attrs - Attrs::WRITE - Attrs::SOFT_DIRTY);
        let found = ask(&kit, page, 1, HmmWant::FAULT).expect("it is there")[0];
        assert!(!found.is_writable() && found.frame().is_some_and(|f| f.place() == DEV));
        let found = ask(&kit, page, 1, HmmWant::WRITE).expect("it is its own")[0];
        assert!(found.is_writable() && found.is_written() && found.frame().is_some_and(|f| f.place() == DEV));
        assert!(entry(&kit, page).2.contains(Attrs::WRITE | Attrs::DIRTY | Attrs::SOFT_DIRTY));
    }
    assert_eq!(kit.machine.counted(Event::PgFault), faults);
    // Marks without permission: a write that was allowed all along.
    set_attrs(&kit, 513, |attrs| attrs - Attrs::DIRTY - Attrs::SOFT_DIRTY);
    let found = snapshot(&kit, 513, 1)[0];
    assert!(found.is_writable() && !found.is_written());
    assert!(ask(&kit, 513, 1, HmmWant::WRITE).expect("it is its own")[0].is_written());
    kit.check(0, 514);
    kit.audit();
}

#[test]
fn a_write_to_an_own_page_that_is_shared_or_tracked_is_a_proper_fault() {
    for tracked in [false, true] {
        let kit = kit();
        kit.map(0, 4, Small);
        kit.fill(0, 4);
        migrate(&kit, 0, 4, DEV);
        if tracked {
            kit.space.space().write_protect(range(1, 1), true).expect("mapped");
        } else {
            set_attrs(&kit, 1, |attrs| attrs - Attrs::EXCLUSIVE - Attrs::WRITE);
        }
        assert_eq!(entry(&kit, 1).2.contains(Attrs::UFFD_WP), tracked);
        assert!(!snapshot(&kit, 1, 1)[0].is_writable());
        let faults = kit.machine.counted(Event::PgFault);
        let found = ask(&kit, 1, 1, HmmWant::WRITE).expect("memory")[0];
        assert!(kit.machine.counted(Event::PgFault) > faults, "tracked: {tracked}");
        assert!(found.is_writable() && found.frame().is_some_and(|f| f.place().is_ram()));
        let attrs = entry(&kit, 1).2;
        assert!(
            attrs.contains(Attrs::WRITE | Attrs::DIRTY | Attrs::SOFT_DIRTY)
                && !attrs.contains(Attrs::UFFD_WP)
        );
        assert_eq!(entry(&kit, 2).1.place(), DEV, "not asked for");
        kit.check(0, 4);
        kit.audit();
    }
}

#[test]
fn a_page_on_its_way_is_nothing_to_a_snapshot() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.map(512, 4, Small);
    kit.fill(0, 516);
    let (migration, _) = kit.space.space().migrate_collect(range(0, 516), DEV).expect("mapped");
    assert!(snapshot(&kit, 7, 2).iter().chain(&snapshot(&kit, 512, 4)).all(|pfn| *pfn == HmmPfn::NONE));
    drop(migration);
    assert!(snapshot(&kit, 0, 516).iter().all(|pfn| pfn.is_writable()));
    kit.audit();
}

#[test]
fn a_fault_waits_for_a_page_on_its_way_and_looks_again() {
    // To the device and back, whole and given up, at both levels.
    for (page, to, gives_up) in [0, 512].into_iter().flat_map(|page| {
        [(page, DEV, false), (page, DEV1, false), (page, DEV, true), (page, Place::RAM, false)]
    }) {
        let kit = kit();
        kit.map(0, 512, Huge);
        kit.map(512, 4, Small);
        kit.fill(0, 516);
        if to.is_ram() {
            migrate(&kit, 0, 516, DEV1);
        }
        let (migration, _) = kit.space.space().migrate_collect(range(0, 516), to).expect("mapped");
        let (level, entry_now) = kit.space.entry_at(at(page));
        assert_eq!(level, if page == 0 { Level::Pmd } else { Level::Pte });
        assert!(matches!(entry_now, Entry::NonPresent(s) if s.kind == SoftKind::Migration));
        assert_eq!(snapshot(&kit, page, 1), [HmmPfn::NONE], "a snapshot does not wait");
        let mut parked = Some(migration);
        *kit.machine.on_wait.borrow_mut() = Some(Box::new(move || match parked.take() {
            Some(migration) if gives_up => drop(migration),
            Some(migration) => {
                let _report = migration.unmap().copy().commit().finalize();
            }
            None => panic!("it is waited for once"),
        }));
        let faults = kit.machine.counted(Event::PgFault);
        let found = ask(&kit, page + 1, 2, HmmWant::FAULT).expect("memory");
        assert!(kit.machine.on_wait.borrow().is_none(), "it slept");
        // What went to another device comes back, by a touch; everything else is found where it is now.
        let stays = if to == DEV && !gives_up { DEV } else { Place::RAM };
        assert!(
            found.iter().all(|pfn| pfn.frame().is_some_and(|f| f.place() == stays)),
            "{page}, {to}: {found:?}"
        );
        let touches = kit.machine.counted(Event::PgFault) - faults;
        assert_eq!(
            touches,
            if to != DEV1 {
                0
            } else if page == 0 {
                1
            } else {
                2
            }
        );
        kit.check_in_place(0, 516);
        kit.audit();
    }
}

#[test]
fn a_fault_under_a_sequence_number_that_waited_begins_again() {
    for page in [0, 512] {
        let kit = kit();
        kit.map(0, 512, Huge);
        kit.map(512, 4, Small);
        kit.fill(0, 516);
        let space = kit.space.space();
        let mirror = crate::mirror::MirrorRef::<Soft>::new(space, DEV).expect("memory");
        let (migration, _) = space.migrate_collect(range(0, 516), DEV).expect("mapped");
        let mut parked = Some(migration);
        *kit.machine.on_wait.borrow_mut() = Some(Box::new(move || {
            let _report = parked.take().expect("once").unmap().copy().commit().finalize();
        }));
        assert_eq!(mirror.entry(at(page)), None);
        mirror.fault(range(page, 2), HmmWant::FAULT).expect("memory");
        assert!(mirror.entry(at(page + 1)).is_some_and(|e| e.frame.place() == DEV), "found where it arrived");
        kit.audit();
    }
}

#[test]
fn a_lent_page_is_nothing_to_a_snapshot_and_comes_back_to_a_fault() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.map(512, 4, Small);
    kit.fill(0, 516);
    let space = kit.space.space();
    for page in [0, 512] {
        drop(space.make_exclusive(at(page), DEV1).expect("memory"));
        assert!(
            matches!(kit.space.entry_at(at(page)).1, Entry::NonPresent(s) if s.kind == SoftKind::DeviceExclusive)
        );
        assert_eq!(snapshot(&kit, page, 1)[0], HmmPfn::NONE);
        assert!(ask(&kit, page, 1, HmmWant::FAULT).expect("memory")[0].is_writable());
    }
    kit.check(0, 516);
    kit.audit();
}

#[test]
fn memory_failures_are_values_and_a_moved_sequence_is_busy() {
    let kit = kit();
    kit.map(0, 4, Small);
    kit.machine.mm.inject.arm(crate::inject::Site::RamFolio as u32, 0, 0, u64::MAX);
    assert_eq!(ask(&kit, 0, 2, HmmWant::WRITE), Err(HmmError::Oom(at(0))));
    kit.machine.mm.inject.disarm();
    struct Deaf;
    impl crate::notifier::NotifierOps<Soft> for Deaf {
        fn invalidate(&self, _: crate::types::VaRange, _: crate::notifier::NotifyEvent) {}
    }
    let notifier = kit.space.space().register_notifier(range(0, 4), &Deaf).expect("memory");
    let count = notifier.read_begin().expect("it lives");
    kit.try_read(1).expect("the zero page");
    let mut out = [HmmPfn::NONE; 2];
    let request = RangeFault {
        range: range(0, 2),
        want: HmmWant::WRITE,
        per_page: false,
        owner: None,
        under: Some((&notifier, count)),
    };
    // The zero page gives way to another: what was found before is stale.
    assert_eq!(kit.space.space().range_fault(&request, &mut out), Err(HmmError::Busy));
    let count = notifier.read_begin().expect("it lives");
    let request = RangeFault { under: Some((&notifier, count)), ..request };
    assert_eq!(kit.space.space().range_fault(&request, &mut out), Ok(()));
    assert!(out.iter().all(|pfn| pfn.is_writable()));
    drop(notifier);
    kit.audit();
}
