//! Entry code for all 256 vectors.
//!
//! The precompiled `core` keeps data in the red zone (128 bytes below RSP) and in SSE registers, so a trap may neither
//! push where the interrupted code stands nor touch an XMM register unsaved. Every vector therefore enters on an
//! interrupt stack; the stub builds the [`TrapFrame`] 128 bytes below the *interrupted* stack pointer, goes there, and
//! saves everything. The interrupt stack is free again before any handler runs, so traps nest as deep as the thread's
//! stack allows. docs/decisions/0003-traps.md has the alternatives.
//!
//! Three kinds of entry:
//!
//! * **page fault**, the hot path: a stub of its own, 74 instructions both ways, straight to
//!   [`fault::page_fault`], with interrupts on again if they were;
//! * **common**: any other vector, with its number, to [`dispatch`];
//! * **paranoid**: #DB, #NMI, #DF, #MC come at any instruction, even between `swapgs` and `iretq` or in the stub itself.
//!   They stay on stacks of their own and find out from the GS base itself whether it is the kernel's.
//!
//! A frame that would not fit the thread's stack stays on the interrupt stack and is reported: a stack overflow, or a
//! trap on a stack that is not the thread's.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use spin::Mutex;

use super::user::{self, Why};
use super::{apic, fault, percpu, pmc, serial};
use crate::report::{self, Kind};

/// The state of the interrupted code, as the stub stores it. Changing it changes what the code finds on return.
#[repr(C)]
#[derive(Clone, Debug)]
pub(crate) struct TrapFrame {
    pub(crate) r15: u64,
    pub(crate) r14: u64,
    pub(crate) r13: u64,
    pub(crate) r12: u64,
    pub(crate) r11: u64,
    pub(crate) r10: u64,
    pub(crate) r9: u64,
    pub(crate) r8: u64,
    pub(crate) rdi: u64,
    pub(crate) rsi: u64,
    pub(crate) rbp: u64,
    pub(crate) rbx: u64,
    pub(crate) rdx: u64,
    pub(crate) rcx: u64,
    pub(crate) rax: u64,
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

// The stub's numbers.
const _: () = assert!(size_of::<TrapFrame>() == 176 && core::mem::offset_of!(TrapFrame, rip) == 136);

impl TrapFrame {
    /// Nothing in any register.
    pub(super) const ZERO: Self = Self {
        r15: 0,
        r14: 0,
        r13: 0,
        r12: 0,
        r11: 0,
        r10: 0,
        r9: 0,
        r8: 0,
        rdi: 0,
        rsi: 0,
        rbp: 0,
        rbx: 0,
        rdx: 0,
        rcx: 0,
        rax: 0,
        vector: 0,
        error: 0,
        rip: 0,
        cs: 0,
        rflags: 0,
        rsp: 0,
        ss: 0,
    };

