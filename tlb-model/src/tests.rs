extern crate std;

use std::collections::VecDeque;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use crate::{
    BadConfig, Config, Counts, Found, Holds, PRESETS, PageSize, Replacement, Shape, Tlb, WalkCaches,
};
use PageSize::{Huge, Small};
use Replacement::{Fifo, Lru, Random, TreePlru};

/// A TLB of one structure and no caches of upper-level entries.
fn single(entries: u32, ways: u32, replacement: Replacement) -> Tlb {
    let shape = Shape { entries, ways, holds: Holds::Both, replacement };
    build(&Config { name: "single", first: &[shape], second: &[], walks: WalkCaches::NONE })
}

fn build(config: &Config<'_>) -> Tlb {
    Tlb::new(config).unwrap_or_else(|error| panic!("{error}"))
}

/// Accesses 4 KiB pages by number; which of them hit.
fn hits(tlb: &mut Tlb, pages: &[u64]) -> Vec<bool> {
    pages.iter().map(|page| !matches!(tlb.access(page << 12, Small), Found::Walk(_))).collect()
}

fn misses(tlb: &mut Tlb, pages: &[u64]) -> usize {
    hits(tlb, pages).iter().filter(|hit| !**hit).count()
}

/// The same in the obvious way: a queue for each set, the next victim in front.
struct Obvious {
    sets: Vec<VecDeque<u64>>,
    ways: usize,
    moves_up: bool,
}

impl Obvious {
    fn new(entries: u32, ways: u32, replacement: Replacement) -> Self {
        let sets = vec![VecDeque::new(); (entries / ways) as usize];
        Self { sets, ways: ways as usize, moves_up: replacement == Lru }
    }

    fn access(&mut self, page: u64) -> bool {
        let n = self.sets.len() as u64;
        let set = &mut self.sets[(page % n) as usize];
        let found = set.iter().position(|one| *one == page);
        match found {
            Some(at) if self.moves_up => {
                set.remove(at);
                set.push_back(page);
            }
            Some(_) => {}
            None => {
                if set.len() == self.ways {
                    set.pop_front();
                }
                set.push_back(page);
            }
        }
        found.is_some()
    }
}

/// Every sequence of `len` out of `pages` pages.
fn sequences(pages: u64, len: u32) -> impl Iterator<Item = Vec<u64>> {
    (0..pages.pow(len)).map(move |n| (0..len).map(|i| n / pages.pow(i) % pages).collect())
}

#[test]
fn every_short_sequence_hits_and_misses_as_the_obvious_model_says() {
    for (entries, ways) in [(1, 1), (2, 1), (2, 2), (3, 3), (4, 1), (4, 2), (4, 4), (6, 3)] {
        for replacement in [Lru, Fifo] {
            for pages in sequences(5, 6) {
                let mut obvious = Obvious::new(entries, ways, replacement);
                let expected: Vec<bool> = pages.iter().map(|page| obvious.access(*page)).collect();
                let found = hits(&mut single(entries, ways, replacement), &pages);
                assert_eq!(found, expected, "{entries} entries, {ways} ways, {replacement:?}, {pages:?}");
            }
        }
    }
}

#[test]
fn a_tree_of_two_ways_is_lru() {
    for pages in sequences(4, 7) {
        let (lru, tree) = (hits(&mut single(4, 2, Lru), &pages), hits(&mut single(4, 2, TreePlru), &pages));
        assert_eq!(lru, tree, "{pages:?}");
    }
}

#[test]
fn a_tree_of_four_ways_forgets_another_page_than_lru() {
    // After A B C D A the root points to the half of C and D, and D was used last there: C goes, not B.
    let pages = [0, 1, 2, 3, 0, 4];
    let after = |replacement, page| {
        let mut tlb = single(4, 4, replacement);
        hits(&mut tlb, &pages);
        hits(&mut tlb, &[page])[0]
    };
    assert_eq!([1, 2].map(|page| after(TreePlru, page)), [true, false]);
    assert_eq!([1, 2].map(|page| after(Lru, page)), [false, true]);
}

