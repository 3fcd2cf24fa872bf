//! Devices that are taken out of the system and come back: what is on them moves to RAM, or says why it stays.

use farpage_mm::{
    Cause, Dmirror, DmirrorError, HugeAdvice, PAGE_SIZE, PMD_SIZE, PinFlags, Pinned, Place, RangeError,
    StillInUse, VaRange,
};

use super::injected::holds;
use super::support::{
    Seat, Space, check, fill, frame_at, in_space, kinds, map, order_at, pages, pattern, resident,
};
use crate::testing::Unmet;
use crate::vm::devmem::{self, register_again};
use crate::vm::rig::fail_copies;
use crate::vm::{Machine, clone_space, mm};

const DEV1: Place = Place::device(1);
const COH2: Place = Place::coherent(2);

/// A huge page and 20 small ones, filled and moved to `place`.
fn filled_on(space: &Space, place: Place, seed: u64) -> Result<VaRange, Unmet> {
    let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
    space.space().advise_huge(pages(range, 512, 512), HugeAdvice::NoHuge)?;
    let used = pages(range, 0, 532);
    fill(used, seed)?;
    crate::check_eq!(space.space().migrate(used, place)?.pages, 532);
    Ok(used)
}

fn all_in(space: &Space, range: VaRange, place: Place) -> bool {
    let mut at = (range.start.0..range.end.0).step_by(PAGE_SIZE as usize);
    at.all(|page| frame_at(space, page).is_some_and(|frame| frame.place() == place))
}

/// What is on a device moves to RAM, for all who map it; then the number is free, and taken again.
fn out_and_in_again(place: Place) -> Result<(), Unmet> {
    let number = place.device_number().unwrap_or(0);
    let seat = Seat::of(place);
    in_space(|space| {
        let used = filled_on(space, place, 51)?;
        let child = clone_space(space)?;
        for _ in 0..2 {
            crate::check_eq!(mm().unregister_device(number), Ok(()));
            crate::check_eq!((resident(number), mm().device(number).memory().managed), (0, 0));
            crate::check!(all_in(space, used, Place::RAM) && all_in(&child, used, Place::RAM));
            crate::check_eq!(order_at(space, used.start.0), Some(9), "a huge page stays one");
            holds(space, used, 51)?;
            holds(&child, used, 51)?;
            // Nothing goes there, and nothing is there.
            crate::check_eq!(space.space().migrate(used, place), Err(RangeError::NoDevice(number)));
            crate::check_eq!(Dmirror::open(place, space).err(), Some(DmirrorError::Invalid));
            let report = mm().evict_range(place, 0..u32::MAX);
            crate::check_eq!((report.pages, report.failed_pages()), (0, 0));
            crate::check_eq!(mm().unregister_device(number), Ok(()), "nothing is to be done");
            seat.take()?;
            crate::check_eq!(mm().device(number).memory().free, seat.pages());
            crate::check_eq!(space.space().migrate(used, place)?.pages, 532);
            crate::check!(all_in(space, used, place) && all_in(&child, used, place));
            // It is the memory of that very device.
            let (Some(device), Some(frame)) = (devmem::device(number), frame_at(space, used.start.0)) else {
                crate::fail!("no device {number}")
            };
            crate::check_eq!(device.read(device.address_of(frame)), Some(pattern(used.start.0, 51)));
        }
        drop(child);
        check(used, 51)
    })
}

crate::ktest! {
    needs(devices = 4, coherent = 2)
    fn a_device_is_emptied_and_its_number_can_be_taken_again() {
        out_and_in_again(DEV1)?;
        out_and_in_again(COH2)?;
    }
}

/// The teardown fails, for the page at `at`, and the device goes on.
fn refused(space: &Space, used: VaRange, at: u64, place: Place) -> Result<StillInUse, Unmet> {
    let number = place.device_number().unwrap_or(0);
    let Err(why) = mm().unregister_device(number) else { crate::fail!("nobody holds {at:#x}") };
    crate::check!(
        frame_at(space, at)
            .and_then(|frame| mm().try_get_folio(frame))
            .is_some_and(|folio| folio.frame() == why.frame),
        "{why}"
    );
    let report = space.space().migrate(used, place)?;
    crate::check_eq!(report.failed_pages(), 0, "it goes on as before");
    crate::check_eq!(resident(number), used.nr_pages());
    Ok(why)
}

