//! Sets of signals, what is done at each, and which wait.

use alloc::vec::Vec;

use super::{AtomicSet, CHLD, Info, KILL, STOP, is_ignored_by_default};
use crate::task::Mutex;

/// A set, signal n in bit n - 1 (`sigset_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::linux) struct Set(pub(in crate::linux) u64);

impl Set {
    pub(in crate::linux) fn of(signal: u8) -> Self {
        Self(1 << ((signal - 1) & 63))
    }

    pub(in crate::linux) fn has(self, signal: u8) -> bool {
        self.0 & Self::of(signal).0 != 0
    }

    /// Without those that nobody can block.
    pub(in crate::linux) fn blockable(self) -> Self {
        Self(self.0 & !(Self::of(KILL).0 | Self::of(STOP).0))
    }
}

/// Flags of an action (`asm/signal.h`).
pub(in crate::linux) mod flag {
    pub(in crate::linux) const NOCLDWAIT: u64 = 2;
    pub(in crate::linux) const RESTORER: u64 = 0x0400_0000;
    pub(in crate::linux) const ONSTACK: u64 = 0x0800_0000;
    pub(in crate::linux) const RESTART: u64 = 0x1000_0000;
    pub(in crate::linux) const NODEFER: u64 = 0x4000_0000;
    pub(in crate::linux) const RESETHAND: u64 = 0x8000_0000;
}

/// What is done at a signal, in the order of `struct sigaction` as the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::linux) struct Action {
    pub(in crate::linux) handler: u64,
    pub(in crate::linux) flags: u64,
    pub(in crate::linux) restorer: u64,
    pub(in crate::linux) mask: Set,
}

impl Action {
    /// `SIG_DFL`.
    pub(in crate::linux) const DEFAULT: u64 = 0;
    /// `SIG_IGN`.
    pub(in crate::linux) const IGNORE: u64 = 1;

    pub(in crate::linux) fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }
}

/// Signals that wait.
#[derive(Default)]
pub(in crate::linux) struct Pending(Mutex<Vec<Info>>);

impl Pending {
    /// One more, unless it waits already.
    pub(in crate::linux) fn add(&self, info: Info) {
        let mut waiting = self.0.lock();
        if waiting.iter().all(|other| other.signal != info.signal) {
            waiting.push(info);
        }
    }

    /// Takes the one to be looked at next, of those that are not blocked: what the thread itself has done first, then the lowest
    /// number.
    pub(in crate::linux) fn take(&self, blocked: Set) -> Option<Info> {
        let mut waiting = self.0.lock();
        let at = (0..waiting.len())
            .filter(|&at| !blocked.has(waiting[at].signal))
            .min_by_key(|&at| (!waiting[at].is_of_fault(), waiting[at].signal))?;
        Some(waiting.swap_remove(at))
    }

    /// Which wait.
    pub(in crate::linux) fn set(&self) -> Set {
        Set(self.0.lock().iter().fold(0, |set, info| set | Set::of(info.signal).0))
    }

    fn forget(&self, signal: u8) {
        self.0.lock().retain(|info| info.signal != signal);
    }
}

/// What a process has of signals.
pub(in crate::linux) struct ProcessSignals {
    actions: Mutex<[Action; 64]>,
    pub(in crate::linux) pending: Pending,
}

impl Default for ProcessSignals {
    fn default() -> Self {
        Self { actions: Mutex::new([Action::default(); 64]), pending: Pending::default() }
    }
}

impl ProcessSignals {
    /// Those of a new process.
    pub(in crate::linux) fn copy(&self) -> Self {
        Self { actions: Mutex::new(*self.actions.lock()), pending: Pending::default() }
    }

    pub(in crate::linux) fn action(&self, signal: u8) -> Action {
        self.actions.lock()[usize::from(signal - 1)]
    }

    /// Sets what is done; what was. A signal that is ignored from now on waits no more.
    pub(in crate::linux) fn set_action(&self, signal: u8, action: Action) -> Action {
        let old = core::mem::replace(&mut self.actions.lock()[usize::from(signal - 1)], action);
        if self.ignores(signal) {
            self.pending.forget(signal);
        }
        old
    }

    /// Does it do nothing?
    pub(in crate::linux) fn ignores(&self, signal: u8) -> bool {
        match self.action(signal).handler {
            Action::DEFAULT => is_ignored_by_default(signal),
            handler => handler == Action::IGNORE,
        }
    }