    /// Did the trap come from ring 3?
    pub(crate) fn is_from_user(&self) -> bool {
        self.cs & 3 == 3
    }
}

/// Is SMAP on? Read by the stub and by the user-access routines, for which STAC and CLAC are undefined without it.
pub(super) static SMAP_ON: AtomicU8 = AtomicU8::new(0);

// MXCSR while the kernel runs: all exceptions masked. A program may have unmasked some, which must not hit `core`.
pub(super) static MXCSR: u32 = 0x1f80;

/// Vectors that interrupts use. Exceptions have 0 to 31; the 8259s, masked, 32 to 47.
pub(crate) mod vector {
    /// Where the 8259s are moved, away from the exceptions.
    pub(crate) const PIC: u8 = 32;
    /// COM1, on the fifth line of the first 8259.
    pub(crate) const COM1: u8 = PIC + 4;
    /// The APIC timer.
    pub(crate) const TIMER: u8 = 64;
    /// The APIC's spurious interrupt.
    pub(crate) const SPURIOUS: u8 = 255;
}

global_asm!(
    r#"
    .pushsection .text.trap, "ax", @progbits

    # The rest of the general registers, below RAX and RCX, in the order of TrapFrame.
    .macro TRAP_PUSH_REST
    push    rdx
    push    rbx
    push    rbp
    push    rsi
    push    rdi
    push    r8
    push    r9
    push    r10
    push    r11
    push    r12
    push    r13
    push    r14
    push    r15
    .endm

    # From the whole frame at RSP to a state in which Rust may run.
    .macro TRAP_TO_RUST
    push    qword ptr [rsp + 136]       # RIP and RBP in the shape of a call frame:
    push    rbp                         # a backtrace goes on through the trap
    mov     rbp, rsp
    sub     rsp, 512
    fxsave64 [rsp]
    fninit                              # default FCW, empty x87 stack
    ldmxcsr [rip + {mxcsr}]
    cld
    cmp     byte ptr [rip + {smap}], 0
    je      701f
    clac                                # nothing here may reach user memory by accident
701:
    lea     rdi, [rbp + 16]             # the frame
    .endm

    .macro TRAP_POP_ALL
    fxrstor64 [rsp]
    lea     rsp, [rbp + 16]             # handlers preserve RBP
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     r11
    pop     r10
    pop     r9
    pop     r8
    pop     rdi
    pop     rsi
    pop     rbp
    pop     rbx
    pop     rdx
    pop     rcx
    pop     rax
    add     rsp, 16                     # vector and error code
    .endm

    # Entry with the vector and the error code pushed. Leaves a whole frame on the interrupted stack, or on the thread's
    # kernel stack if the trap came from ring 3.
    .macro TRAP_MOVE_FRAME
    push    rax
    push    rcx                         # 0 rcx, 8 rax, 16 vector, 24 error, 32 rip, 40 cs, 48 rflags, 56 rsp, 64 ss
    test    byte ptr [rsp + 40], 3
    jnz     711f
    mov     rax, [rsp + 56]
    add     rax, -128                   # over the red zone
    and     rax, -16
    mov     rcx, rax
    sub     rcx, gs:[{floor}]
    cmp     rcx, gs:[{room}]
    ja      trap_off_stack
712:
    mov     rcx, rsp
    mov     rsp, rax
    push    qword ptr [rcx + 64]
    push    qword ptr [rcx + 56]
    push    qword ptr [rcx + 48]
    push    qword ptr [rcx + 40]
    push    qword ptr [rcx + 32]
    push    qword ptr [rcx + 24]
    push    qword ptr [rcx + 16]
    push    qword ptr [rcx + 8]
    push    qword ptr [rcx]
    .pushsection .text.trap.user, "ax", @progbits
711:
    swapgs
    mov     rax, gs:[{top}]
    jmp     712b
    .popsection
    .endm

    .balign 64
    .globl trap_page_fault
    .type trap_page_fault, @function
trap_page_fault:
    push    14
    TRAP_MOVE_FRAME
    TRAP_PUSH_REST
    TRAP_TO_RUST
    mov     rsi, cr2                    # before anything that may fault
    test    byte ptr [rdi + 153], 2     # IF of the interrupted code
    jz      20f
    sti
20: call    qword ptr [rip + {page_fault}]
    jmp     trap_return
    .size trap_page_fault, . - trap_page_fault

    .balign 64
    .globl trap_common
    .type trap_common, @function
trap_common:
    TRAP_MOVE_FRAME
    TRAP_PUSH_REST
    TRAP_TO_RUST
    call    {dispatch}
trap_return:
    test    byte ptr [rbp + 160], 3     # CS of the frame
    jnz     20f
    TRAP_POP_ALL
    iretq
20: cli                                 # no interrupt between the two GS bases
    TRAP_POP_ALL
    swapgs
    iretq
    .size trap_common, . - trap_common

    # The frame does not fit the thread's stack. It stays where it is; nothing comes back from here.
    .type trap_off_stack, @function
trap_off_stack:
    TRAP_PUSH_REST
    TRAP_TO_RUST
    mov     rsi, cr2
    call    {off_stack}
    ud2
    .size trap_off_stack, . - trap_off_stack

    # A trap at any instruction, on a stack of its own, with the vector and the error code pushed.
    .type trap_paranoid, @function
trap_paranoid:
    push    rax
    push    rcx
    TRAP_PUSH_REST
    TRAP_TO_RUST
    xor     ebx, ebx
    mov     ecx, 0xc0000101             # GS base: the kernel's is in the upper half
    rdmsr
    test    edx, edx
    js      20f
    swapgs
    inc     ebx
20: mov     rsi, cr2
    mov     r12, rsi                    # whatever happens in between, the interrupted #PF finds its address
    call    {paranoid}
    mov     cr2, r12
    test    ebx, ebx
    jz      21f
    swapgs
21: TRAP_POP_ALL
    iretq
    .size trap_paranoid, . - trap_paranoid

    .globl trap_debug
    .type trap_debug, @function
trap_debug:
    push    0
    push    1
    jmp     trap_paranoid
    .globl trap_nmi
    .type trap_nmi, @function
trap_nmi:
    push    0
    push    2
    jmp     trap_paranoid
    .globl trap_double_fault
    .type trap_double_fault, @function
trap_double_fault:
    push    8                           # the CPU pushed an error code
    jmp     trap_paranoid
    .globl trap_machine_check
    .type trap_machine_check, @function
trap_machine_check:
    push    0
    push    18
    jmp     trap_paranoid
    .popsection
    "#,
    mxcsr = sym MXCSR,
    smap = sym SMAP_ON,
    floor = const percpu::STACK_FLOOR,
    room = const percpu::STACK_ROOM,
    top = const percpu::KERNEL_STACK_TOP,
    page_fault = sym fault::PAGE_FAULT,
    dispatch = sym dispatch,
    off_stack = sym off_stack,
    paranoid = sym paranoid,
);

// In the other syntax, where `$` makes a symbol a number.
global_asm!(
    r#"
    .pushsection .text.trap, "ax", @progbits
    # One entry of 16 bytes for each vector: the vector, and an error code where the CPU pushes none.
    .balign 16
    .globl trap_vectors
    .type trap_vectors, @function
trap_vectors:
    .set trap_n, 0
    .rept 256
    .balign 16
    .if (trap_n == 8) || ((trap_n >= 10) && (trap_n <= 14)) || (trap_n == 17) || (trap_n == 21) || (trap_n == 29) || (trap_n == 30)
    .else
    pushq   $0
    .endif
    .byte   0x68                        # push imm32, whatever the number
    .long   trap_n
    jmp     trap_common
    .set trap_n, trap_n + 1
    .endr
    .size trap_vectors, . - trap_vectors
    .popsection
    "#,
    options(att_syntax),
);

unsafe extern "C" {
    safe fn trap_page_fault();
    safe fn trap_debug();
    safe fn trap_nmi();
    safe fn trap_double_fault();
    safe fn trap_machine_check();
    safe fn trap_vectors();
}

/// The address of the entry code of a vector.
pub(super) fn entry(vector: u8) -> u64 {
    let code = match vector {
        1 => trap_debug,
        2 => trap_nmi,
        8 => trap_double_fault,
        14 => trap_page_fault,
        18 => trap_machine_check,
        _ => return trap_vectors as *const () as u64 + u64::from(vector) * 16,
    };
    code as *const () as u64
}

/// Interrupts that nothing has asked for.
static UNEXPECTED: AtomicU64 = AtomicU64::new(0);

/// How many interrupts came that nothing had asked for.
pub(crate) fn unexpected_interrupts() -> u64 {
    UNEXPECTED.load(Ordering::Relaxed)
}

/// Any vector but #PF and the paranoid ones. Interrupts are off.
extern "C" fn dispatch(frame: &mut TrapFrame) {
    match frame.vector as u8 {
        vector::TIMER => {
            apic::timer_interrupt();
            // A RIP outside the user half, which some CPUs let an interrupt find, must not go to IRET.
            let astray = frame.rip >= super::uaccess::USER_END;
            if frame.is_from_user() && user::is_running() && (astray || crate::task::has_notice()) {
                user::leave(frame, Why::Interrupted);
            }
        }
        vector::COM1 => {
            serial::interrupted();
            apic::end_of_8259_interrupt();
        }
        exception @ 0..32 if frame.is_from_user() && user::is_running() => {
            user::leave(frame, Why::Exception { vector: exception, error: frame.error })
        }
        3 => breakpoint(frame),
        vector::SPURIOUS => {}
        vector @ (6 | 13) => match pmc::landing(frame) {
            Some(landing) => frame.rip = landing,
            None => report::fatal(Kind::of_vector(vector), frame, None),
        },
        exception @ 0..32 => report::fatal(Kind::of_vector(exception), frame, None),
        unexpected => {
            UNEXPECTED.fetch_add(1, Ordering::Relaxed);
            if unexpected >= vector::PIC + 16 {
                apic::end_of_interrupt();
            }
        }
    }
}

/// What a breakpoint does. In the kernel only tests set one: it is the cheapest trap that code can ask for.
static ON_BREAKPOINT: Mutex<Option<fn(&mut TrapFrame)>> = Mutex::new(None);

/// Says what the next breakpoints do.
pub(super) fn on_breakpoint(action: Option<fn(&mut TrapFrame)>) {
    *ON_BREAKPOINT.lock() = action;
}

fn breakpoint(frame: &mut TrapFrame) {
    let action = *ON_BREAKPOINT.lock();
    match action {
        Some(action) => action(frame),
        None => report::fatal(Kind::Exception(3), frame, None),
    }
}

/// A trap whose frame did not fit the thread's stack.
extern "C" fn off_stack(frame: &mut TrapFrame, cr2: u64) -> ! {
    let address = (frame.vector == 14).then_some(cr2);
    let overflow = super::stacks::is_overflow(frame.rsp) || address.is_some_and(super::stacks::is_overflow);
    let kind = if overflow { Kind::StackOverflow } else { Kind::of_vector(frame.vector as u8) };
    report::fatal(kind, frame, address)
}

/// #DB, #NMI, #DF, #MC.
extern "C" fn paranoid(frame: &mut TrapFrame, cr2: u64) {
    match frame.vector {
        // A program steps through itself, by the flag TF. Its frame is complete, and the GS base is the kernel's by now.
        1 if frame.is_from_user() && user::is_running() => {
            user::leave(frame, Why::Exception { vector: 1, error: 0 })
        }
        // Neither is used: a debugger outside has its own breakpoints, and no NMI source is set up.
        1 | 2 => {
            UNEXPECTED.fetch_add(1, Ordering::Relaxed);
        }
        8 if super::stacks::is_overflow(frame.rsp) => report::fatal(Kind::StackOverflow, frame, Some(cr2)),
        8 => report::fatal(Kind::DoubleFault, frame, Some(cr2)),
        vector => report::fatal(Kind::of_vector(vector as u8), frame, None),
    }
}
