//! Counters of devices, spaces and the machine: each tells what happened, and they add up.

use crate::counters::Event;
use crate::migrate::{Cause, Report};
use crate::stats::{DeviceStat, SpaceStat};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::Config;
use crate::testing::shared::sharer;
use crate::types::{Order, Place};
use crate::vma::HugeAdvice::{Default as Small, Huge};
use crate::zone::Need;

const COH: Place = Place::coherent(1);

fn kit() -> Kit {
    Kit::on(&Config { devices: vec![8 * 512; 2], coherent: vec![1], ..Config::default() })
}

fn migrate(kit: &Kit, start: u64, len: u64, to: Place) -> Report {
    kit.space.space().migrate(range(start, len), to).expect("all of it is mapped")
}

fn device(kit: &Kit, number: usize) -> DeviceStat {
    kit.machine.mm.device(number).stat()
}

fn space(kit: &Kit) -> SpaceStat {
    kit.space.stat()
}

/// A counter of the machine's list.
fn vmstat(kit: &Kit, name: &str) -> u64 {
    let mut found = None;
    kit.machine.mm.vmstat(&mut |n, value| {
        if n == name {
            found = Some(value);
        }
    });
    found.unwrap_or_else(|| panic!("there is no counter {name}"))
}

#[test]
fn a_device_knows_what_came_what_left_and_what_was_dropped() {
    let kit = kit();
    kit.map(0, 1024, Huge);
    kit.map(1024, 16, Small);
    kit.fill(0, 1040);
    migrate(&kit, 0, 1040, DEV);
    let stat = device(&kit, 0);
    assert_eq!((stat.units_in, stat.pages_in, stat.resident), (18, 1040, 1040));
    assert_eq!((stat.allocated[9], stat.flushes), (2, 1));
    let here = kit.machine.mm.device(0).folios();
    assert_eq!((here.0[9], here.0[0], here.pages()), (2, 16, 1040), "by order, from the frame map");
    // One of each size comes back by fault, one by call, the rest is unmapped.
    kit.check(0, 1);
    kit.check(1024, 1);
    let stat = device(&kit, 0);
    assert_eq!((stat.faults, stat.out.0[9], stat.out.0[0]), (2, 1, 1));
    migrate(&kit, 1025, 1, Place::RAM);
    kit.space.space().unmap(range(512, 512 + 16)).expect("it is mapped");
    let stat = device(&kit, 0);
    assert_eq!((stat.faults, stat.out.folios(), stat.out.pages()), (2, 3, 514));
    assert_eq!((stat.pages_dropped, stat.resident), (526, 0));
    assert_eq!(stat.pages_in - stat.out.pages() - stat.pages_dropped, stat.resident);
    assert_eq!(device(&kit, 1), DeviceStat::default(), "the other device has nothing to tell");
    assert_eq!((vmstat(&kit, "devmem_pages_in"), vmstat(&kit, "devmem_pages_out")), (1040, 514));
    assert_eq!(vmstat(&kit, "pgmigrate_success"), 1040 + 514);
    let stat = space(&kit);
    assert_eq!((stat.pages_in, stat.pages_out), (1040, 514));
    assert_eq!(stat.faults, kit.machine.counted(Event::PgFault));
    assert_eq!(stat.flushes, kit.machine.counted(Event::TlbFlush));
    kit.audit();
}

#[test]
fn each_device_counts_its_own() {
    let kit = kit();
    kit.map(0, 20, Small);
    kit.fill(0, 20);
    migrate(&kit, 0, 8, DEV);
    migrate(&kit, 8, 12, COH);
    assert_eq!((device(&kit, 0).pages_in, device(&kit, 1).pages_in), (8, 12));
    // One batch that leaves both: a flush for what was mapped.
    migrate(&kit, 0, 20, Place::RAM);
    let (private, coherent) = (device(&kit, 0), device(&kit, 1));
    assert_eq!((private.out.pages(), coherent.out.pages()), (8, 12));
    assert_eq!((private.resident, coherent.resident), (0, 0));
    assert_eq!((private.faults, coherent.faults), (0, 0));
    kit.audit();
}

#[test]
fn the_faults_of_a_space_that_brought_pages_back_are_counted_for_it() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.map(512, 4, Small);
    kit.fill(0, 516);
    let other = sharer(&kit);
    let figures = || {
        let stat = space(&kit);
        (stat.device_faults, stat.pages_out)
    };
    migrate(&kit, 0, 516, DEV);
    assert_eq!(figures(), (0, 0));
    kit.check(512, 2); // two mappings: each comes back in a batch
    assert_eq!(figures(), (2, 2));
    drop(other);
    kit.check(0, 512);
    assert_eq!(figures(), (3, 514));
    // The rest by itself.
    kit.check(514, 2);
    assert_eq!(figures(), (5, 516));
    migrate(&kit, 0, 516, DEV);
    migrate(&kit, 0, 516, Place::RAM);
    assert_eq!(figures(), (5, 516 + 516), "no fault");
    assert_eq!(device(&kit, 0).faults, 5);
    let mut named = 0;
    kit.space.vmstat(&mut |name, n| named += if name == "devmem_fault" { n } else { 0 });
    assert_eq!(named, 5);
    kit.audit();
}

