//! Memory by address: what is there, and whether one may look.
//!
//! [`load`] and [`store`] may fault. Two instructions do it, and a handler of SIGSEGV and SIGBUS that finds one of them
//! interrupted goes on behind it: so a fault is a value. A fault anywhere else kills the program, as it would without a handler.

use std::arch::global_asm;
use std::fmt;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};

use crate::sys;
use crate::sys::Ret;
use crate::task::signal_name;

/// A fault that was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// SIGSEGV or SIGBUS.
    pub signal: i32,
    /// Its `si_code`.
    pub code: i32,
    /// Its `si_addr` is the address that was used.
    pub at_address: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = match (self.signal, self.code) {
            (libc::SIGSEGV, 1) => "MAPERR",
            (libc::SIGSEGV, 2) => "ACCERR",
            (libc::SIGBUS, 1) => "ADRALN",
            (libc::SIGBUS, 2) => "ADRERR",
            (_, 0x80) => "KERNEL",
            _ => "another code",
        };
        let place = if self.at_address { "" } else { " at another address" };
        write!(f, "{} {code}{place}", signal_name(self.signal))
    }
}

// RDI is the address; RAX and RDX are returned: a value, and 1 if there was no fault.
global_asm!(
    ".pushsection .text.farpage_probe,\"ax\",@progbits",
    "farpage_load: mov edx, 1",
    "farpage_load_at: mov rax, [rdi]",
    "ret",
    "farpage_store: mov edx, 1",
    "farpage_store_at: mov [rdi], rsi",
    "ret",
    "farpage_load_byte: mov edx, 1",
    "farpage_load_byte_at: movzx eax, byte ptr [rdi]",
    "ret",
    "farpage_faulted: xor edx, edx",
    "ret",
    ".popsection",
);

#[repr(C)]
struct Probed {
    value: u64,
    ok: u64,
}

unsafe extern "C" {
    fn farpage_load(addr: u64) -> Probed;
    fn farpage_load_byte(addr: u64) -> Probed;
    fn farpage_store(addr: u64, value: u64) -> Probed;
    static farpage_load_at: u8;
    static farpage_load_byte_at: u8;
    static farpage_store_at: u8;
    static farpage_faulted: u8;
}

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);

/// The handler, with a context as the kernel made it.
extern "C" fn caught(signal: i32, info: *const libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel gives a handler of SA_SIGINFO a description, and nobody else writes it meanwhile.
    let info = unsafe { &*info };
    // SAFETY: and a context, which is the handler's to change.
    let context = unsafe { &mut *context };
    let rip = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
    let probes = [&raw const farpage_load_at, &raw const farpage_load_byte_at, &raw const farpage_store_at];
    if !probes.iter().any(|probe| probe.addr() as i64 == *rip) {
        // Not ours: the instruction is done again, without a handler.
        let _ = set_handler(signal, libc::SIG_DFL);
        return;
    }
    *rip = (&raw const farpage_faulted).addr() as i64;
    SIGNAL.store(signal, Relaxed);
    CODE.store(info.si_code, Relaxed);
    // SAFETY: both signals carry an address.
    ADDRESS.store(unsafe { info.si_addr() }.addr() as u64, Relaxed);
}

fn set_handler(signal: i32, handler: usize) -> bool {
    // SAFETY: zero is a value of every field.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler touches nothing but its context and atomics.
    unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) == 0 }
}

/// Makes faults of [`load`] and [`store`] values from now on.
pub fn catch_faults() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        set_handler(signal, caught as *const () as usize);
    }
}

fn outcome(probed: &Probed, addr: u64) -> Result<u64, Fault> {
    if probed.ok == 1 {
        return Ok(probed.value);
    }
    let (signal, code) = (SIGNAL.load(Relaxed), CODE.load(Relaxed));
    Err(Fault { signal, code, at_address: ADDRESS.load(Relaxed) == addr })
}

/// Reads a word.
///
/// # Errors
/// The fault, after [`catch_faults`].
pub fn load(addr: u64) -> Result<u64, Fault> {
    // SAFETY: it reads eight bytes or is caught.
    outcome(&unsafe { farpage_load(addr) }, addr)
}

/// Reads a byte.
///
/// # Errors
/// As [`load`].
pub fn load_byte(addr: u64) -> Result<u8, Fault> {
    // SAFETY: it reads a byte or is caught.
    outcome(&unsafe { farpage_load_byte(addr) }, addr).map(|value| value as u8)
}

/// Writes a word.
///
/// # Errors
/// As [`load`].
pub fn store(addr: u64, value: u64) -> Result<(), Fault> {
    // SAFETY: it writes eight bytes of memory that is no object of Rust's (see `sys`), or is caught.
    outcome(&unsafe { farpage_store(addr, value) }, addr).map(|_| ())
}

/// What reading a word finds: the word or the fault.
#[must_use]
pub fn seen(addr: u64) -> String {
    match load(addr) {
        Ok(value) => format!("{value:#x}"),
        Err(fault) => fault.to_string(),
    }
}

/// What writing a word comes to.
#[must_use]
pub fn written(addr: u64, value: u64) -> String {
    match store(addr, value) {
        Ok(()) => "written".to_owned(),
        Err(fault) => fault.to_string(),
    }
}

/// Reading and writing.
pub const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Private anonymous memory.
pub const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
/// Shared anonymous memory.
pub const SHARED: i32 = libc::MAP_SHARED | libc::MAP_ANONYMOUS;

/// `mmap` without a file.
pub fn mmap(addr: u64, len: u64, prot: i32, flags: i32) -> Ret {
    sys!(SYS_mmap, addr, len, prot, flags, -1_i32, 0)
}

/// `munmap`.
pub fn munmap(addr: u64, len: u64) -> Ret {
    sys!(SYS_munmap, addr, len)
}

/// `mprotect`.
pub fn mprotect(addr: u64, len: u64, prot: i32) -> Ret {
    sys!(SYS_mprotect, addr, len, prot)
}

/// `mremap`; `new` counts with `MREMAP_FIXED`.
pub fn mremap(old: u64, old_len: u64, new_len: u64, flags: i32, new: u64) -> Ret {
    sys!(SYS_mremap, old, old_len, new_len, flags, new)
}

/// `madvise`.
pub fn madvise(addr: u64, len: u64, advice: i32) -> Ret {
    sys!(SYS_madvise, addr, len, advice)
}

/// New private anonymous memory where the kernel likes.
///
/// # Panics
/// There is none.
#[must_use]
pub fn anon(len: u64) -> u64 {
    mmap(0, len, RW, PRIVATE).value("mmap of anonymous memory")
}

/// An address range of one's own: `len` bytes that nothing else is mapped in, at a multiple of 2 MiB, `PROT_NONE`.
///
/// # Panics
/// There is none.
#[must_use]
pub fn reserve(len: u64) -> u64 {
    let whole = mmap(0, len + crate::HUGE, libc::PROT_NONE, PRIVATE | libc::MAP_NORESERVE);
    whole.value("mmap of an arena").next_multiple_of(crate::HUGE)
}
