//! Huge pages of the pool: what is promised, what is taken, and that nothing makes them small.

use crate::advise::Advice;
use crate::entry::Entry;
use crate::error::{FaultError, RangeError};
use crate::hugetlb::HugePoolStat;
use crate::remap::{RemapFlags, RemapTarget};
use crate::testing::clone::{fork, read, write};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, one};
use crate::types::{Level, PAGE_SIZE, Place, Prot};

/// A machine with room for small pages and for `pages` huge ones in the pool.
fn kit(pages: u32) -> Kit {
    let kit = Kit::on(&Config { ram: one(0..20 * 512), ..Config::default() });
    assert_eq!(kit.machine.mm.resize_huge_pool(pages), pages);
    kit
}

fn map(kit: &Kit, start: u64, len: u64) -> Result<(), RangeError> {
    kit.space.space().map_hugetlb(range(start, len), Prot::RW)
}

fn pool(kit: &Kit) -> (u32, u32, u32) {
    let HugePoolStat { total, free, reserved } = kit.machine.mm.huge_pool();
    (total, free, reserved)
}

#[test]
fn a_mapping_has_what_it_was_promised() {
    let kit = kit(3);
    map(&kit, 0, 1024).expect("the pool has two");
    assert_eq!(pool(&kit), (3, 3, 2));
    assert!(matches!(map(&kit, 2048, 1024), Err(RangeError::Oom(_))), "only one is left");
    map(&kit, 2048, 512).expect("the pool has one");
    assert_eq!(pool(&kit), (3, 3, 3));
    assert_eq!(read(&kit, &kit.space, 5), 0, "a read takes one too");
    write(&kit, &kit.space, 1000, 7);
    assert_eq!(pool(&kit), (3, 1, 1));
    let (level, entry) = kit.space.entry_at(at(5));
    assert!(level == Level::Pmd && matches!(entry, Entry::Leaf(leaf) if leaf.frame.place() == Place::RAM));
    kit.audit();
    let space = kit.space.space();
    space.unmap(range(0, 512)).expect("it is a whole page");
    assert_eq!((pool(&kit), read(&kit, &kit.space, 1000)), ((3, 2, 1), 7));
    space.unmap(range(0, 4096)).expect("memory");
    assert_eq!(pool(&kit), (3, 3, 0), "promises that were not used are given back");
    assert_eq!(kit.machine.mm.resize_huge_pool(0), 0);
    kit.audit();
}

#[test]
fn nothing_cuts_moves_or_forgets_them() {
    let kit = kit(4);
    map(&kit, 0, 1024).expect("the pool has two");
    write(&kit, &kit.space, 0, 1);
    let space = kit.space.space();
    let refused = |result: Result<(), RangeError>| matches!(result, Err(RangeError::Invalid(_)));
    for part in [range(0, 100), range(100, 412), range(500, 100), range(1000, 1000)] {
        assert!(refused(space.unmap(part)), "{part}");
        if part.end <= at(1024) {
            assert!(refused(space.protect(part, Prot::READ)), "{part}");
        }
    }
    for advice in [Advice::DontNeed, Advice::Free, Advice::Huge, Advice::NoHuge] {
        assert!(refused(space.advise(range(0, 512), advice)), "{advice:?}");
    }
    let target = |page, pages| RemapTarget { addr: at(page), len: pages * PAGE_SIZE };
    assert!(refused(space.remap(range(0, 512), target(4096, 512), RemapFlags::empty())));
    kit.map(8192, 4, crate::vma::HugeAdvice::Default);
    assert!(refused(space.remap(range(8192, 4), target(100, 4), RemapFlags::empty())));
    let report = space.migrate(range(0, 1024), DEV).expect("it is mapped");
    assert_eq!((report.units, report.holes), (0, 0));
    space.protect(range(512, 512), Prot::READ).expect("a whole page");
    space.protect(range(512, 512), Prot::RW).expect("a whole page");
    write(&kit, &kit.space, 600, 2);
    assert_eq!((kit.space.entry_at(at(0)).0, kit.space.entry_at(at(600)).0), (Level::Pmd, Level::Pmd));
    assert_eq!(pool(&kit), (4, 2, 0));
    kit.audit();
}

