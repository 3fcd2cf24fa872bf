//! CPU features: what the CPU has, and what is turned on.
//!
//! NX, PAT and global pages are required (every 64-bit CPU has them); SMEP, SMAP, UMIP, 1 GiB pages and x2APIC are used
//! where present.

use core::fmt;
use core::sync::atomic::Ordering;

use raw_cpuid::CpuId;
use spin::Once;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};

use super::trap::SMAP_ON;

/// What this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Features {
    /// Execute-disable.
    pub(crate) nx: bool,
    /// Global pages.
    pub(crate) pge: bool,
    /// The page attribute table.
    pub(crate) pat: bool,
    /// 1 GiB pages.
    pub(crate) huge_1g: bool,
    /// No execution of user pages in ring 0.
    pub(crate) smep: bool,
    /// No access to user pages in ring 0 but between STAC and CLAC.
    pub(crate) smap: bool,
    /// No SGDT, SIDT and the like in ring 3.
    pub(crate) umip: bool,
    /// APIC registers as MSRs.
    pub(crate) x2apic: bool,
    /// Bits of a physical address.
    pub(crate) phys_bits: u8,
}

static FEATURES: Once<Features> = Once::new();

/// A feature that the kernel cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Missing(&'static str);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this CPU has no {}, which the kernel needs; try -cpu max", self.0)
    }
}

/// Finds out what the CPU has and turns it on.
///
/// # Errors
/// A required feature is missing.
pub(super) fn init() -> Result<(), Missing> {
    let features = FEATURES.call_once(detect);
    for (present, name) in [(features.nx, "NX"), (features.pge, "PGE (global pages)"), (features.pat, "PAT")]
    {
        if !present {
            return Err(Missing(name));
        }
    }
    let cr0 = Cr0::read() | Cr0Flags::WRITE_PROTECT | Cr0Flags::NUMERIC_ERROR;
    // SAFETY: the loader maps nothing read-only that is written; paging and protection stay on.
    unsafe { Cr0::write(cr0) };
    let efer = Efer::read() | EferFlags::NO_EXECUTE_ENABLE;
    // SAFETY: NX is there; long mode stays on.
    unsafe { Efer::write(efer) };
    let mut cr4 = Cr4::read() | Cr4Flags::PAGE_GLOBAL;
    // Not for ring 3: a GS base of its choice, which traps tell the kernel's from by its sign; the performance counters.
    cr4.remove(Cr4Flags::FSGSBASE | Cr4Flags::PERFORMANCE_MONITOR_COUNTER);
    cr4.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, features.smep);
    cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, features.smap);
    cr4.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, features.umip);
    // SAFETY: each bit is set only where the CPU has it, and no user page is in use yet.
    unsafe { Cr4::write(cr4) };
    SMAP_ON.store(u8::from(features.smap), Ordering::Relaxed);
    Ok(())
}

/// What this CPU has.
///
/// # Panics
/// Before the boot has looked.
pub(crate) fn get() -> &'static Features {
    FEATURES.get().expect("CPU features are read at boot")
}

fn detect() -> Features {
    let cpuid = CpuId::new();
    let basic = cpuid.get_feature_info();
    let structured = cpuid.get_extended_feature_info();
    let extended = cpuid.get_extended_processor_and_feature_identifiers();
    let sizes = cpuid.get_processor_capacity_feature_info();
    Features {
        nx: extended.as_ref().is_some_and(|leaf| leaf.has_execute_disable()),
        pge: basic.as_ref().is_some_and(|leaf| leaf.has_pge()),
        pat: basic.as_ref().is_some_and(|leaf| leaf.has_pat()),
        huge_1g: extended.as_ref().is_some_and(|leaf| leaf.has_1gib_pages()),
        smep: structured.as_ref().is_some_and(|leaf| leaf.has_smep()),
        smap: structured.as_ref().is_some_and(|leaf| leaf.has_smap()),
        umip: structured.as_ref().is_some_and(|leaf| leaf.has_umip()),
        x2apic: basic.as_ref().is_some_and(|leaf| leaf.has_x2apic()),
        phys_bits: sizes.map_or(36, |leaf| leaf.physical_address_bits()),
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (present, name) in [
            (self.nx, "nx"),
            (self.pge, "pge"),
            (self.pat, "pat"),
            (self.huge_1g, "pdpe1gb"),
            (self.smep, "smep"),
            (self.smap, "smap"),
            (self.umip, "umip"),
            (self.x2apic, "x2apic"),
        ] {
            if present {
                write!(f, "{name} ")?;
            }
        }
        write!(f, "phys={}", self.phys_bits)
    }
}

crate::ktest! {
    fn what_the_cpu_has_is_on() {
        let (features, cr0, cr4) = (get(), Cr0::read(), Cr4::read());
        crate::check!(cr0.contains(Cr0Flags::WRITE_PROTECT));
        crate::check!(Efer::read().contains(EferFlags::NO_EXECUTE_ENABLE));
        crate::check!(cr4.contains(Cr4Flags::PAGE_GLOBAL));
        crate::check_eq!(cr4.contains(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION), features.smep);
        crate::check_eq!(cr4.contains(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION), features.smap);
        crate::check_eq!(cr4.contains(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION), features.umip);
    }
}
