//! A PMU in software: registers with the widths and reserved bits of the manuals, counters that move when time does.
//!
//! A bit that must be 0, a register that is not there, a counter that does not exist: each is refused, as the CPU would by #GP.

use std::{cell::RefCell, collections::BTreeMap, vec::Vec};

use crate::registers::{Cpuid, Refused, Register, Registers, intel};

/// What kind of CPU it is.
#[derive(Clone, Debug)]
pub(super) struct Cpu {
    pub(super) vendor: &'static [u8; 12],
    pub(super) family: u32,
    pub(super) model: u32,
    /// CPUID.0AH: version, general counters, their width, how many bits EBX has.
    pub(super) leaf: [u32; 4],
    pub(super) missing: u32,
    /// Fixed counters by EDX, and by ECX.
    pub(super) fixed: (u32, u32),
    pub(super) fixed_width: u32,
    pub(super) full_width: bool,
    /// A hybrid CPU's kind of core, by CPUID.1AH.
    pub(super) core_kind: Option<u32>,
    pub(super) amd_core: bool,
    pub(super) amd_global: Option<u32>,
    /// Writes are swallowed and everything reads as 0, as QEMU's translator does it; RDPMC is no instruction.
    pub(super) swallows: bool,
    /// This register is refused, whatever else holds.
    pub(super) refuses: Option<u32>,
    /// This register can be read only.
    pub(super) read_only: Option<u32>,
}

impl Cpu {
    pub(super) fn intel(version: u32) -> Self {
        Self {
            vendor: b"GenuineIntel",
            family: 6,
            model: 0x55,
            leaf: [version, 4, 48, 7],
            missing: 0,
            fixed: (if version >= 2 { 3 } else { 0 }, 0),
            fixed_width: 48,
            full_width: version >= 3,
            core_kind: None,
            amd_core: false,
            amd_global: None,
            swallows: false,
            refuses: None,
            read_only: None,
        }
    }

    pub(super) fn amd(family: u32, core: bool, global: Option<u32>) -> Self {
        Self {
            vendor: b"AuthenticAMD",
            family,
            model: 0x31,
            leaf: [0; 4],
            amd_core: core,
            amd_global: global,
            ..Self::intel(1)
        }
    }

    pub(super) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn is_amd(&self) -> bool {
        self.vendor == b"AuthenticAMD"
    }

    fn general(&self) -> u32 {
        match (self.is_amd(), self.amd_core) {
            (false, _) => self.leaf[1],
            (true, false) => 4,
            (true, true) => self.amd_global.unwrap_or(6),
        }
    }

    fn width(&self) -> u32 {
        if self.is_amd() { 48 } else { self.leaf[2] }
    }

    fn fixed_bits(&self) -> u64 {
        let contiguous = (1 << self.fixed.0) - 1;
        u64::from(if self.leaf[0] >= 5 { contiguous | self.fixed.1 } else { contiguous })
    }
}

/// How fast events happen: code (unit mask above event), and how often per tick.
type Rates = BTreeMap<u64, u64>;

/// A CPU whose time moves when it is told to.
#[derive(Debug)]
pub(super) struct Sim {
    pub(super) cpu: Cpu,
    state: RefCell<State>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Event selects, global and fixed control, by address.
    pub(super) msrs: BTreeMap<u32, u64>,
    pub(super) general: Vec<u64>,
    pub(super) fixed: Vec<u64>,
    pub(super) status: u64,
    ticks: u64,
    rates: Rates,
}

/// What a register of the simulation is.
enum Role {
    Select,
    General { n: u32, full: bool },
    FixedControl,
    Fixed(u32),
    Global,
    Status,
    Clear,
    Capabilities,
}

const PER_TICK: [(u64, u64); 11] = [
    (0x3c, 2),    // cycles, Intel
    (0xc0, 3),    // instructions, both
    (0x76, 2),    // cycles, AMD
    (0x412e, 5),  // LLC misses, Intel
    (0x0108, 7),  // load misses
    (0x0149, 11), // store misses
    (0x0e08, 13), // walks of loads
    (0x0e49, 17), // walks of stores
    (0x1008, 19), // cycles of them
    (0x1049, 23), // cycles of them
    (0xf045, 29), // walks, AMD
];

impl Sim {
    pub(super) fn new(cpu: Cpu) -> Self {
        let general = (0..cpu.general()).map(|n| 0x100 + u64::from(n)).collect();
        let fixed = (0..32).map(|n| 0x200 + n).collect();
        let state = State { general, fixed, rates: PER_TICK.into(), ..State::default() };
        Self { cpu, state: RefCell::new(state) }
    }

    /// Somebody has used the counters before: what they hold must come back.
    pub(super) fn used(self) -> Self {
        let mut state = self.state.borrow_mut();
        for n in 0..self.cpu.general() {
            let (select, _) = self.addresses(n);
            state.msrs.insert(select, 0x43_0000 | u64::from(0xa0 + n));
        }
        if self.cpu.fixed_bits() != 0 {
            state.msrs.insert(intel::FIXED_CTR_CTRL, 0x2);
        }
        if let Some([control, ..]) = self.global() {
            state.msrs.insert(control, self.global_bits() & 0b11 | self.global_bits() & 1 << 32);
        }
        drop(state);
        self
    }

