//! Kernel threads: made, run, put to sleep, woken, preempted.
//!
//! They serve three things: a fault that finds a folio busy sleeps on it, tests of races run on them, and each thread of a
//! program of Linux is one. Each has a stack with
//! a guard page and, if it wants, an address space of its own, which is loaded whenever it runs. A thread is a slot of a
//! fixed table; it lives until its [`JoinHandle`] is joined or dropped, so none outlives what it works for. Those of programs have
//! none ([`spawn_detached`]): their slot is free when they end.
//!
//! ```text
//!   spawn ──► runnable ──► running ──► done ──► (joined: the slot is free)
//!                ▲  ▲        │  │
//!                │  └─ tick ─┘  │ wait
//!                └── wake ── sleeping
//! ```
//!
//! The scheduler runs with interrupts off; its locks ([`wait`]'s buckets, then a run queue) are taken only so. A CPU has a run
//! queue of its own; there is one CPU yet. What is done by registers and stacks is in [`crate::arch::x86_64::switch`].

mod event;
mod preempt;
mod sleep_tests;
mod tests;
pub(crate) mod timer;
mod wait;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};

use farpage_mm::OutOfMemory;
use kernel_logic::fifo::Fifo;
use spin::Once;
use x86_64::instructions::interrupts;

use crate::arch::x86_64::percpu::{self, MAX_CPUS, OpenRecord, Spurious};
use crate::arch::x86_64::stacks::MAX_THREADS;
use crate::arch::x86_64::{switch, user};
use crate::vm::{self, Loaded};

pub(crate) use event::{Event, any_event};
pub(crate) use preempt::{tick, with_preemption_every};
pub(crate) use wait::{Woken, has_notice, notify, take_notice, wait, wait_until, wake};

/// A lock for threads, with interrupts on and preemption on: whoever finds it taken lets others run. For short holds; it keeps no
/// order among those who wait.
pub(crate) type Mutex<T> = spin::mutex::Mutex<T, Yield>;

/// How a thread waits for a [`Mutex`].
#[derive(Debug)]
pub(crate) struct Yield;

impl spin::RelaxStrategy for Yield {
    fn relax() {
        yield_now();
    }
}

/// What a thread does.
type Work = Box<dyn FnOnce() + Send>;

/// A slot of the table.
struct Thread {
    /// Somebody has it, or has not yet joined it.
    used: AtomicBool,
    done: AtomicBool,
    name: spin::Mutex<&'static str>,
    work: spin::Mutex<Option<Work>>,
    /// What it sleeps on; 0 when it does not sleep.
    sleeps_on: AtomicUsize,
    /// When its sleep ends by itself.
    deadline: AtomicU64,
    /// A notice ends its sleep.
    can_be_noticed: AtomicBool,
    /// There is something for it to look at.
    noticed: AtomicBool,
    /// Why its sleep has ended ([`Woken`]).
    woken: AtomicU8,
    /// Nobody joins it.
    detached: AtomicBool,
    /// The address space to be loaded when it runs.
    space: spin::Mutex<Loaded>,
    spurious: spin::Mutex<Spurious>,
    recorded: spin::Mutex<OpenRecord>,
}

impl Thread {
    const fn new() -> Self {
        Self {
            used: AtomicBool::new(false),
            done: AtomicBool::new(false),
            name: spin::Mutex::new("boot"),
            work: spin::Mutex::new(None),
            sleeps_on: AtomicUsize::new(0),
            deadline: AtomicU64::new(timer::NEVER),
            can_be_noticed: AtomicBool::new(false),
            noticed: AtomicBool::new(false),
            woken: AtomicU8::new(0),
            detached: AtomicBool::new(false),
            space: spin::Mutex::new(Loaded::NONE),
            spurious: spin::Mutex::new(Spurious::NONE),
            recorded: spin::Mutex::new(OpenRecord::NONE),
        }
    }
}

/// Thread 0 is the one that boots.
static THREADS: [Thread; MAX_THREADS] = [const { Thread::new() }; MAX_THREADS];

/// The runnable threads of each CPU, but for the one that runs.
static QUEUES: [spin::Mutex<Fifo<MAX_THREADS>>; MAX_CPUS] =
    [const { spin::Mutex::new(Fifo::new()) }; MAX_CPUS];

/// The run queue of this CPU. With interrupts off.
fn queue() -> &'static spin::Mutex<Fifo<MAX_THREADS>> {
    &QUEUES[percpu::cpu_id() as usize]
}

/// Waits for a thread's end. Dropping it waits too.
#[must_use = "dropping a handle waits for the thread"]
pub(crate) struct JoinHandle<T> {
    thread: Joining,
    result: Arc<spin::Mutex<Option<T>>>,
}

/// The duty to wait for the thread of this number.
struct Joining(usize);

impl<T> JoinHandle<T> {
    /// Sleeps until the thread has ended; what it returned.
    pub(crate) fn join(self) -> T {
        let Self { thread, result } = self;
        drop(thread);
        let result = result.lock().take();
        result.expect("a thread that is done has left its result")
    }

    /// Has the thread ended?
    pub(crate) fn is_done(&self) -> bool {
        THREADS[self.thread.0].done.load(Relaxed)
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        let thread = &THREADS[self.0];
        wait(join_key(self.0), &|| !thread.done.load(Relaxed));
        switch::release(self.0);
        thread.used.store(false, Relaxed);
    }
}

/// What the joiner of a thread sleeps on.
fn join_key(number: usize) -> usize {
    core::ptr::from_ref(&THREADS[number]).addr()
}

