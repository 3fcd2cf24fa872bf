//! The routines that move and clear words.
//!
//! All give the same bytes. They differ in what they cost a CPU, and in what they count under `-icount`: a `rep` instruction one for
//! each element, a loop as many as it has instructions.

/// How bulk data is moved. A knob for measurements: all give the same bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyRoutine {
    /// `rep movsq` and `rep stosq`: one count per word.
    #[default]
    RepMovsq,
    /// A loop of 8-byte loads and stores.
    Words,
    /// A loop of 16-byte SSE loads and stores, 64 bytes a round.
    Sse,
    /// `rep movsb` and `rep stosb`: what CPUs with ERMS move as fast as anything, and one count per byte.
    RepMovsb,
    /// A loop of 8-byte loads and non-temporal stores (MOVNTI), 32 bytes a round: what is written does not come into the caches.
    /// A [`store_fence`] must follow before somebody else is led to it.
    Streaming,
}

impl CopyRoutine {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::RepMovsq, Self::Words, Self::Sse, Self::RepMovsb, Self::Streaming];
}

/// Makes all earlier stores visible before any later one, also those to write-combining memory.
///
/// Needed after a copy to a BAR that is mapped write-combining and before an entry is published that leads
/// to it.
#[inline]
pub fn store_fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SFENCE is part of SSE, which every x86-64 CPU has.
    unsafe {
        core::arch::x86_64::_mm_sfence();
    }
    #[cfg(not(target_arch = "x86_64"))]
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

/// Moves `count` words.
///
/// # Safety
/// Both ranges are mapped, aligned to 8 bytes, do not overlap, and the target may be written.
#[inline]
pub unsafe fn copy_words(routine: CopyRoutine, to: *mut u64, from: *const u64, count: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    match routine {
        // SAFETY: the caller's promise.
        CopyRoutine::RepMovsq => return unsafe { x86::rep_movsq(to, from, count) },
        // SAFETY: the caller's promise.
        CopyRoutine::Sse => return unsafe { x86::sse_copy(to, from, count) },
        // SAFETY: the caller's promise.
        CopyRoutine::RepMovsb => return unsafe { x86::rep_movsb(to, from, count) },
        // SAFETY: the caller's promise.
        CopyRoutine::Streaming => return unsafe { x86::stream_copy(to, from, count) },
        CopyRoutine::Words => {}
    }
    let _ = routine;
    for n in 0..count {
        // SAFETY: `n` is below `count`, so the word lies in the source.
        let source = unsafe { from.add(n) };
        // SAFETY: the source is mapped and aligned.
        let word = unsafe { source.read_volatile() };
        // SAFETY: `n` is below `count`, so the word lies in the target.
        let target = unsafe { to.add(n) };
        // SAFETY: the target is mapped, aligned and may be written.
        unsafe { target.write_volatile(word) };
    }
}

/// Writes `count` words of zero.
///
/// # Safety
/// The range is mapped, aligned to 8 bytes, and may be written.
#[inline]
pub unsafe fn zero_words(routine: CopyRoutine, to: *mut u64, count: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    match routine {
        // SAFETY: the caller's promise.
        CopyRoutine::RepMovsq => return unsafe { x86::rep_stosq(to, count) },
        // SAFETY: the caller's promise.
        CopyRoutine::Sse => return unsafe { x86::sse_zero(to, count) },
        // SAFETY: the caller's promise.
        CopyRoutine::RepMovsb => return unsafe { x86::rep_stosb(to, count) },
        // SAFETY: the caller's promise.
        CopyRoutine::Streaming => return unsafe { x86::stream_zero(to, count) },
        CopyRoutine::Words => {}
    }
    let _ = routine;
    for n in 0..count {
        // SAFETY: `n` is below `count`, so the word lies in the range.
        let target = unsafe { to.add(n) };
        // SAFETY: the range is mapped, aligned and may be written.
        unsafe { target.write_volatile(0) };
    }
}

