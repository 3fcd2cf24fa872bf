//! mremap: larger, smaller, elsewhere.

use farpage_programs::memory::{
    PRIVATE, RW, SHARED, anon, mmap, mprotect, mremap, munmap, reserve, seen, store, written,
};
use farpage_programs::{HUGE, PAGE, fact, maps, memory, sys, task};
use libc::{MADV_HUGEPAGE, MAP_FIXED, MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_NONE, PROT_READ};

/// Runs the group.
pub(crate) fn run() {
    memory::catch_faults();
    sizes();
    moves();
    dontunmap();
    large();
    shared();
    errors();
}

/// `pages` pages at `at`, each with its number and `tag`.
fn filled(at: u64, pages: u64, flags: i32, tag: u64) -> u64 {
    let base = mmap(at, pages * PAGE, RW, flags | MAP_FIXED).value("fixed");
    (0..pages).for_each(|page| store(base + page * PAGE, tag + page).expect("a page"));
    base
}

fn contents(base: u64, pages: u64) -> String {
    (0..pages).map(|page| seen(base + page * PAGE)).collect::<Vec<_>>().join(" ")
}

fn sizes() {
    let arena = reserve(32 * PAGE);
    munmap(arena, 32 * PAGE).value("unmap");
    let base = filled(arena, 4, PRIVATE, 0x10);
    fact!("grow in place", "{}", mremap(base, 4 * PAGE, 8 * PAGE, 0, 0).0 as u64 == base);
    fact!("contents", "{}", contents(base, 9));
    fact!("shrink", "{}", mremap(base, 8 * PAGE, 2 * PAGE, 0, 0).0 as u64 == base);
    fact!("contents", "{}", contents(base, 4));
    fact!("same size", "{}", mremap(base, 2 * PAGE, 2 * PAGE, 0, 0).0 as u64 == base);
    let _ = (filled(base + 4 * PAGE, 2, PRIVATE, 0x70), munmap(base + 5 * PAGE, PAGE));
    fact!("shrink over a hole", "{}", mremap(base, 6 * PAGE, 2 * PAGE, 0, 0).0 as u64 == base);
    fact!("contents", "{}", contents(base, 6));
    fact!("shrink what is not there", "{}", mremap(base + 8 * PAGE, 6 * PAGE, 2 * PAGE, 0, 0));
    let _wall = filled(base + 2 * PAGE, 1, PRIVATE, 0x90);
    mprotect(base + 2 * PAGE, PAGE, PROT_READ).value("protect");
    fact!("no room to grow", "{}", mremap(base, 2 * PAGE, 4 * PAGE, 0, 0));
    let moved = mremap(base, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE, 0);
    fact!("but it may move", "{} {}", moved.verdict(), moved.0 as u64 != base);
    fact!("contents", "{}", contents(moved.0 as u64, 4));
    fact!("the old place", "{}", maps::line(arena, 8 * PAGE));
}

