//! Scopes: counters programmed for some events, read, and put back.
//!
//! A scope saves every register that it is going to change before it changes the first, so that it can be dropped at any point,
//! also when the CPU refuses something half way. It starts at 0 and enables no interrupt.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::count::{Counts, Value};
use crate::detect::{MAX_FIXED, MAX_GENERAL, NoPmu, Pmu, mask};
use crate::event::Event;
use crate::registers::{
    FIXED_BOTH_RINGS, Refused, Registers, SELECT_ENABLE, SELECT_KERNEL, SELECT_USER, intel,
};
use crate::table::Uncounted;

/// The most codes that one scope counts: no event has more than two.
const MAX_SLOTS: usize = 2 * Event::COUNT;

/// The counters of one CPU.
#[derive(Debug)]
pub struct Counters<R> {
    cpu: R,
    pmu: Pmu,
    /// A scope has them.
    taken: AtomicBool,
}

/// Why a scope was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No event was asked for.
    Nothing,
    /// Another scope has the counters.
    Taken,
    /// This event cannot be counted here.
    Event(Event, Uncounted),
    /// The CPU refuses a register.
    Register(Refused),
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self::Register(refused)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("there is no event to count; name one"),
            Self::Taken => f.write_str("the counters are in use; end what counts first"),
            Self::Event(event, why) => write!(f, "{event} cannot be counted: {why}; ask for other events"),
            Self::Register(refused) => write!(f, "{refused}; nothing is counted"),
        }
    }
}

impl<R: Registers> Counters<R> {
    /// Finds out what counters this CPU has.
    ///
    /// # Errors
    /// None, or none that work.
    pub fn detect(cpu: R) -> Result<Self, NoPmu> {
        let pmu = Pmu::detect(&cpu)?;
        Ok(Self { cpu, pmu, taken: AtomicBool::new(false) })
    }

    /// What there is.
    pub const fn pmu(&self) -> &Pmu {
        &self.pmu
    }

    /// Counts these events from now on. An event that is given twice counts once.
    ///
    /// # Errors
    /// An event cannot be counted here, or the counters are in use: then nothing was changed. Or the CPU refuses a register: then
    /// what was changed is put back.
    pub fn scope(&self, events: &[Event]) -> Result<Scope<'_, R>, Refusal> {
        let plan = Plan::new(&self.pmu, events)?;
        if self.taken.swap(true, Ordering::Acquire) {
            return Err(Refusal::Taken);
        }
        let saved = match Saved::new(self, &plan) {
            Ok(saved) => saved,
            Err(refused) => {
                self.taken.store(false, Ordering::Release);
                return Err(refused.into());
            }
        };
        let mut scope = Scope { all: self, plan, saved, group: 0, running: false, since: 0 };
        scope.stop()?;
        scope.program_fixed()?;
        scope.program()?;
        scope.start()?;
        Ok(scope)
    }
}

/// A counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counter {
    General(u8),
    Fixed(u8),
}

/// One code on its counter.
#[derive(Clone, Copy, Debug)]
struct Slot {
    event: Event,
    counter: Counter,
    /// What the event-select register is given.
    select: u64,
    /// Codes of one group count at the same time; those on fixed counters always do.
    group: Option<usize>,
    /// What the counter said last.
    last: u64,
    /// What it has counted.
    sum: u64,
}

/// Which code counts where and when.
#[derive(Clone, Copy, Debug)]
struct Plan {
    slots: [Option<Slot>; MAX_SLOTS],
    groups: usize,
    /// The ticks that each group has counted.
    spent: [u64; MAX_SLOTS],
    /// The ticks of all groups together.
    total: u64,
    /// How many general counters take part.
    general: u8,
    /// Which fixed counters take part, one bit each.
    fixed: u64,
}

impl Plan {
    fn new(pmu: &Pmu, events: &[Event]) -> Result<Self, Refusal> {
        let mut plan = Self {
            slots: [None; MAX_SLOTS],
            groups: 1,
            spent: [0; MAX_SLOTS],
            total: 0,
            general: 0,
            fixed: 0,
        };
        let (mut slots, mut next) = (0, 0);
        for (n, &event) in events.iter().enumerate() {
            let row = pmu.row(event).map_err(|why| Refusal::Event(event, why))?;
            if events[..n].contains(&event) {
                continue;
            }
            let fixed = pmu.fixed_for(row);
            let codes = row.codes.len() as u8;
            // Codes that are added up count together, if a group has room for them at all.
            if fixed.is_none() && next + codes > pmu.general && next > 0 {
                (plan.groups, next) = (plan.groups + 1, 0);
            }
            for code in row.codes {
                if fixed.is_none() && next == pmu.general {
                    (plan.groups, next) = (plan.groups + 1, 0);
                }
                let counter = fixed.map_or(Counter::General(next), Counter::Fixed);
                match counter {
                    Counter::Fixed(n) => plan.fixed |= 1 << n,
                    Counter::General(_) => next += 1,
                }
                plan.general = plan.general.max(next);
                let group = fixed.is_none().then(|| plan.groups - 1);
                let select = code.bits() | SELECT_USER | SELECT_KERNEL;
                plan.slots[slots] = Some(Slot { event, counter, select, group, last: 0, sum: 0 });
                slots += 1;
            }
        }
        if slots == 0 { Err(Refusal::Nothing) } else { Ok(plan) }
    }

