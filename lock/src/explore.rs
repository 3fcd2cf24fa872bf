//! Every order in which several threads can access their words, up to a number of preemptions.
//!
//! The threads are real ones, of which one runs at a time. Before each access of a [`Traced`] word the running one stops, and
//! the next is chosen; the choices of a run are remembered, and the next run differs in the last one that can. A thread that
//! cannot go on (it sleeps, or waits for the queue of sleepers) is left for free; to leave one that could go on is a
//! preemption. Few preemptions find nearly all mistakes. The orders are those of sequential consistency: weaker ones are
//! argued for where the accesses stand.

use core::sync::atomic::{AtomicU32, Ordering};
use std::boxed::Box;
use std::cell::RefCell;
use std::string::String;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::vec::Vec;

use crate::{Sleeper, Word};

/// What a thread does in a run.
pub(crate) type Part = Box<dyn FnOnce() + Send>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    Ready,
    /// Waits for the queue of sleepers, which another thread has.
    Queues,
    /// Sleeps on this key.
    Sleeps(usize),
    Done,
}

/// One choice: which of how many.
#[derive(Clone, Copy)]
struct Choice {
    taken: usize,
    of: usize,
}

struct Run {
    status: Vec<Status>,
    running: usize,
    choices: Vec<Choice>,
    at: usize,
    preemptions: usize,
    queue_taken: bool,
    failure: Option<String>,
}

struct Shared {
    run: Mutex<Run>,
    turn: Condvar,
}

std::thread_local! {
    static ME: RefCell<Option<(Arc<Shared>, usize)>> = const { RefCell::new(None) };
}

/// Panics with this end a thread whose run has failed already.
const STOP: &str = "the run has failed";

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, why: String) {
        self.lock().failure.get_or_insert(why);
        self.turn.notify_all();
    }

    /// Chooses who runs next, and returns when it is `me` again.
    fn step(&self, mut run: MutexGuard<'_, Run>, me: usize) {
        let can: Vec<_> = (0..run.status.len()).filter(|&n| run.status[n] == Status::Ready).collect();
        let me_too = can.contains(&me);
        let options: Vec<_> = match (me_too, run.preemptions) {
            (true, 0) => [me].into(),
            (true, _) => core::iter::once(me).chain(can.into_iter().filter(|&n| n != me)).collect(),
            (false, _) => can,
        };
        if options.is_empty() {
            if run.status.iter().any(|status| *status != Status::Done) {
                let why = std::format!("nobody can go on: {:?}", run.status);
                drop(run);
                self.fail(why);
                return;
            }
        } else {
            let at = run.at;
            run.at += 1;
            if at == run.choices.len() {
                run.choices.push(Choice { taken: 0, of: options.len() });
            }
            assert_eq!(run.choices[at].of, options.len(), "a run that is repeated must go the same way");
            run.running = options[run.choices[at].taken];
            if me_too && run.running != me {
                run.preemptions -= 1;
            }
            self.turn.notify_all();
        }
        self.until_turn(run, me);
    }

    fn until_turn(&self, mut run: MutexGuard<'_, Run>, me: usize) {
        while run.failure.is_none() && run.running != me && run.status[me] != Status::Done {
            run = self.turn.wait(run).unwrap_or_else(PoisonError::into_inner);
        }
        let failed = run.failure.is_some();
        drop(run);
        // A thread that ends is let go.
        assert!(!failed || thread::panicking(), "{STOP}");
    }
}

fn with<T>(f: impl FnOnce(&Shared, usize) -> T) -> Option<T> {
    let me = ME.with(|me| me.borrow().clone());
    me.map(|(shared, me)| f(&shared, me))
}

/// A place where another thread may come in between.
pub(crate) fn point() {
    let _ = with(|shared, me| shared.step(shared.lock(), me));
}

/// Runs what `make` makes in every order with at most `preemptions`; how many there were.
///
/// # Errors
/// What went wrong in the first order in which something did.
pub(crate) fn explore(preemptions: usize, make: impl Fn() -> Vec<Part>) -> Result<usize, String> {
    let mut choices = Vec::new();
    let mut runs = 0;
    loop {
        runs += 1;
        choices = run_once(preemptions, choices, make())?;
        loop {
            match choices.pop() {
                None => return Ok(runs),
                Some(Choice { taken, of }) if taken + 1 < of => {
                    choices.push(Choice { taken: taken + 1, of });
                    break;
                }
                Some(_) => {}
            }
        }
    }
}

