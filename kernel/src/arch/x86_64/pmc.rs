//! Registers of the performance counters, read and written so that a refusal is a value.
//!
//! A CPU may announce a register and refuse it all the same (a hypervisor in between does that), and RDPMC is no instruction at all
//! in QEMU's translator. So each access is one instruction in the exception table: #GP and #UD on it go on at a landing
//! ([`landing`]), which tells the caller.

use core::arch::global_asm;

use farpage_pmu::{Cpuid, Refused, Register, Registers};

use super::{trap::TrapFrame, tsc, uaccess};

/// What a routine returns, in RAX and RDX.
#[repr(C)]
#[derive(Clone, Copy)]
struct Answer {
    value: u64,
    refused: u64,
}

impl Answer {
    fn or(self, register: Register) -> Result<u64, Refused> {
        if self.refused == 0 { Ok(self.value) } else { Err(Refused(register)) }
    }
}

global_asm!(
    r#"
    .pushsection .text.pmc, "ax", @progbits

    # Puts EDX:EAX into RAX and says that it was read.
    .macro PMC_END
    shl     rdx, 32
    or      rax, rdx
    xor     edx, edx
    ret
    .pushsection .ex_table, "a", @progbits
    .quad   791b, 792b, pmc_landing
    .popsection
    .endm

    # (edi = register) -> value
    .balign 16
    .type pmc_read_msr, @function
pmc_read_msr:
    mov     ecx, edi
791: rdmsr
792: PMC_END
    .size pmc_read_msr, . - pmc_read_msr

    # (edi = counter) -> value
    .balign 16
    .type pmc_read_counter, @function
pmc_read_counter:
    mov     ecx, edi
791: rdpmc
792: PMC_END
    .size pmc_read_counter, . - pmc_read_counter

    # (edi = register, rsi = value)
    .balign 16
    .type pmc_write_msr, @function
pmc_write_msr:
    mov     ecx, edi
    mov     eax, esi
    mov     rdx, rsi
    shr     rdx, 32
791: wrmsr
792: PMC_END
    .size pmc_write_msr, . - pmc_write_msr

    .type pmc_landing, @function
pmc_landing:
    mov     edx, 1
    ret
    .size pmc_landing, . - pmc_landing
    .popsection
    "#
);

unsafe extern "C" {
    /// Reading has no effect but what the register says it has; the registers read here have none.
    safe fn pmc_read_msr(msr: u32) -> Answer;
    safe fn pmc_read_counter(index: u32) -> Answer;
    fn pmc_write_msr(msr: u32, value: u64) -> Answer;
}

/// Where to go on after a #GP or #UD by one of these routines.
pub(super) fn landing(frame: &TrapFrame) -> Option<u64> {
    // The user-access routines stand in the same table; only a page fault is expected of them.
    if frame.is_from_user() || uaccess::covers(frame.rip) { None } else { uaccess::fixup(frame.rip) }
}

/// This CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThisCpu;

/// Is this a register of the performance counters, in which no value can hurt anybody? Counters, event selects and controls of
/// Intel and AMD, no debug store and no trace.
const fn is_counter_register(msr: u32) -> bool {
    matches!(
        msr,
        0xc1..=0xc8
            | 0x186..=0x18d
            | 0x309..=0x318
            | 0x38d..=0x390
            | 0x4c1..=0x4c8
            | 0xc000_0300..=0xc000_0302
            | 0xc001_0000..=0xc001_0007
            | 0xc001_0200..=0xc001_020b
    )
}

impl Registers for ThisCpu {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Cpuid {
        let found = core::arch::x86_64::__cpuid_count(leaf, subleaf);
        Cpuid { eax: found.eax, ebx: found.ebx, ecx: found.ecx, edx: found.edx }
    }

    fn rdmsr(&self, msr: u32) -> Result<u64, Refused> {
        pmc_read_msr(msr).or(Register::Read(msr))
    }

    fn wrmsr(&self, msr: u32, value: u64) -> Result<(), Refused> {
        let register = Register::Write(msr);
        if !is_counter_register(msr) {
            return Err(Refused(register));
        }
        // SAFETY: a counter that counts something else changes no memory, and nothing here lets one interrupt: the local APIC's
        // entry for that stays masked.
        unsafe { pmc_write_msr(msr, value) }.or(register).map(drop)
    }

    fn rdpmc(&self, index: u32) -> Result<u64, Refused> {
        pmc_read_counter(index).or(Register::Counter(index))
    }

    fn ticks(&self) -> u64 {
        tsc::now()
    }
}

/// A register that no CPU has.
const NO_REGISTER: u32 = 0x4b56_4dff;

crate::ktest! {
    fn only_registers_of_counters_can_be_written() {
        const EFER: u32 = 0xc000_0080;
        let before = ThisCpu.rdmsr(EFER);
        crate::check!(before.is_ok());
        for register in [EFER, 0x1d9, 0x600, NO_REGISTER] {
            crate::check_eq!(ThisCpu.wrmsr(register, 0), Err(Refused(Register::Write(register))));
        }
        crate::check_eq!(ThisCpu.rdmsr(EFER), before);
    }
}

crate::ktest! {
    fn a_refused_instruction_is_a_value() {
        // Either there is such a counter, or #UD or #GP came and went; in both cases this goes on, many times.
        let answers: alloc::vec::Vec<_> = (0..100).map(|_| ThisCpu.rdpmc(0x3fff_fff0)).collect();
        let refused = Err(Refused(Register::Counter(0x3fff_fff0)));
        crate::check!(answers.iter().all(|answer| *answer == refused), "{answers:?}");
    }
}

crate::ktest! {
    fn a_refused_value_is_an_error() {
        // AMD's VM_HSAVE_PA takes whole pages only; other CPUs do not have it. #GP either way.
        const VM_HSAVE_PA: u32 = 0xc001_0117;
        // SAFETY: nothing is written, as the answer says.
        let answer = unsafe { pmc_write_msr(VM_HSAVE_PA, 1) };
        crate::check_eq!(answer.or(Register::Write(VM_HSAVE_PA)), Err(Refused(Register::Write(VM_HSAVE_PA))));
    }
}
