//! fork, copy on write, exit and wait4.

use std::process;

use farpage_programs::memory::{
    PRIVATE, RW, SHARED, anon, load, madvise, mmap, mremap, munmap, reserve, seen, store,
};
use farpage_programs::task::{Status, child, spawn, wait};
use farpage_programs::{HUGE, PAGE, fact, maps, memory, sys};
use libc::{MADV_DONTNEED, MADV_HUGEPAGE, MAP_FIXED, MREMAP_FIXED, MREMAP_MAYMOVE, WNOHANG};

/// Runs the group.
pub(crate) fn run() {
    memory::catch_faults();
    private();
    tree();
    large();
    mixed();
    statuses();
    waits();
    many();
    orphan();
    groups();
}

fn private() {
    let base = anon(8 * PAGE);
    (0..4).for_each(|page| store(base + page * PAGE, page + 1).expect("a page"));
    let status = child(|| {
        let before: u64 = (0..8).map(|page| load(base + page * PAGE).unwrap_or(99)).sum();
        (0..8).for_each(|page| store(base + page * PAGE, 100 + page).expect("a page"));
        let after: u64 = (0..8).map(|page| load(base + page * PAGE).unwrap_or(99)).sum();
        println!("child: before {before} after {after}");
        0
    });
    let sum: u64 = (0..8).map(|page| load(base + page * PAGE).unwrap_or(99)).sum();
    fact!("a child's writes stay with it", "{status}; {sum}");
    let status = child(|| {
        println!("child: {}; {}", munmap(base, 2 * PAGE), seen(base));
        println!("child: {}; {}", madvise(base + 2 * PAGE, PAGE, MADV_DONTNEED), seen(base + 2 * PAGE));
        0
    });
    fact!(
        "so does what it unmaps",
        "{status}; {} {} {}",
        seen(base),
        seen(base + PAGE),
        seen(base + 2 * PAGE)
    );
    let text = String::from("a heap");
    let status = child(|| {
        let mut own = text.clone();
        own.push_str(" of its own");
        own.len() as i32
    });
    fact!("the heap", "{status}; {text}");
}

/// Each generation writes a page and passes on.
fn generation(base: u64, depth: u64) -> i32 {
    store(base + depth * PAGE, depth + 1).expect("a page");
    if depth < 5 {
        let status = child(|| generation(base, depth + 1));
        store(base, load(base).unwrap_or(0) + 1).expect("a page");
        println!("generation {depth}: its child: {status}");
    }
    (0..8).map(|page| load(base + page * PAGE).unwrap_or(99)).sum::<u64>() as i32
}

fn tree() {
    let base = anon(8 * PAGE);
    let status = child(|| generation(base, 0));
    fact!("six generations", "{status}; {}", seen(base));
    let counter = mmap(0, PAGE, RW, SHARED).value("shared");
    let pids: Vec<i32> = (0..4_u64)
        .map(|number| {
            spawn(|| {
                store(base + PAGE, number).expect("a page");
                let inner = child(|| load(base + PAGE).unwrap_or(99) as i32 + 10);
                store(counter + 8 * number, inner.0 as u64 >> 8).expect("a page");
                number as i32
            })
        })
        .collect();
    let statuses: Vec<String> = pids.into_iter().map(|pid| wait(pid).to_string()).collect();
    let found: Vec<String> = (0..4).map(|number| seen(counter + 8 * number)).collect();
    fact!("four children with a child each", "{}; {}", statuses.join(", "), found.join(" "));
}

