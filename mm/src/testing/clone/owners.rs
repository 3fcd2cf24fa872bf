//! Whose page it is: pinned, lent, taken back, made one's own.

use crate::counters::Event;
use crate::entry::{Attrs, Entry, SoftKind};
use crate::error::FaultError;
use crate::folio::FolioRef;
use crate::testing::clone::memory::shatter;
use crate::testing::clone::{SOLE, check_in, fork, frame, read, write};
use crate::testing::kinds::{Kind, Setup, attrs_of};
use crate::testing::kit::{DEV, Kit, at};
use crate::testing::machine::Soft;
use crate::types::{Level, Place};
use crate::vma::HugeAdvice::Default as Small;

pub(super) fn pin(kit: &Kit, page: u64) -> FolioRef<Soft> {
    let folio = kit.machine.mm.try_get_folio(frame(&kit.space, page)).expect("it is mapped");
    folio.add_pins(1);
    folio
}

pub(super) fn unpin(folio: FolioRef<Soft>) {
    folio.remove_pins(1);
    drop(folio);
}

#[test]
fn a_pinned_page_is_copied_for_the_clone_and_stays_the_parents() {
    for level in [Level::Pte, Level::Pmd] {
        for short in [false, true] {
            let setup = Setup::new(Kind::Present, level);
            let kit = &setup.kit;
            let pinned = pin(kit, 6);
            let (before, first) = (setup.entry(6), frame(&kit.space, 6));
            // Without a chunk of 2 MiB the mapping is split and its pages are copied one by one.
            let held = if short { shatter(kit) } else { Vec::new() };
            let child = fork(kit);
            let (now, entry) = setup.entry(6);
            let offset = if now == before.0 { 0 } else { 6 };
            assert_eq!(frame(&kit.space, 6), first.offset(offset));
            assert!(attrs_of(entry).contains(SOLE), "{level:?}: the pinned page is still the parent's own");
            assert_ne!(frame(&child, 6), frame(&kit.space, 6));
            assert!(attrs_of(child.entry_at(at(6)).1).contains(SOLE), "and the copy is the child's");
            check_in(kit, &child, 0, 512);
            write(kit, &kit.space, 6, 1);
            assert_eq!(read(kit, &child, 6), Kit::value(6));
            assert_eq!(frame(&kit.space, 6), first.offset(offset), "a write does not move away from the pin");
            unpin(pinned);
            drop(held);
            kit.audit();
            drop(child);
            kit.audit();
        }
    }
}

#[test]
fn a_lent_page_comes_back_before_it_is_shared() {
    for level in [Level::Pte, Level::Pmd] {
        let setup = Setup::new(Kind::Exclusive, level);
        let child = fork(&setup.kit);
        assert!(setup.is(9, Kind::Present), "{:?}", setup.entry(9));
        let lent = |entry| matches!(entry, Entry::NonPresent(soft) if soft.kind == SoftKind::DeviceExclusive);
        assert!(!lent(child.entry_at(at(9)).1));
        for space in [&setup.kit.space, &child] {
            (0..512).for_each(|page| write(&setup.kit, space, page, read(&setup.kit, space, page) + 1));
        }
        for space in [&setup.kit.space, &child] {
            (0..512).for_each(|page| assert_eq!(read(&setup.kit, space, page), Kit::value(page) + 1));
        }
        setup.kit.audit();
    }
}

#[test]
fn a_page_is_made_ones_own_without_a_write() {
    for level in [Level::Pte, Level::Pmd] {
        let setup = Setup::new(Kind::Present, level);
        let kit = &setup.kit;
        let child = fork(kit);
        let first = frame(&kit.space, 6);
        kit.space.space().unshare(at(6)).expect("memory");
        let attrs = setup.attrs(6);
        assert!(attrs.contains(Attrs::EXCLUSIVE) && !attrs.contains(Attrs::WRITE));
        assert_ne!(frame(&kit.space, 6), first, "a copy");
        child.space().unshare(at(6)).expect("nothing is needed");
        assert_eq!(frame(&child, 6), first, "the last one takes it");
        kit.audit();
        check_in(kit, &child, 0, 512);
        check_in(kit, &kit.space, 0, 512);
    }
    for kind in [Kind::Device, Kind::Zero] {
        let setup = Setup::new(kind, Level::Pte);
        setup.kit.space.space().unshare(at(6)).expect("memory");
        assert!(setup.is(6, Kind::Present) && setup.attrs(6).contains(Attrs::EXCLUSIVE), "{kind:?}");
        setup.kit.audit();
    }
    let kit = Kit::new();
    kit.map(0, 1, Small);
    kit.space.space().unshare(at(0)).expect("memory");
    assert_eq!(read(&kit, &kit.space, 0), 0);
    assert_eq!(kit.space.space().unshare(at(1)), Err(FaultError::NoVma(at(1))));
    kit.audit();
}

#[test]
fn the_last_of_the_sharers_takes_the_page_back_without_a_copy() {
    for level in [Level::Pte, Level::Pmd] {
        let setup = Setup::new(Kind::Present, level);
        let kit = &setup.kit;
        let first = frame(&kit.space, 9);
        drop(fork(kit));
        let (copies, upgrades) =
            (kit.machine.counted(Event::CowCopy), kit.machine.counted(Event::WriteUpgrade));
        write(kit, &kit.space, 9, 5);
        assert_eq!(frame(&kit.space, 9), first);
        assert_eq!(kit.machine.counted(Event::CowCopy), copies);
        assert_eq!(kit.machine.counted(Event::WriteUpgrade), upgrades + 1);
        assert!(setup.attrs(9).contains(SOLE));
        // But not while somebody holds the page, who may be reading.
        drop(fork(kit));
        let held = kit.machine.mm.try_get_folio(first).expect("it is mapped");
        write(kit, &kit.space, 9, 6);
        assert_ne!(frame(&kit.space, 9), first);
        assert_eq!(kit.machine.data(if level == Level::Pmd { first.offset(9) } else { first })[0].get(), 5);
        drop(held);
        kit.audit();
    }
}

#[test]
fn a_write_to_a_shared_page_on_a_device_brings_it_back_for_all_and_then_copies() {
    for level in [Level::Pte, Level::Pmd] {
        let setup = Setup::new(Kind::Device, level);
        let kit = &setup.kit;
        let child = fork(kit);
        assert_eq!(frame(&child, 0).place(), DEV);
        write(kit, &kit.space, 1, 11);
        assert_eq!(frame(&kit.space, 1).place(), Place::RAM);
        assert_eq!(frame(&child, 1).place(), Place::RAM, "it came back for both");
        assert_eq!((read(kit, &child, 1), read(kit, &kit.space, 1)), (Kit::value(1), 11));
        assert_eq!(kit.machine.counted(Event::CowCopy), 1);
        kit.audit();
        // What is left of a read: the entry allows no write, and the next write copies or takes it.
        let _ = read(kit, &child, 2);
        assert!(!attrs_of(child.entry_at(at(2)).1).intersects(SOLE));
        drop(child);
        (2..512).for_each(|page| write(kit, &kit.space, page, page));
        kit.audit();
    }
}
