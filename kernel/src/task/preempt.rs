//! Preemption: the APIC timer takes the CPU from a thread while others wait for it.
//!
//! The timer is set for one shot when a thread begins its turn and others are runnable; with one runnable thread it is off,
//! so what runs alone is neither interrupted nor slowed down. A tick that finds preemption off does not wait for it to come
//! on again (that would cost an instruction in every `preempt_enable`): it tries again a moment later.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use spin::Once;
use x86_64::instructions::interrupts;

use super::{queue, schedule};
use crate::arch::x86_64::{apic, percpu};

/// Ticks of the APIC timer: a usual turn, and how soon a tick with preemption off tries again.
#[derive(Clone, Copy, Debug)]
struct Slices {
    turn: u32,
    retry: u32,
}

static SLICES: Once<Slices> = Once::new();

/// Is the timer set?
static SET: AtomicBool = AtomicBool::new(false);
/// Turns of about this many ticks instead of the usual; 0 for the usual.
static PERIOD: AtomicU32 = AtomicU32::new(0);
/// The state of the generator that makes each of them another length.
static RANDOM: AtomicU64 = AtomicU64::new(0);
/// Threads that were preempted.
static PREEMPTED: AtomicU64 = AtomicU64::new(0);

/// Measures the timer, once.
pub(super) fn init() {
    SLICES.call_once(|| {
        let hz = apic::rates().apic_hz;
        Slices { turn: (hz / 1000) as u32, retry: (hz / 4_000_000).max(64) as u32 }
    });
}

/// The running thread begins a turn, or somebody became runnable: sets the timer if somebody waits for the CPU. With
/// interrupts off.
pub(super) fn start() {
    let wanted = !queue().lock().is_empty();
    if wanted != SET.swap(wanted, Relaxed) {
        if wanted { apic::start_oneshot(turn()) } else { apic::stop() }
    }
}

/// How long the next turn is.
fn turn() -> u32 {
    let usual = SLICES.get().map_or(1_000_000, |slices| slices.turn);
    match PERIOD.load(Relaxed) {
        0 => usual,
        // Somewhere between nothing and twice the period.
        period => (random() % (2 * u64::from(period)) + 1) as u32,
    }
}

/// A step of SplitMix64.
fn random() -> u64 {
    let state = RANDOM.load(Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
    RANDOM.store(state, Relaxed);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The timer's interrupt: the next thread's turn. Returns when it is the interrupted one's again.
pub(crate) fn tick() {
    // A timer that was set for something else is none of ours.
    if !SET.swap(false, Relaxed) {
        return;
    }
    if percpu::preempt_count() != 0 {
        SET.store(true, Relaxed);
        apic::start_oneshot(SLICES.get().map_or(64, |slices| slices.retry));
        return;
    }
    PREEMPTED.fetch_add(1, Relaxed);
    queue().lock().push(percpu::current_thread());
    schedule();
}

/// Runs `body` with interrupts on and turns of about `ticks` ticks of the timer, each of another length that follows from
/// `seed`; how many threads were preempted meanwhile. Under instruction counting a tick is an instruction, and the same seed
/// gives the same run. For tests.
pub(crate) fn with_preemption_every<T>(ticks: u32, seed: u64, body: impl FnOnce() -> T) -> (T, u64) {
    init();
    let before = PREEMPTED.load(Relaxed);
    RANDOM.store(seed, Relaxed);
    PERIOD.store(ticks, Relaxed);
    let were_on = interrupts::are_enabled();
    interrupts::enable();
    let result = body();
    if !were_on {
        interrupts::disable();
    }
    PERIOD.store(0, Relaxed);
    (result, PREEMPTED.load(Relaxed) - before)
}
