//! pidfd_open, and poll on what it gives.

use farpage_programs::task::{spawn, wait};
use farpage_programs::{fact, sys};
use libc::{POLLIN, SIGKILL};

/// Runs the group.
pub(crate) fn run() {
    let me = sys!(SYS_getpid).0;
    let pid = spawn(|| {
        loop {
            let _ = sys!(SYS_sched_yield);
        }
    });
    let fd = sys!(SYS_pidfd_open, pid, 0).value("pidfd_open");
    let mut polled = libc::pollfd { fd: fd as i32, events: POLLIN, revents: 0x55 };
    fact!("runs", "{} {}", { sys!(SYS_poll, &raw mut polled, 1, 0) }, polled.revents);
    fact!("with a timeout", "{} {}", { sys!(SYS_poll, &raw mut polled, 1, 3) }, polled.revents);
    fact!("closed on exec", "{}", sys!(SYS_fcntl, fd, libc::F_GETFD));
    fact!("read and write", "{} {}", sys!(SYS_read, fd, 0, 0), sys!(SYS_write, fd, 0, 0));
    let _ = sys!(SYS_kill, pid, SIGKILL);
    fact!("killed", "{} {}", { sys!(SYS_poll, &raw mut polled, 1, -1_i64) }, polled.revents);
    fact!("its end is told again", "{} {}", { sys!(SYS_poll, &raw mut polled, 1, 1000) }, polled.revents);
    let second = sys!(SYS_pidfd_open, pid, 0);
    fact!("of one that has ended", "{}", second.verdict());
    fact!("waited for", "{}", wait(pid));
    polled.revents = 0;
    fact!("and after that", "{} {}", { sys!(SYS_poll, &raw mut polled, 1, 0) }, polled.revents & POLLIN);
    fact!("of one that is gone", "{}", sys!(SYS_pidfd_open, pid, 0));
    let sleeper = spawn(|| {
        let _ = sys!(SYS_nanosleep, [0_i64, 5_000_000].as_ptr(), 0);
        4
    });
    let slow = sys!(SYS_pidfd_open, sleeper, 0).value("pidfd_open");
    let mut polled = libc::pollfd { fd: slow as i32, events: POLLIN, revents: 0 };
    fact!("waits for the end", "{} {}", { sys!(SYS_poll, &raw mut polled, 1, 60_000) }, polled.revents);
    fact!("which was", "{}", wait(sleeper));
    let own = sys!(SYS_pidfd_open, me, 0);
    let mut three = [
        libc::pollfd { fd: own.0 as i32, events: POLLIN, revents: 0 },
        libc::pollfd { fd: -1, events: POLLIN, revents: 7 },
        polled,
    ];
    fact!(
        "three at once",
        "{} {} {} {}",
        { sys!(SYS_poll, three.as_mut_ptr(), 3, 0) },
        three[0].revents,
        three[1].revents,
        three[2].revents & POLLIN
    );
    let mut closed = libc::pollfd { fd: 888, events: POLLIN, revents: 0 };
    fact!("what is not open", "{} {:#x}", { sys!(SYS_poll, &raw mut closed, 1, 1000) }, closed.revents);
    fact!("nothing, for a while", "{}", sys!(SYS_poll, 0, 0, 2));
    fact!("a wild list", "{}", sys!(SYS_poll, 0x1000, 1, 0));
    fact!("far too many", "{}", sys!(SYS_poll, three.as_mut_ptr(), 1_u64 << 40, 0));
    fact!("wrong numbers", "{} {}", sys!(SYS_pidfd_open, 0, 0), sys!(SYS_pidfd_open, -1_i64, 0));
    fact!("nobody", "{}", sys!(SYS_pidfd_open, 0x3fff_fff0, 0));
    fact!("unknown flags", "{}", sys!(SYS_pidfd_open, me, 0x1234));
    for fd in [fd, slow, own.0 as u64, second.0 as u64] {
        sys!(SYS_close, fd).value("close");
    }
}
