//! The frame on the program's stack under which a handler runs, and the way back (`struct rt_sigframe`, `ucontext`, `sigcontext`).
//!
//! ```text
//!   lower   RSP ─►  return address (the restorer)
//!                   ucontext: flags, link, stack_t, registers, mask
//!                   siginfo
//!   higher          extended state in the form of XSAVE, 64-aligned, a magic number behind
//!                   128 bytes that a function may use below its stack pointer
//! ```

use alloc::vec;
use alloc::vec::Vec;

use super::{Action, Info, Set, flag};
use crate::arch::x86_64::uaccess::{copy_from_user, copy_to_user};
use crate::arch::x86_64::xstate;
use crate::linux::errno::{Errno, Interrupted};
use crate::linux::thread::Caller;

/// Bytes of the frame below the extended state: return address, ucontext, siginfo.
const FRAME: u64 = 8 + UCONTEXT as u64 + 128;
const UCONTEXT: usize = 40 + REGISTERS + 8;
/// `struct sigcontext`.
const REGISTERS: usize = 256;
/// Where parts lie in a ucontext.
const STACK_AT: usize = 16;
const REGISTERS_AT: usize = 40;
const FPSTATE_AT: usize = REGISTERS_AT + 184;
const MASK_AT: usize = REGISTERS_AT + REGISTERS;
/// `UC_FP_XSTATE`, `UC_SIGCONTEXT_SS`, `UC_STRICT_RESTORE_SS`.
const FLAGS: u64 = 7;
/// Where the FXSAVE area has room for software, and what stands there.
const SOFTWARE_AT: usize = 464;
const MAGIC_1: u32 = 0x4650_5853;
const MAGIC_2: u32 = 0x4650_5845;
/// `SS_ONSTACK`.
const ON_STACK: u32 = 1;

/// Has the program run the handler of `action` next.
///
/// # Errors
/// Its stack cannot be written, or it has not said how handlers return.
pub(super) fn push(caller: &mut Caller, info: &Info, action: &Action) -> Result<(), Errno> {
    if !action.has(flag::RESTORER) {
        return Err(Errno::EFAULT);
    }
    let signals = &caller.thread.signals;
    let altstack = *signals.altstack.lock();
    let old_sp = caller.context.regs.rsp;
    let on_alt = altstack.contains(old_sp);
    let mut sp = old_sp.wrapping_sub(128);
    if action.has(flag::ONSTACK) && altstack.is_on() && !on_alt {
        sp = altstack.start + altstack.len;
    }
    let state = extended(caller)?;
    let fpstate = sp.wrapping_sub(state.len() as u64) & !63;
    copy_to_user(fpstate, &state)?;
    let start = (fpstate.wrapping_sub(FRAME) & !15).wrapping_sub(8);
    if altstack.contains(sp) && start < altstack.start {
        return Err(Errno::EFAULT);
    }
    let mask = signals.take_saved_mask().unwrap_or(signals.mask());
    let mut frame = vec![0; FRAME as usize];
    let stack_flags = if on_alt { ON_STACK } else { altstack.flags };
    frame[..8].copy_from_slice(&action.restorer.to_le_bytes());
    let ucontext = &mut frame[8..8 + UCONTEXT];
    put(ucontext, 0, FLAGS);
    put(ucontext, STACK_AT, altstack.start);
    put(ucontext, STACK_AT + 8, u64::from(stack_flags));
    put(ucontext, STACK_AT + 16, altstack.len);
    put_registers(ucontext, caller);
    put(ucontext, FPSTATE_AT, fpstate);
    put(ucontext, MASK_AT, mask.0);
    frame[8 + UCONTEXT..].copy_from_slice(&info.bytes());
    copy_to_user(start, &frame)?;
    let mut blocked = signals.mask().0 | action.mask.0;
    if !action.has(flag::NODEFER) {
        blocked |= Set::of(info.signal).0;
    }
    signals.set_mask(Set(blocked));
    let regs = &mut caller.context.regs;
    regs.rip = action.handler;
    regs.rsp = start;
    regs.rdi = u64::from(info.signal);
    regs.rsi = start + 8 + UCONTEXT as u64;
    regs.rdx = start + 8;
    regs.rax = 0;
    // DF, TF and RF as a function expects them.
    regs.rflags &= !(1 << 10 | 1 << 8 | 1 << 16);
    caller.context.set_whole();
    Ok(())
}

/// The extended state as it goes into a frame.
fn extended(caller: &Caller) -> Result<Vec<u8>, Errno> {
    let mut state = xstate::snapshot(caller.context.fx())?;
    if state.is_empty() {
        return Ok(caller.context.fx().to_vec());
    }
    let size = state.len() as u32;
    state[SOFTWARE_AT..SOFTWARE_AT + 4].copy_from_slice(&MAGIC_1.to_le_bytes());
    state[SOFTWARE_AT + 4..SOFTWARE_AT + 8].copy_from_slice(&(size + 4).to_le_bytes());
    put(&mut state, SOFTWARE_AT + 8, xstate::components());
    state[SOFTWARE_AT + 16..SOFTWARE_AT + 20].copy_from_slice(&size.to_le_bytes());
    state.extend(MAGIC_2.to_le_bytes());
    Ok(state)
}

