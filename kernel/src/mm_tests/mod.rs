//! In-kernel tests of the memory manager: real page tables, real faults, a real BAR.

mod roundtrip;
mod support;