    pub(super) fn state(&self) -> State {
        State { ticks: 0, ..self.state.borrow().clone() }
    }

    pub(super) fn set_general(&self, n: usize, value: u64) {
        self.state.borrow_mut().general[n] = value;
    }

    /// `ticks` pass; enabled counters count.
    pub(super) fn pass(&self, ticks: u64) {
        let mut state = self.state.borrow_mut();
        state.ticks += ticks;
        let global = self.global().map(|[control, ..]| *state.msrs.get(&control).unwrap_or(&0));
        for n in 0..self.cpu.general() {
            let select = *state.msrs.get(&self.addresses(n).0).unwrap_or(&0);
            let enabled = select >> 22 & 1 != 0 && select >> 16 & 3 == 3;
            if enabled && global.is_none_or(|bits| bits >> n & 1 != 0) {
                let by = ticks * state.rates.get(&(select & 0xffff)).copied().unwrap_or(0);
                let sum = state.general[n as usize] + by;
                state.status |= u64::from(sum >> self.cpu.width() != 0) << n;
                state.general[n as usize] = sum & low(self.cpu.width());
            }
        }
        let control = *state.msrs.get(&intel::FIXED_CTR_CTRL).unwrap_or(&0);
        for (n, code) in [(0, 0xc0), (1, 0x3c)] {
            let there = self.cpu.fixed_bits() >> n & 1 != 0;
            if there && control >> (4 * n) & 3 == 3 && global.is_some_and(|bits| bits >> (32 + n) & 1 != 0) {
                let sum = state.fixed[n] + ticks * state.rates[&code];
                state.status |= u64::from(sum >> self.cpu.fixed_width != 0) << (32 + n);
                state.fixed[n] = sum & low(self.cpu.fixed_width);
            }
        }
    }

    /// Select and counter of a general counter.
    fn addresses(&self, n: u32) -> (u32, u32) {
        match (self.cpu.is_amd(), self.cpu.amd_core) {
            (false, _) => (0x186 + n, 0xc1 + n),
            (true, false) => (0xc001_0000 + n, 0xc001_0004 + n),
            (true, true) => (0xc001_0200 + 2 * n, 0xc001_0201 + 2 * n),
        }
    }

    fn global(&self) -> Option<[u32; 3]> {
        match (self.cpu.is_amd(), self.cpu.amd_global) {
            (false, _) => (self.cpu.leaf[0] >= 2).then_some([0x38f, 0x38e, 0x390]),
            (true, global) => global.map(|_| [0xc000_0301, 0xc000_0300, 0xc000_0302]),
        }
    }

    fn role(&self, msr: u32) -> Option<Role> {
        if self.cpu.refuses == Some(msr) {
            return None;
        }
        for n in 0..self.cpu.general() {
            let (select, counter) = self.addresses(n);
            match msr {
                _ if msr == select => return Some(Role::Select),
                _ if msr == counter => return Some(Role::General { n, full: self.cpu.is_amd() }),
                _ if msr == 0x4c1 + n && !self.cpu.is_amd() && self.cpu.full_width => {
                    return Some(Role::General { n, full: true });
                }
                _ => {}
            }
        }
        match (msr, self.global()) {
            (_, Some([control, ..])) if msr == control => Some(Role::Global),
            (_, Some([_, status, _])) if msr == status => Some(Role::Status),
            (_, Some([.., clear])) if msr == clear => Some(Role::Clear),
            (0x345, _) if !self.cpu.is_amd() => Some(Role::Capabilities),
            (0x38d, Some(_)) if self.cpu.fixed_bits() != 0 => Some(Role::FixedControl),
            (0x309..0x329, Some(_)) if self.cpu.fixed_bits() >> (msr - 0x309) & 1 != 0 => {
                Some(Role::Fixed(msr - 0x309))
            }
            _ => None,
        }
    }

    fn global_bits(&self) -> u64 {
        low(self.cpu.general()) | self.cpu.fixed_bits() << 32
    }
}

fn low(bits: u32) -> u64 {
    (1 << bits) - 1
}

