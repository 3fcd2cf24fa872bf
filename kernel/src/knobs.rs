//! The knobs, turned: what a [`Setting`] means to this kernel.
//!
//! Which there are, what they can be and what for is [`ktest::monitor`]'s table; here each becomes a policy of the memory manager, the
//! routine that copies, a plan of failures. They are set on the command line (`set=KNOB=VALUE`), before anything runs, or by `set` in
//! the monitor. What is unsafe is refused where results are to be believed.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use farpage_device::mmio::CopyRoutine;
use farpage_mm::{FlushPolicy, FlushReason, GroupRef, HugePages, Order, OutOfMemory, Site, Space};
use farpage_pmu::Events;
use kernel_logic::cmdline::{CommandLine, LogLevel};
use ktest::monitor::{self as table, FailPlan, FailSite, Granule, GroupLimit, Knob, Setting};
use spin::Mutex;

use crate::vm::rig::fail_copies;
use crate::vm::skip::{Skipping, skip_flushes};
use crate::vm::way::{let_first_fail, set_copy_routine};
use crate::vm::{Machine, mm};
use crate::{boot, console, counting, exit, println};

static STATE: Mutex<State> = Mutex::new(State {
    words: [const { None }; Knob::ALL.len()],
    skipping: None,
    counting: None,
    group: None,
});

struct State {
    /// What was set, as it was typed.
    words: [Option<String>; Knob::ALL.len()],
    skipping: Option<Skipping>,
    /// What is counted of each command of the monitor.
    counting: Option<Events>,
    /// The group of `group-limit`.
    group: Option<GroupRef<Machine>>,
}

/// Turns what the command line says, once the memory manager has its memory. Ends the run at the first that cannot be.
pub(crate) fn init(command: &CommandLine<'_>) {
    for text in command.settings() {
        let setting = Setting::read(text).unwrap_or_else(|error| exit::fail(&error));
        if let Err(error) = setting.check_for(command.run.name()) {
            exit::fail(&error);
        }
        let word = text.split_once('=').map_or("", |(_, word)| word);
        if let Err(error) = turn(setting, word) {
            exit::fail(&error);
        }
    }
}

/// Turns a knob, and says so. `word` is what was typed.
///
/// # Errors
/// Why it cannot be on this machine, as a sentence.
pub(crate) fn turn(setting: Setting<'_>, word: &str) -> Result<(), String> {
    apply(&setting)?;
    let knob = setting.knob();
    STATE.lock().words[knob as usize] = Some(word.to_string());
    match setting.is_unsafe() {
        false => println!("{} is {word}", knob.word()),
        true => println!("{} is {word}: unsafe, what comes from now on may be wrong", knob.word()),
    }
    Ok(())
}

/// What a knob is set to.
pub(crate) fn value(knob: Knob) -> String {
    let set = STATE.lock().words[knob as usize].clone();
    match (set, knob) {
        (Some(word), _) => word,
        (None, Knob::Log) => alloc::format!("{:?}", boot().command.log).to_lowercase(),
        (None, _) => knob.spec().default.to_string(),
    }
}

/// A knob that stands where results are not to be believed.
pub(crate) fn unsafe_one() -> Option<Knob> {
    let is = |knob: &&Knob| Setting::parse(**knob, &value(**knob)).is_ok_and(|setting| setting.is_unsafe());
    Knob::ALL.iter().find(is).copied()
}

/// What is counted of each command of the monitor.
pub(crate) fn events() -> Option<Events> {
    STATE.lock().counting
}

/// Makes a space one of the group of `group-limit`, if there is one.
pub(crate) fn join_group(space: &'static Space<Machine>) {
    if let Some(group) = &STATE.lock().group {
        space.join_group(group);
    }
}

/// Settings that stand while this lives; then the knobs have their defaults again.
#[must_use = "the knobs stand so only while this lives"]
#[derive(Debug)]
pub(crate) struct Turned(Vec<Knob>);

/// Turns knobs for a test or an experiment, quietly: `turned(&["granule=64K"])`.
///
/// # Errors
/// What is wrong with a setting, as a sentence; or out of memory.
pub(crate) fn turned(settings: &[&str]) -> Result<Turned, String> {
    let mut turned = Turned(Vec::new());
    for text in settings {
        let setting = Setting::read(text).map_err(|error| error.to_string())?;
        turned.0.push(setting.knob());
        apply(&setting)?;
    }
    Ok(turned)
}

impl Drop for Turned {
    fn drop(&mut self) {
        for knob in &self.0 {
            if let Ok(setting) = Setting::parse(*knob, knob.spec().default) {
                // A default needs no memory.
                let _ = apply(&setting);
            }
        }
    }
}

