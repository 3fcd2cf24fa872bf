//! Pages that are got and pinned.

use crate::counters::Event;
use crate::entry::{Attrs, Entry, Leaf};
use crate::error::FaultError;
use crate::gup::{Got, PinError, PinFlags, Pinned};
use crate::inject::Site;
use crate::migrate::Cause;
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, Soft};
use crate::types::{Access, Level, Order, Place, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};
use crate::zone::Need;

const COH: Place = Place::coherent(1);
const WRITE: PinFlags = PinFlags::WRITE;
const READ: PinFlags = PinFlags::empty();
const FAST: PinFlags = PinFlags::FAST;
const LONGTERM: PinFlags = PinFlags::LONGTERM;

fn kit() -> Kit {
    Kit::on(&Config { devices: vec![8 * 512; 2], coherent: vec![1], ..Config::default() })
}

fn pin(kit: &Kit, page: u64, flags: PinFlags) -> Result<Pinned<Soft>, PinError> {
    let mut pages = [None];
    kit.space.space().pin_pages(range(page, 1), flags, &mut pages)?;
    let [page] = pages;
    Ok(page.expect("a page was asked for"))
}

fn get(kit: &Kit, page: u64, flags: PinFlags) -> Result<Got<Soft>, PinError> {
    let mut pages = [None];
    kit.space.space().get_pages(range(page, 1), flags, &mut pages)?;
    let [page] = pages;
    Ok(page.expect("a page was asked for"))
}

fn leaf(kit: &Kit, page: u64) -> (Level, Leaf) {
    match kit.space.entry_at(at(page)) {
        (level, Entry::Leaf(leaf)) => (level, leaf),
        other => panic!("page {page} is {other:?}"),
    }
}

fn migrate(kit: &Kit, start: u64, len: u64, to: Place) -> crate::migrate::Report {
    kit.space.space().migrate(range(start, len), to).expect("all of it is mapped")
}

fn pins(kit: &Kit) -> (u64, u64) {
    (kit.machine.counted(Event::FollPinAcquired), kit.machine.counted(Event::FollPinReleased))
}

#[test]
fn device_pages_come_to_ram_for_every_user_and_coherent_ones_for_long_pins() {
    for (device, stays) in [(DEV, false), (COH, true)] {
        let kit = kit();
        kit.map(0, 4, Small);
        kit.fill(0, 4);
        migrate(&kit, 0, 4, device);
        let got = [get(&kit, 0, WRITE), get(&kit, 1, WRITE | FAST)].map(|page| page.expect("it is mapped"));
        let pinned = [pin(&kit, 2, WRITE | FAST | LONGTERM), pin(&kit, 3, WRITE | LONGTERM)]
            .map(|page| page.expect("it is mapped"));
        let expected = if stays { device } else { Place::RAM };
        assert_eq!(got.each_ref().map(Got::place), [expected; 2]);
        assert_eq!(pinned.each_ref().map(|page| page.place()), [Place::RAM; 2]);
        for (n, frame) in got.iter().map(Got::frame).chain(pinned.iter().map(|p| p.frame())).enumerate() {
            assert_eq!(leaf(&kit, n as u64).1.frame, frame);
            assert_eq!(kit.machine.data(frame)[0].get(), Kit::value(n as u64), "the page's contents");
        }
        drop((got, pinned));
        kit.check(0, 4);
        kit.audit();
    }
}

#[test]
fn a_pinned_page_does_not_move_and_its_entry_is_as_before() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.map(512, 4, Small);
    kit.fill(0, 516);
    let held = [pin(&kit, 7, WRITE).expect("memory"), pin(&kit, 513, READ).expect("memory")];
    let before = [leaf(&kit, 7), leaf(&kit, 513)];
    let report = migrate(&kit, 0, 516, DEV);
    assert_eq!((report.pages, report.failed[Cause::Pinned as usize]), (3, 513));
    assert_eq!([leaf(&kit, 7), leaf(&kit, 513)], before);
    kit.audit();
    kit.check(0, 516);
    drop(held);
    let report = migrate(&kit, 0, 516, DEV);
    assert_eq!((report.pages, report.failed_pages()), (516, 0));
    kit.check(0, 516);
    kit.audit();
}

#[test]
fn pins_are_counted_in_the_folio_and_for_the_machine() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    let mut pages: Vec<Option<Pinned<Soft>>> = (0..512).map(|_| None).collect();
    kit.space.space().pin_pages(range(0, 512), WRITE | FAST, &mut pages).expect("it is there");
    let folio = pages[5].as_ref().expect("pinned").folio();
    assert_eq!((folio.pins(), folio.refs(), folio.map_count()), (512, 513, 1));
    assert_eq!(pins(&kit), (512, 0));
    kit.audit();
    pages.truncate(100);
    assert_eq!((pages[0].as_ref().expect("pinned").folio().pins(), pins(&kit)), (100, (512, 412)));
    drop(pages);
    assert_eq!(pins(&kit), (512, 512));
    kit.audit();
}

