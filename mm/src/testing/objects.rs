//! Objects and their mappings.

use crate::advise::Advice;
use crate::counters::Event;
use crate::entry::{Attrs, Entry};
use crate::error::{FaultError, RangeError};
use crate::inject::Site;
use crate::migrate::Cause;
use crate::object::{Object, ObjectRef};
use crate::remap::{RemapFlags, RemapTarget};
use crate::space::AddressSpace;
use crate::testing::clone::{fork, read, write};
use crate::testing::kinds::attrs_of;
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::Soft;
use crate::types::{Access, Place, Prot};
use crate::vma::HugeAdvice::{self, Default as Small, Huge};

fn shared(kit: &Kit, start: u64, len: u64, object: &ObjectRef<Soft>, pgoff: u64) {
    let space = kit.space.space();
    space.map_shared(range(start, len), Prot::RW, object, pgoff).expect("nothing is in the way");
}

fn private(kit: &Kit, start: u64, len: u64, object: &ObjectRef<Soft>, advice: HugeAdvice) {
    let space = kit.space.space();
    space.map_private(range(start, len), Prot::RW, object, 0, advice).expect("nothing is in the way");
}

/// The first word of page `index` of the object.
fn word(object: &Object<Soft>, index: u64) -> u64 {
    let mut word = [!0];
    object.read(index, 0, &mut word);
    word[0]
}

fn set_word(object: &Object<Soft>, index: u64, value: u64) {
    object.write(index, 0, &[value]).expect("memory");
}

#[test]
fn what_is_shared_is_mapped_once_more_by_its_address_alone() {
    let kit = Kit::new();
    let space = kit.space.space();
    let object = Object::anon_shared(8).expect("memory");
    shared(&kit, 0, 8, &object, 0);
    drop(object); // the mappings keep it
    write(&kit, &kit.space, 3, 30);
    space.protect(range(2, 4), Prot::READ).expect("memory");
    space.map_again(at(2), range(100, 10)).expect("room");
    assert_eq!(read(&kit, &kit.space, 101), 30);
    assert!(kit.try_write(101).is_err(), "with the rights of the first mapping");
    assert_eq!(space.map_again(at(50), range(200, 1)), Err(RangeError::NotMapped(at(50))));
    assert_eq!(space.map_again(at(0), range(109, 2)), Err(RangeError::Exists(range(109, 2))));
    kit.map(300, 1, Small);
    assert_eq!(space.map_again(at(300), range(200, 1)), Err(RangeError::Invalid(range(200, 1))));
    space.unmap(range(0, 8)).expect("memory");
    assert_eq!(read(&kit, &kit.space, 101), 30, "the second mapping keeps the object");
    kit.audit();
}

#[test]
fn shared_memory_is_seen_by_all_before_and_after_the_first_touch() {
    let kit = Kit::new();
    let object = Object::anon_shared(8).expect("memory");
    shared(&kit, 0, 8, &object, 0);
    shared(&kit, 100, 4, &object, 4);
    drop(object); // the mappings keep it
    write(&kit, &kit.space, 0, 10);
    let child = fork(&kit);
    assert_eq!(child.entry_at(at(0)).1, Entry::None, "left to faults");
    assert_eq!(read(&kit, &child, 0), 10);
    write(&kit, &child, 1, 11);
    write(&kit, &child, 0, 12);
    assert_eq!((read(&kit, &kit.space, 0), read(&kit, &kit.space, 1)), (12, 11));
    write(&kit, &kit.space, 5, 13);
    assert_eq!((read(&kit, &child, 101), read(&kit, &kit.space, 101)), (13, 13), "one page, two places");
    assert_eq!(kit.machine.counted(Event::CowCopy), 0);
    kit.audit();
    drop(child);
    kit.audit();
    kit.space.space().unmap(range(2, 3)).expect("memory");
    kit.audit();
    kit.space.space().unmap(range(0, 200)).expect("memory");
    assert_eq!((kit.machine.mm.objects.live(), kit.machine.mm.folios_in_use()), (0, 0), "nobody is left");
    kit.audit();
}

