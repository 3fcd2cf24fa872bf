//! Folios that are mapped only in part: whatever else goes on, all of them are noted until their dead parts are free.

use std::collections::BTreeSet;

use crate::advise::Advice;
use crate::counters::Event;
use crate::entry::{Entry, Leaf};
use crate::inject::Site;
use crate::migrate::{MigrateFlags, MigrateOptions};
use crate::remap::{RemapFlags, RemapTarget};
use crate::space::AddressSpace;
use crate::testing::clone::{fork, read};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Meddler, Soft};
use crate::types::{Frame, PAGE_SIZE, PMD_SIZE, Place, Prot, USER_END, VaRange};
use crate::vma::HugeAdvice::Huge;

fn frame_of(entry: Entry) -> Option<Frame> {
    match entry {
        Entry::Leaf(Leaf { special: false, frame, .. }) => Some(frame),
        Entry::NonPresent(soft) => Some(soft.frame),
        _ => None,
    }
}

fn forget(kit: &Kit, start: u64, len: u64) {
    kit.space.space().advise(range(start, len), Advice::DontNeed).expect("it is mapped");
}

/// Once all that is noted has been split, every page of every folio is mapped by one of these spaces.
fn check_nothing_is_kept(kit: &Kit, spaces: &[&AddressSpace<Soft>], what: &str) {
    let mm = &kit.machine.mm;
    kit.audit();
    let mut mapped = BTreeSet::new();
    for place in [Place::RAM, DEV] {
        mm.split_deferred(place);
    }
    for space in spaces {
        let entry = &mut |_, level: crate::types::Level, word| {
            if let Some(frame) = frame_of(Entry::decode(word, level)) {
                mapped.extend((0..level.order().pages()).map(|i| frame.offset(i).raw()));
            }
        };
        space.for_each_entry(entry, &mut |_, _, _| {});
    }
    for place in [Place::RAM, DEV] {
        for frame in mm.zone(place).frames().map(|index| Frame::new(place, index)) {
            let Some(folio) = mm.try_get_folio(frame) else { continue };
            let kept = !mapped.contains(&frame.raw()) && !mm.zero_frames().contains(&Some(folio.frame()));
            assert!(!kept, "{what}: {frame} of {folio:?} is mapped nowhere");
        }
    }
    kit.audit();
}

#[test]
fn the_note_goes_along_when_the_folio_moves() {
    for torn in [false, true] {
        let kit = Kit::with_dead_parts(&[(0, 100), (300, 10)]);
        let all: Vec<_> = (0..8 * 512).map(|index| Frame::new(DEV, index)).collect();
        if torn {
            kit.machine.mm.inject.arm(Site::RamFolio as u32, 9, 0, 1);
        }
        let report = kit.machine.mm.evict_frames(&all);
        kit.machine.mm.inject.disarm();
        assert_eq!((report.pages, report.torn), (512, if torn { 512 } else { 0 }));
        check_nothing_is_kept(&kit, &[&kit.space], if torn { "in pieces" } else { "whole" });
        kit.check(100, 200);
        kit.check(310, 202);
    }
}

/// A huge page of which a part is forgotten while it is on its way: in phase `phase`.
fn forgotten_on_its_way(to: Place, torn: bool, phase: u32, given_up: bool) {
    let what = format!("to {to}, torn {torn}, in phase {phase}, given up {given_up}");
    let kit = Kit::new();
    let (mm, space) = (&kit.machine.mm, kit.space.space());
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    if to.is_ram() {
        space.migrate(range(0, 512), DEV).expect("it is mapped");
    }
    let now = |n| {
        if n == phase {
            forget(&kit, 0, 100);
            forget(&kit, 300, 10);
        }
    };
    let (collected, _) = space.migrate_collect(range(0, 512), to).expect("it is mapped");
    now(0);
    let unmapped = collected.unmap();
    now(1);
    if torn {
        mm.inject.arm((Site::RamFolio as u32) | Site::DeviceFolio as u32, 9, 0, 1);
    }
    let copied = unmapped.copy();
    mm.inject.disarm();
    now(2);
    let committed = copied.commit();
    now(3);
    if given_up {
        drop(committed);
    } else {
        assert_eq!(committed.finalize().pages, 512, "{what}");
    }
    check_nothing_is_kept(&kit, &[&kit.space], &what);
    kit.check(100, 200);
    kit.check(310, 202);
    kit.audit();
}

#[test]
fn what_is_unmapped_on_its_way_is_noted() {
    for to in [DEV, Place::RAM] {
        for torn in [false, true] {
            for given_up in [false, true] {
                (0..4).for_each(|phase| forgotten_on_its_way(to, torn, phase, given_up));
            }
        }
    }
}

/// A folio of 32 pages under a table, which the kit's space shares with a clone.
fn shared() -> (Kit, AddressSpace<Soft>) {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    forget(&kit, 32, 480);
    assert_eq!(kit.folio(0).order().pages(), 32);
    let child = fork(&kit);
    (kit, child)
}

