//! The runner: what `cargo run` is.
//!
//! It builds the loader and the kernel in a cargo call of their own, boots them under QEMU with the machine that was
//! asked for, and shows what the guest reports. The harness in `tests/` uses the same parts: [`build`] for the files,
//! [`qemu`] for a machine and its console, [`symbolize`] for backtraces.
//!
//! Nothing here knows how memory is managed; the guest's records (see `ktest::wire`) are shown as they come.
#![forbid(unsafe_code)]

pub mod bench;
pub mod boot;
pub mod build;
pub mod cli;
pub mod cpio;
pub mod error;
pub mod exec;
pub mod gdb;
pub mod install;
pub mod lab;
pub mod qemu;
pub mod report;
pub mod shell;
pub mod size;
pub mod symbolize;
pub mod table;
pub mod tour;
pub mod trace;
