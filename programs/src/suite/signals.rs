//! Signals: handlers and what they are told, masks, interrupted calls, stacks of their own, and death.

use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed};

use farpage_programs::memory::{Fault, RW, SHARED, load, mmap, mprotect, store};
use farpage_programs::task::{child, signal_name, spawn, wait};
use farpage_programs::{PAGE, fact, memory, sys};
use libc::{
    SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, SA_SIGINFO, SIG_BLOCK, SIG_DFL, SIG_IGN, SIG_SETMASK,
    SIG_UNBLOCK,
};
use libc::{SIGBUS, SIGCHLD, SIGFPE, SIGILL, SIGKILL, SIGSEGV, SIGTERM, SIGTRAP, SIGUSR1, SIGUSR2};

static COUNT: AtomicU32 = AtomicU32::new(0);
static DEEPEST: AtomicU32 = AtomicU32::new(0);
static DEPTH: AtomicU32 = AtomicU32::new(0);
static LAST: AtomicI32 = AtomicI32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static SENDER: AtomicI32 = AtomicI32::new(0);
static STACK: AtomicU64 = AtomicU64::new(0);

/// Runs the group.
pub(crate) fn run() {
    delivery();
    masks();
    flags();
    deaths();
    exceptions();
    interrupted();
    stacks();
    inheritance();
    faults();
    errors();
}

fn me() -> i64 {
    sys!(SYS_getpid).0
}

fn raise(signal: i32) {
    sys!(SYS_kill, me(), signal).value("kill");
}

/// Counts, and notes what it is told.
extern "C" fn counted(signal: i32, info: *const libc::siginfo_t, _context: *mut libc::ucontext_t) {
    let local = 0_u8;
    STACK.store((&raw const local).addr() as u64, Relaxed);
    COUNT.fetch_add(1, Relaxed);
    DEEPEST.fetch_max(DEPTH.fetch_add(1, Relaxed) + 1, Relaxed);
    LAST.store(signal, Relaxed);
    // SAFETY: the kernel gives a handler of SA_SIGINFO its description.
    let info = unsafe { &*info };
    CODE.store(info.si_code, Relaxed);
    // SAFETY: a signal that was sent carries its sender; of another one the number is not used.
    SENDER.store(unsafe { info.si_pid() }, Relaxed);
    if signal == SIGUSR2 && COUNT.load(Relaxed) < 3 {
        raise(SIGUSR2);
    }
    DEPTH.fetch_sub(1, Relaxed);
}

fn handler() -> usize {
    counted as *const () as usize
}

/// Sets what a signal does, with these signals blocked meanwhile.
fn action(signal: i32, handler: usize, flags: i32, blocked: &[i32]) -> i32 {
    // SAFETY: zero is a value of every field.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags | SA_SIGINFO;
    for signal in blocked {
        // SAFETY: a set of our own, and signals that are.
        unsafe { libc::sigaddset(&raw mut action.sa_mask, *signal) };
    }
    // SAFETY: the handlers here touch atomics only.
    unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) }
}

