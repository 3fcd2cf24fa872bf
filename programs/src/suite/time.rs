//! Clocks and sleeps: no times, only what must be true of them.

use farpage_programs::{fact, sys};
use libc::{CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID, CLOCK_REALTIME, TIMER_ABSTIME};

const SECOND: i64 = 1_000_000_000;

/// Runs the group.
pub(crate) fn run() {
    for (name, clock) in [
        ("realtime", CLOCK_REALTIME),
        ("monotonic", CLOCK_MONOTONIC),
        ("process", CLOCK_PROCESS_CPUTIME_ID),
        ("thread", libc::CLOCK_THREAD_CPUTIME_ID),
        ("raw", libc::CLOCK_MONOTONIC_RAW),
        ("realtime, coarse", libc::CLOCK_REALTIME_COARSE),
        ("monotonic, coarse", libc::CLOCK_MONOTONIC_COARSE),
        ("boot", libc::CLOCK_BOOTTIME),
        ("none", 99),
    ] {
        let mut time = [-1_i64; 2];
        let got = sys!(SYS_clock_gettime, clock, time.as_mut_ptr());
        let sane = time[0] >= 0 && (0..SECOND).contains(&time[1]);
        fact!(name, "{got} {sane}");
    }
    let mut last = 0;
    let rises = (0..2000).all(|_| {
        let time = now(CLOCK_MONOTONIC);
        let rises = time >= last;
        last = time;
        rises
    });
    fact!("it never goes back", "{rises}");
    let started = now(CLOCK_PROCESS_CPUTIME_ID);
    let mut x = 1_u64;
    (0..2_000_000_u64).for_each(|n| x = std::hint::black_box(x.wrapping_mul(n | 1)));
    fact!("work takes time", "{}", now(CLOCK_PROCESS_CPUTIME_ID) > started);
    let mut day = [0_i64; 2];
    let got = sys!(SYS_gettimeofday, day.as_mut_ptr(), 0);
    let apart = (now(CLOCK_REALTIME) - (day[0] * SECOND + day[1] * 1000)).abs();
    fact!("gettimeofday", "{got} {}", apart < 10 * SECOND);
    sleeps();
    errors();
    system();
}

fn now(clock: i32) -> i64 {
    let mut time = [0_i64; 2];
    sys!(SYS_clock_gettime, clock, time.as_mut_ptr()).value("clock_gettime");
    time[0] * SECOND + time[1]
}

fn sleeps() {
    for nanoseconds in [0, 1, 100_000, 3_000_000] {
        let before = now(CLOCK_MONOTONIC);
        let time = [0, nanoseconds];
        let slept = sys!(SYS_nanosleep, time.as_ptr(), 0);
        fact!("nanosleep", "{nanoseconds}: {slept} {}", now(CLOCK_MONOTONIC) - before >= nanoseconds);
        let before = now(CLOCK_MONOTONIC);
        let slept = sys!(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, time.as_ptr(), 0);
        fact!("clock_nanosleep", "{nanoseconds}: {slept} {}", now(CLOCK_MONOTONIC) - before >= nanoseconds);
    }
    let until = now(CLOCK_MONOTONIC) + 2_000_000;
    let time = [until / SECOND, until % SECOND];
    let slept = sys!(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, time.as_ptr(), 0);
    fact!("until", "{slept} {}", now(CLOCK_MONOTONIC) >= until);
    let slept = sys!(SYS_clock_nanosleep, CLOCK_REALTIME, TIMER_ABSTIME, [1_i64, 0].as_ptr(), 0);
    fact!("until a time that is past", "{slept}");
}

fn errors() {
    let time = |seconds: i64, nanoseconds: i64| {
        let time = [seconds, nanoseconds];
        let slept = sys!(SYS_nanosleep, time.as_ptr(), 0);
        slept.verdict()
    };
    fact!("a second too many nanoseconds", "{}", time(0, SECOND));
    fact!("negative", "{} {}", time(0, -1), time(-1, 0));
    fact!("wild", "{} {}", sys!(SYS_nanosleep, 0x1000, 0), sys!(SYS_clock_gettime, CLOCK_MONOTONIC, 0x1000));
    fact!("no clock", "{}", sys!(SYS_clock_nanosleep, 99, 0, [0_i64, 0].as_ptr(), 0));
    fact!(
        "gettimeofday into nowhere",
        "{} {}",
        sys!(SYS_gettimeofday, 0x1000, 0),
        sys!(SYS_gettimeofday, 0, 0)
    );
}

fn system() {
    let mut words = [0_u64; 16];
    let got = sys!(SYS_sysinfo, words.as_mut_ptr());
    let unit = words[13] & 0xffff_ffff;
    fact!("sysinfo", "{got} {} {} {}", words[4] > 0, words[5] <= words[4], unit >= 1);
    fact!("sysinfo into nowhere", "{}", sys!(SYS_sysinfo, 0x1000));
    let mut names = [[0_u8; 65]; 6];
    let got = sys!(SYS_uname, names.as_mut_ptr());
    let text = |n: usize| String::from_utf8_lossy(&names[n]).trim_end_matches('\0').to_owned();
    fact!("uname", "{got} {} {}", text(0), text(4));
    fact!("uname into nowhere", "{}", sys!(SYS_uname, 0x1000));
    let mut limit = [0_u64; 2];
    let got = sys!(SYS_prlimit64, 0, libc::RLIMIT_STACK, 0, limit.as_mut_ptr());
    fact!("the stack's limit", "{got} {}", limit[0] >= 8 << 20);
    fact!("no such limit", "{}", sys!(SYS_prlimit64, 0, 99, 0, limit.as_mut_ptr()));
    fact!("limits into nowhere", "{}", sys!(SYS_prlimit64, 0, libc::RLIMIT_STACK, 0, 0x1000));
    fact!(
        "limits of nobody",
        "{}",
        sys!(SYS_prlimit64, 0x3fff_fff0, libc::RLIMIT_STACK, 0, limit.as_mut_ptr())
    );
    let mut bytes = [0_u64; 4];
    let got = sys!(SYS_getrandom, bytes.as_mut_ptr(), 32, 0);
    fact!("getrandom", "{got} {}", bytes.iter().all(|word| *word != 0));
    fact!(
        "getrandom, badly",
        "{} {}",
        sys!(SYS_getrandom, 0x1000, 8, 0),
        sys!(SYS_getrandom, bytes.as_mut_ptr(), 8, 0x77)
    );
    fact!("of nothing", "{}", sys!(SYS_getrandom, 0, 0, 0));
    let same = [sys!(SYS_getuid) == sys!(SYS_geteuid), sys!(SYS_getgid) == sys!(SYS_getegid)];
    fact!("who runs it", "{same:?}");
}
