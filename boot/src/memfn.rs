//! The memory functions that compiled code calls by name; on other targets a C library has them.
//!
//! String instructions throughout: under instruction counting and under TCG they cost one step per repetition, so the
//! large ones go by quadwords.

use core::arch::naked_asm;
use core::ffi::c_int;

/// C's `memcpy`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    naked_asm!(
        "mov rax, rdi",
        "mov rcx, rdx",
        "shr rcx, 3",
        "rep movsq",
        "mov ecx, edx",
        "and ecx, 7",
        "rep movsb",
        "ret",
    )
}

/// C's `memmove`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    naked_asm!(
        "mov rcx, rdi",
        "sub rcx, rsi",
        "cmp rcx, rdx", // unsigned: is the destination inside the source?
        "jae {forward}",
        "mov rax, rdi",
        "lea rdi, [rdi + rdx - 1]",
        "lea rsi, [rsi + rdx - 1]",
        "mov rcx, rdx",
        "std",
        "rep movsb",
        "cld",
        "ret",
        forward = sym memcpy,
    )
}

/// C's `memset`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memset(to: *mut u8, byte: c_int, len: usize) -> *mut u8 {
    naked_asm!(
        "mov r8, rdi",
        "movzx esi, sil",
        "mov rax, 0x0101010101010101",
        "imul rax, rsi",
        "mov rcx, rdx",
        "shr rcx, 3",
        "rep stosq",
        "mov ecx, edx",
        "and ecx, 7",
        "rep stosb",
        "mov rax, r8",
        "ret",
    )
}

/// C's `memcmp`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> c_int {
    naked_asm!(
        "xor eax, eax",
        "mov rcx, rdx",
        "cmp rcx, rcx", // equal, should there be nothing to compare
        "repe cmpsb",
        "je 2f",
        "movzx eax, byte ptr [rdi - 1]",
        "movzx ecx, byte ptr [rsi - 1]",
        "sub eax, ecx",
        "2:",
        "ret",
    )
}

/// `memcmp` for callers who only ask whether there is a difference.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> c_int {
    naked_asm!("jmp {memcmp}", memcmp = sym memcmp)
}

/// C's `strlen`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    naked_asm!("xor eax, eax", "mov rcx, -1", "repne scasb", "not rcx", "lea rax, [rcx - 1]", "ret")
}

/// Named by the precompiled core; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
