//! What an access does: a cached translation, stale or not, or a walk; and the memory it leads to.

use core::sync::atomic::Ordering::Relaxed;

use crate::error::FaultError;
use crate::fault::{FaultBits, FaultInfo, FaultOutcome};
use crate::space::Space;
use crate::testing::machine::{Soft, State};
use crate::testing::mmu::{
    A, ADDR, CAPACITY, Cached, D, G, Mmu, NEVER_IN_NON_PRESENT, NX, P, PCD, PS, PWT, PageFault, RESERVED, RW,
    US, Upper, shift,
};
use crate::types::{Access, Frame, Vaddr};

impl State {
    /// A table walk by hardware. Sets A on the way, and D for a write.
    pub(super) fn walk(
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
    pub(super) fn access(
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
    pub(super) fn through(&self, t: &Cached, addr: u64, word: usize, value: Option<u64>) -> Option<u64> {
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
}
