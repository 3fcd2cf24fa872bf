//! Signals: actions, masks, sending, waiting.

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use super::{Answer, time};
use crate::arch::x86_64::uaccess::{copy_from_user, copy_to_user};
use crate::linux::errno::{Errno, Interrupted};
use crate::linux::process::{self, End, Process};
use crate::linux::signal::{self, Action, AltStack, Info, Set};
use crate::linux::sleep;
use crate::linux::thread::{Caller, Thread};
use crate::task::{self, Woken, timer};
use crate::vm::user::{user_read_u64, user_write_u64};

/// Bytes of a set, which every call is told.
const SET_LEN: u64 = 8;
/// Codes of a signal that was sent: `SI_USER`, `SI_TKILL`.
const BY_KILL: i32 = 0;
const BY_TKILL: i32 = -6;

fn check_len(len: u64) -> Result<(), Errno> {
    if len == SET_LEN { Ok(()) } else { Err(Errno::EINVAL) }
}

/// A signal's number; 0 only asks whether one could be sent.
fn number(number: u64) -> Result<u8, Errno> {
    u8::try_from(number as u32).ok().filter(|number| *number <= signal::LAST).ok_or(Errno::EINVAL)
}

pub(super) fn rt_sigaction(process: &Process, which: u64, new: u64, old: u64, len: u64) -> Answer {
    check_len(len)?;
    let which = number(which)?;
    let new = match new {
        0 => None,
        at => Some(Action {
            handler: user_read_u64(at)?,
            flags: user_read_u64(at + 8)?,
            restorer: user_read_u64(at + 16)?,
            mask: Set(user_read_u64(at + 24)?).blockable(),
        }),
    };
    if which == 0 || new.is_some() && matches!(which, signal::KILL | signal::STOP) {
        return Err(Errno::EINVAL);
    }
    let was = match new {
        Some(new) => process.signals.set_action(which, new),
        None => process.signals.action(which),
    };
    if old != 0 {
        for (at, value) in (old..).step_by(8).zip([was.handler, was.flags, was.restorer, was.mask.0]) {
            user_write_u64(at, value)?;
        }
    }
    Ok(0)
}

pub(super) fn rt_sigprocmask(caller: &Caller, how: u64, new: u64, old: u64, len: u64) -> Answer {
    const BLOCK: u64 = 0;
    const UNBLOCK: u64 = 1;
    const SET: u64 = 2;
    check_len(len)?;
    let signals = &caller.thread.signals;
    let was = signals.mask();
    if new != 0 {
        let set = user_read_u64(new)?;
        let mask = match how {
            BLOCK => was.0 | set,
            UNBLOCK => was.0 & !set,
            SET => set,
            _ => return Err(Errno::EINVAL),
        };
        set_mask(caller, Set(mask));
    }
    if old != 0 {
        user_write_u64(old, was.0)?;
    }
    Ok(0)
}

/// What is unblocked by that is looked at before the program goes on.
fn set_mask(caller: &Caller, mask: Set) {
    caller.thread.signals.set_mask(mask);
    signal::retarget(caller.process());
    if signal::pending(caller).0 & !caller.thread.signals.mask().0 != 0 {
        task::notify(task::number());
    }
}

/// The frame under the stack pointer says how the program goes on. One that cannot be read ends it.
pub(super) fn rt_sigreturn(caller: &mut Caller) {
    if signal::put_back(caller).is_err() {
        caller.process().end(End::Killed(signal::SEGV));
    }
    task::notify(task::number());
}

pub(super) fn rt_sigpending(caller: &Caller, to: u64, len: u64) -> Answer {
    if len > SET_LEN {
        return Err(Errno::EINVAL);
    }
    let set = signal::pending(caller).0 & caller.thread.signals.mask().0;
    copy_to_user(to, &set.to_le_bytes()[..len as usize])?;
    Ok(0)
}

pub(super) fn rt_sigsuspend(caller: &Caller, mask: u64, len: u64) -> Answer {
    check_len(len)?;
    mask_for_now(caller, Set(user_read_u64(mask)?));
    pause()
}

/// Has this mask for the sleep that comes.
pub(super) fn mask_for_now(caller: &Caller, mask: Set) {
    caller.thread.signals.set_mask_for_now(mask);
    if signal::pending(caller).0 & !caller.thread.signals.mask().0 != 0 {
        task::notify(task::number());
    }
}

/// Sleeps until a handler has run.
pub(super) fn pause() -> Answer {
    sleep::alone(timer::NEVER);
    Err(Interrupted::RestartWithoutHandler.into())
}

