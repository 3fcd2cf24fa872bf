//! Waits and what ends them, when several things happen at once: threads that end each other, signals that somebody blocks, wake-ups
//! through memory that one side has not touched. Each of these has hung, killed or misled a program here once.

use std::ptr;
use std::thread;
use std::time::Duration;

use farpage_programs::memory::{PRIVATE, RW, SHARED, catch_faults, load, mmap};
use farpage_programs::task::{child, spawn, wait};
use farpage_programs::{PAGE, fact, sys};
use libc::{SIG_BLOCK, SIG_SETMASK, SIGALRM, SIGCHLD, SIGKILL, SIGUSR1};

/// Runs the group.
pub(crate) fn run() {
    fact!("two threads run a program at once", "{}", child(two_execs));
    fact!("a thread waits for a signal, its process ends", "{}", child(sigwait_and_exit));
    fact!("a blocked signal does not end a sleep, or make it longer", "{}", child(sleep_under_alarms));
    fact!("a child that loads FS does not change its parent's", "{}", child(selectors));
    fact!("a wake-up through a page that was not touched", "{}", shared_wake());
    fact!("a fault after a refused call", "{}", fault_after_refusal());
    fact!("a parent in vfork can be killed", "{}", killed_in_vfork());
    fact!("ppoll with a mask of its own", "{}", child(masked_poll));
    fact!("a frame shows nothing of the kernel's", "{}", child(frame_is_clean));
    fact!("pages are there at once", "{}", populated());
}

fn block(how: i32, signals: &[i32]) {
    let set = signals.iter().fold(0_u64, |set, signal| set | 1 << (signal - 1));
    sys!(SYS_rt_sigprocmask, how, &raw const set, 0, 8).value("rt_sigprocmask");
}

fn exit(status: i32) -> ! {
    let _ = sys!(SYS_exit_group, status);
    unreachable!("exit_group does not return")
}

/// One of them becomes the program, which ends with what it is told; the other is gone.
fn two_execs() -> i32 {
    let exec = || {
        let args = [c"suite".as_ptr(), c"started".as_ptr(), c"exit".as_ptr(), ptr::null()];
        let _ = sys!(SYS_execve, c"/proc/self/exe".as_ptr(), args.as_ptr(), args[3..].as_ptr());
    };
    let other = thread::spawn(exec);
    exec();
    let _ = other.join();
    99
}

fn sigwait_and_exit() -> i32 {
    block(SIG_BLOCK, &[SIGUSR1]);
    thread::spawn(|| {
        let set = 1_u64 << (SIGUSR1 - 1);
        let _ = sys!(SYS_rt_sigtimedwait, &raw const set, 0, 0, 8);
        loop {
            std::hint::spin_loop();
        }
    });
    thread::sleep(Duration::from_millis(5));
    sys!(SYS_kill, sys!(SYS_getpid).0, SIGUSR1).value("kill");
    exit(7)
}

/// Alarms come three times while it sleeps once.
fn sleep_under_alarms() -> i32 {
    block(SIG_BLOCK, &[SIGALRM]);
    let each = [0_i64, 10_000, 0, 10_000];
    sys!(SYS_setitimer, 0, each.as_ptr(), 0).value("setitimer");
    let time = [0_i64, 35_000_000];
    let slept = sys!(SYS_nanosleep, time.as_ptr(), 0);
    if slept.is_ok() { 0 } else { 1 }
}

thread_local! {
    static LOCAL: std::cell::Cell<u64> = const { std::cell::Cell::new(0x77) };
}

fn selectors() -> i32 {
    for _ in 0..20 {
        let status = child(|| {
            // SAFETY: the child uses nothing that FS leads to from here on: it makes one call and ends.
            unsafe {
                std::arch::asm!(
                    "mov ecx, ss", "mov fs, ecx", "syscall", "mov edi, 5", "mov eax, 231", "syscall",
                    in("rax") libc::SYS_sched_yield, options(noreturn)
                );
            }
        });
        if LOCAL.get() != 0x77 || status.0 != 5 << 8 {
            return 1;
        }
    }
    0
}