#[test]
fn a_clone_copies_from_the_pool_or_not_at_all() {
    let kit = kit(3);
    map(&kit, 0, 1024).expect("the pool has two");
    write(&kit, &kit.space, 0, 10);
    let child = fork(&kit);
    assert_eq!(pool(&kit), (3, 2, 1));
    assert_eq!(read(&kit, &child, 0), 10);
    write(&kit, &child, 1, 11);
    assert_eq!(pool(&kit), (3, 1, 1), "its own copy; the other is promised to the parent");
    let touch = kit.machine.user_access(0, child.space(), at(512), 0, Some(1));
    assert_eq!(touch, Err(FaultError::NoPage(at(512))));
    write(&kit, &kit.space, 512, 12);
    assert_eq!((read(&kit, &kit.space, 1), read(&kit, &kit.space, 512)), (0, 12));
    assert_eq!(pool(&kit), (3, 0, 0));
    kit.audit();
    drop(child);
    assert_eq!(pool(&kit), (3, 1, 0));
    // Two have a page, and there is none for a copy.
    kit.machine.mm.resize_huge_pool(2);
    let child = fork(&kit);
    let touch = kit.machine.user_access(0, child.space(), at(0), 0, Some(1));
    assert_eq!(touch, Err(FaultError::NoPage(at(0))));
    assert_eq!(child.entry_at(at(0)).0, Level::Pmd, "it was not made small");
    drop(child);
    write(&kit, &kit.space, 0, 13);
    kit.audit();
}

#[test]
fn the_pool_is_as_large_as_there_is_memory_and_no_smaller_than_what_it_owes() {
    let kit = kit(2);
    assert!((3..20).contains(&kit.machine.mm.resize_huge_pool(100)), "as many as there is memory for");
    assert_eq!(kit.machine.mm.resize_huge_pool(2), 2);
    map(&kit, 0, 512).expect("the pool has two");
    map(&kit, 512, 512).expect("the pool has one");
    write(&kit, &kit.space, 0, 1);
    assert_eq!((kit.machine.mm.resize_huge_pool(0), pool(&kit)), (2, (2, 1, 1)));
    kit.audit();
    let space = kit.space.space();
    space.unmap(range(512, 512)).expect("memory");
    assert_eq!((kit.machine.mm.resize_huge_pool(0), pool(&kit)), (1, (1, 0, 0)));
    space.unmap(range(0, 512)).expect("memory");
    assert_eq!((kit.machine.mm.resize_huge_pool(0), kit.machine.mm.folios_in_use()), (0, 0));
    kit.audit();
}

#[test]
fn two_who_touch_one_page_do_not_keep_one_promise_twice() {
    let kit = kit(1);
    let mm = &kit.machine.mm;
    mm.huge_pool.reserve(1).expect("it is free");
    let first = mm.alloc_from_pool(true).expect("memory").expect("its block");
    // The second has seen the page empty too, while the first was filling its own.
    assert!(mm.alloc_from_pool(true).expect("memory").is_none(), "the block is on its way");
    assert_eq!(mm.huge_pool(), HugePoolStat { total: 1, free: 0, reserved: 1 });
    assert!(mm.huge_pool.reserve(1).is_err(), "nothing is left to promise");
    assert_eq!(mm.resize_huge_pool(0), 1, "a promise is not taken away");
    // The first gives up: its block is there for the second.
    drop(first);
    let second = mm.alloc_from_pool(true).expect("memory").expect("the block came back");
    mm.huge_pool.keep(1);
    assert_eq!(mm.huge_pool(), HugePoolStat { total: 1, free: 0, reserved: 0 });
    drop(second);
    assert_eq!(mm.resize_huge_pool(0), 0);
    assert!(!mm.huge_pool.is_used());
}
