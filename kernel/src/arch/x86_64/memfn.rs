//! `memcpy`, `memmove`, `memset`, `memcmp`, `bcmp` and `strlen`: the C functions that compiled Rust calls.
//!
//! The precompiled `core` expects them and nobody else supplies them. They are assembly, because a loop in Rust would be
//! compiled to a call of itself. Under `-icount` every instruction counts, so nothing is moved byte by byte: up to 128
//! bytes by overlapping SSE moves (all loads before all stores, which makes the same code right for `memmove`), more by
//! `rep movsq` and `rep stosq`, one count per 8 bytes, with the odd end moved by one overlapping SSE move.

core::arch::global_asm!(
    r#"
    .pushsection .text.memfn, "ax", @progbits

    # One routine for both: a move never costs more than the comparison that tells the direction.
    .globl memcpy
    .type memcpy, @function
    .globl memmove
    .type memmove, @function
    .balign 16
memcpy:
memmove:
    mov     rax, rdi                    # the result
    cmp     rdx, 16
    jb      20f
    cmp     rdx, 32
    ja      30f
    movups  xmm0, [rsi]
    movups  xmm1, [rsi + rdx - 16]
    movups  [rdi], xmm0
    movups  [rdi + rdx - 16], xmm1
    ret
20:                                     # fewer than 16
    cmp     edx, 8
    jb      21f
    mov     rcx, [rsi]
    mov     r8, [rsi + rdx - 8]
    mov     [rdi], rcx
    mov     [rdi + rdx - 8], r8
    ret
21: cmp     edx, 4
    jb      22f
    mov     ecx, [rsi]
    mov     r8d, [rsi + rdx - 4]
    mov     [rdi], ecx
    mov     [rdi + rdx - 4], r8d
    ret
22: test    edx, edx
    jz      23f
    mov     r10, rdx                    # 1 to 3: first, middle, last
    shr     r10
    movzx   ecx, byte ptr [rsi]
    movzx   r8d, byte ptr [rsi + r10]
    movzx   r9d, byte ptr [rsi + rdx - 1]
    mov     [rdi], cl
    mov     [rdi + r10], r8b
    mov     [rdi + rdx - 1], r9b
23: ret
30: cmp     rdx, 64
    ja      40f
    movups  xmm0, [rsi]
    movups  xmm1, [rsi + 16]
    movups  xmm2, [rsi + rdx - 32]
    movups  xmm3, [rsi + rdx - 16]
    movups  [rdi], xmm0
    movups  [rdi + 16], xmm1
    movups  [rdi + rdx - 32], xmm2
    movups  [rdi + rdx - 16], xmm3
    ret
40: cmp     rdx, 128
    ja      50f
    movups  xmm0, [rsi]
    movups  xmm1, [rsi + 16]
    movups  xmm2, [rsi + 32]
    movups  xmm3, [rsi + 48]
    movups  xmm4, [rsi + rdx - 64]
    movups  xmm5, [rsi + rdx - 48]
    movups  xmm6, [rsi + rdx - 32]
    movups  xmm7, [rsi + rdx - 16]
    movups  [rdi], xmm0
    movups  [rdi + 16], xmm1
    movups  [rdi + 32], xmm2
    movups  [rdi + 48], xmm3
    movups  [rdi + rdx - 64], xmm4
    movups  [rdi + rdx - 48], xmm5
    movups  [rdi + rdx - 32], xmm6
    movups  [rdi + rdx - 16], xmm7
    ret
50: mov     rcx, rdi
    sub     rcx, rsi
    cmp     rcx, rdx                    # the destination begins inside the source?
    jb      60f
    movups  xmm0, [rsi + rdx - 16]      # the end, before it may be overwritten
    lea     r8, [rdi + rdx - 16]
    mov     rcx, rdx
    shr     rcx, 3
    rep     movsq
    movups  [r8], xmm0
    ret
60: movups  xmm4, [rsi]                 # downwards; the first 64 bytes, before they are overwritten
    movups  xmm5, [rsi + 16]
    movups  xmm6, [rsi + 32]
    movups  xmm7, [rsi + 48]
61: movups  xmm0, [rsi + rdx - 16]
    movups  xmm1, [rsi + rdx - 32]
    movups  xmm2, [rsi + rdx - 48]
    movups  xmm3, [rsi + rdx - 64]
    movups  [rdi + rdx - 16], xmm0
    movups  [rdi + rdx - 32], xmm1
    movups  [rdi + rdx - 48], xmm2
    movups  [rdi + rdx - 64], xmm3
    sub     rdx, 64
    cmp     rdx, 64
    ja      61b
    movups  [rdi], xmm4
    movups  [rdi + 16], xmm5
    movups  [rdi + 32], xmm6
    movups  [rdi + 48], xmm7
    ret
    .size memcpy, . - memcpy
    .size memmove, . - memmove

    .globl memset
    .type memset, @function
    .balign 16
memset:
    movzx   eax, sil
    mov     r8, 0x0101010101010101
    imul    rax, r8                     # the byte, eight times
    mov     r9, rdi                     # the result
    cmp     rdx, 16
    jb      20f
    movq    xmm0, rax
    punpcklqdq xmm0, xmm0
    cmp     rdx, 128
    ja      40f
    movups  [rdi], xmm0
    movups  [rdi + rdx - 16], xmm0
    cmp     rdx, 32
    jbe     30f
    movups  [rdi + 16], xmm0
    movups  [rdi + rdx - 32], xmm0
    cmp     rdx, 64
    jbe     30f
    movups  [rdi + 32], xmm0
    movups  [rdi + 48], xmm0
    movups  [rdi + rdx - 64], xmm0
    movups  [rdi + rdx - 48], xmm0
30: mov     rax, r9
    ret
20: cmp     edx, 8
    jb      21f
    mov     [rdi], rax
    mov     [rdi + rdx - 8], rax
    mov     rax, r9
    ret
21: cmp     edx, 4
    jb      22f
    mov     [rdi], eax
    mov     [rdi + rdx - 4], eax
    mov     rax, r9
    ret
22: test    edx, edx
    jz      30b
    mov     r10, rdx
    shr     r10
    mov     [rdi], al
    mov     [rdi + r10], al
    mov     [rdi + rdx - 1], al
    mov     rax, r9
    ret
40: movups  [rdi + rdx - 16], xmm0
    mov     rcx, rdx
    shr     rcx, 3
    rep     stosq
    mov     rax, r9
    ret
    .size memset, . - memset

    .globl memcmp
    .type memcmp, @function
    .globl bcmp
    .type bcmp, @function
    .balign 16
memcmp:
bcmp:
    cmp     rdx, 8
    jb      30f
20: mov     rax, [rdi]
    mov     rcx, [rsi]
    cmp     rax, rcx
    jne     40f
    add     rdi, 8
    add     rsi, 8
    sub     rdx, 8
    cmp     rdx, 8
    jae     20b
30: test    rdx, rdx
    jz      32f
31: movzx   eax, byte ptr [rdi]
    movzx   ecx, byte ptr [rsi]
    sub     eax, ecx
    jnz     33f
    inc     rdi
    inc     rsi
    dec     rdx
    jnz     31b
32: xor     eax, eax
33: ret
40: bswap   rax                         # the lowest differing byte decides
    bswap   rcx
    cmp     rax, rcx
    sbb     eax, eax
    or      eax, 1
    ret
    .size memcmp, . - memcmp
    .size bcmp, . - bcmp

    .globl strlen
    .type strlen, @function
    .balign 16
strlen:
    mov     rax, rdi
20: cmp     byte ptr [rax], 0
    je      21f
    inc     rax
    jmp     20b
21: sub     rax, rdi
    ret
    .size strlen, . - strlen

    # The precompiled core and alloc name these for unwinding, which never happens here: a panic ends the run.
    .globl rust_eh_personality
    .type rust_eh_personality, @function
    .globl _Unwind_Resume
    .type _Unwind_Resume, @function
rust_eh_personality:
_Unwind_Resume:
    ud2
    .size rust_eh_personality, . - rust_eh_personality
    .size _Unwind_Resume, . - _Unwind_Resume
    .popsection
    "#
);

