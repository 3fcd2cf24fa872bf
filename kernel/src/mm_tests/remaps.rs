//! Mappings that move, with real page tables.

use farpage_mm::{
    Entry, Event, FaultError, FlushReason, HugeAdvice, Level, PAGE_SIZE, PMD_SIZE, RemapFlags, RemapTarget,
    VaRange, Vaddr,
};

use super::stale::{probes, with_and_without};
use super::support::{
    BASE, DEV0, Kinds, Space, check_zero, counting, fill, in_space, kinds, map, pages, pattern, refusal,
    resident,
};
use crate::arch::x86_64::uaccess::copy_words_from_user;
use crate::testing::Unmet;
use crate::vm::user::{user_read_u64, user_write_u64};

/// Where mappings go: 2 MiB aligned, well away.
const THERE: u64 = BASE + (1 << 33);

const MOVE: RemapFlags = RemapFlags::empty();
const KEEP: RemapFlags = RemapFlags::KEEP_OLD;

fn remap(space: &Space, old: VaRange, to: u64, flags: RemapFlags) -> Result<VaRange, Unmet> {
    space.space().remap(old, RemapTarget { addr: Vaddr(to), len: old.len() }, flags)?;
    Ok(VaRange::new(to, old.len()))
}

/// Every word of `range` is what was written at the same place of `from`.
fn check_moved(from: VaRange, range: VaRange, seed: u64) -> Result<(), Unmet> {
    let mut words = [0; PAGE_SIZE as usize / 8];
    for offset in (0..range.len()).step_by(PAGE_SIZE as usize) {
        copy_words_from_user(&mut words, range.start.0 + offset)?;
        for (i, &word) in words.iter().enumerate() {
            let at = from.start.0 + offset + i as u64 * 8;
            crate::check_eq!(word, pattern(at, seed), "written at {at:#x}");
        }
    }
    Ok(())
}

fn check_unmapped(addr: u64) -> Result<(), Unmet> {
    crate::check_eq!(refusal(user_read_u64(addr)), Err((addr, Some(FaultError::NoVma(Vaddr(addr))))));
    Ok(())
}

crate::ktest! {
    fn memory_moves_to_any_alignment_before_and_after_a_migration() {
        for advice in [HugeAdvice::Huge, HugeAdvice::NoHuge] {
            for shift in [0, PMD_SIZE / 4, PMD_SIZE / 2] {
                for flags in [MOVE, KEEP] {
                    for early in [true, false] {
                        in_space(|space| {
                            let range = map(space, 2 * PMD_SIZE, advice)?;
                            fill(range, 41)?;
                            if !early {
                                space.space().migrate(range, DEV0)?;
                            }
                            let there = remap(space, range, THERE + shift, flags)?;
                            if early {
                                space.space().migrate(there, DEV0)?;
                            }
                            crate::check_eq!(resident(0), 1024);
                            check_moved(range, there, 41)?;
                            crate::check_eq!(resident(0), 0);
                            if flags == KEEP { check_zero(range) } else { check_unmapped(range.start.0) }
                        })?;
                    }
                }
            }
        }
    }
}

crate::ktest! {
    fn a_huge_page_on_the_device_moves_as_one_entry_without_a_flush() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 42)?;
            space.space().migrate(range, DEV0)?;
            let (there, flushes) = counting(Event::TlbFlush, || remap(space, range, THERE, MOVE));
            let there = there?;
            crate::check_eq!(flushes, 0);
            crate::check_eq!(kinds(space, there), Kinds { huge_device: 1, ..Kinds::default() });
            check_moved(range, there, 42)?;
            crate::check_eq!(space.entry_at(there.start).0, Level::Pmd);
            check_unmapped(range.start.0)
        })?;
    }
}

crate::ktest! {
    fn what_is_present_moves_with_one_flush_round() {
        for (advice, shift) in [
            (HugeAdvice::Huge, 0),
            (HugeAdvice::NoHuge, 0),
            (HugeAdvice::NoHuge, 5 * PAGE_SIZE),
        ] {
            in_space(|space| {
                let range = map(space, 3 * PMD_SIZE, advice)?;
                fill(range, 43)?;
                let (there, flushes) = counting(Event::TlbFlush, || remap(space, range, THERE + shift, MOVE));
                let there = there?;
                crate::check_eq!(flushes, 1, "{advice:?} by {shift:#x}");
                check_moved(range, there, 43)?;
                check_unmapped(range.start.0)?;
                // And it can be written there, and move home.
                user_write_u64(there.start.0, 7)?;
                let home = remap(space, there, BASE, MOVE)?;
                crate::check_eq!(user_read_u64(home.start.0), Ok(7));
                check_unmapped(there.start.0)
            })?;
        }
    }
}

crate::ktest! {
    fn a_part_moves_over_what_is_at_its_target() {
        in_space(|space| {
            let range = map(space, 4 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 44)?;
            space.space().migrate(pages(range, 0, 1024), DEV0)?;
            let part = pages(range, 200, 600);
            let target = pages(range, 1300, 600);
            remap(space, part, target.start.0, MOVE)?;
            check_moved(part, target, 44)?;
            check_unmapped(part.start.0)?;
            for rest in [pages(range, 0, 200), pages(range, 800, 500), pages(range, 1900, 148)] {
                check_moved(rest, rest, 44)?;
            }
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn a_migration_that_is_under_way_finds_what_moved() {
        for advice in [HugeAdvice::Huge, HugeAdvice::NoHuge] {
            for shift in [0, PMD_SIZE / 4] {
                in_space(|space| {
                    let range = map(space, PMD_SIZE, advice)?;
                    fill(range, 45)?;
                    let (migration, _) = space.space().migrate_collect(range, DEV0)?;
                    let there = remap(space, range, THERE + shift, MOVE)?;
                    let report = migration.unmap().copy().commit().finalize();
                    crate::check_eq!(report.pages, 512);
                    crate::check_eq!(space.entry_at(range.start).1, Entry::None);
                    crate::check_eq!(resident(0), 512);
                    check_moved(range, there, 45)
                })?;
            }
        }
    }
}

crate::ktest! {
    fn without_the_flush_of_a_remap_the_old_place_can_be_read() {
        with_and_without(FlushReason::Remap, |space, range, flushing| {
            fill(range, 46)?;
            let mut readable = 0;
            flushing(&mut || {
                remap(space, range, THERE, MOVE)?;
                readable = probes(range).filter(|&at| user_read_u64(at).is_ok()).count() as u64;
                Ok(())
            })?;
            Ok(readable)
        })?;
    }
}
