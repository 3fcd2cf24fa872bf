//! Objects in the address spaces of two, on real page tables.

use farpage_mm::{Attrs, Cause, Entry, Event, HugeAdvice, Object, PAGE_SIZE, Prot, VaRange, Vaddr};

use super::clones::on;
use super::support::{BASE, DEV0, Kinds, Space, check_zero, counting, kinds, pages, resident};
use crate::vm::user::{user_read_u64, user_write_u64};
use crate::vm::{clone_space, mm, new_space};

const PAGES: u64 = 16;

fn range() -> VaRange {
    VaRange::new(BASE, PAGES * PAGE_SIZE)
}

const fn at(page: u64) -> u64 {
    BASE + page * PAGE_SIZE
}

crate::ktest! {
    fn shared_memory_is_one_for_all() {
        let parent = new_space()?;
        let object = Object::anon_shared(PAGES)?;
        parent.space().map_shared(range(), Prot::RW, &object, 0)?;
        drop(object);
        on(&parent, || Ok(user_write_u64(at(0), 1)?))?;
        let child = clone_space(&parent)?;
        on(&child, || {
            crate::check_eq!(user_read_u64(at(0))?, 1);
            user_write_u64(at(0), 2)?;
            user_write_u64(at(9) + 8, 3)?;
            Ok(())
        })?;
        on(&parent, || {
            crate::check_eq!((user_read_u64(at(0))?, user_read_u64(at(9) + 8)?), (2, 3));
            check_zero(pages(range(), 1, 8))
        })?;
        let report = parent.space().migrate(range(), DEV0)?;
        crate::check_eq!((report.units, report.failed[Cause::NotAnon as usize]), (0, PAGES));
        crate::check_eq!(resident(0), 0);
        drop(parent);
        on(&child, || { crate::check_eq!(user_read_u64(at(9) + 8)?, 3); Ok(()) })?;
        let folios = mm().folios_in_use();
        drop(child);
        crate::check_eq!(folios - mm().folios_in_use(), 10, "its pages go with the last who maps it");
    }
}

crate::ktest! {
    fn a_file_is_written_through_shared_mappings_alone() {
        let space = new_space()?;
        let file = Object::file(PAGES)?;
        for page in 0..PAGES {
            file.write(page, 0, &[100 + page])?;
        }
        let private = VaRange::new(BASE + (1 << 30), PAGES * PAGE_SIZE);
        let copy = |page: u64| private.start.0 + page * PAGE_SIZE;
        space.space().map_shared(range(), Prot::RW, &file, 0)?;
        space.space().map_private(private, Prot::RW, &file, 0, HugeAdvice::Default)?;
        let word = |page| {
            let mut word = [0];
            file.read(page, 0, &mut word);
            word[0]
        };
        on(&space, || {
            crate::check_eq!((user_read_u64(at(3))?, user_read_u64(copy(3))?), (103, 103));
            user_write_u64(at(3), 203)?;
            crate::check_eq!((word(3), user_read_u64(copy(3))?), (203, 203), "one page");
            user_write_u64(copy(3), 303)?;
            user_write_u64(copy(4), 304)?;
            crate::check_eq!((word(3), word(4), user_read_u64(at(3))?), (203, 104, 203));
            user_write_u64(at(3), 403)?;
            crate::check_eq!(user_read_u64(copy(3))?, 303);
            Ok(())
        })?;
        // The copies are anonymous memory and go to a device; the file's pages stay.
        let report = space.space().migrate(private, DEV0)?;
        crate::check_eq!((report.pages, resident(0)), (2, 2));
        let expected = Kinds { device: 2, none: 14, ..Kinds::default() };
        crate::check_eq!(kinds(&space, private), expected);
        let child = clone_space(&space)?;
        on(&child, || Ok(user_write_u64(copy(4), 504)?))?;
        on(&space, || { crate::check_eq!((user_read_u64(copy(3))?, user_read_u64(copy(4))?), (303, 304)); Ok(()) })?;
        on(&child, || { crate::check_eq!((user_read_u64(copy(3))?, user_read_u64(copy(4))?), (303, 504)); Ok(()) })?;
        crate::check_eq!((word(3), word(4)), (403, 104));
    }
}

crate::ktest! {
    fn a_drivers_pages_need_no_fault_and_go_with_their_last_mapping() {
        let space: Space = new_space()?;
        let driver = Object::driver(4)?;
        driver.write(1, 3, &[42])?;
        let small = VaRange::new(BASE, 4 * PAGE_SIZE);
        space.space().map_device_pages(small, Prot::RW, &driver, 0)?;
        drop(driver);
        let (read, faults) = counting(Event::PgFault, || {
            on(&space, || {
                user_write_u64(at(2), 7)?;
                Ok(user_read_u64(at(1) + 24)?)
            })
        });
        crate::check_eq!((read?, faults), (42, 0));
        let special = |entry| matches!(entry, Entry::Leaf(leaf) if leaf.special && leaf.attrs.contains(Attrs::WRITE));
        crate::check!(special(space.entry_at(Vaddr(at(0))).1));
        let child = clone_space(&space)?;
        let folios = mm().folios_in_use();
        space.space().unmap(small)?;
        on(&child, || { crate::check_eq!(user_read_u64(at(2))?, 7); Ok(()) })?;
        crate::check_eq!(mm().folios_in_use(), folios);
        child.space().unmap(small)?;
        crate::check_eq!(folios - mm().folios_in_use(), 4);
    }
}
