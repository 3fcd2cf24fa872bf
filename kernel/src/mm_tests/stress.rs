//! Threads that do everything at once on shared ranges, preempted at moments that a seed decides.

use alloc::sync::Arc;
use alloc::vec::Vec;

use farpage_mm::{HugeAdvice, PAGE_SIZE, PMD_SIZE, Place, Prot, RangeError, VaRange};

use super::support::{BASE, DEV0, Space};
use crate::task::{spawn, with_preemption_every, yield_now};
use crate::testing::Unmet;
use crate::vm::user::{user_read_u64, user_write_u64};
use crate::vm::{activate, new_space};

/// Threads, and ranges of 2 MiB that belong to one each; all of them move any of the ranges.
const THREADS: usize = 6;
/// What each thread does in a run.
const STEPS: usize = 60;
/// Runs of each test.
const SEEDS: u64 = 4;

/// A small generator, one for each thread.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// The range of thread `n`.
fn range_of(n: usize) -> VaRange {
    VaRange::new(BASE + n as u64 * PMD_SIZE, PMD_SIZE)
}

/// A thread of the stress test: it alone maps, unmaps and writes its range, and knows what it wrote; everybody moves
/// everything.
fn work(space: &Space, me: usize, seed: u64) -> Result<(), alloc::string::String> {
    let mut random = Random(seed << 8 | me as u64);
    let mine = range_of(me);
    let mut mapped = false;
    // What was written last to each page: one word, at a place of its own.
    let mut model = [0_u64; 512];
    let word = |page: u64| mine.start.0 + page * PAGE_SIZE + page * 8;
    for step in 0..STEPS {
        match random.below(8) {
            0 if mapped => {
                // A part goes, and reads as zero when it is mapped again.
                let (first, nr) = (random.below(512), 1 + random.below(512));
                let nr = nr.min(512 - first);
                let part = VaRange::new(mine.start.0 + first * PAGE_SIZE, nr * PAGE_SIZE);
                space.space().unmap(part).map_err(|error| alloc::format!("unmap: {error}"))?;
                if user_read_u64(word(first)).is_ok() {
                    return Err(alloc::format!("thread {me}, step {step}: read what is not mapped"));
                }
                space
                    .space()
                    .map_anon(part, Prot::RW, HugeAdvice::Huge)
                    .map_err(|error| alloc::format!("map: {error}"))?;
                model[first as usize..(first + nr) as usize].fill(0);
            }
            0..=1 if !mapped => {
                let advice = if random.below(2) == 0 { HugeAdvice::Huge } else { HugeAdvice::NoHuge };
                space
                    .space()
                    .map_anon(mine, Prot::RW, advice)
                    .map_err(|error| alloc::format!("map: {error}"))?;
                mapped = true;
            }
            1 if random.below(8) == 0 => {
                space.space().unmap(mine).map_err(|error| alloc::format!("unmap: {error}"))?;
                mapped = false;
                model = [0; 512];
            }
            2 | 3 if mapped => {
                for _ in 0..8 {
                    let page = random.below(512);
                    let value = random.below(u64::from(u32::MAX)) + 1;
                    user_write_u64(word(page), value).map_err(|fault| alloc::format!("write: {fault}"))?;
                    model[page as usize] = value;
                }
            }
            4 | 5 if mapped => {
                for _ in 0..16 {
                    let page = random.below(512);
                    let found = user_read_u64(word(page)).map_err(|fault| alloc::format!("read: {fault}"))?;
                    if found != model[page as usize] {
                        return Err(alloc::format!(
                            "thread {me}, step {step}, page {page}: {found:#x} and not {:#x}",
                            model[page as usize]
                        ));
                    }
                }
            }
            6 => yield_now(),
            _ => {
                let whose = range_of(random.below(THREADS as u64) as usize);
                let (first, nr) = (random.below(512), 1 + random.below(512));
                let part = VaRange::new(whose.start.0 + first * PAGE_SIZE, nr.min(512 - first) * PAGE_SIZE);
                let part = if random.below(2) == 0 { whose } else { part };
                let to = if random.below(3) == 0 { Place::RAM } else { DEV0 };
                if random.below(4) == 0 {
                    // Parked, and given up or finished a little later.
                    if let Ok((migration, _)) = space.space().migrate_collect(part, to) {
                        yield_now();
                        let migration = migration.unmap().copy();
                        if random.below(2) == 0 {
                            let _ = migration.commit().finalize();
                        }
                    }
                } else if let Err(error) = space.space().migrate(part, to)
                    && !matches!(error, RangeError::NotMapped(_))
                {
                    return Err(alloc::format!("migrate: {error}"));
                }
            }
        }
    }
    Ok(())
}

fn run(seed: u64, period: u32) -> Result<(), Unmet> {
    let space = Arc::new(new_space()?);
    let (results, preempted) = with_preemption_every(period, seed, || {
        let threads: Vec<_> = (0..THREADS)
            .map(|me| {
                let space = Arc::clone(&space);
                spawn("stress", move || {
                    let _active = activate(&space);
                    work(&space, me, seed)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    for result in results {
        result.map_err(|why| Unmet::Failed(alloc::format!("seed {seed}, period {period}: {why}")))?;
    }
    crate::check!(preempted > 20, "{preempted} with seed {seed}");
    let audited = crate::memory::mm_audit();
    audited.map_err(|error| Unmet::Failed(alloc::format!("seed {seed}, period {period}: {error}")))?;
    Ok(())
}

/// A test for each period, so that they can run side by side; `actions=` on the kernel's command line says how many steps.
fn run_seeds(first: u64, period: u32) -> Result<(), Unmet> {
    let seeds = crate::boot().command.actions.map_or(SEEDS, |steps| steps.div_ceil((THREADS * STEPS) as u64));
    (0..seeds).try_for_each(|n| run(first + 3 * n, period))
}

crate::ktest! {
    fn threads_map_write_read_move_and_unmap_at_once_in_short_turns() {
        run_seeds(0, 300)?;
    }
}

crate::ktest! {
    fn threads_map_write_read_move_and_unmap_at_once_in_longer_turns() {
        run_seeds(1, 2000)?;
    }
}

crate::ktest! {
    fn threads_map_write_read_move_and_unmap_at_once_in_long_turns() {
        run_seeds(2, 20_000)?;
    }
}
