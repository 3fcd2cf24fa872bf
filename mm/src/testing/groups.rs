//! Groups with a limit: what is charged, what is refused, and that no move of a page asks.
//!
//! The audit compares the charge of each group with the folios that there are; random lists run in groups without a limit
//! (`exercise/runner.rs`).

use crate::advise::Advice;
use crate::counters::Event;
use crate::error::FaultError;
use crate::exercise::Rng;
use crate::group::{GroupRef, GroupStat, MAX_GROUPS};
use crate::inject::Site;
use crate::migrate::{Cause, MigrateFlags, MigrateOptions, Sources};
use crate::object::Object;
use crate::space::AddressSpace;
use crate::testing::clone::{fork, read, write};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, Soft};
use crate::testing::migrate_gaps::lock;
use crate::types::{Level, Place, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};

const DEV1: Place = Place::device(1);

/// A kit whose space is in a group of so many pages; 2 MiB for huge pages and as much for small ones.
fn kit(limit: u64) -> (Kit, GroupRef<Soft>) {
    let kit = Kit::on(&Config { devices: vec![8 * 512; 2], ..Config::default() });
    let group = GroupRef::new(limit).expect("no group is there yet");
    kit.space.space().join_group(&group);
    kit.map(0, 512, Huge);
    kit.map(512, 512, Small);
    (kit, group)
}

/// Charged, in RAM, and on the first device.
fn charged(group: &GroupRef<Soft>) -> (u64, u64, u64) {
    let GroupStat { charged, ram, devices, .. } = group.stat();
    assert_eq!(charged, ram + devices.iter().sum::<u64>(), "each page is somewhere");
    (charged, ram, devices[0])
}

fn limit(page: u64, pages: u64) -> Result<(), FaultError> {
    Err(FaultError::Limit(at(page), pages))
}

#[test]
fn a_first_touch_beyond_the_limit_is_refused_and_changes_nothing() {
    let (kit, group) = kit(4);
    kit.fill(512, 4);
    let free = kit.free(Place::RAM);
    let errors = kit.machine.counted(Event::PgFaultError);
    assert_eq!(kit.try_write(516), limit(516, 4));
    assert_eq!((charged(&group), kit.free(Place::RAM)), ((4, 4, 0), free));
    assert_eq!(kit.machine.counted(Event::PgFaultError) - errors, 1);
    kit.try_read(516).expect("the zero page is nobody's");
    assert_eq!(kit.try_write(516), limit(516, 4));
    assert_eq!(kit.try_read(516), Ok(0));
    kit.check(512, 4);
    assert_eq!(group.stat().refused, 2);
    // A want of memory is no refusal, though the group is full.
    kit.machine.mm.inject.arm(Site::RamFolio as u32, 0, 0, 1);
    let error = kit.try_write(517);
    kit.machine.mm.inject.disarm();
    assert_eq!((error, group.stat().refused), (Err(FaultError::Oom(at(517))), 2));
    kit.audit();
    // What is given up is there for others.
    kit.space.space().advise(range(513, 1), Advice::DontNeed).expect("mapped");
    assert_eq!(charged(&group).0, 3);
    kit.fill(516, 1);
    group.set_limit(5);
    kit.fill(513, 1);
    group.set_limit(0);
    assert_eq!(charged(&group), (5, 5, 0), "what is there stays");
    kit.check(512, 5);
    kit.audit();
}

#[test]
fn where_a_huge_page_is_too_much_small_ones_are_taken() {
    let (kit, group) = kit(3);
    kit.fill(7, 1);
    assert_eq!((kit.space.entry_at(at(7)).0, charged(&group).0), (Level::Pte, 1));
    kit.fill(8, 2);
    assert_eq!(kit.try_write(10), limit(10, 3));
    group.set_limit(512 + 2);
    let report = kit.space.space().collapse(range(0, 512)).expect("mapped");
    assert_eq!(report.copied, 0, "it needs the new page beside the old ones");
    kit.audit();
    group.set_limit(512 + 3);
    assert_eq!(kit.space.space().collapse(range(0, 512)).expect("mapped").copied, 1);
    assert_eq!(charged(&group), (512, 512, 0));
    kit.check(7, 3);
    kit.audit();
}

