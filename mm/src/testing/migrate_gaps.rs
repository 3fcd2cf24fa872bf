//! What a migration does about folios that others hold, and what it counts when it fails.

use crate::counters::Event;
use crate::entry::Entry;
use crate::error::FaultError;
use crate::folio::{FolioRef, LockedFolio};
use crate::machine::FlushReason;
use crate::migrate::Cause;
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::Soft;
use crate::types::{PAGE_SIZE, Place, VaRange};
use crate::vma::HugeAdvice::{Default as Small, Huge};

/// A handle of the folio that is mapped at a page.
pub(super) fn hold(kit: &Kit, page: u64) -> FolioRef<Soft> {
    let (level, entry) = kit.space.entry_at(at(page));
    let frame = match entry {
        Entry::Leaf(leaf) => leaf.frame,
        Entry::NonPresent(soft) => soft.frame,
        other => panic!("page {page} is {other:?}"),
    };
    let inside = if level.size() == PAGE_SIZE { 0 } else { page as u32 % 512 };
    kit.machine.mm.try_get_folio(frame.offset(inside)).expect("it has a folio")
}

/// The same, locked.
pub(super) fn lock(kit: &Kit, page: u64) -> LockedFolio<Soft> {
    LockedFolio::try_lock(hold(kit, page)).unwrap_or_else(|_| panic!("page {page} is locked"))
}

#[test]
fn what_a_parked_migration_owes_is_flushed_once_for_all_its_entries() {
    let kit = Kit::new();
    kit.map(0, 600, Small);
    kit.fill(0, 600);
    let space = kit.space.space();
    let (parked, _) = space.migrate_collect(range(0, 500), DEV).expect("memory for the work");
    assert_eq!(kit.space.flush.pending(), 500);
    let owed = |kit: &Kit| kit.machine.flushed(FlushReason::Owed);
    // Migration entries and present ones by turns: the gather of the unmap owes flushes of its own in between.
    space.unmap(range(400, 200)).expect("it is mapped");
    assert_eq!((owed(&kit), kit.machine.counted(Event::TlbFlushOwed)), (1, 1));
    space.unmap(range(0, 100)).expect("it is mapped");
    assert_eq!(owed(&kit), 2, "one more for a call that comes after other entries were cleared");
    // Another gather owes more: that is not covered.
    kit.map(1000, 10, Small);
    kit.fill(1000, 10);
    let (more, _) = space.migrate_collect(range(1000, 10), DEV).expect("memory for the work");
    space.unmap(range(1000, 5)).expect("it is mapped");
    assert_eq!(owed(&kit), 3);
    drop(more);
    drop(parked);
    kit.check(100, 300);
    kit.check(1005, 5);
    kit.audit();
}

#[test]
fn a_busy_folio_is_counted_once_with_all_its_pages() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    // One mapping more would be a PMD: unmapping a page makes PTEs and pieces of orders 0 to 8.
    kit.space.space().unmap(range(3, 1)).expect("memory for the split");
    let before = kit.machine.counted(Event::MigrateFail);
    let busy = lock(&kit, 64);
    assert_eq!(busy.order().get(), 6, "pages 64 to 127");
    let report = kit.space.space().migrate(VaRange::between(at(4), at(512)), DEV).expect("it is mapped");
    assert_eq!((report.pages, report.failed[Cause::Busy as usize]), (508 - 64, 64));
    assert_eq!(report.failed_pages(), 64);
    assert_eq!(kit.machine.counted(Event::MigrateFail) - before, 1, "one unit");
    drop(busy.unlock());
    kit.check_in_place(4, 508);
    kit.audit();
}

#[test]
fn a_fault_waits_for_a_reference_that_is_dropped_soon() {
    for huge in [false, true] {
        let kit = Kit::new();
        kit.map(0, 512, if huge { Huge } else { Small });
        kit.fill(0, 512);
        kit.space.space().migrate(range(0, 512), DEV).expect("it is mapped");
        let held = hold(&kit, 7);
        let mut held = Some(held);
        *kit.machine.on_relax.borrow_mut() = Some(Box::new(move || drop(held.take())));
        let fails = kit.machine.counted(Event::MigrateFail);
        kit.check(7, 1);
        assert!(kit.machine.on_relax.borrow().is_none(), "it looked again");
        assert_eq!(kit.machine.counted(Event::DeviceFault), 1);
        assert_eq!(kit.machine.counted(Event::MigrateFail) - fails, 1, "the try that failed counts");
        kit.check(0, 512);
        kit.audit();
    }
}

#[test]
fn a_fault_gives_up_on_a_page_that_stays_held_and_says_so() {
    let kit = Kit::new();
    kit.map(0, 8, Small);
    kit.fill(0, 8);
    kit.space.space().migrate(range(0, 8), DEV).expect("it is mapped");
    let held = hold(&kit, 5);
    assert_eq!(kit.try_read(5), Err(FaultError::Held(at(5))));
    assert!(held.place() == DEV && !held.is_locked());
    kit.check(4, 1);
    drop(held);
    kit.check(0, 8);
    kit.audit();
}

#[test]
fn a_fault_back_that_fails_counts_like_a_batch() {
    let kit = Kit::new();
    kit.map(0, 8, Small);
    kit.fill(0, 8);
    kit.space.space().migrate(range(0, 8), DEV).expect("it is mapped");
    let counts = |kit: &Kit| (kit.machine.counted(Event::MigrateFail), kit.machine.counted(Event::AllocFail));
    let before = counts(&kit);
    kit.machine.fail_copies(0, 1);
    assert_eq!(kit.try_read(0), Err(FaultError::Device(at(0))));
    assert_eq!(counts(&kit), (before.0 + 1, before.1));
    kit.machine.mm.inject.arm(crate::inject::Site::RamFolio as u32, 0, 0, u64::MAX);
    assert_eq!(kit.try_read(0), Err(FaultError::Oom(at(0))));
    kit.machine.mm.inject.disarm();
    assert_eq!(counts(&kit), (before.0 + 2, before.1 + 1));
    assert_eq!(kit.space.space().migrate(range(0, 8), Place::RAM).map(|r| r.pages), Ok(8));
    kit.check(0, 8);
    kit.audit();
}
