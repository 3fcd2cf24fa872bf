//! The local APIC and its timer.
//!
//! Registers are MSRs where the CPU has x2APIC, memory otherwise. The timer is off unless somebody starts it: during
//! measurements nothing may interrupt. The 8259s, which every PC still has, are moved off the exceptions and masked.

use core::sync::atomic::Ordering;

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::interrupts;
use x86_64::registers::model_specific::Msr;

use super::device_map::{MapDeviceError, map_device};
use super::memtype::MemoryType;
use super::trap::vector;
use super::{features, percpu, port, tsc};

const IA32_APIC_BASE: u32 = 0x1b;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
/// Register n is MSR 0x800 + n, or the word at 16 n.
const X2APIC_MSRS: u32 = 0x800;

/// Registers, by number.
mod register {
    pub(super) const TASK_PRIORITY: u32 = 0x08;
    pub(super) const END_OF_INTERRUPT: u32 = 0x0b;
    pub(super) const SPURIOUS_VECTOR: u32 = 0x0f;
    pub(super) const LVT_TIMER: u32 = 0x32;
    pub(super) const LVT_LINT0: u32 = 0x35;
    pub(super) const INITIAL_COUNT: u32 = 0x38;
    pub(super) const CURRENT_COUNT: u32 = 0x39;
    pub(super) const DIVIDE: u32 = 0x3e;
}

const SOFTWARE_ENABLE: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;
const LVT_PERIODIC: u32 = 1 << 17;
const LVT_FROM_8259: u32 = 0b111 << 8;
const DIVIDE_BY_1: u32 = 0b1011;

/// How the registers are reached.
#[derive(Clone, Copy)]
enum Access {
    Msr,
    Memory(VirtAddr),
}

static ACCESS: Once<Access> = Once::new();

/// How fast the counters run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    /// Ticks of the APIC timer in a second.
    pub(crate) apic_hz: u64,
    /// Ticks of the time-stamp counter in a second.
    pub(crate) tsc_hz: u64,
}

/// Turns the APIC of this CPU on, with its timer off.
///
/// # Errors
/// Its registers cannot be mapped.
pub(super) fn init() -> Result<(), MapDeviceError> {
    mask_8259s();
    let mut base = Msr::new(IA32_APIC_BASE);
    // SAFETY: every 64-bit CPU has this register.
    let value = unsafe { base.read() };
    let access = if features::get().x2apic {
        // SAFETY: turns the APIC to MSR access, which the CPU has.
        unsafe { base.write(value | BASE_ENABLE | BASE_X2APIC) };
        Access::Msr
    } else {
        // SAFETY: turns the APIC on, at the address it has.
        unsafe { base.write(value | BASE_ENABLE) };
        Access::Memory(map_device(value & 0xf_ffff_ffff_f000, 4096, MemoryType::Uncached)?)
    };
    ACCESS.call_once(|| access);
    write(register::TASK_PRIORITY, 0);
    write(register::LVT_TIMER, LVT_MASKED);
    write(register::SPURIOUS_VECTOR, SOFTWARE_ENABLE | u32::from(vector::SPURIOUS));
    Ok(())
}

/// Interrupts the CPU after each `period` ticks of the timer.
pub(crate) fn start_periodic(period: u32) {
    start(LVT_PERIODIC, period);
}

/// Interrupts the CPU once, after `delay` ticks of the timer.
pub(crate) fn start_oneshot(delay: u32) {
    start(0, delay);
}

/// Stops the timer.
pub(crate) fn stop() {
    write(register::LVT_TIMER, LVT_MASKED);
    write(register::INITIAL_COUNT, 0);
}

/// Timer interrupts taken on this CPU.
pub(crate) fn ticks() -> u64 {
    percpu::this().ticks.load(Ordering::Relaxed)
}

/// How fast the counters run, measured once against the 8254, whose rate is known.
pub(crate) fn rates() -> Rates {
    static RATES: Once<Rates> = Once::new();
    *RATES.call_once(|| interrupts::without_interrupts(measure))
}

/// The handler. May come back much later, after other threads have run.
pub(super) fn timer_interrupt() {
    percpu::count_tick();
    end_of_interrupt();
    crate::task::tick();
}

pub(super) fn end_of_interrupt() {
    write(register::END_OF_INTERRUPT, 0);
}

fn start(mode: u32, count: u32) {
    write(register::DIVIDE, DIVIDE_BY_1);
    write(register::LVT_TIMER, mode | u32::from(vector::TIMER));
    write(register::INITIAL_COUNT, count);
}

