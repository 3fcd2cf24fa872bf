//! The trace: what the ring keeps and counts, and that records of several threads do not mix.

use alloc::sync::Arc;
use alloc::vec::Vec;

use farpage_mm::trace::{Kind, Outcome, Phase, Record, Tracing};
use farpage_mm::{Event, HugeAdvice, PAGE_SIZE, PMD_SIZE, Place, VaRange};

use super::support::{BASE, DEV0, Space, check, counted, fill, in_space, map};
use crate::measure::measure;
use crate::task::{JoinHandle, spawn, with_preemption_every};
use crate::testing::Unmet;
use crate::vm::trace::{Recorded, held, record};
use crate::vm::user::user_touch_read;
use crate::vm::{activate, new_space};

impl From<crate::vm::trace::NoRoom> for Unmet {
    fn from(error: crate::vm::trace::NoRoom) -> Self {
        Self::Failed(alloc::format!("{error}"))
    }
}

/// 512 pages of 4 KiB on the device.
fn on_device(space: &Space) -> Result<VaRange, Unmet> {
    let range = map(space, PMD_SIZE, HugeAdvice::NoHuge)?;
    fill(range, 5)?;
    space.space().migrate(range, DEV0)?;
    Ok(range)
}

/// Reads a byte of the first `n` pages.
fn touch(range: VaRange, n: u64) -> Result<(), Unmet> {
    for page in 0..n {
        user_touch_read(range.start.0 + page * PAGE_SIZE)?;
    }
    Ok(())
}

/// The phases follow each other from the beginning to the end.
fn in_order(record: &Record) -> Result<(), Unmet> {
    let mut last = record.start;
    for (phase, begin, end) in record.phases() {
        crate::check!(begin == last && begin < end, "{phase:?} of {record:?}");
        last = end;
    }
    crate::check_eq!(last, record.end());
    Ok(())
}

crate::ktest! {
    fn a_storm_of_faults_is_as_many_records() {
        in_space(|space| {
            let range = on_device(space)?;
            let Recorded { result, records, lost } = record(Tracing::Units, 1024, || touch(range, 500))?;
            result?;
            crate::check_eq!((records.len(), lost), (500, 0));
            for (record, page) in records.iter().zip(0..) {
                in_order(record)?;
                crate::check_eq!(record.addr.0, range.start.0 + page * PAGE_SIZE);
                crate::check_eq!((record.kind(), record.outcome()), (Kind::Fault, Outcome::Returned));
                crate::check_eq!((record.from(), record.to()), (DEV0, Place::RAM));
                crate::check!(record.phases().any(|(phase, begin, end)| phase == Phase::Copy && end - begin >= 512));
            }
            check(range, 5)
        })?;
    }
}

