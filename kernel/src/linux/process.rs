//! Processes: what one has, who its parent is, how it ends.
//!
//! ```text
//!   PROCESSES: pid ──► Process ◄── children of its parent
//!                        │ threads: those that still run
//!                        │ ending: somebody has said how it ends      (every thread leaves when it sees that)
//!                        ▼ ended: its last thread has left            (its parent reads that, and lets it go)
//! ```
//!
//! A process whose parent has gone is [`init`]'s, which is no program: it is the kernel thread that began the first one.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};

use spin::Once;

use super::alarm;
use super::file::Descriptors;
use super::limits::Limits;
use super::memory::Memory;
use super::place::Whereabouts;
use super::signal::{self, Info, ProcessSignals};
use super::thread::Thread;
use crate::task::timer::NEVER;
use crate::task::{self, Event, Mutex, Woken};

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By `exit` or `exit_group`.
    Exited(u8),
    /// By a signal.
    Killed(u8),
}

impl End {
    /// As `wait4` tells it.
    pub(super) fn status(self) -> u32 {
        match self {
            Self::Exited(status) => u32::from(status) << 8,
            Self::Killed(signal) => u32::from(signal),
        }
    }
}

/// A process.
pub(super) struct Process {
    pub(super) pid: u32,
    parent: Mutex<Weak<Process>>,
    /// The parent's number, for `getppid`.
    pub(super) ppid: AtomicU32,
    pub(super) group: AtomicU32,
    pub(super) session: AtomicU32,
    /// The signal that tells the parent of the end; 0 for none.
    exit_signal: u8,
    /// None once it has ended.
    memory: Mutex<Option<Arc<Memory>>>,
    files: Mutex<Arc<Descriptors>>,
    /// Where it is among the files.
    pub(super) place: Whereabouts,
    /// The path of the program that it runs.
    pub(super) exe: Mutex<String>,
    /// Its arguments, as `/proc/self/cmdline` shows them.
    pub(super) cmdline: Mutex<Arc<[u8]>>,
    pub(super) limits: Mutex<Limits>,
    pub(super) signals: ProcessSignals,
    threads: Mutex<Vec<Arc<Thread>>>,
    /// A thread has left.
    thread_left: Event,
    /// A child has ended, or there is one more to wait for.
    pub(super) child_ended: Event,
    /// It has ended itself.
    pub(super) end_event: Event,
    children: Mutex<Vec<Arc<Process>>>,
    /// The thread whose `exit` counts: its first, or the one that has run another program.
    leader: AtomicU32,
    /// What that has given to `exit`, if that did not end the process.
    leader_status: AtomicU8,
    ending: Mutex<Option<End>>,
    ended: Mutex<Option<End>>,
    /// It runs in its parent's memory, which waits for it to run a program or to end (`CLONE_VFORK`).
    borrows: AtomicBool,
    memory_returned: Event,
}

/// Every process that has not been waited for.
static PROCESSES: Mutex<BTreeMap<u32, Arc<Process>>> = Mutex::new(BTreeMap::new());
/// The number of the first program.
const FIRST: u32 = 2;
/// The next number for a process or thread.
static NEXT_ID: AtomicU32 = AtomicU32::new(FIRST);

/// A number that no process and no thread has.
pub(super) fn new_id() -> u32 {
    NEXT_ID.fetch_add(1, Relaxed)
}

/// The parent of the first program, and of those whose parent has gone.
pub(super) fn init() -> &'static Arc<Process> {
    static INIT: Once<Arc<Process>> = Once::new();
    INIT.call_once(|| Arc::new(Process::blank(1, Weak::new(), 0, 0)))
}

/// The process of this number.
pub(super) fn find(pid: u32) -> Option<Arc<Process>> {
    PROCESSES.lock().get(&pid).cloned()
}

/// All processes.
pub(super) fn all() -> Vec<Arc<Process>> {
    PROCESSES.lock().values().cloned().collect()
}

/// Are there as many as there can be, those among them that nobody has waited for?
pub(super) fn are_too_many() -> bool {
    PROCESSES.lock().len() >= crate::arch::x86_64::stacks::MAX_THREADS
}

/// What a clone makes anew, and what it shares.
pub(super) struct Heritage {
    pub(super) memory: Arc<Memory>,
    pub(super) files: Arc<Descriptors>,
    pub(super) exit_signal: u8,
    pub(super) borrows: bool,
}

