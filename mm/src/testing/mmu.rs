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

use core::sync::atomic::Ordering::Relaxed;

use crate::error::FaultError;
use crate::exercise::{Rng, WORDS};
use crate::fault::{FaultBits, FaultInfo, FaultOutcome};
use crate::machine::{FlushRequest, FlushScope};
use crate::space::Space;
use crate::testing::machine::{Config, Soft, State};
use crate::types::{Access, Frame, PAGE_SIZE, VaRange, Vaddr};

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

impl State {
    /// A table walk by hardware. Sets A on the way, and D for a write.
    fn walk(
        &self,
        mmu: &mut Mmu,
        cpu: usize,
        root: u32,
        addr: u64,
        write: bool,
    ) -> Result<Cached, PageFault> {
        let mut level = 4;
        let mut table = root;
        let begin = mmu.rng.below(4) as u32;
        let from = mmu.cpus[cpu]
            .uppers
            .iter()
            .rfind(|u| u.root == root && (addr ^ u.addr) >> shift(u.level) == 0 && u.level >= 2 + begin % 3);
        if let Some(upper) = from {
            (level, table) = (upper.level - 1, upper.table);
        }
        loop {
            if !self.has_ram(table) || !self.is_table(table, level) {
                self.fail(|| {
                    format!(
                        "walk for {addr:#x} goes through frame {table:#x}, no page table of level {level}"
                    )
                });
                return Err(PageFault { present: false });
            }
            let words = self.table(table);
            let word = &words[(addr >> shift(level)) as usize & 511];
            let value = word.load(Relaxed);
            if value & P == 0 {
                if value & NEVER_IN_NON_PRESENT != 0 {
                    self.fail(|| {
                        format!("non-present entry {value:#x} for {addr:#x} has bits that it must not have")
                    });
                }
                return Err(PageFault { present: false });
            }
            let leaf = level == 1 || (level == 2 && value & PS != 0);
            let large = leaf && level == 2;
            let reserved = RESERVED | if level > 2 { PS } else { 0 } | if large { 0x1f_e000 } else { 0 };
            if value & reserved != 0 || value & US == 0 {
                self.fail(|| format!("reserved bits in entry {value:#x} of level {level} for {addr:#x}"));
                return Err(PageFault { present: true });
            }
            if !leaf {
                if value & A == 0 {
                    word.fetch_or(A, Relaxed);
                }
                table = ((value & ADDR) >> 12) as u32;
                let upper = Upper { root, level, addr: addr & !((1 << shift(level)) - 1), table };
                let uppers = &mut mmu.cpus[cpu].uppers;
                if mmu.rng.one_in(2) && !uppers.contains(&upper) {
                    if uppers.len() == CAPACITY {
                        uppers.remove(0);
                    }
                    uppers.push(upper);
                }
                level -= 1;
                continue;
            }
            if write && value & RW == 0 {
                return Err(PageFault { present: true });
            }
            let set = if write { A | D } else { A };
            if value & set != set {
                word.fetch_or(set, Relaxed);
            }
            let size = 1 << shift(level);
            let pat = if large { 1 << 12 } else { 1 << 7 };
            let t = Cached {
                root,
                addr: addr & !(size - 1),
                size,
                pfn: ((value & ADDR & !(size - 1)) >> 12) as u32,
                write: value & RW != 0,
                exec: value & NX == 0,
                dirty: (value | set) & D != 0,
                global: value & G != 0,
                cache: u64::from(value & pat != 0) << 2 | (value & (PWT | PCD)) >> 3,
            };
            mmu.insert(self, cpu, t);
            return Ok(t);
        }
    }

    /// What the memory manager says about a frame that hardware takes for a table.
    fn is_table(&self, pfn: u32, level: u32) -> bool {
        self.mm.ram.table_index(pfn).is_some_and(|index| {
            let table = self.mm.tables.get(index);
            table.pfn() == pfn && table.level() as u32 == level
        })
    }

    /// One access of `cpu` to `addr`: through a cached translation if it has one, stale or not, else by a walk.
    fn access(
        &self,
        mmu: &mut Mmu,
        cpu: usize,
        root: u32,
        addr: u64,
        write: bool,
    ) -> Result<Cached, PageFault> {
        let hit =
            mmu.cpus[cpu].leaves.iter().find(|t| (t.root == root || t.global) && t.covers(addr)).copied();
        let result = match hit {
            Some(t) if !write || (t.write && t.dirty) => return Ok(t),
            // No permission: it may walk again before it faults, or not (4.10.4.3).
            Some(t) if !t.write && mmu.rng.one_in(2) => Err(PageFault { present: true }),
            _ => self.walk(mmu, cpu, root, addr, write),
        };
        if result.is_err() {
            // A fault drops what is cached for its address.
            mmu.cpus[cpu].leaves.retain(|t| !t.covers(addr));
            mmu.cpus[cpu].uppers.retain(|u| (addr ^ u.addr) >> shift(u.level) != 0);
        }
        result
    }

