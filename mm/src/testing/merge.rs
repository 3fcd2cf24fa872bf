//! Small pages become huge ones: in RAM by a collapse, on a device by a merge.

use crate::advise::Advice;
use crate::counters::Event;
use crate::entry::{Attrs, Entry, SoftKind};
use crate::error::RangeError;
use crate::folio::{FolioRef, LockedFolio};
use crate::inject::Site;
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::Soft;
use crate::testing::shared::{check_shared, sharer};
use crate::types::{Frame, Level, Order, Place, Prot, VaRange};
use crate::vma::HugeAdvice::{Default as Small, Huge, NoHuge};
use crate::zone::Need;
use crate::{MergeCause, MergeReport};

fn frame(kit: &Kit, page: u64) -> Frame {
    match kit.space.entry_at(at(page)).1 {
        Entry::Leaf(leaf) => leaf.frame,
        Entry::NonPresent(soft) => soft.frame,
        other => panic!("page {page}: {other:?}"),
    }
}

fn folio(kit: &Kit, page: u64) -> FolioRef<Soft> {
    kit.machine.mm.try_get_folio(frame(kit, page)).expect("a folio")
}

fn collapse(kit: &Kit, start: u64, len: u64) -> MergeReport {
    kit.space.space().collapse(range(start, len)).expect("a range")
}

fn merge(kit: &Kit, start: u64, len: u64) -> MergeReport {
    kit.space.space().merge_device(range(start, len)).expect("a range")
}

fn failed(cause: MergeCause) -> MergeReport {
    let mut report = MergeReport::default();
    report.failed[cause as usize] = 1;
    report
}

const COPIED: MergeReport = MergeReport { copied: 1, in_place: 0, already: 0, failed: [0; 8] };
const IN_PLACE: MergeReport = MergeReport { copied: 0, in_place: 1, already: 0, failed: [0; 8] };
const ALREADY: MergeReport = MergeReport { copied: 0, in_place: 0, already: 1, failed: [0; 8] };

fn small(len: u64) -> Kit {
    let kit = Kit::new();
    kit.map(0, 1024, Small);
    kit.fill(0, len);
    kit
}

/// 512 pages on the device that were never one.
fn on_device() -> Kit {
    let kit = small(512);
    // The second page comes from elsewhere: the frames are no neighbours.
    let first = kit.space.space().migrate(range(1, 1), DEV).expect("it is mapped");
    let rest = kit.space.space().migrate(range(0, 512), DEV).expect("it is mapped");
    assert_eq!(first.pages + rest.pages, 512);
    kit
}

#[test]
fn small_pages_holes_and_zero_pages_become_a_huge_page() {
    for len in [512, 200, 1] {
        let kit = small(len);
        if len < 512 {
            kit.try_read(300).expect("the zero page");
        }
        let flushes = kit.machine.counted(Event::TlbFlush);
        assert_eq!(collapse(&kit, 0, 1024).copied, 1);
        assert_eq!(kit.machine.counted(Event::TlbFlush) - flushes, 2, "the pages, and the table");
        kit.audit();
        let (Level::Pmd, Entry::Leaf(leaf)) = kit.space.entry_at(at(0)) else { panic!("one huge page") };
        assert!(leaf.attrs.contains(Attrs::EXCLUSIVE | Attrs::WRITE | Attrs::DIRTY | Attrs::SOFT_DIRTY));
        assert_eq!((folio(&kit, 0).order(), folio(&kit, 0).is_dirty()), (Order::PMD, true));
        kit.check(0, len);
        (len..512).for_each(|page| assert_eq!(kit.try_read(page), Ok(0), "page {page}"));
        kit.fill(0, 512);
        kit.check(0, 512);
        assert_eq!(collapse(&kit, 0, 512), ALREADY);
        kit.audit();
    }
}

#[test]
fn larger_folios_collapse_too_and_their_memory_is_free_after() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    kit.space.space().unmap(range(0, 100)).expect("memory");
    kit.map(0, 100, Huge);
    kit.fill(50, 50);
    let free = kit.free(Place::RAM);
    // The hole has a VMA of its own now, or of the same set: only one VMA can be collapsed.
    let report = collapse(&kit, 0, 512);
    kit.audit();
    if report == COPIED {
        assert!(kit.free(Place::RAM) > free - 512 + 400);
        kit.check(50, 462);
    }
    kit.check_in_place(100, 412);
}

