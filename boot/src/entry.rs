//! From PVH's entry state to Rust: 32-bit protected mode without paging, to long mode with SSE.
//!
//! PVH promises: flat segments, paging and interrupts off, EBX the physical address of the start info. Nothing else,
//! so the stack, the descriptor table and the page tables are all made here. The tables map the first 4 GiB to
//! themselves by 2 MiB pages; they are the loader's alone.

use core::arch::{global_asm, x86_64::__cpuid};
use core::ops::Range;
use farpage_boot::paging::Features;

/// The memory that the loader itself takes.
pub(crate) fn image() -> Range<u64> {
    unsafe extern "C" {
        static __image_start: u8;
        static __image_end: u8;
    }
    (&raw const __image_start).addr() as u64..(&raw const __image_end).addr() as u64
}

/// What the CPU's paging can do, and what the entry code has turned on.
pub(crate) fn features() -> Features {
    const NX: u32 = 1 << 20;
    const PAGE_1G: u32 = 1 << 26;
    let edx = __cpuid(0x8000_0001).edx;
    Features { no_execute: edx & NX != 0, gib_pages: edx & PAGE_1G != 0 }
}

// QEMU looks for this note: type 18, XEN_ELFNOTE_PHYS32_ENTRY, the physical address of the entry point.
global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .balign 4
    .long 4
    .long 8
    .long 18
    .asciz "Xen"
    .quad pvh_entry
    "#
);

global_asm!(
    r#"
    .section .text.entry, "ax", @progbits
    .code32
    .global pvh_entry
    .type pvh_entry, @function
pvh_entry:
    cli
    cld
    mov esi, ebx                    // the start info, for loader_main

    // Zero .bss: tables and stack are in it.
    mov edi, offset __bss_start
    mov ecx, offset __bss_end
    sub ecx, edi
    shr ecx, 2
    xor eax, eax
    rep stosd
    mov esp, offset entry_stack_end

    // Long mode, or one sentence. NX (EDX bit 20) is optional.
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb entry_no_long_mode
    mov eax, 0x80000001
    cpuid
    bt edx, 29
    jnc entry_no_long_mode
    mov ebp, edx

    // Level 4 -> level 3 -> four tables of level 2 -> 2,048 pages of 2 MiB.
    mov eax, offset entry_pdpt
    or eax, 3
    mov [entry_pml4], eax
    mov eax, offset entry_pd
    or eax, 3
    mov edi, offset entry_pdpt
    mov ecx, 4
2:  mov [edi], eax
    add eax, 4096
    add edi, 8
    loop 2b
    mov eax, 0x83                   // present, writable, page
    mov edi, offset entry_pd
    mov ecx, 2048
3:  mov [edi], eax
    add eax, 0x200000
    add edi, 8
    loop 3b

    mov eax, cr4
    or eax, 0x620                   // PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset entry_pml4
    mov cr3, eax
    mov ecx, 0xc0000080             // EFER
    rdmsr
    or eax, 0x100                   // LME
    bt ebp, 20
    jnc 4f
    or eax, 0x800                   // NXE
4:  wrmsr
    mov eax, cr0
    and eax, 0x9ffffff3             // clear CD, NW, EM, TS
    or eax, 0x80010002              // set PG, WP, MP
    mov cr0, eax

    // A far return is the jump to 64-bit code.
    lgdt [entry_gdt_pointer]
    push 0x08
    mov eax, offset entry_64
    push eax
    retf

entry_no_long_mode:
    mov esi, offset entry_no_long_mode_text
5:  mov dx, 0x3fd                   // COM1 line status
6:  in al, dx
    test al, 0x20
    jz 6b
    lodsb
    test al, al
    jz 7f
    mov dx, 0x3f8
    out dx, al
    jmp 5b
7:  mov al, 0x12
    out 0xf4, al
8:  hlt
    jmp 8b

    .code64
entry_64:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    lldt ax
    mov edi, esi
    lea rsp, [rip + entry_stack_end]
    xor ebp, ebp
    call {loader_main}
    ud2
    .size pvh_entry, . - pvh_entry

    .section .rodata.entry, "a", @progbits
entry_no_long_mode_text:
    .asciz "farpage-boot: this CPU has no long mode; a 64-bit x86 CPU is needed\r\n"
    .balign 4
entry_gdt_pointer:
    .word handoff_gdt_end - handoff_gdt - 1
    .long handoff_gdt

    .section .bss.entry, "aw", @nobits
    .balign 4096
entry_pml4:
    .skip 4096
entry_pdpt:
    .skip 4096
entry_pd:
    .skip 4 * 4096
    .skip 64 * 1024
entry_stack_end:
    "#,
    loader_main = sym crate::loader_main,
);
