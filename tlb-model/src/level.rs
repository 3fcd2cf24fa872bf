//! One structure: sets of ways.

use alloc::vec::Vec;

use crate::{BadConfig, Holds, PageSize, Replacement, Shape};

/// No page: its number would need more than 64 bits of address.
const EMPTY: u64 = u64::MAX;

/// A translation that is cached, or room for one.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The page's number and its size.
    tag: u64,
    /// When it was used last (LRU) or came (FIFO).
    stamp: u64,
}

/// A structure of a level.
#[derive(Debug)]
pub(crate) struct Level {
    shape: Shape,
    sets: u64,
    slots: Vec<Slot>,
    /// Of each set: the bit of node n (1 is the root) says which half below it was not used last.
    trees: Vec<u64>,
    clock: u64,
    random: u64,
}

impl Level {
    pub(crate) fn new(shape: Shape) -> Result<Self, BadConfig> {
        if shape.ways == 0 || shape.entries == 0 || !shape.entries.is_multiple_of(shape.ways) {
            return Err(BadConfig::Ways(shape));
        }
        let is_tree = shape.replacement == Replacement::TreePlru;
        if is_tree && !(shape.ways.is_power_of_two() && shape.ways <= 64) {
            return Err(BadConfig::Tree(shape));
        }
        let sets = shape.entries / shape.ways;
        let empty = Slot { tag: EMPTY, stamp: 0 };
        Ok(Self {
            shape,
            sets: u64::from(sets),
            slots: filled(shape.entries, empty)?,
            trees: filled(if is_tree { sets } else { 0 }, 0)?,
            clock: 0,
            random: 0x9e37_79b9_7f4a_7c15,
        })
    }

    pub(crate) fn holds(&self) -> Holds {
        self.shape.holds
    }

    /// Is the page there? It is afterwards.
    pub(crate) fn access(&mut self, page: u64, size: PageSize) -> bool {
        let set = (page % self.sets) as usize;
        let tag = tag(page, size);
        self.clock += 1;
        let found = self.set(set).iter().position(|slot| slot.tag == tag);
        let way = match found {
            Some(way) => way,
            None => {
                let free = self.set(set).iter().position(|slot| slot.tag == EMPTY);
                free.unwrap_or_else(|| self.victim(set))
            }
        };
        let stamp = match (found, self.shape.replacement) {
            (Some(_), Replacement::Fifo) => self.set(set)[way].stamp,
            _ => self.clock,
        };
        let at = set * self.shape.ways as usize + way;
        self.slots[at] = Slot { tag, stamp };
        if let Some(tree) = self.trees.get_mut(set) {
            point_away(tree, self.shape.ways as usize, way);
        }
        found.is_some()
    }

    /// Drops a page.
    pub(crate) fn forget(&mut self, page: u64, size: PageSize) {
        let (first, ways) =
            ((page % self.sets) as usize * self.shape.ways as usize, self.shape.ways as usize);
        for slot in &mut self.slots[first..first + ways] {
            if slot.tag == tag(page, size) {
                slot.tag = EMPTY;
            }
        }
    }

    /// Drops everything.
    pub(crate) fn flush(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.tag = EMPTY);
    }

    fn set(&self, set: usize) -> &[Slot] {
        let ways = self.shape.ways as usize;
        &self.slots[set * ways..][..ways]
    }

    /// The way of a full set that goes.
    fn victim(&mut self, set: usize) -> usize {
        match self.shape.replacement {
            Replacement::Lru | Replacement::Fifo => {
                let oldest = self.set(set).iter().enumerate().min_by_key(|(_, slot)| slot.stamp);
                oldest.map_or(0, |(way, _)| way)
            }
            Replacement::TreePlru => pointed_at(self.trees[set], self.shape.ways as usize),
            Replacement::Random => {
                // Xorshift (Marsaglia, 2003).
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                (self.random % u64::from(self.shape.ways)) as usize
            }
        }
    }
}

/// A page's number is below 2^52, so there is room for the size.
const fn tag(page: u64, size: PageSize) -> u64 {
    page << 1 | matches!(size, PageSize::Huge) as u64
}

fn filled<T: Clone>(n: u32, with: T) -> Result<Vec<T>, BadConfig> {
    let mut all = Vec::new();
    all.try_reserve_exact(n as usize).map_err(|_| BadConfig::OutOfMemory)?;
    all.resize(n as usize, with);
    Ok(all)
}

/// Nodes lie as in a heap: node n has 2n and 2n + 1 below it, and way w is node `ways` + w.
fn pointed_at(tree: u64, ways: usize) -> usize {
    let mut node = 1;
    while node < ways {
        node = 2 * node + (tree >> node & 1) as usize;
    }
    node - ways
}

fn point_away(tree: &mut u64, ways: usize, way: usize) {
    let mut node = ways + way;
    while node > 1 {
        let came_from_right = node & 1 == 1;
        node /= 2;
        *tree = *tree & !(1 << node) | u64::from(!came_from_right) << node;
    }
}
