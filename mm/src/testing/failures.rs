//! The n-th allocation fails, for every n and every operation: contents and counts are right after each, and the same
//! operation succeeds once there is memory.

use crate::error::RangeError;
use crate::inject::Site;
use crate::testing::kit::{DEV, Kit, range};
use crate::types::Place;
use crate::vma::HugeAdvice::{Default as Small, Huge};

/// Whether it worked is not the question.
fn ignore<T, E>(_: Result<T, E>) {}

/// Sets up, fails allocation n (or n and all after it) during `act`, checks; until `act` asks for no more than n.
fn fail_each(setup: impl Fn() -> Kit, act: impl Fn(&Kit), check: impl Fn(&Kit)) {
    for times in [1, u64::MAX] {
        for min_order in [0, 9] {
            let mut n = 0;
            loop {
                let kit = setup();
                kit.machine.mm.inject.arm(Site::ALL, min_order, n, times);
                act(&kit);
                let asked = kit.machine.mm.inject.disarm();
                kit.audit();
                check(&kit);
                kit.audit();
                // Afterwards it works, or has worked.
                act(&kit);
                check(&kit);
                kit.audit();
                if asked <= n {
                    break;
                }
                // The first few hundred one by one, then in strides: 512 small pages fail alike.
                n += if n < 40 { 1 } else { 37 };
                assert!(n < 20_000, "it never ends");
            }
        }
    }
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
        Kit::new,
        |kit| {
            if kit.space.vma_at(range(0, 1).start).is_none() {
                let _ = kit.space.space().map_anon(range(0, 8), crate::Prot::RW, Huge);
            }
        },
        |_| {},
    );
}

#[test]
fn first_touch_of_small_pages() {
    let touch = |kit: &Kit| {
        for page in 0..3 {
            let _ = kit.try_write(page);
        }
    };
    fail_each(|| mapped(false), touch, |_| {});
    let read = |kit: &Kit| {
        for page in 0..3 {
            let _ = kit.try_read(page);
        }
    };
    fail_each(|| mapped(false), read, |_| {});
}

#[test]
fn first_touch_of_huge_pages() {
    fail_each(|| mapped(true), |kit| ignore(kit.try_write(5)), |_| {});
    fail_each(|| mapped(true), |kit| ignore(kit.try_read(5)), |_| {});
    let write_zero_folio = || {
        let kit = mapped(true);
        kit.try_read(5).expect("memory");
        kit
    };
    fail_each(write_zero_folio, |kit| ignore(kit.try_write(7)), |_| {});
}

#[test]
fn migration_to_the_device_with_holes() {
    fail_each(mixed, |kit| ignore(kit.space.space().migrate(range(0, MIXED), DEV)), check_mixed);
}

#[test]
fn migration_to_ram() {
    fail_each(on_device, |kit| ignore(kit.space.space().migrate(range(0, MIXED), Place::RAM)), check_mixed);
}

#[test]
fn fault_back() {
    fail_each(
        on_device,
        |kit| {
            for page in [100, 700, 1024, 1031] {
                let _ = kit.try_read(page);
            }
        },
        check_mixed,
    );
}

#[test]
fn migration_of_a_part() {
    fail_each(mixed, |kit| ignore(kit.space.space().migrate(range(100, 300), DEV)), check_mixed);
    fail_each(on_device, |kit| ignore(kit.space.space().migrate(range(100, 300), Place::RAM)), check_mixed);
}

#[test]
fn unmap_with_splits_at_both_ends() {
    for setup in [mixed, on_device] {
        fail_each(
            setup,
            |kit| match kit.space.space().unmap(range(200, 400)) {
                Ok(()) => assert!(kit.space.vma_at(range(200, 1).start).is_none()),
                Err(RangeError::Oom(_)) => check_mixed(kit),
                Err(other) => panic!("{other}"),
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
    fail_each(mixed, |kit| ignore(kit.space.space().advise_huge(range(100, 300), Small)), check_mixed);
}