#[test]
fn what_stays_is_counted_by_cause_for_all_who_have_to_do_with_it() {
    let kit = kit();
    kit.map(0, 4, Small);
    kit.fill(0, 4);
    let frame = |page| match kit.space.entry_at(at(page)).1 {
        crate::entry::Entry::Leaf(leaf) => leaf.frame,
        crate::entry::Entry::NonPresent(soft) => soft.frame,
        other => panic!("{other:?}"),
    };
    let held = kit.machine.mm.try_get_folio(frame(1)).expect("it has a folio");
    migrate(&kit, 0, 4, DEV);
    drop(held);
    let pinned = Cause::Pinned as usize;
    assert_eq!((device(&kit, 0).failed[pinned], device(&kit, 1).failed[pinned]), (1, 0));
    assert_eq!((space(&kit).failed[pinned], vmstat(&kit, "pgmigrate_fail_pinned")), (1, 1));
    // What was to leave is counted where it lies.
    let held = kit.machine.mm.try_get_folio(frame(0)).expect("it has a folio");
    migrate(&kit, 0, 4, Place::RAM);
    drop(held);
    assert_eq!((device(&kit, 0).failed[pinned], space(&kit).failed[pinned]), (2, 2));
    // Foreign pages are the business of the device that asked.
    migrate(&kit, 0, 4, COH);
    let foreign = Cause::Foreign as usize;
    assert_eq!((device(&kit, 0).failed[foreign], device(&kit, 1).failed[foreign]), (0, 1));
    // A fault that fails is counted as well.
    kit.machine.fail_copies(0, 1);
    assert!(kit.try_read(0).is_err());
    let copy = Cause::CopyFailed as usize;
    assert_eq!((device(&kit, 0).failed[copy], device(&kit, 0).faults, space(&kit).failed[copy]), (1, 0, 1));
    assert_eq!(vmstat(&kit, "pgmigrate_fail_copy"), 1);
    kit.check(0, 1);
    assert_eq!(device(&kit, 0).faults, 1);
    kit.audit();
}

#[test]
fn a_fault_that_comes_back_in_pieces_counts_once() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    migrate(&kit, 0, 512, DEV);
    // RAM has single pages only.
    let mm = &kit.machine.mm;
    let all: Vec<_> =
        core::iter::from_fn(|| mm.alloc_folio(Place::RAM, Order::BASE, Need::User).ok()).collect();
    let held: Vec<_> = all.into_iter().filter(|folio| folio.frame().index() % 2 == 0).collect();
    kit.check(0, 512);
    drop(held);
    let stat = device(&kit, 0);
    assert_eq!((stat.faults, stat.out.0[9], stat.out.folios(), stat.resident), (1, 1, 1, 0));
    assert_eq!(space(&kit).pages_out, 512);
    kit.audit();
}

#[test]
fn splits_are_counted_for_the_device_and_the_space() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    migrate(&kit, 0, 512, DEV);
    kit.space.space().unmap(range(0, 256)).expect("it is mapped");
    assert_eq!((device(&kit, 0).splits, space(&kit).splits, vmstat(&kit, "thp_split_page")), (1, 1, 1));
    assert_eq!(kit.machine.mm.device(0).folios().0[8], 1, "one half is left");
    kit.audit();
}

#[test]
fn the_resident_set_is_where_the_pages_are() {
    let kit = kit();
    kit.map(0, 1024, Huge);
    kit.map(1024, 64, Small);
    kit.fill(0, 512);
    kit.fill(1024, 40);
    assert_eq!(kit.try_read(1070), Ok(0), "the zero page does not count");
    migrate(&kit, 0, 512, DEV);
    migrate(&kit, 1024, 10, COH);
    let resident = kit.space.resident();
    assert_eq!((resident.ram[0], resident.devices[0][9], resident.devices[1][0]), (30, 512, 10));
    assert_eq!((resident.pages(), resident.on_device(0)), (552, 512));
    kit.space.space().unmap(range(0, 1088)).expect("it is mapped");
    assert_eq!(kit.space.resident().pages(), 0);
    kit.audit();
}

