//! A chain of pointers through memory: what the speed of single loads is measured on.
//!
//! Each page holds one node: the address of the next. The order is one random cycle through all pages (Sattolo's shuffle), so no
//! load can begin before the one before it has ended, and no page comes twice before all have come once. Which line of its page a
//! node lies in is random, too, or all nodes would share a few sets of the data cache.

use farpage_mm::exercise::{Rng, mix};
use farpage_mm::{PAGE_SIZE, Vaddr};

use crate::vm::user::{UserFault, user_chase, user_read_u64, user_write_u64};

/// Bytes of a cache line.
const LINE: u64 = 64;

/// A cycle of nodes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    start: Vaddr,
    first: u64,
    /// How many nodes there are.
    pub(super) nodes: u64,
}

impl Chain {
    /// Lays a chain through `nodes` pages of user memory, from `start` on. The same in every run.
    ///
    /// # Errors
    /// An address that cannot be written.
    pub(super) fn lay(start: Vaddr, nodes: u64) -> Result<Self, UserFault> {
        let node = |n: u64| start.0 + n * PAGE_SIZE + mix(n) % (PAGE_SIZE / LINE) * LINE;
        for n in 0..nodes {
            user_write_u64(node(n), node(n))?;
        }
        let mut rng = Rng::new(nodes);
        for n in (1..nodes).rev() {
            let other = node(rng.below(n));
            let (here, there) = (user_read_u64(node(n))?, user_read_u64(other)?);
            user_write_u64(node(n), there)?;
            user_write_u64(other, here)?;
        }
        Ok(Self { start, first: node(0), nodes })
    }

    /// Its first page.
    pub(super) const fn start(self) -> u64 {
        self.start.0
    }

    /// Follows it for `steps` nodes, in one loop of four instructions.
    ///
    /// # Errors
    /// An address that cannot be read.
    #[inline(always)]
    pub(super) fn follow(self, steps: u64) -> Result<u64, UserFault> {
        user_chase(self.first, steps)
    }

    /// The addresses of its nodes, round and round.
    pub(super) fn addresses(self) -> impl Iterator<Item = Result<u64, UserFault>> {
        let mut next = Ok(self.first);
        core::iter::from_fn(move || {
            let here = next;
            next = here.and_then(user_read_u64);
            Some(here)
        })
    }
}

crate::ktest! {
    fn a_chain_passes_every_page_once_and_closes() {
        let space = crate::vm::new_space()?;
        let active = crate::vm::activate(&space);
        let range = farpage_mm::VaRange::new(super::Sheet::BASE, 300 * PAGE_SIZE);
        space.space().map_anon(range, farpage_mm::Prot::RW, farpage_mm::HugeAdvice::NoHuge)?;
        for nodes in [1, 2, 3, 64, 300] {
            let chain = Chain::lay(range.start, nodes)?;
            let mut seen = [0_u8; 300];
            for at in chain.addresses().take(nodes as usize) {
                seen[((at? - range.start.0) / PAGE_SIZE) as usize] += 1;
            }
            crate::check!(seen[..nodes as usize].iter().all(|n| *n == 1), "{nodes} nodes: {seen:?}");
            crate::check_eq!(chain.follow(nodes), Ok(chain.first));
            crate::check!(nodes == 1 || chain.follow(nodes - 1) != Ok(chain.first));
        }
        drop(active);
    }
}
