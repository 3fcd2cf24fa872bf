//! Ring 3: in, out, and what is kept of a program meanwhile.
//!
//! For the kernel a program is a function that is called: [`run`] takes a [`Context`], goes to ring 3 and comes back when the
//! program wants something or did something wrong. So a thread of a program is an ordinary kernel thread whose work is a loop
//! around `run`; to start, to clone, to signal and to end a program is to write to a `Context` or to leave the loop.
//!
//! ```text
//!   run ──► enter_user: kernel registers on the stack, GS:KERNEL_STACK_TOP = RSP, SYSRET or IRET
//!    ▲                                                  │
//!    │      syscall_entry: registers to the Context ◄───┤ SYSCALL
//!    └───── user_leave:   registers to the Context ◄────┘ a trap that the trap's handler does not make good
//! ```
//!
//! A page fault that the memory manager makes good, and an interrupt, go back to ring 3 by themselves ([`super::trap`]): they put
//! their frame below that stack pointer and never come to `run`.
//!
//! Of the extended state, x87 and SSE registers are in the `Context` whenever the program does not run: the kernel is compiled
//! with SSE. What else the program has (AVX and up) the kernel never touches; it is exchanged where threads are
//! ([`super::xstate`]), and so is the base of FS. SYSRET is used after SYSCALL only, and only to addresses below the non-canonical hole: with another RCX it would
//! fault in ring 0 on the program's stack (CVE-2012-0217).

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use x86_64::VirtAddr;
use x86_64::instructions::interrupts;
use x86_64::registers::model_specific::{Efer, EferFlags, LStar, Msr, SFMask};
use x86_64::registers::rflags::RFlags;

use super::stacks::MAX_THREADS;
use super::trap::TrapFrame;
use super::{percpu, stacks, xstate};

/// Selectors of ring 3, in the order that SYSRET takes them from STAR.
const USER_SS: u64 = 0x18 | 3;
const USER_CS: u64 = 0x20 | 3;
/// What STAR names: the kernel's code segment, and the one before the two of ring 3.
const STAR: u64 = (0x10 | 3) << 48 | 0x08 << 32;
const IA32_STAR: u32 = 0xc000_0081;
const IA32_FS_BASE: u32 = 0xc000_0100;

/// Flags that a program may have: CF PF AF ZF SF TF DF OF NT AC ID.
const USER_FLAGS: u64 = 0x24_4dd5;
/// IF, and the bit that is always set.
const FIXED_FLAGS: u64 = 1 << 9 | 1 << 1;

/// Bytes that FXSAVE writes of its 512.
const FX_SAVED: usize = 416;

/// The number in the `vector` of a frame that a SYSCALL left.
const SYSCALL: u64 = 256;

/// What a program has in its registers while it does not run.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// As FXSAVE stores it.
    fx: [u8; 512],
    /// General registers, RIP, RFLAGS, RSP.
    pub(crate) regs: TrapFrame,
    /// RCX and R11 must be put back, too: the program was interrupted, not in a call.
    whole: u64,
}

/// Why a program does not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// SYSCALL; its number is in RAX.
    Syscall,
    /// A page fault that the memory manager refuses, at this address.
    PageFault { addr: u64, error: u64 },
    /// Another exception.
    Exception { vector: u8, error: u64 },
    /// The kernel has something to tell this thread.
    Interrupted,
}

