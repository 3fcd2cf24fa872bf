//! Several threads at one page, one folio, one address space: who comes second sleeps, and finds everything as it should be.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use farpage_mm::dmirror::PAGE_WORDS;
use farpage_mm::{
    Advice, Cause, Dmirror, Event, Frame, HugeAdvice, Migration, Order, PAGE_SIZE, PMD_SIZE, Place, VaRange,
};

use super::support::{
    BASE, DEV0, Held, Space, check, check_zero, counted, counting, fill, in_space, map, pattern, resident,
};
use crate::task::{JoinHandle, spawn, with_preemption_every, yield_now};
use crate::testing::Unmet;
use crate::vm::rig::{finish_copy, late_copies, pending_copies};
use crate::vm::user::{UserFault, user_read_u64};
use crate::vm::{Machine, activate, mm, new_space};

/// Both sizes of page, with a range of 2 MiB of them.
const SIZES: [HugeAdvice; 2] = [HugeAdvice::Huge, HugeAdvice::NoHuge];

/// The second device, whose copies can be late.
const DEV1: Place = Place::device(1);

/// Runs `test` with a new address space, loaded for this thread, that other threads can have too.
fn in_shared_space(test: impl FnOnce(&Arc<Space>) -> Result<(), Unmet>) -> Result<(), Unmet> {
    let space = Arc::new(new_space()?);
    let active = activate(&space);
    let result = test(&space);
    drop(active);
    result
}

/// A thread that reads a word of `space`.
fn reader(space: &Arc<Space>, addr: u64) -> JoinHandle<Result<u64, UserFault>> {
    let space = Arc::clone(space);
    spawn("reader", move || {
        let _active = activate(&space);
        user_read_u64(addr)
    })
}

/// Lets the others run until they sleep or have ended.
fn let_others_run() {
    for _ in 0..20 {
        yield_now();
    }
}

crate::ktest! {
    fn a_fault_on_a_busy_folio_sleeps_and_goes_on() {
        for advice in SIZES {
            in_shared_space(|space| {
                let range = map(space, PMD_SIZE, advice)?;
                fill(range, 61)?;
                for to in [DEV0, Place::RAM] {
                    // Every page is locked and a migration entry; the readers find it so.
                    let (migration, _) = space.space().migrate_collect(range, to)?;
                    let waits = counted(Event::FaultWait);
                    let at = |n: u64| range.start.0 + n * 8;
                    let readers: Vec<_> = (0..6).map(|n| reader(space, at(n))).collect();
                    let_others_run();
                    crate::check!(readers.iter().all(|reader| !reader.is_done()), "nobody reads what is on its way");
                    let migration = migration.unmap().copy();
                    let_others_run();
                    // Each has come once and sleeps since: nobody looks again and again.
                    crate::check_eq!(counted(Event::FaultWait) - waits, 6);
                    let (report, faults) = counting(Event::DeviceFault, || {
                        let report = migration.commit().finalize();
                        let_others_run();
                        report
                    });
                    crate::check_eq!(report.pages, 512);
                    for (reader, n) in readers.into_iter().zip(0..) {
                        crate::check_eq!(reader.join(), Ok(pattern(at(n), 61)));
                    }
                    crate::check_eq!(faults, u64::from(!to.is_ram()), "one of them brings it back, for all");
                    space.space().migrate(range, DEV0)?;
                }
                check(range, 61)
            })?;
        }
    }
}

crate::ktest! {
    fn a_device_that_meets_what_is_on_its_way_sleeps_and_a_snapshot_does_not() {
        for (advice, to) in SIZES.into_iter().flat_map(|advice| [(advice, DEV0), (advice, Place::RAM)]) {
            in_shared_space(|space| {
                let range = map(space, PMD_SIZE, advice)?;
                fill(range, 68)?;
                let device = Arc::new(Dmirror::open(DEV0, space)?);
                if to.is_ram() {
                    space.space().migrate(range, DEV0)?;
                }
                let (migration, _) = space.space().migrate_collect(range, to)?;
                let mut snapshot = [0xff; 3];
                device.snapshot(range.start, &mut snapshot)?;
                crate::check_eq!(snapshot, [0; 3], "nothing is there, and it does not wait");
                let there = Arc::clone(&device);
                let reader = spawn("device", move || {
                    let mut words = alloc::vec![0; PAGE_WORDS];
                    there.read(range.start, &mut words).map(|done| (done.faults, words[5]))
                });
                let_others_run();
                crate::check!(!reader.is_done(), "it waits for what is on its way");
                crate::check_eq!(migration.unmap().copy().commit().finalize().pages, 512);
                crate::check_eq!(reader.join()?, (1, pattern(range.start.0 + 40, 68)));
                let entry = device.mirror().entry(range.start).map(|entry| entry.frame.place());
                crate::check_eq!(entry, Some(to), "found where it arrived");
                check(range, 68)
            })?;
        }
    }
}

