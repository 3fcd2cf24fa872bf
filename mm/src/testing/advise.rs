//! `advise`: every kind of entry at both levels.

use crate::advise::Advice;
use crate::entry::{Attrs, Entry};
use crate::error::RangeError;
use crate::inject::Site;
use crate::machine::FlushReason;
use crate::testing::kinds::{Kind, Setup, all};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::types::{Level, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};

fn advise(kit: &Kit, start: u64, len: u64, advice: Advice) {
    kit.space.space().advise(range(start, len), advice).expect("all of it is mapped");
}

#[test]
fn what_is_not_needed_is_gone_whatever_it_was() {
    for (kind, level) in all() {
        for (start, len) in [(0, 512), (0, 256), (100, 56), (511, 1)] {
            let mut setup = Setup::new(kind, level);
            advise(&setup.kit, start, len, Advice::DontNeed);
            for page in 0..512 {
                let gone = (start..start + len).contains(&page);
                let now = setup.entry(page).1;
                assert_eq!(
                    now == Entry::None,
                    gone,
                    "{kind:?} {level:?} {start}+{len}: page {page} is {now:?}"
                );
            }
            setup.finish();
            setup.kit.audit();
            assert_eq!(setup.kit.space.vma_at(at(start)).expect("it stays mapped").0, range(0, 512));
            if kind != Kind::ProtNone {
                assert_eq!(setup.kit.try_read(start), Ok(0));
                setup.kit.try_write(start).expect("memory");
            }
            setup.kit.audit();
        }
    }
}

#[test]
fn memory_that_is_not_needed_is_free_at_once() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    let space = kit.space.space();
    space.migrate(range(0, 512), DEV).expect("it is mapped");
    advise(&kit, 0, 256, Advice::DontNeed);
    assert_eq!(kit.free(DEV), 8 * 512 - 256, "the dead half of a page on a device too");
    advise(&kit, 256, 256, Advice::DontNeed);
    assert_eq!(kit.free(DEV), 8 * 512);
    kit.fill(0, 1);
    assert_eq!(kit.space.entry_at(at(0)).0, Level::Pmd, "no empty table is in the way of a huge page");
    kit.audit();
}

#[test]
fn holes_are_passed_over_and_told_of() {
    let kit = Kit::new();
    kit.map(0, 10, Small);
    kit.map(20, 10, Small);
    kit.fill(0, 10);
    kit.fill(20, 10);
    let space = kit.space.space();
    for advice in
        [Advice::DontNeed, Advice::Free, Advice::Cold, Advice::PageOut, Advice::Huge, Advice::NoHuge]
    {
        assert_eq!(space.advise(range(5, 20), advice), Err(RangeError::NotMapped(at(10))), "{advice:?}");
        kit.audit();
    }
    assert_eq!((kit.try_read(5), kit.try_read(24)), (Ok(0), Ok(0)), "on both sides of the hole");
    kit.check(0, 5);
    kit.check(25, 5);
    assert_eq!(space.vma_at(at(24)).expect("mapped").2, crate::vma::HugeAdvice::NoHuge);
    assert_eq!(space.vma_at(at(25)).expect("mapped").2, Small);
}

#[test]
fn freed_pages_are_clean_and_old_and_others_are_left_alone() {
    for (kind, level) in all() {
        for advice in [Advice::Free, Advice::Cold, Advice::PageOut] {
            let mut setup = Setup::new(kind, level);
            let (before, flushes) = (setup.entry(9), setup.flushes());
            let attrs = setup.attrs(9);
            advise(&setup.kit, 0, 512, advice);
            if kind == Kind::Present {
                let gone = if advice == Advice::Free { Attrs::DIRTY | Attrs::YOUNG } else { Attrs::YOUNG };
                assert_eq!(setup.attrs(9), attrs - gone, "{level:?} {advice:?}");
                assert_eq!(
                    setup.flushes() - flushes,
                    u64::from(advice == Advice::Free),
                    "{level:?} {advice:?}"
                );
            } else {
                assert_eq!(setup.entry(9), before, "{kind:?} {level:?} {advice:?}");
                assert_eq!(setup.flushes(), flushes, "{kind:?} {level:?} {advice:?}");
            }
            setup.check(0, 512);
        }
    }
}

