//! The adversarial MMU: it does whatever the Intel SDM (vol. 3, chapter 4) lets a processor do, when it hurts most.
//!
//! Each CPU has cached translations and cached upper-level entries (paging-structure caches), all tagged with the root that
//! they came from. At every lock, table look-up, counter, copy and flush of the memory manager the MMU may, by seed:
//! load any translation that is present at that moment (setting A in the entries on the way), evict any, keep upper-level
//! entries and begin later walks from them, hold 4 KiB and 2 MiB translations side by side, ignore a CR3 load for global
//! pages, and let *another CPU* read or write through whatever it has cached.
//!
//! It is told by [`FlushRequest`]s what to forget and forgets nothing else: with a range, only translations that one of its
//! strides falls into; upper-level entries only when tables were freed.
//!
//! It knows entries by their bits alone and shares no code with the codec. What it fails on: two live translations of
//! one address that differ in size or frame; an access to a frame that is free, a table, or descriptors; a walk through a
//! freed table; a write to the zero page; contents that are not the model's; an access to what is not mapped any more;
//! different memory types for one frame; reserved bits; bits that a non-present entry must not have.

mod disturb;
mod walk;

use crate::exercise::Rng;
use crate::machine::{FlushRequest, FlushScope};
use crate::testing::machine::{Config, State};
use crate::types::PAGE_SIZE;

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const PWT: u64 = 1 << 3;
const PCD: u64 = 1 << 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;
/// Bits that make other software or some CPU take a non-present entry for something else.
const NEVER_IN_NON_PRESENT: u64 = P | A | D | PS | G;
/// Physical address bits of the CPU.
const PHYS_BITS: u32 = 46;
const ADDR: u64 = (1 << PHYS_BITS) - PAGE_SIZE;
const RESERVED: u64 = ((1 << 52) - 1) & !((1 << PHYS_BITS) - 1);
const MIB2: u64 = 2 << 20;

/// A cached translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cached {
    pub(crate) root: u32,
    pub(crate) addr: u64,
    pub(crate) size: u64,
    pub(crate) pfn: u32,
    write: bool,
    exec: bool,
    dirty: bool,
    global: bool,
    cache: u64,
}

/// A cached upper-level entry: below `level`, addresses from `addr` (of `1 << shift` bytes) are mapped by `table`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Upper {
    root: u32,
    level: u32,
    addr: u64,
    table: u32,
}

#[derive(Debug, Default)]
struct Cpu {
    /// Root in CR3, and the runner's number of that space.
    loaded: Option<(u32, usize)>,
    leaves: Vec<Cached>,
    uppers: Vec<Upper>,
}

/// The TLBs of all CPUs.
#[derive(Debug)]
pub(crate) struct Mmu {
    cpus: Vec<Cpu>,
    pub(crate) rng: Rng,
    chaos: u64,
    /// Addresses of late, where trouble is likely.
    hot: Vec<u64>,
    busy: bool,
    /// Disturbances so far.
    pub(crate) disturbances: u64,
}

/// A page fault, as the CPU reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageFault {
    pub(crate) present: bool,
}

const CAPACITY: usize = 24;
const HOT: usize = 16;

/// Address bits below a table of `level` entries' reach.
const fn shift(level: u32) -> u32 {
    12 + 9 * (level - 1)
}

impl Cached {
    const fn covers(&self, addr: u64) -> bool {
        addr.wrapping_sub(self.addr) < self.size
    }
    const fn frame(&self, addr: u64) -> u32 {
        self.pfn + ((addr - self.addr) / PAGE_SIZE) as u32
    }
}

impl Mmu {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            cpus: (0..config.cpus).map(|_| Cpu::default()).collect(),
            rng: Rng::new(1),
            chaos: config.chaos,
            hot: Vec::new(),
            busy: false,
            disturbances: 0,
        }
    }

    /// Does what is asked, exactly.
    pub(crate) fn flush(&mut self, request: &FlushRequest) {
        let all = matches!(request.scope, FlushScope::All);
        for (n, cpu) in self.cpus.iter_mut().enumerate() {
            if request.cpus & 1 << n == 0 {
                continue;
            }
            cpu.leaves.retain(|t| t.root != request.root || !hits(request.scope, t));
            if all || request.tables {
                cpu.uppers.retain(|u| u.root != request.root);
            }
        }
    }

    /// MOV to CR3: what is not global of the old root goes.
    pub(crate) fn load(&mut self, cpu: usize, root: u32, space: usize) {
        let cpu = &mut self.cpus[cpu];
        cpu.loaded = Some((root, space));
        cpu.leaves.retain(|t| t.global);
        cpu.uppers.clear();
    }

    /// The CPU runs in no user space.
    pub(crate) fn unload(&mut self, cpu: usize) {
        let cpu = &mut self.cpus[cpu];
        cpu.loaded = None;
        cpu.leaves.retain(|t| t.global);
        cpu.uppers.clear();
    }

    /// The space that a CPU has loaded.
    pub(crate) fn loaded(&self, cpu: usize) -> Option<(u32, usize)> {
        self.cpus[cpu].loaded
    }

    pub(crate) fn heat(&mut self, addr: u64) {
        if self.hot.len() == HOT {
            let at = self.rng.below(HOT as u64) as usize;
            self.hot[at] = addr;
        } else {
            self.hot.push(addr);
        }
    }

    /// Cached translations of `root` on any CPU, with their CPU.
    pub(crate) fn cached(&self, root: u32) -> Vec<(usize, Cached)> {
        let mut all = Vec::new();
        for (n, cpu) in self.cpus.iter().enumerate() {
            all.extend(cpu.leaves.iter().filter(|t| t.root == root).map(|t| (n, *t)));
        }
        all
    }

    fn insert(&mut self, state: &State, cpu: usize, new: Cached) {
        for (n, other) in self.cpus.iter().enumerate() {
            for t in &other.leaves {
                let shares_frame = t.pfn < new.pfn + (new.size / PAGE_SIZE) as u32
                    && new.pfn < t.pfn + (t.size / PAGE_SIZE) as u32;
                if shares_frame && t.cache != new.cache {
                    state.fail(|| format!("two memory types for one frame: {t:x?} and {new:x?}"));
                }
                if n != cpu || t.root != new.root || !(t.covers(new.addr) || new.covers(t.addr)) {
                    continue;
                }
                if t.size != new.size {
                    state.fail(|| format!("two live sizes for one address: {t:x?} and {new:x?}"));
                } else if t.pfn != new.pfn {
                    state.fail(|| format!("two live frames for one address: {t:x?} and {new:x?}"));
                }
            }
        }
        let evict = self.rng.below(CAPACITY as u64) as usize;
        let cpu = &mut self.cpus[cpu];
        cpu.leaves.retain(|t| t.root != new.root || t.addr != new.addr || t.size != new.size);
        if cpu.leaves.len() == CAPACITY {
            cpu.leaves.swap_remove(evict);
        }
        cpu.leaves.push(new);
    }
}

/// True when one of the pages that the scope names lies in the translation.
const fn hits(scope: FlushScope, t: &Cached) -> bool {
    match scope {
        FlushScope::All => !t.global,
        FlushScope::Range { range, stride } => {
            let (start, end) = (range.start.0, range.end.0);
            // The first stride point at or after the translation's start.
            let point =
                if t.addr <= start { start } else { start + (t.addr - start).div_ceil(stride) * stride };
            point < end && t.covers(point)
        }
    }
}