/// Makes a thread that does `work`, with interrupts on. It begins when the running one sleeps, yields or is preempted.
///
/// # Panics
/// There are as many threads as there can be, or no memory for another.
pub(crate) fn spawn<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let result = Arc::new(spin::Mutex::new(None));
    let there = Arc::clone(&result);
    let work: Work = Box::new(move || *there.lock() = Some(work()));
    match start(name, work, false) {
        Ok(number) => JoinHandle { thread: Joining(number), result },
        Err(error) => panic!("a thread is made only while there is room for one: {error}"),
    }
}

/// As [`spawn`], for a thread that nobody waits for; its number.
///
/// # Errors
/// There are as many threads as there can be, or no memory for another.
pub(crate) fn spawn_detached(
    name: &'static str,
    work: impl FnOnce() + Send + 'static,
) -> Result<usize, OutOfMemory> {
    start(name, Box::new(work), true)
}

fn start(name: &'static str, work: Work, detached: bool) -> Result<usize, OutOfMemory> {
    preempt::init();
    let free = (1..MAX_THREADS).find(|&n| !THREADS[n].used.swap(true, Relaxed));
    let number = free.ok_or(OutOfMemory { order: 0 })?;
    let thread = &THREADS[number];
    switch::prepare(number).inspect_err(|_| thread.used.store(false, Relaxed))?;
    thread.done.store(false, Relaxed);
    thread.noticed.store(false, Relaxed);
    thread.detached.store(detached, Relaxed);
    *thread.space.lock() = Loaded::NONE;
    *thread.name.lock() = name;
    *thread.work.lock() = Some(work);
    *thread.spurious.lock() = Spurious::NONE;
    interrupts::without_interrupts(|| make_runnable(number));
    Ok(number)
}

/// Where a new thread begins, with interrupts off; see [`switch::prepare`].
pub(crate) fn begin() -> ! {
    let number = percpu::current_thread();
    let work = THREADS[number].work.lock().take();
    interrupts::enable();
    if let Some(work) = work {
        work();
    }
    interrupts::disable();
    assert_eq!(Loaded::now(), Loaded::NONE, "{} ends with an address space loaded", current());
    let thread = &THREADS[number];
    thread.done.store(true, Relaxed);
    if thread.detached.load(Relaxed) {
        switch::abandon(number);
        thread.used.store(false, Relaxed);
    } else {
        wake(join_key(number));
    }
    schedule();
    unreachable!("a thread that has ended runs no more")
}

/// Lets others run, if there are any.
pub(crate) fn yield_now() {
    interrupts::without_interrupts(|| {
        queue().lock().push(percpu::current_thread());
        schedule();
    });
}

/// Puts a thread into the run queue. With interrupts off.
fn make_runnable(number: usize) {
    queue().lock().push(number);
    preempt::start();
}

/// Goes on in the next runnable thread. The running one has put itself where it will be found again, or has ended. With
/// interrupts off.
fn schedule() {
    assert_eq!(percpu::preempt_count(), 0, "{} gives up the CPU with preemption off", current());
    let (from, mut next) = (percpu::current_thread(), queue().lock().pop());
    if next.is_none() && (timer::soonest() != timer::NEVER || EXPECTS_INPUT.load(Relaxed)) {
        preempt::idle();
        next = queue().lock().pop();
    }
    let Some(to) = next else { nobody_can_run() };
    preempt::start();
    if to == from {
        if THREADS[from].noticed.load(Relaxed) {
            preempt::look_again();
        }
        return;
    }
    *THREADS[from].space.lock() = Loaded::now();
    *THREADS[from].spurious.lock() = Spurious::take();
    THREADS[to].spurious.lock().put();
    *THREADS[from].recorded.lock() = OpenRecord::take();
    THREADS[to].recorded.lock().put();
    vm::trace::thread_runs(to);
    vm::load(*THREADS[to].space.lock());
    user::exchange(from, to);
    percpu::set_current_thread(to, THREADS[to].noticed.load(Relaxed));
    switch::switch(from, to);
    // A notice that came meanwhile: a fault goes back to its program by itself, and would not look.
    if THREADS[from].noticed.load(Relaxed) {
        preempt::look_again();
    }
}

/// An interrupt other than the timer's may make a thread runnable: who waits for one says so.
static EXPECTS_INPUT: AtomicBool = AtomicBool::new(false);

/// Says whether a thread waits for something that only an interrupt brings.
pub(crate) fn expect_input(expected: bool) {
    EXPECTS_INPUT.store(expected, Relaxed);
}

/// What to do when no thread can ever run again; nothing is a panic.
static ON_DEADLOCK: Once<fn() -> !> = Once::new();

/// Says what is done when no thread can ever run again, where that is no mistake of the kernel's.
pub(crate) fn on_deadlock(action: fn() -> !) {
    ON_DEADLOCK.call_once(|| action);
}

#[cold]
fn nobody_can_run() -> ! {
    match ON_DEADLOCK.get() {
        Some(action) => action(),
        None => wait::nobody_can_run(),
    }
}

/// A thread, to be named in reports.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Named(usize);

/// The number of the running thread.
pub(crate) fn number() -> usize {
    percpu::current_thread()
}

/// The running thread.
pub(crate) fn current() -> Named {
    Named(percpu::current_thread())
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A report must not wait for a lock.
        let name = THREADS[self.0].name.try_lock().map_or("?", |name| *name);
        write!(f, "thread {} ({name})", self.0)
    }
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
