//! Twenty mistakes that were made elsewhere on the way to huge pages on devices, by the first release or by drivers; one test
//! each, of what the mistake would have changed. `docs/TESTING.md` says how each was put in and what noticed it.

mod entries;
mod folios;
mod migrations;

use crate::entry::{Entry, SoftKind};
use crate::folio::FolioRef;
use crate::remap::{RemapFlags, RemapTarget};
use crate::space::Space;
use crate::testing::kit::{Kit, at, range};
use crate::testing::machine::Soft;
use crate::types::{Frame, Level, Order, PAGE_SIZE, Place};
use crate::vma::HugeAdvice::{self, Default as Small, Huge};
use crate::zone::Need;

const LEVELS: [(Level, HugeAdvice); 2] = [(Level::Pmd, Huge), (Level::Pte, Small)];

/// Pages 0..512, written, and on the device if `place` says so.
fn filled(advice: HugeAdvice, place: Place) -> Kit {
    let kit = Kit::new();
    kit.map(0, 512, advice);
    kit.fill(0, 512);
    if !place.is_ram() {
        let report = kit.space.space().migrate(range(0, 512), place).expect("it is mapped");
        assert_eq!((report.pages, report.failed_pages()), (512, 0));
    }
    kit
}

/// Takes one page of every 2 MiB of `place`, so that no huge page is free.
fn fragment(kit: &Kit, place: Place) -> Vec<FolioRef<Soft>> {
    let next = || kit.machine.mm.alloc_folio(place, Order::BASE, Need::Reserve).ok();
    let mut held: Vec<_> = core::iter::from_fn(next).collect();
    held.retain(|folio| folio.frame().index() % 512 == 1);
    kit.machine.mm.zone(place).drain();
    held
}

fn frame(space: &Space<Soft>, page: u64) -> Frame {
    let (level, entry) = space.entry_at(at(page));
    let first = match entry {
        Entry::Leaf(leaf) => leaf.frame,
        Entry::NonPresent(soft) => soft.frame,
        other => panic!("page {page} is {other:?}"),
    };
    first.offset(page as u32 & (level.order().pages() - 1))
}

fn kind(space: &Space<Soft>, page: u64) -> Option<SoftKind> {
    match space.entry_at(at(page)).1 {
        Entry::NonPresent(soft) => Some(soft.kind),
        _ => None,
    }
}

/// Whether it worked is not the question.
fn ignore<T>(_: T) {}

fn move_to(space: &'static Space<Soft>, start: u64, len: u64, to: u64) {
    let target = RemapTarget { addr: at(to), len: len * PAGE_SIZE };
    space.remap(range(start, len), target, RemapFlags::empty()).expect("memory");
}