crate::ktest! {
    fn moves_of_every_size_and_overlap_are_right() {
        // The same bytes moved one by one, beside `copy_within`, which is `memmove`.
        let fresh: [u8; 700] = core::array::from_fn(|n| (n * 7 + n / 256) as u8);
        for len in (0..200).chain([255, 256, 257, 300, 399]) {
            for (from, to) in [(100, 100), (100, 101), (101, 100), (100, 131), (140, 100), (0, 300), (300, 0), (8, 0)] {
                let mut moved = fresh;
                let mut slow = fresh;
                moved.copy_within(from..from + len, to);
                let (old, new) = (fresh.iter().skip(from), slow.iter_mut().skip(to));
                new.zip(old).take(core::hint::black_box(len)).for_each(|(new, old)| *new = *core::hint::black_box(old));
                crate::check!(moved == slow, "len {len} from {from} to {to}");
            }
        }
    }
}

crate::ktest! {
    fn fills_of_every_size_stay_inside() {
        for len in (0..300).chain([511, 512, 513]) {
            let mut bytes = [0x11_u8; 600];
            bytes[20..20 + core::hint::black_box(len)].fill(core::hint::black_box(0xa5));
            for (n, byte) in bytes.iter().enumerate() {
                let inside = (20..20 + len).contains(&n);
                crate::check!(*byte == if inside { 0xa5 } else { 0x11 }, "len {len}, byte {n} is {byte:#x}");
            }
        }
    }
}

crate::ktest! {
    fn comparisons_order_by_the_first_difference() {
        let low: [u8; 64] = core::array::from_fn(|n| n as u8);
        for at in 0..64 {
            let mut high = low;
            high[at] ^= 0x80;
            for from in [0, at.saturating_sub(9), at] {
                let (a, b) = core::hint::black_box((&low[from..], &high[from..]));
                crate::check_eq!(a.cmp(b), core::cmp::Ordering::Less, "difference at {at}, from {from}");
                crate::check!(a != b, "difference at {at}, from {from}");
            }
        }
        crate::check!(core::hint::black_box(&low[..]) == core::hint::black_box({ low }.as_slice()));
    }
}
