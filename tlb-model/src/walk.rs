//! The walk: how many loads it takes.

use crate::level::Level;
use crate::{BadConfig, Holds, PageSize, Shape, WalkCaches};

/// The caches of upper-level entries, from the lowest up: what one entry covers, as a shift, and the cache.
#[derive(Debug)]
pub(crate) struct Walker {
    caches: [(u32, Option<Level>); 3],
}

impl Walker {
    pub(crate) fn new(sizes: WalkCaches) -> Result<Self, BadConfig> {
        let cache = |entries| match entries {
            0 => Ok(None),
            entries => Level::new(Shape::full(entries, Holds::Both)).map(Some),
        };
        Ok(Self { caches: [(21, cache(sizes.pd)?), (30, cache(sizes.pdpt)?), (39, cache(sizes.pml4)?)] })
    }

    /// The loads of a walk for `address`. It begins below the lowest entry that is known, and all its upper-level entries are known
    /// afterwards.
    pub(crate) fn walk(&mut self, address: u64, size: PageSize) -> u32 {
        // A huge page is mapped by its PD entry itself.
        let upper = match size {
            PageSize::Small => 0,
            PageSize::Huge => 1,
        };
        let mut loads = None;
        for (n, (shift, cache)) in (1..).zip(&mut self.caches[upper..]) {
            // All are asked, so that all learn.
            if let Some(cache) = cache
                && cache.access(address >> *shift, PageSize::Small)
            {
                loads = loads.or(Some(n));
            }
        }
        loads.unwrap_or(4 - upper as u32)
    }

    pub(crate) fn flush(&mut self) {
        self.caches.iter_mut().filter_map(|(_, cache)| cache.as_mut()).for_each(Level::flush);
    }
}