#[test]
fn a_freed_page_is_dirty_again_once_it_is_written() {
    for level in [Level::Pmd, Level::Pte] {
        let setup = Setup::new(Kind::Present, level);
        let Entry::Leaf(leaf) = setup.entry(3).1 else { panic!("present") };
        let folio = setup.kit.machine.mm.mapped_folio(leaf.frame);
        folio.set_dirty();
        advise(&setup.kit, 0, 512, Advice::Free);
        assert!(!folio.is_dirty() && !setup.attrs(3).contains(Attrs::DIRTY));
        // The CPU had the page in its TLB, dirty: only the flush makes it say so again.
        setup.kit.try_write(3).expect("it is writable");
        assert!(setup.attrs(3).contains(Attrs::DIRTY));
        setup.kit.audit();
    }
}

#[test]
fn a_part_of_a_huge_page_is_freed_without_the_rest() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    let before = kit.machine.flushed(FlushReason::Protect);
    advise(&kit, 100, 50, Advice::Free);
    assert_eq!(kit.machine.flushed(FlushReason::Protect) - before, 1);
    let dirty = |page| match kit.space.entry_at(at(page)).1 {
        Entry::Leaf(leaf) => leaf.attrs.contains(Attrs::DIRTY),
        other => panic!("{other:?}"),
    };
    assert!(dirty(99) && !dirty(100) && !dirty(149) && dirty(150));
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn freeing_a_page_on_a_device_does_nothing_and_succeeds() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    kit.space.space().migrate(range(0, 512), DEV).expect("it is mapped");
    advise(&kit, 0, 512, Advice::Free);
    assert_eq!(kit.space.entry_at(at(0)).0, Level::Pmd);
    kit.space.space().unmap(range(0, 512)).expect("memory");
    assert_eq!(kit.free(DEV), 8 * 512);
    kit.audit();
}

#[test]
fn out_of_memory_changes_nothing() {
    for advice in [Advice::DontNeed, Advice::Free, Advice::Huge, Advice::NoHuge] {
        for (kind, level) in all() {
            for n in 0.. {
                let mut setup = Setup::new(kind, level);
                let before = setup.entry(150);
                setup.kit.machine.mm.inject.arm(Site::ALL, 0, n, u64::MAX);
                let result = setup.kit.space.space().advise(range(100, 300), advice);
                let asked = setup.kit.machine.mm.inject.disarm();
                if result.is_err() {
                    assert!(matches!(result, Err(RangeError::Oom(_))), "{result:?}");
                    assert_eq!(setup.entry(150), before, "{advice:?} {kind:?} {level:?}, allocation {n}");
                    assert_eq!(setup.kit.space.vma_at(at(0)).expect("mapped").0, range(0, 512));
                }
                setup.finish();
                setup.kit.audit();
                if asked <= n {
                    break;
                }
            }
        }
    }
}

#[test]
fn huge_page_advice_cuts_mappings_and_joins_them_again() {
    let kit = Kit::new();
    kit.map(0, 512, Small);
    let count = || {
        let mut n = 0;
        kit.space.for_each_vma(|_| n += 1);
        n
    };
    advise(&kit, 100, 100, Advice::Huge);
    assert_eq!(count(), 3);
    advise(&kit, 0, 512, Advice::Huge);
    assert_eq!(count(), 1);
    advise(&kit, 300, 10, Advice::NoHuge);
    assert_eq!(count(), 3);
    assert_eq!(kit.space.vma_at(at(305)).expect("mapped").1, Prot::RW);
    kit.audit();
}