#[test]
fn a_copy_that_is_mapped_in_part_is_noted() {
    for torn in [false, true] {
        let (kit, child) = shared();
        let options = MigrateOptions::to(DEV).with(MigrateFlags::FAULT | MigrateFlags::WRITE);
        let copy = kit.space.space().migrate_collect_with(range(0, 32), DEV, &options);
        if torn {
            kit.machine.mm.inject.arm(Site::DeviceFolio as u32, 5, 0, 1);
        }
        let copied = copy.expect("it is mapped").0.unmap().copy();
        kit.machine.mm.inject.disarm();
        forget(&kit, 0, 10);
        assert_eq!(copied.commit().finalize().copied, 32);
        check_nothing_is_kept(&kit, &[&kit.space, &child], "a copy");
        assert_eq!(kit.free(DEV), 8 * 512 - 22);
        kit.check(10, 22);
        assert_eq!(read(&kit, &child, 5), Kit::value(5));
        kit.audit();
    }
}

#[test]
fn a_copy_is_not_mapped_where_other_pages_have_come() {
    let (kit, child) = shared();
    let space = kit.space.space();
    let options = MigrateOptions::to(DEV).with(MigrateFlags::FAULT | MigrateFlags::WRITE);
    let (copy, _) = space.migrate_collect_with(range(0, 32), DEV, &options).expect("it is mapped");
    let copied = copy.unmap().copy();
    space.unmap(range(0, 16)).expect("it is mapped");
    let remap = |from, to| {
        let target = RemapTarget { addr: at(to), len: 496 * PAGE_SIZE };
        space.remap(range(from, 496), target, RemapFlags::empty()).expect("memory");
    };
    remap(16, 1024);
    remap(1024, 0);
    let report = copied.commit().finalize();
    kit.audit();
    assert_eq!((report.copied, kit.free(DEV)), (0, 8 * 512));
    for page in 0..16 {
        assert_eq!(kit.try_read(page), Ok(Kit::value(page + 16)));
        assert_eq!(read(&kit, &child, page), Kit::value(page));
    }
    check_nothing_is_kept(&kit, &[&kit.space, &child], "moved on");
}

/// Another part is forgotten in the middle of the look for dead parts. False when that is over before.
fn forgotten_in_a_scan(n: u64, before_a_lock: bool) -> bool {
    let kit = Kit::with_dead_parts(&[(0, 100)]);
    let space = kit.space.space();
    let meddler = move || space.advise(range(300, 10), Advice::DontNeed).expect("it is mapped");
    let meddler: Meddler = Box::new(meddler);
    let when = if before_a_lock { &kit.machine.on_lock } else { &kit.machine.on_unlock };
    *when.borrow_mut() = Some((n, meddler));
    assert!(kit.machine.mm.split_deferred(DEV) != 0);
    let reached = when.take().is_none();
    if reached {
        check_nothing_is_kept(&kit, &[&kit.space], &format!("at {n}, before a lock: {before_a_lock}"));
    }
    kit.check(100, 200);
    kit.check(310, 202);
    reached
}

#[test]
fn what_is_unmapped_while_dead_parts_are_looked_for_is_noted() {
    for before_a_lock in [true, false] {
        let moments = (0..).take_while(|&n| forgotten_in_a_scan(n, before_a_lock)).count();
        assert!(moments > 10, "{moments} moments");
    }
}

#[test]
fn cuts_that_were_made_count_when_a_later_one_fails() {
    let mut partial = 0;
    for n in 0.. {
        let kit = Kit::with_dead_parts(&[(100, 10), (300, 10)]);
        let before = kit.machine.counted(Event::ThpSplitPage);
        kit.machine.mm.inject.arm(Site::Object as u32, 0, n, u64::MAX);
        let cuts = kit.machine.mm.split_deferred(DEV);
        let asked = kit.machine.mm.inject.disarm();
        assert_eq!(u64::from(cuts), kit.machine.counted(Event::ThpSplitPage) - before, "failure {n}");
        check_nothing_is_kept(&kit, &[&kit.space], "after a failure");
        if asked <= n {
            break;
        }
        partial += u32::from(cuts != 0);
    }
    assert!(partial > 5, "some cut, then no more memory");
}

#[test]
fn what_is_frozen_stays_noted() {
    let kit = Kit::with_dead_parts(&[(0, 256)]);
    kit.fill(0, 256);
    kit.space.space().migrate(range(0, 256), DEV).expect("it is mapped");
    let machine = kit.machine.state();
    *kit.machine.on_copy.borrow_mut() = Some(Box::new(move || {
        assert_eq!(machine.mm.split_deferred(DEV), 0, "it cannot be had");
    }));
    kit.machine.fail_copies(0, 1);
    let merged = kit.space.space().merge_device(range(0, 512)).expect("a range");
    assert_eq!((merged.copied, merged.in_place), (0, 0), "the copy failed");
    check_nothing_is_kept(&kit, &[&kit.space], "after a merge that failed");
    kit.check(0, 512);
}

/// What lies beside the first page and the last one of a space is not the memory manager's to read.
#[test]
fn the_ends_of_the_user_half_have_nothing_beside_them() {
    let kit = Kit::new();
    let space = kit.space.space();
    for start in [0, USER_END - 2 * PMD_SIZE] {
        let all = VaRange::new(start, 2 * PMD_SIZE);
        space.map_anon(all, Prot::RW, Huge).expect("nothing is there");
        space.advise(all, Advice::DontNeed).expect("memory");
        space.unmap(all).expect("memory");
    }
    kit.audit();
}
