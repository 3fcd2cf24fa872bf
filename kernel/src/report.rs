//! The last words: what is printed when the kernel cannot go on.
//!
//! A report begins with a record (`@fault` or `@panic`), so that the host knows whom to blame, and then says for people
//! what happened: registers, the error code in words, the page-table entries of the address at all levels, and the
//! backtrace. It needs no lock, no heap and little stack, and a fault inside a report ends the run at once.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use ktest::exit::Exit;

use crate::arch::x86_64::trap::TrapFrame;
use crate::arch::x86_64::{entry, percpu, tlb, walk::Walk};
use crate::{backtrace, console, exit, task};

/// The kind of a fatal fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An exception by its vector.
    Exception(u8),
    /// #PF that nobody handles.
    PageFault,
    /// #DF.
    DoubleFault,
    /// The thread's stack is used up.
    StackOverflow,
}

/// Mnemonic and name of the exceptions.
const EXCEPTIONS: [(&str, &str); 22] = [
    ("#DE", "divide-error"),
    ("#DB", "debug"),
    ("#NMI", "nmi"),
    ("#BP", "breakpoint"),
    ("#OF", "overflow"),
    ("#BR", "bound-range"),
    ("#UD", "invalid-opcode"),
    ("#NM", "device-not-available"),
    ("#DF", "double-fault"),
    ("#9", "coprocessor-overrun"),
    ("#TS", "invalid-tss"),
    ("#NP", "segment-not-present"),
    ("#SS", "stack-segment"),
    ("#GP", "general-protection"),
    ("#PF", "page-fault"),
    ("#15", "reserved-15"),
    ("#MF", "x87-error"),
    ("#AC", "alignment-check"),
    ("#MC", "machine-check"),
    ("#XM", "simd-error"),
    ("#VE", "virtualization"),
    ("#CP", "control-protection"),
];

impl Kind {
    /// The kind of an exception.
    pub(crate) fn of_vector(vector: u8) -> Self {
        match vector {
            8 => Self::DoubleFault,
            14 => Self::PageFault,
            other => Self::Exception(other),
        }
    }

    /// The word for it in records.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PageFault => "page-fault",
            Self::DoubleFault => "double-fault",
            Self::StackOverflow => "stack-overflow",
            Self::Exception(vector) => {
                EXCEPTIONS.get(usize::from(vector)).map_or("exception", |names| names.1)
            }
        }
    }
}

/// Is a report being printed?
static REPORTING: AtomicBool = AtomicBool::new(false);

/// Reports a trap that nothing can go on from, and ends the run.
#[cold]
pub(crate) fn fatal(kind: Kind, frame: &TrapFrame, address: Option<u64>) -> ! {
    let mut out = begin(Exit::Fault);
    // Nothing can be done about a console that fails.
    let _ = write_fatal(&mut out, kind, frame, address);
    exit::exit(Exit::Fault)
}

/// Reports a panic and ends the run.
#[cold]
pub(crate) fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let rbp = entry::frame_pointer();
    let mut out = begin(Exit::Panic);
    let _ = write_panic(&mut out, info, rbp);
    exit::exit(Exit::Panic)
}

/// Takes the console. A fault or panic inside a report ends the run there and then.
fn begin(how: Exit) -> console::Console {
    x86_64::instructions::interrupts::disable();
    let mut out = console::emergency();
    if REPORTING.swap(true, Ordering::Relaxed) {
        let _ = writeln!(out, "\nand while that was reported: another {how}");
        exit::exit(how);
    }
    out
}

fn write_panic(out: &mut console::Console, info: &core::panic::PanicInfo<'_>, rbp: u64) -> fmt::Result {
    writeln!(out)?;
    match info.location() {
        Some(at) => {
            ktest::record!(out, "panic", at = at, message = info.message())?;
            writeln!(
                out,
                "panic at {at} on cpu {} in {}: {}",
                percpu::cpu_id(),
                task::current(),
                info.message()
            )?;
        }
        None => ktest::record!(out, "panic", message = info.message())?,
    }
    backtrace::write(out, None, rbp)
}