#[test]
fn the_fast_way_takes_what_is_there_and_leaves_the_rest_to_the_slow_one() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.map(512, 8, Small);
    kit.fill(0, 513);
    let faults = || kit.machine.counted(Event::PgFault);
    let before = faults();
    for page in [0, 511, 512] {
        let pinned = pin(&kit, page, WRITE | FAST).expect("it is there");
        assert_eq!(kit.machine.data(pinned.frame())[0].get(), Kit::value(page));
    }
    assert_eq!(faults(), before);
    // Nothing there; a zero page; a page on its way.
    let pinned = pin(&kit, 513, WRITE | FAST).expect("memory");
    assert_eq!((faults(), kit.machine.data(pinned.frame())[0].get()), (before + 1, 0));
    assert_eq!(kit.try_read(514), Ok(0));
    assert!(leaf(&kit, 514).1.special);
    let got = get(&kit, 514, FAST).expect("the zero page may be read");
    assert!(leaf(&kit, 514).1.special, "and stays");
    drop(got);
    let pinned_zero = pin(&kit, 514, FAST).expect("memory");
    assert!(!leaf(&kit, 514).1.special, "but a pin is on a page of its own");
    assert_eq!(leaf(&kit, 514).1.frame, pinned_zero.frame());
    drop((pinned, pinned_zero));
    kit.audit();
}

#[test]
fn a_read_only_mapping_can_be_pinned_for_reading_only() {
    let kit = kit();
    kit.space.space().map_anon(range(0, 4), Prot::READ, Small).expect("it is free");
    let pinned = pin(&kit, 1, READ).expect("memory");
    let (_, entry) = leaf(&kit, 1);
    assert_eq!(entry.frame, pinned.frame());
    assert!(entry.attrs.contains(Attrs::EXCLUSIVE) && !entry.attrs.contains(Attrs::WRITE) && !entry.special);
    assert_eq!(pin(&kit, 2, WRITE).err(), Some(PinError::Fault(FaultError::Access(at(2), Access::Write))));
    drop(pinned);
    kit.audit();
}

#[test]
fn an_error_names_the_page_and_the_pages_before_it_are_had() {
    let kit = kit();
    kit.map(0, 4, Small);
    kit.fill(0, 4);
    let space = kit.space.space();
    for flags in [WRITE, WRITE | FAST] {
        let mut pages: Vec<Option<Pinned<Soft>>> = (0..8).map(|_| None).collect();
        let error = space.pin_pages(range(1, 8), flags, &mut pages);
        assert_eq!(error, Err(PinError::Fault(FaultError::NoVma(at(4)))));
        assert_eq!(pages.iter().filter(|page| page.is_some()).count(), 3);
        let error = space.pin_pages(range(0, 4), flags, &mut pages[..2]);
        assert_eq!(error, Err(PinError::Invalid(range(0, 4))), "no room");
    }
    space.protect(range(2, 1), Prot::empty()).expect("it is mapped");
    for flags in [READ, FAST, LONGTERM] {
        let expected = PinError::Fault(FaultError::Access(at(2), Access::Read));
        assert_eq!(pin(&kit, 2, flags).err(), Some(expected));
        assert_eq!(get(&kit, 2, flags).err(), Some(expected));
    }
    kit.audit();
}

#[test]
fn a_long_pin_moves_a_huge_coherent_page_as_one() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    migrate(&kit, 0, 512, COH);
    let short = pin(&kit, 3, WRITE).expect("it is there");
    assert_eq!(short.place(), COH, "a short pin leaves it");
    // The short pin keeps it where it is.
    assert_eq!(pin(&kit, 300, WRITE | LONGTERM).err(), Some(PinError::Busy(at(300))));
    drop(short);
    let pinned = pin(&kit, 300, WRITE | LONGTERM | FAST).expect("memory");
    assert_eq!((pinned.place(), leaf(&kit, 0).0), (Place::RAM, Level::Pmd));
    assert_eq!((pinned.folio().order(), kit.free(COH)), (Order::PMD, 8 * 512));
    kit.check(0, 512);
    drop(pinned);
    kit.audit();
}

#[test]
fn without_ram_a_long_pin_says_so_and_nothing_has_changed() {
    let kit = kit();
    kit.map(0, 2, Small);
    kit.fill(0, 2);
    migrate(&kit, 0, 2, COH);
    let mm = &kit.machine.mm;
    let hog: Vec<_> =
        core::iter::from_fn(|| mm.alloc_folio(Place::RAM, Order::BASE, Need::Reserve).ok()).collect();
    assert_eq!(pin(&kit, 0, LONGTERM).err(), Some(PinError::NoMemory(at(0))));
    assert_eq!((leaf(&kit, 0).1.frame.place(), pins(&kit)), (COH, (0, 0)));
    drop(hog);
    kit.check(0, 2);
    kit.audit();
}