crate::ktest! {
    needs(devices = 4, coherent = 2)
    fn a_page_that_is_held_keeps_its_device_which_goes_on() {
        let _seats = [Seat::of(DEV1), Seat::of(COH2)];
        in_space(|space| {
            let used = filled_on(space, DEV1, 52)?;
            let get = |at| frame_at(space, at).and_then(|frame| mm().try_get_folio(frame));
            let (huge, small) = (used.start.0 + 7 * PAGE_SIZE, pages(used, 515, 1).start.0);
            // One is held and one is on its way: either may be named; when the one is free again, it is the other.
            let held = get(huge);
            let (parked, _) = space.space().migrate_collect(VaRange::new(small, PAGE_SIZE), Place::RAM)?;
            crate::check!(held.is_some() && mm().unregister_device(1).is_err());
            drop(held);
            let Err(why) = mm().unregister_device(1) else { crate::fail!("a page is locked") };
            crate::check_eq!((why.refs, why.maps, why.locked, why.pins), (1, 0, true, 0), "{why}");
            crate::check_eq!((Some(why.frame), resident(1)), (frame_at(space, small), 1));
            drop(parked);
            space.space().migrate(used, DEV1)?;
            let held = get(huge);
            let why = refused(space, used, huge, DEV1)?;
            crate::check_eq!((why.refs, why.maps, why.locked, why.pins), (2, 1, false, 0), "{why}");
            drop(held);
            crate::check_eq!(mm().unregister_device(1), Ok(()));
            check(used, 52)
        })?;
        in_space(|space| {
            let used = filled_on(space, COH2, 53)?;
            let page = pages(used, 520, 1);
            let mut pinned: [Option<Pinned<Machine>>; 1] = [None];
            if let Err(error) = space.space().pin_pages(page, PinFlags::WRITE, &mut pinned) {
                crate::fail!("{error}");
            }
            let why = refused(space, used, page.start.0, COH2)?;
            crate::check_eq!((why.refs, why.maps, why.locked, why.pins), (2, 1, false, 1), "{why}");
            drop(pinned);
            crate::check_eq!(mm().unregister_device(2), Ok(()));
            check(used, 53)
        })?;
    }
}

crate::ktest! {
    needs(devices = 2)
    fn a_number_goes_to_another_owner_and_back() {
        let seat = Seat::of(DEV1);
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 54)?;
            for plain in [true, false, true] {
                crate::check_eq!(mm().unregister_device(1), Ok(()));
                crate::check_eq!(register_again(1, seat.pages(), plain), Ok(DEV1));
                // Copies of the one fail when they are told to, those of the other do not.
                fail_copies(0, 1);
                let report = space.space().migrate(range, DEV1)?;
                fail_copies(0, 0);
                let failed = if plain { 0 } else { 512 };
                crate::check_eq!((report.pages, report.failed[Cause::CopyFailed as usize]), (512 - failed, failed));
                crate::check_eq!(u64::from(kinds(space, range).huge_device) * 512, 512 - failed);
                check(range, 54)?;
            }
            crate::check_eq!(mm().unregister_device(1), Ok(()));
            seat.take()
        })?;
    }
}

crate::ktest! {
    needs(devices = 2)
    fn a_number_comes_back_with_less_memory_and_with_no_more_than_its_map_has_room_for() {
        let seat = Seat::of(DEV1);
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 55)?;
            crate::check_eq!(mm().unregister_device(1), Ok(()));
            let (all, more) = (seat.pages(), seat.pages() + 1);
            crate::check_eq!(register_again(1, more, false), Err(RangeError::NoRoom(1, all)));
            crate::check_eq!(register_again(1, 512, false), Ok(DEV1));
            let report = space.space().migrate(range, DEV1)?;
            crate::check_eq!((report.pages, report.failed[Cause::NoMemory as usize]), (512, 512));
            holds(space, range, 55)?;
            crate::check_eq!(mm().unregister_device(1), Ok(()));
            seat.take()?;
            crate::check_eq!(space.space().migrate(range, DEV1)?.pages, 1024);
            check(range, 55)
        })?;
    }
}
