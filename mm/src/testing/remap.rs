//! `remap`: every kind of entry at both levels, to every alignment.

use crate::entry::{Attrs, Entry};
use crate::error::RangeError;
use crate::inject::Site;
use crate::machine::FlushReason;
use crate::remap::{RemapFlags, RemapTarget};
use crate::testing::kinds::{Kind, Setup, all, attrs_of};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::types::{Level, Place, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};

const MOVE: RemapFlags = RemapFlags::empty();
const KEEP: RemapFlags = RemapFlags::KEEP_OLD;

fn remap(
    kit: &Kit,
    (start, len): (u64, u64),
    (to, to_len): (u64, u64),
    flags: RemapFlags,
) -> Result<(), RangeError> {
    kit.space.space().remap(range(start, len), RemapTarget { addr: at(to), len: to_len * 4096 }, flags)
}

/// Pages `from..from + len` are found at `to`, wherever they lie, and are not touched.
fn check_at(kit: &Kit, from: u64, to: u64, len: u64) {
    for page in 0..len {
        let (level, entry) = kit.space.entry_at(at(to + page));
        let frame = match entry {
            Entry::Leaf(leaf) if !leaf.special => leaf.frame,
            Entry::NonPresent(soft) => soft.frame,
            _ => panic!("page {page}, now {}: {entry:?}", to + page),
        };
        let frame = frame.offset((to + page) as u32 & (level.order().pages() - 1));
        let found = kit.machine.data(frame)[0].get();
        assert_eq!(found, Kit::value(from + page), "page {page}, now {}: {entry:?}", to + page);
    }
}

/// As [`check_at`], by the program that owns them.
fn read_at(kit: &Kit, from: u64, to: u64, len: u64) {
    check_at(kit, from, to, len);
    for page in 0..len {
        assert_eq!(kit.try_read(to + page), Ok(Kit::value(from + page)), "page {page}, now {}", to + page);
    }
}

fn vmas(kit: &Kit) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    let page = |addr: u64| (addr - at(0).0) / 4096;
    kit.space.for_each_vma(|vma| all.push((page(vma.range().start.0), page(vma.range().end.0))));
    all
}

#[test]
fn every_kind_moves_to_every_alignment() {
    for (kind, level) in all() {
        for to in [1024, 1024 + 128, 1024 + 256, 1024 + 511, 600] {
            for flags in [MOVE, KEEP] {
                let mut setup = Setup::new(kind, level);
                let case = format!("{kind:?} {level:?} to {to} {flags:?}");
                let before = setup.attrs(77);
                remap(&setup.kit, (0, 512), (to, 512), flags).expect("memory");
                for page in 0..512 {
                    let now = setup.kit.space.entry_at(at(to + page)).1;
                    assert!(setup.is(to + page, kind), "{case}: page {page} became {now:?}");
                    assert_eq!(setup.entry(page).1, Entry::None, "{case}: nothing is left behind");
                }
                assert_eq!(setup.attrs(to + 77), before | Attrs::SOFT_DIRTY, "{case}");
                let whole = level == Level::Pmd && to % 512 == 0;
                assert_eq!(setup.entry(to).0 == Level::Pmd, whole, "{case}: a whole page stays whole");
                setup.finish();
                setup.kit.audit();
                let places: &[(u64, u64)] =
                    if flags == KEEP { &[(0, 512), (to, to + 512)] } else { &[(to, to + 512)] };
                assert_eq!(vmas(&setup.kit), places, "{case}");
                if kind == Kind::ProtNone {
                    let space = setup.kit.space.space();
                    space.protect(range(to, 512), Prot::RW).expect("it is mapped");
                }
                match kind {
                    Kind::Zero => assert_eq!(setup.kit.try_read(to + 5), Ok(0)),
                    _ => read_at(&setup.kit, 0, to, 512),
                }
                if flags == KEEP && kind != Kind::ProtNone {
                    assert_eq!(setup.kit.try_read(5), Ok(0), "{case}: the old mapping is empty");
                }
                setup.kit.audit();
            }
        }
    }
}

#[test]
fn only_what_was_present_is_flushed_and_once() {
    for (kind, level) in all() {
        for to in [1024, 1024 + 100] {
            let setup = Setup::new(kind, level);
            let before = setup.kit.machine.flushed(FlushReason::Remap);
            let all_before = setup.flushes();
            remap(&setup.kit, (0, 512), (to, 512), MOVE).expect("memory");
            let rounds = setup.kit.machine.flushed(FlushReason::Remap) - before;
            let tables = level == Level::Pte || to % 512 != 0; // a table that moved, or is gone
            assert_eq!(rounds, u64::from(kind.is_present() || tables), "{kind:?} {level:?} to {to}");
            if kind == Kind::Device && !tables {
                assert_eq!(setup.flushes(), all_before, "a page on a device is in no TLB");
            }
        }
    }
}

