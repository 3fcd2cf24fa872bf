//! Alarms: each process has one clock that sends SIGALRM when it has run down, once or again and again (`ITIMER_REAL`, `alarm`).
//!
//! A kernel thread, which is made with the first alarm, sleeps until the soonest.

use alloc::collections::BTreeMap;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::calls::now;
use super::process;
use super::signal::{self, Info};
use crate::task::{self, Event, Mutex, timer};

/// In nanoseconds of [`now`].
#[derive(Clone, Copy, Debug)]
struct Alarm {
    due: u64,
    /// 0 for once.
    interval: u64,
}

/// By process.
static ALARMS: Mutex<BTreeMap<u32, Alarm>> = Mutex::new(BTreeMap::new());
static CHANGED: Event = Event::new();

/// What is left of a process's alarm, and its interval; zeros for none.
pub(super) fn left(pid: u32) -> (u64, u64) {
    // One that is due is about to ring.
    ALARMS.lock().get(&pid).map_or((0, 0), |alarm| (alarm.due.saturating_sub(now()).max(1), alarm.interval))
}

/// Sets a process's alarm to ring after so many nanoseconds, then in this interval; 0 is never.
///
/// # Errors
/// No thread can be made for it.
pub(super) fn set(pid: u32, after: u64, interval: u64) -> Result<(), farpage_mm::OutOfMemory> {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if after == 0 {
        ALARMS.lock().remove(&pid);
    } else {
        if !STARTED.swap(true, Relaxed) {
            task::spawn_detached("alarms", ring).inspect_err(|_| STARTED.store(false, Relaxed))?;
        }
        ALARMS.lock().insert(pid, Alarm { due: now().saturating_add(after), interval });
    }
    CHANGED.happens();
    Ok(())
}

/// A process has ended.
pub(super) fn forget(pid: u32) {
    if ALARMS.lock().remove(&pid).is_some() {
        CHANGED.happens();
    }
}

/// The thread's work.
fn ring() {
    loop {
        let seen = CHANGED.seen();
        let mut soonest = None;
        let now = now();
        let mut due = alloc::vec::Vec::new();
        ALARMS.lock().retain(|&pid, alarm| {
            let rings = alarm.due <= now;
            if rings {
                due.push(pid);
                alarm.due = now.saturating_add(alarm.interval);
            }
            let stays = !rings || alarm.interval != 0;
            if stays && soonest.is_none_or(|other| alarm.due < other) {
                soonest = Some(alarm.due);
            }
            stays
        });
        for process in due.into_iter().filter_map(process::find) {
            signal::send(&process, Info::of_kernel(signal::ALRM));
        }
        let deadline = soonest.map_or(timer::NEVER, |due| timer::after_nanoseconds(due.saturating_sub(now)));
        CHANGED.wait(seen, deadline);
    }
}