    /// Are children that end forgotten at once?
    pub(in crate::linux) fn ignores_children(&self) -> bool {
        let action = self.action(CHLD);
        action.handler == Action::IGNORE || action.has(flag::NOCLDWAIT)
    }

    /// Another program is run: handlers are gone, what is ignored stays so.
    pub(in crate::linux) fn exec(&self) {
        for action in self.actions.lock().iter_mut() {
            let handler = if action.handler == Action::IGNORE { Action::IGNORE } else { Action::DEFAULT };
            *action = Action { handler, ..Action::default() };
        }
    }
}

/// The stack for handlers that want one (`stack_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::linux) struct AltStack {
    pub(in crate::linux) start: u64,
    pub(in crate::linux) len: u64,
    pub(in crate::linux) flags: u32,
}

impl AltStack {
    /// `SS_DISABLE`.
    pub(in crate::linux) const NONE: Self = Self { start: 0, len: 0, flags: 2 };

    pub(in crate::linux) fn is_on(&self) -> bool {
        self.flags & 2 == 0
    }

    pub(in crate::linux) fn contains(&self, sp: u64) -> bool {
        self.is_on() && sp > self.start && sp - self.start <= self.len
    }
}

/// The last exception, for a signal's frame: vector, error code, address.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::linux) struct Trap {
    pub(in crate::linux) vector: u64,
    pub(in crate::linux) error: u64,
    pub(in crate::linux) addr: u64,
}

/// What a thread has of signals.
pub(in crate::linux) struct ThreadSignals {
    mask: AtomicSet,
    /// What it sleeps for, blocked or not (`sigtimedwait`).
    pub(in crate::linux) waits_for: AtomicSet,
    /// What the mask is to be again after a handler (`sigsuspend`).
    saved: Mutex<Option<Set>>,
    pub(in crate::linux) pending: Pending,
    pub(in crate::linux) altstack: Mutex<AltStack>,
    trap: Mutex<Trap>,
}

impl Default for ThreadSignals {
    fn default() -> Self {
        Self {
            mask: AtomicSet::default(),
            waits_for: AtomicSet::default(),
            saved: Mutex::new(None),
            pending: Pending::default(),
            altstack: Mutex::new(AltStack::NONE),
            trap: Mutex::new(Trap::default()),
        }
    }
}

impl ThreadSignals {
    /// Those of a new thread; that of a new process keeps the stack for handlers.
    pub(in crate::linux) fn copy(&self, keeps_stack: bool) -> Self {
        let new = Self::default();
        new.mask.put(self.mask());
        if keeps_stack {
            *new.altstack.lock() = *self.altstack.lock();
        }
        new
    }

    pub(in crate::linux) fn mask(&self) -> Set {
        self.mask.get()
    }

    /// Blocks these; not those that nobody can block.
    pub(in crate::linux) fn set_mask(&self, mask: Set) {
        self.mask.put(mask.blockable());
    }

    pub(in crate::linux) fn blocks(&self, signal: u8) -> bool {
        self.mask().has(signal)
    }

    /// Would it look at this signal now?
    pub(in crate::linux) fn takes(&self, signal: u8) -> bool {
        !self.blocks(signal) || self.waits_for.get().has(signal)
    }

    /// Blocks these for now; the mask of before comes back with the next handler's return, or where there is none.
    pub(in crate::linux) fn set_mask_for_now(&self, mask: Set) {
        self.saved.lock().get_or_insert(self.mask());
        self.set_mask(mask);
    }

    pub(in crate::linux) fn take_saved_mask(&self) -> Option<Set> {
        self.saved.lock().take()
    }

    pub(in crate::linux) fn trap(&self) -> Trap {
        *self.trap.lock()
    }

    pub(in crate::linux) fn note_fault(&self, addr: u64, error: u64) {
        *self.trap.lock() = Trap { vector: 14, error, addr };
    }

    pub(in crate::linux) fn note_exception(&self, vector: u8, error: u64) {
        *self.trap.lock() = Trap { vector: u64::from(vector), error, addr: 0 };
    }

    /// Another program is run.
    pub(in crate::linux) fn exec(&self) {
        *self.altstack.lock() = AltStack::NONE;
    }
}