/// Changes the mask; the old one.
fn mask(how: i32, set: u64) -> u64 {
    let mut old = 0_u64;
    sys!(SYS_rt_sigprocmask, how, &raw const set, &raw mut old, 8).value("sigprocmask");
    old
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

fn taken() -> u32 {
    COUNT.swap(0, Relaxed)
}

fn delivery() {
    action(SIGUSR1, handler(), 0, &[]);
    raise(SIGUSR1);
    let from_self = i64::from(SENDER.load(Relaxed)) == me();
    fact!(
        "taken at once",
        "{} {} code {} from oneself {from_self}",
        taken(),
        signal_name(LAST.load(Relaxed)),
        CODE.load(Relaxed)
    );
    let parent = me();
    let status = child(|| sys!(SYS_kill, parent, SIGUSR1).0 as i32);
    let other = i64::from(SENDER.load(Relaxed));
    fact!("from a child", "{status}: {} {}", taken(), other != me() && other > 0);
    // A thread that never calls: the timer has to let the signal in.
    let pid = spawn(|| sys!(SYS_kill, parent, SIGUSR1).0 as i32);
    while COUNT.load(Relaxed) == 0 {
        std::hint::spin_loop();
    }
    fact!("into a loop", "{} {}", wait(pid), taken());
    action(SIGUSR1, SIG_IGN, 0, &[]);
    raise(SIGUSR1);
    fact!("ignored", "{}", taken());
    raise(SIGCHLD);
    fact!("ignored by itself", "{}", taken());
}

fn masks() {
    action(SIGUSR1, handler(), 0, &[]);
    action(SIGTERM, handler(), 0, &[]);
    fact!("empty at first", "{:#x}", mask(SIG_BLOCK, bit(SIGUSR1) | bit(SIGTERM)));
    (0..3).for_each(|_| raise(SIGUSR1));
    raise(SIGTERM);
    fact!("blocked", "{}", taken());
    let mut pending = 0_u64;
    fact!("pending", "{} {pending:#x}", { sys!(SYS_rt_sigpending, &raw mut pending, 8) });
    fact!("the mask", "{:#x}", mask(SIG_UNBLOCK, bit(SIGUSR1)));
    fact!("three are one", "{} {}", taken(), signal_name(LAST.load(Relaxed)));
    fact!("the mask", "{:#x}", mask(SIG_SETMASK, 0));
    fact!("the other", "{} {}", taken(), signal_name(LAST.load(Relaxed)));
    mask(SIG_SETMASK, u64::MAX);
    fact!("what cannot be blocked", "{:#x}", !mask(SIG_SETMASK, 0));
    action(SIGTERM, SIG_DFL, 0, &[]);
    mask(SIG_BLOCK, bit(SIGUSR1));
    raise(SIGUSR1);
    action(SIGUSR1, SIG_IGN, 0, &[]);
    action(SIGUSR1, handler(), 0, &[]);
    mask(SIG_UNBLOCK, bit(SIGUSR1));
    fact!("one that waits is lost when it is ignored", "{}", taken());
}

fn flags() {
    DEEPEST.store(0, Relaxed);
    action(SIGUSR2, handler(), 0, &[]);
    raise(SIGUSR2);
    fact!("raised in its handler", "{} in all, {} deep", taken(), DEEPEST.swap(0, Relaxed));
    action(SIGUSR2, handler(), SA_NODEFER, &[]);
    raise(SIGUSR2);
    fact!("not deferred", "{} in all, {} deep", taken(), DEEPEST.swap(0, Relaxed));
    action(SIGUSR2, handler(), SA_NODEFER, &[SIGUSR2]);
    raise(SIGUSR2);
    fact!("not deferred but masked", "{} in all, {} deep", taken(), DEEPEST.swap(0, Relaxed));
    action(SIGUSR1, handler(), SA_RESETHAND, &[]);
    let status = child(|| {
        raise(SIGUSR1);
        println!("child: {}", taken());
        raise(SIGUSR1);
        0
    });
    fact!("a handler for once", "{status}");
}

fn deaths() {
    for signal in [
        SIGTERM,
        SIGKILL,
        SIGUSR1,
        SIGSEGV,
        SIGBUS,
        SIGFPE,
        SIGILL,
        SIGTRAP,
        libc::SIGABRT,
        libc::SIGPIPE,
        libc::SIGALRM,
    ] {
        let status = child(|| {
            action(signal, SIG_DFL, 0, &[]);
            raise(signal);
            7
        });
        fact!(signal_name(signal), "{status}");
    }
    for signal in [SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH] {
        let status = child(|| {
            raise(signal);
            7
        });
        fact!("one that does nothing", "{status}");
    }
    let status = child(|| {
        mask(SIG_BLOCK, bit(SIGSEGV));
        // SAFETY: nothing is read: it faults, and ends the child.
        unsafe { ptr::read_volatile(0x20 as *const i32) }
    });
    fact!("a fault whose signal is blocked", "{status}");
    let status = child(|| {
        action(SIGSEGV, SIG_IGN, 0, &[]);
        // SAFETY: as above.
        unsafe { ptr::read_volatile(0x28 as *const i32) }
    });
    fact!("and one that is ignored", "{status}");
}

/// Ends the child with what it was told.
extern "C" fn told(signal: i32, info: *const libc::siginfo_t, _context: *mut libc::ucontext_t) {
    // SAFETY: the kernel gives a handler of SA_SIGINFO its description.
    let info = unsafe { &*info };
    println!("told: {} code {}", signal_name(signal), info.si_code);
    let _ = sys!(SYS_exit_group, 3);
}

fn exceptions() {
    let told = told as *const () as usize;
    let run = |name: &str, signal: i32, fault: &dyn Fn()| {
        let status = child(|| {
            action(signal, told, 0, &[]);
            fault();
            0
        });
        fact!(name, "{status}");
        let status = child(|| {
            action(signal, SIG_DFL, 0, &[]);
            fault();
            0
        });
        fact!(name, "without a handler: {status}");
    };
    // SAFETY: each of these instructions faults or traps, in a child that ends by it.
    run("an undefined instruction", SIGILL, &|| unsafe { std::arch::asm!("ud2") });
    // SAFETY: as above.
    run("a division by zero", SIGFPE, &|| unsafe {
        std::arch::asm!("xor ecx, ecx", "mov eax, 1", "cdq", "idiv ecx", out("eax") _, out("ecx") _, out("edx") _);
    });
    // SAFETY: as above.
    run("a breakpoint", SIGTRAP, &|| unsafe { std::arch::asm!("int3") });
    // SAFETY: as above.
    run("a privileged instruction", SIGSEGV, &|| unsafe { std::arch::asm!("hlt") });
    // SAFETY: as above.
    run("an address that is none", SIGSEGV, &|| unsafe {
        std::arch::asm!("mov rax, [rax]", inout("rax") 0x8000_0000_0000_0000_u64 => _);
    });
}

fn interrupted() {
    let parent = me();
    // Until the child is killed: one of them comes while the parent sleeps.
    let pester = || {
        spawn(|| {
            loop {
                let _ = sys!(SYS_kill, parent, SIGUSR1);
                let _ = sys!(SYS_nanosleep, [0_i64, 2_000_000].as_ptr(), 0);
            }
        })
    };
    let stop = |pid| {
        let killed = sys!(SYS_kill, pid, SIGKILL);
        assert!(killed.is_ok(), "{killed}");
        let _ = wait(pid);
    };
    for (name, flags) in [("restarted or not", 0), ("with SA_RESTART", SA_RESTART)] {
        action(SIGUSR1, handler(), flags, &[]);
        let pid = pester();
        let mut left = [0_i64; 2];
        let nap = sys!(SYS_nanosleep, [5_i64, 0].as_ptr(), left.as_mut_ptr());
        let left_ns = left[0] * 1_000_000_000 + left[1];
        let some_left = (1..5_100_000_000).contains(&left_ns);
        fact!(name, "nanosleep {nap}, some left: {some_left}");
        let word = AtomicU32::new(0);
        let time = [5_i64, 0];
        if flags == 0 {
            // With SA_RESTART it would sleep for ever.
            fact!(
                name,
                "futex without a timeout: {}",
                sys!(SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, 0, 0)
            );
        }
        fact!(name, "poll: {}", sys!(SYS_poll, 0, 0, 5000));
        let nap = sys!(SYS_clock_nanosleep, libc::CLOCK_MONOTONIC, 0, time.as_ptr(), left.as_mut_ptr());
        fact!(name, "clock_nanosleep: {nap}");
        stop(pid);
        // A wait for a child that goes on for some signals' time.
        let pid = pester();
        let slow = spawn(|| {
            (0..5).for_each(|_| {
                let _ = sys!(SYS_nanosleep, [0_i64, 4_000_000].as_ptr(), 0);
            });
            6
        });
        let waited = sys!(SYS_wait4, slow, 0, 0, 0);
        fact!(name, "wait4: {}", waited.verdict());
        stop(pid);
        if !waited.is_ok() {
            fact!(name, "then: {}", wait(slow));
        }
    }
    taken();
    action(SIGUSR1, SIG_IGN, 0, &[]);
    let pid = pester();
    fact!(
        "one that is ignored interrupts nothing",
        "{}",
        sys!(SYS_nanosleep, [0_i64, 20_000_000].as_ptr(), 0)
    );
    stop(pid);
}

#[inline(never)]
fn deep(n: u64) -> u64 {
    let room = std::hint::black_box([n; 512]);
    if room[17] == u64::MAX { 0 } else { 1 + deep(room[17] + 1) }
}

extern "C" fn overflown(signal: i32, info: *const libc::siginfo_t, _context: *mut libc::ucontext_t) {
    // SAFETY: the kernel gives a handler of SA_SIGINFO its description.
    let code = unsafe { (*info).si_code };
    println!("told: {} code {code}", signal_name(signal));
    let _ = sys!(SYS_exit_group, 9);
}

fn stacks() {
    let len = 64 << 10;
    let other = memory::anon(len);
    let stack = libc::stack_t { ss_sp: other as *mut libc::c_void, ss_flags: 0, ss_size: len as usize };
    // SAFETY: memory of the kernel's that nobody else uses.
    let mut old: libc::stack_t = unsafe { mem::zeroed() };
    fact!("another stack", "{}", sys!(SYS_sigaltstack, &raw const stack, &raw mut old));
    action(SIGUSR1, handler(), SA_ONSTACK, &[]);
    raise(SIGUSR1);
    let within = |at: u64| (other..other + len).contains(&at);
    fact!("used", "{} {}", taken(), within(STACK.load(Relaxed)));
    action(SIGUSR1, handler(), 0, &[]);
    raise(SIGUSR1);
    fact!("not used without SA_ONSTACK", "{} {}", taken(), within(STACK.load(Relaxed)));
    let status = child(|| {
        action(SIGSEGV, overflown as *const () as usize, SA_ONSTACK, &[]);
        deep(0) as i32
    });
    fact!("a stack that is full, handled on the other", "{status}");
    let status = child(|| {
        action(SIGSEGV, overflown as *const () as usize, 0, &[]);
        deep(0) as i32
    });
    fact!("and on itself", "{status}");
    let small = libc::stack_t { ss_size: 100, ..stack };
    fact!("too small", "{}", sys!(SYS_sigaltstack, &raw const small, 0));
    let strange = libc::stack_t { ss_flags: 0x77, ..stack };
    fact!("strange flags", "{}", sys!(SYS_sigaltstack, &raw const strange, 0));
    let off = libc::stack_t { ss_flags: libc::SS_DISABLE, ..stack };
    fact!("none", "{}", sys!(SYS_sigaltstack, &raw const off, &raw mut old));
    fact!("what it was", "{} {} {}", old.ss_flags, old.ss_size, old.ss_sp.addr() as u64 == other);
    fact!("a wild pointer", "{}", sys!(SYS_sigaltstack, 0x1000, 0));
}

fn inheritance() {
    action(SIGUSR1, handler(), 0, &[]);
    mask(SIG_BLOCK, bit(SIGUSR1));
    raise(SIGUSR1);
    let status = child(|| {
        let mut pending = u64::MAX;
        let _ = sys!(SYS_rt_sigpending, &raw mut pending, 8);
        println!("child: pending {pending:#x} mask {:#x} taken {}", mask(SIG_UNBLOCK, bit(SIGUSR1)), taken());
        raise(SIGUSR1);
        taken() as i32
    });
    mask(SIG_UNBLOCK, bit(SIGUSR1));
    fact!("a child", "{status}; its parent took {}", taken());
    let shared = mmap(0, PAGE, RW, SHARED).value("shared");
    let parent = me();
    action(SIGCHLD, handler(), 0, &[]);
    let pid = spawn(|| {
        store(shared, u64::from(sys!(SYS_getppid).0 == parent)).expect("a page");
        5
    });
    let status = wait(pid);
    fact!(
        "a child's end",
        "{status}: {} {} code {} {}",
        taken(),
        signal_name(LAST.load(Relaxed)),
        CODE.load(Relaxed),
        SENDER.load(Relaxed) == pid
    );
    let status = child(|| {
        action(SIGUSR1, SIG_DFL, 0, &[]);
        let _ = sys!(SYS_kill, 0, 0);
        raise(SIGKILL);
        0
    });
    fact!("a child that is killed", "{status}: {} code {}", taken(), CODE.load(Relaxed));
    action(SIGCHLD, SIG_DFL, 0, &[]);
}

fn faults() {
    memory::catch_faults();
    let pages = memory::anon(2 * PAGE);
    mprotect(pages, PAGE, libc::PROT_READ).value("protect");
    mprotect(pages + PAGE, PAGE, libc::PROT_NONE).value("protect");
    let shown = |outcome: Result<u64, Fault>| {
        outcome.map_or_else(|fault| fault.to_string(), |word| format!("{word:#x}"))
    };
    fact!("page 0", "{}", shown(load(8)));
    fact!("read-only memory", "{}; {}", shown(load(pages)), shown(store(pages, 1).map(|()| 0)));
    fact!("memory that may not be used", "{}", shown(load(pages + PAGE + 16)));
    fact!("across the edge", "{}", shown(load(pages + PAGE - 4)));
    fact!("the kernel", "{}", shown(load(0xffff_ffff_8000_0000)));
    fact!("no address", "{}", shown(load(0x1234_0000_0000_0000)));
    fact!("the last page of the user half", "{}", shown(load((1 << 47) - 4096)));
    (0..1000).for_each(|n| assert!(load(n * 8).is_err()));
    fact!("a thousand faults later", "{}", shown(load(pages)));
}

fn errors() {
    let set = 0_u64;
    let at = &raw const set;
    fact!("a set of another size", "{}", sys!(SYS_rt_sigprocmask, SIG_BLOCK, at, 0, 4));
    fact!("an unknown way", "{}", sys!(SYS_rt_sigprocmask, 9, at, 0, 8));
    fact!("an unknown way of nothing", "{}", sys!(SYS_rt_sigprocmask, 9, 0, 0, 8));
    fact!("a wild set", "{}", sys!(SYS_rt_sigprocmask, SIG_BLOCK, 0x1000, 0, 8));
    fact!("a wild old set", "{}", sys!(SYS_rt_sigprocmask, SIG_BLOCK, at, 0x1000, 8));
    for signal in [0, -1, 65, SIGKILL, libc::SIGSTOP] {
        let action = [0_u64; 4];
        fact!("sigaction", "{}", sys!(SYS_rt_sigaction, signal, action.as_ptr(), 0, 8));
    }
    let mut old = [0_u64; 4];
    fact!("ask about SIGKILL", "{} {}", sys!(SYS_rt_sigaction, SIGKILL, 0, old.as_mut_ptr(), 8), old[0]);
    fact!("sigaction with a wild pointer", "{}", sys!(SYS_rt_sigaction, SIGUSR1, 0x1000, 0, 8));
    fact!("and of another size", "{}", sys!(SYS_rt_sigaction, SIGUSR1, 0, 0, 16));
    fact!("kill with a strange signal", "{} {}", sys!(SYS_kill, me(), -1_i64), sys!(SYS_kill, me(), 100));
    fact!("kill nobody", "{}", sys!(SYS_kill, 0x3fff_fff0, SIGTERM));
    fact!("mask of nothing", "{}", sys!(SYS_rt_sigprocmask, SIG_SETMASK, 0, 0, 8));
}
