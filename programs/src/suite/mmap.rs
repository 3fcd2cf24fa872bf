//! mmap, munmap, mprotect and brk.

use farpage_programs::memory::{
    PRIVATE, RW, SHARED, anon, mmap, mprotect, munmap, reserve, seen, store, written,
};
use farpage_programs::{HUGE, PAGE, fact, maps, memory, sys, task};
use libc::{
    MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_NORESERVE, MAP_POPULATE, PROT_EXEC, PROT_NONE, PROT_READ, PROT_WRITE,
};

/// Runs the group.
pub(crate) fn run() {
    memory::catch_faults();
    anonymous();
    fixed();
    hints();
    partial();
    protection();
    shared();
    large();
    heap();
}

fn anonymous() {
    let base = anon(4 * PAGE);
    fact!("new memory reads", "{} {}", seen(base), seen(base + 4 * PAGE - 8));
    fact!("a write", "{}", written(base + PAGE, 7));
    fact!("is there", "{} {} {}", seen(base), seen(base + PAGE), seen(base + PAGE + 8));
    fact!("across a page", "{} {}", written(base + PAGE - 4, 0x1122_3344_5566_7788), seen(base + PAGE));
    fact!("unmap", "{}", munmap(base, 4 * PAGE));
    fact!("then", "{} {}", seen(base), written(base, 1));
    fact!("unmap of nothing", "{}", munmap(base, 4 * PAGE));
    let len = mmap(0, 1, RW, PRIVATE);
    fact!("one byte is a page", "{}", written(len.0 as u64 + PAGE - 8, 1));
    let populated = mmap(0, 8 * PAGE, RW, PRIVATE | MAP_POPULATE | MAP_NORESERVE);
    fact!("populated", "{} {}", populated.verdict(), seen(populated.0 as u64 + 7 * PAGE));
}

fn fixed() {
    let arena = reserve(16 * PAGE);
    fact!("reserved", "{}; {}", maps::line(arena, 16 * PAGE), seen(arena));
    fact!(
        "fixed in it",
        "{}",
        mmap(arena + 4 * PAGE, 4 * PAGE, RW, PRIVATE | MAP_FIXED).0 as u64 == arena + 4 * PAGE
    );
    fact!("around it", "{}; {}", seen(arena + 3 * PAGE), seen(arena + 8 * PAGE));
    store(arena + 5 * PAGE, 9).expect("a page");
    fact!("fixed over written memory", "{}", mmap(arena + 5 * PAGE, PAGE, RW, PRIVATE | MAP_FIXED).verdict());
    fact!("is new", "{}", seen(arena + 5 * PAGE));
    fact!("the arena", "{}", maps::line(arena, 16 * PAGE));
    let noreplace = |at, pages| mmap(at, pages * PAGE, RW, PRIVATE | MAP_FIXED_NOREPLACE).verdict();
    fact!("noreplace over something", "{}", noreplace(arena + 7 * PAGE, 1));
    fact!("unmap a part", "{}", munmap(arena + 7 * PAGE, 2 * PAGE));
    fact!("noreplace half over something", "{}", noreplace(arena + 8 * PAGE, 2));
    fact!("noreplace into the hole", "{}", noreplace(arena + 7 * PAGE, 2));
    fact!("the arena", "{}", maps::line(arena, 16 * PAGE));
    fact!("fixed, not aligned", "{}", mmap(arena + 8, PAGE, RW, PRIVATE | MAP_FIXED));
    fact!("fixed beyond the user half", "{}", mmap(1 << 47, PAGE, RW, PRIVATE | MAP_FIXED));
    fact!("fixed in the kernel", "{}", mmap(0xffff_ffff_8000_0000, PAGE, RW, PRIVATE | MAP_FIXED));
    fact!(
        "fixed up to the user half's last page",
        "{}",
        mmap((1 << 47) - PAGE, PAGE, RW, PRIVATE | MAP_FIXED)
    );
}