#[test]
fn every_list_says_what_lies_where_by_order() {
    let kit = kit();
    kit.map(0, 1024, Huge);
    kit.map(1024, 64, Small);
    kit.fill(0, 1024);
    kit.fill(1024, 40);
    assert_eq!(kit.try_read(1070), Ok(0), "the zero page does not count");
    migrate(&kit, 0, 512, DEV);
    migrate(&kit, 1024, 10, COH);
    kit.space.space().unmap(range(0, 256)).expect("it is mapped");
    type Reader<'a> = &'a dyn Fn(&mut dyn FnMut(&'static str, u64));
    let list = |read: Reader<'_>| {
        let mut found = Vec::new();
        read(&mut |name, n| {
            let by_order = name.ends_with("kB") && n != 0;
            found.extend(by_order.then_some((name, n)));
        });
        found
    };
    let mm = &kit.machine.mm;
    // One huge page in RAM, a half on the first device, small pages in RAM and on the second.
    let machine = [("nr_ram_folios_4kB", 30), ("nr_ram_folios_2048kB", 1)];
    let devices = [("nr_device_folios_4kB", 10), ("nr_device_folios_1024kB", 1)];
    assert_eq!(list(&|f| mm.vmstat(f)), [machine, devices].concat());
    assert_eq!(list(&|f| mm.device(0).vmstat(f)), [("nr_folios_1024kB", 1)]);
    assert_eq!(list(&|f| mm.device(1).vmstat(f)), [("nr_folios_4kB", 10)]);
    let space = [
        ("nr_ram_pages_4kB", 30),
        ("nr_ram_pages_2048kB", 512),
        ("nr_device0_pages_1024kB", 256),
        ("nr_device1_pages_4kB", 10),
    ];
    assert_eq!(list(&|f| kit.space.vmstat(f)), space);
    kit.audit();
}

#[test]
fn every_counter_has_a_name_of_its_own() {
    let kit = kit();
    let mut lists: [Vec<&str>; 3] = Default::default();
    kit.machine.mm.vmstat(&mut |name, _| lists[0].push(name));
    kit.machine.mm.device(0).vmstat(&mut |name, _| lists[1].push(name));
    kit.space.vmstat(&mut |name, _| lists[2].push(name));
    for list in &mut lists {
        let n = list.len();
        list.sort_unstable();
        list.dedup();
        assert_eq!(list.len(), n, "{list:?}");
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        assert!(list.iter().all(|name| name.chars().all(plain)), "{list:?}");
    }
    assert_eq!(vmstat(&kit, "nr_free_pages"), u64::from(kit.free(Place::RAM)));
}

#[test]
fn a_new_space_begins_at_zero() {
    let Kit { space, machine } = kit();
    machine.mmu.borrow_mut().unload(0);
    space.space().map_anon(range(0, 4), crate::types::Prot::RW, Small).expect("it is free");
    space.space().migrate(range(0, 4), DEV).expect("it is mapped");
    assert_eq!(space.stat().pages_in, 4);
    drop(space);
    let space = crate::space::AddressSpace::<crate::testing::Soft>::new(|_| {}).expect("memory for a space");
    assert_eq!(space.stat(), SpaceStat::default());
}

#[test]
fn evictions_are_counted_for_the_device_and_the_spaces_that_lose_pages_there() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.map(512, 8, Small);
    kit.fill(0, 520);
    migrate(&kit, 0, 514, DEV);
    migrate(&kit, 514, 6, COH);
    let before = space(&kit);
    let report = kit.machine.mm.evict_range(DEV, 0..u32::MAX);
    assert_eq!((report.pages, device(&kit, 0).pages_evicted, device(&kit, 1).pages_evicted), (514, 514, 0));
    // Frames of two devices in one call.
    migrate(&kit, 0, 512, DEV);
    let frames: Vec<_> = [0, 515, 516]
        .into_iter()
        .map(|page| match kit.space.entry_at(at(page)).1 {
            crate::entry::Entry::Leaf(leaf) => leaf.frame,
            crate::entry::Entry::NonPresent(soft) => soft.frame,
            other => panic!("{other:?}"),
        })
        .collect();
    let report = kit.machine.mm.evict_frames(&frames);
    assert_eq!((report.pages, device(&kit, 0).pages_evicted, device(&kit, 1).pages_evicted), (514, 1026, 2));
    let after = space(&kit);
    assert_eq!(after.pages_evicted - before.pages_evicted, 1028);
    assert_eq!(after.pages_out, before.pages_out, "that was not its own doing");
    assert_eq!((device(&kit, 0).out.pages(), device(&kit, 1).out.pages()), (1026, 2));
    kit.check(0, 520);
    kit.audit();
}

#[test]
fn merges_are_counted_for_the_device_and_the_space() {
    let kit = kit();
    kit.map(0, 512, Small);
    kit.map(512, 512, Small);
    kit.fill(0, 1024);
    migrate(&kit, 0, 512, DEV);
    let space = kit.space.space();
    space.merge_device(range(0, 512)).expect("it is mapped");
    assert_eq!((device(&kit, 0).merges, kit.space.stat().merges), (1, 1));
    assert_eq!(kit.machine.mm.device(0).folios().0[9], 1);
    space.collapse(range(512, 512)).expect("it is mapped");
    assert_eq!((device(&kit, 0).merges, kit.space.stat().merges), (1, 2), "in RAM");
    kit.check(0, 1024);
    kit.audit();
}
