//! Registers that a program has and a kernel does not look at: SSE and AVX, rounding, flags. They are the thread's own through
//! preemption, forks and signals.

use std::arch::asm;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use farpage_programs::task::child;
use farpage_programs::{fact, sys};
use libc::SIGUSR1;

/// Runs the group.
pub(crate) fn run() {
    threads();
    forks();
    handlers();
    rounding();
    calls();
}

/// Sixteen registers of 32 bytes.
type Registers = [[u64; 4]; 16];

fn pattern(seed: u64) -> Registers {
    std::array::from_fn(|r| {
        std::array::from_fn(|w| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add((r * 4 + w) as u64))
    })
}

/// Loads all vector registers, runs `rounds` of nothing, or makes a system call, and stores them.
macro_rules! through {
    ($feature:literal, $name:ident, $load:literal, $store:literal) => {
        #[target_feature(enable = $feature)]
        fn $name(values: &Registers, rounds: u64, call: [u64; 3]) -> Registers {
            let mut found: Registers = *values;
            // SAFETY: it loads and stores the two arrays, and makes a call that touches no memory of Rust's.
            unsafe {
                asm!(
                    concat!($load, " ymm0, [{from}]"), concat!($load, " ymm1, [{from} + 32]"),
                    concat!($load, " ymm2, [{from} + 64]"), concat!($load, " ymm3, [{from} + 96]"),
                    concat!($load, " ymm4, [{from} + 128]"), concat!($load, " ymm5, [{from} + 160]"),
                    concat!($load, " ymm6, [{from} + 192]"), concat!($load, " ymm7, [{from} + 224]"),
                    concat!($load, " ymm8, [{from} + 256]"), concat!($load, " ymm9, [{from} + 288]"),
                    concat!($load, " ymm10, [{from} + 320]"), concat!($load, " ymm11, [{from} + 352]"),
                    concat!($load, " ymm12, [{from} + 384]"), concat!($load, " ymm13, [{from} + 416]"),
                    concat!($load, " ymm14, [{from} + 448]"), concat!($load, " ymm15, [{from} + 480]"),
                    "2: sub {rounds}, 1",
                    "jnz 2b",
                    "test rax, rax",
                    "js 3f",
                    "syscall",
                    "3:",
                    concat!($store, " [{to}], ymm0"), concat!($store, " [{to} + 32], ymm1"),
                    concat!($store, " [{to} + 64], ymm2"), concat!($store, " [{to} + 96], ymm3"),
                    concat!($store, " [{to} + 128], ymm4"), concat!($store, " [{to} + 160], ymm5"),
                    concat!($store, " [{to} + 192], ymm6"), concat!($store, " [{to} + 224], ymm7"),
                    concat!($store, " [{to} + 256], ymm8"), concat!($store, " [{to} + 288], ymm9"),
                    concat!($store, " [{to} + 320], ymm10"), concat!($store, " [{to} + 352], ymm11"),
                    concat!($store, " [{to} + 384], ymm12"), concat!($store, " [{to} + 416], ymm13"),
                    concat!($store, " [{to} + 448], ymm14"), concat!($store, " [{to} + 480], ymm15"),
                    from = in(reg) ptr::from_ref(values), to = in(reg) &raw mut found, rounds = inout(reg) rounds => _,
                    inout("rax") call[0] => _, in("rdi") call[1], in("rsi") call[2], lateout("rcx") _, lateout("r11") _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                    out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                );
            }
            found
        }
    };
}

through!("avx", through_avx, "vmovdqu", "vmovdqu");

/// No call.
const NO_CALL: [u64; 3] = [u64::MAX, 0, 0];

/// Keeps registers for a while or over a call; are they what they were?
fn keeps(seed: u64, rounds: u64, call: [u64; 3]) -> bool {
    assert!(is_x86_feature_detected!("avx"), "every machine that this runs on has AVX");
    let values = pattern(seed);
    // SAFETY: the CPU has AVX, and the kernel has turned it on.
    unsafe { through_avx(&values, rounds, call) == values }
}

fn threads() {
    let together = (0..6_u64)
        .map(|n| thread::spawn(move || (0..20).all(|round| keeps(n * 100 + round, 200_000, NO_CALL))))
        .collect::<Vec<_>>();
    let kept = together.into_iter().map(|t| t.join().unwrap_or(false)).filter(|kept| *kept).count();
    fact!("threads that kept their registers while others ran", "{kept} of 6");
    let yielding = (0..4_u64)
        .map(|n| {
            thread::spawn(move || {
                (0..200).all(|round| keeps(n * 1000 + round, 1, [libc::SYS_sched_yield as u64, 0, 0]))
            })
        })
        .collect::<Vec<_>>();
    let kept = yielding.into_iter().map(|t| t.join().unwrap_or(false)).filter(|kept| *kept).count();
    fact!("and while they yielded", "{kept} of 4");
}

