//! x86-64: traps, paging, per-CPU state, timers, ports.
//!
//! [`init_cpu`] and [`enter_own_tables`] are the two steps of the boot: the first makes traps work and turns the CPU's
//! protections on, the second leaves the loader's page tables and stack for the kernel's own.

pub(crate) mod apic;
pub(crate) mod device_map;
pub(crate) mod entry;
pub(crate) mod fault;
pub(crate) mod features;
mod gdt;
mod idt;
pub(crate) mod image;
mod memfn;
pub(crate) mod memtype;
pub(crate) mod paging;
pub(crate) mod percpu;
pub(crate) mod pmc;
pub(crate) mod port;
pub(crate) mod serial;
pub(crate) mod stacks;
pub(crate) mod switch;
pub(crate) mod tlb;
pub(crate) mod trap;
mod trap_tests;
pub(crate) mod tsc;
pub(crate) mod uaccess;
mod uaccess_tests;
pub(crate) mod user;
mod user_tests;
pub(crate) mod walk;
pub(crate) mod xstate;

use kernel_logic::ranges::OutOfFrames;

/// Traps, protections and memory types on the boot CPU.
///
/// # Errors
/// The CPU lacks something the kernel needs.
pub(crate) fn init_cpu() -> Result<(), features::Missing> {
    percpu::init(0);
    gdt::init();
    idt::init();
    features::init()?;
    memtype::init();
    user::init();
    xstate::init();
    Ok(())
}

/// Builds the kernel's page tables and goes on in `next` on them, and on the kernel's own stack.
///
/// # Errors
/// Only if there is too little RAM for the tables.
pub(crate) fn enter_own_tables(next: extern "C" fn() -> !) -> Result<core::convert::Infallible, OutOfFrames> {
    let root = paging::build()?;
    device_map::init()?;
    paging::use_own_map();
    stacks::use_stack_of(0);
    // SAFETY: the new tables map the image and its stacks as they are linked. What else the boot still needs, it has
    // copied into statics of the image or reaches through the direct map.
    unsafe { entry::switch(root, stacks::thread_top(), next) }
}

/// What needs the kernel's own page tables.
///
/// # Errors
/// The APIC's registers cannot be mapped.
pub(crate) fn init_on_own_tables() -> Result<(), device_map::MapDeviceError> {
    tlb::flush_global();
    apic::init()
}