crate::ktest! {
    fn a_ring_keeps_the_last_records_and_counts_those_that_it_lost() {
        in_space(|space| {
            let range = on_device(space)?;
            for (n, room, kept) in [(63, 64, 63), (64, 64, 64), (65, 64, 64), (200, 50, 64), (3, 1, 2)] {
                let Recorded { result, records, lost } = record(Tracing::Units, room, || touch(range, n))?;
                result?;
                crate::check_eq!((records.len() as u64, lost), (kept, n - kept));
                for (record, page) in records.iter().zip(n - kept..) {
                    crate::check_eq!(record.addr.0, range.start.0 + page * PAGE_SIZE);
                }
                space.space().migrate(range, DEV0)?;
            }
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn nothing_is_recorded_before_or_after() {
        in_space(|space| {
            let range = on_device(space)?;
            record(Tracing::Steps, 16, || ())?;
            touch(range, 10)?;
            crate::check_eq!((held().records, held().lost), (0, 0));
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn more_than_there_is_room_for_is_refused() {
        crate::check!(record(Tracing::Units, 1 << 20, || ()).is_err());
        crate::check!(record(Tracing::Units, u64::MAX, || ()).is_err());
    }
}

crate::ktest! {
    fn steps_are_recorded_at_the_second_level_only() {
        in_space(|space| {
            let range = on_device(space)?;
            let mut levels = [Tracing::Units, Tracing::Steps].into_iter().map(|level| {
                record(level, 1024, || touch(range, 2)).map(|recorded| recorded.records)
            });
            let (Some(Ok(units)), Some(Ok(_))) = (levels.next(), levels.next()) else {
                crate::fail!("there is room");
            };
            crate::check!(units.iter().all(|record| record.kind() == Kind::Fault));
            space.space().migrate(range, DEV0)?;
            let steps = record(Tracing::Steps, 1024, || touch(range, 2))?.records;
            let alloc = steps.iter().find(|record| record.kind() == Kind::Frames);
            let (Some(alloc), Some(fault)) = (alloc, steps.iter().find(|record| record.kind() == Kind::Fault)) else {
                crate::fail!("a fault allocates");
            };
            crate::check!(fault.start < alloc.start && alloc.end() < fault.end());
            crate::check_eq!(alloc.frame(), fault.frame());
            Ok(())
        })?;
    }
}

/// A thread with 64 pages of its own on the device, which it touches.
fn toucher(base: u64) -> Result<JoinHandle<Result<(), Unmet>>, Unmet> {
    let space = Arc::new(new_space()?);
    let range = VaRange::new(base, 64 * PAGE_SIZE);
    space.space().map_anon(range, farpage_mm::Prot::RW, HugeAdvice::NoHuge)?;
    let active = activate(&space);
    fill(range, 9)?;
    space.space().migrate(range, DEV0)?;
    drop(active);
    Ok(spawn("toucher", move || {
        let _active = activate(&space);
        touch(range, 64)?;
        check(range, 9)
    }))
}

crate::ktest! {
    fn threads_that_are_preempted_in_the_middle_of_faults_keep_their_records_apart() {
        let mut preempted = 0;
        for seed in 1..6 {
            let bases = [BASE, BASE + (1 << 30), BASE + (2 << 30)];
            let threads: Result<Vec<_>, Unmet> = bases.iter().map(|base| toucher(*base)).collect();
            let threads = threads?;
            let recorded = record(Tracing::Units, 1024, || {
                with_preemption_every(900, seed, || threads.into_iter().try_for_each(JoinHandle::join))
            })?;
            let (result, times) = recorded.result;
            result?;
            preempted += times;
            for base in bases {
                let own = |record: &&Record| record.addr.0 & !((1 << 30) - 1) == base;
                let faults: Vec<_> = recorded.records.iter().filter(own).collect();
                crate::check_eq!(faults.len(), 64);
                for (fault, page) in faults.iter().zip(0..) {
                    in_order(fault)?;
                    crate::check_eq!(fault.addr.0, base + page * PAGE_SIZE);
                    crate::check_eq!((fault.outcome(), fault.thread()), (Outcome::Returned, faults[0].thread()));
                    // All of a fault-back's, each once: none was taken from, or left to, another thread.
                    crate::check_eq!(fault.phases().count(), 5);
                }
            }
            crate::check_eq!((recorded.records.len(), recorded.lost), (3 * 64, 0));
        }
        crate::check!(preempted > 100, "preempted {preempted} times");
    }
}

crate::ktest! {
    fn a_batch_in_the_ring_has_its_units_before_it() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::NoHuge)?;
            fill(range, 6)?;
            let moved = counted(Event::DeviceIn);
            let Recorded { result, records, .. } =
                record(Tracing::Units, 1024, || space.space().migrate(range, DEV0))?;
            crate::check_eq!(result?.units, counted(Event::DeviceIn) - moved);
            crate::check_eq!((records.len(), records[512].kind(), records[512].number()), (513, Kind::Batch, 512));
            crate::check!(records[..512].iter().all(|unit| unit.kind() == Kind::Unit && unit.to() == DEV0));
            records.iter().try_for_each(in_order)
        })?;
    }
}

crate::ktest! {
    fn a_record_costs_sixty_instructions_at_most() {
        if !crate::boot().command.icount {
            crate::skip!("counts instructions");
        }
        in_space(|space| {
            let cost = |level| -> Result<u64, Unmet> {
                let range = VaRange::new(BASE, PMD_SIZE);
                if space.space().unmap(range).is_err() {
                    crate::fail!("unmapped");
                }
                let range = on_device(space)?;
                touch(range, 1)?;
                let touches = || measure(|| touch(range, 401)).1.ticks;
                Ok(match level {
                    Tracing::Off => touches(),
                    level => record(level, 512, touches)?.result,
                })
            };
            let (off, on) = (cost(Tracing::Off)?, cost(Tracing::Units)?);
            crate::check!(on > off, "{off} then {on}");
            crate::check!(on - off <= 60 * 400, "{} instructions each", (on - off) / 400);
            // Under 5 % of the storm.
            crate::check!((on - off) * 20 <= off, "{off} and {on}");
            Ok(())
        })?;
    }
}
