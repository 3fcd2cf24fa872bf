//! Flushes that are missing.
//!
//! QEMU's translator keeps translations as a CPU does, so a flush that is left out shows: in data read, or in a write that is
//! lost. Each kind of flush that the memory manager makes is left out once here ([`crate::vm::skip`]) and must be missed;
//! with it, the same accesses must be right. What the translator hides is listed at the end, and tested on the host.
//!
//! User memory is touched with AC set, for which the translator keeps a table of translations of its own: nothing that the
//! kernel does in between can push one out.

use alloc::sync::Arc;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;

use farpage_mm::{
    Access, Advice, FaultInfo, FlushReason, HugeAdvice, Machine as _, PAGE_SIZE, PMD_SIZE, Prot, RemapFlags,
    RemapTarget, VaRange, Vaddr,
};
use x86_64::VirtAddr;

use super::support::{DEV0, Space, check, check_zero, fill, frame_at, in_space, map, pages, pattern};
use crate::arch::x86_64::tlb;
use crate::task::{spawn, yield_now};
use crate::testing::Unmet;
use crate::vm::raw::pte_word;
use crate::vm::skip::skip_flushes;
use crate::vm::user::{user_read_u64, user_write_u64};
use crate::vm::{Machine, activate, new_space};

/// Addresses looked at in each case.
const PROBES: u64 = 16;
/// Runs in which a missing flush may show. One is enough nearly always, but the translator may forget translations for reasons of
/// its own: it resizes its table by the host's clock.
const CHANCES: u32 = 5;

crate::ktest! {
    fn an_entry_changed_without_invlpg_is_not_seen() {
        in_space(|space| {
            let range = map(space, 2 * PAGE_SIZE, HugeAdvice::NoHuge)?;
            let (here, there) = (range.start.0, range.start.0 + PAGE_SIZE);
            user_write_u64(here, 1)?;
            user_write_u64(there, 2)?;
            let (Some(entry), Some(other)) = (pte_word(space.space(), here), pte_word(space.space(), there)) else { crate::fail!("no PTEs") };
            let own = entry.load(Relaxed);
            crate::check_eq!(user_read_u64(here), Ok(1));
            entry.store(other.load(Relaxed), Relaxed);
            crate::check_eq!(user_read_u64(here), Ok(1), "the old translation is gone by itself");
            tlb::invlpg(VirtAddr::new(here));
            crate::check_eq!(user_read_u64(here), Ok(2));
            entry.store(own, Relaxed);
            crate::check_eq!(user_read_u64(here), Ok(2), "the old translation is gone by itself");
            tlb::invlpg(VirtAddr::new(here));
            crate::check_eq!(user_read_u64(here), Ok(1));
            Ok(())
        })?;
    }
}

/// Memory that a case is tried on: small pages, or one huge page.
fn shapes() -> [(HugeAdvice, u64); 2] {
    [(HugeAdvice::NoHuge, PAGE_SIZE), (HugeAdvice::Huge, PMD_SIZE / PROBES)]
}

/// The addresses to look at. No two of their page numbers are the same modulo 64, the size that the translator's table can
/// shrink to: looking at one must not push another out.
pub(super) fn probes(range: VaRange) -> impl Iterator<Item = u64> {
    let step = range.len() / PROBES;
    let aside = if step > PAGE_SIZE { PAGE_SIZE } else { 0 };
    (0..PROBES).map(move |n| range.start.0 + n * (step + aside) + 8 * n)
}

/// Writes a word of user memory as another CPU would, which has none of this one's translations.
pub(super) fn write_from_elsewhere(space: &Space, addr: u64, value: u64) -> Result<(), Unmet> {
    let done = space.space().handle_fault(&FaultInfo::new(Vaddr(addr), Access::Write));
    let Some(frame) = frame_at(space, addr).filter(|frame| done.is_ok() && frame.place().is_ram()) else {
        crate::fail!("{addr:#x} is not in RAM: {done:?}");
    };
    Machine::table_words(frame.index())[(addr % PAGE_SIZE / 8) as usize].store(value, Relaxed);
    Ok(())
}

/// A case: prepares `range`, lets `flushing` happen inside the call of its first argument, and counts the probes that saw
/// what they must not.
pub(super) type Case = fn(
    &Space,
    VaRange,
    &mut dyn FnMut(&mut dyn FnMut() -> Result<(), Unmet>) -> Result<(), Unmet>,
) -> Result<u64, Unmet>;