#[test]
fn a_collapse_can_be_advised_and_says_why_not() {
    let kit = small(1024);
    let advise = |start, len| kit.space.space().advise(range(start, len), Advice::Collapse);
    let huge = || [0, 512].map(|page| kit.space.entry_at(at(page)).0 == Level::Pmd);
    // A failure in the first 2 MiB is told of, and the second are collapsed all the same.
    let held = folio(&kit, 300);
    assert_eq!((advise(0, 1024), huge()), (Err(RangeError::Busy(at(0))), [false, true]));
    let locked = LockedFolio::try_lock(held).expect("nobody has it");
    assert_eq!(advise(0, 1024), Err(RangeError::Busy(at(0))));
    drop(locked);
    kit.machine.mm.inject.arm(Site::RamFolio as u32, 9, 0, 1);
    assert_eq!(advise(0, 1024), Err(RangeError::Oom(at(0))));
    kit.machine.mm.inject.disarm();
    kit.audit();
    assert_eq!(advise(1, 510), Ok(()), "no whole 2 MiB are asked for");
    assert_eq!(huge(), [false, true]);
    // What lies behind the mapping is told of, after what can be done.
    assert_eq!((advise(0, 1536), huge()), (Err(RangeError::NotMapped(at(1024))), [true, true]));
    assert_eq!(advise(0, 1024), Ok(()), "all are huge already");
    kit.check(0, 1024);
    let unaligned = VaRange::new(at(0).0 + 1, 4096);
    assert_eq!(kit.space.space().advise(unaligned, Advice::Collapse), Err(RangeError::Invalid(unaligned)));
    kit.audit();
}

