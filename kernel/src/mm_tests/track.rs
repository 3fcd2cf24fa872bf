//! What was written, as soft-dirty and write protection tell, with a CPU that writes.

use alloc::vec::Vec;

use farpage_mm::{
    Event, FlushReason, HugeAdvice, PAGE_SIZE, PMD_SIZE, PagemapEntry, Place, Prot, SoftKind, VaRange,
};

use super::stale::{probes, with_and_without};
use super::support::{DEV0, Space, check, counting, fill, frame_at, in_space, map, pages};
use crate::testing::Unmet;
use crate::vm::user::{user_read_u64, user_touch_write};

/// The words of all pages.
fn words(space: &Space, range: VaRange) -> Result<Vec<PagemapEntry>, Unmet> {
    let mut words = Vec::new();
    space.space().pagemap(range, |_, word| words.push(word))?;
    crate::check_eq!(words.len() as u64, range.nr_pages());
    Ok(words)
}

/// The pages for which `is`.
fn those(space: &Space, range: VaRange, is: fn(PagemapEntry) -> bool) -> Result<Vec<u64>, Unmet> {
    Ok((0..).zip(words(space, range)?).filter(|(_, word)| is(*word)).map(|(page, _)| page).collect())
}

crate::ktest! {
    fn each_page_of_a_huge_page_on_the_device_has_its_number() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 61)?;
            let present = words(space, range)?;
            for (page, word) in (0..).zip(&present) {
                let frame = frame_at(space, range.start.0 + page * PAGE_SIZE);
                crate::check_eq!(word.pfn(), frame.map(|frame| u64::from(frame.index())));
                crate::check!(word.is_present() && word.is_exclusive() && !word.is_swapped());
            }
            space.space().migrate(range, DEV0)?;
            for (page, word) in (0..).zip(words(space, range)?) {
                let frame = frame_at(space, range.start.0 + page * PAGE_SIZE);
                crate::check_eq!(word.kept(), frame.map(|frame| (SoftKind::DevicePrivate, frame)));
                crate::check!(word.is_swapped() && !word.is_present(), "page {page}");
            }
            // From the middle it is the same.
            crate::check_eq!(words(space, pages(range, 77, 5))?.as_slice(), &words(space, range)?[77..82]);
            check(range, 61)
        })?;
    }
}

crate::ktest! {
    fn soft_dirty_finds_what_a_program_writes() {
        for on_device in [false, true] {
            in_space(|space| {
                let range = map(space, PMD_SIZE, HugeAdvice::NoHuge)?;
                fill(range, 62)?;
                if on_device {
                    space.space().migrate(range, DEV0)?;
                }
                let (done, flushes) = counting(Event::TlbFlush, || space.space().clear_soft_dirty(range));
                done?;
                crate::check_eq!(flushes, u64::from(!on_device));
                check(range, 62)?;
                crate::check_eq!(those(space, range, PagemapEntry::is_soft_dirty)?.as_slice(), &[]);
                for page in [3, 100, 511] {
                    user_touch_write(range.start.0 + page * PAGE_SIZE)?;
                }
                crate::check_eq!(
                    those(space, range, PagemapEntry::is_soft_dirty)?.as_slice(),
                    &[3, 100, 511]
                );
                // And it is still known after a journey.
                space.space().migrate(range, DEV0)?;
                space.space().migrate(range, Place::RAM)?;
                crate::check_eq!(
                    those(space, range, PagemapEntry::is_soft_dirty)?.as_slice(),
                    &[3, 100, 511]
                );
                check(pages(range, 4, 96), 62)
            })?;
        }
    }
}

crate::ktest! {
    fn write_protection_goes_to_the_device_and_back_and_ends_with_a_write() {
        for advice in [HugeAdvice::Huge, HugeAdvice::NoHuge] {
            in_space(|space| {
                let range = map(space, PMD_SIZE, advice)?;
                fill(range, 63)?;
                space.space().write_protect(range, true)?;
                let left = || those(space, range, PagemapEntry::is_uffd_wp).map(|left| left.len());
                crate::check_eq!(left()?, 512);
                space.space().migrate(range, DEV0)?;
                crate::check_eq!(left()?, 512);
                check(range, 63)?;
                crate::check_eq!(left()?, 512, "reads bring it back protected");
                space.space().migrate(range, DEV0)?;
                user_touch_write(range.start.0 + 9 * PAGE_SIZE)?;
                let ends = if advice == HugeAdvice::Huge { 512 } else { 1 };
                crate::check_eq!(left()?, 512 - ends);
                space.space().protect(pages(range, 0, 100), Prot::READ)?;
                space.space().protect(pages(range, 0, 100), Prot::RW)?;
                crate::check_eq!(left()?, 512 - ends);
                space.space().write_protect(range, false)?;
                crate::check_eq!(left()?, 0);
                fill(range, 64)?;
                check(range, 64)
            })?;
        }
    }
}

crate::ktest! {
    fn without_its_flush_tracking_misses_writes() {
        with_and_without(FlushReason::Protect, |space, range, flushing| {
            fill(range, 65)?;
            let mut missed = 0;
            flushing(&mut || {
                space.space().write_protect(range, true)?;
                for at in probes(range) {
                    // One that was seen before for each entry does not fault again.
                    user_touch_write(at)?;
                    let page = pages(range, (at - range.start.0) / PAGE_SIZE, 1);
                    missed += u64::from(words(space, page)?[0].is_uffd_wp());
                    user_read_u64(at)?;
                }
                Ok(())
            })?;
            Ok(missed)
        })?;
    }
}