fn write_fatal(
    out: &mut console::Console,
    kind: Kind,
    frame: &TrapFrame,
    address: Option<u64>,
) -> fmt::Result {
    writeln!(out)?;
    let rip = frame.rip;
    match address {
        Some(address) => ktest::record!(
            out,
            "fault",
            kind = kind.name(),
            rip = format_args!("{rip:#x}"),
            addr = format_args!("{address:#x}")
        )?,
        None => ktest::record!(out, "fault", kind = kind.name(), rip = format_args!("{rip:#x}"))?,
    }
    write!(out, "fatal fault on cpu {} in {}: ", percpu::cpu_id(), task::current())?;
    write_what(out, kind, frame, address)?;
    write_registers(out, frame)?;
    if let Some(address) = address {
        writeln!(out, "page-table entries for {address:#x}:")?;
        write!(out, "{}", Walk::current(address))?;
    }
    backtrace::write(out, Some(rip), frame.rbp)
}

/// One sentence about what happened.
fn write_what(out: &mut dyn Write, kind: Kind, frame: &TrapFrame, address: Option<u64>) -> fmt::Result {
    let (vector, error) = (frame.vector as u8, frame.error);
    match (kind, address) {
        (Kind::StackOverflow, _) => writeln!(
            out,
            "stack overflow: the {} KiB of the thread's stack are used up (RSP {:#x})",
            crate::arch::x86_64::stacks::len_of_current() >> 10,
            frame.rsp
        ),
        (Kind::PageFault, Some(address)) => {
            write!(out, "#PF (page-fault), {} {address:#x}", Access(error))?;
            if address as i64 >= 0 && error & 4 == 0 {
                write!(out, ", a user address, outside the user-access routines")?;
            }
            writeln!(out)
        }
        _ => {
            let names = EXCEPTIONS.get(usize::from(vector)).copied().unwrap_or(("#?", "exception"));
            writeln!(out, "{} ({}), vector {vector}, error code {error:#x}", names.0, names.1)
        }
    }
}

/// The error code of a page fault in words.
struct Access(u64);

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = self.0;
        let ring = if error & 4 != 0 { "user" } else { "supervisor" };
        let access = match (error & 0x10 != 0, error & 2 != 0) {
            (true, _) => "instruction fetch from",
            (_, true) => "write to",
            _ => "read from",
        };
        let why = match (error & 8 != 0, error & 1 != 0) {
            (true, _) => "reserved bit set",
            (_, true) => "protection",
            _ => "not present",
        };
        write!(f, "error code {error:#x} ({why}): {ring} {access}")
    }
}

fn write_registers(out: &mut dyn Write, frame: &TrapFrame) -> fmt::Result {
    let f = frame;
    writeln!(out, "  rax {:#018x}  rbx {:#018x}  rcx {:#018x}  rdx {:#018x}", f.rax, f.rbx, f.rcx, f.rdx)?;
    writeln!(out, "  rsi {:#018x}  rdi {:#018x}  rbp {:#018x}  rsp {:#018x}", f.rsi, f.rdi, f.rbp, f.rsp)?;
    writeln!(out, "  r8  {:#018x}  r9  {:#018x}  r10 {:#018x}  r11 {:#018x}", f.r8, f.r9, f.r10, f.r11)?;
    writeln!(out, "  r12 {:#018x}  r13 {:#018x}  r14 {:#018x}  r15 {:#018x}", f.r12, f.r13, f.r14, f.r15)?;
    let cr2 = x86_64::registers::control::Cr2::read_raw();
    let cr3 = tlb::root().start_address().as_u64();
    writeln!(out, "  rip {:#018x}  rflags {:#010x}  cs {:#x}  ss {:#x}", f.rip, f.rflags, f.cs, f.ss)?;
    writeln!(out, "  cr2 {cr2:#018x}  cr3 {cr3:#x}")
}
