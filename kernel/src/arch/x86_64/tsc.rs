//! The time-stamp counter.

/// Reads it.
///
/// Without LFENCE: under TCG instructions run in order, and with `-icount` the counter is the number of instructions so
/// far, of which a fence would only be one more. On hardware the error is some tens of cycles, on measurements of
/// thousands.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: reads a counter; CR4.TSD concerns ring 3 only.
    unsafe { core::arch::x86_64::_rdtsc() }
}

crate::ktest! {
    fn the_counter_moves_forward() {
        let first = now();
        let second = now();
        crate::check!(second > first, "{first} then {second}");
    }
}
