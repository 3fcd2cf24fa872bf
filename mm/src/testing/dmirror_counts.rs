//! What the test device counts of a migration to RAM, and whose 2 MiB page is refused.

use crate::folio::FolioRef;
use crate::migrate::MigrateOptions;
use crate::mirror::dmirror::{Dmirror, Done, PAGE_WORDS};
use crate::space::AddressSpace;
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, Soft, one};
use crate::types::{Level, Order, Place};
use crate::vma::HugeAdvice::{Default as Small, Huge};
use crate::zone::Need;

fn open(space: &AddressSpace<Soft>) -> Dmirror<Soft> {
    Dmirror::open(DEV, space).expect("the device is there")
}

fn to_device(device: &Dmirror<Soft>, start: u64, len: u64) -> Done {
    let mut words = vec![0; len as usize * PAGE_WORDS];
    device.migrate_to_device(at(start), &mut words).expect("room")
}

/// What a migration to RAM counts.
fn cpages(device: &Dmirror<Soft>, start: u64, len: u64) -> u64 {
    device.migrate_to_system(range(start, len)).expect("mapped").cpages
}

fn level(kit: &Kit, page: u64) -> Level {
    kit.space.entry_at(at(page)).0
}

/// Holes of `len` pages that get memory of the device in folios of eight.
fn in_eights(kit: &Kit, start: u64, len: u64) {
    kit.map(start, len, Small);
    let options = MigrateOptions { hole_order: Order::new(3), ..MigrateOptions::to(DEV) };
    let mut orders = Vec::new();
    let space = kit.space.space();
    space
        .migrate_with(range(start, len), DEV, &options, &mut |unit| orders.push(unit.order))
        .expect("mapped");
    assert_eq!(orders, vec![Order::new(3); len as usize / 8]);
}

#[test]
fn a_huge_page_counts_once_and_every_other_page_by_itself() {
    let kit = Kit::new();
    let device = open(&kit.space);
    kit.map(0, 1024, Huge);
    kit.map(1024, 5, Small);
    kit.fill(0, 1029);
    to_device(&device, 0, 1029);
    in_eights(&kit, 1040, 16);
    // The first page of the second huge one goes ahead: 511 are left, in pieces of whatever size.
    assert_eq!(cpages(&device, 512, 1), 1);
    assert_eq!(cpages(&device, 0, 1029), 1 + 511 + 5);
    assert_eq!(cpages(&device, 1040, 16), 16, "two folios of eight");
    assert_eq!(cpages(&device, 0, 1029), 0, "all is there");
    assert_eq!(kit.free(DEV), 8 * 512);
    kit.check(0, 1029);
    kit.audit();
}

#[test]
fn part_of_a_large_folio_counts_its_pages_and_the_rest_stays() {
    let kit = Kit::new();
    let device = open(&kit.space);
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    to_device(&device, 0, 512);
    in_eights(&kit, 1040, 8);
    assert_eq!(cpages(&device, 3, 10), 10);
    assert_eq!(cpages(&device, 1042, 3), 3);
    assert_eq!(kit.free(DEV), 8 * 512 - 502 - 5);
    assert_eq!(cpages(&device, 256, 256), 256);
    assert_eq!(kit.free(DEV), 8 * 512 - 246 - 5);
    kit.check_in_place(0, 512);
    kit.audit();
}

#[test]
fn a_folio_that_is_torn_counts_its_pages_whatever_its_size() {
    let kit = Kit::new();
    let device = open(&kit.space);
    in_eights(&kit, 1040, 16);
    // Every second single page is free, none beside another.
    let mut held: Vec<FolioRef<Soft>> =
        core::iter::from_fn(|| kit.machine.mm.alloc_folio(Place::RAM, Order::BASE, Need::Reserve).ok())
            .collect();
    held.retain(|folio| folio.frame().index() % 2 == 1);
    kit.machine.mm.ram.drain();
    assert_eq!(cpages(&device, 1040, 16), 16);
    drop(held);
    assert_eq!(kit.free(DEV), 8 * 512);
    kit.audit();
}

#[test]
fn a_refusal_is_for_the_opening_that_asked_for_it_and_waits_for_a_huge_page() {
    let kit = Kit::new();
    let child = AddressSpace::new(|_| {}).expect("memory");
    let (first, second, other) = (open(&kit.space), open(&kit.space), open(&child));
    kit.map(0, 1536, Huge);
    kit.map(1536, 40, Small);
    kit.fill(0, 1576);
    child.space().map_anon(range(0, 512), crate::Prot::RW, Huge).expect("free");
    first.fail_next_huge();
    // Neither another opening's huge page, nor small ones of its own.
    to_device(&second, 0, 512);
    to_device(&other, 0, 512);
    to_device(&first, 1536, 40);
    assert_eq!((level(&kit, 0), child.entry_at(at(0)).0), (Level::Pmd, Level::Pmd));
    assert_eq!(to_device(&first, 512, 1024).cpages, 1024);
    assert_eq!((level(&kit, 512), level(&kit, 1024)), (Level::Pte, Level::Pmd), "the first alone");
    first.fail_next_huge();
    assert_eq!((cpages(&second, 0, 512), cpages(&first, 1024, 512)), (1, 512));
    assert_eq!((level(&kit, 0), level(&kit, 1024)), (Level::Pmd, Level::Pte));
    drop((other, child));
    kit.check(0, 1576);
    kit.audit();
}

#[test]
fn a_refusal_waits_from_batch_to_batch_and_is_over_after_one_page() {
    let config = Config { ram: one(512..512 + 48 * 512), devices: vec![24 * 512], ..Config::default() };
    let kit = Kit::on(&config);
    let device = open(&kit.space);
    let small = u64::from(crate::migrate::BATCH_PAGES);
    kit.map(0, small, Small);
    kit.map(small, 1536, Huge);
    kit.fill(0, small + 1536);
    device.fail_next_huge();
    to_device(&device, 0, small + 1536);
    let levels = [0, 512, 1024].map(|page| level(&kit, small + page));
    assert_eq!(levels, [Level::Pte, Level::Pmd, Level::Pmd]);
    device.fail_next_huge();
    assert_eq!(cpages(&device, 0, small + 1536), small + 512 + 512 + 1);
    assert_eq!([512, 1024].map(|page| level(&kit, small + page)), [Level::Pte, Level::Pmd]);
    kit.check(0, small + 1536);
    kit.audit();
}
