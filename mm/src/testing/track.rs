//! What was written, by soft-dirty and by uffd-wp, and how `pagemap` shows it: every kind of entry at both levels.

use crate::entry::{Attrs, Entry, SoftKind};
use crate::error::RangeError;
use crate::inject::Site;
use crate::machine::FlushReason;
use crate::pagemap::PagemapEntry;
use crate::remap::{RemapFlags, RemapTarget};
use crate::testing::kinds::{Kind, Setup, all};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::types::{Level, Place, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};

fn pagemap(kit: &Kit, start: u64, len: u64) -> Vec<PagemapEntry> {
    let mut all = Vec::new();
    let note = |addr, word| {
        assert_eq!(addr, at(start + all.len() as u64), "in order, none left out");
        all.push(word);
    };
    kit.space.space().pagemap(range(start, len), note).expect("a range");
    assert_eq!(all.len() as u64, len);
    all
}

fn clear(kit: &Kit, start: u64, len: u64) {
    kit.space.space().clear_soft_dirty(range(start, len)).expect("memory");
}

fn track(kit: &Kit, start: u64, len: u64) {
    kit.space.space().write_protect(range(start, len), true).expect("memory");
}

/// The pages of 0..512 for which `is`.
fn those(kit: &Kit, is: impl Fn(PagemapEntry) -> bool) -> Vec<u64> {
    (0..512).zip(pagemap(kit, 0, 512)).filter(|(_, word)| is(*word)).map(|(page, _)| page).collect()
}

/// Where a tracked page may go before it is looked at again.
fn journey(kit: &Kit) {
    let space = kit.space.space();
    for place in [DEV, Place::RAM, DEV] {
        let report = space.migrate(range(0, 512), place).expect("it is mapped");
        assert_eq!(report.failed_pages(), 0, "{report:?}");
    }
}

#[test]
fn pagemap_tells_each_page_of_every_kind() {
    for (kind, level) in all() {
        let mut setup = Setup::new(kind, level);
        for (page, word) in pagemap(&setup.kit, 0, 512).into_iter().enumerate() {
            let (level, entry) = setup.entry(page as u64);
            let index = if level == Level::Pmd { page as u32 } else { 0 };
            let case = format!("{kind:?} {level:?} page {page}: {word:?}");
            assert_eq!(word.raw() >> 58 & 7, 0, "{case}");
            assert!(!word.is_file() && !word.is_uffd_wp(), "{case}");
            assert_eq!(word.is_soft_dirty(), kind != Kind::Zero, "{case}");
            match entry {
                Entry::Leaf(leaf) => {
                    assert_eq!(word.pfn(), Some(u64::from(leaf.frame.offset(index).index())), "{case}");
                    assert!(word.is_present() && word.kept().is_none(), "{case}");
                    assert_eq!(word.is_exclusive(), kind != Kind::Zero, "{case}");
                }
                Entry::NonPresent(soft) if soft.kind == SoftKind::ProtNone => {
                    assert_eq!(word.pfn(), Some(u64::from(soft.frame.offset(index).index())), "{case}");
                    assert!(word.is_present() && !word.is_swapped(), "{case}");
                }
                Entry::NonPresent(soft) => {
                    assert!(!word.is_present() && word.is_swapped() && word.is_exclusive(), "{case}");
                    assert_eq!(word.kept(), Some((soft.kind, soft.frame.offset(index))), "{case}");
                    assert_eq!(word.pfn(), None, "{case}");
                }
                other => panic!("{case}: {other:?}"),
            }
        }
        setup.check(0, 512);
    }
}

