//! Clones without memory enough, for themselves or for what comes after them.

use crate::folio::FolioRef;
use crate::inject::Site;
use crate::testing::clone::owners::{pin, unpin};
use crate::testing::clone::{check_in, fork, frame, read, write};
use crate::testing::kinds::{Kind, Setup};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, Soft};
use crate::types::{Level, Order, Place};
use crate::vma::HugeAdvice::{Default as Small, Huge};
use crate::zone::Need;

/// Takes every second page of RAM: what is left is single pages.
pub(super) fn shatter(kit: &Kit) -> Vec<FolioRef<Soft>> {
    let page = || kit.machine.mm.alloc_folio(Place::RAM, Order::BASE, Need::User).ok();
    let all: Vec<_> = core::iter::from_fn(page).collect();
    all.into_iter().filter(|folio| folio.frame().index() % 2 == 0).collect()
}

#[test]
fn a_shared_huge_page_comes_back_in_pieces_for_all() {
    let setup = Setup::new(Kind::Device, Level::Pmd);
    let kit = &setup.kit;
    let (one, two) = (fork(kit), fork(kit));
    let keep = shatter(kit);
    assert_eq!(read(kit, &one, 5), Kit::value(5));
    for space in [&kit.space, &one, &two] {
        assert_eq!(space.entry_at(at(5)).0, Level::Pte);
        assert_eq!(frame(space, 5).place(), Place::RAM);
        check_in(kit, space, 0, 512);
    }
    drop(keep);
    kit.audit();
}

/// A space with everything in it: huge and small pages, in RAM and on the device, zero pages, and a pinned one.
fn everything() -> (Kit, FolioRef<Soft>) {
    let kit =
        Kit::on(&Config { ram: crate::testing::machine::one(512..512 + 12 * 512), ..Config::default() });
    kit.map(0, 1024, Huge);
    kit.fill(0, 513);
    kit.map(2048, 512, Small);
    kit.fill(2048, 8);
    kit.try_read(2100).expect("the zero page");
    kit.space.space().migrate(range(0, 512), DEV).expect("it is mapped");
    kit.space.space().migrate(range(2048, 3), DEV).expect("it is mapped");
    kit.map(4096, 2, Small);
    kit.fill(4096, 2);
    let pinned = pin(&kit, 4096);
    (kit, pinned)
}

#[test]
fn a_clone_that_runs_out_of_memory_leaves_nothing_behind() {
    let mut n = 0;
    loop {
        let (kit, pinned) = everything();
        let spaces = kit.machine.mm.spaces.live();
        let free = [kit.free(Place::RAM), kit.free(DEV)];
        kit.machine.mm.inject.arm(Site::ALL, 0, n, u64::MAX);
        let child = kit.space.clone_of(|_| {});
        let asked = kit.machine.mm.inject.disarm();
        let done = child.is_ok();
        assert_eq!(done, asked <= n);
        drop(child);
        assert_eq!(kit.machine.mm.spaces.live(), spaces);
        unpin(pinned);
        kit.audit();
        let kept = kit.machine.mm.ram.stat().managed; // object frames stay; nothing else does
        assert!(kit.free(DEV) == free[1] && kit.free(Place::RAM) <= kept);
        check_in(&kit, &kit.space, 0, 513);
        for page in [0, 512, 2048, 2055, 2100, 4096] {
            write(&kit, &kit.space, page, page);
            assert_eq!(read(&kit, &kit.space, page), page);
        }
        kit.audit();
        if done {
            break;
        }
        n += 1;
        assert!(n < 1000, "it never ends");
    }
    assert!(n > 10, "tables, mappings and the copy were asked for");
}

#[test]
fn copy_on_write_that_runs_out_of_memory_changes_nothing() {
    for (level, min_order) in [(Level::Pte, 0), (Level::Pmd, 0), (Level::Pmd, 9)] {
        for n in 0..8 {
            let setup = Setup::new(Kind::Present, level);
            let kit = &setup.kit;
            let child = fork(kit);
            kit.machine.mm.inject.arm(Site::ALL, min_order, n, u64::MAX);
            let result = kit.machine.user_access(0, child.space(), at(8), 0, Some(1));
            let asked = kit.machine.mm.inject.disarm();
            let fails = asked > n && min_order == 0;
            assert_eq!(result.is_err(), fails, "{level:?} {min_order} {n}: {result:?}");
            assert_eq!(read(kit, &child, 8), if fails { Kit::value(8) } else { 1 });
            assert_eq!(read(kit, &kit.space, 8), Kit::value(8));
            write(kit, &child, 8, 2);
            check_in(kit, &kit.space, 0, 512);
            kit.audit();
        }
    }
}