    /// Reads or writes a sampled word where a translation leads; `None` when it leads where nobody may go.
    fn through(&self, t: &Cached, addr: u64, word: usize, value: Option<u64>) -> Option<u64> {
        let mm = &self.mm;
        let pfn = t.frame(addr);
        let frame = self.mappable(pfn).unwrap_or(Frame::ram(pfn));
        let owner = self.mappable(pfn).and_then(|frame| mm.zone(frame.place()).folio_index(pfn));
        let folio = owner.map(|index| mm.folios.get(index)).filter(|f| f.refs() != 0 && f.covers(frame));
        if folio.is_none() {
            self.fail(|| {
                format!("access to {addr:#x} through {t:x?} reaches {frame}, which belongs to no folio")
            });
            return None;
        }
        if value.is_some() && mm.zero_frames().iter().flatten().any(|f| folio.is_some_and(|z| z.covers(*f))) {
            self.fail(|| format!("write to {addr:#x} through {t:x?} hits the zero page"));
            return None;
        }
        let cell = &self.data(frame)[word];
        if let Some(value) = value {
            cell.set(value);
        }
        Some(cell.get())
    }

    /// A user access that faults as often as it must. What it read, or wrote.
    pub(crate) fn user_access(
        &self,
        cpu: usize,
        space: &'static Space<Soft>,
        addr: Vaddr,
        word: usize,
        value: Option<u64>,
    ) -> Result<u64, FaultError> {
        let access = if value.is_some() { Access::Write } else { Access::Read };
        self.cpu.set(cpu);
        self.mmu.borrow_mut().heat(addr.0);
        let mut spurious = 0;
        loop {
            let result = {
                let mut mmu = self.mmu.borrow_mut();
                self.access(&mut mmu, cpu, space.root_pfn(), addr.0, value.is_some())
            };
            let fault = match result {
                Ok(t) => return Ok(self.through(&t, addr.0, word, value).unwrap_or(0)),
                Err(fault) => fault,
            };
            if self.failure.borrow().is_some() {
                return Ok(0);
            }
            let bits = if fault.present { FaultBits::PRESENT } else { FaultBits::empty() };
            let info = FaultInfo { bits, ..FaultInfo::new(addr, access) };
            if space.handle_fault(&info)? == FaultOutcome::Spurious {
                spurious += 1;
            } else {
                spurious = 0;
            }
            if spurious == 8 {
                self.fail(|| format!("{access:?} of {addr} is spurious 8 times running"));
                return Ok(0);
            }
        }
    }

    /// A chance for a disturbance.
    #[inline]
    pub(crate) fn disturb(&self) {
        if self.config.chaos == 0 {
            return;
        }
        let Ok(mut mmu) = self.mmu.try_borrow_mut() else { return };
        let chaos = mmu.chaos;
        if !mmu.busy && mmu.rng.one_in(chaos) {
            self.disturb_now(&mut mmu);
        }
    }

    /// One disturbance.
    pub(crate) fn disturb_now(&self, mmu: &mut Mmu) {
        mmu.busy = true;
        mmu.disturbances += 1;
        let cpu = mmu.rng.below(mmu.cpus.len() as u64) as usize;
        if let Some((root, space)) = mmu.cpus[cpu].loaded {
            match mmu.rng.below(8) {
                0 => {
                    let n = mmu.cpus[cpu].leaves.len() as u64;
                    if n > 0 {
                        let at = mmu.rng.below(n) as usize;
                        mmu.cpus[cpu].leaves.swap_remove(at);
                    }
                }
                1..=3 => {
                    // Speculation: no fault is ever seen of it, and no D is set.
                    let addr = self.somewhere(mmu, cpu);
                    let _ = self.walk(mmu, cpu, root, addr, false);
                }
                _ if cpu != self.cpu.get() => self.other_cpu(mmu, cpu, root, space),
                _ => {}
            }
        }
        mmu.busy = false;
    }

