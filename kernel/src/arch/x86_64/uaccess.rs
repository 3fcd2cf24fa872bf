//! Access to user memory from ring 0.
//!
//! These routines are the only code of ring 0 that touches user addresses. With SMAP on, they alone lift it (STAC), and
//! only for the access itself. A fault inside them goes to the memory manager like one from ring 3; if that refuses,
//! the exception table turns it into an error that names the address. Bulk routines use `rep` string instructions: a
//! fault in the middle is handled and the instruction goes on where it stopped.
//!
//! All routines stand together in `.text.uaccess`, so that the fault path asks one range; the table is only read for a
//! fault that nobody wants.

use core::arch::global_asm;

use super::trap::SMAP_ON;

/// One past the last user address. The last page below the non-canonical hole stays unused, as everywhere, because of
/// what SYSRET does with it.
pub(crate) const USER_END: u64 = 0x0000_7fff_ffff_f000;

/// An access to user memory that nobody could make good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserFault {
    /// The address that faulted.
    pub(crate) addr: u64,
}

impl core::fmt::Display for UserFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "user address {:#x} cannot be accessed", self.addr)
    }
}

/// What a routine returns, in RAX and RDX.
#[repr(C)]
#[derive(Clone, Copy)]
struct Answer {
    /// The value, or the address that faulted.
    value: u64,
    failed: u64,
}

impl Answer {
    #[inline(always)]
    fn result(self) -> Result<u64, UserFault> {
        if self.failed == 0 { Ok(self.value) } else { Err(UserFault { addr: self.value }) }
    }
}

global_asm!(
    r#"
    # A routine stands between these two: the first opens the way to user memory, the second closes it. The handler of a
    # fault that nobody wants puts the address in RAX and goes on at the landing.
    .macro UACCESS_BEGIN name
    .pushsection .text.uaccess, "ax", @progbits
    .balign 16
    .globl \name
    .type \name, @function
\name:
    cmp     byte ptr [rip + {smap}], 0
    je      771f
    stac
771:
    .endm

    .macro UACCESS_END name
772:
    cmp     byte ptr [rip + {smap}], 0
    je      773f
    clac
773:
    xor     edx, edx
    ret
    .size \name, . - \name
    .pushsection .ex_table, "a", @progbits
    .quad   771b, 772b, uaccess_landing
    .popsection
    .popsection
    .endm

    .pushsection .text.uaccess, "ax", @progbits
    .type uaccess_landing, @function
uaccess_landing:
    cmp     byte ptr [rip + {smap}], 0
    je      20f
    clac
20: mov     edx, 1
    ret
    .size uaccess_landing, . - uaccess_landing
    .popsection

    # (rdi = address) -> value
    UACCESS_BEGIN uaccess_read_u64
    mov     rax, [rdi]
    UACCESS_END uaccess_read_u64

    # (rdi = address) -> value
    UACCESS_BEGIN uaccess_read_u8
    movzx   eax, byte ptr [rdi]
    UACCESS_END uaccess_read_u8

    # (rdi = address, rsi = value)
    UACCESS_BEGIN uaccess_write_u64
    mov     [rdi], rsi
    UACCESS_END uaccess_write_u64

    # (rdi = address, rsi = value)
    UACCESS_BEGIN uaccess_write_u8
    mov     [rdi], sil
    UACCESS_END uaccess_write_u8

    # (rdi = address): a write that changes nothing
    UACCESS_BEGIN uaccess_dirty
    lock    add byte ptr [rdi], 0
    UACCESS_END uaccess_dirty

    # (rdi = to, rsi = from, rdx = words): one of the two is a user address
    UACCESS_BEGIN uaccess_copy_words
    mov     rcx, rdx
    rep     movsq
    UACCESS_END uaccess_copy_words

    # (rdi = to, rsi = from, rdx = bytes)
    UACCESS_BEGIN uaccess_copy_bytes
    mov     rcx, rdx
    rep     movsb
    UACCESS_END uaccess_copy_bytes

    # (rdi = to, rsi = words, rdx = value)
    UACCESS_BEGIN uaccess_fill_words
    mov     rax, rdx
    mov     rcx, rsi
    rep     stosq
    UACCESS_END uaccess_fill_words

    # (rdi = address, rsi = words, not 0, rdx = value) -> words from the first that differs on, or 0
    UACCESS_BEGIN uaccess_scan_words
    mov     rax, rdx
    mov     rcx, rsi
    repe    scasq
    setne   al
    movzx   eax, al
    add     rax, rcx
    UACCESS_END uaccess_scan_words

    # (rdi = address, rsi = steps, not 0, rdx = the bits that a user address may have) -> the last word
    UACCESS_BEGIN uaccess_chase
81: mov     rdi, [rdi]
    and     rdi, rdx
    dec     rsi
    jnz     81b
    mov     rax, rdi
    UACCESS_END uaccess_chase
    "#,
    smap = sym SMAP_ON,
);