#[test]
fn before_or_after_a_migration_the_data_is_there() {
    for huge in [true, false] {
        for to in [1024, 1024 + 128, 1024 + 256] {
            for flags in [MOVE, KEEP] {
                for early in [true, false] {
                    let kit = Kit::new();
                    kit.map(0, 512, if huge { Huge } else { Small });
                    kit.fill(0, 512);
                    let space = kit.space.space();
                    if early {
                        remap(&kit, (0, 512), (to, 512), flags).expect("memory");
                    }
                    let at_now = if early { to } else { 0 };
                    space.migrate(range(at_now, 512), DEV).expect("it is mapped");
                    if !early {
                        remap(&kit, (0, 512), (to, 512), flags).expect("memory");
                    }
                    kit.audit();
                    read_at(&kit, 0, to, 512);
                    kit.audit();
                    assert_eq!(kit.free(DEV), 8 * 512);
                }
            }
        }
    }
}

#[test]
fn a_part_moves_and_the_rest_stays() {
    for level_huge in [true, false] {
        for on_device in [true, false] {
            for (start, len, to) in
                [(0, 256, 1024), (100, 50, 1124), (256, 256, 1500), (511, 1, 1030), (3, 500, 2047)]
            {
                let kit = Kit::new();
                kit.map(0, 512, if level_huge { Huge } else { Small });
                kit.fill(0, 512);
                if on_device {
                    kit.space.space().migrate(range(0, 512), DEV).expect("it is mapped");
                }
                remap(&kit, (start, len), (to, len), MOVE).expect("memory");
                kit.audit();
                read_at(&kit, start, to, len);
                read_at(&kit, 0, 0, start);
                read_at(&kit, start + len, start + len, 512 - start - len);
                assert!(kit.try_read(start).is_err());
                kit.audit();
            }
        }
    }
}

#[test]
fn a_page_moves_within_its_table() {
    let kit = Kit::new();
    kit.map(0, 20, Small);
    kit.fill(0, 20);
    remap(&kit, (3, 8), (100, 8), MOVE).expect("memory");
    kit.audit();
    read_at(&kit, 3, 100, 8);
    remap(&kit, (100, 8), (3, 8), MOVE).expect("memory");
    assert_eq!(vmas(&kit), [(0, 20)], "back home it is one mapping again");
    kit.check(0, 20);
    kit.audit();
}

#[test]
fn many_tables_move_in_one_flush_round() {
    for to in [2048, 2048 + 17] {
        let kit = Kit::new();
        kit.map(0, 1536, Small);
        kit.fill(0, 1536);
        let flushes = kit.machine.counted(crate::counters::Event::TlbFlush);
        remap(&kit, (0, 1536), (to, 1536), MOVE).expect("memory");
        assert_eq!(kit.machine.counted(crate::counters::Event::TlbFlush) - flushes, 1);
        kit.audit();
        read_at(&kit, 0, to, 1536);
        kit.audit();
    }
}

#[test]
fn what_is_at_the_target_goes() {
    for (to, huge) in [(1024, true), (1124, true), (1024, false), (1124, false)] {
        for on_device in [true, false] {
            let kit = Kit::new();
            kit.map(0, 512, if huge { Huge } else { Small });
            kit.map(1024, 1024, if huge { Huge } else { Small });
            kit.fill(0, 512);
            kit.fill(1024, 1024);
            if on_device {
                kit.space.space().migrate(range(0, 512), DEV).expect("it is mapped");
                kit.space.space().migrate(range(1024, 1024), DEV).expect("it is mapped");
            }
            remap(&kit, (0, 512), (to, 512), MOVE).expect("memory");
            kit.audit();
            read_at(&kit, 0, to, 512);
            read_at(&kit, 1024, 1024, to - 1024);
            read_at(&kit, to + 512, to + 512, 1024 + 1024 - to - 512);
            kit.audit();
        }
    }
}

