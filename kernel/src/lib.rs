//! The part of the kernel that needs no machine, tested on the host.
//!
//! The kernel proper is the binary beside this library. What can be decided by arithmetic alone is here: what a
//! memory map says about which frames are free ([`ranges`]), how a range of RAM is covered by the largest pages
//! ([`cover`]), what the command line asks for ([`cmdline`]), and in which order threads come ([`fifo`]).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod cmdline;
pub mod cover;
pub mod fifo;
pub mod ranges;

/// Bytes of the smallest page.
pub const PAGE_SIZE: u64 = 4096;
