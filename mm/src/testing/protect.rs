//! `protect`: every kind of entry at both levels.

use crate::entry::Attrs;
use crate::error::{FaultError, RangeError};
use crate::inject::Site;
use crate::machine::FlushReason;
use crate::testing::kinds::{Kind, Setup, all};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::types::{Access, Level, Place, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};

const NONE: Prot = Prot::empty();
const READ: Prot = Prot::READ;

fn protect(kit: &Kit, start: u64, len: u64, prot: Prot) {
    kit.space.space().protect(range(start, len), prot).expect("all of it is mapped");
}

fn vmas(kit: &Kit) -> Vec<(u64, u64, Prot)> {
    let mut all = Vec::new();
    kit.space.for_each_vma(|vma| {
        let page = |addr: u64| (addr - at(0).0) / 4096;
        all.push((page(vma.range().start.0), page(vma.range().end.0), vma.prot()));
    });
    all
}

#[test]
fn read_only_takes_the_write_from_every_kind_and_nothing_else() {
    for (kind, level) in all() {
        let mut setup = Setup::new(kind, level);
        let (before, flushes) = (setup.attrs(7), setup.flushes());
        protect(&setup.kit, 0, 512, READ);
        assert_eq!(setup.entry(7).0, level, "{kind:?} {level:?}: nothing is split");
        let expected = match kind {
            Kind::Exclusive | Kind::ProtNone => Kind::Present, // what was lent comes back; what was hidden is seen
            kind => kind,
        };
        assert!(setup.is(7, expected), "{kind:?} {level:?} became {:?}", setup.entry(7));
        assert_eq!(setup.attrs(7), before - Attrs::WRITE - Attrs::NO_ACCESS, "{kind:?} {level:?}");
        let rounds = match kind {
            Kind::Present => 1,
            Kind::Migration => setup.flushes() - flushes, // its own, which is owed
            _ => 0,
        };
        assert_eq!(setup.flushes() - flushes, rounds, "{kind:?} {level:?}");
        setup.finish();
        assert_eq!(
            setup.kit.try_write(7),
            Err(FaultError::Access(at(7), Access::Write)),
            "{kind:?} {level:?}: never writable again by coming back"
        );
        assert!(setup.kit.try_read(7).is_ok());
        setup.check(0, 512);
    }
}

#[test]
fn writing_is_allowed_again_with_one_more_fault_at_most() {
    for (kind, level) in all() {
        let mut setup = Setup::new(kind, level);
        protect(&setup.kit, 0, 512, READ);
        let flushes = setup.flushes();
        protect(&setup.kit, 0, 512, Prot::RW);
        assert_eq!(setup.flushes(), flushes, "{kind:?} {level:?}: more permission needs no flush");
        if matches!(kind, Kind::Device | Kind::Migration | Kind::Returning) {
            assert!(!setup.attrs(7).contains(Attrs::WRITE), "{kind:?}: only a fault grants it");
        }
        setup.finish();
        let faults = setup.kit.space.stat().faults;
        setup.kit.try_write(7).expect("it is writable");
        assert!(setup.kit.space.stat().faults - faults <= 2, "{kind:?} {level:?}");
        setup.check(0, if kind == Kind::Zero { 0 } else { 512 });
    }
}

#[test]
fn nothing_is_present_without_access_and_all_of_it_comes_back() {
    for (kind, level) in all() {
        let mut setup = Setup::new(kind, level);
        let (before, flushes) = (setup.attrs(9), setup.flushes());
        protect(&setup.kit, 0, 512, NONE);
        if kind == Kind::Zero {
            assert_eq!(setup.entry(9).1, crate::entry::Entry::None, "a zero page can be had again");
        } else {
            let expected = match kind {
                Kind::Present | Kind::Exclusive => Kind::ProtNone,
                kind => kind,
            };
            assert!(setup.is(9, expected), "{kind:?} {level:?} became {:?}", setup.entry(9));
            assert_eq!(setup.attrs(9), (before - Attrs::WRITE) | Attrs::NO_ACCESS, "{kind:?} {level:?}");
        }
        if kind.is_present() {
            assert_eq!(setup.flushes() - flushes, 1, "{kind:?} {level:?}: one round");
        }
        assert!(setup.kit.try_read(9).is_err());
        // What is under way arrives hidden.
        setup.finish();
        assert!(!setup.is(9, Kind::Present), "{kind:?} {level:?}: {:?}", setup.entry(9));
        assert!(setup.kit.try_read(9).is_err());
        setup.check(0, 512);
        let flushes = setup.flushes();
        protect(&setup.kit, 0, 512, Prot::RW);
        assert_eq!(setup.flushes(), flushes, "{kind:?} {level:?}: it was not present");
        setup.kit.audit();
        if kind.has_data() {
            setup.kit.check(0, 512);
        } else {
            assert_eq!(setup.kit.try_read(9), Ok(0));
        }
        setup.kit.try_write(9).expect("it is writable");
        setup.kit.audit();
    }
}

