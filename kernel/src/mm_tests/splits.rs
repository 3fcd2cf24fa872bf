//! Parts of huge pages that are unmapped, and the kernel heap, which the memory manager must not need.

use farpage_mm::{
    Advice, Dmirror, Entry, Event, FaultError, HugeAdvice, PMD_SIZE, Place, Prot, RemapFlags, RemapTarget,
    VaRange, Vaddr,
};

use super::support::{
    DEV0, Kinds, Space, check, counting, fill, frame_at, in_space, kinds, map, on_the_usual_machine, pages,
    refusal, resident,
};
use crate::arch::heap;
use crate::testing::Unmet;
use crate::vm::user::{user_read_u64, user_touch_write};
use crate::vm::{clone_space, devmem, mm};

/// A part of a huge page: its first page, how many, and the splits that it takes to free it.
type Part = (u64, u64, u64);

/// The ends of a page, its quarters, single pages, and odd numbers. A cut at the front often has cut at the back already.
const PARTS: [Part; 10] = [
    (0, 128, 1),
    (128, 128, 1),
    (256, 128, 2),
    (384, 128, 1),
    (0, 256, 1),
    (256, 256, 1),
    (0, 1, 1),
    (511, 1, 1),
    (300, 1, 2),
    (77, 333, 2),
];

/// Unmaps a part and looks at what is left; `on` is where the page lies.
fn unmap_part(space: &Space, range: VaRange, part: Part, on: Place) -> Result<(), Unmet> {
    let (first, nr, cuts) = part;
    let dead = pages(range, first, nr);
    let frames = (0..nr).map(|n| frame_at(space, pages(dead, n, 1).start.0)).collect::<alloc::vec::Vec<_>>();
    let (unmapped, splits) = counting(Event::ThpSplitPage, || space.space().unmap(dead));
    unmapped?;
    crate::check_eq!(splits, cuts, "{part:?}");
    for frame in frames.into_iter().flatten() {
        crate::check!(
            frame.place() == on && mm().try_get_folio(frame).is_none(),
            "{frame} of {part:?} is not free"
        );
    }
    for at in [dead.start.0, dead.end.0 - 8] {
        crate::check_eq!(refusal(user_read_u64(at)).map(drop), Err((at, Some(FaultError::NoVma(Vaddr(at))))));
    }
    let left = (512 - nr) as u32;
    let (present, device) = if on.is_ram() { (left, 0) } else { (0, left) };
    let expected = Kinds { present, device, none: nr as u32, ..Kinds::default() };
    crate::check_eq!(kinds(space, range), expected, "{part:?}");
    Ok(())
}

fn check_rest(range: VaRange, (first, nr, _): Part, seed: u64) -> Result<(), Unmet> {
    check(pages(range, 0, first), seed)?;
    check(pages(range, first + nr, 512 - first - nr), seed)
}

crate::ktest! {
    fn any_part_of_a_huge_page_can_be_unmapped() {
        for part in PARTS {
            in_space(|space| {
                let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
                fill(range, 71)?;
                unmap_part(space, range, part, Place::RAM)?;
                check_rest(range, part, 71)?;
                // What is left can move, there and back.
                space.space().migrate(pages(range, 0, part.0.max(1)), DEV0).map(drop).or_else(|error| {
                    if part.0 == 0 { Ok(()) } else { Err(error) }
                })?;
                check_rest(range, part, 71)
            })?;
        }
    }
}

crate::ktest! {
    fn any_part_of_a_huge_page_on_the_device_can_be_unmapped_and_is_free_at_once() {
        let Some(device) = devmem::device(0) else { crate::skip!("is for a machine with a device") };
        for part in PARTS {
            in_space(|space| {
                let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
                fill(range, 72)?;
                space.space().migrate(range, DEV0)?;
                let (told, counted) = (device.splits(), mm().device(0).stat().splits);
                unmap_part(space, range, part, DEV0)?;
                crate::check_eq!(resident(0), 512 - part.1, "{part:?}");
                crate::check_eq!(device.splits() - told, part.2, "the owner is told of each split");
                crate::check_eq!(mm().device(0).stat().splits - counted, part.2);
                check_rest(range, part, 72)?;
                crate::check_eq!(resident(0), 0);
                Ok(())
            })?;
        }
    }
}

