//! What the programs share: raw system calls, memory by address, children, and facts.
//!
//! A program prints *facts*: return codes, names of errors, contents, truths. It prints no address, process number or time, so
//! its output is the same wherever it is run, on Linux and on farpage, if both do the same. Nothing else is checked here: the
//! harness runs each program on both and compares (docs/PROGRAMS.md).

pub mod area;
pub mod dmirror;
pub mod maps;
pub mod memory;
pub mod sys;
pub mod task;

/// Prints one fact: a name and what was found.
#[macro_export]
macro_rules! fact {
    ($name:expr, $($what:tt)*) => {
        println!("{}: {}", $name, format_args!($($what)*))
    };
}

/// Page size of x86-64.
pub const PAGE: u64 = 4096;
/// What a large page holds.
pub const HUGE: u64 = 2 << 20;