unsafe extern "C" {
    static __uaccess_start: u8;
    static __uaccess_end: u8;
    static __ex_table_start: Entry;
    static __ex_table_end: Entry;

    fn uaccess_read_u64(address: u64) -> Answer;
    fn uaccess_read_u8(address: u64) -> Answer;
    fn uaccess_write_u64(address: u64, value: u64) -> Answer;
    fn uaccess_write_u8(address: u64, value: u64) -> Answer;
    fn uaccess_dirty(address: u64) -> Answer;
    fn uaccess_copy_words(to: u64, from: u64, words: u64) -> Answer;
    fn uaccess_copy_bytes(to: u64, from: u64, bytes: u64) -> Answer;
    fn uaccess_fill_words(to: u64, words: u64, value: u64) -> Answer;
    fn uaccess_scan_words(address: u64, words: u64, value: u64) -> Answer;
    fn uaccess_chase(address: u64, steps: u64, mask: u64) -> Answer;
}

/// A line of the exception table: instructions from `start` to `end` that may fault, and where to go on.
#[repr(C)]
struct Entry {
    start: u64,
    end: u64,
    landing: u64,
}

/// Is this instruction one of the user-access routines?
#[inline(always)]
pub(super) fn covers(rip: u64) -> bool {
    let (start, end) = (&raw const __uaccess_start as u64, &raw const __uaccess_end as u64);
    rip.wrapping_sub(start) < end - start
}

/// Where the routine of this instruction goes on after a fault that nobody wants.
pub(super) fn fixup(rip: u64) -> Option<u64> {
    let (start, end) = (&raw const __ex_table_start, &raw const __ex_table_end);
    let entries = (end as usize - start as usize) / size_of::<Entry>();
    // SAFETY: the linker script puts the symbols around the table, which is constant.
    let table = unsafe { core::slice::from_raw_parts(start, entries) };
    table.iter().find(|entry| (entry.start..entry.end).contains(&rip)).map(|entry| entry.landing)
}

/// Refuses a range that is not all user addresses.
#[inline(always)]
fn check(addr: u64, len: u64) -> Result<(), UserFault> {
    match addr.checked_add(len) {
        Some(end) if end <= USER_END => Ok(()),
        _ => Err(UserFault { addr: addr.max(USER_END) }),
    }
}

/// Reads a word.
///
/// # Errors
/// The address that nobody could make readable. The same holds for all functions here.
#[inline(always)]
pub(crate) fn user_read_u64(addr: u64) -> Result<u64, UserFault> {
    check(addr, 8)?;
    // SAFETY: a user address, read by a routine in the exception table.
    unsafe { uaccess_read_u64(addr) }.result()
}

/// Reads a byte.
#[inline(always)]
pub(crate) fn user_read_u8(addr: u64) -> Result<u8, UserFault> {
    check(addr, 1)?;
    // SAFETY: a user address, read by a routine in the exception table.
    unsafe { uaccess_read_u8(addr) }.result().map(|byte| byte as u8)
}

/// Writes a word.
#[inline(always)]
pub(crate) fn user_write_u64(addr: u64, value: u64) -> Result<(), UserFault> {
    check(addr, 8)?;
    // SAFETY: a user address, written by a routine in the exception table; no Rust object lies there.
    unsafe { uaccess_write_u64(addr, value) }.result().map(drop)
}

