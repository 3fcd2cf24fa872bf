//! TLBs like those that are built.
//!
//! Sizes are published, and for the desktop's the ways, too; replacement and the caches of upper-level entries are not, so these are
//! ours: LRU everywhere, which is better than what hardware can afford, and few upper-level entries. "Like" is all they are:
//! what the two answers have in common is worth more than either.

use crate::{Config, Holds, Shape, WalkCaches};

/// What no maker tells.
const WALKS: WalkCaches = WalkCaches { pml4: 2, pdpt: 4, pd: 32 };

/// Golden Cove, the large core of Alder Lake, for loads: 96 entries of 6 ways for 4 KiB, 32 of 4 for 2 MiB, and 2048 of 16 for both
/// (Hennessy and Patterson, "Computer Architecture", on the Core i9-12900).
pub const DESKTOP: Config<'_> = Config {
    name: "desktop-like",
    first: &[Shape::sets(96, 6, Holds::Small), Shape::sets(32, 4, Holds::Huge)],
    second: &[Shape::sets(2048, 16, Holds::Both)],
    walks: WALKS,
};

/// Zen 4: 72 entries, fully associative for all sizes, and 3072 for both, as AMD's optimization guide for it (publication 57647) gives
/// them. The 24 ways are ours: they keep the number of sets at a power of two.
pub const SERVER: Config<'_> = Config {
    name: "server-like",
    first: &[Shape::full(72, Holds::Both)],
    second: &[Shape::sets(3072, 24, Holds::Both)],
    walks: WALKS,
};

/// A microcontroller's: nobody's in particular.
pub const TINY: Config<'_> =
    Config { name: "tiny", first: &[Shape::full(16, Holds::Both)], second: &[], walks: WalkCaches::NONE };

/// All of them.
pub const PRESETS: [Config<'_>; 3] = [DESKTOP, SERVER, TINY];
