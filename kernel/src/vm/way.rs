//! How the CPU copies pages, which is a knob: the routine, and failures of copies by the first private device.
//!
//! Both are one byte, 0 for the usual, so that the usual way pays for a look at that byte and takes the rest as constants.

use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

use farpage_device::mmio::CopyRoutine;

static WAY: AtomicU8 = AtomicU8::new(0);
/// Set while copies by the first device are to be made to fail; below it, the routine's place among all.
const FIRST_FAILS: u8 = 1 << 7;

/// Pages are copied by `rep movsq`, and none is made to fail.
#[inline(always)]
pub(super) fn is_usual() -> bool {
    WAY.load(Relaxed) == 0
}

/// The routine that copies pages.
#[inline(always)]
pub(super) fn routine() -> CopyRoutine {
    if is_usual() { CopyRoutine::RepMovsq } else { other_routine() }
}

#[cold]
fn other_routine() -> CopyRoutine {
    let place = usize::from(WAY.load(Relaxed) & !FIRST_FAILS);
    CopyRoutine::ALL.get(place).copied().unwrap_or_default()
}

/// Copies by another routine from now on.
pub(crate) fn set_copy_routine(routine: CopyRoutine) {
    let place = CopyRoutine::ALL.iter().position(|one| *one == routine).unwrap_or(0) as u8;
    WAY.store(WAY.load(Relaxed) & FIRST_FAILS | place, Relaxed);
}

/// Whether failures that are asked of [`super::rig`] are for the first device, too.
pub(crate) fn let_first_fail(fails: bool) {
    let way = WAY.load(Relaxed) & !FIRST_FAILS;
    WAY.store(if fails { way | FIRST_FAILS } else { way }, Relaxed);
}

/// True while they are.
pub(super) fn first_fails() -> bool {
    WAY.load(Relaxed) & FIRST_FAILS != 0
}