impl Process {
    fn blank(pid: u32, parent: Weak<Process>, ppid: u32, exit_signal: u8) -> Self {
        Self {
            pid,
            parent: Mutex::new(parent),
            ppid: AtomicU32::new(ppid),
            group: AtomicU32::new(pid),
            session: AtomicU32::new(pid),
            exit_signal,
            memory: Mutex::new(None),
            files: Mutex::new(Arc::default()),
            place: Whereabouts::default(),
            exe: Mutex::new(String::new()),
            cmdline: Mutex::default(),
            limits: Mutex::new(Limits::default()),
            signals: ProcessSignals::default(),
            threads: Mutex::new(Vec::new()),
            thread_left: Event::new(),
            child_ended: Event::new(),
            end_event: Event::new(),
            memory_returned: Event::new(),
            children: Mutex::new(Vec::new()),
            leader: AtomicU32::new(pid),
            leader_status: AtomicU8::new(0),
            ending: Mutex::new(None),
            ended: Mutex::new(None),
            borrows: AtomicBool::new(false),
        }
    }

    /// The first, which runs the program that was asked for.
    pub(super) fn first(memory: Memory, files: Descriptors) -> Arc<Self> {
        let process = Self::blank(new_id(), Arc::downgrade(init()), 1, signal::CHLD);
        *process.memory.lock() = Some(Arc::new(memory));
        *process.files.lock() = Arc::new(files);
        process.enter(init())
    }

    /// A child of `self`.
    pub(super) fn child(self: &Arc<Self>, heritage: Heritage) -> Arc<Self> {
        let child = Self {
            group: AtomicU32::new(self.group.load(Relaxed)),
            session: AtomicU32::new(self.session.load(Relaxed)),
            memory: Mutex::new(Some(heritage.memory)),
            files: Mutex::new(heritage.files),
            place: self.place.copy(),
            exe: Mutex::new(self.exe.lock().clone()),
            cmdline: Mutex::new(self.cmdline.lock().clone()),
            limits: Mutex::new(self.limits.lock().clone()),
            signals: self.signals.copy(),
            borrows: AtomicBool::new(heritage.borrows),
            ..Self::blank(new_id(), Arc::downgrade(self), self.pid, heritage.exit_signal)
        };
        child.enter(self)
    }

    fn enter(self, parent: &Arc<Self>) -> Arc<Self> {
        let process = Arc::new(self);
        PROCESSES.lock().insert(process.pid, Arc::clone(&process));
        parent.children.lock().push(Arc::clone(&process));
        process
    }

    /// Its memory.
    ///
    /// # Panics
    /// It has ended: only others may ask then, and they use [`Process::memory_if_alive`].
    pub(super) fn memory(&self) -> Arc<Memory> {
        self.memory_if_alive().expect("a process that runs has memory")
    }

    /// Its memory, unless it has ended.
    pub(super) fn memory_if_alive(&self) -> Option<Arc<Memory>> {
        self.memory.lock().clone()
    }

    /// It runs another program.
    pub(super) fn set_memory(&self, memory: Arc<Memory>) {
        let old = self.memory.lock().replace(memory);
        drop(old);
    }

    /// Its descriptors.
    pub(super) fn files(&self) -> Arc<Descriptors> {
        Arc::clone(&self.files.lock())
    }

    /// Has descriptors of its own from now on, if it shared them.
    pub(super) fn unshare_files(&self) {
        let mut files = self.files.lock();
        if Arc::strong_count(&files) > 1 {
            *files = Arc::new(files.copy());
        }
    }

    /// Its threads that still run.
    pub(super) fn threads(&self) -> Vec<Arc<Thread>> {
        self.threads.lock().clone()
    }

    /// Calls `f` with each thread while none can go.
    pub(super) fn with_threads<T>(&self, f: impl FnOnce(&[Arc<Thread>]) -> T) -> T {
        f(&self.threads.lock())
    }

    /// A thread more. False if the process is ending: then it must not begin.
    pub(super) fn add_thread(&self, thread: &Arc<Thread>) -> bool {
        let mut threads = self.threads.lock();
        let lives = self.ending.lock().is_none();
        if lives {
            threads.push(Arc::clone(thread));
        }
        lives
    }

    /// A thread less; was it the last?
    pub(super) fn remove_thread(&self, tid: u32) -> bool {
        let mut threads = self.threads.lock();
        threads.retain(|thread| thread.tid != tid);
        self.thread_left.happens();
        threads.is_empty()
    }

