//! Pages of a device for others: got where they may stay, pinned for long in RAM.

use alloc::sync::Arc;

use farpage_mm::dmirror::Snap;
use farpage_mm::{HugeAdvice, PinFlags};

use super::kit::{Fixture, check, fill, map, part, snapshot, to_device};
use crate::mm_tests::support::Space;
use crate::testing::Unmet;

/// Four pages on the device: got, got without locks, pinned for long without locks, pinned for long. Private memory comes to RAM
/// for all of them, coherent memory only for the last two.
pub(super) fn hmm_gup_test(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let range = map(space, 4, HugeAdvice::Default)?;
    fill(range)?;
    to_device(&device, range)?;
    let (write, fast, long) = (PinFlags::WRITE, PinFlags::FAST, PinFlags::LONGTERM);
    let (mut got, mut pinned) = ([None, None], [None, None]);
    let space = space.space();
    for (page, flags) in [write, write | fast].into_iter().enumerate() {
        let taken = space.get_pages(part(range, page as u64, 1), flags, &mut got[page..=page]);
        crate::check!(taken.is_ok(), "{taken:?}");
    }
    for (page, flags) in [write | fast | long, write | long].into_iter().enumerate() {
        let taken = space.pin_pages(part(range, 2 + page as u64, 1), flags, &mut pinned[page..=page]);
        crate::check!(taken.is_ok(), "{taken:?}");
    }
    let first = if on.is_coherent() { on.local() | Snap::WRITE } else { Snap::WRITE };
    crate::check_eq!(snapshot(&device, range)?, [first, first, Snap::WRITE, Snap::WRITE]);
    crate::check_eq!(on.resident(0), if on.is_coherent() { 2 } else { 0 });
    for (page, pin) in pinned.iter().enumerate() {
        let Some(pin) = pin else { crate::fail!("page {page} was pinned") };
        crate::check!(pin.place().is_ram() && pin.folio().pins() == 1, "page {page}");
    }
    check(range)
}
