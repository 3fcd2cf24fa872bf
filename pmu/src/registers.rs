//! The registers, as a trait, and their numbers.

use core::fmt;

/// What CPUID leaves in four registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpuid {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// A register that can be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// A model-specific register, read.
    Read(u32),
    /// A model-specific register, written.
    Write(u32),
    /// A counter, read by RDPMC: the number that goes into ECX.
    Counter(u32),
}

/// The CPU answered an access with #GP or #UD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub Register);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Register::Read(msr) => write!(f, "the CPU refuses to read MSR {msr:#x}"),
            Register::Write(msr) => write!(f, "the CPU refuses to write MSR {msr:#x}"),
            Register::Counter(index) => write!(f, "the CPU refuses RDPMC of counter {index:#x}"),
        }
    }
}

/// One CPU. All calls must reach the same one: counters belong to a CPU.
pub trait Registers {
    /// CPUID.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Cpuid;
    /// Reads a model-specific register.
    ///
    /// # Errors
    /// The CPU refuses it.
    fn rdmsr(&self, msr: u32) -> Result<u64, Refused>;
    /// Writes a model-specific register.
    ///
    /// # Errors
    /// The CPU refuses the register or the value.
    fn wrmsr(&self, msr: u32, value: u64) -> Result<(), Refused>;
    /// Reads a counter. Bits above its width may be anything.
    ///
    /// # Errors
    /// The CPU refuses it.
    fn rdpmc(&self, index: u32) -> Result<u64, Refused>;
    /// The time-stamp counter: the time by which counts are scaled.
    fn ticks(&self) -> u64;
}

/// Intel's registers: SDM volume 4, table 2-2.
pub(crate) mod intel {
    /// IA32_PMC0.
    pub(crate) const PMC0: u32 = 0xc1;
    /// IA32_A_PMC0: the same counter, written in full width.
    pub(crate) const A_PMC0: u32 = 0x4c1;
    /// IA32_PERFEVTSEL0.
    pub(crate) const PERFEVTSEL0: u32 = 0x186;
    /// IA32_FIXED_CTR0.
    pub(crate) const FIXED_CTR0: u32 = 0x309;
    /// IA32_PERF_CAPABILITIES.
    pub(crate) const PERF_CAPABILITIES: u32 = 0x345;
    /// Bit 13 of it, FW_WRITE: the registers at [`A_PMC0`] exist.
    pub(crate) const FULL_WIDTH_WRITE: u64 = 1 << 13;
    /// IA32_FIXED_CTR_CTRL: four bits for each fixed counter.
    pub(crate) const FIXED_CTR_CTRL: u32 = 0x38d;
    /// IA32_PERF_GLOBAL_STATUS.
    pub(crate) const GLOBAL_STATUS: u32 = 0x38e;
    /// IA32_PERF_GLOBAL_CTRL.
    pub(crate) const GLOBAL_CTRL: u32 = 0x38f;
    /// IA32_PERF_GLOBAL_OVF_CTRL, from version 4 on IA32_PERF_GLOBAL_STATUS_RESET: ones clear bits of the status.
    pub(crate) const GLOBAL_STATUS_RESET: u32 = 0x390;
    /// RDPMC takes fixed counters with this bit.
    pub(crate) const RDPMC_FIXED: u32 = 1 << 30;
    /// Where the global registers have the fixed counters.
    pub(crate) const GLOBAL_FIXED: u32 = 32;
}

/// AMD's registers: APM volume 2, 13.2.1 and appendix A.
pub(crate) mod amd {
    /// PERF_CTL0 of the K7, one register after the other.
    pub(crate) const K7_CTL0: u32 = 0xc001_0000;
    /// PERF_CTR0 of the K7.
    pub(crate) const K7_CTR0: u32 = 0xc001_0004;
    /// PERF_CTL0 of the core counters; control and counter alternate.
    pub(crate) const CORE_CTL0: u32 = 0xc001_0200;
    /// PERF_CTR0 of the core counters.
    pub(crate) const CORE_CTR0: u32 = 0xc001_0201;
    /// PerfCntrGlobalStatus.
    pub(crate) const GLOBAL_STATUS: u32 = 0xc000_0300;
    /// PerfCntrGlobalCtl.
    pub(crate) const GLOBAL_CTL: u32 = 0xc000_0301;
    /// PerfCntrGlobalStatusClr.
    pub(crate) const GLOBAL_STATUS_CLEAR: u32 = 0xc000_0302;
    /// All of these counters have it.
    pub(crate) const WIDTH: u8 = 48;
}

/// Count in ring 3, count in ring 0, and count at all: the same bits with both vendors.
pub(crate) const SELECT_USER: u64 = 1 << 16;
pub(crate) const SELECT_KERNEL: u64 = 1 << 17;
pub(crate) const SELECT_ENABLE: u64 = 1 << 22;

/// A fixed counter's four bits in FIXED_CTR_CTRL, for both rings and without an interrupt.
pub(crate) const FIXED_BOTH_RINGS: u64 = 0b0011;
