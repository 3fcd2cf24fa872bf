//! Memory that folios keep though nobody maps it is there for whoever would be out of memory.

use crate::advise::Advice;
use crate::error::FaultError;
use crate::folio::FolioRef;
use crate::gup::{PinError, PinFlags};
use crate::inject::Site;
use crate::migrate::{Cause, Report};
use crate::object::Object;
use crate::testing::clone::{fork, read};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, Soft, one};
use crate::types::{Order, Place};
use crate::vma::HugeAdvice::{Default as Small, Huge};
use crate::zone::Need;

/// Where small pages are touched.
const SMALL: u64 = 16 * 512;

/// `n` huge pages in `place`, the first half of each unmapped while somebody held it: the handles that did. Small pages and their
/// table are there already.
fn halves(kit: &Kit, n: u64, place: Place) -> Vec<FolioRef<Soft>> {
    kit.map(SMALL, 64, Small);
    kit.fill(SMALL, 8);
    kit.map(0, n * 512, Huge);
    kit.fill(0, n * 512);
    if !place.is_ram() {
        let report = kit.space.space().migrate(range(0, n * 512), place).expect("it is mapped");
        assert_eq!(report.huge_pages, n * 512);
    }
    let held: Vec<_> = (0..n).map(|i| kit.folio(i * 512)).collect();
    for i in 0..n {
        kit.space.space().advise(range(i * 512, 256), Advice::DontNeed).expect("it is mapped");
    }
    held
}

/// Takes all of `place` that a user may have.
fn take_all(kit: &Kit, place: Place) -> Vec<FolioRef<Soft>> {
    let page = || kit.machine.mm.alloc_folio(place, Order::BASE, Need::User).ok();
    core::iter::from_fn(page).collect()
}

/// The upper halves of all huge pages are what they were.
fn check_halves(kit: &Kit, n: u64) {
    (0..n).for_each(|i| kit.check(i * 512 + 256, 256));
    kit.audit();
}

#[test]
fn a_first_touch_finds_the_memory_that_nobody_maps() {
    let kit = Kit::new();
    let held = halves(&kit, 3, Place::RAM);
    let full = take_all(&kit, Place::RAM);
    // While the folios are held there is none.
    assert_eq!(kit.try_write(SMALL + 8), Err(FaultError::Oom(at(SMALL + 8))));
    drop(held);
    let free = kit.free(Place::RAM);
    kit.try_write(SMALL + 8).expect("three halves are nobody's");
    assert!(kit.free(Place::RAM) > free + 3 * 256 - 32, "all of them are free now");
    kit.fill(SMALL + 8, 56);
    kit.check(SMALL, 64);
    let rest = take_all(&kit, Place::RAM);
    kit.map(SMALL + 64, 1, Small);
    assert_eq!(kit.try_write(SMALL + 64), Err(FaultError::Oom(at(SMALL + 64))), "there is no more to be had");
    drop((full, rest));
    check_halves(&kit, 3);
}

#[test]
fn a_failure_that_was_asked_for_stays_one() {
    let kit = Kit::new();
    drop(halves(&kit, 1, Place::RAM));
    let inject = &kit.machine.mm.inject;
    inject.arm(Site::RamFolio as u32, 0, 0, 1);
    assert_eq!(kit.try_write(SMALL + 8), Err(FaultError::Oom(at(SMALL + 8))));
    assert_eq!(inject.disarm(), 1, "asked once");
    let full = take_all(&kit, Place::RAM);
    inject.arm(Site::Object as u32, 0, u64::MAX, 0);
    assert_eq!(kit.try_write(SMALL + 8), Err(FaultError::Oom(at(SMALL + 8))), "nor is anything else done");
    inject.disarm();
    kit.try_write(SMALL + 8).expect("a half is nobody's");
    drop(full);
    check_halves(&kit, 1);
}

fn migrate(kit: &Kit, start: u64, len: u64) -> Report {
    kit.space.space().migrate(range(start, len), DEV).expect("it is mapped")
}

#[test]
fn a_migration_finds_the_memory_on_the_device_that_nobody_maps() {
    let config = Config { ram: one(512..512 + 16 * 512), devices: vec![4 * 512], ..Config::default() };
    for huge in [false, true] {
        for hole in [false, true] {
            let kit = Kit::on(&config);
            let held = halves(&kit, 3, DEV);
            let full = take_all(&kit, DEV);
            let (start, len) = if huge { (20 * 512, 512) } else { (SMALL, 8) };
            if huge {
                kit.map(start, len, Huge);
            }
            if hole {
                kit.space.space().advise(range(start, len), Advice::DontNeed).expect("it is mapped");
            } else {
                kit.fill(start, len);
            }
            let what = format!("huge {huge}, hole {hole}");
            let report = migrate(&kit, start, len);
            assert_eq!((report.pages, report.failed[Cause::NoMemory as usize]), (0, len), "{what}");
            drop(held);
            let report = migrate(&kit, start, len);
            assert_eq!((report.pages, report.failed_pages()), (len, 0), "{what}");
            assert_eq!(kit.free(DEV), 3 * 256 - len as u32, "{what}");
            drop(full);
            kit.audit();
            if !hole {
                kit.check(start, len);
            }
            check_halves(&kit, 3);
        }
    }
}