fn moves() {
    let arena = reserve(64 * PAGE);
    let base = filled(arena + 3 * PAGE, 6, PRIVATE, 0x20);
    mprotect(base, 6 * PAGE, PROT_READ).value("protect");
    let to = arena + 33 * PAGE;
    let both = MREMAP_MAYMOVE | MREMAP_FIXED;
    fact!("move", "{}", mremap(base, 6 * PAGE, 6 * PAGE, both, to).0 as u64 == to);
    fact!("contents", "{}; {}; {}", contents(to, 6), seen(base), written(to, 1));
    fact!("the arena", "{}", maps::line(arena, 64 * PAGE));
    fact!(
        "a part, onto the rest",
        "{}",
        mremap(to + PAGE, 2 * PAGE, 2 * PAGE, both, to + 4 * PAGE).verdict()
    );
    fact!("contents", "{}", contents(to, 6));
    fact!(
        "move and grow",
        "{}",
        mremap(to + 4 * PAGE, 2 * PAGE, 5 * PAGE, both, arena + 10 * PAGE).verdict()
    );
    fact!("contents", "{}", contents(arena + 9 * PAGE, 7));
    fact!("move and shrink", "{}", mremap(arena + 10 * PAGE, 5 * PAGE, 2 * PAGE, both, arena).verdict());
    fact!("contents", "{}", contents(arena, 3));
    fact!("the arena", "{}", maps::line(arena, 64 * PAGE));
    fact!("move what may not be read", "{}", mprotect(arena, PAGE, PROT_NONE));
    fact!("move what may not be read", "{}", mremap(arena, PAGE, PAGE, both, arena + 50 * PAGE).verdict());
    fact!("and read it", "{}; {}", mprotect(arena + 50 * PAGE, PAGE, PROT_READ), seen(arena + 50 * PAGE));
    if sys::since(6, 17) {
        let two = mremap(arena + 33 * PAGE, 4 * PAGE, 4 * PAGE, both, arena + 20 * PAGE);
        fact!("across two areas and a hole", "{}; {}", two.verdict(), maps::line(arena, 64 * PAGE));
    } else {
        println!("skip across two areas and a hole");
    }
}

fn dontunmap() {
    let arena = reserve(64 * PAGE);
    let base = filled(arena + PAGE, 4, PRIVATE, 0x30);
    let to = arena + 40 * PAGE;
    let keep = MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
    fact!(
        "keep the old place",
        "{}",
        mremap(base, 4 * PAGE, 4 * PAGE, keep | MREMAP_FIXED, to).0 as u64 == to
    );
    fact!("new", "{}", contents(to, 4));
    fact!("old", "{}", contents(base, 4));
    fact!("both", "{}", maps::line(arena, 64 * PAGE));
    fact!("write to both", "{} {}", written(base, 1), written(to, 2));
    fact!("then", "{} {}", seen(base), seen(to));
    let free = mremap(base, 4 * PAGE, 4 * PAGE, keep, 0);
    fact!("where the kernel likes", "{} {}", free.verdict(), contents(free.0 as u64, 2));
    fact!("with another size", "{}", mremap(base, 4 * PAGE, 2 * PAGE, keep, 0));
    fact!("without the right to move", "{}", mremap(base, 4 * PAGE, 4 * PAGE, MREMAP_DONTUNMAP, 0));
    let shared = filled(arena + 20 * PAGE, 2, SHARED, 0x40);
    let moved = mremap(shared, 2 * PAGE, 2 * PAGE, keep, 0);
    fact!(
        "of shared memory",
        "{}: {}; {}",
        moved.verdict(),
        contents(moved.0 as u64, 2),
        contents(shared, 2)
    );
    fact!("which stays shared", "{}; {}", written(moved.0 as u64, 0x99), seen(shared));
}

fn large() {
    let arena = reserve(12 * HUGE);
    let both = MREMAP_MAYMOVE | MREMAP_FIXED;
    let base = mmap(arena, 2 * HUGE, RW, PRIVATE | MAP_FIXED).value("fixed");
    fact!("large pages, please", "{}", memory::madvise(base, 2 * HUGE, MADV_HUGEPAGE));
    let fill =
        |at: u64| (0..1024_u64).step_by(31).for_each(|page| store(at + page * PAGE, page).expect("a page"));
    let sum = |at: u64| -> u64 {
        (0..1024_u64)
            .step_by(31)
            .map(|page| memory::load(at + page * PAGE).map_or(1 << 40, |found| found * (page + 1)))
            .sum()
    };
    fill(base);
    let wanted = sum(base);
    for (name, from, to) in [
        ("to a multiple of 2 MiB", arena, arena + 4 * HUGE),
        ("to any page", arena + 4 * HUGE, arena + 8 * HUGE + 3 * PAGE),
        ("from any page", arena + 8 * HUGE + 3 * PAGE, arena),
    ] {
        fact!(name, "{}", mremap(from, 2 * HUGE, 2 * HUGE, both, to).0 as u64 == to);
        fact!(name, "{}; {}", sum(to) == wanted, maps::line(arena, 12 * HUGE));
    }
    fact!(
        "a piece of a large page",
        "{}",
        mremap(arena + 10 * PAGE, 50 * PAGE, 50 * PAGE, both, arena + 6 * HUGE).verdict()
    );
    let pages = (11..60_u64).filter(|page| {
        memory::load(arena + 6 * HUGE + (page - 10) * PAGE) == Ok(if page % 31 == 0 { *page } else { 0 })
    });
    fact!("its contents", "{} {}", pages.count(), maps::line(arena, 12 * HUGE));
}