    /// Ends all threads but this one, for an exec; false when the process is ending anyway.
    pub(super) fn end_other_threads(&self, me: &Thread) -> bool {
        loop {
            let seen = self.thread_left.seen();
            // Of two that want the process for themselves, one is told to end before it has told the other.
            if me.is_to_end() {
                return false;
            }
            let others = self.with_threads(|threads| {
                let others = threads.iter().filter(|thread| thread.tid != me.tid);
                others.inspect(|thread| thread.end_alone()).count()
            });
            if others == 0 {
                self.leader.store(me.tid, Relaxed);
                return self.ending().is_none();
            }
            self.thread_left.wait_only(seen);
        }
    }

    pub(super) fn leader_status(&self) -> u8 {
        self.leader_status.load(Relaxed)
    }

    /// A thread ends alone.
    pub(super) fn note_exit(&self, tid: u32, status: u8) {
        if self.leader.load(Relaxed) == tid {
            self.leader_status.store(status, Relaxed);
        }
    }

    /// How it ends, once somebody has said so.
    pub(super) fn ending(&self) -> Option<End> {
        *self.ending.lock()
    }

    /// Ends it: each thread leaves at its next look. The first to say how it ends is right.
    pub(super) fn end(&self, how: End) {
        self.with_threads(|threads| {
            self.ending.lock().get_or_insert(how);
            threads.iter().for_each(|thread| thread.notify());
        });
    }

    /// Is it the one that was asked for?
    pub(super) fn is_first(&self) -> bool {
        self.pid == FIRST
    }

    /// How it has ended, once it has.
    pub(super) fn ended(&self) -> Option<End> {
        *self.ended.lock()
    }

    pub(super) fn children(&self) -> Vec<Arc<Process>> {
        self.children.lock().clone()
    }

    /// The last thread has left: gives everything back, and tells the parent. With no address space loaded.
    pub(super) fn finish(self: &Arc<Self>, how: End) {
        let memory = self.memory.lock().take();
        drop(memory);
        let files = core::mem::take(&mut *self.files.lock());
        drop(files);
        self.returns_memory();
        alarm::forget(self.pid);
        let children = core::mem::take(&mut *self.children.lock());
        let are_some = !children.is_empty();
        for child in children {
            *child.parent.lock() = Arc::downgrade(init());
            child.ppid.store(1, Relaxed);
            init().children.lock().push(child);
        }
        if are_some {
            init().child_ended.happens();
        }
        *self.ended.lock() = Some(how);
        self.end_event.happens();
        let Some(parent) = self.parent.lock().upgrade() else { return };
        if self.exit_signal == signal::CHLD && parent.signals.ignores_children() {
            parent.let_go(self);
        }
        if self.exit_signal != 0 {
            signal::send(&parent, Info::of_child(self.exit_signal, self.pid, how));
        }
        parent.child_ended.happens();
    }

    /// It could not begin: as if it had never been.
    pub(super) fn abandon(&self) {
        let memory = self.memory.lock().take();
        drop(memory);
        if let Some(parent) = self.parent.lock().upgrade() {
            parent.let_go(self);
        }
    }

    /// A child that has ended is forgotten.
    /// False if somebody else has done that already.
    pub(super) fn let_go(&self, child: &Process) -> bool {
        let mut children = self.children.lock();
        let before = children.len();
        children.retain(|other| other.pid != child.pid);
        let was_there = children.len() != before;
        drop(children);
        if was_there {
            PROCESSES.lock().remove(&child.pid);
        }
        was_there
    }

    /// It uses its parent's memory no more (`CLONE_VFORK`).
    pub(super) fn returns_memory(&self) {
        self.borrows.store(false, Relaxed);
        self.memory_returned.happens();
    }

    /// Sleeps until a child has returned the memory that it runs in, or the running thread is to end.
    pub(super) fn wait_for_memory(child: &Process, me: &Thread) {
        let mut noticed = false;
        loop {
            let seen = child.memory_returned.seen();
            if !child.borrows.load(Relaxed) || me.is_to_end() {
                break;
            }
            // Signals wait until then.
            if child.memory_returned.wait(seen, NEVER) == Woken::Noticed {
                noticed |= task::take_notice();
            }
        }
        if noticed {
            task::notify(task::number());
        }
    }
}
