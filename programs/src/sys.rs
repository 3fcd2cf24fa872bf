//! System calls as the kernel sees them: a number and six words in, one word out.
//!
//! The C library is not asked: it would check arguments itself, retry, and turn what the kernel says into `errno`. The functions
//! are safe to call by convention and not by type: these programs exist to do to memory whatever an address allows. The
//! convention is that ranges given to them are numbers of the program's own making (an arena, a hint, something wild), and never
//! memory that Rust has handed out as an object, except where a buffer is passed on as such.

use std::arch::asm;
use std::fmt;

/// What a call left in RAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Ret(pub i64);

impl Ret {
    /// It is no error.
    #[must_use]
    pub fn is_ok(self) -> bool {
        !(-4095..0).contains(&self.0)
    }

    /// The error number, or 0.
    #[must_use]
    pub fn errno(self) -> i32 {
        if self.is_ok() { 0 } else { -self.0 as i32 }
    }

    /// The value; an error ends the program, for it cannot go on.
    ///
    /// # Panics
    /// On an error.
    pub fn value(self, what: &str) -> u64 {
        assert!(self.is_ok(), "{what}: {self}");
        self.0 as u64
    }

    /// `ok` or the error's name: for values that differ from run to run.
    #[must_use]
    pub fn verdict(self) -> &'static str {
        if self.is_ok() { "ok" } else { name(self.errno()) }
    }
}

impl fmt::Display for Ret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_ok() { write!(f, "{}", self.0) } else { f.write_str(name(self.errno())) }
    }
}

/// Makes a system call.
pub fn call(number: i64, args: [u64; 6]) -> Ret {
    let ret: i64;
    // SAFETY: the call changes what it is asked to; see the module for who may ask for what.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => ret,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    Ret(ret)
}

/// Is the kernel's version at least this? A program asks before it uses what older ones of Linux lack, and prints `skip NAME`
/// for what it leaves out; the harness then leaves it out on the other side too.
///
/// # Panics
/// The kernel has no version.
#[must_use]
pub fn since(major: u32, minor: u32) -> bool {
    let mut names = [[0_u8; 65]; 6];
    call(libc::SYS_uname, [names.as_mut_ptr() as u64, 0, 0, 0, 0, 0]).value("uname");
    let text = String::from_utf8_lossy(&names[2]);
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// Makes a system call by its name in `libc`, with up to six arguments of any integer type.
#[macro_export]
macro_rules! sys {
    // One expression: what an argument points to lives as long as the call.
    ($name:ident $(, $arg:expr)* $(,)?) => {
        $crate::sys::call(libc::$name, $crate::sys::words(&[$($arg as u64),*]))
    };
}

/// Six words, of which as many are given.
#[must_use]
pub fn words(given: &[u64]) -> [u64; 6] {
    std::array::from_fn(|n| given.get(n).copied().unwrap_or(0))
}

/// Declares the names of errors.
macro_rules! names {
    ($($name:ident)*) => {
        /// The name of an error number.
        #[must_use]
        pub fn name(errno: i32) -> &'static str {
            match errno {
                $(libc::$name => stringify!($name),)*
                _ => "an error without a name",
            }
        }
    };
}

names! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY EEXIST EXDEV
    ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK
    ENAMETOOLONG ENOSYS ENOTEMPTY ELOOP EOVERFLOW EOPNOTSUPP ETIMEDOUT
}
