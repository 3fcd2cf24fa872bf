//! What the field's own tests leave out, on devices with private memory.

use alloc::sync::Arc;

use farpage_mm::dmirror::{DmirrorError, Done, Snap};
use farpage_mm::{
    Advice, Event, HmmPfn, HmmWant, HugeAdvice, Level, MergeCause, Order, PMD_SIZE, PUD_SIZE, PagemapEntry,
    Place, Prot, RangeFault, RemapFlags, RemapTarget, VaRange, Vaddr,
};

use super::kit::{
    Fixture, PAGES, PRIVATE, all_are, as_process, check, check_from, check_zero, device_finds, device_writes,
    fill, fill_from, map, part, run, snapshot, to_device, try_to_device,
};
use crate::mm_tests::support::{Held, Space, counting, frame_at, kinds};
use crate::task::spawn;
use crate::testing::Unmet;
use crate::vm::user::{user_read_u64, user_write_u64};
use crate::vm::{clone_space, mm};

/// Declares tests of this file: each with an empty space on the private devices.
macro_rules! uncovered {
    ($($name:ident: $body:expr;)*) => {$(
        crate::ktest! {
            needs(devices = 4, coherent = 2)
            fn $name() { run(PRIVATE, $body)?; }
        }
    )*};
}

uncovered! {
    the_device_uses_its_pages_after_their_protection_changed: after_protect;
    the_device_uses_its_pages_after_a_clone: after_clone;
    contents_given_up_while_they_are_collected_are_gone: dontneed_meets_collect;
    one_of_two_processes_splits_what_both_have_on_the_device: one_side_splits;
    half_of_a_huge_page_on_the_device_is_protected: half_protected;
    a_shared_huge_page_on_the_device_is_moved: shared_remap;
    all_of_a_large_hole_goes_to_the_device_as_huge_pages: large_hole;
    a_huge_page_of_another_device_is_nothing_to_this_one: foreign_huge;
    a_snapshot_from_the_middle_of_a_huge_page_has_the_right_frames: middle_of_huge;
    without_huge_pages_in_ram_eviction_takes_small_ones: evict_to_small;
    soft_dirty_and_write_protection_go_to_the_device_and_back: bits_over_the_life;
    a_collapse_leaves_what_is_on_the_device_there: collapse_leaves;
    a_full_device_says_that_something_stayed: device_full;
}

fn on_device(
    on: Fixture,
    space: &Space,
    pages: u64,
) -> Result<(VaRange, farpage_mm::Dmirror<crate::vm::Machine>), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, pages, HugeAdvice::Huge)?;
    fill(range)?;
    to_device(&device, range)?;
    Ok((range, device))
}

fn after_protect(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let (range, device) = on_device(on, space, 512)?;
    space.space().protect(range, Prot::READ)?;
    let once = Done { cpages: 512, faults: 1 };
    crate::check_eq!(device_finds(range.start.0, range, 0, |to| device.read(range.start, to))?, once);
    crate::check_eq!(device_writes(&device, range, 1)?, Err(DmirrorError::Perm));
    space.space().protect(range, Prot::RW)?;
    crate::check_eq!(device_writes(&device, range, 1)?, Ok(once));
    check_from(range.start.0, range, 1)
}

fn after_clone(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let (range, device) = on_device(on, space, 512)?;
    let child = clone_space(space)?;
    let done = device_finds(range.start.0, range, 0, |to| device.read(range.start, to))?;
    crate::check_eq!((done.cpages, on.resident(0)), (512, 512));
    crate::check_eq!(device_writes(&device, range, 1)?.map(|done| done.cpages), Ok(512));
    as_process(child, move |_| check(range)).join()?;
    check_from(range.start.0, range, 1)
}

fn dontneed_meets_collect(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    for advice in [HugeAdvice::Huge, HugeAdvice::NoHuge] {
        let range = map(space, 512, advice)?;
        fill(range)?;
        let (collected, _) = space.space().migrate_collect(range, on.place(0))?;
        let there = Arc::clone(space);
        spawn("adviser", move || there.space().advise(range, Advice::DontNeed)).join()?;
        let report = collected.unmap().copy().commit().finalize();
        crate::check_eq!(report.failed_pages(), 0);
        crate::check_eq!(on.resident(0), 0, "nobody needs what arrived");
        check_zero(range)?;
        space.space().unmap(range)?;
    }
    Ok(())
}

fn one_side_splits(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let (range, _device) = on_device(on, space, 512)?;
    let kept = part(range, 256, 256);
    let child = as_process(clone_space(space)?, move |child| {
        child.space().unmap(part(range, 0, 256))?;
        crate::check!(user_read_u64(range.start.0).is_err());
        check_from(range.start.0, kept, 0)?;
        fill_from(range.start.0, kept, 1)?;
        check_from(range.start.0, kept, 1)
    });
    child.join()?;
    check(range)
}

fn half_protected(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let (range, device) = on_device(on, space, 512)?;
    let (lower, upper) = (part(range, 0, 256), part(range, 256, 256));
    space.space().protect(lower, Prot::READ)?;
    crate::check_eq!(on.resident(0), 512, "nothing moved");
    all_are(&snapshot(&device, lower)?, on.local() | Snap::READ)?;
    all_are(&snapshot(&device, upper)?, on.local() | Snap::WRITE)?;
    crate::check!(user_write_u64(lower.start.0, 1).is_err());
    fill_from(range.start.0, upper, 1)?;
    check_from(range.start.0, lower, 0)?;
    check_from(range.start.0, upper, 1)
}