#[test]
fn a_file_is_written_through_shared_mappings_and_not_through_private_ones() {
    let kit = Kit::new();
    let file = Object::file(8).expect("memory");
    set_word(&file, 0, 100);
    set_word(&file, 1, 101);
    shared(&kit, 0, 8, &file, 0);
    private(&kit, 10, 8, &file, Small);
    assert_eq!(
        (read(&kit, &kit.space, 0), read(&kit, &kit.space, 10), read(&kit, &kit.space, 12)),
        (100, 100, 0)
    );
    write(&kit, &kit.space, 0, 200);
    assert_eq!((word(&file, 0), read(&kit, &kit.space, 10)), (200, 200), "not written yet: still the file's");
    write(&kit, &kit.space, 10, 300);
    write(&kit, &kit.space, 11, 301); // without a read before
    write(&kit, &kit.space, 13, 303); // the file has no such page yet
    assert_eq!((word(&file, 0), word(&file, 1), file.page(3).is_none()), (200, 101, true));
    write(&kit, &kit.space, 0, 400);
    assert_eq!((read(&kit, &kit.space, 10), read(&kit, &kit.space, 11)), (300, 301), "a copy is a copy");
    assert_eq!(kit.machine.counted(Event::CowCopy), 2);
    // A clone shares copies on write, and the file's pages as before.
    let child = fork(&kit);
    write(&kit, &child, 10, 500);
    write(&kit, &child, 12, 502);
    assert_eq!((read(&kit, &kit.space, 10), read(&kit, &kit.space, 12)), (300, 0));
    write(&kit, &kit.space, 2, 602);
    assert_eq!((read(&kit, &kit.space, 12), read(&kit, &child, 12)), (602, 502));
    kit.machine.mm.audit().expect("counts hold with a handle outside");
    drop(file);
    kit.audit();
    drop(child);
    kit.audit();
}

#[test]
fn entries_of_objects_are_nobodys_own_and_dirt_is_noted() {
    let kit = Kit::new();
    let file = Object::file(4).expect("memory");
    shared(&kit, 0, 4, &file, 0);
    private(&kit, 10, 4, &file, Small);
    read(&kit, &kit.space, 0);
    read(&kit, &kit.space, 10);
    let of = |page| attrs_of(kit.space.entry_at(at(page)).1);
    assert!(of(0).contains(Attrs::WRITE) && !of(0).contains(Attrs::EXCLUSIVE));
    assert!(!of(10).intersects(Attrs::WRITE | Attrs::EXCLUSIVE));
    // Read-only, then writable again: the next write is granted in place.
    kit.space.space().protect(range(0, 4), Prot::READ).expect("it is mapped");
    let refused = kit.machine.user_access(0, kit.space.space(), at(0), 0, Some(1));
    assert_eq!(refused, Err(FaultError::Access(at(0), Access::Write)));
    kit.space.space().protect(range(0, 4), Prot::RW).expect("it is mapped");
    let page = file.page(0).expect("it was read");
    assert!(!page.is_dirty());
    write(&kit, &kit.space, 0, 1);
    assert_eq!(kit.machine.counted(Event::WriteUpgrade), 1);
    kit.space.space().unmap(range(0, 4)).expect("memory");
    assert!(page.is_dirty(), "the unmap has told");
    assert_eq!(kit.machine.data(page.frame())[0].get(), 1);
}

