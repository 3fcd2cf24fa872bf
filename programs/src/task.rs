//! Children, and how they end.

use std::fmt;
use std::process;

use crate::sys;
use crate::sys::Ret;

/// How a child ended, as `wait4` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub i32);

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(status) = *self;
        if libc::WIFEXITED(status) {
            write!(f, "exit {}", libc::WEXITSTATUS(status))
        } else if libc::WIFSIGNALED(status) {
            write!(f, "{}", signal_name(libc::WTERMSIG(status)))
        } else {
            write!(f, "status {status:#x}")
        }
    }
}

/// The name of a signal.
#[must_use]
pub fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGCHLD => "SIGCHLD",
        _ => "another signal",
    }
}

/// Forks; the child runs `work` and ends with what it returns. The child's number, to the parent.
///
/// # Panics
/// There is no child.
pub fn spawn(work: impl FnOnce() -> i32) -> i32 {
    try_spawn(work).expect("there is a child")
}

/// As [`spawn`], where it may fail.
///
/// # Errors
/// The error number of `fork`.
pub fn try_spawn(work: impl FnOnce() -> i32) -> Result<i32, i32> {
    // SAFETY: the programs fork from their only thread, so the child finds no lock held by a thread that it has not.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or_default()),
        0 => process::exit(work()),
        pid => Ok(pid),
    }
}

/// Waits for a child, over signals.
///
/// # Panics
/// It is no child.
#[must_use]
pub fn wait(pid: i32) -> Status {
    let mut status = 0_i32;
    let mut got = Ret(i64::from(-libc::EINTR));
    while got.errno() == libc::EINTR {
        got = sys!(SYS_wait4, pid, &raw mut status, 0, 0);
    }
    assert_eq!(got, Ret(i64::from(pid)), "wait for a child");
    Status(status)
}

/// Forks, waits, and says how it ended.
pub fn child(work: impl FnOnce() -> i32) -> Status {
    wait(spawn(work))
}
