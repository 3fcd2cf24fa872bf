//! Performance counters of the CPU: what there are, which named events they can count, and scopes that count them.
//!
//! The CPU is a small trait ([`Registers`]: CPUID, MSRs, RDPMC, the time-stamp counter), so all of this runs on the host
//! against a simulated PMU. [`Counters::detect`] finds out what there is; [`Counters::scope`] programs counters for events
//! and a [`Scope`] reads them, and puts back what was there when it goes. What can go wrong is a value: no counters at all
//! ([`NoPmu`]), an event that this CPU does not count, a register that the CPU refuses ([`Refused`]).
//!
//! Four kinds of CPUs: Intel's architectural counters by CPUID.0AH, versions 1 to 5 (SDM volume 3B, chapter 20), and AMD's three
//! generations: four K7 counters that CPUID does not mention, six core counters (CPUID 8000_0001H:ECX\[23\]), and those with
//! global control (CPUID 8000_0022H) (APM volume 2, 13.2, and the processor programming references). A CPU that announces counters
//! must show that they keep a value before it is believed: translators and some hypervisors swallow writes.
//!
//! Counters are 32 to 48 bits wide. Nobody takes overflow interrupts here: a scope adds up differences modulo the width each time
//! it looks, so a count is right if it is looked at once per 2^width events (at 40 bits, minutes). Where events are more than
//! counters they take turns ([`Scope::rotate`]), and a count that saw a part of the time is scaled and says so.
//!
//! None of this has run on hardware yet: QEMU's translator has no counters, and the build machines have no other.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod count;
mod detect;
mod event;
mod regions;
mod registers;
mod scope;
mod table;

#[cfg(test)]
mod tests;

pub use count::{Counts, Value};
pub use detect::{Kind, NoPmu, Pmu};
pub use event::{BadList, Event, Events};
pub use regions::{Measured, Regions};
pub use registers::{Cpuid, Refused, Register, Registers};
pub use scope::{Counters, Refusal, Scope};
pub use table::{Code, Row, Uncounted};