#[test]
fn only_anonymous_memory_moves_to_a_device() {
    let kit = Kit::new();
    let file = Object::file(600).expect("memory");
    let memory = Object::anon_shared(8).expect("memory");
    shared(&kit, 0, 8, &memory, 0);
    private(&kit, 512, 600, &file, Huge);
    kit.map(1112, 4, Small);
    let space = kit.space.space();
    let report = space.migrate(range(0, 8), DEV).expect("it is mapped");
    assert_eq!((report.units, report.pages, report.holes), (0, 0, 0), "untouched: nothing is populated");
    assert_eq!(report.failed[Cause::NotAnon as usize], 8);
    assert!((0..8).all(|page| kit.space.entry_at(at(page)).1 == Entry::None));
    write(&kit, &kit.space, 3, 1);
    assert_eq!(space.migrate(range(0, 8), DEV).expect("it is mapped").units, 0);
    // Of a private mapping: what was written.
    for page in [512, 513, 700] {
        write(&kit, &kit.space, page, page);
    }
    read(&kit, &kit.space, 514);
    kit.fill(1112, 1);
    let report = space.migrate(range(512, 604), DEV).expect("it is mapped");
    assert_eq!((report.pages, report.holes), (3 + 4, 3), "three copies, and all of the anonymous mapping");
    assert_eq!(report.failed[Cause::NotAnon as usize], 1, "the page that was only read");
    let place = |page| match kit.space.entry_at(at(page)).1 {
        Entry::Leaf(leaf) => Some(leaf.frame.place()),
        Entry::NonPresent(soft) => Some(soft.frame.place()),
        _ => None,
    };
    assert_eq!([512, 513, 700].map(place), [Some(DEV); 3]);
    assert_eq!((place(514), place(515)), (Some(Place::RAM), None));
    kit.machine.mm.audit().expect("counts hold");
    // A clone of it, and back.
    let child = fork(&kit);
    write(&kit, &child, 512, 1);
    assert_eq!((read(&kit, &kit.space, 512), read(&kit, &kit.space, 700)), (512, 700));
    let report = space.migrate(range(0, 8), Place::RAM).expect("it is mapped");
    assert_eq!((report.units, report.failed_pages()), (0, 0));
    kit.machine.mm.audit().expect("counts hold");
}

#[test]
fn a_drivers_pages_are_mapped_at_once_uncounted_and_kept() {
    let kit = Kit::new();
    let pages = Object::driver(3).expect("memory");
    for i in 0..3 {
        set_word(&pages, i, 70 + i);
    }
    let first = pages.page(0).expect("it is there").frame();
    let space = kit.space.space();
    space.map_device_pages(range(0, 2), Prot::READ, &pages, 1).expect("nothing is in the way");
    space.map_device_pages(range(10, 3), Prot::RW, &pages, 0).expect("nothing is in the way");
    assert_eq!(kit.machine.mm.try_get_folio(first).map(|folio| folio.map_count()), Some(0));
    drop(pages); // the mappings keep them
    let faults = kit.machine.counted(Event::PgFault);
    assert_eq!((read(&kit, &kit.space, 0), read(&kit, &kit.space, 1)), (71, 72));
    write(&kit, &kit.space, 11, 5);
    assert_eq!(read(&kit, &kit.space, 0), 5);
    assert_eq!(kit.machine.counted(Event::PgFault), faults, "all of it is there");
    let child = fork(&kit);
    write(&kit, &child, 12, 6);
    assert_eq!(read(&kit, &kit.space, 1), 6, "shared with a clone, too");
    let report = space.migrate(range(10, 3), DEV).expect("it is mapped");
    assert_eq!((report.units, report.failed[Cause::NotAnon as usize]), (0, 3));
    kit.audit();
    space.protect(range(10, 3), Prot::READ).expect("it is mapped");
    space.protect(range(10, 3), Prot::RW).expect("it is mapped");
    write(&kit, &kit.space, 10, 8);
    assert_eq!(kit.machine.counted(Event::CowCopy), 0);
    drop(child);
    space.unmap(range(0, 1)).expect("memory");
    kit.audit();
    space.unmap(range(0, 20)).expect("memory");
    assert_eq!((kit.machine.mm.objects.live(), kit.machine.mm.folios_in_use()), (0, 0));
    kit.audit();
}

#[test]
fn a_mapping_fits_its_object() {
    let kit = Kit::new();
    let (file, driver) = (Object::file(8).expect("memory"), Object::driver(2).expect("memory"));
    let space = kit.space.space();
    let invalid = |r| matches!(r, Err(RangeError::Invalid(_)));
    let most = Object::<Soft>::MAX_PGOFF;
    assert!(invalid(space.map_shared(range(0, 8), Prot::RW, &file, most - 7)));
    assert!(invalid(space.map_shared(range(0, 8), Prot::RW, &file, u64::MAX)));
    assert!(invalid(space.map_device_pages(range(0, 3), Prot::RW, &driver, 0)));
    assert!(invalid(space.map_device_pages(range(0, 2), Prot::RW, &file, 0)));
    assert!(invalid(space.map_shared(range(0, 2), Prot::RW, &driver, 0)));
    shared(&kit, 0, 8, &file, 0);
    let exists = space.map_private(range(7, 1), Prot::RW, &file, 0, Small);
    assert_eq!(exists, Err(RangeError::Exists(range(7, 1))));
}

