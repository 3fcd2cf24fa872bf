//! How a host program and a kernel test look at the same machine together.
//!
//! The host backs the device's memory by a file and leaves [`HELLO`] in its last word before the machine starts. The kernel
//! test that finds it there prints what it has mapped, one record each, then a record of kind [`LOOK`], and polls the word
//! until the host, which has looked, puts [`GO`] there. Nobody sleeps, and without a host the test runs alone.

/// A run of equal mappings: `start`, `end`, `level` (1 or 2), `present`, `zero`, `frame`, `write`, `exec`.
pub const RUN: &str = "run";
/// A page on the device: `offset` in its memory, `addr` and `seed` of the pattern that is there.
pub const BAR: &str = "bar";
/// All is said; the test waits.
pub const LOOK: &str = "look";

/// A host program watches.
pub const HELLO: u64 = 0x6f6c_6c65_6874_736f;
/// It has seen enough.
pub const GO: u64 = 0x6f67_6f67_6f67_6f67;

/// The word that belongs at `addr` under `seed`: no two alike, and none that a mistake would make.
#[must_use]
pub const fn pattern(addr: u64, seed: u64) -> u64 {
    (addr ^ seed.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