fn large() {
    let arena = reserve(4 * HUGE);
    let base = mmap(arena, 2 * HUGE, RW, PRIVATE | MAP_FIXED).value("fixed");
    let _ = madvise(base, 2 * HUGE, MADV_HUGEPAGE);
    let sum = |from: u64| -> u64 {
        (0..1024).step_by(7).map(|page| load(from + page * PAGE).unwrap_or(1 << 40)).sum()
    };
    (0..1024).for_each(|page| store(base + page * PAGE, page).expect("a page"));
    let status = child(|| {
        store(base + 5 * PAGE, 1 << 20).expect("a page");
        store(base + HUGE, 1 << 20).expect("a page");
        println!("child: {} {} {}", sum(base), seen(base + 5 * PAGE), seen(base + 6 * PAGE));
        let moved = mremap(base, HUGE, HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, arena + 2 * HUGE);
        println!("child: {} {}", moved.verdict(), seen(arena + 2 * HUGE + 5 * PAGE));
        println!("child: {}", maps::line(arena, 4 * HUGE));
        0
    });
    fact!("large pages of a child", "{status}; {} {}", sum(base), maps::line(arena, 4 * HUGE));
    let turn = mmap(0, PAGE, RW, SHARED).value("shared");
    let pid = spawn(|| {
        let before = sum(base);
        store(turn, 1).expect("a page");
        while load(turn) != Ok(2) {
            let _ = sys!(SYS_sched_yield);
        }
        i32::from(before == sum(base))
    });
    while load(turn) != Ok(1) {
        let _ = sys!(SYS_sched_yield);
    }
    (0..1024).for_each(|page| store(base + page * PAGE, 7).expect("a page"));
    store(turn, 2).expect("a page");
    fact!("a parent's writes stay with it too", "{}; {}", wait(pid), sum(base));
}

fn mixed() {
    let shared = mmap(0, 4 * PAGE, RW, SHARED).value("shared");
    let private = anon(4 * PAGE);
    store(shared, 1).expect("a page");
    store(private, 1).expect("a page");
    let status = child(|| {
        let inner = child(|| {
            store(shared + PAGE, 3).expect("a page");
            store(private + PAGE, 3).expect("a page");
            0
        });
        store(shared, 2).expect("a page");
        store(private, 2).expect("a page");
        println!("child: {inner}; {} {}", seen(shared + PAGE), seen(private + PAGE));
        0
    });
    fact!("shared", "{status}; {} {}", seen(shared), seen(shared + PAGE));
    fact!("private", "{} {}", seen(private), seen(private + PAGE));
    let status = child(|| {
        println!("child: {}", munmap(shared, 4 * PAGE));
        0
    });
    fact!("shared memory outlives a child's unmap", "{status}; {}", seen(shared));
}

fn statuses() {
    for code in [0, 1, 42, 255, 256, -1] {
        fact!("exit", "{code}: {}", child(|| process::exit(code)));
    }
    fact!("exit_group", "{}", child(|| sys!(SYS_exit_group, 7).0 as i32));
    fact!("exit of the only thread", "{}", child(|| sys!(SYS_exit, 8).0 as i32));
    fact!("abort", "{}", child(|| process::abort()));
    fact!(
        "a wild read",
        "{}",
        child(|| {
            // Not one of the probes' instructions, so nothing goes on behind it.
            // SAFETY: nothing is read: it faults, and ends the child.
            unsafe { std::ptr::read_volatile(0x10 as *const i32) }
        })
    );
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGUSR1, libc::SIGHUP, libc::SIGALRM] {
        let pid = spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        });
        fact!("a spinning child killed", "{}; {}", sys!(SYS_kill, pid, signal), wait(pid));
    }
}

