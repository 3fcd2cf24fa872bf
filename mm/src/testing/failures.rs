//! The n-th allocation fails, for every n and every operation: contents and counts are right after each, and the same
//! operation succeeds once there is memory.

use crate::entry::Entry;
use crate::error::{FaultError, RangeError};
use crate::inject::Site;
use crate::migrate::Cause;
use crate::testing::kit::{DEV, Kit, at, range};
use crate::types::Place;
use crate::vma::HugeAdvice::{Default as Small, Huge};

/// Tables and descriptors.
const OF_ITS_OWN: u32 = Site::Table as u32 | Site::Object as u32;

/// Sets up, fails allocation n (or n and all after it) during `act`, checks; until `act` asks for no more than n. It asks for
/// `least` allocations or more, or it is not what is meant. It says whether something was refused for want of memory: only after a
/// failure, and not the next time. What `check` says must hold after each.
fn fail_each(least: u64, setup: impl Fn() -> Kit, act: impl Fn(&Kit) -> bool, check: impl Fn(&Kit)) {
    for (sites, min_order) in [(Site::ALL, 0), (Site::ALL, 9), (OF_ITS_OWN, 0)] {
        for times in [1, u64::MAX] {
            let mut n = 0;
            loop {
                let kit = setup();
                kit.machine.mm.inject.arm(sites, min_order, n, times);
                let refused = act(&kit);
                let asked = kit.machine.mm.inject.disarm();
                kit.audit();
                check(&kit);
                assert!(!refused || asked > n, "refused, and nothing had failed");
                let again = act(&kit);
                assert!(!again, "allocation {n} failed, and so did the second try");
                kit.audit();
                check(&kit);
                if asked <= n {
                    let all = sites == Site::ALL && min_order == 0;
                    assert!(!all || asked >= least, "{asked} allocations are not {least}");
                    break;
                }
                // Those of 512 small pages fail alike: after the first few, in strides. The others one by one.
                n += if n < 40 || sites == OF_ITS_OWN { 1 } else { 37 };
                assert!(n < 20_000, "it never ends");
            }
        }
    }
}

/// True when an access was refused for want of memory.
fn oom<T>(access: &Result<T, FaultError>) -> bool {
    match access {
        Ok(_) => false,
        Err(FaultError::Oom(_)) => true,
        Err(other) => panic!("{other}"),
    }
}

/// And when an operation on a range was.
fn refused<T>(result: &Result<T, RangeError>) -> bool {
    match result {
        Ok(_) => false,
        Err(RangeError::Oom(_)) => true,
        Err(other) => panic!("{other}"),
    }
}

/// Moves pages; true when some of them stayed for want of memory, and no others stay.
fn moved(kit: &Kit, start: u64, len: u64, to: Place) -> bool {
    let report = kit.space.space().migrate(range(start, len), to).expect("all is mapped");
    assert_eq!(report.failed_pages(), report.failed[Cause::NoMemory as usize], "{report:?}");
    report.failed_pages() != 0
}

fn mapped(huge: bool) -> Kit {
    let kit = Kit::new();
    kit.map(0, 1024, if huge { Huge } else { Small });
    kit
}

/// Two filled huge pages, two filled small ones and holes.
fn mixed() -> Kit {
    let kit = Kit::new();
    kit.map(0, 1024, Huge);
    kit.fill(0, 512);
    kit.try_write(512).expect("memory");
    kit.map(1024, 40, Small);
    kit.fill(1024, 2);
    kit.fill(1030, 2);
    kit
}

const MIXED: u64 = 1024 + 40;

fn check_mixed(kit: &Kit) {
    kit.check_in_place(0, 513);
    kit.check_in_place(1024, 2);
    kit.check_in_place(1030, 2);
}

fn on_device() -> Kit {
    let kit = mixed();
    let report = kit.space.space().migrate(range(0, MIXED), DEV).expect("all is mapped");
    assert_eq!(report.failed_pages(), 0, "{report:?}");
    kit
}