#[test]
fn no_move_asks_and_none_charges_with_the_group_full() {
    for torn in [false, true] {
        let (kit, group) = kit(520);
        let space = kit.space.space();
        kit.fill(0, 520);
        let tear = || {
            if torn {
                kit.machine.mm.inject.arm(Site::RamFolio as u32 | Site::DeviceFolio as u32, 9, 0, u64::MAX);
            }
        };
        // By call, there and back; by fault; by eviction; to another device.
        for back in 0..4 {
            tear();
            let report = space.migrate(range(0, 520), DEV).expect("mapped");
            assert_eq!((report.pages, report.failed_pages()), (520, 0));
            assert_eq!(charged(&group), (520, 0, 520));
            group.set_limit(0);
            match back {
                0 => assert_eq!(space.migrate(range(0, 520), Place::RAM).expect("mapped").pages, 520),
                1 => kit.check(0, 520),
                2 => assert_eq!(kit.machine.mm.evict_range(DEV, 0..8 * 512).pages, 520),
                _ => {
                    let options = MigrateOptions::to(DEV1).from(Sources::of(DEV));
                    let moved = space.migrate_with(range(0, 520), DEV1, &options, &mut |_| {});
                    assert_eq!(moved.expect("mapped").pages, 520);
                    assert_eq!(group.stat().devices[..2], [0, 520]);
                    kit.check(0, 520);
                }
            }
            kit.machine.mm.inject.disarm();
            assert_eq!((charged(&group), group.stat().refused), ((520, 520, 0), 0), "torn: {torn}, {back}");
            group.set_limit(520);
            kit.audit();
        }
        kit.check(0, 520);
    }
}

