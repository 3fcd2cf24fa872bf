//! In-kernel tests of the memory manager: real page tables, real faults, a real BAR.
//!
//! Each builds an address space, loads it, and looks at the state of the machine afterwards: entries, frames, counters, and
//! every word of memory. The runner audits all of it once more after each test.

mod actions;
mod advice;
mod clones;
mod coherent;
mod devices;
mod evict;
mod faults;
mod hmm;
mod injected;
mod knobs;
mod migration;
mod mirror;
mod objects;
mod oracle;
mod pins;
mod pressure;
mod protect;
mod races;
mod remaps;
mod roundtrip;
mod splits;
mod stale;
mod stats;
mod stress;
mod support;
mod teardown;
mod trace;
mod track;
