//! Gathers, folios, slabs and zones by themselves.

use crate::entry::{Attrs, Entry, Leaf};
use crate::folio::{FolioRef, LockedFolio};
use crate::inject::Site;
use crate::machine::{FlushReason, Machine};
use crate::testing::kit::{DEV, Kit, at};
use crate::testing::machine::{Config, Soft};
use crate::tlb::TlbGather;
use crate::types::{Frame, Level, Order, Place};
use crate::vma::HugeAdvice;
use crate::zone::Need;

fn one_page() -> (Kit, Frame) {
    let kit = Kit::new();
    kit.map(0, 4, HugeAdvice::Default);
    kit.fill(0, 4);
    let (_, Entry::Leaf(leaf)) = kit.space.entry_at(at(0)) else { panic!("page 0 is mapped") };
    (kit, leaf.frame)
}

/// Clears the entry of page 0 into the gather, with its folio, as an unmap does.
fn clear_into(kit: &Kit, gather: &mut TlbGather<Soft>) {
    let mut cursor = kit.space.space().cursor(at(0)).expect("there is a table");
    let leaf: Leaf = gather.defer(cursor.clear_leaf());
    let folio = kit.machine.mm.mapped_folio(leaf.frame);
    folio.remove_maps(1);
    gather.hold(FolioRef::from_owned(folio), 0);
}

#[test]
fn a_frame_is_kept_until_its_flush() {
    let (kit, frame) = one_page();
    let mut gather = TlbGather::new(FlushReason::Unmap);
    clear_into(&kit, &mut gather);
    assert_eq!(kit.space.flush.pending(), 1, "everybody can see that a flush is owed");
    assert!(kit.machine.mm.try_get_folio(frame).is_some(), "a translation may still lead here");
    assert_eq!(kit.machine.flushed(FlushReason::Unmap), 0);
    let _flushed = gather.flush();
    assert_eq!(kit.machine.flushed(FlushReason::Unmap), 1);
    assert!(kit.machine.mm.try_get_folio(frame).is_none(), "free now");
    assert_eq!(kit.space.flush.pending(), 0);
    let _flushed = gather.flush();
    assert_eq!(kit.machine.flushed(FlushReason::Unmap), 1, "nothing is owed any more");
    drop(gather);
    kit.audit();
}

#[test]
fn a_dropped_gather_flushes() {
    let (kit, frame) = one_page();
    let mut gather = TlbGather::new(FlushReason::Unmap);
    clear_into(&kit, &mut gather);
    drop(gather);
    assert_eq!(kit.machine.flushed(FlushReason::Unmap), 1);
    assert!(kit.machine.mm.try_get_folio(frame).is_none());
    kit.audit();
}

#[test]
fn a_dropped_obligation_flushes_there_and_then() {
    let (kit, _) = one_page();
    let mut cursor = kit.space.space().cursor(at(0)).expect("there is a table");
    let Entry::Leaf(leaf) = cursor.entry() else { panic!("page 0 is mapped") };
    drop(cursor.clear_leaf());
    assert_eq!((kit.machine.flushed(FlushReason::Owed), kit.space.flush.pending()), (1, 0));
    cursor.install(Entry::Leaf(leaf));
    drop(cursor);
    kit.check(0, 4);
    kit.audit();
}

#[test]
fn a_gather_without_memory_to_take_notes_flushes_at_once() {
    let (kit, frame) = one_page();
    let mut gather = TlbGather::new(FlushReason::Unmap);
    kit.machine.mm.inject.arm(Site::Object as u32, 0, 0, 1);
    clear_into(&kit, &mut gather);
    kit.machine.mm.inject.disarm();
    assert_eq!(kit.machine.flushed(FlushReason::Unmap), 1);
    assert!(kit.machine.mm.try_get_folio(frame).is_none());
    drop(gather);
    kit.audit();
}

#[test]
fn what_others_owe_is_paid_before_a_soft_entry_changes() {
    let (kit, _) = one_page();
    let mut theirs = TlbGather::new(FlushReason::Migrate);
    clear_into(&kit, &mut theirs);
    let mine = TlbGather::new(FlushReason::Unmap);
    TlbGather::settle(Some(&theirs), kit.space.space());
    assert_eq!(kit.machine.flushed(FlushReason::Owed), 0, "one's own debt is known");
    TlbGather::settle(Some(&mine), kit.space.space());
    assert_eq!(kit.machine.flushed(FlushReason::Owed), 1);
    drop((mine, theirs));
    kit.audit();
}

#[test]
fn a_cleared_leaf_keeps_what_the_cpu_set() {
    let (kit, _) = one_page();
    let mut cursor = kit.space.space().cursor(at(0)).expect("there is a table");
    let leaf = cursor.clear_leaf().flush(FlushReason::Split);
    assert!(leaf.attrs.contains(Attrs::YOUNG | Attrs::DIRTY));
    cursor.install(Entry::Leaf(leaf));
    assert_eq!(cursor.level(), Level::Pte);
    drop(cursor);
    kit.audit();
}

