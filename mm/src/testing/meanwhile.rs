//! What others do in the middle of something: at every lock that it takes, or while an engine copies.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::MergeReport;
use crate::advise::Advice;
use crate::counters::Event;
use crate::entry::{Entry, SoftKind};
use crate::migrate::{Cause, MigrateFlags, MigrateOptions, Report};
use crate::testing::clone::fork;
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, one};
use crate::vma::HugeAdvice::{self, Default as Small, Huge};

/// Pages of the kit's space that are on the device.
fn on_device(kit: &Kit, len: u64) -> u64 {
    let is_there = |page: &u64| {
        let entry = kit.space.entry_at(at(*page)).1;
        matches!(entry, Entry::NonPresent(soft) if soft.kind == SoftKind::DevicePrivate)
    };
    (0..len).filter(is_there).count() as u64
}

/// What a relative does while a copy is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Relative {
    /// Drops its migration entries of the page that is copied.
    Unmaps,
    /// Has a clone of its own, which gets such entries.
    Clones,
}

/// A page that two spaces share is copied to the device for one of them. It is cloned while that is under way, so that another
/// space has migration entries of the page too; and that one changes their number at the `n`-th lock of the commit. False when
/// the commit takes fewer.
fn copy_with_a_relative(advice: HugeAdvice, forgotten: bool, relative: Relative, n: u64) -> bool {
    let len = if advice == Huge { 512 } else { 1 };
    let kit = Kit::on(&Config { ram: one(512..512 + 12 * 512), ..Config::default() });
    kit.map(0, len, advice);
    kit.fill(0, len);
    let other = fork(&kit);
    let space = kit.space.space();
    let options = MigrateOptions::to(DEV).with(MigrateFlags::FAULT | MigrateFlags::WRITE);
    let (copy, _) = space.migrate_collect_with(range(0, len), DEV, &options).expect("it is mapped");
    let copied = copy.unmap().copy();
    let child = Rc::new(fork(&kit));
    if forgotten {
        space.advise(range(0, len), Advice::DontNeed).expect("it is mapped");
    }
    let grandchild = Rc::new(RefCell::new(None));
    let (of, to) = (Rc::clone(&child), Rc::clone(&grandchild));
    let meddler = move || match relative {
        Relative::Unmaps => of.space().unmap(range(0, len)).expect("memory for the work"),
        Relative::Clones => *to.borrow_mut() = Some(of.clone_of(|_| {}).expect("memory for a clone")),
    };
    *kit.machine.on_lock.borrow_mut() = Some((n, Box::new(meddler)));
    let report = copied.commit().finalize();
    let reached = kit.machine.on_lock.take().is_none();
    let what = format!("{advice:?}, {forgotten}, {relative:?} at lock {n}");
    assert_eq!(report.pages, on_device(&kit, len), "{what}: what is said is what was done");
    assert_eq!(report.pages, if forgotten { 0 } else { len }, "{what}");
    kit.audit();
    if !forgotten {
        kit.check(0, len);
    }
    drop((grandchild, child, other));
    kit.audit();
    reached
}

#[test]
fn what_relatives_do_meanwhile_is_not_the_fate_of_a_copy() {
    for advice in [Small, Huge] {
        for forgotten in [false, true] {
            for relative in [Relative::Unmaps, Relative::Clones] {
                let locks =
                    (0..).take_while(|&n| copy_with_a_relative(advice, forgotten, relative, n)).count();
                assert!(locks > 2, "{locks} locks in a commit");
            }
        }
    }
}

/// Pages of the device that never were one: 512 of the kit's space, in mixed order.
fn scattered() -> Kit {
    let kit = Kit::new();
    kit.map(0, 512, Small);
    kit.fill(0, 512);
    let migrate = |start, len| kit.space.space().migrate(range(start, len), DEV).expect("it is mapped").pages;
    assert_eq!(migrate(1, 1) + migrate(0, 512), 512);
    kit
}

#[test]
fn an_eviction_tells_of_pages_that_are_frozen_for_a_merge() {
    let kit = scattered();
    let seen = Rc::new(Cell::new(None));
    let note = Rc::clone(&seen);
    let mm = &kit.machine.state().mm;
    *kit.machine.on_copy.borrow_mut() =
        Some(Box::new(move || note.set(Some(mm.evict_range(DEV, 0..u32::MAX)))));
    let merged = kit.space.space().merge_device(range(0, 512)).expect("a range");
    assert_eq!(merged, MergeReport { copied: 1, ..MergeReport::default() });
    let report: Report = seen.take().expect("an engine copied");
    // The small pages are there, whoever looks for them; and so is the memory that they are copied to.
    let failed = |cause| report.failed[cause as usize];
    assert_eq!((report.pages, failed(Cause::Busy), failed(Cause::Pinned)), (0, 512, 512));
    kit.audit();
    let report = mm.evict_range(DEV, 0..u32::MAX);
    assert_eq!((report.pages, report.failed_pages(), kit.free(DEV)), (512, 0, 8 * 512));
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn a_merge_counts_the_pages_that_nobody_mapped_any_more() {
    let kit = Kit::with_dead_parts(&[(0, 256)]);
    kit.fill(0, 256);
    let back = kit.space.space().migrate(range(0, 256), DEV).expect("it is mapped");
    assert_eq!((back.pages, kit.free(DEV)), (256, 6 * 512 + 256));
    let merged = kit.space.space().merge_device(range(0, 512)).expect("a range");
    assert_eq!((merged.copied, kit.free(DEV)), (1, 7 * 512));
    let stat = kit.machine.mm.device(0).stat();
    assert_eq!((stat.pages_in, stat.pages_dropped, stat.resident), (768, 256, 512));
    assert_eq!(kit.machine.counted(Event::DevicePagesDropped), 256);
    kit.audit();
    kit.check(0, 512);
    let stat = kit.machine.mm.device(0).stat();
    assert_eq!(stat.pages_in, stat.out.pages() + stat.pages_dropped, "all are accounted for");
    kit.audit();
}

#[test]
fn a_second_split_does_not_forget_dead_parts() {
    let kit = Kit::with_dead_parts(&[(100, 10), (300, 10)]);
    // Cuts off the beginning, and leaves the dead parts in what is cut off there.
    kit.space.space().unmap(range(0, 64)).expect("it is mapped");
    assert_eq!(kit.free(DEV), 7 * 512 + 64);
    assert!(kit.machine.mm.split_deferred(DEV) >= 4);
    assert_eq!(kit.free(DEV), 7 * 512 + 64 + 20);
    assert_eq!(kit.machine.mm.split_deferred(DEV), 0, "nothing is left to do");
    kit.audit();
    kit.check(64, 36);
    kit.check(310, 202);
    kit.audit();
}
