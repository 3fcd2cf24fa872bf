//! Entries: what is asked of them, what a walk takes, what they keep.

use crate::Advice;
use crate::entry::{Attrs, Entry, SoftKind, SoftLeaf, word};
use crate::testing::clone::{fork, read, write};
use crate::testing::historic::{LEVELS, filled, frame, ignore, kind, move_to};
use crate::testing::kinds::{Kind, Setup, all};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::migrate_gaps::hold;
use crate::types::{Frame, Level, Place, Prot};

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