#[test]
fn a_migration_that_is_given_up_restores_what_the_mapping_allows_now() {
    for kind in [Kind::Migration, Kind::Returning] {
        for level in [Level::Pmd, Level::Pte] {
            for prot in [NONE, READ] {
                let mut setup = Setup::new(kind, level);
                protect(&setup.kit, 0, 512, prot);
                setup.give_up();
                assert!(!setup.attrs(3).contains(Attrs::WRITE));
                assert_eq!(setup.attrs(3).contains(Attrs::NO_ACCESS), prot == NONE);
                setup.check(0, 512);
            }
        }
    }
}

#[test]
fn huge_entries_are_cut_at_both_ends_and_stay_of_their_kind() {
    for kind in Kind::ALL {
        for (start, len) in [(0, 256), (256, 256), (100, 56), (0, 1), (511, 1), (3, 500)] {
            let mut setup = Setup::new(kind, Level::Pmd);
            let had_write = setup.attrs(0).contains(Attrs::WRITE);
            let flushes = setup.flushes();
            let prot = if kind == Kind::ProtNone { Prot::RW } else { READ };
            protect(&setup.kit, start, len, prot);
            for page in 0..512 {
                let inside = (start..start + len).contains(&page);
                assert_eq!(setup.entry(page).0, Level::Pte);
                if kind == Kind::ProtNone {
                    assert_eq!(setup.is(page, Kind::ProtNone), !inside, "page {page}");
                } else {
                    let write = setup.attrs(page).contains(Attrs::WRITE);
                    assert_eq!(write, had_write && !inside, "{kind:?}: page {page} of {start}+{len}");
                }
            }
            if kind == Kind::Device {
                assert_eq!(setup.flushes(), flushes, "a page on a device is in no TLB");
            }
            setup.check(0, 512);
        }
    }
}

#[test]
fn a_range_of_many_small_pages_is_one_flush_round() {
    let kit = Kit::new();
    kit.map(0, 1024, Small);
    kit.fill(0, 1024);
    for prot in [READ, NONE] {
        let before = kit.machine.flushed(FlushReason::Protect);
        protect(&kit, 10, 1000, prot);
        assert_eq!(kit.machine.flushed(FlushReason::Protect) - before, 1);
        kit.audit();
    }
}

#[test]
fn fetches_come_and_go() {
    for (kind, level) in all() {
        let mut setup = Setup::new(kind, level);
        let exec = |setup: &Setup| setup.attrs(5).contains(Attrs::EXEC);
        protect(&setup.kit, 0, 512, READ | Prot::EXEC);
        assert!(exec(&setup), "{kind:?} {level:?}: no fault would grant it");
        let flushes = setup.flushes();
        protect(&setup.kit, 0, 512, READ);
        assert!(!exec(&setup), "{kind:?} {level:?}");
        let now_present = setup.is(5, Kind::Present) || setup.is(5, Kind::Zero);
        if kind != Kind::Migration {
            assert_eq!(setup.flushes() - flushes, u64::from(now_present), "{kind:?} {level:?}");
        }
        setup.check(0, 512);
    }
}

#[test]
fn it_goes_as_far_as_the_first_hole() {
    let kit = Kit::new();
    kit.map(0, 10, Small);
    kit.map(20, 10, Small);
    kit.fill(0, 10);
    kit.fill(20, 10);
    let space = kit.space.space();
    assert_eq!(space.protect(range(15, 10), READ), Err(RangeError::NotMapped(at(15))));
    assert_eq!(vmas(&kit), [(0, 10, Prot::RW), (20, 30, Prot::RW)], "nothing before the hole, nothing done");
    assert_eq!(space.protect(range(5, 20), READ), Err(RangeError::NotMapped(at(10))));
    assert_eq!(vmas(&kit), [(0, 5, Prot::RW), (5, 10, READ), (20, 30, Prot::RW)]);
    assert!(kit.try_write(4).is_ok() && kit.try_write(6).is_err() && kit.try_write(22).is_ok());
    let unaligned = crate::types::VaRange::new(at(0).0 + 5, 4096);
    assert_eq!(space.protect(unaligned, READ), Err(RangeError::Invalid(unaligned)));
    kit.audit();
}

