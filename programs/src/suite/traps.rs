//! What a program can do to the CPU with single instructions: jumps to nowhere, odd flags, selectors, privileged instructions.
//! Each in a child, whose end is the fact; a handler of every signal says what it was told.

use std::arch::asm;
use std::mem;
use std::ptr;

use farpage_programs::task::{child, signal_name};
use farpage_programs::{PAGE, fact, memory};
use libc::{SA_ONSTACK, SA_SIGINFO, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP};

/// Runs the group.
pub(crate) fn run() {
    memory_for_handlers();
    places();
    stacks();
    flags();
    selectors();
    privileged();
    debugging();
}

fn memory_for_handlers() {
    let other = memory::anon(64 << 10);
    let stack = libc::stack_t { ss_sp: other as *mut libc::c_void, ss_flags: 0, ss_size: 64 << 10 };
    // SAFETY: memory of the kernel's that nobody else uses.
    unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) };
}

/// Says what it was told, and ends the child.
extern "C" fn told(signal: i32, info: *const libc::siginfo_t, context: *const libc::ucontext_t) {
    // SAFETY: the kernel gives a handler of SA_SIGINFO its description.
    let code = unsafe { (*info).si_code };
    // SAFETY: and its context.
    let flags = unsafe { (*context).uc_mcontext.gregs[libc::REG_EFL as usize] };
    let now: u64;
    // SAFETY: it reads the flags.
    unsafe { asm!("pushfq", "pop {}", out(reg) now) };
    println!(
        "told: {} code {code}, its flags {:#x}, here {:#x}",
        signal_name(signal),
        flags & 0x4_0500,
        now & 0x4_0500
    );
    // SAFETY: it ends the child at once.
    unsafe { libc::_exit(3) }
}

/// What comes of some instructions.
fn trial(name: &str, instructions: &dyn Fn()) {
    let status = child(|| {
        for signal in [SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP] {
            // SAFETY: zero is a value of every field.
            let mut action: libc::sigaction = unsafe { mem::zeroed() };
            action.sa_sigaction = told as *const () as usize;
            action.sa_flags = SA_SIGINFO | SA_ONSTACK;
            // SAFETY: the handler ends the process.
            unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
        }
        instructions();
        0
    });
    fact!(name, "{status}");
}

/// A trial of instructions without operands, or with these.
macro_rules! instructions {
    ($name:literal, $($asm:tt)*) => {
        // SAFETY: what they do to the CPU ends the child, or is undone.
        trial($name, &|| unsafe { asm!($($asm)*) })
    };
}

/// What QEMU's own translator does otherwise than a CPU: returns by hand read the stack with the kernel's rights, nothing checks
/// alignment, and a stack that is no address is another exception. So it is not compared; but the kernel has to live on.
pub(crate) fn odd() {
    memory_for_handlers();
    instructions!("a push onto no address", "mov rsp, rax", "push rax", in("rax") 0x8000_0000_0000_0000_u64);
    instructions!("an interrupt return with odd selectors", "push 0x33", "push rsp", "pushfq", "push 0x10", "lea rax, [rip]", "push rax", "iretq", out("rax") _);
    instructions!("an interrupt return to no address", "mov rax, 0x8000000000000000", "mov rcx, rsp", "push 0x2b", "push rcx", "pushfq", "push 0x33", "push rax", "iretq", out("rax") _, out("rcx") _);
    // SAFETY: an odd word is read while alignment is checked.
    trial("alignment checked", &|| unsafe {
        asm!("pushfq", "or qword ptr [rsp], 0x40000", "popfq", "mov rax, rsp", "mov rax, [rax + 1]", out("rax") _);
    });
    // SAFETY: a call while alignment is checked.
    trial("alignment checked, over a call", &|| unsafe {
        asm!(
            "pushfq", "or qword ptr [rsp], 0x40000", "popfq", "mov eax, 39", "syscall", "pushfq", "and qword ptr [rsp], -0x40001", "popfq",
            out("rax") _, out("rcx") _, out("r11") _
        );
    });
    instructions!("a far return to the kernel's selector", "push 0x10", "lea rax, [rip]", "push rax", "retfq", out("rax") _);
    instructions!("a far return to no selector", "push 0", "lea rax, [rip]", "push rax", "retfq", out("rax") _);
}

fn places() {
    for (name, to) in [
        ("a jump to page 0", 0x10_u64),
        ("to the kernel", 0xffff_ffff_8000_0000),
        ("to no address", 0x8000_0000_0000_0000),
        ("to the end of the user half", 1 << 47),
        ("to its last page", (1 << 47) - PAGE),
    ] {
        // SAFETY: it goes where nothing is.
        trial(name, &|| unsafe { asm!("jmp {}", in(reg) to) });
    }
    let data = memory::anon(PAGE);
    // SAFETY: it goes where nothing may run.
    trial("to data", &|| unsafe { asm!("jmp {}", in(reg) data) });
    instructions!("a return to no address", "mov rax, 0x8000000000000000", "push rax", "ret", out("rax") _);
    instructions!("an undefined instruction", "ud2");
}

