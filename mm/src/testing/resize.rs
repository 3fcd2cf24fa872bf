//! Objects that become shorter and longer, and mappings that reach beyond their ends.

use crate::advise::Advice;
use crate::entry::Entry;
use crate::error::FaultError;
use crate::object::{Object, ObjectRef};
use crate::remap::{RemapFlags, RemapTarget};
use crate::space::AddressSpace;
use crate::testing::clone::{fork, read, write};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::Soft;
use crate::types::Prot;
use crate::vma::HugeAdvice::Default as Small;

/// A file of `pages` pages that is mapped at page 0, shared, and at page 1000, privately, `len` pages each.
fn mapped(kit: &Kit, pages: u64, len: u64) -> ObjectRef<Soft> {
    let file = Object::file(pages).expect("memory");
    let space = kit.space.space();
    space.map_shared(range(0, len), Prot::RW, &file, 0).expect("nothing is in the way");
    space.map_private(range(1000, len), Prot::RW, &file, 0, Small).expect("nothing is in the way");
    file
}

fn touch(kit: &Kit, space: &AddressSpace<Soft>, page: u64, value: Option<u64>) -> Result<u64, FaultError> {
    kit.machine.user_access(0, space.space(), at(page), 0, value)
}

fn no_page(page: u64) -> Result<u64, FaultError> {
    Err(FaultError::NoPage(at(page)))
}

#[test]
fn beyond_the_end_there_is_no_page_until_the_object_has_grown() {
    let kit = Kit::new();
    let file = mapped(&kit, 3, 8);
    for (page, value) in [(3, None), (3, Some(1)), (1003, None), (1007, Some(1))] {
        assert_eq!(touch(&kit, &kit.space, page, value), no_page(page));
    }
    write(&kit, &kit.space, 2, 12);
    file.resize(5).expect("it fits");
    assert_eq!((read(&kit, &kit.space, 2), read(&kit, &kit.space, 3)), (12, 0), "what is new is zero");
    write(&kit, &kit.space, 1004, 14);
    assert_eq!(touch(&kit, &kit.space, 5, None), no_page(5));
    let too_long = file.resize(Object::<Soft>::MAX_PAGES + 1);
    assert!(too_long.is_err() && file.pages() == 5);
    // A mapping may begin beyond the end, and grow where it is.
    let space = kit.space.space();
    space.map_shared(range(2000, 2), Prot::RW, &file, 1 << 40).expect("nothing is in the way");
    assert_eq!(touch(&kit, &kit.space, 2000, None), no_page(2000));
    let more = RemapTarget { addr: at(2000), len: range(0, 4).len() };
    space.remap(range(2000, 2), more, RemapFlags::empty()).expect("there is room");
    assert_eq!(touch(&kit, &kit.space, 2003, None), no_page(2003));
    drop(file);
    kit.audit();
}

#[test]
fn what_is_cut_off_is_unmapped_everywhere_and_copies_too() {
    let kit = Kit::new();
    let file = mapped(&kit, 600, 600);
    // Another part of the file, so that the cut is elsewhere in each mapping.
    let space = kit.space.space();
    space.map_shared(range(2000, 100), Prot::RW, &file, 480).expect("nothing is in the way");
    for page in [0, 499, 500, 501, 599] {
        write(&kit, &kit.space, page, page + 1);
        write(&kit, &kit.space, 1000 + page, page + 2);
    }
    assert_eq!(read(&kit, &kit.space, 2021), 502);
    let child = fork(&kit);
    assert_eq!((read(&kit, &child, 501), read(&kit, &child, 1501)), (502, 503));
    write(&kit, &child, 1599, 7);
    file.resize(501).expect("it is shorter");
    assert!((501..600).all(|index| file.page(index).is_none()) && file.page(500).is_some());
    for space in [&kit.space, &child] {
        for page in [501, 599, 1501, 1599, 2021] {
            assert_eq!(space.entry_at(at(page)).1, Entry::None, "page {page}");
            assert_eq!(touch(&kit, space, page, Some(1)), no_page(page));
        }
        assert_eq!(
            (read(&kit, space, 500), read(&kit, space, 1500), read(&kit, space, 2020)),
            (501, 502, 501)
        );
    }
    kit.machine.mm.audit().expect("counts hold with a handle outside");
    // What comes back is not what was there.
    file.resize(600).expect("it fits");
    assert_eq!((read(&kit, &kit.space, 599), read(&kit, &child, 1599), read(&kit, &child, 2021)), (0, 0, 0));
    file.resize(0).expect("it is shorter");
    assert_eq!(touch(&kit, &child, 0, None), no_page(0));
    assert_eq!((kit.machine.mm.index_leaves.live(), kit.machine.mm.index_middles.live()), (0, 0));
    drop((file, child));
    kit.audit();
}

#[test]
fn copies_of_what_is_cut_off_go_from_devices_too() {
    let kit = Kit::new();
    let file = mapped(&kit, 8, 8);
    for page in 1000..1008 {
        write(&kit, &kit.space, page, page);
    }
    let report = kit.space.space().migrate(range(1000, 8), DEV).expect("it is mapped");
    assert_eq!(report.pages, 8);
    file.resize(3).expect("it is shorter");
    assert_eq!(kit.machine.mm.folios_on_devices().pages(), 3);
    assert_eq!(touch(&kit, &kit.space, 1003, None), no_page(1003));
    assert_eq!(read(&kit, &kit.space, 1002), 1002);
    // A hole in a mapping stays one.
    kit.space.space().advise(range(1000, 8), Advice::DontNeed).expect("it is mapped");
    assert_eq!(touch(&kit, &kit.space, 1003, None), no_page(1003));
    drop(file);
    kit.audit();
}

#[test]
fn an_index_is_cut_at_every_border_of_its_nodes() {
    let kit = Kit::new();
    let indices = [0, 1, 499, 500, 124_999, 125_000, 250_000];
    for cut in [0, 1, 2, 499, 500, 501, 1000, 124_999, 125_000, 125_001, 250_000, 250_001] {
        let file = Object::<Soft>::file(300_000).expect("memory");
        for index in indices {
            file.page_or_alloc(index).expect("memory");
        }
        file.resize(cut).expect("it is shorter");
        let mut left = Vec::new();
        file.for_each_page(&mut |index, _| left.push(index));
        assert_eq!(left, indices.into_iter().filter(|&index| index < cut).collect::<Vec<_>>(), "{cut}");
        let leaves = left.iter().map(|index| index / 500).collect::<std::collections::BTreeSet<_>>();
        let middles = left.iter().map(|index| index / 125_000).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(file.nodes(), (middles.len() as u32, leaves.len() as u32), "{cut}: no empty nodes");
        kit.machine.mm.audit().expect("all is counted");
    }
}