#[test]
fn parts_have_their_share_and_a_merge_puts_them_together() {
    let (kit, group) = kit(600);
    let space = kit.space.space();
    kit.fill(0, 512);
    space.migrate(range(0, 512), DEV).expect("mapped");
    space.unmap(range(100, 1)).expect("memory");
    assert_eq!(charged(&group), (511, 0, 511));
    kit.check(0, 10);
    kit.audit();
    let (all, ram, device) = charged(&group);
    assert!(all == 511 && ram >= 10 && device > 0);
    kit.map(100, 1, Huge);
    space.unmap(range(0, 512)).expect("memory");
    assert_eq!(charged(&group).0, 0);
    // In place, and by a copy, with no room for a second one.
    kit.map(0, 512, Small);
    kit.fill(0, 512);
    space.migrate(range(0, 512), DEV).expect("mapped");
    space.advise_huge(range(0, 512), Huge).expect("mapped");
    group.set_limit(512);
    let report = space.merge_device(range(0, 512)).expect("mapped");
    assert_eq!((report.copied + report.in_place, charged(&group)), (1, (512, 0, 512)));
    let folio = lock(&kit, 0);
    space.split_folio(&folio, at(0), 200).expect("one table");
    drop(folio.unlock());
    assert_eq!(charged(&group), (512, 0, 512));
    assert_eq!(space.merge_device(range(0, 512)).expect("mapped").in_place, 1);
    assert_eq!(charged(&group), (512, 0, 512));
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn holes_and_copies_of_a_migration_are_refused_and_pages_are_not() {
    let (kit, group) = kit(4);
    let space = kit.space.space();
    kit.fill(512, 4);
    kit.try_read(516).expect("the zero page");
    let report = space.migrate(range(512, 8), DEV).expect("mapped");
    assert_eq!((report.pages, report.holes, report.failed[Cause::Limit as usize]), (4, 0, 4));
    assert_eq!((charged(&group), kit.free(DEV)), ((4, 0, 4), 8 * 512 - 4));
    assert_eq!(kit.try_read(516), Ok(0));
    kit.audit();
    // A huge hole, whole and in pieces.
    for torn in [false, true] {
        if torn {
            kit.machine.mm.inject.arm(Site::DeviceFolio as u32, 9, 0, u64::MAX);
        }
        group.set_limit(4 + 300);
        let report = space.migrate(range(0, 512), DEV).expect("mapped");
        assert_eq!((report.pages, report.failed[Cause::Limit as usize], charged(&group).0), (0, 512, 4));
        group.set_limit(4 + 512);
        assert_eq!(space.migrate(range(0, 512), DEV).expect("mapped").holes, 512);
        assert_eq!(charged(&group), (516, 0, 516));
        kit.machine.mm.inject.disarm();
        kit.audit();
        space.advise(range(0, 512), Advice::DontNeed).expect("mapped");
        assert_eq!(charged(&group).0, 4);
    }
    // A shared page is copied for a device that writes.
    let child = fork(&kit);
    let options = MigrateOptions::to(DEV).with(MigrateFlags::FAULT | MigrateFlags::WRITE);
    for (limit, copied) in [(4, 0), (8, 4)] {
        group.set_limit(limit);
        let report = child.space().migrate_with(range(512, 4), DEV, &options, &mut |_| {});
        assert_eq!((report.expect("mapped").copied, charged(&group).0), (copied, 4 + copied));
        kit.audit();
    }
    drop(child);
    assert_eq!(charged(&group).0, 4);
    kit.check(512, 4);
    kit.audit();
}

#[test]
fn a_clone_joins_and_pays_for_its_copies_alone() {
    let (kit, group) = kit(5);
    kit.fill(512, 4);
    let child = fork(&kit);
    assert_eq!(charged(&group).0, 4, "what is shared is there once");
    write(&kit, &child, 512, 77);
    assert_eq!(charged(&group).0, 5);
    let touch = |space: &AddressSpace<Soft>, page| {
        kit.machine.user_access(0, space.space(), at(page), 0, Some(1)).map(drop)
    };
    assert_eq!(touch(&child, 513), limit(513, 5));
    assert_eq!(touch(&kit.space, 513), limit(513, 5), "shared yet, for both");
    assert_eq!(read(&kit, &child, 513), Kit::value(513));
    kit.audit();
    // The last of those who share it writes where it lies.
    drop(child);
    assert_eq!(charged(&group).0, 4);
    kit.fill(513, 1);
    let child = fork(&kit);
    // One that goes over to another group leaves there what it had.
    let other = GroupRef::<Soft>::new(1).expect("a second group");
    child.space().join_group(&other);
    write(&kit, &child, 514, 78);
    assert_eq!((charged(&group).0, charged(&other).0), (4, 1));
    assert_eq!(touch(&child, 515), limit(515, 1));
    kit.space.space().unmap(range(512, 512)).expect("memory");
    assert_eq!((charged(&group).0, charged(&other).0), (3, 1), "the child maps three of them still");
    kit.audit();
    drop(child);
    assert_eq!((charged(&group).0, charged(&other).0), (0, 0));
    kit.audit();
}

#[test]
fn pages_of_objects_are_charged_to_who_brings_them() {
    let (kit, group) = kit(3);
    let space = kit.space.space();
    let (shared, file) = (Object::anon_shared(8).expect("memory"), Object::file(8).expect("memory"));
    space.map_shared(range(2048, 8), Prot::RW, &shared, 0).expect("free");
    space.map_private(range(2064, 8), Prot::RW, &file, 0, Small).expect("free");
    file.write(0, 0, &[5]).expect("memory");
    assert_eq!(charged(&group).0, 0, "the kernel's own");
    kit.fill(2048, 1);
    kit.try_read(2064).expect("it is there");
    assert_eq!(charged(&group).0, 1);
    kit.fill(2064, 1);
    kit.fill(2065, 1);
    assert_eq!(charged(&group).0, 3, "copies");
    assert_eq!(kit.try_write(2049), limit(2049, 3));
    assert_eq!(kit.try_read(2050), limit(2050, 3).map(|()| 0));
    assert_eq!(kit.try_write(2066), limit(2066, 3));
    kit.audit();
    space.unmap(range(2048, 32)).expect("memory");
    assert_eq!(charged(&group).0, 1, "the object has its page still");
    drop((shared, file));
    assert_eq!(charged(&group).0, 0);
    kit.audit();
}

#[test]
fn a_group_is_there_as_long_as_anything_is_charged_to_it() {
    let (kit, group) = kit(1000);
    kit.fill(512, 2);
    let held = lock(&kit, 512).unlock();
    drop(group);
    kit.fill(514, 1);
    let Kit { space, machine } = kit;
    drop(space);
    // One page is left, of a group that nobody can name any more.
    let mut groups: Vec<_> = core::iter::from_fn(|| GroupRef::<Soft>::new(1).ok()).collect();
    assert_eq!(groups.len(), MAX_GROUPS - 1);
    drop(held);
    groups.push(GroupRef::new(1).expect("its number is free"));
    assert!(groups.iter().all(|group| group.stat().charged == 0));
    machine.mm.audit().expect("every invariant");
}

#[test]
fn the_charge_is_what_the_spaces_hold_whatever_is_done() {
    for seed in 0..6 {
        let (kit, group) = kit(300 + seed * 200);
        let other = GroupRef::<Soft>::new(200).expect("a second group");
        let space = kit.space.space();
        let mut rng = Rng::new(seed);
        let mut child: Option<AddressSpace<Soft>> = None;
        for step in 0..250 {
            let len = if rng.one_in(3) { 512 } else { 1 + rng.below(80) };
            let start = if len == 512 { rng.below(2) * 512 } else { rng.below(1024 - len) };
            let part = range(start, len);
            let space = child.as_ref().filter(|_| rng.one_in(2)).map_or(space, AddressSpace::space);
            let place = [Place::RAM, DEV, DEV1][rng.below(3) as usize];
            if rng.one_in(5) {
                kit.machine.mm.inject.arm(Site::ALL, 1, rng.below(4), 1 + rng.below(3));
            }
            match rng.below(9) {
                0 | 1 => {
                    let from = Sources::RAM.union(Sources::devices());
                    let options = MigrateOptions::to(place).from(from);
                    let options = if rng.one_in(2) { options } else { options.with(MigrateFlags::all()) };
                    let _ = space.migrate_with(part, place, &options, &mut |_| {});
                }
                2 => {
                    let _ = space.unmap(part);
                }
                3 => {
                    let _ = space.advise(part, Advice::DontNeed);
                }
                4 => {
                    let _ = space.merge_device(part);
                    let _ = space.collapse(part);
                }
                5 => {
                    let _report = kit.machine.mm.evict_range(DEV, 0..rng.below(8 * 512) as u32);
                }
                6 => {
                    drop(child.take());
                    child = kit.space.clone_of(|_| {}).ok();
                    if let Some(child) = child.as_ref().filter(|_| rng.one_in(2)) {
                        child.space().join_group(&other);
                    }
                }
                _ => {
                    for page in (start..start + len).step_by(3) {
                        let _ = kit.machine.user_access(0, space, at(page), 0, Some(page));
                    }
                }
            }
            kit.machine.mm.inject.disarm();
            let _ = space.map_anon(part, Prot::RW, if rng.one_in(2) { Huge } else { Small });
            kit.machine.mm.audit().unwrap_or_else(|e| panic!("seed {seed}, step {step}: {e}"));
            let _ = (charged(&group), charged(&other));
        }
        assert!(group.stat().refused > 0 && other.stat().refused > 0, "seed {seed}: a limit was met");
        drop(child);
        kit.space.space().unmap(range(0, 1024)).expect("memory");
        assert_eq!((charged(&group).0, charged(&other).0), (0, 0), "seed {seed}");
    }
}
