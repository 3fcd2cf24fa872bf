//! RAM that has been full of small pages is whole again afterwards.

use crate::testing::kit::Kit;
use crate::testing::machine::{Config, one};
use crate::types::{Order, Place};
use crate::zone::Need;

/// Blocks of 2 MiB that are free in one piece.
fn blocks(kit: &Kit) -> u32 {
    kit.machine.mm.ram.drain();
    kit.machine.mm.ram.stat().chunks[9]
}

#[test]
fn descriptors_of_small_pages_do_not_lie_all_over_ram() {
    let kit = Kit::on(&Config { ram: one(0..64 << 9), ..Config::default() });
    let before = blocks(&kit);
    assert!(before >= 56, "{before} blocks");
    let pages: Vec<_> =
        core::iter::from_fn(|| kit.machine.mm.alloc_folio(Place::RAM, Order::BASE, Need::Reserve).ok())
            .collect();
    assert!(pages.len() > 56 * 512 && blocks(&kit) == 0);
    drop(pages);
    let after = blocks(&kit);
    assert!(after + 8 >= before, "{after} of {before} blocks are whole");
    kit.audit();
}