/// Runs a case with all flushes, and once more without those for `reason`.
pub(super) fn with_and_without(reason: FlushReason, case: Case) -> Result<(), Unmet> {
    for (advice, step) in shapes() {
        in_space(|space| {
            let range = map(space, step * PROBES, advice)?;
            let wrong = case(space, range, &mut |work| work())?;
            crate::check_eq!(wrong, 0, "of {PROBES} probes are wrong with every flush made, {advice:?}");
            Ok(())
        })?;
        let mut missed = 0;
        for _ in 0..CHANCES {
            in_space(|space| {
                let range = map(space, step * PROBES, advice)?;
                let mut skipped = 0;
                missed = case(space, range, &mut |work| {
                    let skipping = skip_flushes(reason);
                    let result = work();
                    skipped = skipping.skipped();
                    result
                })?;
                crate::check!(skipped > 0, "no flush for {reason:?} was there to be left out, {advice:?}");
                Ok(())
            })?;
            if missed > 0 {
                break;
            }
        }
        crate::check!(missed > 0, "nobody missed the flushes for {reason:?} in {CHANCES} runs, {advice:?}");
    }
    Ok(())
}

crate::ktest! {
    fn without_the_flush_of_an_unmap_freed_memory_is_read() {
        with_and_without(FlushReason::Unmap, |space, range, flushing| {
            fill(range, 31)?;
            let mut readable = 0;
            flushing(&mut || {
                space.space().unmap(range)?;
                readable = probes(range).filter(|&at| user_read_u64(at).is_ok()).count() as u64;
                Ok(())
            })?;
            Ok(readable)
        })?;
    }
}

crate::ktest! {
    fn without_the_flush_of_a_migration_writes_are_lost() {
        with_and_without(FlushReason::Migrate, |space, range, flushing| {
            fill(range, 32)?;
            flushing(&mut || {
                space.space().migrate(range, DEV0)?;
                for at in probes(range) {
                    user_write_u64(at, pattern(at, 33))?;
                }
                Ok(())
            })?;
            Ok(probes(range).filter(|&at| user_read_u64(at) != Ok(pattern(at, 33))).count() as u64)
        })?;
    }
}

crate::ktest! {
    fn without_the_flush_of_a_copy_on_write_the_zero_page_is_still_read() {
        with_and_without(FlushReason::CopyOnWrite, |space, range, flushing| {
            check_zero(range)?;
            let mut stale = 0;
            flushing(&mut || {
                for at in probes(range) {
                    write_from_elsewhere(space, at, pattern(at, 34))?;
                }
                stale = probes(range).filter(|&at| user_read_u64(at) != Ok(pattern(at, 34))).count() as u64;
                Ok(())
            })?;
            Ok(stale)
        })?;
    }
}

crate::ktest! {
    fn without_the_flush_of_a_filled_hole_the_zero_page_is_still_read() {
        with_and_without(FlushReason::ZeroReplaced, |space, range, flushing| {
            check_zero(range)?;
            let mut stale = 0;
            flushing(&mut || {
                let report = space.space().migrate(range, DEV0)?;
                crate::check_eq!(report.holes, range.nr_pages());
                for at in probes(range) {
                    write_from_elsewhere(space, at, pattern(at, 35))?;
                }
                stale = probes(range).filter(|&at| user_read_u64(at) != Ok(pattern(at, 35))).count() as u64;
                Ok(())
            })?;
            Ok(stale)
        })?;
    }
}

crate::ktest! {
    fn without_a_flush_that_somebody_else_owes_unmapped_memory_is_read() {
        with_and_without(FlushReason::Owed, |space, range, flushing| {
            fill(range, 36)?;
            let mut readable = 0;
            flushing(&mut || {
                // A migration is parked between taking the entries and its flush.
                let (parked, _) = space.space().migrate_collect(range, DEV0)?;
                space.space().unmap(range)?;
                readable = probes(range).filter(|&at| user_read_u64(at).is_ok()).count() as u64;
                drop(parked);
                Ok(())
            })?;
            Ok(readable)
        })?;
    }
}

/// What another thread does to a mapping.
type Change = fn(&Space, VaRange) -> Result<(), farpage_mm::RangeError>;

