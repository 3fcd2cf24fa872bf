//! What an operation costs: time-stamp ticks, and the words it moved or cleared.
//!
//! Under `-icount shift=0` a tick is one guest instruction, exactly and repeatably. *Bulk* is the words that went through
//! `rep movsq` and `rep stosq`, which count one instruction each; what an operation costs beyond its data is the difference.

use core::ops::AddAssign;

use crate::arch::x86_64::{apic, tsc};
use crate::counting;
use crate::vm::bulk_words;

/// The cost of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Ticks of the time-stamp counter.
    pub(crate) ticks: u64,
    /// Words moved or cleared.
    pub(crate) bulk: u64,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.ticks += other.ticks;
        self.bulk += other.bulk;
    }
}

/// Runs `work` and says what it cost, the measuring itself not included.
#[inline(always)]
pub(crate) fn measure<R>(work: impl FnOnce() -> R) -> (R, Cost) {
    counting::begin();
    let (result, cost) = bracket(work);
    counting::end();
    (result, Cost { ticks: cost.ticks.saturating_sub(overhead()), ..cost })
}

#[inline(always)]
fn bracket<R>(work: impl FnOnce() -> R) -> (R, Cost) {
    let bulk = bulk_words();
    let start = tsc::now();
    let result = work();
    let ticks = tsc::now() - start;
    (result, Cost { ticks, bulk: bulk_words() - bulk })
}

/// How long so many ticks last, where they are time.
pub(crate) fn nanoseconds(ticks: u64) -> u64 {
    let hz = apic::rates().tsc_hz.max(1);
    (u128::from(ticks) * 1_000_000_000 / u128::from(hz)) as u64
}

/// Ticks that an empty measurement takes; measured each time, since it is cheaper than remembering it right.
fn overhead() -> u64 {
    bracket(|| ()).1.ticks
}