#[test]
fn mappings_of_an_object_that_touch_join_only_where_its_pages_go_on() {
    let kit = Kit::new();
    let file = Object::file(8).expect("memory");
    shared(&kit, 0, 2, &file, 0);
    shared(&kit, 2, 2, &file, 2);
    shared(&kit, 4, 2, &file, 0);
    let space = kit.space.space();
    for prot in [Prot::READ, Prot::RW] {
        space.protect(range(0, 6), prot).expect("it is mapped");
    }
    let mut vmas = Vec::new();
    kit.space.for_each_vma(|vma| vmas.push(vma.range()));
    assert_eq!(vmas, [range(0, 4), range(4, 2)]);
    write(&kit, &kit.space, 1, 9);
    assert_eq!((read(&kit, &kit.space, 5), word(&file, 1)), (9, 9));
    drop(file);
    kit.audit();
}

#[test]
fn operations_on_ranges_know_all_kinds_of_mappings() {
    let kit = Kit::new();
    let (file, driver) = (Object::file(8).expect("memory"), Object::driver(4).expect("memory"));
    (0..8).for_each(|i| set_word(&file, i, 100 + i));
    (0..4).for_each(|i| set_word(&driver, i, 70 + i));
    let space = kit.space.space();
    shared(&kit, 0, 8, &file, 0);
    private(&kit, 10, 8, &file, Small);
    space.map_device_pages(range(20, 4), Prot::RW, &driver, 0).expect("nothing is in the way");
    write(&kit, &kit.space, 1, 1);
    write(&kit, &kit.space, 11, 11);
    read(&kit, &kit.space, 12);
    // Hidden and seen again.
    for start in [0, 10] {
        space.protect(range(start, 8), Prot::empty()).expect("it is mapped");
        kit.machine.mm.audit().expect("objects' handles are not folios'");
        space.protect(range(start, 8), Prot::RW).expect("it is mapped");
    }
    assert_eq!(
        (read(&kit, &kit.space, 1), read(&kit, &kit.space, 11), read(&kit, &kit.space, 12)),
        (1, 11, 102)
    );
    write(&kit, &kit.space, 12, 12);
    assert_eq!(word(&file, 2), 102, "a page of the file is not written through a private mapping");
    // Tracked, but for a driver's pages.
    write(&kit, &kit.space, 21, 5);
    for start in [0, 10] {
        space.clear_soft_dirty(range(start, 4)).expect("it is mapped");
        let is_dirty = |page| attrs_of(kit.space.entry_at(at(page)).1).contains(Attrs::SOFT_DIRTY);
        assert!(!is_dirty(start + 1));
        write(&kit, &kit.space, start + 1, 5);
        assert!(is_dirty(start + 1), "page {}", start + 1);
    }
    assert_eq!((word(&file, 1), word(&driver, 1)), (5, 5));
    // Dropped: a private copy is gone, the file's page is found again.
    space.advise(range(0, 8), Advice::DontNeed).expect("it is mapped");
    space.advise(range(10, 8), Advice::DontNeed).expect("it is mapped");
    assert_eq!(
        (read(&kit, &kit.space, 1), read(&kit, &kit.space, 11), read(&kit, &kit.space, 12)),
        (5, 5, 102)
    );
    // Moved, to another offset in the table and back.
    write(&kit, &kit.space, 13, 13);
    for (from, to) in [(0, 600), (10, 700), (20, 800)] {
        let len = if from == 20 { 4 } else { 8 };
        let target = RemapTarget { addr: at(to), len: range(0, len).len() };
        space.remap(range(from, len), target, RemapFlags::empty()).expect("memory");
        kit.machine.mm.audit().expect("objects' handles are not folios'");
    }
    assert_eq!(
        (read(&kit, &kit.space, 601), read(&kit, &kit.space, 703), read(&kit, &kit.space, 802)),
        (5, 13, 72)
    );
    let child = fork(&kit);
    write(&kit, &child, 703, 14);
    assert_eq!((read(&kit, &kit.space, 703), word(&file, 3)), (13, 103));
    // A mapping that grows beyond its object has nothing there.
    let target = RemapTarget { addr: at(600), len: range(0, 9).len() };
    space.remap(range(600, 8), target, RemapFlags::empty()).expect("there is room");
    let beyond = kit.machine.user_access(0, space, at(608), 0, None);
    assert_eq!(beyond, Err(FaultError::NoPage(at(608))));
    drop((file, driver, child));
    kit.audit();
}