fn forks() {
    // fork itself, between load and store: both sides go on with the registers.
    let parent = sys!(SYS_getpid).0;
    let status = child(|| {
        let own = sys!(SYS_getpid).0;
        let kept = keeps(5, 1, [libc::SYS_fork as u64, 0, 0]);
        let me = sys!(SYS_getpid).0;
        if me != own {
            let _ = sys!(SYS_exit_group, if kept { 5 } else { 6 });
        }
        let mut word = 0;
        let _ = sys!(SYS_wait4, -1_i64, &raw mut word, 0, 0);
        i32::from(kept) * 10 + (word >> 8)
    });
    fact!("both sides of a fork", "{status} {}", parent == sys!(SYS_getpid).0);
    let pids: Vec<i32> = (0..3_u64)
        .map(|n| {
            farpage_programs::task::spawn(move || {
                i32::from((0..10).all(|round| keeps(n * 7 + round, 200_000, NO_CALL)))
            })
        })
        .collect();
    let kept: Vec<String> =
        pids.into_iter().map(|pid| farpage_programs::task::wait(pid).to_string()).collect();
    fact!("processes side by side", "{}", kept.join(", "));
}

static TAKEN: AtomicU32 = AtomicU32::new(0);

/// Spoils every vector register, and the flags.
extern "C" fn spoils(_signal: i32) {
    TAKEN.fetch_add(1, Ordering::Relaxed);
    // SAFETY: registers that a function may change, and says so.
    unsafe {
        asm!(
            "vpxor xmm0, xmm0, xmm0", "vmovdqa ymm1, ymm0", "vmovdqa ymm2, ymm0", "vmovdqa ymm3, ymm0", "vmovdqa ymm4, ymm0",
            "vmovdqa ymm5, ymm0", "vmovdqa ymm6, ymm0", "vmovdqa ymm7, ymm0", "vmovdqa ymm8, ymm0", "vmovdqa ymm9, ymm0",
            "vmovdqa ymm10, ymm0", "vmovdqa ymm11, ymm0", "vmovdqa ymm12, ymm0", "vmovdqa ymm13, ymm0", "vmovdqa ymm14, ymm0",
            "vmovdqa ymm15, ymm0", "stc",
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _,
            out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _,
            out("xmm14") _, out("xmm15") _,
        );
    }
}

fn handlers() {
    // SAFETY: the handler changes registers and an atomic.
    unsafe { libc::signal(SIGUSR1, spoils as *const () as usize) };
    let me = sys!(SYS_getpid).0 as u64;
    let kept = (0..100).filter(|seed| keeps(*seed, 1, [libc::SYS_kill as u64, me, SIGUSR1 as u64])).count();
    fact!("over a handler that spoils them", "{kept} of 100, {} taken", TAKEN.swap(0, Ordering::Relaxed));
    let pid = farpage_programs::task::spawn(|| {
        loop {
            let _ = sys!(SYS_kill, me, SIGUSR1);
            let _ = sys!(SYS_nanosleep, [0_i64, 1_000_000].as_ptr(), 0);
        }
    });
    let mut kept = true;
    let mut round = 0;
    while TAKEN.load(Ordering::Relaxed) < 5 {
        round += 1;
        kept &= keeps(round, 50_000, NO_CALL);
    }
    let _ = sys!(SYS_kill, pid, libc::SIGKILL);
    let _ = farpage_programs::task::wait(pid);
    fact!("over handlers at any instruction", "{kept}");
}

fn control() -> u32 {
    let mut word = 0_u32;
    // SAFETY: it stores a word of four bytes.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut word) };
    word
}

fn set_control(word: u32) {
    // SAFETY: the rounding of this thread, which is set back before Rust computes with it.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const word) };
}

fn rounding() {
    fact!("at the start", "{:#x}", control() & !0x3f);
    let other = thread::spawn(|| {
        set_control(0x7f80);
        (0..50).for_each(|_| thread::yield_now());
        let found = control() & !0x3f;
        set_control(0x1f80);
        found
    });
    let kept = (0..50).all(|_| {
        thread::yield_now();
        control() & !0x3f == 0x1f80
    });
    fact!("each thread its own rounding", "{kept} {:#x}", other.join().unwrap_or(0));
    set_control(0x3f80);
    let status = child(|| (control() >> 8) as i32 & 0xff);
    let thread = thread::spawn(|| control() & !0x3f).join().unwrap_or(0);
    set_control(0x1f80);
    fact!("a child and a thread inherit it", "{status} {thread:#x}");
}

fn calls() {
    let (rbx, r12, flags): (u64, u64, u64);
    // SAFETY: a call without arguments; what it may change is named.
    unsafe {
        asm!(
            "mov r13, rbx", "mov rbx, 0x1111", "mov r12, 0x2222", "mov rdx, 0x3333", "mov rsi, 0x4444", "mov r10, 0x5555",
            "std", "stc", "mov eax, 39", "syscall", "pushfq", "pop {flags}", "cld",
            "mov {rbx}, rbx", "mov {r12}, r12", "add {rbx}, rdx", "add {rbx}, rsi", "add {r12}, r10", "mov rbx, r13",
            flags = out(reg) flags, rbx = out(reg) rbx, r12 = out(reg) r12,
            out("rax") _, out("rcx") _, out("r11") _, out("r12") _, out("r13") _, out("rdx") _, out("rsi") _, out("r10") _,
        );
    }
    fact!("registers over a call", "{rbx:#x} {r12:#x}, carry {} direction {}", flags & 1, flags >> 10 & 1);
}