/// The routines in instructions. The direction flag is clear, as the ABI has it.
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    use core::arch::asm;

    /// # Safety
    /// As for [`super::copy_words`].
    #[inline]
    pub(super) unsafe fn rep_movsq(to: *mut u64, from: *const u64, count: usize) {
        // SAFETY: reads and writes exactly the two ranges that the caller vouches for.
        unsafe {
            asm!("rep movsq", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
                options(nostack, preserves_flags));
        }
    }

    /// # Safety
    /// As for [`super::zero_words`].
    #[inline]
    pub(super) unsafe fn rep_stosq(to: *mut u64, count: usize) {
        // SAFETY: writes exactly the range that the caller vouches for.
        unsafe {
            asm!("rep stosq", inout("rcx") count => _, inout("rdi") to => _, in("rax") 0u64,
                options(nostack, preserves_flags));
        }
    }

    /// # Safety
    /// As for [`super::copy_words`].
    #[inline]
    pub(super) unsafe fn rep_movsb(to: *mut u64, from: *const u64, count: usize) {
        // SAFETY: reads and writes exactly the two ranges that the caller vouches for.
        unsafe {
            asm!("rep movsb", inout("rcx") count * 8 => _, inout("rdi") to => _, inout("rsi") from => _,
                options(nostack, preserves_flags));
        }
    }

    /// # Safety
    /// As for [`super::zero_words`].
    #[inline]
    pub(super) unsafe fn rep_stosb(to: *mut u64, count: usize) {
        // SAFETY: writes exactly the range that the caller vouches for.
        unsafe {
            asm!("rep stosb", inout("rcx") count * 8 => _, inout("rdi") to => _, in("al") 0u8,
                options(nostack, preserves_flags));
        }
    }

    /// # Safety
    /// As for [`super::copy_words`].
    #[inline]
    pub(super) unsafe fn stream_copy(to: *mut u64, from: *const u64, count: usize) {
        // SAFETY: `rcx` rounds of 32 bytes, then `tail` words: `count` words in all, within both ranges.
        unsafe {
            asm!(
                "test rcx, rcx",
                "jz 3f",
                "2:",
                "mov {a}, [rsi]",
                "mov {b}, [rsi + 8]",
                "mov {c}, [rsi + 16]",
                "mov {d}, [rsi + 24]",
                "movnti [rdi], {a}",
                "movnti [rdi + 8], {b}",
                "movnti [rdi + 16], {c}",
                "movnti [rdi + 24], {d}",
                "add rsi, 32",
                "add rdi, 32",
                "dec rcx",
                "jnz 2b",
                "3:",
                "mov rcx, {tail}",
                "rep movsq",
                a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
                tail = in(reg) count % 4,
                inout("rcx") count / 4 => _, inout("rdi") to => _, inout("rsi") from => _,
                options(nostack),
            );
        }
    }

    /// # Safety
    /// As for [`super::zero_words`].
    #[inline]
    pub(super) unsafe fn stream_zero(to: *mut u64, count: usize) {
        // SAFETY: `rcx` rounds of 32 bytes, then `tail` words: `count` words in all, within the range.
        unsafe {
            asm!(
                "test rcx, rcx",
                "jz 3f",
                "2:",
                "movnti [rdi], rax",
                "movnti [rdi + 8], rax",
                "movnti [rdi + 16], rax",
                "movnti [rdi + 24], rax",
                "add rdi, 32",
                "dec rcx",
                "jnz 2b",
                "3:",
                "mov rcx, {tail}",
                "rep stosq",
                tail = in(reg) count % 4,
                inout("rcx") count / 4 => _, inout("rdi") to => _, in("rax") 0u64,
                options(nostack),
            );
        }
    }

    /// # Safety
    /// As for [`super::copy_words`].
    #[inline]
    pub(super) unsafe fn sse_copy(to: *mut u64, from: *const u64, count: usize) {
        // SAFETY: `rcx` rounds of 64 bytes, then `tail` words: `count` words in all, within both ranges.
        unsafe {
            asm!(
                "test rcx, rcx",
                "jz 3f",
                "2:",
                "movups {a}, [rsi]",
                "movups {b}, [rsi + 16]",
                "movups {c}, [rsi + 32]",
                "movups {d}, [rsi + 48]",
                "movups [rdi], {a}",
                "movups [rdi + 16], {b}",
                "movups [rdi + 32], {c}",
                "movups [rdi + 48], {d}",
                "add rsi, 64",
                "add rdi, 64",
                "dec rcx",
                "jnz 2b",
                "3:",
                "mov rcx, {tail}",
                "rep movsq",
                a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
                tail = in(reg) count % 8,
                inout("rcx") count / 8 => _, inout("rdi") to => _, inout("rsi") from => _,
                options(nostack),
            );
        }
    }

    /// # Safety
    /// As for [`super::zero_words`].
    #[inline]
    pub(super) unsafe fn sse_zero(to: *mut u64, count: usize) {
        // SAFETY: `rcx` rounds of 64 bytes, then `tail` words: `count` words in all, within the range.
        unsafe {
            asm!(
                "xorps {z}, {z}",
                "test rcx, rcx",
                "jz 3f",
                "2:",
                "movups [rdi], {z}",
                "movups [rdi + 16], {z}",
                "movups [rdi + 32], {z}",
                "movups [rdi + 48], {z}",
                "add rdi, 64",
                "dec rcx",
                "jnz 2b",
                "3:",
                "mov rcx, {tail}",
                "rep stosq",
                z = out(xmm_reg) _,
                tail = in(reg) count % 8,
                inout("rcx") count / 8 => _, inout("rdi") to => _, in("rax") 0u64,
                options(nostack),
            );
        }
    }
}
