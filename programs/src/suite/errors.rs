//! Wrong arguments, call by call: each pointer in turn is wild, each number out of range.

use farpage_programs::memory::{RW, mprotect};
use farpage_programs::sys::{call, words};
use farpage_programs::task::{child, spawn, wait};
use farpage_programs::{PAGE, fact, memory, sys};
use libc::{AT_EMPTY_PATH, AT_FDCWD, PROT_NONE, PROT_READ};

/// Runs the group.
pub(crate) fn run() {
    memory::catch_faults();
    let places = Places::new();
    let zero = sys!(SYS_openat, AT_FDCWD, c"/dev/zero".as_ptr(), libc::O_RDWR).value("zero");
    let null = sys!(SYS_openat, AT_FDCWD, c"/dev/null".as_ptr(), libc::O_RDWR).value("null");
    let maps = sys!(SYS_openat, AT_FDCWD, c"/proc/self/maps".as_ptr(), libc::O_RDONLY).value("maps");
    let directory =
        sys!(SYS_openat, AT_FDCWD, c"/proc/self".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY).value("self");
    let mut ends = [0_i32; 2];
    sys!(SYS_pipe2, ends.as_mut_ptr(), 0).value("pipe");
    sys!(SYS_write, ends[1], c"waiting".as_ptr(), 7).value("write");
    // What the kernel writes.
    places.try_each("read of zero", libc::SYS_read, &|at| [zero, at, 16, 0]);
    places.try_each("read of maps", libc::SYS_read, &|at| [maps, at, 16, 0]);
    places.try_each("pread64 of maps", libc::SYS_pread64, &|at| [maps, at, 16, 0]);
    places.try_each("fstat", libc::SYS_fstat, &|at| [zero, at, 0, 0]);
    places.try_each("newfstatat", libc::SYS_newfstatat, &|at| {
        [zero, c"".as_ptr() as u64, at, AT_EMPTY_PATH as u64]
    });
    places.try_each("getdents64", libc::SYS_getdents64, &|at| [directory, at, 4096, 0]);
    places.try_each("pipe2", libc::SYS_pipe2, &|at| [at, 0, 0, 0]);
    places.try_each("uname", libc::SYS_uname, &|at| [at, 0, 0, 0]);
    places.try_each("sysinfo", libc::SYS_sysinfo, &|at| [at, 0, 0, 0]);
    places.try_each("clock_gettime", libc::SYS_clock_gettime, &|at| [1, at, 0, 0]);
    places.try_each("gettimeofday", libc::SYS_gettimeofday, &|at| [at, 0, 0, 0]);
    places.try_each("getrandom", libc::SYS_getrandom, &|at| [at, 16, 0, 0]);
    places.try_each("prlimit64", libc::SYS_prlimit64, &|at| [0, libc::RLIMIT_STACK.into(), 0, at]);
    places.try_each("rt_sigprocmask, old", libc::SYS_rt_sigprocmask, &|at| [0, 0, at, 8]);
    places.try_each("rt_sigaction, old", libc::SYS_rt_sigaction, &|at| [10, 0, at, 8]);
    places.try_each("rt_sigpending", libc::SYS_rt_sigpending, &|at| [at, 8, 0, 0]);
    places.try_each("sigaltstack, old", libc::SYS_sigaltstack, &|at| [0, at, 0, 0]);
    places.try_each("readlink", libc::SYS_readlink, &|at| [c"/proc/self/exe".as_ptr() as u64, at, 3, 0]);
    places.try_each("arch_prctl, get", libc::SYS_arch_prctl, &|at| [0x1003, at, 0, 0]);
    // What it reads.
    places.try_each("write to null", libc::SYS_write, &|at| [null, at, 16, 0]);
    places.try_each("writev", libc::SYS_writev, &|at| [ends[1] as u64, at, 1, 0]);
    places.try_each("openat", libc::SYS_openat, &|at| [AT_FDCWD as u64, at, 0, 0]);
    places.try_each("stat's name", libc::SYS_newfstatat, &|at| [AT_FDCWD as u64, at, places.good, 0]);
    places.try_each("readlink's name", libc::SYS_readlink, &|at| [at, places.good, 3, 0]);
    places.try_each("nanosleep", libc::SYS_nanosleep, &|at| [at, 0, 0, 0]);
    places.try_each("clock_nanosleep", libc::SYS_clock_nanosleep, &|at| [1, 0, at, 0]);
    places.try_each("rt_sigprocmask, new", libc::SYS_rt_sigprocmask, &|at| [0, at, 0, 8]);
    places.try_each("futex, private", libc::SYS_futex, &|at| [at, 128, 77, 0]);
    places.try_each("poll", libc::SYS_poll, &|at| [at, 1, 0, 0]);
    places.try_each("execve", libc::SYS_execve, &|at| [at, 0, 0, 0]);
    // Of a page of zeros clone3 would make a child, a pipe does not take half of a write, and a futex in the page of zeros is none.
    let wild = Places { good: places.good, all: places.all[..7].to_vec() };
    wild.try_each("write to a pipe", libc::SYS_write, &|at| [ends[1] as u64, at, 16, 0]);
    wild.try_each("futex", libc::SYS_futex, &|at| [at, 0, 77, 0]);
    wild.try_each("futex wake", libc::SYS_futex, &|at| [at, 1, 1, 0]);
    wild.try_each("futex wake, private", libc::SYS_futex, &|at| [at, 129, 1, 0]);
    wild.try_each("clone3", libc::SYS_clone3, &|at| [at, 88, 0, 0]);
    places.try_each("ioctl", libc::SYS_ioctl, &|at| [zero, libc::TCGETS, at, 0]);
    waits(&places);
    numbers(zero);
    ranges();
    unknown();
}