fn hints() {
    let arena = reserve(16 * PAGE);
    fact!("a free place", "{}", munmap(arena, 16 * PAGE));
    let at = mmap(arena + 4 * PAGE, PAGE, RW, PRIVATE).0 as u64;
    fact!("a hint at it is taken", "{}", at == arena + 4 * PAGE);
    let again = mmap(arena + 4 * PAGE, PAGE, RW, PRIVATE);
    fact!("a second one is elsewhere", "{} {}", again.verdict(), again.0 as u64 != at);
    let odd = mmap(arena + 8 * PAGE + 123, PAGE, RW, PRIVATE);
    fact!("a hint is rounded", "{} {}", odd.verdict(), (odd.0 as u64).is_multiple_of(PAGE));
    let wild = mmap(0xffff_8000_0000_0000, PAGE, RW, PRIVATE);
    fact!("a hint in the kernel", "{}", wild.verdict());
}

fn partial() {
    let arena = reserve(16 * PAGE);
    let base = mmap(arena, 16 * PAGE, RW, PRIVATE | MAP_FIXED).value("fixed");
    (0..16).for_each(|page| store(base + page * PAGE, page + 1).expect("a page"));
    fact!("unmap the middle", "{}", munmap(base + 6 * PAGE, 4 * PAGE));
    fact!("unmap the start", "{}", munmap(base, PAGE));
    fact!("unmap the end, and a byte", "{}", munmap(base + 14 * PAGE, PAGE + 1));
    fact!("left", "{}", maps::line(arena, 16 * PAGE));
    let found: Vec<String> = (0..16).map(|page| seen(base + page * PAGE)).collect();
    fact!("contents", "{}", found.join(" "));
    fact!("unmap over holes", "{}", munmap(base, 16 * PAGE));
    fact!("left", "{}", maps::line(arena, 16 * PAGE));
}

fn protection() {
    let arena = reserve(16 * PAGE);
    let base = mmap(arena, 8 * PAGE, RW, PRIVATE | MAP_FIXED).value("fixed");
    (0..8).for_each(|page| store(base + page * PAGE, page + 1).expect("a page"));
    for (name, prot) in [
        ("read", PROT_READ),
        ("none", PROT_NONE),
        ("read and execute", PROT_READ | PROT_EXEC),
        ("all", RW | PROT_EXEC),
    ] {
        fact!(name, "{}", mprotect(base + 2 * PAGE, 2 * PAGE, prot));
        fact!(name, "{}; {}", seen(base + 2 * PAGE), written(base + 3 * PAGE, 99));
        fact!(name, "{}", maps::line(arena, 16 * PAGE));
    }
    fact!("write alone", "{}; {}", mprotect(base, PAGE, PROT_WRITE), written(base, 5));
    fact!("write alone", "{}", maps::line(arena, 2 * PAGE));
    fact!("over the end of what is mapped", "{}", mprotect(base + 6 * PAGE, 16 * PAGE, PROT_READ));
    fact!("what it did", "{}; {}", written(base + 6 * PAGE, 1), seen(base + 6 * PAGE));
    munmap(base + 4 * PAGE, PAGE).value("unmap");
    fact!("over a hole", "{}", mprotect(base + 3 * PAGE, 3 * PAGE, PROT_READ));
    fact!("what it did", "{}; {}", written(base + 3 * PAGE, 1), written(base + 5 * PAGE, 1));
    fact!("no memory", "{}", mprotect(base, 0, PROT_READ));
    fact!("all of it", "{}", maps::line(arena, 16 * PAGE));
    let code = anon(PAGE);
    // mov eax, 42; ret
    store(code, u64::from_le_bytes([0xb8, 42, 0, 0, 0, 0xc3, 0, 0])).expect("a page");
    let run = || {
        let function = code as *const ();
        // SAFETY: the bytes are a function without arguments; without PROT_EXEC the call faults, in a child.
        let function: extern "C" fn() -> i32 = unsafe { std::mem::transmute(function) };
        function()
    };
    fact!("code without the right to run", "{}", task::child(run));
    fact!("with it", "{}; {}", mprotect(code, PAGE, PROT_READ | PROT_EXEC), task::child(run));
}