#[test]
fn pagemap_begins_anywhere_and_shows_holes() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    kit.map(512, 200, Small);
    kit.fill(600, 1);
    kit.space.space().migrate(range(0, 512), DEV).expect("it is mapped");
    let all = pagemap(&kit, 0, 2000);
    for start in [1, 63, 64, 100, 511, 513, 600, 601] {
        assert_eq!(pagemap(&kit, start, 700), all[start as usize..start as usize + 700], "from {start}");
    }
    assert!(all[511].is_swapped() && all[600].is_present());
    assert_eq!(all[601..].iter().filter(|word| word.raw() != 0).count(), 0);
    // A whole gigabyte without a table, and its end.
    assert_eq!(pagemap(&kit, 3 << 18, 5), [PagemapEntry::default(); 5]);
    kit.audit();
}

#[test]
fn a_new_period_begins_clean_and_a_write_is_noted() {
    for (kind, level) in all() {
        let mut setup = Setup::new(kind, level);
        let flushes = setup.flushes();
        clear(&setup.kit, 0, 512);
        assert_eq!(those(&setup.kit, PagemapEntry::is_soft_dirty), [], "{kind:?} {level:?}");
        assert!(!setup.attrs(5).contains(Attrs::WRITE), "{kind:?}: no write may go unseen");
        let own = u64::from(kind == Kind::Present);
        if kind != Kind::Migration {
            assert_eq!(setup.flushes() - flushes, own, "{kind:?} {level:?}");
        }
        setup.finish();
        if kind == Kind::ProtNone {
            setup.kit.space.space().protect(range(0, 512), Prot::RW).expect("memory");
        }
        setup.kit.audit();
        assert!(setup.kit.try_read(7).is_ok());
        assert_eq!(
            those(&setup.kit, PagemapEntry::is_soft_dirty),
            [],
            "{kind:?} {level:?}: a read is no write"
        );
        setup.kit.try_write(7).expect("it is writable");
        let written = those(&setup.kit, PagemapEntry::is_soft_dirty);
        let expected: Vec<u64> = if setup.entry(7).0 == Level::Pmd { (0..512).collect() } else { vec![7] };
        assert_eq!(written, expected, "{kind:?} {level:?}");
        setup.check(0, 512);
    }
}

#[test]
fn soft_dirty_goes_along_and_nobody_loses_a_write_on_the_way() {
    for huge in [true, false] {
        let kit = Kit::new();
        kit.map(0, 512, if huge { Huge } else { Small });
        kit.fill(0, 512);
        // Dirty, on a journey.
        journey(&kit);
        assert_eq!(those(&kit, PagemapEntry::is_soft_dirty).len(), 512);
        // Clean, on the device, and back; then a write.
        clear(&kit, 0, 512);
        kit.check(0, 1);
        assert_eq!(those(&kit, PagemapEntry::is_soft_dirty), []);
        kit.try_write(0).expect("it is writable");
        assert!(those(&kit, PagemapEntry::is_soft_dirty).contains(&0));
        // A hole that a migration has filled may be written without a fault when it comes back: it counts as written.
        kit.map(1024, 4, Small);
        kit.space.space().migrate(range(1024, 4), DEV).expect("it is mapped");
        kit.check_in_place(0, 512);
        assert!(pagemap(&kit, 1024, 4).iter().all(|word| word.is_soft_dirty()));
        kit.audit();
    }
}

#[test]
fn only_the_range_is_cleared() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    let before = kit.machine.flushed(FlushReason::Protect);
    clear(&kit, 100, 50);
    assert_eq!(kit.machine.flushed(FlushReason::Protect) - before, 1, "one round");
    let expected: Vec<u64> = (0..100).chain(150..512).collect();
    assert_eq!(those(&kit, PagemapEntry::is_soft_dirty), expected);
    // Holes and what nobody maps are no error.
    clear(&kit, 0, 3000);
    assert_eq!(those(&kit, PagemapEntry::is_soft_dirty), []);
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn moved_mappings_are_soft_dirty() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    clear(&kit, 0, 512);
    let target = RemapTarget { addr: at(1024), len: 512 * 4096 };
    kit.space.space().remap(range(0, 512), target, RemapFlags::empty()).expect("memory");
    assert!(pagemap(&kit, 1024, 512).iter().all(|word| word.is_soft_dirty()));
    kit.audit();
}

