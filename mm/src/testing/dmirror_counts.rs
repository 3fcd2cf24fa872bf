//! What the test device counts of a migration to RAM, and whose 2 MiB page is refused.

use crate::folio::FolioRef;
use crate::migrate::MigrateOptions;
use crate::mirror::dmirror::{Dmirror, DmirrorError, Done, PAGE_WORDS};
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

/// Data that passes through three pages of memory: what came, page by page, and the count.
fn in_pieces(
    command: impl FnOnce(
        &mut [u64],
        &mut dyn FnMut(u64, &[u64]) -> Result<(), DmirrorError>,
    ) -> Result<Done, DmirrorError>,
) -> (Result<Done, DmirrorError>, Vec<u64>) {
    let (mut words, mut came) = (vec![0; 3 * PAGE_WORDS], Vec::new());
    let done = command(&mut words, &mut |page, words| {
        assert_eq!(page, came.len() as u64, "in order");
        came.extend(words.chunks(PAGE_WORDS).map(|page| page[0]));
        Ok(())
    });
    (done, came)
}

#[test]
fn in_pieces_a_command_counts_and_reads_what_it_does_as_a_whole() {
    let kit = Kit::new();
    let device = open(&kit.space);
    kit.map(0, 512, Huge);
    kit.map(512, 100, Small);
    kit.fill(0, 612);
    let all = range(0, 612);
    let values: Vec<u64> = (0..612).map(Kit::value).collect();
    let done = |faults| Ok(Done { cpages: 612, faults });
    assert_eq!(in_pieces(|words, take| device.read_to(all, words, take)), (done(1), values.clone()));
    assert_eq!(in_pieces(|words, take| device.migrate_and_read(all, words, take)), (done(0), values.clone()));
    assert_eq!(in_pieces(|words, take| device.read_to(all, words, take)), (done(0), values.clone()));
    kit.check(600, 1);
    assert_eq!(in_pieces(|words, take| device.read_to(all, words, take)).0, done(1), "one had gone");
    assert_eq!(in_pieces(|words, take| device.exclusive_to(all, words, take)), (done(0), values));
    kit.check(0, 612);
    // A write takes each page from its own place; the first piece faults for all.
    let mut words = vec![0; 3 * PAGE_WORDS];
    let written = device.write_from(all, &mut words, &mut |page, words| {
        for (number, words) in (page..).zip(words.chunks_mut(PAGE_WORDS)) {
            words.fill(0);
            words[0] = 7000 + number;
        }
        Ok(())
    });
    assert_eq!(written, done(1));
    (0..612).for_each(|page| assert_eq!(kit.try_read(page), Ok(7000 + page)));
    kit.audit();
}

#[test]
fn memory_that_cannot_take_a_piece_ends_the_command() {
    let kit = Kit::new();
    let device = open(&kit.space);
    kit.map(0, 8, Small);
    kit.fill(0, 8);
    let (mut words, mut pieces) = (vec![0; 3 * PAGE_WORDS], 0);
    let mut take = |page, _: &[u64]| {
        pieces += 1;
        if page < 3 { Ok(()) } else { Err(DmirrorError::Fault) }
    };
    assert_eq!(device.migrate_and_read(range(0, 8), &mut words, &mut take), Err(DmirrorError::Fault));
    assert_eq!(pieces, 2, "none after that");
    assert_eq!(kit.free(DEV), 8 * 512 - 8, "all has moved");
    let give = &mut |page, _: &mut [u64]| if page < 3 { Ok(()) } else { Err(DmirrorError::Fault) };
    assert_eq!(device.write_from(range(0, 8), &mut words, give), Err(DmirrorError::Fault));
    assert_eq!(device.read_to(range(0, 8), &mut [], &mut |_, _| Ok(())), Err(DmirrorError::Invalid));
    kit.check(6, 2);
    kit.audit();
}

#[test]
fn what_is_lent_is_found_in_a_range_however_long_it_is() {
    let kit = Kit::new();
    let device = open(&kit.space);
    kit.map(600, 8, Small);
    kit.fill(600, 8);
    let mut words = vec![0; 3 * PAGE_WORDS];
    device.exclusive_to(range(603, 2), &mut words, &mut |_, _| Ok(())).expect("memory");
    let found = [(0, 603), (605, 3), (604, 1), (0, 1 << 34)]
        .map(|(start, len)| device.check_exclusive(range(start, len)));
    assert_eq!(found, [Ok(()), Ok(()), Err(DmirrorError::Perm), Err(DmirrorError::Perm)]);
    kit.audit();
}