fn stacks() {
    instructions!("a push onto page 0", "mov rsp, rax", "push rax", in("rax") 0x100_u64);
    instructions!("a push into the kernel", "mov rsp, rax", "push rax", in("rax") 0xffff_ffff_8000_0000_u64);
    for (name, at) in [
        ("a call with a wild stack", 0x8000_0000_0000_0000_u64),
        ("with the kernel's", 0xffff_ffff_8000_1000),
        ("with none", 0),
    ] {
        // SAFETY: the stack is put back before it is used.
        trial(name, &|| unsafe {
            asm!(
                "mov r12, rsp", "mov rsp, {at}", "mov eax, 39", "syscall", "mov rsp, r12",
                at = in(reg) at, out("rax") _, out("rcx") _, out("r11") _, out("r12") _
            );
        });
    }
}

fn flags() {
    // SAFETY: the flags are read, changed and put back.
    trial("flags that may not be changed", &|| unsafe {
        let (before, after): (u64, u64);
        asm!(
            "pushfq", "pop {before}", "mov rax, {before}", "xor rax, 0x3200", "push rax", "popfq", "pushfq", "pop {after}",
            before = out(reg) before, after = out(reg) after, out("rax") _
        );
        println!("changed: {:#x}", before ^ after);
    });
    // SAFETY: as above.
    trial("nested task, over a call", &|| unsafe {
        let after: u64;
        asm!(
            "pushfq", "pop rax", "or rax, 0x4000", "push rax", "popfq", "mov eax, 39", "syscall", "pushfq", "pop {after}",
            "mov rcx, {after}", "and rcx, -0x4001", "push rcx", "popfq",
            after = out(reg) after, out("rax") _, out("rcx") _, out("r11") _
        );
        println!("nested task: {}", after >> 14 & 1);
    });
}

fn selectors() {
    // SAFETY: the stack's own selector, and none.
    trial("data selectors", &|| unsafe {
        asm!("mov {word:e}, ss", "mov ds, {word:x}", "mov es, {word:x}", "xor {word:e}, {word:e}", "mov ds, {word:x}", "mov es, {word:x}", word = out(reg) _);
    });
    instructions!("a selector of the kernel's", "mov eax, 0x10", "mov ds, ax", out("rax") _);
    instructions!("a selector that is none", "mov eax, 0x1233", "mov es, ax", out("rax") _);
    instructions!("a stack selector of nothing", "xor eax, eax", "mov ss, ax", out("rax") _);
}

fn privileged() {
    instructions!("hlt", "hlt");
    instructions!("cli", "cli");
    instructions!("sti", "sti");
    instructions!("in", "in al, dx", in("dx") 0x3f8_u16, out("al") _);
    instructions!("out", "out dx, al", in("dx") 0xf4_u16, in("al") 0x10_u8);
    instructions!("rdmsr", "rdmsr", in("ecx") 0xc000_0080_u32, out("eax") _, out("edx") _);
    instructions!("wrmsr", "wrmsr", in("ecx") 0xc000_0102_u32, in("eax") 0_u32, in("edx") 0_u32);
    instructions!("swapgs", "swapgs");
    instructions!("mov to cr3", "mov cr3, {}", in(reg) 0_u64);
    instructions!("mov from cr0", "mov {}, cr0", out(reg) _);
    instructions!("mov to dr7", "mov dr7, {}", in(reg) 0_u64);
    instructions!("invlpg", "invlpg [rsp]");
    instructions!("lidt", "lidt [rsp]");
    instructions!("ltr", "ltr ax", in("ax") 0x40_u16);
    instructions!("clts", "clts");
    instructions!("sysretq", "sysretq");
    instructions!("wbinvd", "wbinvd");
    instructions!("an interrupt that is the kernel's", "int 0x20");
    instructions!("a page fault by hand", "int 14");
    instructions!("a double fault by hand", "int 8");
    instructions!("xsetbv", "xsetbv", in("ecx") 0_u32, in("eax") 7_u32, in("edx") 0_u32);
}

fn debugging() {
    instructions!("a breakpoint", "int3");
    instructions!("the debug instruction", "int 1");
    instructions!("a single step", "pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "nop");
    instructions!(
        "a single step into a call", "pushfq", "or qword ptr [rsp], 0x100", "mov eax, 39", "popfq", "syscall", "nop",
        out("rax") _, out("rcx") _, out("r11") _
    );
}