impl Context {
    /// A program at its first instruction.
    pub(crate) fn new(rip: u64, rsp: u64) -> Self {
        let mut fx = [0; 512];
        // FCW and MXCSR at their reset values (SDM vol. 1, 8.1.5 and 11.6.4).
        fx[0..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        fx[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        let regs = TrapFrame { rip, rsp, cs: USER_CS, ss: USER_SS, rflags: FIXED_FLAGS, ..TrapFrame::ZERO };
        Self { fx, regs, whole: 1 }
    }

    /// Next time, every register is what it says here: for those that were not left by a SYSCALL.
    pub(crate) fn set_whole(&mut self) {
        self.whole = 1;
    }

    /// Was it left by a SYSCALL, and is it to go on behind that?
    pub(crate) fn is_in_call(&self) -> bool {
        self.whole == 0
    }

    /// The FXSAVE area, for the frame of a signal.
    pub(crate) fn fx(&self) -> &[u8; 512] {
        &self.fx
    }

    /// Takes an FXSAVE area that a program has had in its hands.
    pub(crate) fn set_fx(&mut self, fx: &[u8; 512]) {
        self.fx = *fx;
        // A reserved bit of MXCSR would be #GP at FXRSTOR.
        let mxcsr = u32::from_le_bytes([fx[24], fx[25], fx[26], fx[27]]) & 0xffff;
        self.fx[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    }
}

// The stub's numbers.
const FX: usize = offset_of!(Context, fx);
const REGS: usize = offset_of!(Context, regs);
const WHOLE: usize = offset_of!(Context, whole);
const _: () = assert!(FX == 0 && REGS == 512 && WHOLE == 512 + 176);

global_asm!(
    r#"
    .pushsection .text.user, "ax", @progbits

    # With interrupts off. (rdi = context, rsi = where the thread keeps its stack pointer) -> rax = 256 for SYSCALL, else a code of `leave`
    .globl enter_user
    .type enter_user, @function
enter_user:
    push    rbp
    push    rbx
    push    r12
    push    r13
    push    r14
    push    r15
    push    rdi
    mov     [rsi], rsp
    mov     gs:[{top}], rsp
    fxrstor64 [rdi]
    mov     r15, [rdi + {regs} + 0]
    mov     r14, [rdi + {regs} + 8]
    mov     r13, [rdi + {regs} + 16]
    mov     r12, [rdi + {regs} + 24]
    mov     r10, [rdi + {regs} + 40]
    mov     r9,  [rdi + {regs} + 48]
    mov     r8,  [rdi + {regs} + 56]
    mov     rsi, [rdi + {regs} + 72]
    mov     rbp, [rdi + {regs} + 80]
    mov     rbx, [rdi + {regs} + 88]
    mov     rdx, [rdi + {regs} + 96]
    mov     rax, [rdi + {regs} + 112]
    cmp     byte ptr [rdi + {whole}], 0
    jne     20f
    mov     rcx, [rdi + {regs} + 136]
    mov     r11, [rdi + {regs} + 152]
    mov     rsp, [rdi + {regs} + 160]
    mov     rdi, [rdi + {regs} + 64]
    swapgs
    sysretq
20: push    qword ptr [rdi + {regs} + 168]
    push    qword ptr [rdi + {regs} + 160]
    push    qword ptr [rdi + {regs} + 152]
    push    qword ptr [rdi + {regs} + 144]
    push    qword ptr [rdi + {regs} + 136]
    mov     r11, [rdi + {regs} + 32]
    mov     rcx, [rdi + {regs} + 104]
    mov     rdi, [rdi + {regs} + 64]
    swapgs
    iretq
    .size enter_user, . - enter_user

    # SYSCALL: RCX is RIP, R11 is RFLAGS, the stack is the program's.
    .balign 64
    .globl syscall_entry
    .type syscall_entry, @function
syscall_entry:
    swapgs
    mov     gs:[{scratch}], rsp
    mov     rsp, gs:[{top}]
    push    rdi
    mov     rdi, [rsp + 8]
    mov     [rdi + {regs} + 0], r15
    mov     [rdi + {regs} + 8], r14
    mov     [rdi + {regs} + 16], r13
    mov     [rdi + {regs} + 24], r12
    mov     [rdi + {regs} + 32], r11
    mov     [rdi + {regs} + 40], r10
    mov     [rdi + {regs} + 48], r9
    mov     [rdi + {regs} + 56], r8
    mov     [rdi + {regs} + 72], rsi
    mov     [rdi + {regs} + 80], rbp
    mov     [rdi + {regs} + 88], rbx
    mov     [rdi + {regs} + 96], rdx
    mov     [rdi + {regs} + 104], rcx
    mov     [rdi + {regs} + 112], rax
    mov     [rdi + {regs} + 136], rcx
    mov     [rdi + {regs} + 152], r11
    pop     qword ptr [rdi + {regs} + 64]
    mov     rax, gs:[{scratch}]
    mov     [rdi + {regs} + 160], rax
    mov     byte ptr [rdi + {whole}], 0
    fxsave64 [rdi]
    fninit
    ldmxcsr [rip + {mxcsr}]
    mov     eax, 256
user_out:
    pop     rdi
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbx
    pop     rbp
    sti
    ret
    .size syscall_entry, . - syscall_entry

    # (rdi = why, rsi = the stack pointer that enter_user left): as if enter_user returned. Interrupts are off.
    .globl user_leave
    .type user_leave, @function
user_leave:
    mov     rsp, rsi
    mov     rax, rdi
    jmp     user_out
    .size user_leave, . - user_leave
    .popsection
    "#,
    top = const percpu::KERNEL_STACK_TOP,
    scratch = const percpu::SCRATCH,
    regs = const REGS,
    whole = const WHOLE,
    mxcsr = sym super::trap::MXCSR,
);

unsafe extern "C" {
    fn enter_user(context: *mut Context, keep: *mut u64) -> u64;
    fn user_leave(why: u64, stack: u64) -> !;
    safe fn syscall_entry();
}

/// Turns SYSCALL on.
pub(super) fn init() {
    // SAFETY: selectors of the table that `gdt::init` has loaded.
    unsafe { Msr::new(IA32_STAR).write(STAR) };
    LStar::write(VirtAddr::new(syscall_entry as *const () as u64));
    // Interrupts off until the stack is the kernel's; the direction and the alignment check as Rust expects them.
    SFMask::write(
        RFlags::INTERRUPT_FLAG
            | RFlags::DIRECTION_FLAG
            | RFlags::TRAP_FLAG
            | RFlags::ALIGNMENT_CHECK
            | RFlags::NESTED_TASK,
    );
    let efer = Efer::read() | EferFlags::SYSTEM_CALL_EXTENSIONS;
    // SAFETY: everything that SYSCALL uses is set up; long mode stays on.
    unsafe { Efer::write(efer) };
}

/// Lets the program run until it wants something. With interrupts on.
///
/// The address space of the program is loaded. A context whose RIP is no user address comes back as a page fault there.
pub(crate) fn run(context: &mut Context) -> Why {
    if context.regs.rip >= super::uaccess::USER_END {
        return Why::PageFault { addr: context.regs.rip, error: 1 << 2 | 1 << 4 };
    }
    if !context.is_in_call() {
        // What IRET loads; after a SYSCALL, SYSRET has its own segments, and flags that the program had before.
        let regs = &mut context.regs;
        (regs.cs, regs.ss) = (USER_CS, USER_SS);
        regs.rflags = regs.rflags & USER_FLAGS | FIXED_FLAGS;
    }
    let keep = stacks::kernel_top_of_current();
    interrupts::disable();
    // From here on a notice finds the thread in its program, or before this look.
    if percpu::has_notice() {
        interrupts::enable();
        return Why::Interrupted;
    }
    // SAFETY: the context is whole and ours alone until the call comes back; segments, flags and RIP are those of ring 3, so the
    // program can do what ring 3 can. The word is that of the running thread.
    let why = unsafe { enter_user(context, keep.as_ptr()) };
    keep.store(0, Relaxed);
    match why {
        SYSCALL => Why::Syscall,
        14 => Why::PageFault { addr: context.regs.vector, error: context.regs.error },
        257 => Why::Interrupted,
        vector => Why::Exception { vector: vector as u8, error: context.regs.error },
    }
}

/// Does the running thread run a program, by [`run`]?
pub(super) fn is_running() -> bool {
    stacks::kernel_top_of_current().load(Relaxed) != 0
}

/// From the handler of a trap that came from ring 3: ends the [`run`] of this thread.
///
/// # Panics
/// The trap did not come from ring 3.
pub(super) fn leave(frame: &TrapFrame, why: Why) -> ! {
    assert!(frame.is_from_user(), "only what interrupted a program can end its run");
    interrupts::disable();
    let stack = stacks::kernel_top_of_current().load(Relaxed);
    // SAFETY: `enter_user` has pushed the address of the context there.
    let context = unsafe { *(stack as *const *mut Context) };
    // SAFETY: it belongs to the `run` that is ended, which has lent it for as long.
    let context: &mut Context = unsafe { &mut *context };
    let fx = core::ptr::from_ref(frame) as u64 - 16 - 512;
    // SAFETY: the stub has stored the program's x87 and SSE registers in this distance below the frame.
    let saved = unsafe { &*(fx as *const [u8; FX_SAVED]) };
    // The rest of the area FXSAVE leaves as it was on this stack: it is not the program's to see.
    context.fx[..FX_SAVED].copy_from_slice(saved);
    context.regs = frame.clone();
    context.whole = 1;
    let code = match why {
        Why::Syscall => SYSCALL,
        Why::Interrupted => 257,
        Why::Exception { vector, error } => {
            context.regs.error = error;
            u64::from(vector)
        }
        Why::PageFault { addr, error } => {
            (context.regs.vector, context.regs.error) = (addr, error);
            14
        }
    };
    // SAFETY: everything of this thread above that stack pointer is as `enter_user` left it; what lies below, frames of handlers,
    // is dropped, and holds nothing that must be: a handler that comes here has no guard alive.
    unsafe { user_leave(code, stack) }
}

/// The base of FS of each thread's program; [`NO_PROGRAM`] where there is none.
static FS_BASE: [AtomicU64; MAX_THREADS] = [const { AtomicU64::new(NO_PROGRAM) }; MAX_THREADS];
const NO_PROGRAM: u64 = u64::MAX;

/// The base of FS of the running thread's program.
pub(crate) fn fs_base() -> u64 {
    match FS_BASE[percpu::current_thread()].load(Relaxed) {
        NO_PROGRAM => 0,
        base => base,
    }
}

/// Sets the base of FS of the running thread's program.
///
/// # Panics
/// It is no address of a program.
pub(crate) fn set_fs_base(base: u64) {
    assert!(base < super::uaccess::USER_END, "a program's FS base is an address of its own");
    interrupts::without_interrupts(|| {
        FS_BASE[percpu::current_thread()].store(base, Relaxed);
        load_fs(base);
    });
}

fn load_fs(base: u64) {
    // Always: a program changes the base too, by loading FS, and nobody hears of it.
    // SAFETY: `set_fs_base` has seen that the address is canonical; the kernel does not use FS.
    unsafe { Msr::new(IA32_FS_BASE).write(base) };
}

/// The running thread is to run a program, whose extended state is this.
pub(crate) fn attach(state: xstate::Area) {
    set_fs_base(0);
    xstate::attach(state);
}

/// The running thread runs a program no more.
pub(crate) fn detach() {
    interrupts::without_interrupts(|| FS_BASE[percpu::current_thread()].store(NO_PROGRAM, Relaxed));
    drop(xstate::detach());
}

/// Another thread runs from now on: what belongs to a program and is not in its context. With interrupts off.
pub(crate) fn exchange(from: usize, to: usize) {
    xstate::exchange(from, to);
    match FS_BASE[to].load(Relaxed) {
        NO_PROGRAM => {}
        base => load_fs(base),
    }
}