#[test]
fn a_write_ends_write_protection_and_nothing_else_does() {
    for (kind, level) in all() {
        let mut setup = Setup::new(kind, level);
        let flushes = setup.flushes();
        track(&setup.kit, 0, 512);
        assert_eq!(those(&setup.kit, PagemapEntry::is_uffd_wp).len(), 512, "{kind:?} {level:?}");
        assert!(!setup.attrs(5).contains(Attrs::WRITE));
        if kind != Kind::Migration {
            assert_eq!(setup.flushes() - flushes, u64::from(kind == Kind::Present), "{kind:?} {level:?}");
        }
        setup.finish();
        let space = setup.kit.space.space();
        if kind == Kind::ProtNone {
            space.protect(range(0, 512), Prot::RW).expect("memory");
        }
        setup.kit.audit();
        for page in [7, 8, 300] {
            assert!(setup.kit.try_read(page).is_ok());
        }
        assert_eq!(those(&setup.kit, PagemapEntry::is_uffd_wp).len(), 512, "{kind:?}: a read keeps it");
        assert!(!setup.attrs(7).contains(Attrs::WRITE), "{kind:?}: and it stays unwritable");
        setup.kit.try_write(7).expect("it is writable");
        assert_eq!(setup.kit.try_read(7), Ok(Kit::value(7)));
        let left = those(&setup.kit, PagemapEntry::is_uffd_wp);
        if setup.entry(7).0 == Level::Pmd {
            assert_eq!(left, [], "{kind:?} {level:?}");
        } else {
            assert!(!left.contains(&7) && left.contains(&8), "{kind:?} {level:?}");
        }
        setup.check(0, 512);
        space.write_protect(range(0, 512), false).expect("memory");
        assert_eq!(those(&setup.kit, PagemapEntry::is_uffd_wp), []);
        setup.kit.audit();
    }
}

#[test]
fn a_page_on_a_device_that_a_write_brings_back_is_not_protected_any_more() {
    for level in [Level::Pmd, Level::Pte] {
        let setup = Setup::new(Kind::Device, level);
        track(&setup.kit, 0, 512);
        setup.kit.try_write(7).expect("it is writable");
        assert!(setup.is(7, Kind::Present));
        assert!(!setup.attrs(7).contains(Attrs::UFFD_WP) && setup.attrs(7).contains(Attrs::WRITE));
        if level == Level::Pte {
            assert!(setup.is(8, Kind::Device) && setup.attrs(8).contains(Attrs::UFFD_WP));
        }
        setup.kit.audit();
    }
}

#[test]
fn write_protection_goes_along() {
    for huge in [true, false] {
        let kit = Kit::new();
        kit.map(0, 512, if huge { Huge } else { Small });
        kit.fill(0, 512);
        track(&kit, 0, 512);
        let space = kit.space.space();
        journey(&kit);
        assert_eq!(those(&kit, PagemapEntry::is_uffd_wp).len(), 512, "to a device and back");
        for prot in [Prot::READ, Prot::RW, Prot::empty(), Prot::RW] {
            space.protect(range(0, 512), prot).expect("memory");
            space.protect(range(100, 50), prot).expect("memory");
        }
        assert_eq!(those(&kit, PagemapEntry::is_uffd_wp).len(), 512, "changes of protection");
        space.protect(range(100, 50), Prot::READ).expect("memory");
        space.protect(range(100, 50), Prot::RW).expect("memory");
        assert_eq!(those(&kit, PagemapEntry::is_uffd_wp).len(), 512, "a split");
        let there = RemapTarget { addr: at(1024 + 7), len: 512 * 4096 };
        space.remap(range(0, 512), there, RemapFlags::empty()).expect("memory");
        assert!(pagemap(&kit, 1031, 512).iter().all(|word| word.is_uffd_wp()), "a remap");
        let back = RemapTarget { addr: at(0), len: 512 * 4096 };
        space.remap(range(1031, 512), back, RemapFlags::empty()).expect("memory");
        assert_eq!(those(&kit, PagemapEntry::is_uffd_wp).len(), 512);
        kit.check_in_place(0, 512);
        kit.audit();
    }
}

