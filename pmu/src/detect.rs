//! What counters a CPU has.

use core::fmt;

use crate::event::Event;
use crate::registers::{Refused, Registers, amd, intel};
use crate::table::{Model, Row, Uncounted, Vendor};

/// At most this many general counters are used. Intel CPUs with eight count our events in the first four only.
pub(crate) const MAX_GENERAL: usize = 6;
const MAX_INTEL: u8 = 4;
/// Fixed counters that count events of ours: instructions and cycles.
pub(crate) const MAX_FIXED: usize = 2;

/// How the counters are programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By CPUID.0AH.
    Architectural {
        /// 1 to 5; what is newer is used like 5.
        version: u8,
    },
    /// AMD's four of the K7.
    K7,
    /// AMD's six core counters.
    Core,
    /// These with global control.
    CoreGlobal,
}

/// The counters of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pmu {
    pub(crate) kind: Kind,
    pub(crate) model: Model,
    /// General counters that the CPU has.
    there_are: u8,
    /// General counters that are used.
    pub(crate) general: u8,
    /// Bits of a general counter.
    pub(crate) width: u8,
    /// Fixed counters, one bit each.
    pub(crate) fixed: u32,
    /// Bits of a fixed counter.
    pub(crate) fixed_width: u8,
    /// Architectural events that are missing, one bit each.
    missing: u32,
    /// General counters can be written in full width.
    pub(crate) full_width: bool,
}

/// Why there are no counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPmu {
    /// CPUID.0AH says version 0, or is not there.
    NotAnnounced,
    /// A counter does not keep what is written to it.
    Dead,
    /// A register that must be there is refused.
    Refused(Refused),
}

impl From<Refused> for NoPmu {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl fmt::Display for NoPmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this CPU has no performance counters (")?;
        match self {
            Self::NotAnnounced => f.write_str("CPUID.0AH: version 0)"),
            Self::Dead => f.write_str("the first does not keep what is written to it)"),
            Self::Refused(refused) => write!(f, "{refused})"),
        }
    }
}

/// The `width` low bits of a counter.
pub(crate) const fn mask(width: u8) -> u64 {
    if width >= 64 { u64::MAX } else { (1 << width) - 1 }
}

impl Pmu {
    /// Finds out what there is, and tries the first counter.
    ///
    /// # Errors
    /// No counters, or none that work.
    pub(crate) fn detect<R: Registers>(cpu: &R) -> Result<Self, NoPmu> {
        let model = model(cpu);
        let pmu = match model.vendor {
            Vendor::Amd => Self::amd(cpu, model),
            Vendor::Intel | Vendor::Other => Self::architectural(cpu, model)?,
        };
        pmu.try_out(cpu)?;
        Ok(pmu)
    }

    /// SDM volume 2A, CPUID leaf 0AH; volume 3B, 20.2.
    fn architectural<R: Registers>(cpu: &R, model: Model) -> Result<Self, NoPmu> {
        if cpu.cpuid(0, 0).eax < 0xa {
            return Err(NoPmu::NotAnnounced); // above its highest leaf a CPU answers with another one
        }
        let leaf = cpu.cpuid(0xa, 0);
        let byte = |n: u32| (leaf.eax >> (8 * n)) as u8;
        let (version, there_are, width, events) = (byte(0), byte(1), byte(2), byte(3));
        let contiguous = leaf.edx & 0x1f;
        let fixed = match version {
            0 => return Err(NoPmu::NotAnnounced),
            1 => 0,
            2..=4 => (1 << contiguous) - 1,
            _ => leaf.ecx | ((1 << contiguous) - 1),
        };
        // An event is there if its bit exists and is clear.
        let beyond = if events >= 32 { 0 } else { u32::MAX << events };
        let has_capabilities = cpu.cpuid(1, 0).ecx & 1 << 15 != 0;
        let capabilities = if has_capabilities { cpu.rdmsr(intel::PERF_CAPABILITIES)? } else { 0 };
        Ok(Self {
            kind: Kind::Architectural { version: version.min(5) },
            model,
            there_are,
            general: there_are.min(MAX_INTEL),
            width,
            fixed,
            fixed_width: (leaf.edx >> 5) as u8,
            missing: leaf.ebx | beyond,
            full_width: capabilities & intel::FULL_WIDTH_WRITE != 0,
        })
    }

    /// APM volume 2, 13.2; volume 3, CPUID 8000_0001H and 8000_0022H.
    fn amd<R: Registers>(cpu: &R, model: Model) -> Self {
        let last = cpu.cpuid(0x8000_0000, 0).eax;
        let core = last >= 0x8000_0001 && cpu.cpuid(0x8000_0001, 0).ecx & 1 << 23 != 0;
        let second = if last >= 0x8000_0022 { cpu.cpuid(0x8000_0022, 0) } else { Default::default() };
        let (kind, there_are) = match (core, second.eax & 1 != 0) {
            (false, _) => (Kind::K7, 4),
            (true, false) => (Kind::Core, 6),
            (true, true) => (Kind::CoreGlobal, (second.ebx & 0xf) as u8),
        };
        Self {
            kind,
            model,
            there_are,
            general: there_are.min(MAX_GENERAL as u8),
            width: amd::WIDTH,
            fixed: 0,
            fixed_width: 0,
            missing: 0,
            full_width: true,
        }
    }