fn waits() {
    let me = sys!(SYS_getpid).0;
    let status = child(|| i32::from(sys!(SYS_getppid).0 == me && sys!(SYS_getpid).0 != me));
    fact!("a child knows its parent", "{status}");
    fact!(
        "nobody to wait for",
        "{} {}",
        sys!(SYS_wait4, -1_i64, 0, 0, 0),
        sys!(SYS_wait4, -1_i64, 0, WNOHANG, 0)
    );
    fact!("oneself", "{}", sys!(SYS_wait4, me, 0, 0, 0));
    let pid = spawn(|| {
        loop {
            let _ = sys!(SYS_sched_yield);
        }
    });
    let mut word = 0x55_i32;
    fact!("one that runs", "{} {word:#x}", sys!(SYS_wait4, pid, &raw mut word, WNOHANG, 0));
    fact!("wrong options", "{}", sys!(SYS_wait4, pid, 0, 0x1234_5678, 0));
    fact!("signal 0", "{}", sys!(SYS_kill, pid, 0));
    fact!("signal 65", "{}", sys!(SYS_kill, pid, 65));
    fact!("kill", "{}", sys!(SYS_kill, pid, libc::SIGKILL));
    fact!("nowhere to put the status", "{}", sys!(SYS_wait4, pid, 0x10, 0, 0));
    fact!("and it is gone all the same", "{}", sys!(SYS_wait4, pid, &raw mut word, 0, 0));
    fact!("signal 0 to nobody", "{}", sys!(SYS_kill, pid, 0));
    let mut usage = [0_u64; 18];
    let pid = spawn(|| 5);
    let got = sys!(SYS_wait4, -1_i64, &raw mut word, 0, usage.as_mut_ptr());
    fact!("any, with usage", "{} {}", got.0 == i64::from(pid), Status(word));
    fact!("without a status", "{}", sys!(SYS_wait4, spawn(|| 6), 0, 0, 0).verdict());
    let pid = spawn(|| 4);
    while sys!(SYS_wait4, pid, &raw mut word, WNOHANG, 0).0 == 0 {
        let _ = sys!(SYS_sched_yield);
    }
    fact!("asked again and again", "{}", Status(word));
    let zombie = spawn(|| 9);
    let other = spawn(|| 10);
    fact!("the later one first", "{}, {}", wait(other), wait(zombie));
}

fn many() {
    let codes: Vec<i32> = (0..100).map(|code| child(|| code).0 >> 8).collect();
    fact!("a hundred, one after the other", "{}", codes.iter().sum::<i32>());
    let pids: Vec<i32> = (0..50).map(|code| spawn(|| code)).collect();
    let mut sum = 0;
    for _ in &pids {
        let mut word = 0;
        let _ = sys!(SYS_wait4, -1_i64, &raw mut word, 0, 0);
        sum += word >> 8;
    }
    fact!("fifty at once", "{sum} {}", sys!(SYS_wait4, -1_i64, 0, 0, 0));
}

fn orphan() {
    let shared = mmap(0, PAGE, RW, SHARED).value("shared");
    let status = child(|| {
        let parent = sys!(SYS_getpid).0;
        spawn(|| {
            while sys!(SYS_getppid).0 == parent {
                let _ = sys!(SYS_sched_yield);
            }
            store(shared, 1).expect("a page");
            0
        });
        3
    });
    while load(shared) == Ok(0) {
        let _ = sys!(SYS_sched_yield);
    }
    fact!("an orphan gets another parent", "{status}; {}", seen(shared));
}

fn groups() {
    let pid = spawn(|| {
        loop {
            let _ = sys!(SYS_sched_yield);
        }
    });
    fact!("a group of its own", "{}", sys!(SYS_setpgid, pid, pid));
    let second = spawn(|| {
        loop {
            let _ = sys!(SYS_sched_yield);
        }
    });
    fact!("another into it", "{}", sys!(SYS_setpgid, second, pid));
    fact!("a group that is not", "{}", sys!(SYS_setpgid, second, 0x3fff_fff0));
    fact!("no child", "{}", sys!(SYS_setpgid, 1, 0));
    fact!("a negative one", "{}", sys!(SYS_setpgid, pid, -1_i64));
    fact!("kill the group", "{}", sys!(SYS_kill, -i64::from(pid), libc::SIGTERM));
    let (mut word, group) = (0, -i64::from(pid));
    let got = [sys!(SYS_wait4, group, &raw mut word, 0, 0), sys!(SYS_wait4, group, &raw mut word, 0, 0)];
    fact!("wait for the group", "{} {}: {}", got[0].verdict(), got[1].verdict(), Status(word));
    fact!("and again", "{}", sys!(SYS_wait4, group, &raw mut word, 0, 0));
    fact!("kill nobody", "{}", sys!(SYS_kill, group, libc::SIGTERM));
}
