//! What a driver keeps for its memory: a word goes with every folio that a call brought, and what it names ends exactly with the
//! last of them.
//!
//! The driver is that of the machine (`machine/device.rs`): it counts as [`crate::PagemapOps::folio_arrived`] says.

use std::collections::BTreeMap;

use crate::advise::Advice;
use crate::exercise::Rng;
use crate::inject::Site;
use crate::machine::Machine;
use crate::migrate::{MigrateOptions, Sources};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, KEPT, Soft};
use crate::testing::migrate_gaps::{hold, lock};
use crate::types::{Order, Place, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};
use crate::zone::Need;

const DEV1: Place = Place::device(1);

fn kit() -> Kit {
    let kit = Kit::on(&Config { devices: vec![8 * 512; 2], ..Config::default() });
    kit.map(0, 512, Huge);
    kit.map(512, 512, Small);
    kit.fill(0, 520);
    kit
}

/// Whether it worked is not the question.
fn ignore<T, E>(_: Result<T, E>) {}

/// Migrates with a word; what the report says of pages.
fn bring(kit: &Kit, start: u64, len: u64, to: Place, word: u64) -> u64 {
    let options = MigrateOptions::to(to).from(Sources::RAM.union(Sources::devices())).with_word(word);
    let report = kit.space.space().migrate_with(range(start, len), to, &options, &mut |_| {});
    report.expect("mapped").pages
}

/// Folios that have this word on the first device, as its driver has counted them.
fn kept(kit: &Kit, word: u64) -> i64 {
    kit.machine.kept.borrow().get(&(0, word)).copied().unwrap_or(0)
}

