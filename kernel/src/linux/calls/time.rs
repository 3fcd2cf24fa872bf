//! Time: there is one clock, which runs from the machine's start.
//!
//! No clock chip is read, so that a run can be repeated: `CLOCK_REALTIME` is as if the machine had started at the epoch.

use super::Answer;
use crate::arch::x86_64::tsc;
use crate::arch::x86_64::uaccess::copy_to_user;
use crate::linux::alarm;
use crate::linux::errno::{Errno, Interrupted};
use crate::linux::sleep;
use crate::measure::nanoseconds;
use crate::task::{Woken, timer};
use crate::vm::user::{user_read_u64, user_write_u64};

const SECOND: u64 = 1_000_000_000;

/// Clocks that there are: all of them go alike (`CLOCK_REALTIME` to `CLOCK_TAI`).
fn check_clock(clock: u64) -> Result<(), Errno> {
    if matches!(clock as u32, 0..=9 | 11) { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Nanoseconds since the machine's start.
pub(in crate::linux) fn now() -> u64 {
    nanoseconds(tsc::now())
}

/// Reads a `timespec`, in nanoseconds.
///
/// # Errors
/// EFAULT; EINVAL for less than nothing and for parts that are no parts.
pub(in crate::linux) fn read(at: u64) -> Result<u64, Errno> {
    let (seconds, part) = (user_read_u64(at)?, user_read_u64(at.wrapping_add(8))?);
    if (seconds as i64) < 0 || part >= SECOND {
        return Err(Errno::EINVAL);
    }
    Ok(seconds.saturating_mul(SECOND).saturating_add(part))
}

fn write(at: u64, time: u64) -> Result<(), Errno> {
    user_write_u64(at, time / SECOND)?;
    user_write_u64(at.wrapping_add(8), time % SECOND)?;
    Ok(())
}

/// When a clock will show `time`, in ticks of the time-stamp counter.
pub(super) fn deadline(time: u64) -> u64 {
    timer::after_nanoseconds(time.saturating_sub(now()))
}

pub(super) fn clock_gettime(clock: u64, to: u64) -> Answer {
    check_clock(clock)?;
    write(to, now())?;
    Ok(0)
}

pub(super) fn clock_getres(clock: u64, to: u64) -> Answer {
    check_clock(clock)?;
    if to != 0 {
        write(to, 1)?;
    }
    Ok(0)
}

pub(super) fn gettimeofday(to: u64, zone: u64) -> Answer {
    let now = now() / 1000;
    if to != 0 {
        user_write_u64(to, now / 1_000_000)?;
        user_write_u64(to.wrapping_add(8), now % 1_000_000)?;
    }
    if zone != 0 {
        user_write_u64(zone, 0)?;
    }
    Ok(0)
}

pub(super) fn time(to: u64) -> Answer {
    let now = now() / SECOND;
    if to != 0 {
        user_write_u64(to, now)?;
    }
    Ok(now)
}

/// Time used is not counted for each process.
pub(super) fn times(to: u64) -> Answer {
    const PER_SECOND: u64 = 100;
    if to != 0 {
        copy_to_user(to, &[0; 32])?;
    }
    Ok(now() / (SECOND / PER_SECOND))
}

pub(super) fn nanosleep(wanted: u64, left: u64) -> Answer {
    sleep_until(sleep::after(read(wanted)?), left)
}

pub(super) fn clock_nanosleep(clock: u64, flags: u64, wanted: u64, left: u64) -> Answer {
    const ABSOLUTE: u64 = 1;
    const PROCESS_CPU: u64 = 2;
    const THREAD_CPU: u64 = 3;
    check_clock(clock)?;
    match clock {
        THREAD_CPU => return Err(Errno::EINVAL),
        PROCESS_CPU | 4..=6 => return Err(Errno::EOPNOTSUPP),
        _ => {}
    }
    let wanted = read(wanted)?;
    if flags & ABSOLUTE != 0 {
        sleep_until(deadline(wanted), 0)
    } else {
        sleep_until(sleep::after(wanted), left)
    }
}

/// Sleeps until the deadline; what was left when a signal came goes to `left`.
fn sleep_until(deadline: u64, left: u64) -> Answer {
    match sleep::alone(deadline) {
        Woken::Noticed => {
            sleep::keep(deadline);
            if left != 0 {
                write(left, nanoseconds(deadline.saturating_sub(tsc::now())))?;
            }
            Err(Interrupted::RestartWithoutHandler.into())
        }
        _ => Ok(0),
    }
}

/// `ITIMER_REAL`; the clocks that count a process's own time are not here.
fn check_timer(which: u64) -> Result<(), Errno> {
    match which {
        0 => Ok(()),
        1 | 2 => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::EINVAL),
    }
}

/// A `timeval`, in nanoseconds.
fn read_timeval(at: u64) -> Result<u64, Errno> {
    let (seconds, micros) = (user_read_u64(at)?, user_read_u64(at.wrapping_add(8))?);
    if (seconds as i64) < 0 || micros >= 1_000_000 {
        return Err(Errno::EINVAL);
    }
    Ok(seconds.saturating_mul(SECOND).saturating_add(micros * 1000))
}

fn write_timer(at: u64, (left, interval): (u64, u64)) -> Result<(), Errno> {
    for (at, time) in [(at, interval), (at.wrapping_add(16), left)] {
        user_write_u64(at, time / SECOND)?;
        user_write_u64(at.wrapping_add(8), (time % SECOND).div_ceil(1000))?;
    }
    Ok(())
}

pub(super) fn getitimer(pid: u32, which: u64, to: u64) -> Answer {
    check_timer(which)?;
    write_timer(to, alarm::left(pid))?;
    Ok(0)
}

pub(super) fn setitimer(pid: u32, which: u64, new: u64, old: u64) -> Answer {
    check_timer(which)?;
    let (interval, after) =
        if new == 0 { (0, 0) } else { (read_timeval(new)?, read_timeval(new.wrapping_add(16))?) };
    let was = alarm::left(pid);
    alarm::set(pid, after, interval)?;
    if old != 0 {
        write_timer(old, was)?;
    }
    Ok(0)
}

/// Seconds that were left; any part counts as one.
pub(super) fn alarm(pid: u32, seconds: u64) -> Answer {
    let (left, _) = alarm::left(pid);
    alarm::set(pid, u64::from(seconds as u32) * SECOND, 0)?;
    Ok(left.div_ceil(SECOND))
}
