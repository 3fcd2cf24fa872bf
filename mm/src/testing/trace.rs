//! What is recorded of faults, migrations and steps.

use crate::FaultInfo;
use crate::advise::Advice;
use crate::error::FaultError;
use crate::inject::Site;
use crate::migrate::Cause;
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Meddler, State};
use crate::trace::{Kind, Outcome, Phase, Record, Tracing};
use crate::types::{Access, Order, Place};
use crate::vma::HugeAdvice::{Default as Small, Huge};

/// What `work` recorded.
fn traced(kit: &Kit, level: Tracing, work: impl FnOnce()) -> Vec<Record> {
    kit.machine.mm.watch_allocations(level == Tracing::Steps);
    kit.machine.tracing.set(level);
    work();
    kit.machine.tracing.set(Tracing::Off);
    kit.machine.mm.watch_allocations(false);
    let records = kit.machine.records.take();
    records.iter().for_each(in_order);
    records
}

/// Its phases follow each other, without a gap, from the beginning to the end.
fn in_order(record: &Record) {
    let mut last = (None, record.start);
    for (phase, begin, end) in record.phases() {
        assert!(last.0 < Some(phase) && begin == last.1 && begin < end, "{phase:?} of {record:?}");
        last = (Some(phase), end);
    }
    assert_eq!((last.1, record.end() > record.start), (record.end(), true), "{record:?}");
}

fn phases(record: &Record) -> Vec<Phase> {
    record.phases().map(|(phase, ..)| phase).collect()
}

fn kinds(records: &[Record]) -> Vec<Kind> {
    records.iter().map(Record::kind).collect()
}

/// A page of 4 KiB, or of 2 MiB, on the device.
fn on_device(huge: bool) -> Kit {
    let kit = Kit::new();
    kit.map(0, 512, if huge { Huge } else { Small });
    kit.fill(0, 512);
    kit.space.space().migrate(range(0, 512), DEV).expect("it is mapped");
    kit
}

#[test]
fn nothing_is_recorded_when_it_is_off() {
    let kit = on_device(false);
    kit.check(0, 512);
    assert_eq!(
        (kit.machine.records.take(), kit.machine.clock.get()),
        (vec![], 0),
        "the clock was not read either"
    );
    kit.audit();
}

#[test]
fn a_fault_back_is_one_record_with_its_phases() {
    for huge in [false, true] {
        let kit = on_device(huge);
        let home = kit.folio(3).frame();
        let records = traced(&kit, Tracing::Units, || kit.check(3, 1));
        assert_eq!(kinds(&records), [Kind::Fault]);
        let fault = &records[0];
        let gone = [Phase::Collect, Phase::Alloc, Phase::Copy, Phase::Commit, Phase::Finalize];
        assert_eq!(phases(fault), gone);
        let order = if huge { Order::PMD } else { Order::BASE };
        assert_eq!((fault.addr, fault.order(), fault.outcome()), (at(3), order, Outcome::Returned));
        assert_eq!((fault.from(), fault.to()), (DEV, Place::RAM));
        assert_eq!(fault.frame(), Some(kit.folio(3).frame()));
        assert_ne!(fault.frame(), Some(home));
        kit.audit();
    }
}

