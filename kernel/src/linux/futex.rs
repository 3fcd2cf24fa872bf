//! Futexes: sleep on a word of memory until somebody wakes those who sleep on it.
//!
//! A word has a key: where it is in its address space, or, in memory that mappings share, in which page of RAM it lies: pages of
//! objects stay where they are. Sleepers stand in one list. It is locked while a sleeper reads the word and goes on the list, and while
//! a waker takes sleepers off: so no wake-up is lost.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use farpage_mm::{VaRange, Vaddr};

use super::calls::read_u32;
use super::errno::{Errno, Interrupted};
use super::memory::{Memory, pages};
use super::sleep;
use crate::task::{self, Mutex, Woken};

/// Where a word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Private { space: usize, addr: u64 },
    Shared { frame: u64, offset: u64 },
}

/// One who sleeps.
struct Sleeper {
    key: Mutex<Key>,
    bits: u32,
    woken: AtomicBool,
}

impl Sleeper {
    fn wait_key(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }
}

static SLEEPERS: Mutex<Vec<Arc<Sleeper>>> = Mutex::new(Vec::new());

/// All bits: the plain operations.
pub(super) const ANY: u32 = u32::MAX;

/// The key of the word at `addr`. One that may be shared is touched first, so that its page is there and has a number.
///
/// # Errors
/// EFAULT.
fn key(memory: &Memory, addr: u64, private: bool) -> Result<Key, Errno> {
    let page = VaRange::new(addr & !0xfff, 4096);
    if !private {
        read_u32(addr)?;
        let mut frame = None;
        let _ = memory.space().pagemap(page, |_: Vaddr, entry| {
            frame = entry.pfn().filter(|_| entry.is_file());
        });
        if let Some(frame) = frame {
            return Ok(Key::Shared { frame, offset: addr & 0xfff });
        }
    }
    Ok(Key::Private { space: core::ptr::from_ref(memory.space()).addr(), addr })
}

/// Is the word one that a futex can be?
///
/// # Errors
/// EINVAL if it is not aligned.
fn check(addr: u64) -> Result<(), Errno> {
    if addr.is_multiple_of(4) { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Sleeps while the word is `expected`, until woken by one who names any of `bits`, or until `deadline`.
///
/// # Errors
/// EAGAIN when the word is something else, ETIMEDOUT, EFAULT, EINVAL; interrupted.
pub(super) fn wait(
    memory: &Memory,
    addr: u64,
    expected: u32,
    bits: u32,
    private: bool,
    deadline: u64,
) -> Result<u64, Errno> {
    check(addr)?;
    if bits == 0 {
        return Err(Errno::EINVAL);
    }
    // So that the page is there, and has a number.
    read_u32(addr)?;
    let sleeper = {
        let mut sleepers = SLEEPERS.lock();
        if read_u32(addr)? != expected {
            return Err(Errno::EAGAIN);
        }
        let key = Mutex::new(key(memory, addr, private)?);
        let sleeper = Arc::new(Sleeper { key, bits, woken: AtomicBool::new(false) });
        sleepers.push(Arc::clone(&sleeper));
        sleeper
    };
    let why = task::wait_until(sleeper.wait_key(), deadline, &|| !sleeper.woken.load(Relaxed));
    SLEEPERS.lock().retain(|other| !Arc::ptr_eq(other, &sleeper));
    match why {
        _ if sleeper.woken.load(Relaxed) => Ok(0),
        Woken::TimedOut => Err(Errno::ETIMEDOUT),
        Woken::Noticed if deadline == task::timer::NEVER => Err(Interrupted::Restart.into()),
        Woken::Noticed => {
            sleep::keep(deadline);
            Err(Interrupted::RestartWithoutHandler.into())
        }
        Woken::ByKey => Ok(0),
    }
}

/// Wakes up to `most` of those who sleep on the word and name any of `bits`; how many.
///
/// # Errors
/// EINVAL; EFAULT where a word that processes share cannot be, or where no program's word is.
pub(super) fn wake(memory: &Memory, addr: u64, most: u32, bits: u32, private: bool) -> Result<u64, Errno> {
    check(addr)?;
    if private {
        pages(addr, 4).ok_or(Errno::EFAULT)?;
    }
    if bits == 0 {
        return Err(Errno::EINVAL);
    }
    let wanted = key(memory, addr, private)?;
    Ok(wake_some(wanted, most, bits))
}

fn wake_some(wanted: Key, most: u32, bits: u32) -> u64 {
    let mut woken = 0;
    SLEEPERS.lock().retain(|sleeper| {
        let goes = woken < u64::from(most) && *sleeper.key.lock() == wanted && sleeper.bits & bits != 0;
        if goes {
            woken += 1;
            sleeper.woken.store(true, Relaxed);
            task::wake(sleeper.wait_key());
        }
        !goes
    });
    woken
}

/// Wakes up to `most` sleepers, and has up to `moved` of the others sleep on another word from now on; how many both. Only while the
/// word is `expected`, if that is given.
///
/// # Errors
/// EAGAIN when the word is something else; EFAULT, EINVAL.
pub(super) fn requeue(
    memory: &Memory,
    [from, to]: [u64; 2],
    [most, moved]: [u32; 2],
    private: bool,
    expected: Option<u32>,
) -> Result<u64, Errno> {
    check(from)?;
    check(to)?;
    if let Some(expected) = expected
        && read_u32(from)? != expected
    {
        return Err(Errno::EAGAIN);
    }
    let (from, to) = (key(memory, from, private)?, key(memory, to, private)?);
    let woken = wake_some(from, most, ANY);
    let sleepers = SLEEPERS.lock();
    let others = sleepers.iter().filter(|sleeper| *sleeper.key.lock() == from).take(moved as usize);
    let moved = others.inspect(|sleeper| *sleeper.key.lock() = to).count();
    Ok(woken + moved as u64)
}

/// A thread has ended: wakes one who waits for the word that says so, however it waits.
pub(super) fn wake_one(memory: &Memory, addr: u64) {
    if check(addr).is_ok() {
        let woken = key(memory, addr, false).map_or(0, |shared| wake_some(shared, 1, ANY));
        if let (0, Ok(private)) = (woken, key(memory, addr, true)) {
            wake_some(private, 1, ANY);
        }
    }
}