/// Counts for 5 ms of the 8254's channel 2.
fn measure() -> Rates {
    const PIT_HZ: u64 = 1_193_182;
    const COUNT: u64 = PIT_HZ / 200;
    const MODE: u8 = 0b1011_0000; // channel 2, both bytes, mode 0: the output rises at the end
    const OUTPUT: u8 = 1 << 5;
    let gate = port::PIT_GATE.read() & !0b11;
    port::PIT_GATE.write(gate);
    port::PIT_COMMAND.write(MODE);
    port::PIT_CHANNEL_2.write(COUNT as u8);
    port::PIT_CHANNEL_2.write((COUNT >> 8) as u8);
    write(register::DIVIDE, DIVIDE_BY_1);
    write(register::LVT_TIMER, LVT_MASKED);
    port::PIT_GATE.write(gate | 1);
    write(register::INITIAL_COUNT, u32::MAX);
    let begun = tsc::now();
    while port::PIT_GATE.read() & OUTPUT == 0 {
        // A port read is slow for the host; some instructions between two of them cost nothing.
        for n in 0..500 {
            core::hint::black_box(n);
        }
    }
    let tsc_ticks = tsc::now() - begun;
    let apic_ticks = u64::from(u32::MAX - read(register::CURRENT_COUNT));
    write(register::INITIAL_COUNT, 0);
    port::PIT_GATE.write(gate);
    Rates { apic_hz: apic_ticks * PIT_HZ / COUNT, tsc_hz: tsc_ticks * PIT_HZ / COUNT }
}

fn mask_8259s() {
    const INIT: u8 = 0x11;
    const MODE_8086: u8 = 0x01;
    for (port, value) in [
        (port::PIC_1_COMMAND, INIT),
        (port::PIC_2_COMMAND, INIT),
        (port::PIC_1_DATA, vector::PIC),
        (port::PIC_2_DATA, vector::PIC + 8),
        (port::PIC_1_DATA, 1 << 2), // the second is on line 2
        (port::PIC_2_DATA, 2),
        (port::PIC_1_DATA, MODE_8086),
        (port::PIC_2_DATA, MODE_8086),
        (port::PIC_1_DATA, 0xff),
        (port::PIC_2_DATA, 0xff),
    ] {
        port.write(value);
    }
}

/// Lets one line of the first 8259 interrupt this CPU, through the APIC's first pin, which every PC wires to it.
pub(super) fn unmask_8259(line: u8) {
    port::PIC_1_DATA.write(!(1 << line));
    write(register::LVT_LINT0, LVT_FROM_8259);
}

/// Ends an interrupt of the first 8259.
pub(super) fn end_of_8259_interrupt() {
    const END_OF_INTERRUPT: u8 = 0x20;
    port::PIC_1_COMMAND.write(END_OF_INTERRUPT);
}

/// Stops the 8254's channel 0, which firmware leaves running: nobody here counts its interrupts, and a CPU that sleeps would
/// be woken for them.
pub(super) fn stop_pit() {
    const MODE: u8 = 0b0011_0000; // channel 0, both bytes, mode 0: counts down once
    port::PIT_COMMAND.write(MODE);
    port::PIT_CHANNEL_0.write(1);
    port::PIT_CHANNEL_0.write(0);
}

fn read(register: u32) -> u32 {
    match ACCESS.get() {
        // SAFETY: a register of the APIC, which has no effect on memory.
        Some(Access::Msr) => unsafe { Msr::new(X2APIC_MSRS + register).read() as u32 },
        Some(Access::Memory(base)) => {
            let address = (*base + u64::from(register) * 16).as_ptr::<u32>();
            // SAFETY: inside the page of registers, mapped uncached for ever.
            unsafe { address.read_volatile() }
        }
        None => 0,
    }
}

fn write(register: u32, value: u32) {
    match ACCESS.get() {
        Some(Access::Msr) => {
            // SAFETY: a register of the APIC; the interrupts it may cause all have a gate.
            unsafe { Msr::new(X2APIC_MSRS + register).write(u64::from(value)) };
        }
        Some(Access::Memory(base)) => {
            let address = (*base + u64::from(register) * 16).as_mut_ptr::<u32>();
            // SAFETY: inside the page of registers, mapped uncached for ever; interrupts all have a gate.
            unsafe { address.write_volatile(value) };
        }
        None => {}
    }
}

/// Runs `body` with the timer interrupting every `period` ticks, and says how many interrupts came.
pub(crate) fn with_timer(period: u32, body: impl FnOnce()) -> u64 {
    let before = ticks();
    let were_on = interrupts::are_enabled();
    start_periodic(period);
    interrupts::enable();
    body();
    if !were_on {
        interrupts::disable();
    }
    stop();
    ticks() - before
}

crate::ktest! {
    fn the_periodic_timer_ticks() {
        let rates = rates();
        crate::check!(rates.apic_hz > 0 && rates.tsc_hz > 0, "{rates:?}");
        let came = with_timer((rates.apic_hz / 2000) as u32, || {
            let (begun, goal) = (tsc::now(), ticks() + 5);
            while ticks() < goal && tsc::now() - begun < rates.tsc_hz {}
        });
        crate::check!(came >= 5, "{came} ticks in a second; {rates:?}");
    }
}

crate::ktest! {
    fn a_oneshot_ticks_once() {
        let (before, rates) = (ticks(), rates());
        let wait = |end: &dyn Fn() -> bool, time| {
            let begun = tsc::now();
            while !end() && tsc::now() - begun < time {}
        };
        interrupts::enable();
        start_oneshot((rates.apic_hz / 5000) as u32);
        // The host may be late: up to a second for the first, then some of its periods for a second one.
        wait(&|| ticks() > before, rates.tsc_hz);
        wait(&|| false, rates.tsc_hz / 500);
        interrupts::disable();
        stop();
        crate::check_eq!(ticks() - before, 1);
        crate::check_eq!(super::trap::unexpected_interrupts(), 0);
    }
}