/// Parks a migration between taking the entries and its flush, lets another thread change the mapping, and counts what can be
/// seen afterwards by whoever still has a translation. `skips` leaves out what the change has to flush for the migration.
fn while_parked(change: Change, is_wrong: fn(u64) -> bool) -> Result<(), Unmet> {
    for (advice, step) in shapes() {
        for skips in [false, true] {
            let space = Arc::new(new_space()?);
            let active = activate(&space);
            let range = map(&space, step * PROBES, advice)?;
            let stage = Arc::new(AtomicUsize::new(0));
            let (there, its_stage) = (Arc::clone(&space), Arc::clone(&stage));
            let wait = |stage: &AtomicUsize, wanted: usize| {
                while stage.load(Relaxed) != wanted {
                    yield_now();
                }
            };
            // It has the space loaded before there is anything in the TLB and until all has been looked at: no switch between
            // the two threads drops a translation.
            let other = spawn("changes", move || {
                let _active = activate(&there);
                its_stage.store(1, Relaxed);
                wait(&its_stage, 2);
                let result = change(&there, range);
                its_stage.store(3, Relaxed);
                wait(&its_stage, 4);
                result
            });
            wait(&stage, 1);
            fill(range, 39)?;
            let (parked, _) = space.space().migrate_collect(range, DEV0)?;
            let skipping = skips.then(|| skip_flushes(FlushReason::Owed));
            stage.store(2, Relaxed);
            wait(&stage, 3);
            let wrong = probes(range).filter(|&at| is_wrong(at)).count();
            let skipped = skipping.map_or(0, |skipping| skipping.skipped());
            stage.store(4, Relaxed);
            other.join()?;
            drop(parked);
            drop(active);
            if skips {
                crate::check!(skipped > 0, "no flush was owed, {advice:?}");
                crate::check!(wrong > 0, "nobody missed the {skipped} flushes, {advice:?}");
            } else {
                crate::check_eq!(wrong, 0, "of {PROBES} probes are wrong, {advice:?}");
            }
        }
    }
    Ok(())
}

crate::ktest! {
    fn without_a_flush_that_is_owed_a_thread_unmaps_and_memory_is_read() {
        while_parked(|space, range| space.space().unmap(range), |at| user_read_u64(at).is_ok())?;
    }
}

crate::ktest! {
    fn without_a_flush_that_is_owed_a_thread_protects_and_memory_is_written() {
        while_parked(|space, range| space.space().protect(range, Prot::READ), |at| user_write_u64(at, 1).is_ok())?;
    }
}

crate::ktest! {
    fn without_a_flush_that_is_owed_a_thread_moves_and_the_old_place_is_read() {
        while_parked(
            |space, range| {
                let target = RemapTarget { addr: Vaddr(range.start.0 + (1 << 30)), len: range.len() };
                space.space().remap(range, target, RemapFlags::empty())
            },
            |at| user_read_u64(at).is_ok(),
        )?;
    }
}

crate::ktest! {
    fn without_a_flush_that_is_owed_a_thread_forgets_and_old_contents_are_read() {
        while_parked(|space, range| space.space().advise(range, Advice::DontNeed), |at| user_read_u64(at) != Ok(0))?;
    }
}

crate::ktest! {
    fn the_flushes_of_a_split_and_of_freed_tables_are_missed_on_hardware_only() {
        // The translator keeps single 4 KiB translations, whatever the size of the page, and no upper-level entries: two
        // sizes at once and a walk through a freed table cannot happen. The software MMU of the host tests has both. What
        // can be said here is that the flushes are asked for.
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 37)?;
            let skipping = skip_flushes(FlushReason::Split);
            let report = space.space().migrate(pages(range, 8, 8), DEV0)?;
            crate::check_eq!((report.pages, skipping.skipped()), (8, 1));
            drop(skipping);
            check(range, 37)?;
            let skipping = skip_flushes(FlushReason::FreeTables);
            space.space().unmap(range)?;
            crate::check_eq!(skipping.skipped(), 1);
            drop(skipping);
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::NoHuge)?;
            fill(range, 38)?;
            check(range, 38)
        })?;
    }
}

crate::ktest! {
    fn no_stale_word_is_seen_over_a_long_life() {
        in_space(|space| {
            let range = map(space, 4 * PMD_SIZE, HugeAdvice::Huge)?;
            let mixed = pages(range, 700, 900);
            for round in 0..6_u64 {
                check_zero(range)?;
                fill(range, round)?;
                space.space().migrate(mixed, DEV0)?;
                check(pages(range, 600, 300), round)?;
                space.space().migrate(range, DEV0)?;
                fill(mixed, round + 100)?;
                space.space().migrate(range, farpage_mm::Place::RAM)?;
                check(mixed, round + 100)?;
                check(pages(range, 0, 700), round)?;
                check(pages(range, 1600, 448), round)?;
                space.space().unmap(range)?;
                space.space().map_anon(range, Prot::RW, HugeAdvice::Huge)?;
            }
            Ok(())
        })?;
    }
}
