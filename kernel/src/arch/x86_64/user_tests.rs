//! In-kernel tests of the way to ring 3 and back: a few bytes of code in an address space of their own.

use alloc::boxed::Box;

use farpage_mm::{HugeAdvice, PAGE_SIZE, Prot, VaRange};

use super::uaccess::copy_to_user;
use super::user::{self, Context, Why};
use super::xstate;
use crate::task;
use crate::testing::Outcome;
use crate::vm::{activate, new_space};

/// Where the code is, and behind it its data.
const CODE: u64 = 0x40_0000;
const DATA: u64 = CODE + PAGE_SIZE;

/// A context at the beginning of `code`, which is there.
fn at_code(code: &[u8], body: impl FnOnce(&mut Context) -> Outcome) -> Outcome {
    let space = new_space()?;
    let active = activate(&space);
    let prepared = space.space().map_anon(VaRange::new(CODE, 2 * PAGE_SIZE), Prot::RW, HugeAdvice::NoHuge);
    prepared?;
    copy_to_user(CODE, code)?;
    space.space().protect(VaRange::new(CODE, PAGE_SIZE), Prot::READ | Prot::EXEC)?;
    let mut context = Box::new(Context::new(CODE, DATA + PAGE_SIZE));
    let outcome = body(&mut context);
    drop(active);
    outcome
}

crate::ktest! {
    fn a_call_keeps_every_register_but_the_two_that_it_may_not() {
        // mov eax, 39; syscall; ud2
        at_code(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x0f, 0x0b], |context| {
            let regs = &mut context.regs;
            let registers = [
                &mut regs.rbx, &mut regs.rdx, &mut regs.rsi, &mut regs.rdi, &mut regs.rbp, &mut regs.r8, &mut regs.r9,
                &mut regs.r10, &mut regs.r12, &mut regs.r13, &mut regs.r14, &mut regs.r15,
            ];
            registers.into_iter().zip(1..).for_each(|(register, n)| *register = n * 0x1111);
            let before = context.regs.clone();
            crate::check_eq!(user::run(context), Why::Syscall);
            crate::check_eq!((context.regs.rax, context.regs.rip), (39, CODE + 7));
            crate::check_eq!(context.regs.rcx, CODE + 7, "SYSCALL leaves RIP there");
            context.regs.rax = 0x77;
            crate::check_eq!(user::run(context), Why::Exception { vector: 6, error: 0 });
            let after = &context.regs;
            let all = |regs: &super::trap::TrapFrame| [
                regs.rbx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.r8, regs.r9, regs.r10, regs.r12, regs.r13, regs.r14,
                regs.r15, regs.rsp,
            ];
            crate::check_eq!(all(after), all(&before));
            crate::check_eq!((after.rax, after.rip, after.rflags & 1 << 9), (0x77, CODE + 7, 1 << 9));
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn a_refused_fault_comes_back_and_can_be_made_good() {
        // mov [rdi], rdi; syscall
        at_code(&[0x48, 0x89, 0x3f, 0x0f, 0x05], |context| {
            context.regs.rdi = DATA + 2 * PAGE_SIZE;
            let refused = Why::PageFault { addr: DATA + 2 * PAGE_SIZE, error: 1 << 2 | 1 << 1 };
            crate::check_eq!(user::run(context), refused);
            crate::check_eq!(context.regs.rip, CODE, "the instruction has not been done");
            // An address of the kernel is none of the program's, whatever is there.
            context.regs.rdi = super::paging::DIRECT_MAP;
            let why = user::run(context);
            crate::check!(matches!(why, Why::PageFault { addr: super::paging::DIRECT_MAP, .. }), "{why:?}");
            context.regs.rdi = DATA;
            crate::check_eq!(user::run(context), Why::Syscall);
            crate::check_eq!(super::uaccess::user_read_u64(DATA), Ok(DATA));
            let _ = crate::vm::user::last_refusal();
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn nothing_that_a_program_can_be_given_to_go_on_with_stops_the_kernel() {
        // syscall; nop...
        at_code(&[0x0f, 0x05, 0x90, 0x90, 0xf4], |context| {
            for rip in [1 << 47, (1 << 47) - 1, u64::MAX, super::paging::DIRECT_MAP, super::uaccess::USER_END] {
                for whole in [false, true] {
                    context.regs.rip = CODE;
                    crate::check_eq!(user::run(context), Why::Syscall);
                    context.regs.rip = rip;
                    if whole {
                        context.set_whole();
                    }
                    let why = user::run(context);
                    crate::check!(matches!(why, Why::PageFault { .. }), "{rip:#x}: {why:?}");
                }
            }
            // Segments, flags and a stack that are not a program's.
            context.set_whole();
            (context.regs.rip, context.regs.cs, context.regs.ss) = (CODE, 8, 0x10);
            (context.regs.rsp, context.regs.rflags) = (1 << 63, !(1 << 8));
            crate::check_eq!(user::run(context), Why::Syscall);
            crate::check_eq!(context.regs.rflags & (3 << 12), 0, "no right to use ports");
            crate::check_eq!(context.regs.rsp, 1 << 63);
            // HLT is no instruction of ring 3.
            context.regs.rip = CODE + 4;
            crate::check_eq!(user::run(context), Why::Exception { vector: 13, error: 0 });
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn a_program_steps_through_itself() {
        // nop; nop; syscall
        at_code(&[0x90, 0x90, 0x0f, 0x05], |context| {
            context.regs.rflags |= 1 << 8;
            crate::check_eq!(user::run(context), Why::Exception { vector: 1, error: 0 });
            crate::check_eq!(context.regs.rip, CODE + 1);
            context.regs.rflags &= !(1 << 8);
            crate::check_eq!(user::run(context), Why::Syscall);
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn a_notice_ends_an_endless_loop() {
        // inc rax; jmp -5
        at_code(&[0x48, 0xff, 0xc0, 0xeb, 0xfb], |context| {
            let me = task::number();
            let other = task::spawn("notifier", move || task::notify(me));
            crate::check_eq!(user::run(context), Why::Interrupted);
            other.join();
            crate::check!(task::take_notice());
            // One that is there before does not let it begin.
            let before = context.regs.rax;
            task::notify(me);
            crate::check_eq!((user::run(context), context.regs.rax), (Why::Interrupted, before));
            crate::check!(task::take_notice() && !task::take_notice());
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn extended_state_that_cannot_be_is_left_out() {
        if xstate::size() == 0 {
            crate::skip!("this CPU has no XSAVE");
        }
        user::attach(xstate::Area::new()?);
        let mut image = xstate::snapshot(&[0; xstate::LEGACY])?;
        crate::check_eq!(image.len(), xstate::size());
        // All ones: reserved bits of the header would be #GP in the kernel.
        image[xstate::LEGACY..].fill(0xff);
        xstate::put(&image)?;
        let after = xstate::snapshot(&[0; xstate::LEGACY])?;
        let components = u64::from_le_bytes(after[512..520].try_into().unwrap_or_default());
        crate::check_eq!(components & !xstate::components(), 0);
        crate::check!(after[520..576].iter().all(|byte| *byte == 0), "the rest of the header is reserved");
        if xstate::components() & 1 << 2 != 0 {
            crate::check_eq!(after[576..592], [0xff; 16], "the upper half of YMM0");
        }
        user::detach();
    }
}