#[test]
fn a_clone_finds_the_memory_that_nobody_maps() {
    let kit = Kit::new();
    let held = halves(&kit, 2, Place::RAM);
    let pinned = kit.folio(SMALL);
    pinned.add_pins(1);
    let full = take_all(&kit, Place::RAM);
    assert!(kit.space.clone_of(|_| {}).is_err(), "neither for tables nor for the copy of a pinned page");
    drop(held);
    let child = fork(&kit);
    assert_eq!(read(&kit, &child, SMALL), Kit::value(SMALL));
    pinned.remove_pins(1);
    drop((pinned, child, full));
    kit.check(SMALL, 8);
    check_halves(&kit, 2);
}

/// How a first touch without memory goes on when somebody else reads the page at the `n`-th lock of it. False when it takes fewer.
fn touch_with_a_reader(n: u64) -> bool {
    let kit = Kit::new();
    drop(halves(&kit, 1, Place::RAM));
    let full = take_all(&kit, Place::RAM);
    let (machine, space) = (kit.machine.state(), kit.space.space());
    let meddler = move || {
        let _ = machine.user_access(0, space, at(SMALL + 8), 0, None);
    };
    *kit.machine.on_lock.borrow_mut() = Some((n, Box::new(meddler)));
    assert_eq!(kit.try_write(SMALL + 8), Ok(()), "at lock {n}: there is memory, once it was looked for");
    let reached = kit.machine.on_lock.take().is_none();
    drop(full);
    kit.check(SMALL, 9);
    check_halves(&kit, 1);
    reached
}

#[test]
fn to_look_again_is_no_error() {
    let locks = (0..).take_while(|&n| touch_with_a_reader(n)).count();
    assert!(locks > 6, "{locks} locks in a touch that looks for memory");
}

#[test]
fn what_somebody_else_finds_at_the_same_time_is_found() {
    let kit = Kit::new();
    drop(halves(&kit, 1, Place::RAM));
    let full = take_all(&kit, Place::RAM);
    let machine = kit.machine.state();
    let deferred = &machine.mm.ram.deferred;
    // Somebody else has begun to look.
    let scan = deferred.take().expect("it is noted");
    *kit.machine.on_relax.borrow_mut() = Some(Box::new(move || {
        deferred.note();
        assert!(machine.mm.split_deferred(Place::RAM) != 0, "a half is nobody's");
    }));
    kit.try_write(SMALL + 8).expect("somebody else finds it");
    drop(scan);
    // Who finds nothing is not waited for without end.
    let rest = take_all(&kit, Place::RAM);
    deferred.note();
    let scan = deferred.take();
    kit.map(SMALL + 64, 1, Small);
    assert_eq!(kit.try_write(SMALL + 64), Err(FaultError::Oom(at(SMALL + 64))));
    drop((scan, full, rest));
    check_halves(&kit, 1);
}

#[test]
fn a_pin_finds_the_memory_that_nobody_maps() {
    let kit = Kit::new();
    let held = halves(&kit, 1, Place::RAM);
    let child = fork(&kit);
    let full = take_all(&kit, Place::RAM);
    let mut pages = [const { None }; 1];
    let space = kit.space.space();
    let mut pin = || space.pin_pages(range(SMALL, 1), PinFlags::empty(), &mut pages);
    assert_eq!(pin(), Err(PinError::Fault(FaultError::Oom(at(SMALL)))), "a copy is needed");
    drop(held);
    assert_eq!(pin(), Ok(()));
    assert_eq!(read(&kit, &child, SMALL), Kit::value(SMALL));
    drop((pages, child, full));
    kit.check(SMALL, 8);
    check_halves(&kit, 1);
}

#[test]
fn an_object_finds_the_memory_that_nobody_maps() {
    let kit = Kit::new();
    let object = Object::<Soft>::file(4).expect("memory");
    object.write(0, 0, &[1]).expect("memory");
    let held = halves(&kit, 1, Place::RAM);
    let full = take_all(&kit, Place::RAM);
    assert!(object.write(1, 0, &[7]).is_err(), "there is none yet");
    drop(held);
    assert!(object.write(4, 0, &[7]).is_err(), "beyond the end");
    object.write(1, 0, &[7]).expect("a half is nobody's");
    let mut word = [0];
    object.read(1, 0, &mut word);
    assert_eq!(word, [7]);
    drop((object, full));
    check_halves(&kit, 1);
}

#[test]
fn a_migration_finds_the_memory_for_a_table() {
    let kit = Kit::new();
    let held = halves(&kit, 1, Place::RAM);
    kit.map(20 * 512, 512, Huge);
    // Enough on the device, but in single pages: the hole's PMD entry needs a table.
    let keep: Vec<_> = take_all(&kit, DEV).into_iter().filter(|page| page.frame().index() % 2 == 0).collect();
    let full = take_all(&kit, Place::RAM);
    let report = migrate(&kit, 20 * 512, 512);
    assert_eq!((report.pages, report.failed[Cause::NoMemory as usize]), (0, 512));
    drop(held);
    let report = migrate(&kit, 20 * 512, 512);
    assert_eq!((report.pages, report.failed_pages()), (512, 0));
    drop((keep, full));
    check_halves(&kit, 1);
}