    fn somewhere(&self, mmu: &mut Mmu, cpu: usize) -> u64 {
        let cached = mmu.cpus[cpu].leaves.len() as u64;
        let base = if cached > 0 && mmu.rng.one_in(2) {
            mmu.cpus[cpu].leaves[mmu.rng.below(cached) as usize].addr
        } else if mmu.hot.is_empty() {
            return 0;
        } else {
            mmu.hot[mmu.rng.below(mmu.hot.len() as u64) as usize]
        };
        match mmu.rng.below(3) {
            0 => base,
            1 => (base & !(MIB2 - 1)) + mmu.rng.below(512) * PAGE_SIZE,
            _ => base.wrapping_add(mmu.rng.below(8) * PAGE_SIZE),
        }
    }

    /// A program on another CPU reads or writes, as far as it can without a fault, and sees what the model says.
    fn other_cpu(&self, mmu: &mut Mmu, cpu: usize, root: u32, space: usize) {
        let addr = self.somewhere(mmu, cpu) & !(PAGE_SIZE - 1);
        let (page, word) = (addr / PAGE_SIZE, mmu.rng.below(WORDS as u64) as usize);
        let value = if mmu.rng.one_in(2) { Some(mmu.rng.next()) } else { None };
        let Ok(mut model) = self.model.try_borrow_mut() else { return };
        if model.flux.is_some_and(|(n, range)| n == space && range.contains(Vaddr(addr))) {
            return;
        }
        let Ok(t) = self.access(mmu, cpu, root, addr, value.is_some()) else { return };
        let access = if value.is_some() { Access::Write } else { Access::Read };
        if model.allows(space, page, access) != Some(true) {
            self.fail(|| {
                format!("CPU {cpu} did a {access:?} of {addr:#x} through {t:x?}, which is not allowed")
            });
            return;
        }
        let Some(found) = self.through(&t, addr, word, value) else { return };
        match value {
            Some(value) => {
                model.write(space, page, word, value);
                if t.size == MIB2 {
                    model.spaces[space].blur(page);
                }
            }
            None if found != model.read(space, page, word) => self.fail(|| {
                let expected = model.read(space, page, word);
                format!(
                    "CPU {cpu} read {found:#x} at {addr:#x} word {word} through {t:x?}, not {expected:#x}"
                )
            }),
            None => {}
        }
    }

    /// At rest no translation may be stale, whatever it is used for.
    pub(crate) fn check_no_stale(&self) {
        let mmu = self.mmu.borrow();
        for (n, cpu) in mmu.cpus.iter().enumerate() {
            for t in &cpu.leaves {
                let now = self.leaf_now(t.root, t.addr);
                let same = now
                    .is_some_and(|(pfn, size, write)| pfn == t.pfn && size == t.size && (write || !t.write));
                if !same {
                    self.fail(|| format!("CPU {n} still has {t:x?} where the tables say {now:x?}"));
                }
            }
            for u in &cpu.uppers {
                let now = self.upper_now(u.root, u.addr, u.level);
                if now != Some(u.table) {
                    self.fail(|| format!("CPU {n} still has {u:x?} where the tables say {now:x?}"));
                }
            }
        }
    }

    /// Like a walk, but leaves no trace: (frame, size, writable).
    fn leaf_now(&self, root: u32, addr: u64) -> Option<(u32, u64, bool)> {
        let mut table = root;
        for level in [4, 3, 2, 1] {
            let value = self.table(table)[(addr >> shift(level)) as usize & 511].load(Relaxed);
            if value & P == 0 {
                return None;
            }
            if level == 1 || value & PS != 0 && level == 2 {
                let size = 1 << shift(level);
                return Some((((value & ADDR & !(size - 1)) >> 12) as u32, size, value & RW != 0));
            }
            table = ((value & ADDR) >> 12) as u32;
        }
        None
    }

    fn upper_now(&self, root: u32, addr: u64, of: u32) -> Option<u32> {
        let mut table = root;
        for level in [4, 3, 2] {
            let value = self.table(table)[(addr >> shift(level)) as usize & 511].load(Relaxed);
            if value & P == 0 || value & PS != 0 {
                return None;
            }
            table = ((value & ADDR) >> 12) as u32;
            if level == of {
                return Some(table);
            }
        }
        None
    }

    /// A range is unmapped: whatever translation is left of it can still be used, and is.
    pub(crate) fn probe_unmapped(&self, root: u32, range: VaRange) {
        let cached = self.mmu.borrow().cached(root);
        for (cpu, t) in cached {
            let addr = t.addr.max(range.start.0);
            if t.covers(addr) && range.contains(Vaddr(addr)) {
                self.fail(|| {
                    format!("CPU {cpu} can still access {addr:#x} through {t:x?} after it was unmapped")
                });
            }
        }
    }
}