/// The drivers' counts are those of the folios that there are.
fn count(kit: &Kit) {
    let mut found = BTreeMap::new();
    for device in 0..2 {
        let mut at = 0;
        while at < 8 * 512 {
            let Some(folio) = Soft::mm().try_get_folio(crate::types::Frame::new(Place::device(device), at))
            else {
                at += 1;
                continue;
            };
            at += folio.order().pages();
            if folio.driver_word() >= KEPT {
                *found.entry((device, folio.driver_word())).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(*kit.machine.kept.borrow(), found);
    assert_eq!(kit.machine.failure(), None);
}

#[test]
fn what_a_word_names_ends_with_the_last_folio_that_has_it() {
    let kit = kit();
    let space = kit.space.space();
    // A huge page, single ones, a hole: one call, one word.
    assert_eq!(bring(&kit, 0, 521, DEV, KEPT), 521);
    assert_eq!(kept(&kit, KEPT), 1 + 8 + 1);
    count(&kit);
    // One page out of the middle: ten pieces, one of which goes at once.
    space.unmap(range(17, 1)).expect("memory");
    let pieces = kept(&kit, KEPT) - 9;
    assert!(pieces > 8, "{pieces}");
    count(&kit);
    kit.check(512, 1);
    assert_eq!(kept(&kit, KEPT), pieces + 8);
    // A second word beside it.
    assert_eq!(bring(&kit, 512, 1, DEV, KEPT + 1), 1);
    assert_eq!((kept(&kit, KEPT), kept(&kit, KEPT + 1)), (pieces + 8, 1));
    count(&kit);
    kit.check(0, 17);
    kit.check(18, 100);
    count(&kit);
    assert!(kept(&kit, KEPT) > 8, "some is left");
    kit.machine.mm.evict_range(DEV, 0..8 * 512);
    assert!(kit.machine.kept.borrow().is_empty());
    kit.check(513, 7);
    kit.audit();
}

#[test]
fn without_a_word_nothing_is_told_and_nothing_remembered() {
    let kit = kit();
    bring(&kit, 0, 520, DEV, KEPT);
    kit.check(0, 520);
    assert!(kit.machine.kept.borrow().is_empty());
    kit.space.space().migrate(range(0, 520), DEV).expect("mapped");
    for page in [0, 512, 519] {
        assert_eq!(hold(&kit, page).driver_word(), 0);
    }
    count(&kit);
    kit.audit();
}

#[test]
fn a_word_arrives_in_pieces_and_does_not_follow_to_another_device() {
    let kit = kit();
    // No huge page is to be had.
    kit.machine.mm.inject.arm(Site::DeviceFolio as u32, 9, 0, u64::MAX);
    bring(&kit, 0, 512, DEV, KEPT);
    kit.machine.mm.inject.disarm();
    assert!(kept(&kit, KEPT) >= 2);
    count(&kit);
    bring(&kit, 512, 8, DEV, KEPT + 1);
    // On to the other device: its own word, and this driver's is given back. Once whole, once in pieces.
    bring(&kit, 512, 8, DEV1, KEPT + 2);
    assert_eq!(kit.machine.kept.borrow().get(&(1, KEPT + 2)), Some(&8));
    assert_eq!(kept(&kit, KEPT + 1), 0);
    kit.machine.mm.inject.arm(Site::DeviceFolio as u32, 1, 0, u64::MAX);
    bring(&kit, 0, 512, DEV1, KEPT + 3);
    kit.machine.mm.inject.disarm();
    assert_eq!((kept(&kit, KEPT), kit.machine.kept.borrow().get(&(1, KEPT + 3))), (0, Some(&512)));
    count(&kit);
    kit.check(0, 520);
    assert!(kit.machine.kept.borrow().is_empty());
    kit.audit();
}

#[test]
fn a_merge_keeps_the_first_pages_word() {
    for in_place in [true, false] {
        let kit = kit();
        let space = kit.space.space();
        if in_place {
            bring(&kit, 0, 512, DEV, KEPT);
            let folio = lock(&kit, 0);
            space.split_folio(&folio, at(0), 77).expect("all of it is in one place");
            drop(folio.unlock());
        } else {
            kit.machine.mm.inject.arm(Site::DeviceFolio as u32, 9, 0, u64::MAX);
            bring(&kit, 0, 512, DEV, KEPT);
            kit.machine.mm.inject.disarm();
            // One page goes and comes, to another frame.
            let old = hold(&kit, 100).frame().offset(100);
            bring(&kit, 100, 1, Place::RAM, 0);
            let mut held: Vec<_> =
                core::iter::from_fn(|| kit.machine.mm.alloc_folio(DEV, Order::BASE, Need::User).ok())
                    .collect();
            held.retain(|folio| folio.frame() == old);
            assert_eq!(held.len(), 1);
            bring(&kit, 100, 1, DEV, KEPT + 1);
            drop(held);
        }
        assert!(kept(&kit, KEPT) > 1);
        count(&kit);
        let report = space.merge_device(range(0, 512)).expect("mapped");
        assert_eq!((report.in_place, report.copied), if in_place { (1, 0) } else { (0, 1) });
        assert_eq!((kept(&kit, KEPT), kept(&kit, KEPT + 1)), (1, 0));
        count(&kit);
        kit.check(0, 512);
        assert!(kit.machine.kept.borrow().is_empty());
        kit.audit();
    }
}

#[test]
fn a_migration_that_is_given_up_leaves_words_as_they_were() {
    for phase in 0..4 {
        let kit = kit();
        bring(&kit, 512, 4, DEV1, KEPT + 1);
        let options = MigrateOptions::to(DEV).from(Sources::RAM.and(DEV1)).with_word(KEPT);
        let (migration, _) =
            kit.space.space().migrate_collect_with(range(0, 521), DEV, &options).expect("mapped");
        match phase {
            0 => drop(migration),
            1 => drop(migration.unmap()),
            2 => drop(migration.unmap().copy()),
            _ => drop(migration.unmap().copy().commit()),
        }
        // After the commit a hole that was filled stays filled.
        assert_eq!(kept(&kit, KEPT), i64::from(phase == 3));
        assert_eq!(kit.machine.kept.borrow().get(&(1, KEPT + 1)), Some(&4));
        count(&kit);
        kit.check(0, 520);
        kit.audit();
    }
}

#[test]
fn counts_hold_whatever_is_done() {
    for seed in 0..6 {
        let kit = kit();
        let space = kit.space.space();
        let mut rng = Rng::new(seed);
        let mut child = None;
        for step in 0..300 {
            let len = if rng.one_in(3) { 512 } else { 1 + rng.below(80) };
            let start = if len == 512 { rng.below(2) * 512 } else { rng.below(1024 - len) };
            let part = range(start, len);
            let device = if rng.one_in(3) { DEV1 } else { DEV };
            let failing = rng.one_in(4);
            if failing {
                kit.machine.mm.inject.arm(Site::ALL, 1, rng.below(4), 1 + rng.below(3));
            }
            match rng.below(10) {
                0..3 => drop(
                    space.migrate_with(
                        part,
                        device,
                        &MigrateOptions::to(device)
                            .from(Sources::RAM.union(Sources::devices()))
                            .with_word(KEPT + step),
                        &mut |_| {},
                    ),
                ),
                3 => ignore(space.migrate(part, if rng.one_in(2) { Place::RAM } else { device })),
                4 => ignore(space.unmap(part)),
                5 => ignore(space.advise(part, Advice::DontNeed)),
                6 => ignore(space.merge_device(part)),
                7 => {
                    kit.machine.mm.evict_range(device, 0..rng.below(8 * 512) as u32);
                }
                8 if child.take().is_none() => child = kit.space.clone_of(|_| {}).ok(),
                _ => (start..start + len).step_by(7).for_each(|page| ignore(kit.try_write(page))),
            }
            kit.machine.mm.inject.disarm();
            ignore(space.map_anon(part, Prot::RW, if rng.one_in(2) { Huge } else { Small }));
            kit.machine.mm.audit().unwrap_or_else(|e| panic!("seed {seed}, step {step}: {e}"));
            count(&kit);
        }
        drop(child);
        space.unmap(range(0, 1024)).expect("memory");
        assert!(kit.machine.kept.borrow().is_empty(), "seed {seed}");
    }
}