    /// The codes that count now.
    fn now(&mut self, group: usize) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut().flatten().filter(move |slot| slot.group.is_none_or(|one| one == group))
    }
}

/// What the registers held.
#[derive(Clone, Copy, Debug)]
struct Saved {
    control: u64,
    status: u64,
    fixed_control: u64,
    select: [u64; MAX_GENERAL],
    counter: [u64; MAX_GENERAL],
    fixed: [u64; MAX_FIXED],
}

impl Saved {
    fn new<R: Registers>(all: &Counters<R>, plan: &Plan) -> Result<Self, Refused> {
        let (cpu, pmu) = (&all.cpu, &all.pmu);
        let none = [0; MAX_GENERAL];
        let mut saved = Self {
            control: 0,
            status: 0,
            fixed_control: 0,
            select: none,
            counter: none,
            fixed: [0; MAX_FIXED],
        };
        if let Some([control, status, _]) = pmu.global() {
            saved.control = cpu.rdmsr(control)?;
            saved.status = cpu.rdmsr(status)?;
        }
        for n in 0..plan.general {
            saved.select[usize::from(n)] = cpu.rdmsr(pmu.select(n))?;
            saved.counter[usize::from(n)] = cpu.rdmsr(pmu.counter(n))?;
        }
        if plan.fixed != 0 {
            saved.fixed_control = cpu.rdmsr(intel::FIXED_CTR_CTRL)?;
        }
        for n in fixed_of(plan) {
            saved.fixed[n as usize] = cpu.rdmsr(intel::FIXED_CTR0 + n)?;
        }
        Ok(saved)
    }
}

/// The numbers of the fixed counters that take part.
fn fixed_of(plan: &Plan) -> impl Iterator<Item = u32> + use<> {
    let fixed = plan.fixed;
    (0..MAX_FIXED as u32).filter(move |n| fixed >> n & 1 != 0)
}

/// Events being counted. Ends when dropped: the registers get what they had.
///
/// While it counts, everything that this CPU does is counted, in both rings. It must stay on its CPU.
#[derive(Debug)]
#[must_use = "what is not kept ends at once"]
pub struct Scope<'a, R: Registers> {
    all: &'a Counters<R>,
    plan: Plan,
    saved: Saved,
    /// The group that has the general counters.
    group: usize,
    running: bool,
    /// The time up to which ticks are accounted.
    since: u64,
}

