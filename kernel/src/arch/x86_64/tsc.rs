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
    fn under_instruction_counting_a_tick_is_an_instruction() {
        if !crate::boot().command.icount {
            crate::skip!("is for a machine that counts instructions");
        }
        // Two instructions a round, whatever stands around them.
        let rounds = |n: u64| {
            let start = now();
            // SAFETY: counts down a register that is declared.
            unsafe { core::arch::asm!("2: dec {0}", "jnz 2b", inout(reg) n => _, options(nostack, nomem)) };
            now() - start
        };
        let (short, long) = (rounds(1000), rounds(3000));
        crate::check_eq!(long - short, 4000);
    }
}

crate::ktest! {
    fn the_counter_moves_forward() {
        let first = now();
        let second = now();
        crate::check!(second > first, "{first} then {second}");
    }
}