#[test]
fn fifo_can_miss_more_with_more_entries() {
    // Bélády's sequence: 9 misses with three entries, 10 with four.
    let pages = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5];
    assert_eq!([3, 4].map(|n| misses(&mut single(n, n, Fifo), &pages)), [9, 10]);
    assert_eq!([3, 4].map(|n| misses(&mut single(n, n, Lru), &pages)), [10, 8]);
}

#[test]
fn a_direct_mapped_structure_thrashes_where_a_full_one_does_not() {
    let pages: Vec<u64> = (0..20).map(|n| n % 2 * 8).collect();
    assert_eq!(misses(&mut single(8, 1, Lru), &pages), 20);
    assert_eq!(misses(&mut single(8, 8, Lru), &pages), 2);
}

#[test]
fn going_round_one_page_too_many_misses_every_time_under_lru_only() {
    let round = |pages: u64| -> Vec<u64> { (0..10 * pages).map(|n| n % pages).collect() };
    assert_eq!(misses(&mut single(16, 16, Lru), &round(16)), 16);
    assert_eq!(misses(&mut single(16, 16, Lru), &round(17)), 170);
    assert!(misses(&mut single(16, 16, Random), &round(17)) < 100);
}

#[test]
fn random_is_the_same_in_every_run() {
    let pages: Vec<u64> = (0..500).map(|n| n * n % 97).collect();
    assert_eq!(hits(&mut single(16, 4, Random), &pages), hits(&mut single(16, 4, Random), &pages));
}

#[test]
fn the_number_of_a_page_counts_in_its_own_size() {
    // Two huge pages side by side are in different sets, though 512 small pages lie between them.
    let mut tlb = single(2, 1, Lru);
    let seen = [0, 1 << 21, 0, 1 << 21].map(|address| tlb.access(address, Huge));
    assert_eq!(seen, [Found::Walk(3), Found::Walk(3), Found::First, Found::First]);
    // A small page of the same number is another page.
    assert_eq!(tlb.access(0, Small), Found::Walk(4));
    assert_eq!(tlb.access(0, Huge), Found::Walk(3));
}

#[test]
fn what_the_first_level_drops_the_second_still_has() {
    let config = Config {
        name: "two levels",
        first: &[Shape::full(1, Holds::Small), Shape::full(2, Holds::Huge)],
        second: &[Shape::full(4, Holds::Both)],
        walks: WalkCaches::NONE,
    };
    let mut tlb = build(&config);
    let seen = [0, 1, 0, 0].map(|page| tlb.access(page << 12, Small));
    assert_eq!(seen, [Found::Walk(4), Found::Walk(4), Found::Second, Found::First]);
    // Huge pages push small ones out of the second level, but not out of the first.
    for page in 0..4 {
        tlb.access(page << 21, Huge);
    }
    assert_eq!(tlb.access(0, Small), Found::First);
    assert_eq!(tlb.access(1 << 12, Small), Found::Walk(4));
    let counts = tlb.take_counts();
    assert_eq!(counts, Counts { accesses: 10, first_misses: 8, walks: 7, walk_loads: 3 * 4 + 4 * 3 });
    assert_eq!(tlb.take_counts(), Counts::default());
    assert_eq!((config.reach(Small), config.reach(Huge)), (4 << 12, 4 << 21));
}

#[test]
fn walks_are_shorter_by_what_is_known_above() {
    let walks = WalkCaches { pml4: 1, pdpt: 1, pd: 2 };
    let first = [Shape::full(1, Holds::Both)];
    let mut tlb = build(&Config { name: "walks", first: &first, second: &[], walks });
    let mut loads = |address: u64, size| match tlb.access(address, size) {
        Found::Walk(loads) => loads,
        found => panic!("{address:#x} was {found:?}"),
    };
    assert_eq!(loads(0, Small), 4);
    assert_eq!(loads(1 << 12, Small), 1, "the same table");
    assert_eq!(loads(1 << 21, Small), 2, "the same PD");
    assert_eq!(loads(2 << 21, Huge), 1, "its PD entry maps it");
    assert_eq!(loads(1 << 30, Huge), 2, "the same PDPT");
    assert_eq!(loads(2 << 30, Small), 3);
    assert_eq!(loads(1 << 39, Huge), 3, "another PML4 entry");
    assert_eq!(loads(1 << 21, Small), 1, "its PD entry is still known");
    tlb.invalidate(5 << 40);
    assert_eq!(
        tlb.access(0, Small),
        Found::Walk(4),
        "INVLPG drops what is known above, whatever its address"
    );
}

