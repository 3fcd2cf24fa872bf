//! In-kernel tests of the trap stub: a trap leaves no trace in the code it interrupts, however deep it comes and whatever
//! that code was doing.
//!
//! A trap is asked for by INT3, which goes through the common stub, or by a user-access routine on an address that
//! nobody maps, which goes through the stub of #PF.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use super::trap::{SMAP_ON, TrapFrame, on_breakpoint};
use super::uaccess::{UserFault, user_read_u64};
use super::{apic, fault, tsc};

/// A user address where nothing is ever mapped.
pub(super) const NOWHERE: u64 = 0x1000;

/// Spoils what compiled code may use: all XMM registers by arithmetic, and a good piece of the stack.
fn spoil(_frame: &mut TrapFrame) {
    let mut words = [0_u64; 64];
    for (n, word) in words.iter_mut().enumerate() {
        *word = core::hint::black_box(u64::MAX - n as u64);
    }
    core::hint::black_box(&words);
    // SAFETY: sets registers that are declared.
    unsafe {
        asm!(
            "pcmpeqd xmm0, xmm0", "movaps xmm1, xmm0", "movaps xmm2, xmm0", "movaps xmm3, xmm0", "movaps xmm4, xmm0",
            "movaps xmm5, xmm0", "movaps xmm6, xmm0", "movaps xmm7, xmm0", "movaps xmm8, xmm0", "movaps xmm9, xmm0",
            "movaps xmm10, xmm0", "movaps xmm11, xmm0", "movaps xmm12, xmm0", "movaps xmm13, xmm0",
            "movaps xmm14, xmm0", "movaps xmm15, xmm0",
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _,
            out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _,
            out("xmm13") _, out("xmm14") _, out("xmm15") _, options(nostack)
        );
    }
}

// Each routine fills 16 words of red zone and all XMM registers, traps, and counts the words that are not as they were.
global_asm!(
    r#"
    .macro TRAP_TEST_FILL
    mov     rax, 0x0123456789abcdef
    .set trap_test_n, 1
    .rept 16
    mov     [rsp - 8 * trap_test_n], rax
    .set trap_test_n, trap_test_n + 1
    .endr
    movq    xmm0, rax
    punpcklqdq xmm0, xmm0
    .irp n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movaps  xmm\n, xmm0
    .endr
    .endm

    .macro TRAP_TEST_COUNT
    mov     rcx, 0x0123456789abcdef
    xor     eax, eax
    .set trap_test_n, 1
    .rept 16
    xor     edx, edx
    cmp     [rsp - 8 * trap_test_n], rcx
    setne   dl
    add     eax, edx
    .set trap_test_n, trap_test_n + 1
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    xor     edx, edx
    movq    rsi, xmm\n
    cmp     rsi, rcx
    setne   dl
    add     eax, edx
    .endr
    ret
    .endm

    .pushsection .text.uaccess, "ax", @progbits
    .globl trap_test_breakpoint
trap_test_breakpoint:
    TRAP_TEST_FILL
    int3
    TRAP_TEST_COUNT

    .globl trap_test_page_fault
trap_test_page_fault:
    TRAP_TEST_FILL
20: mov     rax, [rdi]
21: TRAP_TEST_COUNT

    .pushsection .ex_table, "a", @progbits
    .quad   20b, 21b, 21b
    .popsection
    .popsection
    "#
);

unsafe extern "C" {
    safe fn trap_test_breakpoint() -> u64;
    /// Reads `address`, which faults; the handler goes on behind the read.
    safe fn trap_test_page_fault(address: u64) -> u64;
}

crate::ktest! {
    fn a_breakpoint_spoils_neither_red_zone_nor_xmm() {
        on_breakpoint(Some(spoil));
        let spoilt = trap_test_breakpoint();
        on_breakpoint(None);
        crate::check_eq!(spoilt, 0, "of 32 words");
    }
}

crate::ktest! {
    fn a_page_fault_spoils_neither_red_zone_nor_xmm() {
        let before = fault::page_faults();
        crate::check_eq!(trap_test_page_fault(NOWHERE), 0, "of 32 words");
        crate::check_eq!(fault::page_faults() - before, 1);
    }
}

