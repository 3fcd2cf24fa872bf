//! madvise: large pages or not, and memory given back.

use farpage_programs::memory::{
    PRIVATE, RW, SHARED, anon, madvise, mmap, mprotect, munmap, reserve, seen, store, written,
};
use farpage_programs::{HUGE, PAGE, fact, memory};
use libc::{
    MADV_COLLAPSE, MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_NORMAL, MADV_RANDOM,
    MADV_SEQUENTIAL, MADV_WILLNEED, MAP_FIXED, PROT_NONE, PROT_READ,
};

/// Runs the group.
pub(crate) fn run() {
    memory::catch_faults();
    dontneed();
    free();
    huge();
    errors();
}

fn dontneed() {
    let base = anon(8 * PAGE);
    (0..8).for_each(|page| store(base + page * PAGE, page + 1).expect("a page"));
    fact!("dontneed of a part", "{}", madvise(base + 2 * PAGE, 3 * PAGE, MADV_DONTNEED));
    let found: Vec<String> = (0..8).map(|page| seen(base + page * PAGE)).collect();
    fact!("contents", "{}", found.join(" "));
    fact!("write again", "{} {}", written(base + 2 * PAGE, 9), seen(base + 2 * PAGE));
    mprotect(base, 8 * PAGE, PROT_READ).value("protect");
    fact!("of what may only be read", "{}; {}", madvise(base, PAGE, MADV_DONTNEED), seen(base));
    mprotect(base, 8 * PAGE, PROT_NONE).value("protect");
    fact!("of what may not be used", "{}", madvise(base + PAGE, PAGE, MADV_DONTNEED));
    mprotect(base, 8 * PAGE, RW).value("protect");
    fact!("contents", "{} {} {}", seen(base), seen(base + PAGE), seen(base + 7 * PAGE));
    let shared = mmap(0, 2 * PAGE, RW, SHARED).value("shared");
    store(shared, 5).expect("a page");
    fact!("of shared memory", "{}; {}", madvise(shared, 2 * PAGE, MADV_DONTNEED), seen(shared));
}

fn free() {
    let base = anon(4 * PAGE);
    (0..4).for_each(|page| store(base + page * PAGE, page + 1).expect("a page"));
    fact!("free", "{}", madvise(base, 4 * PAGE, MADV_FREE));
    fact!("a write after it stays", "{} {}", written(base + PAGE, 7), seen(base + PAGE));
    let either = matches!(memory::load(base + 2 * PAGE), Ok(0 | 3));
    fact!("what was not written is old or zero", "{either}");
    let shared = mmap(0, PAGE, RW, SHARED).value("shared");
    fact!("free of shared memory", "{}", madvise(shared, PAGE, MADV_FREE));
}

fn huge() {
    let arena = reserve(4 * HUGE);
    let base = mmap(arena, 3 * HUGE, RW, PRIVATE | MAP_FIXED).value("fixed");
    fact!("hugepage", "{}", madvise(base, 3 * HUGE, MADV_HUGEPAGE));
    (0..1536).for_each(|page| store(base + page * PAGE, page).expect("a page"));
    fact!("dontneed of a piece of a large page", "{}", madvise(base + 9 * PAGE, PAGE, MADV_DONTNEED));
    fact!("contents", "{} {} {}", seen(base + 8 * PAGE), seen(base + 9 * PAGE), seen(base + 10 * PAGE));
    fact!(
        "dontneed of a whole one",
        "{}; {}",
        madvise(base + HUGE, HUGE, MADV_DONTNEED),
        seen(base + HUGE + PAGE)
    );
    fact!("nohugepage", "{}", madvise(base, HUGE, MADV_NOHUGEPAGE));
    fact!("contents", "{} {}", seen(base + 8 * PAGE), seen(base + 2 * HUGE));
    let small = mmap(arena + 3 * HUGE, HUGE, RW, PRIVATE | MAP_FIXED).value("fixed");
    fact!("nohugepage", "{}", madvise(small, HUGE, MADV_NOHUGEPAGE));
    (0..512).for_each(|page| store(small + page * PAGE, page).expect("a page"));
    fact!(
        "collapse is done or refused",
        "{}",
        matches!(
            madvise(small, HUGE, MADV_COLLAPSE).errno(),
            0 | libc::EINVAL | libc::EAGAIN | libc::ENOMEM | libc::EBUSY
        )
    );
    let sum: u64 = (0..512).map(|page| memory::load(small + page * PAGE).unwrap_or_default()).sum();
    fact!("contents after it", "{sum}");
}

fn errors() {
    let base = anon(4 * PAGE);
    for (name, advice) in [
        ("normal", MADV_NORMAL),
        ("random", MADV_RANDOM),
        ("sequential", MADV_SEQUENTIAL),
        ("willneed", MADV_WILLNEED),
    ] {
        fact!(name, "{}", madvise(base, PAGE, advice));
    }
    fact!("unknown advice", "{}", madvise(base, PAGE, 12345));
    fact!("unknown advice on nothing", "{}", madvise(base, 0, 12345));
    fact!("not aligned", "{}", madvise(base + 1, PAGE, MADV_DONTNEED));
    fact!("no length", "{}", madvise(base, 0, MADV_DONTNEED));
    fact!("a length that wraps", "{}", madvise(base, u64::MAX, MADV_DONTNEED));
    fact!("a length that wraps to below", "{}", madvise(base, u64::MAX - base, MADV_DONTNEED));
    fact!("a byte is a page", "{} {}; {}", written(base, 3), madvise(base, 1, MADV_DONTNEED), seen(base));
    munmap(base + PAGE, PAGE).value("unmap");
    store(base + 2 * PAGE, 4).expect("a page");
    fact!("over a hole", "{}; {}", madvise(base, 3 * PAGE, MADV_DONTNEED), seen(base + 2 * PAGE));
    fact!("of a hole", "{}", madvise(base + PAGE, PAGE, MADV_HUGEPAGE));
    fact!("in the kernel", "{}", madvise(0xffff_8000_0000_0000, PAGE, MADV_DONTNEED));
}
