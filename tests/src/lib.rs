//! The harness behind `cargo test`: one line for every test, wherever it runs.
//!
//! Four kinds of test become lines of one list ([`all.rs`](../all.rs) puts it together):
//!
//! - [`host`]: the unit tests of the host crates and of the pure parts of kernel and loader. Their libraries
//!   have `test = false`, so that cargo does not run them on its own and count them apart; each runs in a
//!   process of its own.
//! - [`guest`]: in-kernel tests. As many as can share a boot do, and each result is reported as it comes; a
//!   destructive test has a boot of its own and must end in the report it names.
//! - [`oracle`]: what QEMU and a host program see of a guest that is stopped in its work.
//! - [`gdb`]: a debugger at such a guest.
//! - [`programs`]: programs of ring 3, compared with what they do on the host's Linux.
//! - [`runs`]: whole runs, as a user types them, those of the shell with their transcripts.
//!
//! The last line of the output is the sum of all: `N passed, N failed, N skipped` ([`summary`]).

#![forbid(unsafe_code)]

mod baseline;
mod exp;
pub mod gdb;
pub mod guest;
pub mod host;
pub mod oracle;
pub mod process;
pub mod programs;
mod report;
mod require;
pub mod runs;
mod scenarios;
mod shell;
mod stuck;
pub mod summary;
mod trace;
