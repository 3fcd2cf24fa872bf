//! The serial protocol: what the kernel prints for programs to read, and how the host reads it.
//!
//! Both sides use this crate, so that a format has one home: [`wire`] writes and parses the machine
//! lines (`@kind key=value`), [`ktap`] the test lines, [`catalog`] the list of in-kernel tests,
//! [`exit`] the numbers that end a run, [`monitor`] the commands that a person may send,
//! [`trace`] the records of a trace. Everything else on the line
//! is text for people.
//!
//! The kernel's half needs neither `alloc` nor `std`; the host's half is behind the feature `std`.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod catalog;
pub mod exit;
pub mod ktap;
pub mod monitor;
#[cfg(any(test, feature = "std"))]
pub mod stream;
pub mod trace;
pub mod watch;
pub mod wire;

#[cfg(test)]
mod tests;
