//! The jump: from the loader's tables to the kernel's.
//!
//! The instructions around the write to CR3 run from a page of their own that both sets of tables map at the same
//! address. The GDT lives in it too: the kernel runs on the loader's segments until it loads its own.

use core::arch::global_asm;

/// What the kernel starts with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Handoff {
    /// Physical address of the top table.
    pub(crate) root: u64,
    /// The kernel's first instruction.
    pub(crate) entry: u64,
    /// End of its stack.
    pub(crate) stack_top: u64,
    /// Its argument.
    pub(crate) boot_info: u64,
}

impl Handoff {
    /// Leaves the loader for good.
    pub(crate) fn jump(self) -> ! {
        // SAFETY: `plan::build` made these tables: they map the hand-off page to itself, the entry point as code, the
        // stack below `stack_top` and the boot info, all of it backed by memory of the kernel's own.
        unsafe { handoff_to_kernel(self.boot_info, self.root, self.stack_top, self.entry) }
    }
}

/// Physical (and virtual) address of the page that both sets of tables map.
pub(crate) fn page() -> u64 {
    handoff_to_kernel as *const () as u64 & !0xfff
}

unsafe extern "C" {
    /// Loads CR3 and the stack, and enters the kernel as if called.
    ///
    /// # Safety
    /// The tables at `root` map this page to itself, `entry` as code, and a stack below `stack_top`.
    unsafe fn handoff_to_kernel(boot_info: u64, root: u64, stack_top: u64, entry: u64) -> !;
}

global_asm!(
    r#"
    .section .handoff, "ax", @progbits
    .balign 4096
    .global handoff_to_kernel
    .type handoff_to_kernel, @function
handoff_to_kernel:
    mov cr3, rsi        // the kernel's tables, from here on
    mov rsp, rdx        // 16-byte aligned: it ends a page
    xor ebp, ebp        // backtraces end here
    push rbp            // no return address
    jmp rcx
    .size handoff_to_kernel, . - handoff_to_kernel

    // Flat segments. The accessed bits are set, so that the CPU never writes to this page.
    .balign 8
    .global handoff_gdt
handoff_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    // 0x08: 64-bit code
    .quad 0x00cf93000000ffff    // 0x10: data
    .global handoff_gdt_end
handoff_gdt_end:
    "#
);
