//! Clones: isolation, what entries keep, what is flushed, what is copied at once, and what is left after a failure.

mod memory;
mod owners;

use crate::counters::Event;
use crate::entry::{Attrs, Entry, SoftLeaf};
use crate::machine::FlushReason;
use crate::space::{AddressSpace, Space};
use crate::testing::kinds::{Kind, Setup, all, attrs_of};
use crate::testing::kit::{BASE, DEV, Kit, at, range};
use crate::testing::machine::Soft;
use crate::types::{Frame, Level, PAGE_SHIFT, PAGE_SIZE, Place, Prot, Vaddr};
use crate::vma::HugeAdvice::{Default as Small, Huge, NoHuge};

const SOLE: Attrs = Attrs::WRITE.union(Attrs::EXCLUSIVE);

pub(super) fn fork(kit: &Kit) -> AddressSpace<Soft> {
    let child = kit.space.clone_of(|_| {}).expect("memory for a clone");
    loaded(kit, &child);
    child
}

fn loaded(kit: &Kit, space: &AddressSpace<Soft>) {
    (0..kit.machine.config.cpus).for_each(|cpu| space.loaded_on(cpu));
}

pub(super) fn write(kit: &Kit, space: &AddressSpace<Soft>, page: u64, value: u64) {
    kit.machine.user_access(0, space.space(), at(page), 0, Some(value)).expect("it is writable");
}

pub(super) fn read(kit: &Kit, space: &AddressSpace<Soft>, page: u64) -> u64 {
    kit.machine.user_access(0, space.space(), at(page), 0, None).expect("it is readable")
}

/// Expects the filled values in `space`, wherever the pages lie.
fn check_in(kit: &Kit, space: &AddressSpace<Soft>, start: u64, len: u64) {
    let mut found = 0;
    space.for_each_entry(
        &mut |addr, level, word| {
            let Some(frame) = frame_of(Entry::decode(word, level)) else { return };
            for i in 0..level.order().pages() {
                let page = ((addr.0 - BASE) >> PAGE_SHIFT) + u64::from(i);
                if (start..start + len).contains(&page) {
                    assert_eq!(kit.machine.data(frame.offset(i))[0].get(), Kit::value(page), "page {page}");
                    found += 1;
                }
            }
        },
        &mut |_, _, _| {},
    );
    assert_eq!(found, len, "all pages are somewhere");
}

fn frame_of(entry: Entry) -> Option<Frame> {
    match entry {
        Entry::Leaf(leaf) if !leaf.special => Some(leaf.frame),
        Entry::NonPresent(soft) => Some(soft.frame),
        _ => None,
    }
}

fn frame(space: &Space<Soft>, page: u64) -> Frame {
    frame_of(space.entry_at(at(page)).1).expect("a page is mapped")
}

#[test]
fn neither_side_sees_what_the_other_writes_whatever_the_entries_were() {
    for (kind, level) in all() {
        let mut setup = Setup::new(kind, level);
        let child = fork(&setup.kit);
        setup.finish();
        for space in [setup.kit.space.space(), child.space()] {
            space.protect(range(0, 512), Prot::RW).expect("all of it is mapped");
        }
        setup.kit.audit();
        let kit = &setup.kit;
        let before = |page| if kind.has_data() { Kit::value(page) } else { 0 };
        write(kit, &child, 3, 1003);
        write(kit, &kit.space, 4, 2004);
        assert_eq!(read(kit, &kit.space, 3), before(3), "{kind:?} {level:?}: the child's write");
        assert_eq!(read(kit, &child, 4), before(4), "{kind:?} {level:?}: the parent's write");
        assert_eq!((read(kit, &child, 3), read(kit, &kit.space, 4)), (1003, 2004));
        for page in 5..512 {
            assert_eq!((read(kit, &child, page), read(kit, &kit.space, page)), (before(page), before(page)));
        }
        kit.audit();
        for page in 5..512 {
            write(kit, &child, page, page);
        }
        drop(child);
        kit.audit();
        for page in 5..512 {
            assert_eq!(
                read(kit, &kit.space, page),
                before(page),
                "{kind:?} {level:?}: after the child's end"
            );
        }
        kit.audit();
    }
}