/// Addresses to try.
struct Places {
    /// Where one may write.
    good: u64,
    all: Vec<u64>,
}

impl Places {
    fn new() -> Self {
        let pages = memory::anon(4 * PAGE);
        mprotect(pages + PAGE, PAGE, PROT_NONE).value("protect");
        mprotect(pages + 2 * PAGE, PAGE, PROT_READ).value("protect");
        let all = vec![
            0x1000,
            pages + PAGE,          // may not be used
            0xffff_8000_0000_0000, // the kernel's
            0xffff_ffff_8000_0000,
            0x8000_0000_0000_0000,  // none
            1 << 47,                // behind the user half
            u64::MAX - 7,           // wraps
            pages + PAGE - 2,       // crosses into what may not be used
            (1 << 47) - 4096 - 2,   // and into the last page
            pages + 2 * PAGE + 512, // may be read only, and has zeros
        ];
        Self { good: pages, all }
    }

    /// Calls with each address, and prints what came.
    fn try_each(&self, name: &str, number: i64, args: &dyn Fn(u64) -> [u64; 4]) {
        let found: Vec<String> = self
            .all
            .iter()
            .map(|at| match number {
                // Something may be started.
                libc::SYS_execve | libc::SYS_clone3 => {
                    let status = child(|| call(number, words(&args(*at))).errno());
                    sys::name(status.0 >> 8 & 0xff).to_owned()
                }
                _ => call(number, words(&args(*at))).to_string(),
            })
            .collect();
        fact!(name, "{}", found.join(" "));
    }
}

fn waits(places: &Places) {
    for (name, which) in [("wait4, status", 1), ("wait4, usage", 3)] {
        let found: Vec<String> = places
            .all
            .iter()
            .take(7)
            .map(|at| {
                let pid = spawn(|| 1);
                let mut args = [pid as u64, 0, 0, 0];
                args[which] = *at;
                call(libc::SYS_wait4, words(&args)).verdict().to_owned()
            })
            .collect();
        fact!(name, "{}", found.join(" "));
    }
    let pid = spawn(|| 1);
    fact!("wait4, strange options", "{} {}", sys!(SYS_wait4, pid, 0, 0x40, 0), wait(pid));
}