#[test]
fn what_is_not_to_be_collapsed_is_refused() {
    let kit = small(512);
    let advise = |start, len| kit.space.space().advise(range(start, len), Advice::Collapse);
    let refused = |start| Err(RangeError::Invalid(range(start, 512)));
    assert_eq!(advise(512, 512), refused(512), "there is nothing");
    kit.space.space().migrate(range(511, 1), DEV).expect("it is mapped");
    assert_eq!(advise(0, 512), refused(0));
    assert_eq!(frame(&kit, 511).place(), DEV, "nothing is dragged back");
    kit.check(0, 512);
    kit.space.space().advise(range(0, 1), Advice::NoHuge).expect("it is mapped");
    assert_eq!(advise(0, 512), refused(0));
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn a_shared_page_is_copied_and_stays_the_others() {
    let kit = small(512);
    let other = sharer(&kit);
    assert_eq!(collapse(&kit, 0, 512), COPIED);
    kit.audit();
    kit.fill(0, 512);
    kit.check(0, 512);
    check_shared(&kit, other.space(), 0, 512);
    assert_eq!(other.entry_at(at(0)).0, Level::Pte);
    drop(other);
    kit.audit();
}

#[test]
fn what_cannot_be_collapsed_is_left_as_it_was() {
    let kit = small(512);
    assert_eq!(collapse(&kit, 512, 512), failed(MergeCause::Empty));
    assert_eq!(collapse(&kit, 1, 512), MergeReport::default(), "no whole 2 MiB");
    let held = folio(&kit, 300);
    assert_eq!(collapse(&kit, 0, 512), failed(MergeCause::Pinned));
    kit.check_in_place(0, 512);
    let locked = LockedFolio::try_lock(held).expect("nobody has it");
    assert_eq!(collapse(&kit, 0, 512), failed(MergeCause::Busy));
    drop(locked.unlock());
    kit.audit();
    kit.space.space().migrate(range(511, 1), DEV).expect("it is mapped");
    assert_eq!(collapse(&kit, 0, 512), failed(MergeCause::Elsewhere));
    assert_eq!(frame(&kit, 511).place(), DEV, "nothing is dragged back");
    kit.check(0, 512);
    kit.space.space().advise_huge(range(0, 1), NoHuge).expect("it is mapped");
    assert_eq!(collapse(&kit, 0, 512), failed(MergeCause::NotHuge));
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn every_allocation_of_a_collapse_and_of_a_merge_may_fail() {
    for on_dev in [false, true] {
        for n in 0.. {
            let kit = if on_dev { on_device() } else { small(512) };
            let act = || if on_dev { merge(&kit, 0, 512) } else { collapse(&kit, 0, 512) };
            kit.machine.mm.inject.arm(Site::ALL, 0, n, 1);
            let first = act();
            let asked = kit.machine.mm.inject.disarm();
            kit.audit();
            kit.check_in_place(0, 512);
            assert!(first == COPIED || first == failed(MergeCause::NoMemory), "{first:?}");
            assert!(act() == COPIED || first == COPIED);
            kit.check_in_place(0, 512);
            kit.audit();
            if asked <= n {
                break;
            }
        }
    }
}

#[test]
fn a_page_that_was_split_on_the_device_is_one_again_without_a_copy() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    kit.space.space().migrate(range(0, 512), DEV).expect("it is mapped");
    let folio_cut = LockedFolio::try_lock(folio(&kit, 0)).expect("nobody has it");
    assert_eq!(kit.space.space().split_folio(&folio_cut, at(0), 77), Ok(()));
    drop(folio_cut.unlock());
    kit.machine.fail_copies(0, u64::MAX);
    let (live, first) = (kit.machine.mm.folios_in_use(), frame(&kit, 0));
    assert_eq!(merge(&kit, 0, 512), IN_PLACE);
    assert!(kit.machine.mm.folios_in_use() < live);
    assert_eq!((kit.space.entry_at(at(0)).0, frame(&kit, 0)), (Level::Pmd, first));
    assert_eq!(folio(&kit, 0).order(), Order::PMD);
    assert_eq!(merge(&kit, 0, 512), ALREADY);
    kit.audit();
    kit.machine.fail_copies(0, 0);
    kit.check(0, 512);
    assert_eq!(kit.free(DEV), 8 * 512);
    kit.audit();
}

#[test]
fn scattered_pages_on_the_device_move_together_there() {
    let kit = on_device();
    let out = kit.machine.counted(Event::DevicePagesOut);
    assert_eq!(merge(&kit, 0, 1024).copied, 1);
    kit.audit();
    let (Level::Pmd, Entry::NonPresent(soft)) = kit.space.entry_at(at(0)) else { panic!("one huge entry") };
    assert_eq!((soft.kind, soft.frame.place()), (SoftKind::DevicePrivate, DEV));
    assert!(soft.attrs.contains(Attrs::WRITE | Attrs::EXCLUSIVE));
    assert_eq!(kit.machine.counted(Event::DevicePagesOut), out, "nothing went through RAM");
    assert_eq!(kit.free(DEV), 7 * 512);
    kit.machine.mm.zone(DEV).drain();
    assert_eq!(kit.machine.mm.zone(DEV).stat().chunks[9], 7, "what they left grew together");
    kit.check_in_place(0, 512);
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn what_cannot_be_merged_is_left_as_it_was() {
    let kit = on_device();
    let held = folio(&kit, 511);
    assert_eq!(merge(&kit, 0, 512), failed(MergeCause::Pinned));
    drop(held);
    kit.machine.fail_copies(1, 1);
    assert_eq!(merge(&kit, 0, 512), failed(MergeCause::CopyFailed));
    kit.audit();
    kit.check_in_place(0, 512);
    let full: Vec<_> =
        core::iter::from_fn(|| kit.machine.mm.alloc_folio(DEV, Order::PMD, Need::User).ok()).collect();
    assert_eq!(merge(&kit, 0, 512), failed(MergeCause::NoMemory));
    drop(full);
    let other = sharer(&kit);
    assert_eq!(merge(&kit, 0, 512), failed(MergeCause::Pinned), "others map them");
    drop(other);
    kit.try_read(100).expect("it comes back");
    assert_eq!(merge(&kit, 0, 512), failed(MergeCause::Elsewhere));
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn pages_that_do_not_allow_the_same_stay_small() {
    let kit = on_device();
    kit.space.space().protect(range(0, 512), Prot::READ).expect("it is mapped");
    kit.space.space().protect(range(0, 512), Prot::RW).expect("it is mapped");
    kit.try_write(3).expect("it comes back and may be written");
    kit.space.space().migrate(range(3, 1), DEV).expect("it is mapped");
    assert_eq!(merge(&kit, 0, 512), failed(MergeCause::Mixed));
    kit.check(0, 512);
    kit.audit();
}