fn shared() {
    let arena = reserve(32 * PAGE);
    let base = filled(arena, 4, SHARED, 0x50);
    let both = MREMAP_MAYMOVE | MREMAP_FIXED;
    fact!("move shared memory", "{}", mremap(base, 4 * PAGE, 4 * PAGE, both, arena + 8 * PAGE).verdict());
    let at = arena + 8 * PAGE;
    let child = task::child(|| {
        store(at + PAGE, 0x77).expect("a page");
        i32::from(mremap(at, 4 * PAGE, 4 * PAGE, both, arena + 16 * PAGE).is_ok())
    });
    fact!("a child writes and moves it", "{child}: {}", contents(at, 4));
    let twice = mremap(at, 0, 4 * PAGE, both, arena + 20 * PAGE);
    fact!("the same again, by an old length of 0", "{}: {}", twice.verdict(), contents(arena + 20 * PAGE, 4));
    fact!("through one", "{}, the other: {}", written(at, 0x66), seen(arena + 20 * PAGE));
    let grown = mremap(at, 4 * PAGE, 6 * PAGE, both, arena + 24 * PAGE);
    fact!(
        "grown beyond its object",
        "{}: {}; {}",
        grown.verdict(),
        seen(arena + 24 * PAGE),
        seen(arena + 29 * PAGE)
    );
}

fn errors() {
    let base = anon(4 * PAGE);
    let both = MREMAP_MAYMOVE | MREMAP_FIXED;
    fact!("old address not aligned", "{}", mremap(base + 1, PAGE, PAGE, 0, 0));
    fact!("new length 0", "{}", mremap(base, PAGE, 0, 0, 0));
    fact!("old length 0 of private memory", "{}", mremap(base, 0, PAGE, MREMAP_MAYMOVE, 0).verdict());
    fact!("unknown flag", "{}", mremap(base, PAGE, PAGE, 8, 0));
    fact!("fixed without maymove", "{}", mremap(base, PAGE, PAGE, MREMAP_FIXED, base + PAGE));
    fact!("fixed, not aligned", "{}", mremap(base, PAGE, PAGE, both, base + PAGE + 1));
    fact!("onto itself", "{}", mremap(base, 2 * PAGE, 2 * PAGE, both, base + PAGE));
    fact!("onto the same place", "{}", mremap(base, 2 * PAGE, 2 * PAGE, both, base));
    fact!("into the kernel", "{}", mremap(base, PAGE, PAGE, both, 0xffff_8000_0000_0000));
    fact!("beyond the user half", "{}", mremap(base, PAGE, 2 * PAGE, both, (1 << 47) - PAGE));
    fact!("a new length that wraps", "{}", mremap(base, PAGE, u64::MAX, MREMAP_MAYMOVE, 0));
    munmap(base + 2 * PAGE, 2 * PAGE).value("unmap");
    fact!("what is not mapped", "{}", mremap(base + 2 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE, 0));
    fact!("grow what is half mapped", "{}", mremap(base + PAGE, 2 * PAGE, 3 * PAGE, MREMAP_MAYMOVE, 0));
    fact!("still there", "{}", seen(base));
}