impl<R: Registers> Scope<'_, R> {
    /// The counts so far. Counters that are counting go on.
    ///
    /// # Errors
    /// The CPU refuses a register.
    pub fn read(&mut self) -> Result<Counts, Refused> {
        if self.running {
            self.collect()?;
        }
        let mut all = [None; Event::COUNT];
        let plan = &self.plan;
        for slot in plan.slots.iter().flatten() {
            let spent = slot.group.map_or(plan.total, |group| plan.spent[group]);
            let value = Value::scale(slot.sum, spent, plan.total);
            let place = all.iter_mut().find(|place| place.is_none_or(|(event, _)| event == slot.event));
            if let Some(place) = place {
                *place = Some((slot.event, place.map_or(value, |(_, before)| value.plus(before))));
            }
        }
        Ok(Counts { all })
    }

    /// Stops counting until [`Scope::resume`]. The time in between is no part of any count.
    ///
    /// # Errors
    /// The CPU refuses a register.
    pub fn pause(&mut self) -> Result<(), Refused> {
        if !self.running {
            return Ok(());
        }
        self.stop()?;
        self.collect()?;
        self.running = false;
        Ok(())
    }

    /// Counts on.
    ///
    /// # Errors
    /// The CPU refuses a register.
    pub fn resume(&mut self) -> Result<(), Refused> {
        if self.running { Ok(()) } else { self.start() }
    }

    /// Gives the counters to the next events, if there are more than fit. Where something is repeated, call it after each time.
    ///
    /// # Errors
    /// The CPU refuses a register.
    pub fn rotate(&mut self) -> Result<(), Refused> {
        if self.plan.groups == 1 {
            return Ok(());
        }
        let running = self.running;
        self.pause()?;
        self.group = (self.group + 1) % self.plan.groups;
        self.program()?;
        if running { self.start() } else { Ok(()) }
    }

    /// Starts again from 0, with the first events.
    pub(crate) fn forget(&mut self) -> Result<(), Refused> {
        self.plan.slots.iter_mut().flatten().for_each(|slot| slot.sum = 0);
        (self.plan.spent, self.plan.total, self.group) = ([0; MAX_SLOTS], 0, 0);
        self.program()
    }

    /// Do all events fit, or do they take turns?
    #[must_use]
    pub const fn takes_turns(&self) -> bool {
        self.plan.groups > 1
    }

    /// Adds up what the counters have counted since the last time, whether they have passed 0 or not.
    fn collect(&mut self) -> Result<(), Refused> {
        let (cpu, pmu) = (&self.all.cpu, &self.all.pmu);
        for slot in self.plan.now(self.group) {
            let (value, width) = match slot.counter {
                Counter::General(n) => (cpu.rdpmc(u32::from(n))?, pmu.width),
                Counter::Fixed(n) => (cpu.rdpmc(intel::RDPMC_FIXED | u32::from(n))?, pmu.fixed_width),
            };
            slot.sum = slot.sum.wrapping_add(value.wrapping_sub(slot.last) & mask(width));
            slot.last = value & mask(width);
        }
        let now = cpu.ticks();
        let ticks = now.wrapping_sub(self.since);
        self.since = now;
        self.plan.spent[self.group] += ticks;
        self.plan.total += ticks;
        Ok(())
    }

    fn program_fixed(&mut self) -> Result<(), Refused> {
        if self.plan.fixed == 0 {
            return Ok(());
        }
        let cpu = &self.all.cpu;
        let control = fixed_of(&self.plan).fold(0, |bits, n| bits | FIXED_BOTH_RINGS << (4 * n));
        cpu.wrmsr(intel::FIXED_CTR_CTRL, control)?;
        fixed_of(&self.plan).try_for_each(|n| cpu.wrmsr(intel::FIXED_CTR0 + n, 0))
    }

    /// Gives the general counters to the group whose turn it is, from 0 on. They must be stopped.
    fn program(&mut self) -> Result<(), Refused> {
        let (cpu, pmu) = (&self.all.cpu, &self.all.pmu);
        let enable = if pmu.has_global() { SELECT_ENABLE } else { 0 };
        let mut selects = [0; MAX_GENERAL];
        for slot in self.plan.now(self.group) {
            if let Counter::General(n) = slot.counter {
                selects[usize::from(n)] = slot.select | enable;
                slot.last = 0;
            }
        }
        for n in 0..self.plan.general {
            cpu.wrmsr(pmu.select(n), selects[usize::from(n)])?;
            cpu.wrmsr(pmu.counter_to_write(n), 0)?;
        }
        Ok(())
    }

    fn start(&mut self) -> Result<(), Refused> {
        self.since = self.all.cpu.ticks();
        self.running = true;
        self.switch(true)
    }

    fn stop(&mut self) -> Result<(), Refused> {
        self.switch(false)
    }

    /// By the one global register, or by each counter's own bit. Without a plan's code on it, a counter only stops.
    fn switch(&mut self, on: bool) -> Result<(), Refused> {
        let (cpu, pmu) = (&self.all.cpu, &self.all.pmu);
        if let Some([control, ..]) = pmu.global() {
            let mut bits = self.plan.fixed << intel::GLOBAL_FIXED;
            for slot in self.plan.now(self.group) {
                if let Counter::General(n) = slot.counter {
                    bits |= 1 << n;
                }
            }
            return cpu.wrmsr(control, if on { bits } else { 0 });
        }
        if !on {
            return (0..self.plan.general).try_for_each(|n| {
                let select = cpu.rdmsr(pmu.select(n))?;
                cpu.wrmsr(pmu.select(n), select & !SELECT_ENABLE)
            });
        }
        for slot in self.plan.now(self.group) {
            if let Counter::General(n) = slot.counter {
                cpu.wrmsr(pmu.select(n), slot.select | SELECT_ENABLE)?;
            }
        }
        Ok(())
    }

    /// Puts back what the registers held; all of them, whichever is refused.
    fn restore(&mut self) -> Result<(), Refused> {
        let (cpu, pmu, saved) = (&self.all.cpu, &self.all.pmu, self.saved);
        let mut result = self.switch(false);
        let mut also = |done: Result<(), Refused>| result = result.and(done);
        for n in fixed_of(&self.plan) {
            also(cpu.wrmsr(intel::FIXED_CTR0 + n, saved.fixed[n as usize] & mask(pmu.fixed_width)));
        }
        if self.plan.fixed != 0 {
            also(cpu.wrmsr(intel::FIXED_CTR_CTRL, saved.fixed_control));
        }
        for n in 0..self.plan.general {
            also(cpu.wrmsr(pmu.counter_to_write(n), pmu.writable(saved.counter[usize::from(n)])));
            also(cpu.wrmsr(pmu.select(n), saved.select[usize::from(n)]));
        }
        if let Some([control, status, clear]) = pmu.global() {
            let ours = ((1 << self.plan.general) - 1) | self.plan.fixed << intel::GLOBAL_FIXED;
            // Counters of ours that overflowed, and had not before.
            match cpu.rdmsr(status).map(|now| now & ours & !saved.status) {
                Ok(0) => {}
                Ok(overflowed) => also(cpu.wrmsr(clear, overflowed)),
                Err(refused) => also(Err(refused)),
            }
            also(cpu.wrmsr(control, saved.control));
        }
        result
    }
}

impl<R: Registers> Drop for Scope<'_, R> {
    fn drop(&mut self) {
        // Nobody can be told here; what the CPU took while it was programmed, it takes back.
        let _ = self.restore();
        self.all.taken.store(false, Ordering::Release);
    }
}
