//! `/sys/kernel/debug/gup_test`: gets or pins pages of the caller, a few at a time, and lets go of them.
//!
//! A page that cannot be had is no error: the size that comes back says how far it went.

use alloc::sync::Arc;
use alloc::vec::Vec;

use farpage_mm::{PAGE_SIZE, PinError, PinFlags, VaRange, Vaddr};

use super::command::{give, iowr, take};
use crate::arch::x86_64::tsc;
use crate::linux::errno::Errno;
use crate::linux::file::{File, Stat};
use crate::linux::limits;
use crate::linux::process::Process;
use crate::measure::nanoseconds;

/// Words of the structure: two times, addr, size, and numbers of 32 bits, two to a word: `nr_pages_per_call` and `gup_flags` in the
/// first, `test_flags` and `which_pages` in the others.
const WORDS: usize = 10;
/// `FOLL_WRITE` and `FOLL_LONGTERM`.
const WRITE: u32 = 1;
const LONGTERM: u32 = 0x100;

/// The file: all that it does is done in a call.
struct GupTest(Stat);

/// Opens it.
pub(in crate::linux) fn open(stat: Stat) -> Arc<dyn File> {
    Arc::new(GupTest(stat))
}

/// What a command gets.
#[derive(Clone, Copy)]
struct Want {
    pin: bool,
    flags: PinFlags,
}

impl Want {
    /// Of a command and its flags. `None` for a command that is none.
    fn of(number: u32, gup_flags: u32) -> Option<Self> {
        let (pin, fast) = match number {
            1 => (false, true),
            2 => (true, true),
            3 | 5 => (true, false),
            4 => (false, false),
            _ => return None,
        };
        let mut flags = PinFlags::empty();
        flags.set(PinFlags::WRITE, gup_flags & WRITE != 0);
        flags.set(PinFlags::LONGTERM, gup_flags & LONGTERM != 0);
        flags.set(PinFlags::FAST, fast);
        Some(Self { pin, flags })
    }
}

/// Gets pages from `start` on, some in each call of `get`: the address after the last one.
fn walk<T>(
    range: VaRange,
    per_call: u64,
    pages: &mut [Option<T>],
    get: impl Fn(VaRange, &mut [Option<T>]) -> Result<(), PinError>,
) -> Vaddr {
    let mut at = range.start;
    while at < range.end && per_call > 0 {
        let part = VaRange::new(at.0, per_call.min(range.nr_pages()) * PAGE_SIZE).intersect(range);
        let first = ((at.0 - range.start.0) / PAGE_SIZE) as usize;
        let slots = &mut pages[first..first + part.nr_pages() as usize];
        let failed = get(part, slots).is_err();
        at = at.add(slots.iter().take_while(|page| page.is_some()).count() as u64 * PAGE_SIZE);
        if failed {
            break;
        }
    }
    at
}

/// Gets the pages of a range, and lets go of them: where it ended, and the times in microseconds.
fn run<T>(
    range: VaRange,
    per_call: u64,
    get: impl Fn(VaRange, &mut [Option<T>]) -> Result<(), PinError>,
) -> Result<(Vaddr, [u64; 2]), Errno> {
    let count = range.nr_pages() as usize;
    let mut pages = Vec::new();
    if !limits::have_room_for(count.saturating_mul(size_of::<Option<T>>())) {
        return Err(Errno::ENOMEM);
    }
    pages.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    pages.resize_with(count, || None);
    let begin = tsc::now();
    let end = walk(range, per_call, &mut pages, get);
    let had = tsc::now();
    drop(pages);
    let micros = |ticks| nanoseconds(ticks) / 1000;
    Ok((end, [micros(had - begin), micros(tsc::now() - had)]))
}

impl File for GupTest {
    fn stat(&self) -> Stat {
        self.0
    }

    fn ioctl(&self, process: &Process, request: u32, arg: u64) -> Result<u64, Errno> {
        let number = request & 0xff;
        if request != iowr(b'g', number, WORDS) {
            return Err(Errno::EINVAL);
        }
        let mut words = take::<WORDS>(arg)?;
        let [_, _, addr, size, calls, ..] = words;
        let want = Want::of(number, (calls >> 32) as u32).ok_or(Errno::EINVAL)?;
        let pages = size / PAGE_SIZE;
        let memory = process.memory();
        let whole = addr & !(PAGE_SIZE - 1);
        let end = whole.checked_add(pages * PAGE_SIZE).filter(|&end| end <= farpage_mm::USER_END);
        // Nothing can be had where no program has memory, nor for long without a pin.
        let bad = want.flags.contains(PinFlags::LONGTERM) && !want.pin;
        let (end, times) = match end.filter(|_| !bad) {
            None => (Vaddr(whole), [0, 0]),
            Some(end) => {
                let (range, per_call) = (VaRange::between(Vaddr(whole), Vaddr(end)), calls & 0xffff_ffff);
                let space = memory.space();
                if want.pin {
                    run(range, per_call, |part, slots| space.pin_pages(part, want.flags, slots))?
                } else {
                    run(range, per_call, |part, slots| space.get_pages(part, want.flags, slots))?
                }
            }
        };
        words[..2].copy_from_slice(&times);
        words[3] = end.0 - whole;
        give(arg, &words)
    }
}