crate::ktest! {
    fn the_timer_spoils_no_computation() {
        // A sum of floating-point numbers is exact to the last bit, or something was spoilt.
        let sum = || (1..2000_u32).map(|n| 1.0 / f64::from(core::hint::black_box(n))).sum::<f64>();
        let alone = sum();
        let (mut wrong, mut rounds) = (0, 0);
        let came = apic::with_timer((apic::rates().apic_hz / 20_000) as u32, || {
            let goal = apic::ticks() + 50;
            while apic::ticks() < goal && rounds < 100_000 {
                wrong += u32::from(sum().to_bits() != alone.to_bits());
                wrong += u32::from(trap_test_page_fault(NOWHERE) != 0);
                rounds += 1;
            }
        });
        crate::check!(came >= 50, "{came} ticks in {rounds} rounds");
        crate::check_eq!(wrong, 0, "of {rounds} rounds");
    }
}

static DEPTH: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
const DEEP: u64 = 200;

/// Goes one deeper, with data of its own to look after, and takes a page fault on the way back.
fn deeper(_frame: &mut TrapFrame) {
    let depth = DEPTH.fetch_add(1, Ordering::Relaxed);
    let mut mine = [depth; 16];
    core::hint::black_box(&mut mine);
    let mut wrong = 0;
    if depth < DEEP {
        wrong += trap_test_breakpoint();
    }
    wrong += trap_test_page_fault(NOWHERE);
    wrong += u64::from(core::hint::black_box(&mine).iter().any(|word| *word != depth));
    WRONG.fetch_add(wrong, Ordering::Relaxed);
}

crate::ktest! {
    fn two_hundred_traps_nest() {
        DEPTH.store(0, Ordering::Relaxed);
        WRONG.store(0, Ordering::Relaxed);
        on_breakpoint(Some(deeper));
        let spoilt = trap_test_breakpoint();
        on_breakpoint(None);
        crate::check_eq!((spoilt, WRONG.load(Ordering::Relaxed)), (0, 0));
        crate::check_eq!(DEPTH.load(Ordering::Relaxed), DEEP + 1);
    }
}

fn divides(frame: &mut TrapFrame) {
    let result = core::hint::black_box(1.0_f64) / core::hint::black_box(0.0);
    let masked: u32;
    // SAFETY: stores MXCSR in a word of the stack.
    unsafe {
        asm!("sub rsp, 16", "stmxcsr [rsp]", "mov {:e}, [rsp]", "add rsp, 16", out(reg) masked);
    }
    let flags: u64;
    // SAFETY: reads the flags.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    let default = result.is_infinite() && masked & 0x1f80 == 0x1f80 && flags & (1 << 10) == 0;
    let seen = frame.rflags & (1 << 10) != 0;
    WRONG.store(u64::from(!default) + 2 * u64::from(!seen), Ordering::Relaxed);
}

crate::ktest! {
    fn a_handler_runs_with_default_mxcsr_and_direction_flag() {
        // Divide-by-zero unmasked, DF set: both are the interrupted code's, and must be hidden and given back.
        on_breakpoint(Some(divides));
        let (mxcsr, flags): (u32, u64);
        // SAFETY: changes MXCSR and DF and puts both back to what Rust expects.
        unsafe {
            asm!(
                "sub rsp, 16", "mov dword ptr [rsp], 0x1d80", "ldmxcsr [rsp]", "std",
                "int3",
                "pushfq", "pop {flags}", "cld", "stmxcsr [rsp]", "mov {mxcsr:e}, [rsp]",
                "mov dword ptr [rsp], 0x1f80", "ldmxcsr [rsp]", "add rsp, 16",
                flags = out(reg) flags, mxcsr = out(reg) mxcsr
            );
        }
        on_breakpoint(None);
        crate::check_eq!(WRONG.load(Ordering::Relaxed), 0);
        crate::check_eq!((mxcsr, flags & (1 << 10)), (0x1d80, 1 << 10));
    }
}

crate::ktest! {
    fn a_trap_takes_about_seventy_instructions() {
        if !crate::boot().command.icount {
            crate::skip!("counts instructions only with icount=1");
        }
        on_breakpoint(Some(|_| {}));
        let begun = tsc::now();
        // SAFETY: a breakpoint whose action does nothing.
        unsafe { asm!("int3") };
        let took = tsc::now() - begun;
        on_breakpoint(None);
        // With the dispatch, the lock around the action and the two reads of the counter.
        crate::check!(took <= 130, "{took} instructions");
        let begun = tsc::now();
        let answer = user_read_u64(NOWHERE);
        let took = tsc::now() - begun;
        crate::println!("a refused page fault takes {took} instructions");
        crate::check_eq!(answer, Err(UserFault { addr: NOWHERE }));
    }
}