/// Sets marks on every entry of the space, whatever its kind.
fn mark(space: &'static Space<Soft>, set: Attrs, clear: Attrs) {
    space.for_each_mapped(range(0, 512), |cursor| match cursor.entry() {
        Entry::Leaf(_) => {
            cursor.unmark(clear & (Attrs::SOFT_DIRTY | Attrs::YOUNG));
            cursor.upgrade(set);
        }
        Entry::NonPresent(soft) => {
            let attrs = (soft.attrs - clear) | set;
            cursor.replace_soft(Entry::NonPresent(SoftLeaf { attrs, ..soft }));
        }
        Entry::None | Entry::Table(_) => {}
    });
}

#[test]
fn marks_survive_in_both_and_sole_ownership_in_neither() {
    let marks = [
        (Attrs::UFFD_WP, Attrs::SOFT_DIRTY | Attrs::YOUNG),
        (Attrs::SOFT_DIRTY | Attrs::YOUNG | Attrs::DIRTY, Attrs::empty()),
    ];
    for (kind, level) in all().filter(|(kind, _)| kind.has_data()) {
        for (set, clear) in marks {
            let mut setup = Setup::new(kind, level);
            mark(setup.kit.space.space(), set, clear);
            let before = setup.attrs(7);
            assert!(before.contains(set) && !before.intersects(clear));
            let child = fork(&setup.kit);
            let (child_level, entry) = child.entry_at(at(7));
            assert_eq!(setup.attrs(7), before - SOLE, "{kind:?} {level:?}: the parent's");
            assert_eq!(attrs_of(entry), before - SOLE, "{kind:?} {level:?}: the child's");
            assert_eq!(setup.entry(7).0, level, "nothing is split");
            let moving = matches!(kind, Kind::Migration | Kind::Returning);
            assert_eq!(child_level, if moving { Level::Pte } else { level }, "{kind:?} {level:?}");
            setup.finish();
            let after = attrs_of(child.entry_at(at(7)).1);
            assert_eq!(
                after - Attrs::NO_ACCESS,
                before - SOLE - Attrs::NO_ACCESS,
                "{kind:?} {level:?}: moved"
            );
            setup.kit.audit();
        }
    }
}

#[test]
fn a_clone_is_one_flush_round_and_none_when_nothing_could_be_written() {
    for (kind, level) in all() {
        let mut setup = Setup::new(kind, level);
        let before = setup.flushes();
        let child = fork(&setup.kit);
        let rounds = match kind {
            Kind::Present | Kind::Exclusive => 1,
            Kind::Migration => 1, // the migration's own, which is owed
            _ => 0,
        };
        assert_eq!(setup.flushes() - before, rounds, "{kind:?} {level:?}");
        let again = fork(&setup.kit);
        let more = setup.flushes() - before - rounds;
        assert_eq!(more, 0, "{kind:?} {level:?}: there is nothing left to take");
        setup.finish();
        drop((child, again));
        setup.kit.audit();
    }
    // Many mappings, one round.
    let kit = Kit::new();
    for i in 0..4 {
        kit.map(i * 1024, 20, Small);
        kit.fill(i * 1024, 20);
    }
    let before = kit.machine.counted(Event::TlbFlush);
    let _child = fork(&kit);
    assert_eq!(kit.machine.counted(Event::TlbFlush) - before, 1);
    assert_eq!(kit.machine.flushed(FlushReason::Protect), 1);
}

#[test]
fn a_missing_flush_at_the_clone_lets_the_parent_write_what_the_child_sees() {
    let run = |skip| {
        let kit = Kit::new();
        kit.map(0, 1, Small);
        kit.fill(0, 1);
        kit.machine.skip.set(skip);
        let child = fork(&kit);
        kit.machine.skip.set(None);
        write(&kit, &kit.space, 0, 77); // the TLB may still allow it
        read(&kit, &child, 0)
    };
    assert_eq!(run(None), Kit::value(0));
    assert_eq!(run(Some(FlushReason::Protect)), 77, "this is what the flush is for");
}