fn run_once(preemptions: usize, choices: Vec<Choice>, parts: Vec<Part>) -> Result<Vec<Choice>, String> {
    let run = Run {
        status: std::vec![Status::Ready; parts.len()],
        running: 0,
        choices,
        at: 0,
        preemptions,
        queue_taken: false,
        failure: None,
    };
    let shared = Arc::new(Shared { run: Mutex::new(run), turn: Condvar::new() });
    let threads: Vec<_> = parts
        .into_iter()
        .enumerate()
        .map(|(me, part)| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                ME.with(|slot| *slot.borrow_mut() = Some((Arc::clone(&shared), me)));
                let begun = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
                    shared.until_turn(shared.lock(), me);
                    part();
                    let mut run = shared.lock();
                    run.status[me] = Status::Done;
                    shared.step(run, me);
                }));
                ME.with(|slot| *slot.borrow_mut() = None);
                if let Err(panic) = begun {
                    let text = panic.downcast_ref::<String>().map_or("", String::as_str);
                    let text =
                        if text.is_empty() { panic.downcast_ref::<&str>().map_or("?", |t| *t) } else { text };
                    shared.fail(text.into());
                }
            })
        })
        .collect();
    for thread in threads {
        let _ = thread.join();
    }
    let mut run = shared.lock();
    match run.failure.take() {
        Some(why) => Err(why),
        None => Ok(core::mem::take(&mut run.choices)),
    }
}

/// A word before each access of which another thread may come in between.
#[derive(Debug, Default)]
pub(crate) struct Traced(AtomicU32);

impl Word for Traced {
    fn new(value: u32) -> Self {
        Self(AtomicU32::new(value))
    }
    fn load(&self, order: Ordering) -> u32 {
        point();
        self.0.load(order)
    }
    fn store(&self, value: u32, order: Ordering) {
        point();
        self.0.store(value, order);
    }
    fn fetch_add(&self, n: u32, order: Ordering) -> u32 {
        point();
        self.0.fetch_add(n, order)
    }
    fn fetch_sub(&self, n: u32, order: Ordering) -> u32 {
        point();
        self.0.fetch_sub(n, order)
    }
    fn fetch_or(&self, bits: u32, order: Ordering) -> u32 {
        point();
        self.0.fetch_or(bits, order)
    }
    fn fetch_and(&self, bits: u32, order: Ordering) -> u32 {
        point();
        self.0.fetch_and(bits, order)
    }
    fn swap(&self, value: u32, order: Ordering) -> u32 {
        point();
        self.0.swap(value, order)
    }
    fn replace(&self, old: u32, new: u32, order: Ordering) -> bool {
        point();
        self.0.compare_exchange(old, new, order, Ordering::Relaxed).is_ok()
    }
}

/// The sleepers of a run: a queue behind a lock, as the kernel has it.
pub(crate) struct Sleepers;

fn take_queue(shared: &Shared, me: usize) {
    loop {
        shared.step(shared.lock(), me);
        let mut run = shared.lock();
        if !run.queue_taken {
            run.queue_taken = true;
            return;
        }
        run.status[me] = Status::Queues;
    }
}

fn leave_queue(run: &mut Run) {
    run.queue_taken = false;
    for status in run.status.iter_mut().filter(|status| **status == Status::Queues) {
        *status = Status::Ready;
    }
}

impl Sleeper for Sleepers {
    fn wait(key: usize, still: &dyn Fn() -> bool) {
        let _ = with(|shared, me| {
            take_queue(shared, me);
            let sleeps = still();
            let mut run = shared.lock();
            leave_queue(&mut run);
            if sleeps {
                run.status[me] = Status::Sleeps(key);
                shared.step(run, me);
            }
        });
    }

    fn wake(key: usize) {
        let _ = with(|shared, me| {
            take_queue(shared, me);
            let mut run = shared.lock();
            leave_queue(&mut run);
            for status in run.status.iter_mut().filter(|status| **status == Status::Sleeps(key)) {
                *status = Status::Ready;
            }
        });
    }
}
