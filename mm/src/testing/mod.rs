//! What the memory manager is tested on: a machine of arrays, an MMU that is as nasty as the manual allows, an obvious
//! model, and lists of actions that run against all three.
//!
//! ```text
//!   actions ──> runner ──> mm ──Machine──> machine (RAM, devices, copy engine)
//!      │          │                          │
//!      │          └──> model <── contents ── mmu: stale translations, other CPUs' accesses, at any lock and any word
//!      └── a failing list is shrunk and printed as Rust for `regressions.rs`
//! ```

mod actions;
mod checks;
mod directed;
mod failures;
mod kit;
mod machine;
mod mmu;
mod model;
mod mutations;
mod parts;
mod random;
mod regressions;
mod rng;
mod runner;
mod shrink;

pub(crate) use machine::{Config, Soft};