impl Registers for Sim {
    fn cpuid(&self, leaf: u32, _subleaf: u32) -> Cpuid {
        let cpu = &self.cpu;
        let word = |at: usize| u32::from_le_bytes(cpu.vendor[at..at + 4].try_into().unwrap());
        let (base, above) = if cpu.family > 0xf { (0xf, cpu.family - 0xf) } else { (cpu.family, 0) };
        match leaf {
            0 => Cpuid { eax: 0x1a, ebx: word(0), edx: word(4), ecx: word(8) },
            1 => Cpuid {
                eax: above << 20 | (cpu.model >> 4) << 16 | base << 8 | (cpu.model & 0xf) << 4 | 7,
                ecx: u32::from(!cpu.is_amd()) << 15,
                ..Cpuid::default()
            },
            7 => Cpuid { edx: u32::from(cpu.core_kind.is_some()) << 15, ..Cpuid::default() },
            0xa => Cpuid {
                eax: cpu.leaf[3] << 24 | cpu.leaf[2] << 16 | cpu.leaf[1] << 8 | cpu.leaf[0],
                ebx: cpu.missing,
                ecx: cpu.fixed.1,
                edx: cpu.fixed_width << 5 | cpu.fixed.0,
            },
            0x1a => Cpuid { eax: cpu.core_kind.unwrap_or(0) << 24, ..Cpuid::default() },
            0x8000_0000 => Cpuid { eax: 0x8000_0022, ..Cpuid::default() },
            0x8000_0001 => Cpuid { ecx: u32::from(cpu.amd_core) << 23, ..Cpuid::default() },
            0x8000_0022 => Cpuid {
                eax: u32::from(cpu.amd_global.is_some()),
                ebx: cpu.amd_global.unwrap_or(0),
                ..Cpuid::default()
            },
            _ => Cpuid::default(),
        }
    }

    fn rdmsr(&self, msr: u32) -> Result<u64, Refused> {
        if self.cpu.swallows {
            return Ok(0);
        }
        let state = self.state.borrow();
        Ok(match self.role(msr).ok_or(Refused(Register::Read(msr)))? {
            Role::General { n, .. } => state.general[n as usize],
            Role::Fixed(n) => state.fixed[n as usize],
            Role::Status => state.status,
            Role::Capabilities => u64::from(self.cpu.full_width) << 13,
            Role::Select | Role::FixedControl | Role::Global | Role::Clear => {
                *state.msrs.get(&msr).unwrap_or(&0)
            }
        })
    }

    fn wrmsr(&self, msr: u32, value: u64) -> Result<(), Refused> {
        if self.cpu.swallows {
            return Ok(());
        }
        let refused = Refused(Register::Write(msr));
        if self.cpu.read_only == Some(msr) {
            return Err(refused);
        }
        let may_be_set = match self.role(msr).ok_or(refused)? {
            Role::Select if self.cpu.is_amd() => 0x3f_0000_0000 | 0xffff_ffff & !(1 << 19 | 1 << 21),
            Role::Select => 0xffff_ffff,
            Role::General { full: true, .. } => low(self.cpu.width()),
            Role::General { full: false, .. } => low(32),
            Role::Fixed(_) => low(self.cpu.fixed_width),
            Role::FixedControl => (0..32)
                .filter(|n| self.cpu.fixed_bits() >> n & 1 != 0 && *n < 16)
                .fold(0, |bits, n| bits | 0xf << (4 * n)),
            Role::Global | Role::Clear => self.global_bits(),
            Role::Status | Role::Capabilities => return Err(refused),
        };
        if value & !may_be_set != 0 {
            return Err(refused);
        }
        let mut state = self.state.borrow_mut();
        match self.role(msr).ok_or(refused)? {
            Role::General { n, full: true } => state.general[n as usize] = value,
            // The CPU extends the sign of 32 bits.
            Role::General { n, full: false } => {
                let extended = i64::from(value as u32 as i32).cast_unsigned();
                state.general[n as usize] = extended & low(self.cpu.width());
            }
            Role::Fixed(n) => state.fixed[n as usize] = value,
            Role::Clear => state.status &= !value,
            _ => drop(state.msrs.insert(msr, value)),
        }
        Ok(())
    }

    fn rdpmc(&self, index: u32) -> Result<u64, Refused> {
        let state = self.state.borrow();
        let fixed = index & !(1 << 30);
        let value = match index >> 30 & 1 {
            _ if self.cpu.swallows => None,
            0 => state.general.get(index as usize),
            _ if self.cpu.fixed_bits() >> fixed & 1 == 0 || self.global().is_none() => None,
            _ => state.fixed.get(fixed as usize),
        };
        // What stands above the width is nobody's business.
        let above = if index >> 30 & 1 == 0 { self.cpu.width() } else { self.cpu.fixed_width };
        value.map(|value| value | !low(above)).ok_or(Refused(Register::Counter(index)))
    }

    fn ticks(&self) -> u64 {
        self.state.borrow().ticks
    }
}

impl Registers for &Sim {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Cpuid {
        (*self).cpuid(leaf, subleaf)
    }
    fn rdmsr(&self, msr: u32) -> Result<u64, Refused> {
        (*self).rdmsr(msr)
    }
    fn wrmsr(&self, msr: u32, value: u64) -> Result<(), Refused> {
        (*self).wrmsr(msr, value)
    }
    fn rdpmc(&self, index: u32) -> Result<u64, Refused> {
        (*self).rdpmc(index)
    }
    fn ticks(&self) -> u64 {
        (*self).ticks()
    }
}