/// `rt_sigreturn`: the program goes on as the frame says that its stack pointer is behind the return address of.
///
/// # Errors
/// The frame cannot be read.
pub(in crate::linux) fn put_back(caller: &mut Caller) -> Result<(), Errno> {
    let mut ucontext = [0; UCONTEXT];
    copy_from_user(&mut ucontext, caller.context.regs.rsp)?;
    let fpstate = get(&ucontext, FPSTATE_AT);
    if fpstate != 0 {
        put_back_extended(caller, fpstate)?;
    }
    caller.thread.signals.set_mask(Set(get(&ucontext, MASK_AT)));
    let stack = super::AltStack {
        start: get(&ucontext, STACK_AT),
        len: get(&ucontext, STACK_AT + 16),
        flags: get(&ucontext, STACK_AT + 8) as u32 & !ON_STACK,
    };
    let sp = get(&ucontext, REGISTERS_AT + 15 * 8);
    let mut altstack = caller.thread.signals.altstack.lock();
    if !altstack.contains(sp) {
        *altstack = stack;
    }
    drop(altstack);
    get_registers(&ucontext, caller);
    caller.context.set_whole();
    Ok(())
}

fn put_back_extended(caller: &mut Caller, at: u64) -> Result<(), Errno> {
    let mut fx = [0; xstate::LEGACY];
    copy_from_user(&mut fx, at)?;
    let word = |at: usize| u32::from_le_bytes([fx[at], fx[at + 1], fx[at + 2], fx[at + 3]]);
    if word(SOFTWARE_AT) == MAGIC_1 && word(SOFTWARE_AT + 16) as usize == xstate::size() {
        let mut state = vec![0; xstate::size()];
        copy_from_user(&mut state, at)?;
        xstate::put(&state)?;
    }
    caller.context.set_fx(&fx);
    Ok(())
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// In the order of `struct sigcontext`.
fn put_registers(ucontext: &mut [u8], caller: &Caller) {
    let regs = &caller.context.regs;
    let trap = caller.thread.signals.trap();
    let selectors = regs.cs & 0xffff | (regs.ss & 0xffff) << 48;
    let words = [
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        regs.rdi,
        regs.rsi,
        regs.rbp,
        regs.rbx,
        regs.rdx,
        regs.rax,
        regs.rcx,
        regs.rsp,
        regs.rip,
        regs.rflags,
        selectors,
        trap.error,
        trap.vector,
        0,
        trap.addr,
    ];
    for (n, word) in words.into_iter().enumerate() {
        put(ucontext, REGISTERS_AT + n * 8, word);
    }
}

fn get_registers(ucontext: &[u8], caller: &mut Caller) {
    let mut words = (0..18).map(|n| get(ucontext, REGISTERS_AT + n * 8));
    let regs = &mut caller.context.regs;
    for register in [
        &mut regs.r8,
        &mut regs.r9,
        &mut regs.r10,
        &mut regs.r11,
        &mut regs.r12,
        &mut regs.r13,
        &mut regs.r14,
        &mut regs.r15,
        &mut regs.rdi,
        &mut regs.rsi,
        &mut regs.rbp,
        &mut regs.rbx,
        &mut regs.rdx,
        &mut regs.rax,
        &mut regs.rcx,
        &mut regs.rsp,
        &mut regs.rip,
        &mut regs.rflags,
    ] {
        *register = words.next().unwrap_or_default();
    }
}

/// A handler runs: the call that its signal has interrupted begins again after it, or fails.
pub(super) fn end_call(caller: &mut Caller, restart: bool) {
    match interrupted(caller) {
        Some(Interrupted::Restart) if restart => begin_again(caller),
        Some(_) => caller.context.regs.rax = Errno::EINTR.to_rax(),
        None => {}
    }
}

/// No handler runs: a call that was interrupted begins again.
pub(super) fn go_on(caller: &mut Caller) {
    if interrupted(caller).is_some() {
        begin_again(caller);
    }
}

fn interrupted(caller: &Caller) -> Option<Interrupted> {
    let in_call = caller.context.is_in_call();
    in_call.then(|| Interrupted::of_rax(caller.context.regs.rax)).flatten()
}

/// The program's next instruction is the SYSCALL again, with the number that it had.
fn begin_again(caller: &mut Caller) {
    const SYSCALL_LEN: u64 = 2;
    caller.context.regs.rip -= SYSCALL_LEN;
    caller.context.regs.rax = caller.number;
}