#[test]
fn mappings_shrink_and_grow() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    kit.map(600, 10, Small);
    // In place.
    remap(&kit, (0, 512), (0, 300), MOVE).expect("memory");
    assert_eq!(vmas(&kit), [(0, 300), (600, 610)]);
    remap(&kit, (200, 100), (200, 150), MOVE).expect("there is room");
    assert_eq!(vmas(&kit), [(0, 350), (600, 610)]);
    assert_eq!(remap(&kit, (0, 350), (0, 605), MOVE), Err(RangeError::Exists(range(350, 255))));
    assert_eq!(kit.try_read(320), Ok(0), "what is new is empty");
    kit.check(0, 300);
    // Elsewhere.
    remap(&kit, (0, 350), (1024, 700), MOVE).expect("memory");
    assert_eq!(vmas(&kit), [(600, 610), (1024, 1724)]);
    check_at(&kit, 0, 1024, 300);
    assert_eq!(kit.try_read(1700), Ok(0));
    remap(&kit, (1024, 700), (2048 + 50, 10), MOVE).expect("memory");
    assert_eq!(vmas(&kit), [(600, 610), (2098, 2108)]);
    check_at(&kit, 0, 2098, 10);
    kit.audit();
}

#[test]
fn what_makes_no_sense_is_refused() {
    let kit = Kit::new();
    kit.map(0, 10, Small);
    kit.map(10, 10, Huge);
    assert_eq!(remap(&kit, (5, 10), (100, 10), MOVE), Err(RangeError::NotMapped(at(10))), "two mappings");
    assert_eq!(remap(&kit, (30, 1), (100, 1), MOVE), Err(RangeError::NotMapped(at(30))));
    assert_eq!(remap(&kit, (0, 5), (3, 5), MOVE), Err(RangeError::Invalid(range(3, 5))), "overlap");
    assert_eq!(remap(&kit, (0, 5), (100, 6), KEEP), Err(RangeError::Invalid(range(100, 6))));
    assert_eq!(vmas(&kit), [(0, 10), (10, 20)]);
    kit.audit();
}

#[test]
fn out_of_memory_changes_nothing() {
    for (kind, level) in all() {
        for to in [1024, 1024 + 128] {
            for n in 0.. {
                let mut setup = Setup::new(kind, level);
                setup.kit.map(to + 100, 300, Huge);
                setup.kit.fill(to + 100, 3);
                let before = setup.entry(99);
                setup.kit.machine.mm.inject.arm(Site::ALL, 0, n, u64::MAX);
                let result = remap(&setup.kit, (0, 400), (to, 400), MOVE);
                let asked = setup.kit.machine.mm.inject.disarm();
                if result.is_err() {
                    assert!(matches!(result, Err(RangeError::Oom(_))), "{kind:?}: {result:?}");
                    assert_eq!(setup.entry(99), before, "{kind:?} {level:?} to {to}, allocation {n}");
                    check_at(&setup.kit, to + 100, to + 100, 3);
                    setup.check(0, 0);
                } else {
                    assert!(setup.is(to + 99, kind));
                    setup.check(0, 0);
                }
                if asked <= n {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_parked_migration_finds_what_moved_or_gives_it_back_there() {
    for kind in [Kind::Migration, Kind::Returning] {
        for level in [Level::Pmd, Level::Pte] {
            for to in [1024, 1024 + 128] {
                for finish in [true, false] {
                    let mut setup = Setup::new(kind, level);
                    remap(&setup.kit, (0, 512), (to, 512), MOVE).expect("memory");
                    if finish {
                        setup.finish();
                    } else {
                        setup.give_up();
                    }
                    setup.kit.audit();
                    let there = attrs_of(setup.entry(to + 300).1);
                    assert!(there.contains(Attrs::SOFT_DIRTY | Attrs::WRITE | Attrs::EXCLUSIVE));
                    read_at(&setup.kit, 0, to, 512);
                    setup.kit.audit();
                }
            }
        }
    }
}

#[test]
fn a_folio_that_spans_two_tables_can_move_and_go() {
    for on_device in [true, false] {
        let kit = Kit::new();
        kit.map(0, 512, Huge);
        kit.fill(0, 512);
        let space = kit.space.space();
        if on_device {
            space.migrate(range(0, 512), DEV).expect("it is mapped");
        }
        remap(&kit, (0, 512), (1024 + 200, 512), MOVE).expect("memory");
        for place in [DEV, Place::RAM, DEV] {
            space.migrate(range(1224, 512), place).expect("it is mapped");
            kit.audit();
        }
        read_at(&kit, 0, 1224, 512);
        space.unmap(range(1224 + 100, 300)).expect("memory");
        kit.audit();
        read_at(&kit, 0, 1224, 100);
    }
}