/// Fails the n-th allocation of `act` on a fresh machine, for every n; afterwards `act` works.
fn fail_each(setup: impl Fn(&Kit) -> ObjectRef<Soft>, act: impl Fn(&Kit, &ObjectRef<Soft>) -> bool) {
    for n in 0.. {
        let kit = Kit::new();
        let object = setup(&kit);
        kit.machine.mm.inject.arm(Site::ALL, 0, n, u64::MAX);
        let done = act(&kit, &object);
        let asked = kit.machine.mm.inject.disarm();
        assert_eq!(done, asked <= n, "out of memory is an error, and nothing else is");
        kit.audit();
        assert!(act(&kit, &object), "once there is memory");
        drop(object);
        kit.audit();
        if asked <= n {
            return;
        }
    }
}

#[test]
fn no_memory_for_objects_their_mappings_or_their_pages_changes_nothing() {
    let file = |_: &Kit| {
        let file = Object::<Soft>::file(1000).expect("memory");
        drop(file.page_or_alloc(7));
        file
    };
    let touch =
        |kit: &Kit, page, value| kit.machine.user_access(0, kit.space.space(), at(page), 0, value).is_ok();
    let is_free = |kit: &Kit| kit.space.vma_at(at(0)).is_none();
    fail_each(file, |_, _| Object::<Soft>::driver(3).is_ok());
    fail_each(file, |kit, file| {
        !is_free(kit) || kit.space.space().map_shared(range(0, 8), Prot::RW, file, 0).is_ok()
    });
    fail_each(file, |kit, file| {
        !is_free(kit) || kit.space.space().map_private(range(0, 8), Prot::RW, file, 0, Small).is_ok()
    });
    let driver = |_: &Kit| Object::<Soft>::driver(600).expect("memory");
    fail_each(driver, |kit, driver| {
        !is_free(kit) || kit.space.space().map_device_pages(range(0, 600), Prot::READ, driver, 0).is_ok()
    });
    let in_shared = |kit: &Kit| {
        let object = file(kit);
        shared(kit, 0, 1000, &object, 0);
        object
    };
    fail_each(in_shared, |kit, _| touch(kit, 7, None) && touch(kit, 8, Some(1)) && touch(kit, 900, None));
    let in_private = |kit: &Kit| {
        let object = file(kit);
        private(kit, 0, 1000, &object, Huge);
        object
    };
    fail_each(in_private, |kit, _| {
        touch(kit, 7, None) && touch(kit, 7, Some(1)) && touch(kit, 8, Some(1)) && touch(kit, 900, None)
    });
}

#[test]
fn what_ends_first_does_not_matter() {
    for order in 0..6 {
        let kit = Kit::new();
        let object = Object::<Soft>::anon_shared(4).expect("memory");
        shared(&kit, 0, 4, &object, 0);
        write(&kit, &kit.space, 2, 9);
        let child: AddressSpace<Soft> = fork(&kit);
        read(&kit, &child, 2);
        let (mut object, mut child) = (Some(object), Some(child));
        for step in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][order] {
            match step {
                0 => object = None,
                1 => child = None,
                _ => kit.space.space().unmap(range(0, 4)).expect("memory"),
            }
            kit.audit();
        }
        assert!(object.is_none() && child.is_none());
        assert_eq!((kit.machine.mm.objects.live(), kit.machine.mm.folios_in_use()), (0, 0));
    }
}
