//! Preemption: the APIC timer takes the CPU from a thread while others wait for it.
//!
//! The timer is set for one shot when a thread begins its turn and others are runnable; with one runnable thread it is off,
//! so what runs alone is neither interrupted nor slowed down, unless somebody sleeps until a deadline ([`super::timer`]): then it
//! is set for that. While turns are taken, deadlines are looked at when one ends. A tick that finds preemption off does not wait for it to come
//! on again (that would cost an instruction in every `preempt_enable`): it tries again a moment later.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use spin::Once;
use x86_64::instructions::interrupts;

use super::{queue, schedule, timer};
use crate::arch::x86_64::{apic, percpu};

/// Ticks of the APIC timer: a usual turn, and how soon a tick with preemption off tries again.
#[derive(Clone, Copy, Debug)]
struct Slices {
    turn: u32,
    retry: u32,
}

static SLICES: Once<Slices> = Once::new();

/// What the timer is set for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum SetFor {
    Nothing = 0,
    /// The end of a turn, or a look at a notice.
    Turn = 1,
    /// A deadline.
    Deadline = 2,
}

/// [`SetFor`].
static SET: AtomicU8 = AtomicU8::new(SetFor::Nothing as u8);
/// The deadline that it was last set for.
static DEADLINE: AtomicU64 = AtomicU64::new(timer::NEVER);
/// The CPU waits for an interrupt: no thread's turn is on.
static IDLE: AtomicBool = AtomicBool::new(false);
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

/// The running thread begins a turn, or somebody became runnable: sets the timer if somebody waits for the CPU, or for a
/// deadline. With interrupts off.
pub(super) fn start() {
    let deadline = timer::soonest();
    let wanted = match queue().lock().is_empty() {
        false => SetFor::Turn,
        true if deadline != timer::NEVER => SetFor::Deadline,
        true => SetFor::Nothing,
    };
    let again = wanted == SetFor::Deadline && DEADLINE.load(Relaxed) != deadline;
    if SET.swap(wanted as u8, Relaxed) == wanted as u8 && !again {
        return;
    }
    match wanted {
        SetFor::Nothing => apic::stop(),
        SetFor::Turn => apic::start_oneshot(turn()),
        SetFor::Deadline => {
            DEADLINE.store(deadline, Relaxed);
            apic::start_oneshot(timer::ticks_to_soonest());
        }
    }
}

/// Has a tick come soon, since this one came at a wrong moment.
fn try_again() {
    SET.store(SetFor::Turn as u8, Relaxed);
    apic::start_oneshot(SLICES.get().map_or(64, |slices| slices.retry));
}

/// The running thread has a notice: has a tick come that finds it in its program, whoever is runnable. With interrupts off.
pub(super) fn look_again() {
    SET.store(SetFor::Turn as u8, Relaxed);
    apic::start_oneshot(SLICES.get().map_or(100_000, |slices| slices.turn / 10 + 1));
}

/// Waits for an interrupt that makes a thread runnable. With interrupts off, in a thread that sleeps itself.
pub(super) fn idle() {
    start();
    IDLE.store(true, Relaxed);
    while queue().lock().is_empty() {
        interrupts::enable_and_hlt();
        interrupts::disable();
    }
    IDLE.store(false, Relaxed);
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
    if SET.swap(SetFor::Nothing as u8, Relaxed) == SetFor::Nothing as u8 {
        return;
    }
    timer::expire();
    if IDLE.load(Relaxed) || queue().lock().is_empty() {
        if !IDLE.load(Relaxed) && super::has_notice() {
            look_again();
        } else {
            start();
        }
        return;
    }
    if percpu::preempt_count() != 0 {
        try_again();
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
