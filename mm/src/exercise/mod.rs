//! Action lists for tests, on the host and in the kernel: the same list, the same obvious model, the same checks.
//!
//! ```text
//!   generate(seed) ──> [Step] ──> Runner ──> memory manager of the machine
//!                                   │  └───> Model: which pages are mapped, and what is in them
//!                                   └──────> World: how a program touches memory here, and how a page is looked at
//! ```
//!
//! A [`World`] is what differs between the two: on the host a software MMU with other CPUs that interfere, in the kernel real
//! page tables, real faults and a real BAR. Everything else is shared, so that a list that fails in one place can be tried in
//! the other. This is for tests alone, and the one place here that uses the global allocator: a build without the feature
//! `exercise` does not have it.

mod actions;
mod borrowers;
mod checks;
mod evictions;
mod memory;
mod model;
mod moves;
mod relatives;
mod reports;
mod rng;
mod runner;
mod seats;
mod shrink;
mod situations;
mod snapshots;
mod takers;
mod world;

pub use actions::{Action, PAGES, Step, about_huge, addr, generate, range};
pub use model::{Backing, Model, ModelPage, ModelSpace, ModelVma, OBJECT_PAGES, OBJECTS, WORDS, pages};
pub use rng::{Rng, mix};
pub use runner::{Failure, Progress, Runner, SPACES, run};
pub use shrink::{as_rust, shrink};
pub use situations::situations;
pub use world::World;