/// The parent sleeps on a word; the child, which has never touched the page, wakes it.
fn shared_wake() -> String {
    const WAIT: i32 = 0;
    const WAKE: i32 = 1;
    let word = mmap(0, PAGE, RW, SHARED).value("shared memory");
    let waker = spawn(move || {
        let mut woken = 0;
        while woken == 0 {
            thread::sleep(Duration::from_millis(1));
            woken = sys!(SYS_futex, word, WAKE, 1, 0, 0, 0).0;
        }
        woken as i32
    });
    let slept = sys!(SYS_futex, word, WAIT, 0, 0, 0, 0);
    format!("{slept}; the other woke {}", wait(waker))
}

/// What the call was refused for says nothing of the fault that comes after it.
fn fault_after_refusal() -> String {
    catch_faults();
    let closed = mmap(0, PAGE, libc::PROT_NONE, PRIVATE).value("memory");
    let mut pipe = [0_i32; 2];
    sys!(SYS_pipe2, pipe.as_mut_ptr(), 0).value("pipe2");
    let written = sys!(SYS_write, pipe[1], closed, 8);
    let kernel = load(0xffff_8880_0000_0000).map_or_else(|fault| fault.to_string(), |_| "read".into());
    format!("{written}, then {kernel}")
}

fn killed_in_vfork() -> String {
    let parent = spawn(|| {
        // The child sleeps in its parent's memory, on a stack of its own.
        let stack = mmap(0, 4 * PAGE, RW, PRIVATE).value("a stack") + 4 * PAGE;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | SIGCHLD;
        let time = [1_i64, 0];
        // SAFETY: the child gets an empty stack, makes two calls and ends; it touches nothing else.
        unsafe {
            std::arch::asm!(
                "syscall", "test rax, rax", "jnz 2f",
                "mov rdi, r12", "xor esi, esi", "mov eax, 35", "syscall",
                "xor edi, edi", "mov eax, 60", "syscall",
                "2:",
                inlateout("rax") libc::SYS_clone => _, in("rdi") flags as u64, in("rsi") stack, in("rdx") 0_u64,
                in("r10") 0_u64, in("r8") 0_u64, in("r12") time.as_ptr(), lateout("rcx") _, lateout("r11") _
            );
        }
        3
    });
    thread::sleep(Duration::from_millis(20));
    sys!(SYS_kill, parent, SIGKILL).value("kill");
    wait(parent).to_string()
}

extern "C" fn ignored(_signal: i32) {}

fn masked_poll() -> i32 {
    block(SIG_BLOCK, &[SIGUSR1]);
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(SIGUSR1, ignored as *const () as usize) };
    sys!(SYS_kill, sys!(SYS_getpid).0, SIGUSR1).value("kill");
    let (none, time) = (0_u64, [2_i64, 0]);
    let got = sys!(SYS_ppoll, 0, 0, time.as_ptr(), &raw const none, 8);
    let mut mask = 0_u64;
    sys!(SYS_rt_sigprocmask, SIG_SETMASK, 0, &raw mut mask, 8).value("rt_sigprocmask");
    i32::from(got.errno() != libc::EINTR) + i32::from(mask != 1 << (SIGUSR1 - 1))
}

/// What FXSAVE leaves alone, behind the sixteen SSE registers and before what the kernel says of the frame.
extern "C" fn looks(_signal: i32, _info: *const libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel gives a handler of SA_SIGINFO its context.
    let state = unsafe { (*context).uc_mcontext.fpregs }.cast::<u8>();
    // SAFETY: the frame has the 512 bytes of FXSAVE at least.
    let unused = unsafe { std::slice::from_raw_parts(state.wrapping_add(416), 48) };
    exit(i32::from(unused.iter().any(|byte| *byte != 0)))
}

fn frame_is_clean() -> i32 {
    // SAFETY: zero is a value of every field.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = looks as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: a handler for a signal that nothing else uses.
    unsafe { libc::sigaction(SIGUSR1, &raw const action, ptr::null_mut()) };
    // Interrupted in the middle of work, not in a call: a timer's signal would do; another process sends it here.
    let me = sys!(SYS_getpid).0;
    let _sender = spawn(move || {
        thread::sleep(Duration::from_millis(5));
        sys!(SYS_kill, me, SIGUSR1).errno()
    });
    loop {
        std::hint::spin_loop();
    }
}

fn populated() -> String {
    let at = mmap(0, 4 * PAGE, RW, PRIVATE | libc::MAP_POPULATE).value("memory");
    let mut there = [0_u8; 4];
    let got = sys!(SYS_mincore, at, 4 * PAGE, there.as_mut_ptr());
    format!("{got} {there:?}")
}
