//! Kernel threads: made, run, put to sleep, woken, preempted.
//!
//! They serve two things: a fault that finds a folio busy sleeps on it, and tests of races run on them. Each has a stack with
//! a guard page and, if it wants, an address space of its own, which is loaded whenever it runs. A thread is a slot of a
//! fixed table; it lives until its [`JoinHandle`] is joined or dropped, so none outlives what it works for.
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

mod preempt;
mod tests;
mod wait;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use kernel_logic::fifo::Fifo;
use x86_64::instructions::interrupts;

use crate::arch::x86_64::percpu::{self, MAX_CPUS, OpenRecord, Spurious};
use crate::arch::x86_64::stacks::MAX_THREADS;
use crate::arch::x86_64::switch;
use crate::vm::{self, Loaded};

pub(crate) use preempt::{tick, with_preemption_every};
pub(crate) use wait::{wait, wake};

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
/// There are as many threads as there can be.
pub(crate) fn spawn<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    preempt::init();
    let result = Arc::new(spin::Mutex::new(None));
    let there = Arc::clone(&result);
    let work: Work = Box::new(move || *there.lock() = Some(work()));
    let free = (1..MAX_THREADS).find(|&n| !THREADS[n].used.swap(true, Relaxed));
    let number = free.expect("a thread is made only while there are fewer than there can be");
    let thread = &THREADS[number];
    thread.done.store(false, Relaxed);
    *thread.space.lock() = Loaded::NONE;
    *thread.name.lock() = name;
    *thread.work.lock() = Some(work);
    *thread.spurious.lock() = Spurious::NONE;
    switch::prepare(number);
    interrupts::without_interrupts(|| make_runnable(number));
    JoinHandle { thread: Joining(number), result }
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
    THREADS[number].done.store(true, Relaxed);
    wake(join_key(number));
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
    let (from, next) = (percpu::current_thread(), queue().lock().pop());
    let Some(to) = next else { wait::nobody_can_run() };
    preempt::start();
    if to == from {
        return;
    }
    *THREADS[from].space.lock() = Loaded::now();
    *THREADS[from].spurious.lock() = Spurious::take();
    THREADS[to].spurious.lock().put();
    *THREADS[from].recorded.lock() = OpenRecord::take();
    THREADS[to].recorded.lock().put();
    vm::trace::thread_runs(to);
    vm::load(*THREADS[to].space.lock());
    percpu::set_current_thread(to);
    switch::switch(from, to);
}

/// A thread, to be named in reports.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Named(usize);

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
