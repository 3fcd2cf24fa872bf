//! Device memory is emptied without an address space.

use crate::counters::Event;
use crate::entry::{Entry, SoftKind};
use crate::error::RangeError;
use crate::folio::{FolioRef, LockedFolio};
use crate::inject::Site;
use crate::migrate::Cause;
use crate::space::Space;
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, Soft};
use crate::testing::shared::{check_shared, sharer};
use crate::types::{Frame, Level, Order, Place};
use crate::vma::HugeAdvice::{Default as Small, Huge};
use crate::zone::Need;

/// Two 2 MiB pages and 40 small ones on the device.
fn on_device() -> Kit {
    let kit = Kit::new();
    kit.map(0, 1024, Huge);
    kit.map(1024, 40, Small);
    kit.fill(0, 1064);
    let report = kit.space.space().migrate(range(0, 1064), DEV).expect("all is mapped");
    assert_eq!(report.pages, 1064);
    kit
}

fn resident(space: &Space<Soft>, pages: u64) -> u64 {
    let on_device = |page: &u64| match space.entry_at(at(*page)).1 {
        Entry::NonPresent(soft) => soft.kind == SoftKind::DevicePrivate,
        _ => false,
    };
    (0..pages).filter(on_device).count() as u64
}

#[test]
fn everything_comes_back_in_one_round_of_entries() {
    let kit = on_device();
    let flushes = kit.machine.counted(Event::TlbFlush);
    let report = kit.machine.mm.evict_range(DEV, 0..8 * 512);
    assert_eq!((report.pages, report.huge_pages, report.failed_pages()), (1064, 1024, 0), "{report:?}");
    assert_eq!(kit.machine.counted(Event::TlbFlush), flushes, "a device-private page is in no TLB");
    assert_eq!(kit.machine.counted(Event::DeviceEvict), 1064);
    assert_eq!((kit.free(DEV), resident(&kit.space, 1064)), (8 * 512, 0));
    kit.check_in_place(0, 1064);
    kit.check(0, 1064);
    kit.audit();
}

#[test]
fn a_folio_over_the_end_of_the_range_goes_as_a_whole_and_its_neighbours_stay() {
    let kit = on_device();
    for page in [700, 1023] {
        let frame = match kit.space.entry_at(at(page)).1 {
            Entry::NonPresent(soft) => soft.frame.index() & !511,
            other => panic!("{other:?}"),
        };
        let report = kit.machine.mm.evict_range(DEV, frame + 511..frame + 512);
        assert_eq!(report.pages, if page == 700 { 512 } else { 0 }, "{report:?}");
        if page == 700 {
            assert_eq!(resident(&kit.space, 1064), 1064 - 512);
            break;
        }
    }
    kit.check_in_place(0, 1064);
    kit.audit();
}

#[test]
fn scattered_frames_are_evicted_once_each() {
    let kit = on_device();
    let frame = |page| match kit.space.entry_at(at(page)).1 {
        Entry::NonPresent(soft) => soft.frame,
        other => panic!("{other:?}"),
    };
    let frames = [frame(1030), frame(0).offset(3), frame(1030), Frame::ram(600), frame(0), frame(1063)];
    let report = kit.machine.mm.evict_frames(&frames);
    assert_eq!((report.pages, report.failed_pages()), (514, 0), "{report:?}");
    kit.check_in_place(0, 1064);
    kit.audit();
}

#[test]
fn a_page_of_three_spaces_comes_back_in_pieces_where_no_large_one_is_free() {
    let kit = on_device();
    let others = [sharer(&kit), sharer(&kit)];
    // Every second single page is free, none beside another.
    let mut held: Vec<FolioRef<Soft>> =
        core::iter::from_fn(|| kit.machine.mm.alloc_folio(Place::RAM, Order::BASE, Need::Reserve).ok())
            .collect();
    held.retain(|folio| folio.frame().index() % 2 == 1);
    kit.machine.mm.ram.drain();
    let report = kit.machine.mm.evict_range(DEV, 0..8 * 512);
    assert_eq!((report.pages, report.torn, report.failed_pages()), (1064, 1024, 0), "{report:?}");
    drop(held);
    kit.audit();
    for space in [kit.space.space(), others[0].space(), others[1].space()] {
        check_shared(&kit, space, 0, 1064);
        assert_eq!((space.entry_at(at(0)).0, resident(space, 1064)), (Level::Pte, 0));
    }
    assert_eq!(kit.free(DEV), 8 * 512);
}