fn shared() {
    let base = mmap(0, 4 * PAGE, RW, SHARED).value("shared memory");
    store(base, 1).expect("a page");
    let child = task::child(|| {
        let found = memory::load(base).unwrap_or_default();
        store(base + PAGE, found + 10).expect("a page");
        3
    });
    fact!("a child writes shared memory", "{child}; {}", seen(base + PAGE));
    fact!("unmap a part of it", "{}; {} {}", munmap(base + PAGE, PAGE), seen(base), seen(base + PAGE));
}

fn large() {
    let arena = reserve(8 * HUGE);
    let base = mmap(arena, 4 * HUGE, RW, PRIVATE | MAP_FIXED).value("fixed");
    (0..2048_u64).step_by(64).for_each(|page| store(base + page * PAGE, page).expect("a page"));
    fact!("a hole in a large page", "{}", munmap(base + HUGE + 5 * PAGE, 3 * PAGE));
    fact!("protect a piece of another", "{}", mprotect(base + 2 * HUGE + PAGE, PAGE, PROT_READ));
    fact!("left", "{}", maps::line(arena, 8 * HUGE));
    let sum: u64 =
        (0..2048_u64).step_by(64).map(|page| memory::load(base + page * PAGE).unwrap_or(1 << 40)).sum();
    fact!("contents", "{sum}; {} {}", seen(base + HUGE + 4 * PAGE), seen(base + HUGE + 5 * PAGE));
    fact!("a length that wraps", "{}", munmap(arena, u64::MAX - PAGE + 1));
    fact!("far too much", "{}", mmap(0, 1 << 46, RW, PRIVATE | MAP_NORESERVE).verdict());
    fact!("more than there are addresses", "{}", mmap(0, 1 << 47, RW, PRIVATE | MAP_NORESERVE));
    fact!("a length that wraps to nothing", "{}", mmap(0, u64::MAX, RW, PRIVATE));
    let gigabytes = mmap(0, 1 << 36, RW, PRIVATE | MAP_NORESERVE);
    let at = gigabytes.0 as u64 + (1 << 35);
    fact!("64 GiB, of which a page is used", "{} {} {}", gigabytes.verdict(), written(at, 1), seen(at));
    fact!("given back", "{}", munmap(gigabytes.0 as u64, 1 << 36));
}

fn heap() {
    let now = sys!(SYS_brk, 0).0 as u64;
    let up = now.next_multiple_of(PAGE);
    fact!("grow", "{}", sys!(SYS_brk, up + 3 * PAGE).0 as u64 == up + 3 * PAGE);
    fact!("new heap", "{} {}", seen(up), written(up + 3 * PAGE - 8, 8));
    fact!("its end", "{}", seen(up + 3 * PAGE));
    fact!("by a byte", "{}", sys!(SYS_brk, up + 3 * PAGE + 1).0 as u64 == up + 3 * PAGE + 1);
    fact!("shrink", "{}", sys!(SYS_brk, up + PAGE).0 as u64 == up + PAGE);
    fact!("what is gone", "{} {}", seen(up), seen(up + PAGE));
    fact!(
        "grow again",
        "{} {}",
        sys!(SYS_brk, up + 3 * PAGE).0 as u64 == up + 3 * PAGE,
        seen(up + 3 * PAGE - 8)
    );
    fact!("below its start", "{}", sys!(SYS_brk, PAGE).0 as u64 == up + 3 * PAGE);
    fact!("into the kernel", "{}", sys!(SYS_brk, u64::MAX).0 as u64 == up + 3 * PAGE);
    fact!("back", "{}", sys!(SYS_brk, now).0 as u64 == now);
}
