//! The interrupt table: a gate for each of the 256 vectors.
//!
//! All are interrupt gates (IF off on entry) and all name an interrupt stack, because the interrupted code may keep
//! data below its stack pointer (the red zone of the precompiled `core`), where the CPU would push its frame. See
//! [`super::trap`] for what the entry code does then.

use spin::Once;
use x86_64::PrivilegeLevel;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, Segment};
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

use super::stacks::Ist;
use super::trap;

/// A gate, as the SDM draws it (volume 3, figure 6-8).
#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct Gate {
    offset_low: u16,
    selector: u16,
    ist: u8,
    attributes: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

/// Present, 64-bit interrupt gate.
const INTERRUPT_GATE: u8 = 0x8e;

impl Gate {
    fn new(handler: u64, ist: Ist, from: PrivilegeLevel) -> Self {
        Self {
            offset_low: handler as u16,
            selector: CS::get_reg().0,
            ist: ist as u8,
            attributes: INTERRUPT_GATE | (from as u8) << 5,
            offset_middle: (handler >> 16) as u16,
            offset_high: (handler >> 32) as u32,
            reserved: 0,
        }
    }
}

static IDT: Once<[Gate; 256]> = Once::new();

/// Loads the table. The GDT and the per-CPU block are in place.
pub(super) fn init() {
    let gates = IDT.call_once(|| {
        core::array::from_fn(|vector| {
            let (ist, from) = match vector {
                1 => (Ist::Debug, PrivilegeLevel::Ring0),
                2 => (Ist::Nmi, PrivilegeLevel::Ring0),
                // A program may stop itself by INT3.
                3 => (Ist::Common, PrivilegeLevel::Ring3),
                8 => (Ist::DoubleFault, PrivilegeLevel::Ring0),
                18 => (Ist::MachineCheck, PrivilegeLevel::Ring0),
                _ => (Ist::Common, PrivilegeLevel::Ring0),
            };
            Gate::new(trap::entry(vector as u8), ist, from)
        })
    });
    let pointer = DescriptorTablePointer {
        limit: (size_of_val(gates) - 1) as u16,
        base: VirtAddr::from_ptr(gates.as_ptr()),
    };
    // SAFETY: the table is static, each gate leads to entry code that fits its vector, and the stacks are in the TSS.
    unsafe { lidt(&pointer) };
}