fn apply(setting: &Setting<'_>) -> Result<(), String> {
    let policy = &mm().policy;
    match *setting {
        Setting::Log(level) => console::set_log_level(log_level(level)),
        Setting::Huge(huge) => policy.set_huge(match huge {
            table::HugePages::Always => HugePages::Always,
            table::HugePages::Madvise => HugePages::Madvise,
            table::HugePages::Never => HugePages::Never,
        }),
        Setting::MaxOrder(order) => policy.set_max_order(Order::new(order.0)),
        Setting::Granule(granule) => policy.set_granule(match granule {
            Granule::Page => Order::BASE,
            Granule::Medium => Order::new(4),
            Granule::Whole => Order::PMD,
        }),
        Setting::Batch(units) => policy.set_batch_units(units.0),
        Setting::FlushPolicy(flush) => policy.set_flush(match flush {
            table::FlushPolicy::Auto => FlushPolicy::Auto,
            table::FlushPolicy::Ranged => FlushPolicy::Ranged,
            table::FlushPolicy::Full => FlushPolicy::Full,
        }),
        Setting::FlushThreshold(pages) => policy.set_flush_threshold(pages.0),
        Setting::Copy(copy) => set_copy_routine(match copy {
            table::Copy::Movsq => CopyRoutine::RepMovsq,
            table::Copy::Movsb => CopyRoutine::RepMovsb,
            table::Copy::Sse => CopyRoutine::Sse,
            table::Copy::Streaming => CopyRoutine::Streaming,
            table::Copy::Words => CopyRoutine::Words,
        }),
        Setting::Counters(list) => count(list.0)?,
        Setting::GroupLimit(limit) => limit_group(limit).map_err(|error| error.to_string())?,
        Setting::FailAlloc(n) => fail_alloc(Site::ALL, 0, n.0),
        Setting::FailPlan(FailPlan::Off) => fail_alloc(Site::ALL, 0, 0),
        Setting::FailPlan(FailPlan::At { site, skip, count }) => fail_alloc(sites(site), skip, count),
        Setting::FailCopies(n) => {
            fail_copies(0, n.0);
            let_first_fail(n.0 != 0);
        }
        Setting::BreakBeforeMake(which) => policy.set_break_before_make(which == table::BreakBeforeMake::On),
        Setting::SkipFlush(which) => {
            // The old guard goes first: its end drops what has become stale.
            STATE.lock().skipping = None;
            STATE.lock().skipping = reason(which).map(skip_flushes);
        }
    }
    Ok(())
}

/// Chooses what is counted of each command.
fn count(list: Option<&str>) -> Result<(), String> {
    let Some(list) = list else {
        STATE.lock().counting = None;
        return Ok(());
    };
    let events = Events::parse(list).map_err(|bad| bad.to_string())?;
    // Told now, and not behind each command.
    drop(counting::count_measured(events.as_slice()).map_err(|why| why.to_string())?);
    STATE.lock().counting = Some(events);
    Ok(())
}

/// One plan is in force at a time, whichever knob it came from.
fn fail_alloc(sites: u32, skip: u64, times: u64) {
    match times {
        0 => drop(mm().inject.disarm()),
        _ => mm().inject.arm(sites, 0, skip, times),
    }
    let mut state = STATE.lock();
    state.words[Knob::FailAlloc as usize] = None;
    state.words[Knob::FailPlan as usize] = None;
}

const fn sites(site: FailSite) -> u32 {
    match site {
        FailSite::Any => Site::ALL,
        FailSite::RamFolio => Site::RamFolio as u32,
        FailSite::DeviceFolio => Site::DeviceFolio as u32,
        FailSite::Table => Site::Table as u32,
        FailSite::Object => Site::Object as u32,
    }
}

fn limit_group(limit: GroupLimit) -> Result<(), OutOfMemory> {
    let mut state = STATE.lock();
    match (state.group.take(), limit.0) {
        (Some(group), Some(pages)) => {
            group.set_limit(pages);
            state.group = Some(group);
        }
        // Who is in the group stays there, without a limit; its number is free when the last of them has gone.
        (Some(group), None) => group.set_limit(u64::MAX),
        (None, Some(pages)) => state.group = Some(GroupRef::new(pages)?),
        (None, None) => {}
    }
    Ok(())
}

const fn log_level(level: table::Log) -> LogLevel {
    match level {
        table::Log::Off => LogLevel::Off,
        table::Log::Error => LogLevel::Error,
        table::Log::Warn => LogLevel::Warn,
        table::Log::Info => LogLevel::Info,
        table::Log::Debug => LogLevel::Debug,
        table::Log::Trace => LogLevel::Trace,
    }
}

const fn reason(which: table::SkipFlush) -> Option<FlushReason> {
    use table::SkipFlush as S;
    Some(match which {
        S::Off => return None,
        S::Split => FlushReason::Split,
        S::Migrate => FlushReason::Migrate,
        S::ZeroReplaced => FlushReason::ZeroReplaced,
        S::CopyOnWrite => FlushReason::CopyOnWrite,
        S::Protect => FlushReason::Protect,
        S::Unmap => FlushReason::Unmap,
        S::FreeTables => FlushReason::FreeTables,
        S::Remap => FlushReason::Remap,
        S::Exclusive => FlushReason::Exclusive,
        S::Owed => FlushReason::Owed,
    })
}

/// All knobs: what each is set to, what it does, and what it can be.
pub(crate) struct List(pub(crate) Option<Knob>);

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted = |knob: &&Knob| self.0.is_none_or(|one| one == **knob);
        for (n, &knob) in Knob::ALL.iter().filter(wanted).enumerate() {
            let spec = knob.spec();
            let danger = if spec.is_unsafe { "unsafe; " } else { "" };
            let end = if n == 0 { "" } else { "\n" };
            write!(f, "{end}{:<18} {:<9} {}", spec.name, value(knob), spec.help)?;
            write!(f, " ({danger}{})", table::Values(knob))?;
        }
        Ok(())
    }
}
