//! What the memory manager is tested on: a machine of arrays, an MMU that is as nasty as the manual allows, and the action
//! lists of [`crate::exercise`], which run against both and an obvious model.
//!
//! ```text
//!   exercise: list ──> runner ──> mm ──Machine──> machine (RAM, devices, copy engine)
//!               │        │                          │
//!               │        └──> model <── contents ── mmu: stale translations, other CPUs' accesses, at any lock and any word
//!               └── a failing list is shrunk and printed as Rust for `regressions.rs`
//! ```

mod advise;
mod clone;
mod coherent;
mod directed;
mod dmirror;
mod dmirror_counts;
mod evict;
mod exclusive;
mod failures;
mod fragments;
mod groups;
mod gup;
mod historic;
mod hmm;
mod host;
mod hugetlb;
mod kinds;
mod kit;
mod machine;
mod meanwhile;
mod merge;
mod migrate_fault;
mod migrate_gaps;
mod migrate_holes;
mod migrate_options;
mod migrate_spans;
mod mirror;
mod mmu;
mod mutations;
mod notifier;
mod objects;
mod owner;
mod owners;
mod partial;
mod parts;
mod policy;
mod protect;
mod random;
mod regressions;
mod relieve;
mod remap;
mod resize;
mod shared;
mod splits;
mod stats;
mod trace;
mod track;
mod vma_use;
mod words;

pub(crate) use machine::{Config, Soft};