#[test]
fn what_is_locked_or_held_stays_and_the_report_says_why() {
    let kit = on_device();
    let get = |page| match kit.space.entry_at(at(page)).1 {
        Entry::NonPresent(soft) => kit.machine.mm.try_get_folio(soft.frame).expect("a folio"),
        other => panic!("{other:?}"),
    };
    let pinned = get(0);
    let locked = LockedFolio::try_lock(get(1024)).expect("nobody has it");
    let nobodys = kit.machine.mm.alloc_folio(DEV, Order::BASE, Need::User).expect("memory");
    let report = kit.machine.mm.evict_range(DEV, 0..8 * 512);
    assert_eq!(report.pages, 1064 - 513);
    assert_eq!(report.failed[Cause::Pinned as usize], 512 + 1, "a folio, and one that nobody maps");
    assert_eq!(report.failed[Cause::Busy as usize], 1);
    drop((pinned, nobodys));
    drop(locked.unlock());
    kit.audit();
    let report = kit.machine.mm.evict_range(DEV, 0..8 * 512);
    assert_eq!((report.pages, report.failed_pages()), (513, 0));
    kit.check(0, 1064);
    kit.audit();
}

#[test]
fn every_allocation_of_an_eviction_may_fail() {
    for times in [1, u64::MAX] {
        for min_order in [0, 9] {
            let mut n = 0;
            loop {
                let kit = on_device();
                let other = sharer(&kit);
                kit.machine.mm.inject.arm(Site::ALL, min_order, n, times);
                let report = kit.machine.mm.evict_range(DEV, 0..8 * 512);
                let asked = kit.machine.mm.inject.disarm();
                kit.audit();
                assert_eq!(report.pages + report.failed_pages(), 1064, "{report:?}");
                assert_eq!(resident(&kit.space, 1064), report.failed_pages());
                check_shared(&kit, other.space(), 0, 1064);
                let report = kit.machine.mm.evict_range(DEV, 0..8 * 512);
                assert_eq!(report.failed_pages(), 0);
                check_shared(&kit, kit.space.space(), 0, 1064);
                kit.audit();
                if asked <= n {
                    break;
                }
                n += if n < 30 { 1 } else { 37 };
            }
        }
    }
}

#[test]
fn a_copy_that_fails_leaves_the_page_where_it_is() {
    let kit = on_device();
    let other = sharer(&kit);
    kit.machine.fail_copies(0, 1);
    let report = kit.machine.mm.evict_range(DEV, 0..8 * 512);
    let failed = report.failed[Cause::CopyFailed as usize];
    assert_eq!((failed, report.pages), (resident(&kit.space, 1064), 1064 - failed), "{report:?}");
    assert_ne!(failed, 0);
    kit.audit();
    check_shared(&kit, other.space(), 0, 1064);
}

#[test]
fn a_half_that_nobody_maps_is_not_brought_back() {
    let kit = on_device();
    let Entry::NonPresent(soft) = kit.space.entry_at(at(0)).1 else { panic!("it is on the device") };
    let held = kit.machine.mm.try_get_folio(soft.frame).expect("a folio");
    kit.space.space().unmap(range(0, 256)).expect("memory");
    drop(held);
    let report = kit.machine.mm.evict_range(DEV, 0..8 * 512);
    assert_eq!(report.pages, 1064 - 256, "{report:?}");
    kit.check_in_place(256, 1064 - 256);
    kit.audit();
}

#[test]
fn a_device_can_be_taken_out_and_registered_again() {
    let kit = on_device();
    let other = sharer(&kit);
    kit.machine.mm.unregister_device(0).expect("nothing is held");
    assert!(!kit.machine.mm.zone(DEV).is_registered());
    assert_eq!(resident(&kit.space, 1064), 0);
    check_shared(&kit, other.space(), 0, 1064);
    kit.audit();
    let space = kit.space.space();
    assert_eq!(space.migrate(range(0, 1064), DEV), Err(RangeError::NoDevice(0)));
    assert_eq!(kit.machine.mm.unregister_device(0), Ok(()), "nothing is to be done");
    for _ in 0..2 {
        kit.machine.register_again(0);
        assert_eq!(kit.free(DEV), 8 * 512);
        let report = space.migrate(range(0, 1064), DEV).expect("it is there again");
        assert_eq!((report.pages, report.failed_pages()), (1064, 0));
        kit.audit();
        kit.machine.mm.unregister_device(0).expect("nothing is held");
        kit.audit();
    }
    kit.check_in_place(0, 1064);
}

#[test]
fn a_page_that_is_held_keeps_its_device_and_is_named() {
    let kit = on_device();
    let held = {
        let Entry::NonPresent(soft) = kit.space.entry_at(at(0)).1 else { panic!("it is on the device") };
        kit.machine.mm.try_get_folio(soft.frame).expect("a folio")
    };
    let error = kit.machine.mm.unregister_device(0).expect_err("somebody holds a page");
    assert_eq!((error.frame, error.refs, error.maps, error.locked), (held.frame(), 2, 1, false));
    assert_eq!(resident(&kit.space, 1064), 512);
    let nobodys = kit.machine.mm.alloc_folio(DEV, Order::BASE, Need::User).expect("it goes on as before");
    drop((held, nobodys));
    kit.audit();
    kit.machine.mm.unregister_device(0).expect("nobody holds anything");
    kit.check(0, 1064);
    kit.audit();
}