#[test]
fn a_clone_gets_a_copy_of_what_is_pinned_and_the_pin_stays_with_the_parent() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.map(512, 2, Small);
    kit.fill(0, 514);
    migrate(&kit, 512, 1, COH);
    let held = [9, 512, 513].map(|page| pin(&kit, page, WRITE | FAST).expect("it is there"));
    let child = kit.space.clone_of(|_| {}).expect("memory");
    for (page, pinned) in [9, 512, 513].into_iter().zip(&held) {
        let (level, entry) = leaf(&kit, page);
        assert!(entry.attrs.contains(Attrs::WRITE | Attrs::EXCLUSIVE), "page {page}: {entry:?}");
        let inside = if level == Level::Pmd { page as u32 } else { 0 };
        assert_eq!(entry.frame.offset(inside), pinned.frame());
        let (_, Entry::Leaf(copy)) = child.entry_at(at(page)) else { panic!("page {page} has no copy") };
        assert_eq!(copy.frame.place(), Place::RAM);
        assert_ne!(copy.frame.offset(inside), pinned.frame(), "page {page}");
        assert_eq!(kit.machine.data(copy.frame.offset(inside))[0].get(), Kit::value(page));
    }
    kit.audit();
    drop((held, child));
    kit.check(0, 514);
    kit.audit();
}

#[test]
fn a_page_that_a_clone_shares_is_copied_before_it_is_pinned() {
    let kit = kit();
    kit.map(0, 3, Small);
    kit.fill(0, 3);
    migrate(&kit, 2, 1, COH);
    let child = kit.space.clone_of(|_| {}).expect("memory");
    for (page, flags) in [(0, READ), (1, WRITE | FAST), (2, FAST)] {
        let shared = leaf(&kit, page).1.frame;
        let got = get(&kit, page, READ).expect("it is there");
        assert_eq!(got.frame(), shared, "a reference is to what is there");
        drop(got);
        let pinned = pin(&kit, page, flags).expect("memory");
        assert_ne!(pinned.frame(), shared, "page {page}");
        assert_eq!(pinned.place(), Place::RAM, "a copy is in RAM");
        assert_eq!(leaf(&kit, page).1.frame, pinned.frame());
        assert!(leaf(&kit, page).1.attrs.contains(Attrs::EXCLUSIVE));
        let (_, Entry::Leaf(theirs)) = child.entry_at(at(page)) else { panic!("page {page}") };
        assert_eq!(theirs.frame, shared);
    }
    kit.check(0, 3);
    drop(child);
    kit.audit();
}

#[test]
fn an_unmapped_page_stays_allocated_until_it_is_unpinned() {
    let kit = kit();
    kit.map(0, 1, Small);
    kit.fill(0, 1);
    let before = kit.free(Place::RAM);
    let pinned = pin(&kit, 0, READ).expect("it is there");
    kit.space.space().unmap(range(0, 1)).expect("it is mapped");
    let frame = pinned.frame();
    assert_eq!(kit.machine.data(frame)[0].get(), Kit::value(0));
    assert_eq!((pinned.folio().refs(), pinned.folio().map_count()), (1, 0));
    kit.audit();
    drop(pinned);
    assert!(kit.machine.mm.try_get_folio(frame).is_none() && kit.free(Place::RAM) > before);
    kit.audit();
}

#[test]
fn what_was_pinned_to_be_written_is_dirty_afterwards() {
    let kit = kit();
    kit.map(0, 2, Small);
    kit.fill(0, 2);
    kit.space.space().advise(range(0, 2), crate::advise::Advice::Free).expect("it is mapped");
    for (page, flags, dirty) in [(0, READ, false), (1, WRITE, true)] {
        let folio = get(&kit, page, READ).expect("it is there");
        drop(pin(&kit, page, flags).expect("it is there"));
        assert_eq!(folio.folio().is_dirty(), dirty, "page {page}");
    }
    kit.audit();
}

#[test]
fn every_allocation_of_a_pin_may_fail() {
    for n in 0.. {
        let kit = kit();
        kit.map(0, 3, Small);
        kit.fill(0, 2);
        migrate(&kit, 0, 1, COH);
        migrate(&kit, 1, 1, DEV);
        let mut pages: [Option<Pinned<Soft>>; 3] = [None, None, None];
        kit.machine.mm.inject.arm(Site::ALL, 0, n, 1);
        let done = kit.space.space().pin_pages(range(0, 3), LONGTERM, &mut pages);
        let asked = kit.machine.mm.inject.disarm();
        if done.is_err() {
            assert!(
                matches!(done, Err(PinError::NoMemory(_) | PinError::Fault(FaultError::Oom(_)))),
                "{done:?}"
            );
        }
        drop(pages);
        kit.check(0, 2);
        assert_eq!(pins(&kit).0, pins(&kit).1);
        kit.audit();
        if asked <= n {
            assert_eq!(done, Ok(()));
            break;
        }
    }
}