/// Writes a byte.
#[inline(always)]
pub(crate) fn user_write_u8(addr: u64, value: u8) -> Result<(), UserFault> {
    check(addr, 1)?;
    // SAFETY: a user address, written by a routine in the exception table; no Rust object lies there.
    unsafe { uaccess_write_u8(addr, u64::from(value)) }.result().map(drop)
}

/// Touches a byte as a write does, but leaves its value.
#[inline(always)]
pub(crate) fn user_touch_write(addr: u64) -> Result<(), UserFault> {
    check(addr, 1)?;
    // SAFETY: a user address, written by a routine in the exception table, with the value it has.
    unsafe { uaccess_dirty(addr) }.result().map(drop)
}

/// Touches a byte as a read does.
#[inline(always)]
pub(crate) fn user_touch_read(addr: u64) -> Result<(), UserFault> {
    user_read_u8(addr).map(drop)
}

/// Copies from user memory. On an error a part may have been copied.
pub(crate) fn copy_from_user(to: &mut [u8], from: u64) -> Result<(), UserFault> {
    let len = to.len() as u64;
    check(from, len)?;
    copy(to.as_mut_ptr() as u64, from, len)
}

/// Copies to user memory. On an error a part may have been copied.
pub(crate) fn copy_to_user(to: u64, from: &[u8]) -> Result<(), UserFault> {
    let len = from.len() as u64;
    check(to, len)?;
    copy(to, from.as_ptr() as u64, len)
}

/// Copies words from user memory. On an error a part may have been copied.
pub(crate) fn copy_words_from_user(to: &mut [u64], from: u64) -> Result<(), UserFault> {
    check(from, to.len() as u64 * 8)?;
    // SAFETY: `to` is ours and as long; the other side is a user address.
    unsafe { uaccess_copy_words(to.as_mut_ptr() as u64, from, to.len() as u64) }.result().map(drop)
}

/// Copies words to user memory. On an error a part may have been copied.
pub(crate) fn copy_words_to_user(to: u64, from: &[u64]) -> Result<(), UserFault> {
    check(to, from.len() as u64 * 8)?;
    // SAFETY: `from` is as long; the other side is a user address.
    unsafe { uaccess_copy_words(to, from.as_ptr() as u64, from.len() as u64) }.result().map(drop)
}

/// Writes `words` words of `value`. On an error a part may have been written.
pub(crate) fn user_fill(addr: u64, words: u64, value: u64) -> Result<(), UserFault> {
    check(addr, words.saturating_mul(8))?;
    // SAFETY: user addresses, written by a routine in the exception table; no Rust object lies there.
    unsafe { uaccess_fill_words(addr, words, value) }.result().map(drop)
}

/// The index of the first of `words` words that is not `value`.
pub(crate) fn user_find_other(addr: u64, words: u64, value: u64) -> Result<Option<u64>, UserFault> {
    check(addr, words.saturating_mul(8))?;
    if words == 0 {
        return Ok(None);
    }
    // SAFETY: user addresses, read by a routine in the exception table.
    let left = unsafe { uaccess_scan_words(addr, words, value) }.result()?;
    Ok((left != 0).then(|| words - left))
}

/// Reads the word at `addr`, then the word at the address that was read, and so on, `steps` times: the last word. Four instructions
/// a step. Of each word only the bits of an aligned address in the user half count, so no chain leads into the
/// kernel, or over the edge of the user half.
pub(crate) fn user_chase(addr: u64, steps: u64) -> Result<u64, UserFault> {
    check(addr, 8)?;
    if steps == 0 {
        return Ok(addr);
    }
    let user_half = ((1 << 47) - 1) & !7;
    // SAFETY: a user address, read by a routine in the exception table; it cuts every further address to a word of the user half.
    unsafe { uaccess_chase(addr, steps, user_half) }.result()
}

/// Words first, then the odd bytes: a word costs as much as a byte.
fn copy(to: u64, from: u64, len: u64) -> Result<(), UserFault> {
    let words = len / 8;
    // SAFETY: one side is checked user memory, the other a slice of `len` bytes.
    unsafe { uaccess_copy_words(to, from, words) }.result()?;
    // SAFETY: as above; the rest of the same ranges.
    unsafe { uaccess_copy_bytes(to + words * 8, from + words * 8, len % 8) }.result().map(drop)
}