#[test]
fn zero_pages_keep_it_and_go_to_a_device_with_it() {
    for huge in [true, false] {
        let kit = Kit::new();
        kit.map(0, 512, if huge { Huge } else { Small });
        (0..512).for_each(|page| assert_eq!(kit.try_read(page), Ok(0)));
        track(&kit, 0, 512);
        kit.space.space().migrate(range(0, 512), DEV).expect("it is mapped");
        assert_eq!(those(&kit, PagemapEntry::is_uffd_wp).len(), 512, "nobody has written them");
        assert_eq!(kit.try_read(7), Ok(0));
        assert_eq!(those(&kit, PagemapEntry::is_uffd_wp).len(), 512);
        kit.try_write(7).expect("it is writable");
        assert!(!those(&kit, PagemapEntry::is_uffd_wp).contains(&7));
        kit.audit();
    }
}

#[test]
fn tracking_is_for_what_is_mapped() {
    let kit = Kit::new();
    kit.map(0, 10, Small);
    kit.map(20, 10, Small);
    let space = kit.space.space();
    assert_eq!(space.write_protect(range(0, 30), true), Err(RangeError::NotMapped(at(10))));
    let flags = |page: u64| {
        let mut found = None;
        space.for_each_vma(|vma| {
            if vma.range().contains(at(page)) {
                found = Some(vma.flags());
            }
        });
        found.expect("mapped")
    };
    assert!(flags(0).is_empty() && flags(20).is_empty(), "nothing was changed");
    track(&kit, 3, 4);
    assert!(flags(2).is_empty() && !flags(3).is_empty() && flags(7).is_empty());
    kit.fill(0, 10);
    assert!(pagemap(&kit, 3, 4).iter().all(|word| !word.is_uffd_wp()), "what is new counts as written");
    space.write_protect(range(0, 10), false).expect("memory");
    let mut n = 0;
    space.for_each_vma(|_| n += 1);
    assert_eq!(n, 2, "they are one mapping again");
    kit.check(0, 10);
    kit.audit();
}

#[test]
fn out_of_memory_changes_nothing() {
    for (kind, level) in all() {
        for how in 0..3 {
            for n in 0.. {
                let mut setup = Setup::new(kind, level);
                let before = setup.entry(150);
                setup.kit.machine.mm.inject.arm(Site::ALL, 0, n, u64::MAX);
                let space = setup.kit.space.space();
                let result = match how {
                    0 => space.clear_soft_dirty(range(100, 300)),
                    on => space.write_protect(range(100, 300), on == 1),
                };
                let asked = setup.kit.machine.mm.inject.disarm();
                if result.is_err() {
                    assert!(matches!(result, Err(RangeError::Oom(_))), "{result:?}");
                    assert_eq!(setup.entry(150), before, "{kind:?} {level:?}, allocation {n}");
                }
                setup.check(0, 512);
                if asked <= n {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_mapping_that_allows_nothing_gets_nothing_from_a_hole_that_is_filled() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    let space = kit.space.space();
    let (migration, _) = space.migrate_collect(range(0, 512), DEV).expect("it is mapped");
    space.protect(range(0, 512), Prot::empty()).expect("it is mapped");
    migration.unmap().copy().commit().finalize();
    if let Entry::NonPresent(soft) = kit.space.entry_at(at(0)).1 {
        assert!(soft.attrs.contains(Attrs::NO_ACCESS) && !soft.attrs.contains(Attrs::WRITE));
    }
    kit.audit();
}
