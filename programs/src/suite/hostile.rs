//! `suite hostile [NAME]`: programs that mean harm, or that ask for more than there is. The kernel has to live on, and what they held
//! has to be free afterwards.
//!
//! Each is a line of KTAP. They run in farpage only: some of what they do as root would stop a real machine.

mod devices;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use farpage_programs::memory::{PRIVATE, RW, SHARED, load, madvise, mmap, mremap, munmap, store};
use farpage_programs::sys::{call, name};
use farpage_programs::task::{Status, child, spawn, try_spawn, wait};
use farpage_programs::{HUGE, PAGE, memory, sys};
use libc::{MADV_DONTNEED, MADV_HUGEPAGE, MAP_FIXED, MREMAP_FIXED, MREMAP_MAYMOVE, POLLIN, SIGKILL};

/// A scenario: what it came to, or what is wrong.
type Scenario = (&'static str, fn() -> Result<String, String>);

const SCENARIOS: &[Scenario] = &[
    ("wild_calls", wild_calls),
    ("wild_ranges", wild_ranges),
    ("wild_instructions", wild_instructions),
    ("stack_into_its_guard", stack_into_its_guard),
    ("a_thousand_processes", a_thousand_processes),
    ("endless_fork", endless_fork),
    ("endless_threads", endless_threads),
    ("memory_exhausted", memory_exhausted),
    ("shared_memory_exhausted", shared_memory_exhausted),
    ("file_memory_exhausted", file_memory_exhausted),
    ("endless_mappings", endless_mappings),
    ("changes_under_a_call", changes_under_a_call),
    ("exits_in_a_migration", devices::exits_in_a_migration),
    ("kills_in_a_migration", devices::kills_in_a_migration),
    ("forks_in_a_migration", devices::forks_in_a_migration),
    ("a_device_left_open", devices::a_device_left_open),
];

/// Runs those whose names contain the argument.
pub(crate) fn run(args: &[String]) -> ExitCode {
    let mut names = [[0_u8; 65]; 6];
    sys!(SYS_uname, names.as_mut_ptr()).value("uname");
    if !names[1].starts_with(b"farpage\0") {
        eprintln!("suite: hostile programs are for farpage: run them with `cargo run -- exec suite hostile`");
        return ExitCode::FAILURE;
    }
    let chosen =
        SCENARIOS.iter().filter(|scenario| args.iter().all(|part| scenario.0.contains(part.as_str())));
    println!("KTAP version 1");
    let mut failed = false;
    for (number, (name, scenario)) in (1..).zip(chosen) {
        // In a child, so that one that is killed is a line too.
        let status = child(|| match scenario() {
            Ok(what) => {
                println!("# {name}: {what}");
                0
            }
            Err(why) => {
                println!("# {name}: {why}");
                1
            }
        });
        let ok = status == Status(0);
        failed |= !ok;
        println!(
            "{} {number} {name}{}",
            if ok { "ok" } else { "not ok" },
            if ok { String::new() } else { format!(" # {status}") }
        );
    }
    ExitCode::from(u8::from(failed))
}

/// An error, unless it is true.
fn must(truth: bool, what: &str) -> Result<(), String> {
    if truth { Ok(()) } else { Err(what.to_owned()) }
}

/// Waits for a child for some seconds; one that takes longer is killed, which is told.
fn wait_or_kill(pid: i32) -> (Status, bool) {
    let fd = sys!(SYS_pidfd_open, pid, 0).value("pidfd_open");
    let mut polled = libc::pollfd { fd: fd as i32, events: POLLIN, revents: 0 };
    let late = sys!(SYS_poll, &raw mut polled, 1, 10_000).0 != 1;
    if late {
        let _ = sys!(SYS_kill, pid, SIGKILL);
    }
    let _ = sys!(SYS_close, fd);
    (wait(pid), late)
}

/// Calls that do what they say whatever their arguments are: end, sleep, or send.
const MEANT: &[i64] = &[
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_pause,
    libc::SYS_rt_sigreturn,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_clone,
];

/// Every number with every sort of address, in all places and in single ones.
fn wild_calls() -> Result<String, String> {
    let (mut calls, mut late, mut killed) = (0, 0, 0);
    let page = memory::anon(2 * PAGE);
    munmap(page + PAGE, PAGE).value("unmap");
    let wild = [
        1,
        u64::MAX,
        0x8000_0000_0000_0000,
        0xffff_8000_0000_0000,
        0xffff_ffff_8000_0001,
        1 << 47,
        (1 << 47) - 8,
        page + PAGE - 3,
        page + 1,
    ];
    for first in (0..470_i64).step_by(10) {
        let pid = spawn(|| {
            for number in (first..first + 10).filter(|number| !MEANT.contains(number)) {
                for value in wild {
                    let _ = call(number, [value; 6]);
                    for place in 0..6 {
                        let mut args = [0; 6];
                        args[place] = value;
                        let _ = call(number, args);
                        let mut args = [PAGE; 6];
                        args[place] = value;
                        let _ = call(number, args);
                    }
                }
            }
            0
        });
        let (status, was_late) = wait_or_kill(pid);
        calls += 10 * wild.len() * 13;
        late += i32::from(was_late);
        killed += i32::from(!was_late && status != Status(0));
    }
    must(late < 10, "most children did not come back")?;
    Ok(format!("{calls} calls; {late} children slept, {killed} were ended"))
}

/// Ranges at every edge, for the calls that change memory. Nothing of the program's own lies in them.
fn wild_ranges() -> Result<String, String> {
    let edges = [
        1 << 47,
        (1 << 47) - PAGE,
        u64::MAX - PAGE + 1,
        0xffff_8000_0000_0000,
        0xffff_ffff_8000_0000,
        1 << 63,
        (1 << 63) - PAGE,
    ];
    let mut done = 0;
    for at in edges {
        for len in [
            0,
            1,
            PAGE,
            HUGE,
            1 << 30,
            1 << 46,
            1 << 47,
            1 << 63,
            u64::MAX,
            at.wrapping_neg(),
            at.wrapping_neg().wrapping_add(PAGE),
        ] {
            for at in [at, at + 1, at.wrapping_sub(1)] {
                let found = [
                    munmap(at, len),
                    memory::mprotect(at, len, RW),
                    madvise(at, len, MADV_DONTNEED),
                    madvise(at, len, MADV_HUGEPAGE),
                    mmap(at, len, RW, PRIVATE | MAP_FIXED),
                    mremap(at, len, len, MREMAP_MAYMOVE, 0),
                    mremap(at, PAGE, len, MREMAP_MAYMOVE | MREMAP_FIXED, at),
                ];
                done += found.iter().filter(|ret| ret.is_ok()).count();
            }
        }
    }
    // Only what has no length, or lies in the last pages of the user half, can be done.
    Ok(format!("{done} of {} could be done", edges.len() * 11 * 3 * 7))
}

fn wild_instructions() -> Result<String, String> {
    crate::traps::odd();
    must(child(|| 5) == Status(5 << 8), "there is no child afterwards")?;
    Ok("the kernel goes on".into())
}

#[inline(never)]
fn deep(n: u64) -> u64 {
    let room = std::hint::black_box([n; 512]);
    if room[17] == u64::MAX { 0 } else { 1 + deep(room[17] + 1) }
}

fn stack_into_its_guard() -> Result<String, String> {
    let main = child(|| deep(0) as i32);
    let thread = child(|| thread::spawn(|| deep(0)).join().map_or(1, |_| 2));
    let wall = child(|| {
        // What lies right below the largest stack stops it, and is not written.
        let local = 0_u8;
        let top = (&raw const local).addr() as u64;
        let below = (top - (16 << 20)) & !(PAGE - 1);
        let _ = mmap(below, PAGE, RW, PRIVATE | MAP_FIXED);
        deep(0) as i32
    });
    let ended = |status: Status| libc::WIFSIGNALED(status.0);
    must(ended(main) && ended(thread) && ended(wall), "a stack without an end did not end its process")?;
    Ok(format!("{main}, {thread}, {wall}"))
}

/// Forks children that only wait, until there are `count`, or no more can be had.
fn crowd(count: usize) -> (Vec<i32>, i32) {
    let mut pids = Vec::new();
    while pids.len() < count {
        match try_spawn(|| {
            loop {
                let _ = sys!(SYS_nanosleep, [1000_i64, 0].as_ptr(), 0);
            }
        }) {
            Ok(pid) => pids.push(pid),
            Err(errno) => return (pids, errno),
        }
    }
    (pids, 0)
}

fn dismiss(pids: &[i32]) -> Result<(), String> {
    for pid in pids {
        let _ = sys!(SYS_kill, *pid, SIGKILL);
    }
    for pid in pids {
        let status = wait(*pid);
        must(libc::WIFSIGNALED(status.0), "a child was not killed")?;
    }
    must(sys!(SYS_wait4, -1_i64, 0, 0, 0).errno() == libc::ECHILD, "a child is left")
}

fn a_thousand_processes() -> Result<String, String> {
    let (pids, errno) = crowd(1000);
    let alive = pids.iter().filter(|pid| sys!(SYS_kill, **pid, 0).is_ok()).count();
    dismiss(&pids)?;
    must(alive == 1000, &format!("{alive} processes were alive, then: {}", name(errno)))?;
    Ok(format!("{alive} at once"))
}

fn endless_fork() -> Result<String, String> {
    let (pids, errno) = crowd(100_000);
    let more = child_errno();
    dismiss(&pids)?;
    must(
        [libc::EAGAIN, libc::ENOMEM].contains(&errno),
        &format!("after {} processes: {}", pids.len(), name(errno)),
    )?;
    must(more == errno, "and then there was one more")?;
    must(child(|| 5) == Status(5 << 8), "there is no child afterwards")?;
    Ok(format!("an end after some thousand: {}", name(errno)))
}

fn child_errno() -> i32 {
    match try_spawn(|| 0) {
        Ok(pid) => {
            let _ = wait(pid);
            0
        }
        Err(errno) => errno,
    }
}

fn endless_threads() -> Result<String, String> {
    let status = child(|| {
        let mut count = 0;
        loop {
            let sleeper = thread::Builder::new().stack_size(16 << 10).spawn(|| {
                loop {
                    thread::park();
                }
            });
            if sleeper.is_err() {
                return i32::from(count < 100);
            }
            count += 1;
        }
    });
    must(status == Status(0), &format!("threads without end: {status}"))?;
    must(child(|| 5) == Status(5 << 8), "there is no child afterwards")?;
    Ok("an end, and room again".into())
}

/// A child that writes memory of its own for ever. It is refused, or killed.
fn eat(shared: bool, large: bool) -> Status {
    let (status, late) = wait_or_kill_slowly(spawn(|| {
        loop {
            let len = 16 * HUGE;
            let at = mmap(0, len, RW, if shared { SHARED } else { PRIVATE });
            if !at.is_ok() {
                return 3;
            }
            let at = at.0 as u64;
            let _ = madvise(at, len, if large { MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE });
            (0..len / PAGE).for_each(|page| store(at + page * PAGE, page).unwrap_or(()));
        }
    }));
    assert!(!late, "memory is not that large");
    status
}

/// As [`wait_or_kill`], for what may take a minute.
fn wait_or_kill_slowly(pid: i32) -> (Status, bool) {
    let fd = sys!(SYS_pidfd_open, pid, 0).value("pidfd_open");
    let mut polled = libc::pollfd { fd: fd as i32, events: POLLIN, revents: 0 };
    let late = sys!(SYS_poll, &raw mut polled, 1, 300_000).0 != 1;
    if late {
        let _ = sys!(SYS_kill, pid, SIGKILL);
    }
    let _ = sys!(SYS_close, fd);
    (wait(pid), late)
}

/// Was it refused, or killed?
fn is_an_end(status: Status) -> bool {
    status == Status(3 << 8)
        || (libc::WIFSIGNALED(status.0) && [SIGKILL, libc::SIGBUS].contains(&libc::WTERMSIG(status.0)))
}

fn memory_exhausted() -> Result<String, String> {
    let large = eat(false, true);
    let small = eat(false, false);
    must(is_an_end(large) && is_an_end(small), &format!("{large}, {small}"))?;
    let kept = memory::anon(8 * HUGE);
    (0..8 * HUGE / PAGE).for_each(|page| store(kept + page * PAGE, page).expect("memory is free again"));
    Ok(format!("{large}, {small}"))
}

fn shared_memory_exhausted() -> Result<String, String> {
    let status = eat(true, false);
    must(is_an_end(status), &status.to_string())?;
    let kept = memory::anon(8 * HUGE);
    (0..8 * HUGE / PAGE).for_each(|page| store(kept + page * PAGE, page).expect("memory is free again"));
    Ok(status.to_string())
}

fn file_memory_exhausted() -> Result<String, String> {
    let status = child(|| {
        let fd = sys!(SYS_openat, libc::AT_FDCWD, c"/tmp".as_ptr(), libc::O_TMPFILE | libc::O_RDWR, 0o600)
            .value("a file");
        let block = vec![1_u8; 1 << 20];
        loop {
            let wrote = sys!(SYS_write, fd, block.as_ptr(), block.len());
            if !wrote.is_ok() {
                return i32::from(![libc::ENOSPC, libc::ENOMEM].contains(&wrote.errno())) + 3;
            }
        }
    });
    must(is_an_end(status), &status.to_string())?;
    let kept = memory::anon(8 * HUGE);
    (0..8 * HUGE / PAGE).for_each(|page| store(kept + page * PAGE, page).expect("memory is free again"));
    Ok(status.to_string())
}

fn endless_mappings() -> Result<String, String> {
    let status = child(|| {
        let mut last = 0;
        for number in 0..200_000_u64 {
            // Each next to another one of other rights, so that none are merged.
            let prot = if number % 2 == 0 { RW } else { libc::PROT_READ };
            let at = mmap(0, PAGE, prot, PRIVATE);
            if !at.is_ok() {
                return if at.errno() == libc::ENOMEM { 3 } else { 1 };
            }
            last = at.0 as u64;
        }
        i32::from(load(last).is_err())
    });
    must(status == Status(0) || is_an_end(status), &status.to_string())?;
    Ok(status.to_string())
}

/// Memory changes while calls copy from it and to it.
fn changes_under_a_call() -> Result<String, String> {
    let arena = memory::reserve(4 * HUGE);
    let zero = sys!(SYS_openat, libc::AT_FDCWD, c"/dev/zero".as_ptr(), libc::O_RDWR).value("zero");
    let running = AtomicU64::new(1);
    thread::scope(|scope| {
        for seed in 0..2_u64 {
            let running = &running;
            scope.spawn(move || {
                let mut n = seed;
                while running.load(Ordering::Relaxed) == 1 {
                    n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let at = arena + (n >> 33) % 512 * 4 * PAGE;
                    let _ = match n >> 60 {
                        0..6 => mmap(at, 4 * PAGE, RW, PRIVATE | MAP_FIXED),
                        6..9 => munmap(at, 2 * PAGE),
                        9..12 => memory::mprotect(at, 4 * PAGE, libc::PROT_READ),
                        12..14 => madvise(at, 4 * PAGE, MADV_DONTNEED),
                        _ => mremap(at, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, arena + 3 * HUGE),
                    };
                }
            });
        }
        let (mut whole, mut cut) = (0, 0);
        for n in 0..2000_u64 {
            let at = arena + n * 37 % 500 * 4 * PAGE;
            let got = sys!(SYS_read, zero, at, 16 * PAGE);
            if got.0 == 16 * PAGE as i64 { whole += 1 } else { cut += 1 }
        }
        running.store(0, Ordering::Relaxed);
        Ok(format!("{} reads", whole + cut))
    })
}