#[test]
fn mapping() {
    fail_each(
        1,
        Kit::new,
        |kit| {
            kit.space.vma_at(range(0, 1).start).is_none()
                && refused(&kit.space.space().map_anon(range(0, 8), crate::Prot::RW, Huge))
        },
        |kit| assert!(kit.space.vma_at(range(8, 1).start).is_none()),
    );
}

/// All of them, whatever the others said.
fn any(pages: impl IntoIterator<Item = u64>, touch: impl Fn(u64) -> bool) -> bool {
    pages.into_iter().fold(false, |refused, page| touch(page) | refused)
}

/// What of these pages is there is filled, and the rest is zeros.
fn filled_or_nothing(kit: &Kit, pages: core::ops::Range<u64>) {
    for page in pages {
        if let Entry::Leaf(leaf) = kit.space.entry_at(at(page)).1
            && !leaf.special
        {
            let word = kit.try_read(page).expect("it is there");
            assert!(word == Kit::value(page) || word == 0, "page {page} holds {word:#x}");
        }
    }
}

#[test]
fn first_touch_of_small_pages() {
    let write = |kit: &Kit| any(0..3, |page| oom(&kit.try_write(page)));
    fail_each(4, || mapped(false), write, |kit| filled_or_nothing(kit, 0..3));
    let read = |kit: &Kit| any(0..3, |page| oom(&kit.try_read(page).map(|word| assert_eq!(word, 0))));
    fail_each(1, || mapped(false), read, |kit| filled_or_nothing(kit, 0..3));
}

#[test]
fn first_touch_of_huge_pages() {
    let write = |page| move |kit: &Kit| oom(&kit.try_write(page));
    fail_each(2, || mapped(true), write(5), |kit| filled_or_nothing(kit, 4..7));
    let read = |kit: &Kit| oom(&kit.try_read(5).map(|word| assert_eq!(word, 0)));
    fail_each(1, || mapped(true), read, |kit| filled_or_nothing(kit, 4..7));
    let zero_folio = || {
        let kit = mapped(true);
        kit.try_read(5).expect("memory");
        kit
    };
    fail_each(1, zero_folio, write(7), |kit| filled_or_nothing(kit, 4..8));
}

#[test]
fn migration_to_the_device_with_holes() {
    fail_each(8, mixed, |kit| moved(kit, 0, MIXED, DEV), check_mixed);
}

#[test]
fn migration_to_ram() {
    fail_each(6, on_device, |kit| moved(kit, 0, MIXED, Place::RAM), check_mixed);
}

#[test]
fn fault_back() {
    let touch = |kit: &Kit| any([100, 700, 1024, 1031], |page| oom(&kit.try_read(page)));
    fail_each(4, on_device, touch, check_mixed);
}

#[test]
fn migration_of_a_part() {
    fail_each(3, mixed, |kit| moved(kit, 100, 300, DEV), check_mixed);
    fail_each(3, on_device, |kit| moved(kit, 100, 300, Place::RAM), check_mixed);
}

#[test]
fn unmap_with_splits_at_both_ends() {
    for setup in [mixed, on_device] {
        fail_each(
            2,
            setup,
            |kit| {
                let is_mapped = kit.space.vma_at(range(200, 1).start).is_some();
                let refused = refused(&kit.space.space().unmap(range(200, 400)));
                if refused {
                    check_mixed(kit);
                }
                assert_eq!(kit.space.vma_at(range(200, 1).start).is_some(), is_mapped && refused);
                refused
            },
            |kit| {
                kit.check_in_place(0, 200);
                kit.check_in_place(1024, 2);
            },
        );
    }
}

#[test]
fn advice() {
    let advise = |kit: &Kit| refused(&kit.space.space().advise_huge(range(100, 300), Small));
    fail_each(1, mixed, advise, check_mixed);
}