#[test]
fn every_frame_of_a_list_is_reported_as_what_it_is() {
    let kit = Kit::on(&Config { devices: vec![8 * 512; 2], ..Config::default() });
    kit.map(0, 1024, Huge);
    kit.map(1024, 16, Small);
    kit.fill(0, 1040);
    let space = kit.space.space();
    space.migrate(range(0, 1030), DEV).expect("all is mapped");
    space.migrate(range(1030, 10), Place::device(1)).expect("all is mapped");
    let frame = |page| match kit.space.entry_at(at(page)).1 {
        Entry::NonPresent(soft) => soft.frame.offset(if page < 1024 { page as u32 % 512 } else { 0 }),
        other => panic!("{other:?}"),
    };
    let get = |page| kit.machine.mm.try_get_folio(frame(page)).expect("a folio");
    let (pinned_huge, pinned) = (get(512), get(1031));
    let busy = LockedFolio::try_lock(get(1026)).expect("nobody has it");
    let free = kit.machine.mm.alloc_folio(DEV, Order::BASE, Need::User).expect("memory").frame();
    assert!(kit.machine.mm.try_get_folio(free).is_none());
    // In no order: tails before heads, everything twice or more, with a batch's end at every change of the device.
    let pages = [700, 1031, 1026, 1024, 1030, 512, 1026, 700, 1031, 3, 1024, 1031, 0, 800, 1026, 511];
    let mut frames: Vec<_> = pages.into_iter().map(frame).collect();
    frames.extend([
        free,
        Frame::ram(600),
        Frame::new(Place::device(2), 0),
        Frame::new(Place::coherent(0), 5),
    ]);
    frames.push(Frame::new(DEV, 1 << 20));
    let report = kit.machine.mm.evict_frames(&frames);
    let stayed = |cause: Cause| report.failed[cause as usize];
    assert_eq!((report.pages, report.huge_pages), (512 + 2, 512), "{report:?}");
    assert_eq!((stayed(Cause::Pinned), stayed(Cause::Busy), report.failed_pages()), (513, 1, 514));
    drop((pinned_huge, pinned));
    drop(busy.unlock());
    // The same list again: what has gone is passed over.
    let report = kit.machine.mm.evict_frames(&frames);
    assert_eq!((report.pages, report.failed_pages()), (514, 0), "{report:?}");
    kit.check_in_place(0, 1040);
    kit.audit();
}

#[test]
fn without_memory_to_work_with_a_list_counts_each_folio_once() {
    let kit = on_device();
    let frame = |page| match kit.space.entry_at(at(page)).1 {
        Entry::NonPresent(soft) => soft.frame,
        other => panic!("{other:?}"),
    };
    let frames = [frame(1030), frame(0).offset(3), frame(1030), frame(0), frame(0).offset(9), frame(1031)];
    kit.machine.mm.inject.arm(Site::Object as u32, 0, 0, u64::MAX);
    let report = kit.machine.mm.evict_frames(&frames);
    kit.machine.mm.inject.disarm();
    assert_eq!((report.pages, report.failed[Cause::NoMemory as usize]), (0, 514), "{report:?}");
    kit.audit();
}

/// A 2 MiB page and 100 small ones on the device.
fn many_on_device() -> Kit {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.map(512, 100, Small);
    kit.fill(0, 612);
    let report = kit.space.space().migrate(range(0, 612), DEV).expect("all is mapped");
    assert_eq!(report.pages, 612);
    kit
}

#[test]
fn without_room_for_more_units_what_a_batch_has_goes_first_and_nothing_is_lost() {
    // The batch, room for 64 units, and no more just then.
    let kit = many_on_device();
    kit.machine.mm.inject.arm(Site::Object as u32, 0, 2, 1);
    let report = kit.machine.mm.evict_range(DEV, 0..8 * 512);
    assert!(kit.machine.mm.inject.disarm() > 3, "the failure was met, and more was asked for");
    assert_eq!((report.pages, report.failed_pages(), report.batches), (612, 0, 2), "{report:?}");
    kit.check_in_place(0, 612);
    kit.audit();
}

#[test]
fn without_room_for_even_one_unit_each_folio_counts_once() {
    for (times, moved) in [(1, 612 - 512), (20, 612 - 512 - 19), (u64::MAX, 0)] {
        let kit = many_on_device();
        let Entry::NonPresent(soft) = kit.space.entry_at(at(0)).1 else { panic!("it is on the device") };
        let huge = soft.frame.index()..soft.frame.index() + 512;
        let mut frames: Vec<_> = huge.map(|index| Frame::new(DEV, index)).collect();
        for page in 512..612 {
            let Entry::NonPresent(soft) = kit.space.entry_at(at(page)).1 else { panic!("as well") };
            frames.push(soft.frame);
        }
        // The batch is there; its room is not.
        kit.machine.mm.inject.arm(Site::Object as u32, 0, 1, times);
        let report = kit.machine.mm.evict_frames(&frames);
        kit.machine.mm.inject.disarm();
        assert_eq!((report.pages, report.failed_pages()), (moved, 612 - moved), "{report:?}");
        assert_eq!(resident(&kit.space, 612), 612 - moved);
        kit.check_in_place(0, 612);
        kit.audit();
    }
}