#[test]
fn huge_entries_are_shared_whole_and_counted() {
    for kind in [Kind::Present, Kind::Device, Kind::ProtNone] {
        let setup = Setup::new(kind, Level::Pmd);
        let (first, second) = (fork(&setup.kit), fork(&setup.kit));
        let folio = setup.kit.machine.mm.try_get_folio(frame(&setup.kit.space, 0)).expect("it is mapped");
        assert_eq!((folio.map_count(), folio.refs()), (3, 4), "{kind:?}");
        assert_eq!(frame(&first, 100), frame(&second, 100));
        drop(folio);
        drop(first);
        setup.kit.audit();
        drop(second);
        setup.kit.audit();
    }
}

#[test]
fn shared_pages_move_together_and_stay_shared() {
    for level in [Level::Pte, Level::Pmd] {
        let setup = Setup::new(Kind::Present, level);
        let kit = &setup.kit;
        let (one, two) = (fork(kit), fork(kit));
        let report = one.space().migrate(range(0, 512), DEV).expect("all of it is mapped");
        assert_eq!((report.pages, report.failed_pages()), (512, 0));
        for space in [&kit.space, &one, &two] {
            assert_eq!(frame(space, 100).place(), DEV);
            check_in(kit, space, 0, 512);
        }
        kit.audit();
        write(kit, &two, 100, 1);
        assert_eq!((read(kit, &one, 100), read(kit, &kit.space, 100)), (Kit::value(100), Kit::value(100)));
        kit.audit();
    }
}

#[test]
fn a_mapping_of_two_areas_under_one_huge_entry_is_cloned_once() {
    for kind in [Kind::Present, Kind::Device, Kind::Migration] {
        let mut setup = Setup::new(kind, Level::Pmd);
        setup.kit.space.space().advise_huge(range(100, 200), NoHuge).expect("all of it is mapped");
        let child = fork(&setup.kit);
        assert_eq!(setup.entry(0).0, Level::Pmd);
        setup.finish();
        setup.kit.audit();
        check_in(&setup.kit, &child, 0, 512);
        child.space().unmap(range(150, 100)).expect("memory");
        check_in(&setup.kit, &setup.kit.space, 0, 512);
        drop(child);
        setup.kit.audit();
    }
}

#[test]
fn a_parked_migration_that_is_given_up_puts_back_the_clone_too() {
    for (kind, level) in all().filter(|(kind, _)| matches!(kind, Kind::Migration | Kind::Returning)) {
        let mut setup = Setup::new(kind, level);
        let child = fork(&setup.kit);
        let grandchild = setup.kit.space.clone_of(|_| {}).expect("memory");
        setup.give_up();
        setup.kit.audit();
        for space in [&setup.kit.space, &child, &grandchild] {
            check_in(&setup.kit, space, 0, 512);
        }
        drop(setup);
    }
}

#[test]
fn clones_of_clones_are_found_by_the_reverse_map() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.map(512, 8, Small);
    kit.fill(0, 520);
    let child = fork(&kit);
    let grandchild = child.clone_of(|_| {}).expect("memory");
    loaded(&kit, &grandchild);
    drop(child);
    write(&kit, &kit.space, 515, 1);
    let report = grandchild.space().migrate(range(0, 520), DEV).expect("all of it is mapped");
    assert_eq!((report.pages, report.failed_pages()), (520, 0));
    assert_eq!(frame(&kit.space, 3).place(), DEV, "found from the grandchild");
    assert_eq!(frame(&kit.space, 515).place(), Place::RAM, "a copy is no relative");
    check_in(&kit, &grandchild, 0, 520);
    kit.audit();
}

#[test]
fn the_clone_of_an_empty_space_maps_nothing() {
    let kit = Kit::new();
    let child = fork(&kit);
    let mut vmas = 0;
    child.for_each_vma(|_| vmas += 1);
    assert_eq!(vmas, 0);
    kit.map(0, 4, Small);
    let child = fork(&kit);
    assert!(kit.machine.user_access(0, child.space(), Vaddr(BASE + PAGE_SIZE), 0, Some(3)).is_ok());
    assert_eq!(child.entry_at(at(0)).1, Entry::None);
    drop(child);
    kit.audit();
}
