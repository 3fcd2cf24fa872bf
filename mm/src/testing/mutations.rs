//! Every flush site is taken out in turn, and something must notice: not the comparison of TLBs with tables at rest (it is
//! off here), but an access that goes wrong. What notices which is listed in `docs/TESTING.md`.

use crate::exercise::{Action::*, Failure, Step, generate};
use crate::machine::FlushReason;
use crate::testing::host::{Watch, run, shape, shrink};
use crate::testing::machine::Config;

/// Random cases until one fails: the actions that it took, and how it failed.
fn hunt(skip: FlushReason) -> Option<(u64, Failure)> {
    let watch = Watch { skip: Some(skip), no_stale: false };
    let mut actions = 0;
    for seed in 0..120 {
        let config = shape(seed);
        if config.chaos == 0 {
            continue;
        }
        match run(&config, &generate(seed, 1000), &watch) {
            Ok(done) => actions += done.actions,
            Err(failure) => {
                if std::env::var_os("FARPAGE_SHRINK").is_some() {
                    let (steps, failure) = shrink(&config, &generate(seed, 1000), failure, &watch);
                    println!("{skip:?}: {}\n{steps:?}", failure.what);
                    return Some((actions + failure.step as u64, failure));
                }
                return Some((actions + failure.step as u64, failure));
            }
        }
    }
    None
}

/// Asserts that random actions notice a missing flush by a message with one of `words` in it.
fn is_noticed(skip: FlushReason, words: &[&str]) {
    let Some((actions, failure)) = hunt(skip) else {
        panic!("nobody noticed that {skip:?} flushes are missing")
    };
    println!("{skip:?}: after {actions} actions: {}", failure.what);
    assert!(
        words.iter().any(|word| failure.what.contains(word)),
        "noticed by something else: {}",
        failure.what
    );
}

/// What an access through a stale translation runs into.
const ACCESS: [&str; 6] =
    ["belongs to no folio", "not allowed", "after it was unmapped", "read 0x", "holds", "two live frames"];

#[test]
fn a_missing_split_flush_leaves_two_sizes_alive() {
    // What an unmap cuts off a huge mapping goes by this flush too.
    is_noticed(FlushReason::Split, &["two live sizes", "after it was unmapped", "not allowed"]);
}

#[test]
fn a_missing_migration_flush_loses_writes_or_reaches_freed_memory() {
    is_noticed(FlushReason::Migrate, &ACCESS);
}

#[test]
fn a_missing_flush_of_a_replaced_zero_page_shows_old_zeros() {
    is_noticed(FlushReason::ZeroReplaced, &ACCESS);
}

#[test]
fn a_missing_copy_on_write_flush_shows_old_zeros() {
    is_noticed(FlushReason::CopyOnWrite, &ACCESS);
}

#[test]
fn a_missing_flush_of_a_changed_protection_leaves_memory_writable() {
    // A tracker's write protection is one too: a write that it does not see leaves the page marked as it was.
    let words: Vec<_> = ACCESS.into_iter().chain(["write-protected"]).collect();
    is_noticed(FlushReason::Protect, &words);
}

#[test]
fn a_missing_flush_of_a_moved_mapping_leaves_memory_accessible_where_it_was() {
    is_noticed(FlushReason::Remap, &ACCESS);
}

#[test]
fn a_missing_flush_of_a_lent_page_lets_cpus_reach_it_while_the_device_has_it() {
    is_noticed(FlushReason::Exclusive, &["after it was lent"]);
}

#[test]
fn a_missing_unmap_flush_leaves_memory_accessible() {
    is_noticed(FlushReason::Unmap, &ACCESS);
}

#[test]
fn a_missing_flush_of_freed_tables_lets_walks_go_through_them() {
    is_noticed(FlushReason::FreeTables, &["no page table of level"]);
}

#[test]
fn a_missing_owed_flush_leaves_memory_accessible_after_unmap() {
    is_noticed(FlushReason::Owed, &["not allowed", "after it was unmapped"]);
}

/// The same by hand: a page is written (and so in the TLB), collected by a migration that is then parked, and unmapped.
#[test]
fn unmapping_what_a_parked_migration_has_collected_pays_its_flush() {
    let config = Config { cpus: 1, ..Config::default() };
    let steps = [
        Step(1, Map { space: 0, start: 0, len: 4, prot: 3, huge: false }),
        Step(2, Fill { cpu: 0, space: 0, start: 0, len: 4 }),
        Step(3, Park { space: 0, start: 0, len: 4, to: 1, phases: 0, what: 0, gone: (0, 4), finish: true }),
    ];
    assert!(run(&config, &steps, &Watch { skip: None, no_stale: true }).is_ok());
    let failure = run(&config, &steps, &Watch { skip: Some(FlushReason::Owed), no_stale: false });
    let what = failure.expect_err("the flush is missing").what;
    assert!(what.contains("after it was unmapped"), "{what}");
}