crate::ktest! {
    fn many_threads_at_one_device_page_move_it_once() {
        for (advice, seed) in SIZES.into_iter().flat_map(|advice| (0..6).map(move |seed| (advice, seed))) {
            in_shared_space(|space| {
                let range = map(space, PMD_SIZE, advice)?;
                fill(range, 62)?;
                space.space().migrate(range, DEV0)?;
                let before = counted(Event::DeviceOut);
                let (results, _) = with_preemption_every(150, seed, || {
                    let at = |n: u64| range.start.0 + n * 8;
                    let readers: Vec<_> = (0..12).map(|n| (n, reader(space, at(n)))).collect();
                    readers.into_iter().map(|(n, reader)| reader.join() == Ok(pattern(at(n), 62))).collect::<Vec<_>>()
                });
                crate::check!(results.iter().all(|&right| right), "{results:?}");
                crate::check_eq!(counted(Event::DeviceOut) - before, 1, "seed {seed}");
                check(range, 62)
            })?;
        }
    }
}

crate::ktest! {
    fn a_migration_is_parked_by_one_thread_and_finished_by_another() {
        for advice in SIZES {
            in_shared_space(|space| {
                let range = map(space, PMD_SIZE, advice)?;
                fill(range, 63)?;
                let there = Arc::clone(space);
                let begun = spawn("begins", move || {
                    there.space().migrate_collect(range, DEV0).map(|(migration, _)| migration.unmap())
                });
                let migration = begun.join()?;
                let finishes = spawn("finishes", move || migration.copy().commit().finalize());
                crate::check_eq!(finishes.join().pages, 512);
                crate::check_eq!(resident(0), 512);
                check(range, 63)
            })?;
        }
    }
}

/// A migration that stopped in some phase, to go on or to be given up by whoever has it.
enum Parked {
    Collected(Migration<Machine, farpage_mm::Collected>),
    Unmapped(Migration<Machine, farpage_mm::Unmapped>),
    Copied(Migration<Machine, farpage_mm::Copied>),
    Committed(Migration<Machine, farpage_mm::Committed>),
}

impl Parked {
    fn in_phase(phase: usize, migration: Migration<Machine, farpage_mm::Collected>) -> Self {
        match phase {
            0 => Self::Collected(migration),
            1 => Self::Unmapped(migration.unmap()),
            2 => Self::Copied(migration.unmap().copy()),
            _ => Self::Committed(migration.unmap().copy().commit()),
        }
    }

    fn go_on(self) {
        match self {
            Self::Collected(migration) => migration.unmap().copy().commit().finalize(),
            Self::Unmapped(migration) => migration.copy().commit().finalize(),
            Self::Copied(migration) => migration.commit().finalize(),
            Self::Committed(migration) => migration.finalize(),
        };
    }
}

/// What another thread does to the space of a migration that is parked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meanwhile {
    UnmapsAll,
    UnmapsHalf,
    Exits,
}

crate::ktest! {
    fn unmap_and_exit_come_between_the_phases() {
        for advice in SIZES {
            for phase in 0..4 {
                for meanwhile in [Meanwhile::UnmapsAll, Meanwhile::UnmapsHalf, Meanwhile::Exits] {
                    for gives_up in [false, true] {
                        meanwhile_in_phase(advice, phase, meanwhile, gives_up)?;
                        crate::memory::mm_audit().map_err(|error| Unmet::Failed(alloc::format!(
                            "{error} after {meanwhile:?} in phase {phase}, {advice:?}, given up: {gives_up}"
                        )))?;
                        crate::check_eq!(resident(0), 0, "{meanwhile:?} in phase {phase}, {advice:?}, {gives_up}");
                    }
                }
            }
        }
    }
}

fn meanwhile_in_phase(
    advice: HugeAdvice,
    phase: usize,
    meanwhile: Meanwhile,
    gives_up: bool,
) -> Result<(), Unmet> {
    let space = Arc::new(new_space()?);
    // The first half has pages, the second is a hole: both kinds of units.
    let range = VaRange::new(BASE, 2 * PMD_SIZE);
    let filled = VaRange::new(BASE, PMD_SIZE);
    let active = activate(&space);
    map(&space, range.len(), advice)?;
    fill(filled, 64)?;
    drop(active);
    let (migration, _) = space.space().migrate_collect(range, DEV0)?;
    let migration = Parked::in_phase(phase, migration);
    let other = spawn("meanwhile", move || {
        match meanwhile {
            Meanwhile::UnmapsAll => space.space().unmap(range)?,
            Meanwhile::UnmapsHalf => space.space().unmap(VaRange::new(BASE + PMD_SIZE / 2, PMD_SIZE))?,
            Meanwhile::Exits => return Ok(None),
        }
        Ok::<_, farpage_mm::RangeError>(Some(space))
    });
    let left = other.join()?;
    // Somebody else takes what was freed: page tables, frames, descriptors, the space's own slot.
    in_space(|space| {
        let range = map(space, PMD_SIZE, HugeAdvice::NoHuge)?;
        fill(range, 65)?;
        if gives_up {
            drop(migration);
        } else {
            migration.go_on();
        }
        check(range, 65)
    })?;
    let Some(space) = left else { return Ok(()) };
    let _active = activate(&space);
    if meanwhile == Meanwhile::UnmapsHalf {
        check(VaRange::new(BASE, PMD_SIZE / 2), 64)?;
        check_zero(VaRange::new(BASE + 3 * PMD_SIZE / 2, PMD_SIZE / 2))?;
    }
    Ok(())
}

