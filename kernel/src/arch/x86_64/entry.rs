//! The first instructions of the kernel, and the step onto its own stack.

use core::arch::{asm, global_asm};

use x86_64::PhysAddr;

// The ELF's entry point. The loader need not have turned SSE on, and compiled Rust uses it from its first line, so this
// comes before `_start`, which `bootloader_api::entry_point!` makes. RDI holds the boot information and stays.
global_asm!(
    r#"
    .pushsection .text.entry, "ax", @progbits
    .globl kernel_entry
    .type kernel_entry, @function
kernel_entry:
    cld
    mov     rax, cr0
    and     rax, ~(1 << 2)              # EM off: there is an FPU
    or      rax, 1 << 1                 # MP on
    mov     cr0, rax
    mov     rax, cr4
    or      rax, (1 << 9) | (1 << 10)   # OSFXSR, OSXMMEXCPT: SSE instructions and #XM
    mov     cr4, rax
    fninit
    push    0                           # no exceptions unmasked: the reset value of MXCSR
    mov     dword ptr [rsp], 0x1f80
    ldmxcsr [rsp]
    add     rsp, 8
    jmp     _start
    .size kernel_entry, . - kernel_entry
    .popsection
    "#
);

/// Loads `root` as page table and goes on in `next` on an empty stack that ends at `stack_top`.
///
/// # Safety
/// The tables under `root` map the kernel's image as it is linked, and the stack; nothing that `next` uses lies in a
/// mapping that only the old tables have.
pub(super) unsafe fn switch(root: PhysAddr, stack_top: u64, next: extern "C" fn() -> !) -> ! {
    // SAFETY: by the contract, this code and its data are mapped alike by both tables, and the old stack is not used
    // again. RBP is cleared to end the chain of frames; the call leaves RSP as a function expects it.
    unsafe {
        asm!(
            "mov cr3, {root}",
            "mov rsp, {stack}",
            "xor ebp, ebp",
            "call {next}",
            "ud2",
            root = in(reg) root.as_u64(),
            stack = in(reg) stack_top,
            next = in(reg) next,
            options(noreturn),
        )
    }
}

/// Stops this CPU for good.
pub(crate) fn halt() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

/// The frame pointer of the calling function, where its chain of frames begins.
#[inline(always)]
pub(crate) fn frame_pointer() -> u64 {
    let rbp: u64;
    // SAFETY: copies a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    rbp
}