pub(super) fn rt_sigtimedwait(caller: &Caller, set: u64, info: u64, timeout: u64, len: u64) -> Answer {
    check_len(len)?;
    let set = Set(user_read_u64(set)?).blockable();
    let deadline = if timeout == 0 { timer::NEVER } else { timer::after_nanoseconds(time::read(timeout)?) };
    let waits_for = &caller.thread.signals.waits_for;
    waits_for.put(set);
    let mut noticed = false;
    let found = loop {
        if let Some(found) = signal::take(caller, set) {
            break Ok(found);
        }
        match sleep::alone(deadline) {
            Woken::TimedOut => break Err(Errno::EAGAIN),
            _ => noticed |= task::take_notice(),
        }
        let unblocked = signal::pending(caller).0 & !caller.thread.signals.mask().0 & !set.0;
        if caller.thread.is_to_end() || unblocked != 0 {
            break Err(Errno::EINTR);
        }
    };
    waits_for.put(Set(0));
    if noticed {
        // It may have been about something else, too.
        task::notify(task::number());
    }
    let found = found?;
    if info != 0 {
        copy_to_user(info, &found.bytes())?;
    }
    Ok(u64::from(found.signal))
}

pub(super) fn sigaltstack(caller: &Caller, new: u64, old: u64) -> Answer {
    const LEAST: u64 = 2048;
    const ON_STACK: u32 = 1;
    const DISABLE: u32 = 2;
    const AUTODISARM: u32 = 1 << 31;
    let mut altstack = *caller.thread.signals.altstack.lock();
    let on_it = altstack.contains(caller.context.regs.rsp);
    let was = altstack;
    if new != 0 {
        let mut bytes = [0; 24];
        copy_from_user(&mut bytes, new)?;
        let word = |at: usize| user_word(&bytes, at);
        let flags = word(8) as u32;
        if on_it {
            return Err(Errno::EPERM);
        }
        if flags & !(ON_STACK | DISABLE | AUTODISARM) != 0
            || flags & (ON_STACK | DISABLE) == ON_STACK | DISABLE
        {
            return Err(Errno::EINVAL);
        }
        altstack = if flags & DISABLE != 0 {
            AltStack::NONE
        } else {
            AltStack { start: word(0), len: word(16), flags: 0 }
        };
        if altstack.is_on() && altstack.len < LEAST {
            return Err(Errno::ENOMEM);
        }
    }
    if old != 0 {
        let flags = if on_it { ON_STACK } else { was.flags };
        let words = [was.start, u64::from(flags), was.len];
        copy_to_user(old, &words.map(u64::to_le_bytes).concat())?;
    }
    *caller.thread.signals.altstack.lock() = altstack;
    Ok(0)
}

fn user_word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

pub(super) fn kill(caller: &Caller, pid: u64, which: u64) -> Answer {
    let (which, me) = (number(which)?, caller.process());
    let group = |wanted: u32| move |other: &Arc<Process>| other.group.load(Relaxed) == wanted;
    let to: alloc::vec::Vec<_> = match pid as i32 {
        i32::MIN => return Err(Errno::ESRCH),
        pid @ 1.. => process::find(pid as u32).into_iter().collect(),
        0 => process::all().into_iter().filter(group(me.group.load(Relaxed))).collect(),
        -1 => process::all().into_iter().filter(|other| other.pid != me.pid).collect(),
        pid => process::all().into_iter().filter(group(pid.unsigned_abs())).collect(),
    };
    if to.is_empty() {
        return Err(Errno::ESRCH);
    }
    if which != 0 {
        to.iter().for_each(|process| signal::send(process, Info::of_sender(which, BY_KILL, me.pid)));
    }
    Ok(0)
}

pub(super) fn tgkill(caller: &Caller, group: u64, tid: u64, which: u64) -> Answer {
    if group as i32 <= 0 || tid as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let process = process::find(group as u32);
    send_to(caller, process.and_then(|process| thread_of(&process, tid)), which)
}

pub(super) fn tkill(caller: &Caller, tid: u64, which: u64) -> Answer {
    if tid as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let thread = process::all().iter().find_map(|process| thread_of(process, tid));
    send_to(caller, thread, which)
}

fn thread_of(process: &Process, tid: u64) -> Option<Arc<Thread>> {
    process.threads().into_iter().find(|thread| u64::from(thread.tid) == tid)
}

fn send_to(caller: &Caller, thread: Option<Arc<Thread>>, which: u64) -> Answer {
    let which = number(which)?;
    let thread = thread.ok_or(Errno::ESRCH)?;
    if which != 0 {
        signal::send_to(&thread, Info::of_sender(which, BY_TKILL, caller.process().pid));
    }
    Ok(0)
}

/// Who writes into a pipe that nobody reads gets a signal with the error.
pub(super) fn broken_pipe(caller: &Caller, answer: Answer) -> Answer {
    if answer == Err(Errno::EPIPE) {
        signal::send_to(&caller.thread, Info::of_sender(signal::PIPE, 0, caller.process().pid));
    }
    answer
}
