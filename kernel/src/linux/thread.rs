//! Threads of a program: each is a kernel thread that goes round a loop. It lets the program run, does what the program asks for or
//! suffers the signal for what it did wrong, and looks whether others have something to tell it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::errno::Errno;
use super::exec::Program;
use super::memory::Memory;
use super::process::{End, Process, new_id};
use super::signal::{self, ThreadSignals};
use super::{calls, futex};
use crate::arch::x86_64::user::{self, Context, Why};
use crate::arch::x86_64::xstate::Area;
use crate::task;
use crate::vm::activate;

/// A thread, as others see it.
pub(super) struct Thread {
    pub(super) tid: u32,
    pub(super) process: Arc<Process>,
    /// The kernel thread that it is.
    task: AtomicUsize,
    pub(super) signals: ThreadSignals,
    /// Where a zero is written when it ends (`CLONE_CHILD_CLEARTID`).
    pub(super) clear_tid: AtomicU64,
    /// It must end although its process goes on.
    ends: AtomicBool,
}

/// What a thread begins with.
pub(super) struct Start {
    pub(super) context: Box<Context>,
    pub(super) state: Area,
    pub(super) fs_base: u64,
    /// Where it writes its number first (`CLONE_CHILD_SETTID`).
    pub(super) set_tid: Option<u64>,
    /// The program that it is to run: then the context means nothing.
    pub(super) program: Option<Program>,
}

/// What the loop has in its hands: a call's view of who asks.
pub(super) struct Caller {
    pub(super) thread: Arc<Thread>,
    pub(super) memory: Arc<Memory>,
    pub(super) context: Box<Context>,
    /// The number of the call that is being done.
    pub(super) number: u64,
}

impl Caller {
    pub(super) fn process(&self) -> &Arc<Process> {
        &self.thread.process
    }
}

/// How the loop goes on.
pub(super) enum Next {
    /// With the program.
    Go,
    /// With another program.
    Exec(Box<Program>),
    /// Not at all.
    End,
}

impl Thread {
    /// The first thread of a process, which has its number, or another one.
    pub(super) fn new(process: &Arc<Process>, is_first: bool, signals: ThreadSignals) -> Arc<Self> {
        Arc::new(Self {
            tid: if is_first { process.pid } else { new_id() },
            process: Arc::clone(process),
            task: AtomicUsize::new(0),
            signals,
            clear_tid: AtomicU64::new(0),
            ends: AtomicBool::new(false),
        })
    }

    /// Lets it begin.
    ///
    /// # Errors
    /// EAGAIN when there is no room for another thread, or the process is ending.
    pub(super) fn start(self: &Arc<Self>, start: Start) -> Result<(), Errno> {
        if !self.process.add_thread(self) {
            return Err(Errno::EAGAIN);
        }
        let thread = Arc::clone(self);
        match task::spawn_detached("program", move || main(thread, start)) {
            Ok(_) => Ok(()),
            Err(_) => {
                self.process.remove_thread(self.tid);
                Err(Errno::EAGAIN)
            }
        }
    }

    /// There is something for it to look at. Called while it cannot go ([`Process::with_threads`]).
    pub(super) fn notify(&self) {
        // One that has not begun looks before it begins.
        match self.task.load(Relaxed) {
            0 => {}
            task => task::notify(task),
        }
    }

    /// Ends it, though its process goes on. Called while it cannot go.
    pub(super) fn end_alone(&self) {
        self.ends.store(true, Relaxed);
        self.notify();
    }

    /// Must it leave?
    pub(super) fn is_to_end(&self) -> bool {
        self.ends.load(Relaxed) || self.process.ending().is_some()
    }
}

/// The life of a thread.
fn main(thread: Arc<Thread>, start: Start) {
    thread.task.store(task::number(), Relaxed);
    user::attach(start.state);
    user::set_fs_base(start.fs_base);
    // Nobody takes it away while a thread is there.
    let memory = thread.process.memory();
    let mut caller = Caller { thread, memory, context: start.context, number: 0 };
    let mut program = start.program.map(Box::new);
    let mut set_tid = start.set_tid;
    loop {
        let memory = Arc::clone(&caller.memory);
        let active = activate(memory.owner());
        if let Some(at) = set_tid.take() {
            // As on Linux: if that cannot be written, nobody hears of it.
            let _ = calls::write_u32(at, caller.thread.tid);
        }
        let next = match program.take().map(|program| program.begin(&mut caller)) {
            Some(false) => Next::End,
            _ => run(&mut caller),
        };
        if matches!(next, Next::End) {
            clear_tid(&caller);
        }
        drop(active);
        drop(memory);
        match next {
            Next::Exec(next) => {
                caller.memory = Arc::clone(&next.memory);
                caller.thread.process.set_memory(Arc::clone(&next.memory));
                caller.thread.process.returns_memory();
                program = Some(next);
            }
            _ => break,
        }
    }
    user::detach();
    let Caller { thread, memory, .. } = caller;
    drop(memory);
    leave(&thread);
}

/// The loop.
fn run(caller: &mut Caller) -> Next {
    // What came before it began.
    if !look(caller) {
        return Next::End;
    }
    loop {
        match user::run(&mut caller.context) {
            Why::Syscall => match calls::call(caller) {
                Next::Go => {}
                next => return next,
            },
            Why::PageFault { addr, error } => signal::by_page_fault(caller, addr, error),
            Why::Exception { vector, error } => signal::by_exception(caller, vector, error),
            Why::Interrupted => {}
        }
        if task::has_notice() && !look(caller) {
            return Next::End;
        }
    }
}

/// Looks what others have to tell; false when that is to end.
fn look(caller: &mut Caller) -> bool {
    task::take_notice();
    if !caller.thread.is_to_end() {
        signal::deliver(caller);
    }
    !caller.thread.is_to_end()
}

/// Tells those who wait for this thread's end, in its memory.
fn clear_tid(caller: &Caller) {
    let at = caller.thread.clear_tid.load(Relaxed);
    if at != 0 && calls::write_u32(at, 0).is_ok() {
        futex::wake_one(&caller.memory, at);
    }
}

/// The end of a thread, and of its process if it was the last.
fn leave(thread: &Thread) {
    let process = Arc::clone(&thread.process);
    if process.remove_thread(thread.tid) {
        let how = process.ending().unwrap_or(End::Exited(process.leader_status()));
        process.finish(how);
    } else {
        signal::retarget(&process);
    }
}
