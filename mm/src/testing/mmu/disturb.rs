//! What the MMU does of its own accord, at any moment; and what must be true of it at rest.

use core::sync::atomic::Ordering::Relaxed;

use crate::exercise::WORDS;
use crate::testing::machine::State;
use crate::testing::mmu::{ADDR, MIB2, Mmu, P, PS, RW, shift};
use crate::types::{Access, PAGE_SIZE, VaRange, Vaddr};

impl State {
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

    /// A range was unmapped, or lent to a device: whatever translation is left of it can still be used, and is.
    pub(crate) fn probe_gone(&self, root: u32, range: VaRange, what: &str) {
        let cached = self.mmu.borrow().cached(root);
        for (cpu, t) in cached {
            let addr = t.addr.max(range.start.0);
            if t.covers(addr) && range.contains(Vaddr(addr)) {
                self.fail(|| {
                    format!("CPU {cpu} can still access {addr:#x} through {t:x?} after it was {what}")
                });
            }
        }
    }
}