fn shared_remap(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    for offset in [0, 128] {
        let (old, _device) = on_device(on, space, 512)?;
        let child = clone_space(space)?;
        let new = VaRange::new(old.start.0 + 4 * PMD_SIZE + (offset << 12), PMD_SIZE);
        space.space().remap(old, RemapTarget { addr: new.start, len: new.len() }, RemapFlags::empty())?;
        crate::check_eq!(on.resident(0), 512);
        fill_from(new.start.0, part(new, 0, 1), 7)?;
        as_process(child, move |_| check(old)).join()?;
        check_from(new.start.0, part(new, 0, 1), 7)?;
        check_from(new.start.0, part(new, 1, 511), 0)?;
        space.space().unmap(new)?;
    }
    Ok(())
}

fn large_hole(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    // 32 MiB across the border between two missing PUD entries.
    let range = VaRange::new(64 * PUD_SIZE - 8 * PMD_SIZE, 16 * PMD_SIZE);
    space.space().map_anon(range, Prot::RW, HugeAdvice::Huge)?;
    let report = space.space().migrate(range, on.place(0))?;
    crate::check_eq!((report.pages, report.huge_pages, report.holes), (16 * 512, 16 * 512, 16 * 512));
    crate::check_eq!(kinds(space, range).huge_device, 16);
    check_zero(part(range, 15 * 512, 512))?;
    space.space().unmap(range)?;
    Ok(())
}

fn foreign_huge(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let (range, own) = on_device(on, space, 512)?;
    let other = on.open(1, space)?;
    all_are(&snapshot(&own, range)?, on.local() | Snap::WRITE | Snap::PMD)?;
    all_are(&snapshot(&other, range)?, Snap::empty())?;
    crate::check_eq!(on.resident(0), 512, "a snapshot moves nothing");
    Ok(())
}

fn middle_of_huge(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let (range, _device) = on_device(on, space, 512)?;
    let Some(head) = frame_at(space, range.start.0) else { crate::fail!("nothing on the device") };
    for first in [1, 31, 32, 257, 480] {
        let mut pfns = [HmmPfn::NONE; 32];
        let request = RangeFault {
            range: part(range, first, 32),
            want: HmmWant::empty(),
            per_page: false,
            owner: Some(on.place(0)),
            under: None,
        };
        let result = space.space().range_fault(&request, &mut pfns);
        crate::check!(result.is_ok(), "{result:?}");
        for (i, pfn) in pfns.iter().enumerate() {
            crate::check_eq!(
                pfn.frame(),
                Some(head.offset(first as u32 + i as u32)),
                "page {i} from {first}"
            );
            crate::check_eq!(pfn.map_order(), Order::PMD);
        }
    }
    Ok(())
}

fn evict_to_small(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let (range, _device) = on_device(on, space, 512)?;
    let child = clone_space(space)?;
    let held = Held::every_second(Place::RAM, Order::new(4));
    let (number, place) = (on.place(0).device_number().unwrap_or(0), on.place(0));
    let pages = mm().device(number).memory().managed;
    let report = mm().evict_range(place, 0..pages);
    crate::check_eq!((report.pages, report.torn, report.failed_pages()), (512, 512, 0));
    crate::check_eq!((on.resident(0), space.entry_at(range.start).0), (0, Level::Pte));
    drop(held);
    as_process(child, move |_| check(range)).join()?;
    check(range)
}

/// The soft-dirty and uffd-wp bits of a page.
fn bits(space: &Space, at: Vaddr) -> Result<(bool, bool), Unmet> {
    let mut found = (false, false);
    space.space().pagemap(VaRange::new(at.0, 4096), |_, page: PagemapEntry| {
        found = (page.is_soft_dirty(), page.is_uffd_wp());
    })?;
    Ok(found)
}

fn bits_over_the_life(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    for advice in [HugeAdvice::Huge, HugeAdvice::NoHuge] {
        let device = on.open(0, space)?;
        let range = map(space, 512, advice)?;
        let (first, last) = (range.start, part(range, 511, 1).start);
        fill(range)?;
        crate::check_eq!(bits(space, first)?, (true, false));
        to_device(&device, range)?;
        crate::check_eq!(bits(space, last)?, (true, false), "carried to the device");
        space.space().clear_soft_dirty(range)?;
        space.space().write_protect(range, true)?;
        crate::check_eq!(bits(space, last)?, (false, true), "cleared and protected there");
        crate::check_eq!(user_read_u64(first.0)?, super::kit::ints(0, 0));
        crate::check_eq!(bits(space, first)?, (false, true), "carried back by a read");
        user_write_u64(first.0, 5)?;
        crate::check_eq!(bits(space, first)?, (true, false), "noted by a write");
        space.space().unmap(range)?;
    }
    Ok(())
}

fn collapse_leaves(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, 512, HugeAdvice::Default)?;
    fill(range)?;
    space.space().advise(range, Advice::Huge)?;
    crate::check_eq!(try_to_device(&device, part(range, 100, 8)).map(|done| done.cpages), Ok(8));
    let (report, faults) = counting(Event::DeviceFault, || space.space().collapse(range));
    let report = report?;
    crate::check_eq!((report.copied, report.failed[MergeCause::Elsewhere as usize], faults), (0, 1, 0));
    crate::check_eq!((on.resident(0), kinds(space, range).present), (8, 504));
    check(range)
}

fn device_full(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let held = Held::all(on.place(0), Order::BASE);
    let range = map(space, PAGES, HugeAdvice::Huge)?;
    fill(range)?;
    crate::check_eq!(try_to_device(&device, range), Err(DmirrorError::NotThere));
    crate::check_eq!(kinds(space, range).huge_present, 2, "as they were");
    drop(held);
    check(range)?;
    to_device(&device, range)
}
