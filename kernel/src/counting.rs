//! The CPU's performance counters, for whoever measures: [`scope`] for experiments, [`count_measured`] for what
//! [`measure`](crate::measure::measure) brackets.
//!
//! The logic is `farpage_pmu`'s; here are the one CPU that does the work, and the sentence for machines without counters. Counters
//! are started before the clock is read and stopped after it, so that a measurement costs the same ticks with them and without.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use farpage_pmu::{Counters, Event, Measured, NoPmu, Refusal, Refused, Regions, Scope};
use spin::{Mutex, Once};

use crate::arch::x86_64::pmc::ThisCpu;
use crate::boot;

/// Why nothing is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotCounted {
    /// There are no counters.
    NoPmu(NoPmu),
    /// They do not take this.
    Refused(Refusal),
}

impl fmt::Display for NotCounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPmu(why) => {
                let clock = if boot().command.icount {
                    "the time-stamp counter, which counts instructions here"
                } else {
                    "the time-stamp counter (with --icount it counts instructions)"
                };
                write!(f, "{why}; what there is: {clock}, and the counters of software (stat, events)")
            }
            Self::Refused(refusal) => write!(f, "{refusal}"),
        }
    }
}

impl From<Refusal> for NotCounted {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The counters of this CPU; looked for once.
///
/// # Errors
/// There are none.
pub(crate) fn counters() -> Result<&'static Counters<ThisCpu>, NotCounted> {
    static COUNTERS: Once<Result<Counters<ThisCpu>, NoPmu>> = Once::new();
    COUNTERS.call_once(|| Counters::detect(ThisCpu)).as_ref().map_err(|why| NotCounted::NoPmu(*why))
}

/// Counts these events from now on, until the scope is dropped. One scope at a time.
///
/// # Errors
/// There are no counters, they are in use, or they do not count one of the events.
pub(crate) fn scope(events: &[Event]) -> Result<Scope<'static, ThisCpu>, NotCounted> {
    Ok(counters()?.scope(events)?)
}

/// What measurements switch on and off. Only taken for that, and tried, never waited for.
static REGIONS: Mutex<Option<Regions<'static, ThisCpu>>> = Mutex::new(None);
/// Is there something in it? A measurement that finds nothing costs a load and a branch, outside of what it measures.
static COUNTING: AtomicBool = AtomicBool::new(false);

/// Measurements are being counted, until this is dropped.
#[must_use = "what is not kept ends at once"]
pub(crate) struct Counting(());

/// Counts these events in whatever [`measure`](crate::measure::measure) measures from now on. Events that do not fit together take
/// turns, from one measurement to the next.
///
/// # Errors
/// As [`scope`].
pub(crate) fn count_measured(events: &[Event]) -> Result<Counting, NotCounted> {
    let regions = Regions::new(scope(events)?).map_err(Refusal::Register)?;
    *REGIONS.lock() = Some(regions);
    COUNTING.store(true, Ordering::Relaxed);
    Ok(Counting(()))
}

impl Counting {
    /// What was counted so far.
    ///
    /// # Errors
    /// The CPU has refused a register.
    pub(crate) fn read(&self) -> Result<Measured, Refused> {
        // It is there as long as this is; nobody else opens a scope meanwhile.
        REGIONS.lock().as_mut().expect("the counters of this value").read()
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        COUNTING.store(false, Ordering::Relaxed);
        *REGIONS.lock() = None;
    }
}

/// A measurement begins.
#[inline(always)]
pub(crate) fn begin() {
    if COUNTING.load(Ordering::Relaxed) {
        each(Regions::begin);
    }
}

/// It has ended.
#[inline(always)]
pub(crate) fn end() {
    if COUNTING.load(Ordering::Relaxed) {
        each(Regions::end);
    }
}

#[cold]
fn each(change: fn(&mut Regions<'static, ThisCpu>)) {
    if let Some(mut regions) = REGIONS.try_lock() {
        regions.as_mut().into_iter().for_each(change);
    }
}

crate::ktest! {
    fn a_machine_says_what_counters_it_has() {
        let events = [Event::Instructions];
        let counters = match counters() {
            Err(why) => {
                // QEMU's translator: nothing is announced, or nothing keeps a value.
                crate::check!(matches!(why, NotCounted::NoPmu(NoPmu::NotAnnounced | NoPmu::Dead)), "{why:?}");
                crate::check_eq!(scope(&events).map(drop), Err(why));
                crate::check_eq!(count_measured(&events).map(drop), Err(why));
                crate::check!(!COUNTING.load(Ordering::Relaxed));
                return Ok(());
            }
            Ok(counters) => counters,
        };
        crate::check!(counters.pmu().row(Event::Instructions).is_ok());
        let counting = count_measured(&events);
        let spent = crate::measure::measure(|| (0..10_000_u64).map(core::hint::black_box).sum::<u64>()).0;
        crate::check_eq!(spent, 10_000 * 9_999 / 2);
        let measured = counting.ok().and_then(|counting| counting.read().ok());
        let count = measured.and_then(|measured| measured.counts.get(Event::Instructions));
        crate::check!(count.and_then(|value| value.number()).is_some_and(|count| count >= 10_000), "{measured:?}");
    }
}