fn numbers(zero: u64) {
    for fd in [-1_i64, 1 << 20, i64::from(i32::MAX), 1 << 31, 4242] {
        let found = [
            sys!(SYS_read, fd, 0, 0),
            sys!(SYS_write, fd, 0, 0),
            sys!(SYS_pread64, fd, 0, 0, 0),
            sys!(SYS_lseek, fd, 0, 0),
            sys!(SYS_close, fd),
            sys!(SYS_ftruncate, fd, 0),
            sys!(SYS_fstat, fd, 0),
            sys!(SYS_ioctl, fd, 0, 0),
            sys!(SYS_fcntl, fd, 1),
            sys!(SYS_getdents64, fd, 0, 0),
            sys!(SYS_mmap, 0, PAGE, PROT_READ, libc::MAP_PRIVATE, fd, 0),
        ];
        fact!("no such descriptor", "{}", found.map(|ret| ret.to_string()).join(" "));
    }
    fact!("reads", "{} {}", sys!(SYS_read, zero, 0, 0), sys!(SYS_read, zero, 0x1000, 0));
    fact!(
        "a length that is negative",
        "{} {}",
        sys!(SYS_read, zero, 0x1000, -1_i64),
        sys!(SYS_write, zero, 0x1000, -1_i64)
    );
    fact!(
        "openat, strange flags",
        "{}",
        sys!(SYS_openat, AT_FDCWD, c"/dev/zero".as_ptr(), libc::O_DIRECTORY)
    );
    fact!("newfstatat, strange flags", "{}", sys!(SYS_newfstatat, zero, c"".as_ptr(), 0x1000, 0x1234_0000));
    fact!("newfstatat, no name", "{}", sys!(SYS_newfstatat, zero, c"".as_ptr(), 0x1000, 0));
    fact!("kill", "{} {}", sys!(SYS_kill, 0x3fff_fff0, 0), sys!(SYS_kill, i64::from(i32::MIN), 0));
    fact!("arch_prctl", "{} {}", sys!(SYS_arch_prctl, 0x9999, 0), sys!(SYS_arch_prctl, 0x1002, 1_u64 << 47));
    fact!("set_robust_list", "{}", sys!(SYS_set_robust_list, 0, 5));
    fact!("clone3, strange size", "{} {}", sys!(SYS_clone3, 0, 0), sys!(SYS_clone3, 0, 1 << 20));
    let mut args = [0_u64; 11];
    fact!("clone3, a signal too many", "{}", {
        args[4] = 99;
        sys!(SYS_clone3, args.as_ptr(), 88)
    });
    fact!("clone, threads without memory", "{}", sys!(SYS_clone, libc::CLONE_THREAD, 0, 0, 0, 0));
    fact!("clone, handlers without memory", "{}", sys!(SYS_clone, libc::CLONE_SIGHAND, 0, 0, 0, 0));
}

fn ranges() {
    let base = memory::anon(4 * PAGE);
    for (name, at, len) in [
        ("odd", base + 1, PAGE),
        ("wrapping", base, u64::MAX - base + 1),
        ("in the kernel", 0xffff_8000_0000_0000, PAGE),
        ("the last page of all", u64::MAX - PAGE + 1, PAGE),
        ("no address", 0x8000_0000_0000_0000, PAGE),
        ("across the end of the user half", (1 << 47) - 2 * PAGE, 4 * PAGE),
        ("nothing", base, 0),
        ("nothing in the kernel", 0xffff_8000_0000_0000, 0),
        ("odd and nothing", base + 1, 0),
    ] {
        let found = [
            sys!(SYS_munmap, at, len),
            sys!(SYS_mprotect, at, len, PROT_READ),
            sys!(SYS_madvise, at, len, libc::MADV_DONTNEED),
            sys!(SYS_madvise, at, len, libc::MADV_HUGEPAGE),
            sys!(SYS_mremap, at, len, len, 0, 0),
            sys!(SYS_mremap, at, len, PAGE, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, base + 1),
        ];
        fact!(name, "{}", found.map(|ret| ret.verdict().to_owned()).join(" "));
    }
    fact!(
        "mprotect, strange rights",
        "{} {}",
        mprotect(base, PAGE, 0x40),
        mprotect(base, PAGE, RW | 0x1000_0000)
    );
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    fact!(
        "mmap, no kind",
        "{} {}",
        memory::mmap(0, PAGE, RW, libc::MAP_ANONYMOUS),
        memory::mmap(0, PAGE, RW, libc::MAP_ANONYMOUS | 7)
    );
    fact!("mmap, an odd offset", "{}", sys!(SYS_mmap, 0, PAGE, RW, flags, -1_i64, 77));
    fact!(
        "mmap, an offset that wraps",
        "{}",
        sys!(SYS_mmap, 0, 2 * PAGE, RW, libc::MAP_PRIVATE, 0, u64::MAX - PAGE + 1).errno() != 0
    );
    fact!("left", "{}", memory::seen(base + 3 * PAGE));
}

/// Calls that nobody has.
fn unknown() {
    let found: Vec<String> = [337, 400, 500, 1000, 4095, 1 << 20, -1, i64::MAX]
        .into_iter()
        .map(|number| call(number, [0; 6]).to_string())
        .collect();
    fact!("calls that are none", "{}", found.join(" "));
}