crate::ktest! {
    needs(devices = 2)
    fn who_waits_for_a_late_copy_sleeps_and_so_does_who_comes_after() {
        for advice in SIZES {
            in_shared_space(|space| {
                let range = map(space, PMD_SIZE, advice)?;
                fill(range, 66)?;
                space.space().migrate(range, DEV1)?;
                let before = counted(Event::DeviceOut);
                let late = late_copies();
                let waits = counted(Event::FaultWait);
                let readers: Vec<_> = (0..5).map(|n| (n, reader(space, range.start.0 + n * 8))).collect();
                let_others_run();
                // One waits for the copy, four for the folio.
                let pending: Vec<_> = pending_copies().collect();
                crate::check_eq!((pending.len(), counted(Event::FaultWait) - waits), (1, 4));
                crate::check!(readers.iter().all(|(_, reader)| !reader.is_done()));
                finish_copy(pending[0], 0);
                for (n, reader) in readers {
                    crate::check_eq!(reader.join(), Ok(pattern(range.start.0 + n * 8, 66)));
                }
                drop(late);
                crate::check_eq!(counted(Event::DeviceOut) - before, 1);
                check(range, 66)
            })?;
        }
    }
}

crate::ktest! {
    needs(devices = 2)
    fn late_copies_may_end_in_any_order_and_fail() {
        in_shared_space(|space| {
            let range = map(space, 4 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 67)?;
            let part = move |n: u64| VaRange::new(range.start.0 + n * PMD_SIZE, PMD_SIZE);
            let late = late_copies();
            let movers: Vec<_> = (0..4)
                .map(|n| {
                    let space = Arc::clone(space);
                    spawn("mover", move || space.space().migrate(part(n), DEV1))
                })
                .collect();
            let_others_run();
            let pending: Vec<_> = pending_copies().collect();
            crate::check_eq!(pending.len(), 4);
            // The last first, and the second one fails.
            for (n, fence) in pending.into_iter().enumerate().rev() {
                crate::check!(!movers[n].is_done());
                finish_copy(fence, u32::from(n == 1));
                let_others_run();
                crate::check!(movers[n].is_done(), "mover {n}");
            }
            for (n, mover) in movers.into_iter().enumerate() {
                let report = mover.join()?;
                crate::check_eq!((report.pages, report.failed_pages()), if n == 1 { (0, 512) } else { (512, 0) });
            }
            drop(late);
            crate::check_eq!(resident(1), 3 * PMD_SIZE / PAGE_SIZE);
            check(range, 67)
        })?;
    }
}

/// Frames of the device that are free while a page is made, and evicted.
const FREE: u32 = 4;

/// A hole gets a page on the device, in a frame that somebody else is just looking at to evict what is there. Whoever makes the
/// page has its lock first: it cannot be lost to an eviction before it is mapped. How often the two met.
fn makes_what_another_evicts(space: &Arc<Space>, seed: u64) -> Result<u64, Unmet> {
    let range = map(space, PAGE_SIZE, HugeAdvice::NoHuge)?;
    let frames: [Frame; FREE as usize] = core::array::from_fn(|n| Frame::new(DEV0, n as u32));
    let ended = Arc::new(AtomicBool::new(false));
    let (result, preempted) = with_preemption_every(400, seed, || {
        let end = Arc::clone(&ended);
        let evicts = spawn("evicts", move || {
            let mut met = 0;
            while !end.load(Relaxed) {
                let report = mm().evict_frames(&frames);
                met += report.pages + report.failed_pages();
            }
            met
        });
        let makes = || {
            let mut made = 0;
            for round in 0..1000 {
                let report = space.space().migrate(range, DEV0)?;
                // An eviction may still hold the frames of the rounds before.
                let full = report.failed[Cause::NoMemory as usize];
                crate::check_eq!(report.pages + full, 1, "round {round}, seed {seed}: {report:?}");
                made += report.pages;
                space.space().advise(range, Advice::DontNeed)?;
            }
            crate::check!(made > 500, "{made} with seed {seed}");
            Ok(())
        };
        let made: Result<(), Unmet> = makes();
        ended.store(true, Relaxed);
        let met = evicts.join();
        made.map(|()| met)
    });
    crate::check!(preempted > 1000, "{preempted} with seed {seed}");
    space.space().unmap(range)?;
    result
}

crate::ktest! {
    fn a_page_that_is_being_made_is_not_lost_to_an_eviction() {
        in_shared_space(|space| {
            let mut held = Held::all(DEV0, Order::BASE);
            held.give_back_those(|frame| frame.index() < FREE);
            let mut met = 0;
            for seed in 0..4 {
                met += makes_what_another_evicts(space, seed)?;
            }
            crate::check!(met > 50, "{met}: the other hardly ever found a page");
            drop(held);
            crate::check_eq!(resident(0), 0);
            check_zero(map(space, PAGE_SIZE, HugeAdvice::NoHuge)?)
        })?;
    }
}