#[test]
fn mappings_are_cut_and_join_again() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    protect(&kit, 100, 100, READ);
    assert_eq!(vmas(&kit), [(0, 100, Prot::RW), (100, 200, READ), (200, 512, Prot::RW)]);
    protect(&kit, 150, 200, READ);
    assert_eq!(vmas(&kit), [(0, 100, Prot::RW), (100, 350, READ), (350, 512, Prot::RW)]);
    kit.audit();
    protect(&kit, 0, 512, READ);
    assert_eq!(vmas(&kit), [(0, 512, READ)]);
    protect(&kit, 0, 512, Prot::RW);
    assert_eq!(vmas(&kit), [(0, 512, Prot::RW)]);
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn a_neighbour_of_the_same_kind_is_one_mapping() {
    let kit = Kit::new();
    kit.map(0, 10, Small);
    kit.map(10, 10, Small);
    assert_eq!(vmas(&kit), [(0, 20, Prot::RW)]);
    kit.fill(0, 20);
    kit.space.space().unmap(range(5, 5)).expect("memory");
    assert_eq!(vmas(&kit), [(0, 5, Prot::RW), (10, 20, Prot::RW)]);
    kit.map(5, 5, Small);
    assert_eq!(vmas(&kit), [(0, 20, Prot::RW)], "the hole is closed");
    assert_eq!(kit.try_read(7), Ok(0));
    kit.map(20, 10, Huge);
    assert_eq!(vmas(&kit).len(), 2, "other advice, another mapping");
    kit.check(10, 10);
    kit.audit();
}

#[test]
fn out_of_memory_changes_nothing() {
    for (kind, level) in all() {
        for n in 0.. {
            let mut setup = Setup::new(kind, level);
            let before: Vec<_> = [0, 150, 511].map(|page| setup.entry(page)).into();
            setup.kit.machine.mm.inject.arm(Site::ALL, 0, n, u64::MAX);
            let result = setup.kit.space.space().protect(range(100, 300), READ);
            let asked = setup.kit.machine.mm.inject.disarm();
            if result.is_err() {
                assert!(matches!(result, Err(RangeError::Oom(_))), "{kind:?}: {result:?}");
                assert_eq!(vmas(&setup.kit).len(), 1);
                let after: Vec<_> = [0, 150, 511].map(|page| setup.entry(page)).into();
                assert_eq!(before, after, "{kind:?} {level:?}, allocation {n}");
            } else {
                assert_eq!(vmas(&setup.kit).len(), 3);
            }
            setup.check(0, 512);
            if asked <= n {
                break;
            }
        }
    }
}

#[test]
fn a_page_that_was_hidden_can_move_once_it_is_seen_again() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    let space = kit.space.space();
    space.migrate(range(0, 512), DEV).expect("it is mapped");
    protect(&kit, 0, 512, NONE);
    assert!(matches!(space.migrate(range(0, 512), Place::RAM), Err(RangeError::NotMigratable(_))));
    protect(&kit, 0, 512, Prot::RW);
    let report = space.migrate(range(0, 512), Place::RAM).expect("it is mapped");
    assert_eq!((report.pages, report.huge_pages), (512, 512));
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn what_is_open_for_reading_only_never_becomes_writable() {
    let kit = Kit::new();
    let file = crate::object::Object::file(8).expect("memory");
    let space = kit.space.space();
    let map = |start, prot| space.map_shared_read_only(range(start, 8), prot, &file, 0);
    map(0, Prot::READ).expect("nothing is in the way");
    assert!(matches!(map(100, Prot::RW), Err(RangeError::Invalid(_))));
    assert_eq!(space.protect(range(2, 2), Prot::RW), Err(RangeError::Access(at(0))));
    space.protect(range(2, 2), Prot::empty()).expect("less is fine");
    assert_eq!(
        space.protect(range(2, 2), Prot::RW),
        Err(RangeError::Access(at(2))),
        "and it stays so in parts"
    );
    space.protect(range(0, 8), Prot::READ).expect("back to what it was");
    kit.machine.mm.audit().expect("all is counted");
}