crate::ktest! {
    fn split_device_memory_grows_together_again() {
        in_space(|space| {
            let chunks = || {
                mm().zone(DEV0).drain();
                mm().device(0).memory().chunks
            };
            let before = chunks();
            for part in PARTS {
                let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
                fill(range, 73)?;
                space.space().migrate(range, DEV0)?;
                space.space().unmap(pages(range, part.0, part.1))?;
                space.space().unmap(range)?;
                crate::check_eq!(chunks(), before, "{part:?}");
            }
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn a_hole_in_the_middle_of_many_pages_leaves_both_sides() {
        in_space(|space| {
            let range = map(space, 4 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 74)?;
            space.space().migrate(pages(range, 0, 1024), DEV0)?;
            space.space().unmap(pages(range, 200, 1600))?;
            let expected = Kinds { device: 200, present: 248, none: 1600, ..Kinds::default() };
            crate::check_eq!(kinds(space, range), expected);
            crate::check_eq!(resident(0), 200);
            check(pages(range, 0, 200), 74)?;
            check(pages(range, 1800, 248), 74)
        })?;
    }
}

crate::ktest! {
    fn a_split_keeps_what_an_entry_remembers() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 75)?;
            let (_, Entry::Leaf(whole)) = space.entry_at(range.start) else { crate::fail!("not present") };
            space.space().migrate(range, DEV0)?;
            space.space().unmap(pages(range, 0, 1))?;
            for page in 1..512 {
                let Entry::NonPresent(soft) = space.entry_at(pages(range, page, 1).start).1 else {
                    crate::fail!("page {page} is not on the device")
                };
                crate::check_eq!(soft.attrs, whole.attrs);
            }
            Ok(())
        })?;
    }
}

/// Everything that the memory manager does on a hot path, without a word to the heap. What failed, if something did.
fn life(whole: &Space, range: VaRange) -> Option<&'static str> {
    let space = whole.space();
    let touch = |range: VaRange| {
        let mut at = (range.start.0..range.end.0).step_by(4096);
        at.all(|at| user_touch_write(at).is_ok() && user_read_u64(at).is_ok())
    };
    let moved = |range, to| space.migrate(range, to).is_ok_and(|report| report.failed_pages() == 0);
    if !touch(range) {
        return Some("first touch");
    }
    if !moved(range, DEV0) || !touch(pages(range, 0, 600)) {
        return Some("to the device and back by fault");
    }
    if !moved(pages(range, 100, 300), DEV0) || !moved(pages(range, 50, 200), Place::RAM) {
        return Some("parts");
    }
    if !moved(range, DEV0) || !moved(range, Place::RAM) {
        return Some("there and back");
    }
    if !moved(pages(range, 0, 512), DEV0) || !is_there(clone_space(whole).as_ref(), range) {
        return Some("clone");
    }
    for prot in [Prot::READ, Prot::empty(), Prot::RW] {
        if space.protect(pages(range, 400, 300), prot).is_err() {
            return Some("protect");
        }
    }
    let away = VaRange::new(range.start.0 + (1 << 30), PMD_SIZE);
    for (from, to) in [(pages(range, 0, 512), away), (away, pages(range, 0, 512))] {
        let target = RemapTarget { addr: to.start, len: to.len() };
        if space.remap(from, target, RemapFlags::empty()).is_err() {
            return Some("remap");
        }
    }
    for advice in [Advice::Huge, Advice::Cold, Advice::Free] {
        if space.advise(pages(range, 0, 512), advice).is_err() {
            return Some("advice");
        }
    }
    if space.write_protect(range, true).is_err() || space.clear_soft_dirty(range).is_err() {
        return Some("trackers");
    }
    if mm().evict_range(DEV0, 0..u32::MAX).failed_pages() != 0 || !touch(range) {
        return Some("evict");
    }
    if space.collapse(pages(range, 0, 512)).is_err() || space.merge_device(range).is_err() {
        return Some("collapse and merge");
    }
    if !commands(whole, range) {
        return Some("a device's commands");
    }
    if space.unmap(pages(range, 700, 100)).is_err() || space.unmap(range).is_err() {
        return Some("unmap");
    }
    None
}

/// A clone that has the parent's pages, those on the device too, and ends.
fn is_there(clone: Result<&Space, &farpage_mm::OutOfMemory>, range: VaRange) -> bool {
    clone.is_ok_and(|clone| clone.entry_at(range.start).1 != Entry::None)
}

/// What a device does by itself.
fn commands(space: &Space, range: VaRange) -> bool {
    let mut words = [0; 1024];
    let Ok(device) = Dmirror::open(DEV0, space) else { return false };
    device.read(range.start, &mut words).is_ok()
        && device.write(range.start, &words).is_ok()
        && device.migrate_to_device(range.start, &mut words).is_ok()
        && device.migrate_to_system(pages(range, 0, 2)).is_ok()
}

crate::ktest! {
    fn the_memory_manager_never_asks_the_kernels_heap() {
        on_the_usual_machine()?;
        in_space(|space| {
            for advice in [HugeAdvice::Huge, HugeAdvice::NoHuge] {
                let range = map(space, 4 * PMD_SIZE, advice)?;
                let forbidden = heap::forbid();
                let failed = life(space, range);
                drop(forbidden);
                crate::check_eq!(failed, None);
            }
            Ok(())
        })?;
    }
}