    /// Does the first counter keep a value, and does RDPMC find it? What was there comes back.
    fn try_out<R: Registers>(&self, cpu: &R) -> Result<(), NoPmu> {
        const VALUE: u64 = 0x1234_5678;
        if self.general == 0 {
            return if self.fixed == 0 { Err(NoPmu::Dead) } else { Ok(()) };
        }
        let select = cpu.rdmsr(self.select(0))?;
        let before = cpu.rdmsr(self.counter(0))?;
        let keeps = self.keeps(cpu, VALUE);
        // Whatever came of it, everything is put back.
        let counter = cpu.wrmsr(self.counter_to_write(0), self.writable(before));
        let select = cpu.wrmsr(self.select(0), select);
        let keeps = keeps?;
        counter.and(select)?;
        if keeps { Ok(()) } else { Err(NoPmu::Dead) }
    }

    /// Writes a value to the first counter, which is stopped for that. Is it found there, by both ways?
    fn keeps<R: Registers>(&self, cpu: &R, value: u64) -> Result<bool, NoPmu> {
        cpu.wrmsr(self.select(0), 0)?;
        cpu.wrmsr(self.counter_to_write(0), value)?;
        let is_there = |found: u64| found & mask(self.width) == value;
        Ok(is_there(cpu.rdmsr(self.counter(0))?) && is_there(cpu.rdpmc(0)?))
    }

    /// What stands for an event on this CPU.
    ///
    /// # Errors
    /// It cannot be counted, and why.
    pub fn row(&self, event: Event) -> Result<&'static Row, Uncounted> {
        let row = self.model.row(event).ok_or(Uncounted::Unknown)?;
        let missing = row.architectural.is_some_and(|(bit, _)| self.missing >> bit & 1 != 0);
        match missing {
            true => Err(Uncounted::Missing),
            false if self.general == 0 && self.fixed_for(row).is_none() => Err(Uncounted::NoCounter),
            false => Ok(row),
        }
    }

    /// The fixed counter that counts a row.
    pub(crate) fn fixed_for(&self, row: &Row) -> Option<u8> {
        let (_, fixed) = row.architectural?;
        fixed.filter(|n| self.fixed >> n & 1 != 0)
    }

    /// Is there one register that starts and stops all counters?
    pub(crate) fn has_global(&self) -> bool {
        !matches!(self.kind, Kind::Architectural { version: 1 } | Kind::K7 | Kind::Core)
    }

    /// The event-select register of a general counter.
    pub(crate) fn select(&self, n: u8) -> u32 {
        let n = u32::from(n);
        match self.kind {
            Kind::Architectural { .. } => intel::PERFEVTSEL0 + n,
            Kind::K7 => amd::K7_CTL0 + n,
            Kind::Core | Kind::CoreGlobal => amd::CORE_CTL0 + 2 * n,
        }
    }

    /// A general counter, to read.
    pub(crate) fn counter(&self, n: u8) -> u32 {
        let n = u32::from(n);
        match self.kind {
            Kind::Architectural { .. } => intel::PMC0 + n,
            Kind::K7 => amd::K7_CTR0 + n,
            Kind::Core | Kind::CoreGlobal => amd::CORE_CTR0 + 2 * n,
        }
    }

    /// A general counter, to write.
    pub(crate) fn counter_to_write(&self, n: u8) -> u32 {
        match self.kind {
            Kind::Architectural { .. } if self.full_width => intel::A_PMC0 + u32::from(n),
            _ => self.counter(n),
        }
    }

    /// What can be written of a value. Without full-width writes (SDM volume 3B, 20.2.8) the CPU takes 32 bits and extends their
    /// sign, so a larger value does not come back whole.
    pub(crate) fn writable(&self, value: u64) -> u64 {
        if self.full_width { value & mask(self.width) } else { value & mask(32) }
    }

    /// The registers of global control, status, and clearing status.
    pub(crate) fn global(&self) -> Option<[u32; 3]> {
        self.has_global().then_some(match self.kind {
            Kind::Architectural { .. } => {
                [intel::GLOBAL_CTRL, intel::GLOBAL_STATUS, intel::GLOBAL_STATUS_RESET]
            }
            _ => [amd::GLOBAL_CTL, amd::GLOBAL_STATUS, amd::GLOBAL_STATUS_CLEAR],
        })
    }
}

impl fmt::Display for Pmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Architectural { version } => write!(f, "architectural counters, version {version}: ")?,
            Kind::K7 => f.write_str("AMD's K7 counters: ")?,
            Kind::Core => f.write_str("AMD's core counters: ")?,
            Kind::CoreGlobal => f.write_str("AMD's core counters with global control: ")?,
        }
        write!(f, "{} of {} bits", self.there_are, self.width)?;
        if self.general < self.there_are {
            write!(f, ", of which {} are used", self.general)?;
        }
        if self.fixed != 0 {
            write!(f, ", {} fixed of {} bits", self.fixed.count_ones(), self.fixed_width)?;
        }
        Ok(())
    }
}

/// SDM volume 2A and APM volume 3, CPUID leaves 0 and 1; hybrid CPUs: leaves 07H and 1AH.
fn model<R: Registers>(cpu: &R) -> Model {
    let first = cpu.cpuid(0, 0);
    let name = [first.ebx, first.edx, first.ecx].map(u32::to_le_bytes);
    let vendor = match name.as_flattened() {
        b"GenuineIntel" => Vendor::Intel,
        b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
        _ => Vendor::Other,
    };
    let signature = cpu.cpuid(1, 0).eax;
    let base = signature >> 8 & 0xf;
    let family = if base == 0xf { base + (signature >> 20 & 0xff) } else { base };
    let extended = if base == 0xf || base == 6 { signature >> 16 & 0xf } else { 0 };
    let hybrid = first.eax >= 0x1a && cpu.cpuid(7, 0).edx & 1 << 15 != 0;
    let small_core = hybrid && cpu.cpuid(0x1a, 0).eax >> 24 != 0x40;
    Model { vendor, family, model: extended << 4 | signature >> 4 & 0xf, small_core }
}