#[test]
fn invlpg_drops_one_page_and_a_flush_all() {
    for replacement in [Lru, Fifo, TreePlru, Random] {
        let mut tlb = single(8, 4, replacement);
        assert_eq!(misses(&mut tlb, &[0, 1, 2, 3]), 4);
        tlb.invalidate(2 << 12 | 0x123);
        assert_eq!(hits(&mut tlb, &[0, 1, 3, 2]), [true, true, true, false]);
        tlb.flush();
        assert_eq!(misses(&mut tlb, &[0, 1, 2, 3]), 4);
    }
}

#[test]
fn what_cannot_be_built_is_refused() {
    let shape = |entries, ways, replacement| Shape { entries, ways, holds: Holds::Both, replacement };
    for bad in [shape(0, 1, Lru), shape(8, 0, Lru), shape(8, 3, Lru)] {
        let config = Config { name: "bad", first: &[bad], second: &[], walks: WalkCaches::NONE };
        assert_eq!(Tlb::new(&config).err(), Some(BadConfig::Ways(bad)));
    }
    let six = shape(12, 6, TreePlru);
    let config = Config { name: "bad", first: &[], second: &[six], walks: WalkCaches::NONE };
    assert_eq!(Tlb::new(&config).err(), Some(BadConfig::Tree(six)));
}

#[test]
fn the_presets_have_their_reach() {
    let reach = |size| PRESETS.map(|preset| preset.reach(size));
    assert_eq!(reach(Small), [8 << 20, 12 << 20, 64 << 10]);
    assert_eq!(reach(Huge), [4 << 30, 6 << 30, 32 << 20]);
    for preset in PRESETS {
        for size in [Small, Huge] {
            let mut tlb = build(&preset);
            let pages = preset.reach(size) / size.bytes();
            for n in 0..2 * pages {
                tlb.access(n % pages * size.bytes(), size);
            }
            assert_eq!(tlb.take_counts().walks, pages, "{}: what is in reach stays", preset.name);
        }
    }
}

fn pages() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(0_u64..40, 1..400)
}

proptest! {
    #[test]
    fn more_ways_never_miss_what_fewer_hit_under_lru(pages in pages(), sets in 1_u32..5, ways in 1_u32..7) {
        let fewer = hits(&mut single(sets * ways, ways, Lru), &pages);
        let more = hits(&mut single(sets * (ways + 1), ways + 1, Lru), &pages);
        prop_assert!(fewer.iter().zip(&more).all(|(fewer, more)| !fewer || *more));
    }

    #[test]
    fn long_sequences_agree_with_the_obvious_model(pages in pages(), sets in 1_u32..5, ways in 1_u32..7, lru: bool) {
        let replacement = if lru { Lru } else { Fifo };
        let mut obvious = Obvious::new(sets * ways, ways, replacement);
        let expected: Vec<bool> = pages.iter().map(|page| obvious.access(*page)).collect();
        prop_assert_eq!(hits(&mut single(sets * ways, ways, replacement), &pages), expected);
    }

    #[test]
    fn what_fits_is_missed_once_whatever_the_replacement(pages in pages(), which in 0_usize..4) {
        let mut tlb = single(64, 64, [Lru, Fifo, TreePlru, Random][which]);
        let mut different = pages.clone();
        different.sort_unstable();
        different.dedup();
        prop_assert_eq!(misses(&mut tlb, &pages), different.len());
    }
}
