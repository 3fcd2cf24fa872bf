//! The switch from one thread's stack to another's.
//!
//! A thread that does not run is one number: the stack pointer under which its registers lie. The switch pushes what a
//! function must preserve, and the flags, and takes another thread's from the other stack. SSE and x87 registers need no
//! room: a thread that gives the CPU up by itself does so in a call, where they are free; one that is interrupted has them
//! in its trap frame.
//!
//! A parked stack pointer is taken out by the switch that goes there, so none is ever used twice, whatever the scheduler
//! does wrong.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use farpage_mm::OutOfMemory;
use x86_64::instructions::interrupts;

use super::stacks::{self, MAX_THREADS};

global_asm!(
    r#"
    .pushsection .text.switch, "ax", @progbits

    # (rdi = where the stack pointer is kept, rsi = the stack pointer to go on with)
    .globl switch_stacks
    .type switch_stacks, @function
switch_stacks:
    pushfq
    push    rbp
    push    rbx
    push    r12
    push    r13
    push    r14
    push    r15
    mov     [rdi], rsp
    mov     rsp, rsi
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbx
    pop     rbp
    popfq
    ret
    .size switch_stacks, . - switch_stacks

    # The first instructions of a thread. Two words of zero lie above: the end of the chain of frames.
    .globl switch_begin
    .type switch_begin, @function
switch_begin:
    xor     ebp, ebp
    call    {begin}
    ud2
    .size switch_begin, . - switch_begin
    .popsection
    "#,
    begin = sym begin,
);

unsafe extern "C" {
    fn switch_stacks(keep: *mut u64, to: u64);
    safe fn switch_begin();
}

/// Where each thread that does not run has its registers; 0 for one that runs, or that there is none of.
static PARKED: [AtomicU64; MAX_THREADS] = [const { AtomicU64::new(0) }; MAX_THREADS];
/// The threads whose stacks are in use.
static IN_USE: [AtomicBool; MAX_THREADS] = [const { AtomicBool::new(false) }; MAX_THREADS];

/// Flags of a new thread: interrupts off, as everywhere in the scheduler.
const NEW_FLAGS: u64 = 1 << 1;

extern "C" fn begin() -> ! {
    crate::task::begin()
}

/// Gives thread `number` a stack on which it will begin in [`crate::task::begin`].
///
/// # Errors
/// There is no memory for it.
///
/// # Panics
/// The thread has one already, or is the boot thread.
pub(crate) fn prepare(number: usize) -> Result<(), OutOfMemory> {
    static ONE_AT_A_TIME: crate::task::Mutex<()> = crate::task::Mutex::new(());
    assert!(
        number != 0 && !IN_USE[number].swap(true, Ordering::Relaxed),
        "thread {number} has a stack already"
    );
    {
        let _alone = ONE_AT_A_TIME.lock();
        stacks::provide(number).inspect_err(|_| IN_USE[number].store(false, Ordering::Relaxed))?;
    }
    let top = stacks::of_thread(number).end;
    // From the top: two words that end the chain of frames, where to begin, the flags, six registers.
    let frame = [0, 0, 0, 0, 0, 0, NEW_FLAGS, switch_begin as *const () as u64, 0, 0];
    let start = top - size_of_val(&frame) as u64;
    // SAFETY: the upper end of a mapped stack, aligned, that no thread uses: it was not in use until the swap above.
    unsafe { (start as *mut [u64; 10]).write(frame) };
    PARKED[number].store(start, Ordering::Relaxed);
    Ok(())
}

/// Takes the stack of thread `number` back, which has run to its end.
///
/// # Panics
/// The thread runs, or has no stack.
pub(crate) fn release(number: usize) {
    assert!(PARKED[number].swap(0, Ordering::Relaxed) != 0, "thread {number} is not parked");
    IN_USE[number].store(false, Ordering::Relaxed);
}

/// The running thread ends without anybody to wait for it: its stack may be used again once another one runs. With interrupts off
/// from here to the switch, so that nobody on this CPU can make a thread on it before; other CPUs there are none.
pub(crate) fn abandon(number: usize) {
    IN_USE[number].store(false, Ordering::Relaxed);
}

/// Parks the running thread `from` and goes on in `to`; comes back when somebody goes on in `from`. With interrupts off.
///
/// # Panics
/// `to` is not parked, or interrupts are on.
pub(crate) fn switch(from: usize, to: usize) {
    assert!(!interrupts::are_enabled(), "threads are switched with interrupts off");
    let there = PARKED[to].swap(0, Ordering::Relaxed);
    assert!(there != 0, "thread {to} is not parked");
    stacks::use_stack_of(to);
    // SAFETY: `there` was stored by `prepare` or by this function on the stack of `to`, with the registers of that thread
    // below it, and nobody else goes on from it, since it was taken out. The word of `from` lives for ever.
    unsafe { switch_stacks(PARKED[from].as_ptr(), there) };
}
