//! Ranges, mixtures, orders, and migrations that are given up half-way.

use alloc::vec::Vec;

use farpage_mm::{
    Attrs, Cause, Entry, Event, HugeAdvice, Migration, PAGE_SIZE, PMD_SIZE, Place, Prot, RangeError, VaRange,
};

use super::support::{
    BASE, DEV0, Kinds, Space, check, check_zero, counting, fill, frame_at, in_space, kinds, map,
    on_the_usual_machine, order_at, pages, pattern, refusal, resident,
};
use crate::arch::x86_64::apic;
use crate::testing::Unmet;
use crate::vm::user::{user_read_u64, user_write_u64};
use crate::vm::{Machine, mm};

crate::ktest! {
    fn a_range_may_begin_and_end_inside_huge_pages() {
        on_the_usual_machine()?;
        in_space(|space| {
            let range = map(space, 3 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 41)?;
            let report = space.space().migrate(pages(range, 100, 1336), DEV0)?;
            crate::check_eq!((report.pages, report.huge_pages, report.failed_pages()), (1336, 512, 0));
            let expected = Kinds { present: 200, device: 824, huge_device: 1, ..Kinds::default() };
            crate::check_eq!(kinds(space, range), expected);
            crate::check_eq!(resident(0), 1336);
            // Back, again with ends inside: the cut now goes through device-resident folios.
            let back = space.space().migrate(pages(range, 50, 650), Place::RAM)?;
            crate::check_eq!((back.pages, back.failed_pages()), (600, 0));
            let expected = Kinds { present: 800, device: 736, ..Kinds::default() };
            crate::check_eq!(kinds(space, range), expected);
            crate::check_eq!(resident(0), 736);
            check(range, 41)?;
            crate::check_eq!(resident(0), 0);
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn folios_of_every_order_move_as_one_in_both_directions() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 42)?;
            // One page cut off leaves one piece of each order behind it, piece k at page 2^k.
            space.space().migrate(pages(range, 0, 1), DEV0)?;
            let orders = |space: &Space| -> Vec<_> {
                (0..9).map(|k| order_at(space, range.start.0 + (PAGE_SIZE << k))).collect()
            };
            let every: Vec<_> = (0..9).map(Some).collect();
            crate::check_eq!(orders(space), every);
            let there = space.space().migrate(range, DEV0)?;
            crate::check_eq!((there.units, there.pages, there.failed_pages()), (9, 511, 0));
            crate::check_eq!(kinds(space, range), Kinds { device: 512, ..Kinds::default() });
            crate::check_eq!(orders(space), every);
            let back = space.space().migrate(range, Place::RAM)?;
            crate::check_eq!((back.units, back.pages, back.failed_pages()), (10, 512, 0));
            crate::check_eq!(orders(space), every);
            crate::check_eq!(kinds(space, range), Kinds { present: 512, ..Kinds::default() });
            check(range, 42)?;
            // By fault, each comes back as one unit too.
            space.space().migrate(range, DEV0)?;
            let (read, faults) = counting(Event::DeviceFault, || check(range, 42));
            read?;
            crate::check_eq!(faults, 10);
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn sixty_four_mebibytes_move_in_one_call() {
        on_the_usual_machine()?;
        in_space(|space| {
            let range = map(space, 32 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 43)?;
            let (report, flushes) = counting(Event::TlbFlush, || space.space().migrate(range, DEV0));
            let report = report?;
            crate::check_eq!((report.units, report.huge_pages, report.failed_pages()), (32, 16384, 0));
            crate::check_eq!((report.batches, flushes), (2, 2), "batches of 32 MiB, one flush each");
            crate::check_eq!(mm().device(0).memory().free, 0);
            crate::check_eq!(kinds(space, range), Kinds { huge_device: 32, ..Kinds::default() });
            let (back, flushes) = counting(Event::TlbFlush, || space.space().migrate(range, Place::RAM));
            crate::check_eq!((back?.huge_pages, flushes), (16384, 0), "no CPU can hold a device-private translation");
            check(range, 43)
        })?;
    }
}

crate::ktest! {
    fn one_flush_round_serves_a_batch_of_any_mixture() {
        on_the_usual_machine()?;
        in_space(|space| {
            for (len, advice, units) in [(PMD_SIZE, HugeAdvice::NoHuge, 512), (16 * PMD_SIZE, HugeAdvice::Huge, 16)] {
                let range = map(space, len, advice)?;
                fill(range, 44)?;
                let before = space.space().stat().flushes;
                crate::check_eq!(space.space().migrate(range, DEV0)?.units, units);
                crate::check_eq!(space.space().stat().flushes - before, 1, "{units} units");
                check(range, 44)?;
                crate::check_eq!(space.space().stat().flushes - before, 1, "a fault-back flushes nothing");
                space.space().unmap(range)?;
            }
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn an_unmap_flushes_for_many_pages_at_once() {
        // What it frees waits for the flush on a page of notes; a full one is paid for. Then the empty table goes.
        in_space(|space| {
            for (len, advice, most) in [(PMD_SIZE, HugeAdvice::NoHuge, 5), (16 * PMD_SIZE, HugeAdvice::Huge, 1)] {
                let range = map(space, len, advice)?;
                fill(range, 52)?;
                let before = space.space().stat().flushes;
                space.space().unmap(range)?;
                let flushes = space.space().stat().flushes - before;
                crate::check!((1..=most).contains(&flushes), "{flushes} flushes, {advice:?}");
            }
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn holes_larger_than_a_huge_page_are_filled_whatever_the_advice() {
        on_the_usual_machine()?;
        in_space(|space| {
            for advice in [HugeAdvice::Huge, HugeAdvice::NoHuge] {
                let range = map(space, 4 * PMD_SIZE, advice)?;
                let (first, last) = (pages(range, 0, 1), pages(range, 2047, 1));
                fill(first, 45)?;
                fill(last, 45)?;
                let report = space.space().migrate(range, DEV0)?;
                crate::check_eq!((report.pages, report.failed_pages()), (2048, 0));
                let filled = if advice == HugeAdvice::Huge { 1024 } else { 2046 };
                crate::check_eq!((report.holes, resident(0)), (filled, 2048));
                check(first, 45)?;
                check(last, 45)?;
                check_zero(pages(range, 1, 2046))?;
                space.space().unmap(range)?;
            }
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn holes_stay_holes_on_the_way_to_ram() {
        in_space(|space| {
            let range = map(space, 4 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(pages(range, 512, 512), 46)?;
            crate::check_eq!(user_read_u64(range.start.0), Ok(0));
            space.space().migrate(pages(range, 512, 512), DEV0)?;
            let report = space.space().migrate(range, Place::RAM)?;
            crate::check_eq!((report.units, report.pages, report.holes, report.failed_pages()), (1, 512, 0, 0));
            let expected = Kinds { huge_zero: 1, huge_present: 1, none: 1024, ..Kinds::default() };
            crate::check_eq!(kinds(space, range), expected);
            check(pages(range, 512, 512), 46)
        })?;
    }
}

crate::ktest! {
    fn memory_that_may_only_be_read_moves_and_stays_so() {
        in_space(|space| {
            let range = VaRange::new(BASE, PMD_SIZE);
            space.space().map_anon(range, Prot::READ, HugeAdvice::Huge)?;
            check_zero(range)?;
            let report = space.space().migrate(range, DEV0)?;
            crate::check_eq!((report.holes, report.failed_pages()), (512, 0));
            crate::check!(refusal(user_write_u64(range.start.0, 1)).is_err());
            crate::check_eq!(kinds(space, range), Kinds { huge_device: 1, ..Kinds::default() });
            check_zero(range)?;
            let (_, Entry::Leaf(leaf)) = space.entry_at(range.start) else { crate::fail!("not present") };
            crate::check!(!leaf.attrs.contains(Attrs::WRITE) && !leaf.special);
            crate::check!(refusal(user_write_u64(range.start.0, 1)).is_err());
            check_zero(range)
        })?;
    }
}

crate::ktest! {
    fn what_is_there_already_is_not_moved_again() {
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 47)?;
            space.space().migrate(pages(range, 256, 512), DEV0)?;
            // One of the pieces comes back.
            crate::check_eq!(user_read_u64(range.start.0 + PMD_SIZE), Ok(pattern(range.start.0 + PMD_SIZE, 47)));
            let on_device = resident(0);
            crate::check_eq!(on_device, 256);
            let again = space.space().migrate(range, DEV0)?;
            crate::check_eq!((again.pages, again.failed_pages()), (1024 - on_device, 0));
            let nothing = space.space().migrate(range, DEV0)?;
            crate::check_eq!((nothing.units, nothing.pages, nothing.failed_pages()), (0, 0, 0));
            crate::check_eq!(resident(0), 1024);
            check(range, 47)?;
            let nothing = space.space().migrate(range, Place::RAM)?;
            crate::check_eq!((nothing.units, nothing.failed_pages()), (0, 0));
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn a_range_that_cannot_be_moved_is_refused_before_anything_moves() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 48)?;
            let secret = VaRange::new(range.end.0, PAGE_SIZE);
            space.space().map_anon(secret, Prot::empty(), HugeAdvice::NoHuge)?;
            let hole = secret.end;
            let try_with = |start, len, to| space.space().migrate(VaRange::new(start, len), to);
            let over = VaRange::new(range.start.0 + 1, PAGE_SIZE);
            crate::check_eq!(try_with(over.start.0, PAGE_SIZE, DEV0), Err(RangeError::Invalid(over)));
            crate::check!(matches!(try_with(range.start.0, 0, DEV0), Err(RangeError::Invalid(_))));
            crate::check!(matches!(try_with(1 << 63, PAGE_SIZE, DEV0), Err(RangeError::Invalid(_))));
            let with_secret = PMD_SIZE + PAGE_SIZE;
            crate::check_eq!(try_with(range.start.0, with_secret, DEV0), Err(RangeError::NotMigratable(secret.start)));
            crate::check_eq!(try_with(secret.end.0 - PAGE_SIZE, 2 * PAGE_SIZE, DEV0).is_err(), true);
            crate::check_eq!(try_with(hole.0, PAGE_SIZE, DEV0), Err(RangeError::NotMapped(hole)));
            crate::check_eq!(try_with(range.start.0, PMD_SIZE, Place::device(3)), Err(RangeError::NoDevice(3)));
            crate::check_eq!(kinds(space, range), Kinds { huge_present: 1, ..Kinds::default() });
            check(range, 48)
        })?;
    }
}

crate::ktest! {
    fn a_page_that_somebody_holds_stays_and_says_why() {
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 49)?;
            let held = frame_at(space, range.start.0).and_then(|frame| mm().try_get_folio(frame));
            crate::check!(held.is_some());
            let report = space.space().migrate(range, DEV0)?;
            crate::check_eq!((report.pages, report.failed[Cause::Pinned as usize], report.failed_pages()), (512, 512, 512));
            crate::check_eq!(kinds(space, range), Kinds { huge_present: 1, huge_device: 1, ..Kinds::default() });
            drop(held);
            crate::check_eq!(space.space().migrate(range, DEV0)?.pages, 512);
            // On the device a held page cannot come back; the toucher is told.
            let held = frame_at(space, range.start.0).and_then(|frame| mm().try_get_folio(frame));
            crate::check!(refusal(user_read_u64(range.start.0)).is_err());
            crate::check_eq!(kinds(space, range), Kinds { huge_device: 2, ..Kinds::default() });
            drop(held);
            check(range, 49)
        })?;
    }
}

crate::ktest! {
    fn pages_that_another_migration_holds_are_skipped_not_waited_for() {
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 50)?;
            let (parked, next) = space.space().migrate_collect(pages(range, 0, 512), DEV0)?;
            crate::check_eq!((parked.nr_units(), next.0), (1, range.start.0 + PMD_SIZE));
            let report = space.space().migrate(range, DEV0)?;
            crate::check_eq!((report.pages, report.failed[Cause::Busy as usize]), (512, 512));
            let report = parked.unmap().copy().commit().finalize();
            crate::check_eq!((report.pages, report.failed_pages()), (512, 0));
            crate::check_eq!(kinds(space, range), Kinds { huge_device: 2, ..Kinds::default() });
            check(range, 50)
        })?;
    }
}

/// Memory with a huge page, small pages, a zero page, a zero folio and holes.
fn mixture(space: &Space, seed: u64) -> Result<(VaRange, [VaRange; 2]), Unmet> {
    let range = map(space, 4 * PMD_SIZE, HugeAdvice::Huge)?;
    space.space().advise_huge(pages(range, 512, 512), HugeAdvice::NoHuge)?;
    let full = [pages(range, 0, 512), pages(range, 512, 100)];
    for part in full {
        fill(part, seed)?;
    }
    check_zero(pages(range, 700, 1))?;
    check_zero(pages(range, 1024, 1))?;
    Ok((range, full))
}

fn check_mixture(range: VaRange, full: [VaRange; 2], seed: u64) -> Result<(), Unmet> {
    for part in full {
        check(part, seed)?;
    }
    check_zero(pages(range, 612, 1436))
}

/// A way to go so far and no further.
type Drop = fn(Migration<Machine, farpage_mm::migrate::Collected>);

/// A migration given up, by the last phase that it came to.
const PHASES: [(&str, Drop); 4] = [
    ("collected", drop),
    ("unmapped", |m| drop(m.unmap())),
    ("copied", |m| drop(m.unmap().copy())),
    ("committed", |m| drop(m.unmap().copy().commit())),
];

crate::ktest! {
    fn a_migration_given_up_in_any_phase_puts_everything_back() {
        on_the_usual_machine()?;
        for (phase, give_up) in PHASES {
            in_space(|space| {
                let (range, full) = mixture(space, 51)?;
                let before = kinds(space, range);
                let frames = full.map(|part| frame_at(space, part.start.0));
                let (migration, next) = space.space().migrate_collect(range, DEV0)?;
                crate::check_eq!(next, range.end);
                give_up(migration);
                crate::check_eq!(full.map(|part| frame_at(space, part.start.0)), frames, "{phase}");
                if phase == "committed" {
                    // Holes that have been filled stay so: it is as if somebody had touched them.
                    crate::check_eq!(resident(0), 2048 - 612);
                } else {
                    crate::check_eq!(kinds(space, range), before, "{phase}");
                    crate::check_eq!(resident(0), 0, "{phase}");
                }
                check_mixture(range, full, 51)?;
                // And the way back.
                space.space().migrate(range, DEV0)?;
                let (migration, _) = space.space().migrate_collect(range, Place::RAM)?;
                give_up(migration);
                crate::check_eq!(resident(0), 2048, "{phase}, to RAM");
                check_mixture(range, full, 51)
            })?;
        }
    }
}

crate::ktest! {
    fn a_migration_given_up_is_not_mistaken_for_one_that_ended_before() {
        // Work records are used again as they are: what the last migration left in them must not count.
        for (phase, give_up) in PHASES {
            in_space(|space| {
                let range = map(space, 40 * PAGE_SIZE, HugeAdvice::NoHuge)?;
                fill(range, 53)?;
                for (here, there, place) in [
                    (Kinds { device: 40, ..Kinds::default() }, DEV0, Place::RAM),
                    (Kinds { present: 40, ..Kinds::default() }, Place::RAM, DEV0),
                ] {
                    crate::check_eq!(space.space().migrate(range, there)?.pages, 40);
                    give_up(space.space().migrate_collect(range, place)?.0);
                    crate::check_eq!(kinds(space, range), here, "{phase}");
                }
                check(range, 53)
            })?;
        }
    }
}

crate::ktest! {
    fn interrupts_in_the_middle_change_nothing() {
        let mut result = Ok(());
        let period = (apic::rates().apic_hz / 100_000) as u32;
        let came = apic::with_timer(period, || {
            result = in_space(|space| {
                for round in 0..4 {
                    let (range, full) = mixture(space, round)?;
                    space.space().migrate(range, DEV0)?;
                    check_mixture(range, full, round)?;
                    space.space().migrate(pages(range, 100, 1000), DEV0)?;
                    space.space().migrate(range, Place::RAM)?;
                    check_mixture(range, full, round)?;
                    space.space().unmap(range)?;
                }
                Ok(())
            });
        });
        result?;
        crate::check!(came > 100, "{came} interrupts");
    }
}