crate::ktest! {
    destructive(expect = "double-fault")
    fn a_fault_that_cannot_be_delivered_is_a_double_fault() {
        let mut pointer = x86_64::instructions::tables::sidt();
        pointer.limit = 14 * 16 - 1;
        // SAFETY: a shorter table: exceptions up to 13 keep their gates, and what follows ends the run.
        unsafe { x86_64::instructions::tables::lidt(&pointer) };
        touch(0xffff_f000_0000_0000);
    }
}

crate::ktest! {
    destructive(expect = "stack-overflow")
    fn a_stack_overflow_says_so() {
        crate::fail!("{} calls returned", recurse(1));
    }
}

crate::ktest! {
    destructive(expect = "stack-overflow")
    fn traps_that_nest_for_ever_are_a_stack_overflow() {
        on_breakpoint(Some(|_| {
            trap_test_breakpoint();
        }));
        trap_test_breakpoint();
    }
}

crate::ktest! {
    destructive(expect = "page-fault")
    fn a_write_to_kernel_code_is_fatal() {
        let code = super::image::text().start as *mut u8;
        // SAFETY: none: this is the mistake that the mapping must catch.
        unsafe { code.write_volatile(0xcc) };
    }
}

crate::ktest! {
    destructive(expect = "page-fault")
    fn a_write_to_constants_is_fatal() {
        let constant = super::image::rodata().start as *mut u8;
        // SAFETY: none: this is the mistake that the mapping must catch.
        unsafe { constant.write_volatile(0xcc) };
    }
}

crate::ktest! {
    destructive(expect = "page-fault")
    fn execution_of_data_is_fatal() {
        static CODE: [AtomicU64; 1] = [AtomicU64::new(0xc3)];
        // SAFETY: none: this is the mistake that NX must catch.
        let data: extern "C" fn() = unsafe { core::mem::transmute(CODE.as_ptr()) };
        CODE[0].store(core::hint::black_box(0xc3), Ordering::Relaxed);
        data();
    }
}

crate::ktest! {
    destructive(expect = "page-fault")
    fn an_access_to_nothing_is_fatal() {
        touch(0xffff_f000_0000_0008);
    }
}

crate::ktest! {
    destructive(expect = "general-protection")
    fn a_non_canonical_access_is_fatal() {
        touch(0xdead_0000_0000_0008);
    }
}

crate::ktest! {
    destructive(expect = "page-fault")
    fn a_user_address_outside_the_routines_is_fatal() {
        touch(NOWHERE);
    }
}

crate::ktest! {
    destructive(expect = "page-fault")
    fn a_guard_page_is_fatal() {
        if let Some(guard) = super::stacks::guards().last() {
            touch(guard.start + 8);
        }
    }
}

crate::ktest! {
    destructive(expect = "panic")
    fn a_panic_ends_the_run() {
        panic!("on purpose: {} is {}", "SMAP", SMAP_ON.load(Ordering::Relaxed));
    }
}

crate::ktest! {
    destructive(expect = "panic")
    fn a_fault_that_stays_spurious_is_a_bug() {
        let regs = fault::FaultRegs { addr: NOWHERE, error_code: 4, rip: 0 };
        for _ in 0..100 {
            super::percpu::count_page_fault();
            fault::spurious(&regs);
        }
    }
}

crate::ktest! {
    fn spurious_faults_now_and_then_are_no_bug() {
        for n in 0..100 {
            super::percpu::count_page_fault();
            fault::spurious(&fault::FaultRegs { addr: NOWHERE, error_code: 4, rip: n / 7 });
            // Another fault in between breaks the run.
            if n % 5 == 0 {
                super::percpu::count_page_fault();
            }
        }
    }
}

/// Reads a word without any care.
fn touch(address: u64) {
    // SAFETY: none: the callers are about what happens then.
    core::hint::black_box(unsafe { (address as *const u64).read_volatile() });
}

/// Uses the stack up.
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let here = core::hint::black_box([depth; 32]);
    if core::hint::black_box(depth) == 0 { 0 } else { recurse(depth + 1) + here[7] }
}