#[test]
fn a_leaf_that_loses_permission_keeps_everything_else_and_owes_a_flush() {
    let (kit, frame) = one_page();
    let mut cursor = kit.space.space().cursor(at(0)).expect("there is a table");
    let Entry::Leaf(before) = cursor.entry() else { panic!("page 0 is mapped") };
    assert!(before.attrs.contains(Attrs::WRITE | Attrs::EXCLUSIVE | Attrs::YOUNG | Attrs::DIRTY));
    cursor.upgrade(Attrs::UFFD_WP);
    cursor.unmark(Attrs::SOFT_DIRTY);
    assert_eq!(kit.space.flush.pending(), 0, "no TLB knows of these");
    let owed = cursor.restrict(Attrs::WRITE | Attrs::EXCLUSIVE | Attrs::EXEC);
    assert_eq!(kit.space.flush.pending(), 1);
    let kept = before.attrs - Attrs::SOFT_DIRTY - Attrs::WRITE - Attrs::EXCLUSIVE;
    let attrs = kept | Attrs::UFFD_WP;
    assert_eq!(cursor.entry(), Entry::Leaf(Leaf { attrs, ..before }));
    drop(cursor);
    owed.flush(FlushReason::Protect);
    assert_eq!(kit.machine.flushed(FlushReason::Protect), 1);
    assert_eq!(before.frame, frame);
    kit.check_in_place(0, 4);
}

#[test]
fn a_folio_is_freed_by_its_last_reference_and_not_before() {
    for (place, order) in [(Place::RAM, 0), (Place::RAM, 9), (DEV, 0), (DEV, 4), (DEV, 9)] {
        let kit = Kit::new();
        let before = kit.free(place);
        let order = Order::new(order);
        let folio = kit.machine.mm.alloc_folio(place, order, Need::User).expect("memory");
        let (frame, last) = (folio.frame(), folio.frame().offset(order.pages() - 1));
        assert_eq!((folio.refs(), folio.map_count(), folio.is_locked()), (1, 0, false));
        let second = kit.machine.mm.try_get_folio(last).expect("found by any of its frames");
        assert_eq!(folio.refs(), 2);
        assert!(!folio.freeze(1), "two references are not one");
        drop(folio);
        assert_eq!(kit.free(place), before - order.pages());
        assert!(second.freeze(1));
        assert!(kit.machine.mm.try_get_folio(frame).is_none(), "frozen: no new reference");
        second.unfreeze(1);
        drop(second);
        assert_eq!(kit.free(place), before);
        assert!(kit.machine.mm.try_get_folio(frame).is_none());
        kit.audit();
    }
}

#[test]
fn a_frame_that_comes_back_at_another_order_remembers_nothing() {
    let kit = Kit::new();
    let mm = &kit.machine.mm;
    let big = mm.alloc_folio(DEV, Order::PMD, Need::User).expect("memory");
    let first = big.frame();
    big.set_dirty();
    big.set_driver_word(7);
    drop(big);
    let small: Vec<_> =
        (0..8 * 512).map(|_| mm.alloc_folio(DEV, Order::BASE, Need::User).expect("memory")).collect();
    let again = small.iter().find(|folio| folio.frame() == first).expect("all frames are taken");
    assert_eq!(
        (again.order(), again.is_dirty(), again.driver_word(), again.refs()),
        (Order::BASE, false, 0, 1)
    );
    let neighbour = mm.try_get_folio(first.offset(1)).expect("it is taken too");
    assert_eq!(neighbour.frame(), first.offset(1));
    drop((neighbour, small));
    assert!(mm.alloc_folio(DEV, Order::PMD, Need::User).is_ok(), "and all of it coalesces again");
    kit.audit();
}

#[test]
fn a_folio_lock_is_taken_once() {
    let kit = Kit::new();
    let folio = kit.machine.mm.alloc_folio(DEV, Order::BASE, Need::User).expect("memory");
    let other = folio.clone();
    let locked = LockedFolio::try_lock(folio).expect("nobody has it");
    let other = LockedFolio::try_lock(other).expect_err("it is locked");
    drop(locked.unlock());
    let locked = LockedFolio::try_lock(other).expect("it is free again");
    assert_eq!(locked.refs(), 1);
    drop(locked);
    kit.audit();
}

#[test]
fn slab_objects_are_found_by_their_keys_and_used_again() {
    let kit = Kit::new();
    let mm = &kit.machine.mm;
    let live = mm.folios.live();
    let objects: Vec<_> = (0..300).map(|_| mm.folios.alloc(mm).expect("memory")).collect();
    for object in &objects {
        assert!(core::ptr::eq(mm.folios.get(object.slab_index()), *object));
    }
    assert_eq!(mm.folios.live(), live + 300);
    let mut seen = 0;
    mm.folios.for_each(mm, &mut |_| seen += 1);
    assert!(seen >= 300);
    objects.iter().for_each(|object| mm.folios.free(object));
    let free = kit.free(Place::RAM);
    let again: Vec<_> = (0..300).map(|_| mm.folios.alloc(mm).expect("memory")).collect();
    assert_eq!(kit.free(Place::RAM), free, "no new frame for what was there");
    again.iter().for_each(|object| mm.folios.free(object));
    kit.audit();
}

#[test]
fn holes_in_ram_are_nobodys() {
    let config = Config { ram: vec![512 + 3..512 + 700, 512 + 1500..512 + 4000], ..Config::default() };
    let kit = Kit::on(&config);
    let mm = &kit.machine.mm;
    assert_eq!(mm.ram.stat().managed, 697 + 2500);
    let mut held = Vec::new();
    for order in [9, 5, 0] {
        while let Ok(folio) = mm.alloc_folio(Place::RAM, Order::new(order), Need::Reserve) {
            let first = folio.frame().index();
            let end = first + folio.order().pages();
            assert!(config.ram.iter().any(|range| range.start <= first && end <= range.end), "{first:#x}");
            held.push(folio);
        }
    }
    assert_eq!(kit.free(Place::RAM), 0);
    assert!(mm.try_get_folio(Frame::ram(512 + 1000)).is_none());
    assert!(mm.try_get_folio(Frame::ram(9_000_000)).is_none(), "far outside");
    drop(held);
    kit.audit();
    assert_eq!(Soft::cpu(), 0);
}