#[test]
fn a_fault_back_in_pieces_is_one_record_too() {
    let kit = on_device(true);
    kit.machine.mm.inject.arm(Site::RamFolio as u32, 9, 0, 2);
    let records = traced(&kit, Tracing::Units, || kit.check(3, 1));
    kit.machine.mm.inject.disarm();
    assert_eq!(kinds(&records), [Kind::Fault]);
    let through_a_batch = [
        Phase::Collect,
        Phase::Unmap,
        Phase::Flush,
        Phase::Alloc,
        Phase::Copy,
        Phase::Commit,
        Phase::Finalize,
    ];
    assert_eq!(phases(&records[0]), through_a_batch);
    assert_eq!((records[0].outcome(), records[0].from()), (Outcome::Returned, DEV));
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn a_fault_on_a_folio_that_is_to_be_cut_waits_for_the_cut() {
    let kit = Kit::with_dead_parts(&[(100, 50)]);
    let records = traced(&kit, Tracing::Steps, || kit.check(3, 1));
    let fault = records.last().expect("a fault");
    assert_eq!((fault.kind(), fault.outcome()), (Kind::Fault, Outcome::Returned));
    let (wait, begin, end) = fault.phases().next().expect("phases");
    assert_eq!(wait, Phase::Wait);
    let split = records.iter().find(|record| record.kind() == Kind::Split).expect("a split");
    assert!(begin < split.start && split.end() < end, "the cut is what it waited for");
    assert_eq!((split.addr, split.order(), split.outcome()), (at(3), Order::PMD, Outcome::Done));
    kit.audit();
}

/// Does `work` at the relaxation after `n` others.
fn at_relaxation(machine: &'static State, n: u32, mut work: Meddler) {
    let next: Meddler = if n == 0 {
        work
    } else {
        let mut work = Some(core::mem::replace(&mut work, Box::new(|| {})));
        Box::new(move || {
            if let Some(work) = work.take() {
                at_relaxation(machine, n - 1, work);
            }
        })
    };
    *machine.on_relax.borrow_mut() = Some(next);
}

#[test]
fn a_look_that_came_to_nothing_leaves_no_marks() {
    let kit = on_device(false);
    let space = kit.space.space();
    // Somebody holds the page until the fault has waited for it with the folio locked, and let go. Then another brings it back.
    let mut held = Some(kit.folio(3));
    let another = move || {
        drop(held.take());
        space.handle_fault(&FaultInfo::new(at(3), Access::Read)).expect("memory");
    };
    at_relaxation(kit.machine.state(), 64, Box::new(another));
    let records = traced(&kit, Tracing::Units, || kit.check(3, 1));
    let found: Vec<_> = records.iter().map(|fault| (fault.outcome(), phases(fault))).collect();
    let whole = [Phase::Collect, Phase::Alloc, Phase::Copy, Phase::Commit, Phase::Finalize].to_vec();
    let late = [Phase::Wait, Phase::Finalize].to_vec();
    assert_eq!(found, [(Outcome::Returned, whole), (Outcome::Spurious, late)]);
    kit.audit();
}

#[test]
fn first_touches_and_copies_have_their_phases() {
    let kit = Kit::new();
    kit.map(0, 512, Small);
    kit.map(512, 512, Huge);
    let space = kit.space.space();
    let touch = |page, access| {
        let records = traced(&kit, Tracing::Units, || {
            space.handle_fault(&FaultInfo::new(at(page), access)).expect("memory");
        });
        assert_eq!((records.len(), records[0].addr), (1, at(page)));
        (records[0].outcome(), records[0].order(), phases(&records[0]))
    };
    let fresh = [Phase::Alloc, Phase::Copy, Phase::Finalize].to_vec();
    let found = [Phase::Finalize].to_vec();
    assert_eq!(touch(0, Access::Write), (Outcome::Allocated, Order::BASE, fresh.clone()));
    assert_eq!(touch(512, Access::Write), (Outcome::Allocated, Order::PMD, fresh.clone()));
    assert_eq!(touch(1, Access::Read), (Outcome::ZeroPage, Order::BASE, found.clone()));
    assert_eq!(touch(0, Access::Read), (Outcome::Spurious, Order::BASE, found));
    let copied = [Phase::Copy, Phase::Finalize].to_vec();
    assert_eq!(touch(1, Access::Write).2, copied, "the zero page gives way");
    kit.audit();
}

#[test]
fn a_fault_that_is_refused_says_why() {
    let kit = on_device(false);
    let space = kit.space.space();
    let refused = |fault: FaultInfo, error: FaultError, outcome| {
        let records = traced(&kit, Tracing::Units, || assert_eq!(space.handle_fault(&fault), Err(error)));
        assert_eq!(kinds(&records), [Kind::Fault]);
        assert_eq!((records[0].addr, records[0].outcome()), (fault.addr, outcome));
    };
    refused(FaultInfo::new(at(5000), Access::Read), FaultError::NoVma(at(5000)), Outcome::NoVma);
    refused(FaultInfo::new(at(1), Access::Exec), FaultError::Access(at(1), Access::Exec), Outcome::Access);
    kit.machine.fail_copies(0, 1);
    refused(FaultInfo::new(at(1), Access::Read), FaultError::Device(at(1)), Outcome::Device);
    kit.machine.mm.inject.arm(Site::RamFolio as u32, 0, 0, u64::MAX);
    refused(FaultInfo::new(at(1), Access::Read), FaultError::Oom(at(1)), Outcome::NoMemory);
    kit.machine.mm.inject.disarm();
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn a_migration_is_a_batch_with_its_units_within() {
    let kit = Kit::new();
    kit.map(0, 100, Small);
    kit.fill(0, 90);
    let space = kit.space.space();
    let records = traced(&kit, Tracing::Units, || {
        space.migrate(range(0, 100), DEV).expect("it is mapped");
    });
    let (batch, units) = records.split_last().expect("records");
    assert_eq!((batch.kind(), batch.outcome()), (Kind::Batch, Outcome::Done));
    assert_eq!((batch.addr, batch.from(), batch.to()), (at(0), Place::RAM, DEV));
    assert_eq!((batch.number() as usize, batch.frame()), (units.len(), None));
    let all = [
        Phase::Collect,
        Phase::Unmap,
        Phase::Flush,
        Phase::Alloc,
        Phase::Copy,
        Phase::Commit,
        Phase::Finalize,
    ];
    assert_eq!(phases(batch), all);
    let ends: Vec<_> = batch.phases().map(|(_, _, end)| end).collect();
    let mut pages = 0;
    for unit in units {
        assert!(batch.start < unit.start && unit.end() < batch.end(), "{unit:?}");
        assert!(unit.start < ends[0], "taken while it was collected");
        assert_eq!(phases(unit), all[1..], "{unit:?}");
        let shared: Vec<_> = unit.phases().map(|(_, _, end)| end).take(5).collect();
        assert_eq!(shared, ends[1..6]);
        let page = (unit.addr.0 - at(0).0) / 4096;
        assert_eq!(unit.outcome(), if page < 90 { Outcome::Moved } else { Outcome::Filled });
        assert_eq!(unit.frame(), Some(kit.folio(page).frame()), "page {page}");
        pages += unit.order().pages();
    }
    assert_eq!(pages, 100);
    kit.audit();
}

#[test]
fn units_that_stay_and_migrations_that_are_dropped_are_recorded() {
    let kit = Kit::new();
    kit.map(0, 8, Small);
    kit.fill(0, 8);
    let space = kit.space.space();
    let held = kit.folio(3);
    let records = traced(&kit, Tracing::Units, || {
        let report = space.migrate(range(0, 8), DEV).expect("it is mapped");
        assert_eq!(report.failed[Cause::Pinned as usize], 1);
    });
    drop(held);
    let stayed: Vec<_> = records.iter().filter(|record| record.outcome() == Outcome::Held).collect();
    assert_eq!((stayed.len(), stayed[0].kind(), stayed[0].addr), (1, Kind::Unit, at(3)));
    assert_eq!((stayed[0].from(), stayed[0].to()), (Place::RAM, Place::RAM));
    assert_eq!((records.len(), records[8].number()), (9, 7));
    let records = traced(&kit, Tracing::Units, || {
        let (migration, _) = space.migrate_collect(range(0, 8), Place::RAM).expect("it is mapped");
        drop(migration.unmap().copy());
    });
    assert_eq!(kinds(&records), [Kind::Batch]);
    assert_eq!(records[0].outcome(), Outcome::PutBack);
    // What was noted of units is forgotten: the next batch, which nobody records, finds nothing.
    kit.fill(0, 8);
    kit.machine.fail_copies(0, 1);
    let (migration, _) = space.migrate_collect(range(0, 8), DEV).expect("it is mapped");
    let records = traced(&kit, Tracing::Units, || {
        let _report = migration.unmap().copy().commit().finalize();
    });
    assert_eq!(records, [], "a batch is recorded from its beginning or not at all");
    kit.audit();
}

#[test]
fn steps_lie_within_what_they_are_steps_of() {
    let kit = Kit::new();
    kit.map(0, 1024, Huge);
    kit.fill(0, 1024);
    let space = kit.space.space();
    let records = traced(&kit, Tracing::Steps, || {
        space.migrate(range(0, 1024), DEV).expect("it is mapped");
        // A part: the mapping is cut, and the folio.
        space.migrate(range(100, 50), Place::RAM).expect("it is mapped");
        kit.check(600, 1);
        space.advise(range(700, 1), Advice::DontNeed).expect("it is mapped");
        kit.machine.mm.evict_range(DEV, 0..8 * 512);
        space.collapse(range(0, 512)).expect("it is mapped");
    });
    for kind in [Kind::Batch, Kind::Unit, Kind::Fault, Kind::Frames, Kind::Table, Kind::Flush, Kind::Copies] {
        assert!(kinds(&records).contains(&kind), "{kind:?}");
    }
    for kind in [Kind::Split, Kind::SplitMapping, Kind::Evict, Kind::Collapse] {
        assert!(kinds(&records).contains(&kind), "{kind:?}");
    }
    let nested = |a: &Record, b: &Record| a.start <= b.start && b.end() <= a.end();
    let apart = |a: &Record, b: &Record| a.end() < b.start || b.end() < a.start;
    for (n, a) in records.iter().enumerate().filter(|(_, a)| a.kind() != Kind::Unit) {
        for b in records[..n].iter().filter(|b| b.kind() != Kind::Unit) {
            // In the order of their ends: what came before is within, or over.
            assert!(nested(a, b) || apart(a, b), "{a:?} lies across {b:?}");
        }
    }
    let evict = records.iter().find(|record| record.kind() == Kind::Evict).expect("one");
    assert!(records.iter().any(|batch| batch.kind() == Kind::Batch && nested(evict, batch)));
    assert!(evict.number() > 0 && evict.from() == DEV);
    kit.audit();
}

#[test]
fn a_fault_that_sleeps_keeps_its_record_while_another_thread_faults() {
    let kit = on_device(false);
    let space = kit.space.space();
    let (migration, _) = space.migrate_collect(range(3, 1), Place::RAM).expect("it is mapped");
    let mut parked = Some(migration);
    *kit.machine.on_wait.borrow_mut() = Some(Box::new(move || {
        space.handle_fault(&FaultInfo::new(at(9), Access::Read)).expect("memory");
        let _report = parked.take().map(|migration| migration.unmap().copy().commit().finalize());
    }));
    let records = traced(&kit, Tracing::Steps, || kit.check(3, 1));
    let faults: Vec<_> = records.iter().filter(|record| record.kind() == Kind::Fault).collect();
    assert_eq!(faults.iter().map(|fault| fault.addr).collect::<Vec<_>>(), [at(9), at(3)]);
    assert_eq!([faults[0].outcome(), faults[1].outcome()], [Outcome::Returned, Outcome::Spurious]);
    let (phase, begin, end) = faults[1].phases().next().expect("phases");
    assert_eq!(phase, Phase::Wait);
    let sleep = records.iter().find(|record| record.kind() == Kind::Sleep).expect("it slept");
    assert!(begin < sleep.start && sleep.end() < end && sleep.addr == at(3));
    assert!(sleep.start < faults[0].start && faults[0].end() < sleep.end());
    kit.audit();
}
