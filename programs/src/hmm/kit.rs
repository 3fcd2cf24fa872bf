//! What the scenarios share: the devices, memory with numbers in it, processes, and the ways to fail.

use std::fmt::{Debug, Display};
use std::panic::Location;

use farpage_programs::area::{Area, Errno, HUGE, PAGE};
use farpage_programs::dmirror::{Device, Done, snap};

/// Bytes of the buffer that most scenarios use.
pub(crate) const BUFFER: usize = 4 << 20;
/// Repetitions of those that repeat.
pub(crate) const TIMES: u32 = 10;
/// Reading and writing.
pub(crate) const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Why a scenario has not been met.
#[derive(Debug)]
pub(crate) enum Unmet {
    /// Something is not as it should be.
    Failed(String),
    /// This machine has not what it needs.
    Skip(String),
}

/// How a scenario ends.
pub(crate) type Outcome = Result<(), Unmet>;

impl From<Errno> for Unmet {
    #[track_caller]
    fn from(errno: Errno) -> Self {
        failed(&format_args!("a call failed: {errno:?}"))
    }
}

impl From<std::io::Error> for Unmet {
    #[track_caller]
    fn from(error: std::io::Error) -> Self {
        failed(&format_args!("a file's call failed: {error}"))
    }
}

/// A failure of the line that calls this.
#[track_caller]
pub(crate) fn failed(why: &dyn Display) -> Unmet {
    Unmet::Failed(format!("{}: {why}", Location::caller()))
}

/// Fails when the two differ.
#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "what is compared is written where it is compared")]
pub(crate) fn equal<T: PartialEq + Debug>(found: T, expected: T, what: &str) -> Outcome {
    if found == expected {
        return Ok(());
    }
    Err(failed(&format_args!("{what}: found {found:?}, expected {expected:?}")))
}

/// The devices that a variant runs on: two of a kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fixture {
    first: usize,
}

/// Devices whose memory no CPU can map.
pub(crate) const PRIVATE: Fixture = Fixture { first: 0 };
/// Devices whose memory CPUs map like RAM.
pub(crate) const COHERENT: Fixture = Fixture { first: 2 };

impl Fixture {
    /// The CPU maps this fixture's memory.
    pub(crate) const fn is_coherent(self) -> bool {
        self.first == 2
    }

    /// Opens the first or second device.
    pub(crate) fn open(self, which: usize) -> Result<Device, Unmet> {
        Device::open(self.first + which).map_err(|errno| match errno.0 {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => Unmet::Skip("no device".into()),
            _ => failed(&format_args!("the device cannot be opened: {errno:?}")),
        })
    }

    /// What a page on the device that asks is in its snapshot.
    pub(crate) const fn local(self) -> u8 {
        if self.is_coherent() { snap::COHERENT_LOCAL } else { snap::PRIVATE_LOCAL }
    }
}

/// Maps the usual buffer.
pub(crate) fn buffer() -> Result<Area, Unmet> {
    Ok(Area::anon(BUFFER, RW)?)
}

/// Maps the usual buffer, to have single pages whatever is usual here.
pub(crate) fn small_buffer() -> Result<Area, Unmet> {
    let area = buffer()?;
    area.advise(libc::MADV_NOHUGEPAGE)?;
    Ok(area)
}

/// Maps 2 MiB at a multiple of that, with advice: large pages or none.
pub(crate) fn large(prot: i32, advice: i32) -> Result<Area, Unmet> {
    let area = Area::huge(HUGE, prot)?;
    area.advise(advice)?;
    Ok(area)
}

/// Word `index` of a buffer that counts numbers of 32 bits: it holds the numbers `2 index` and `2 index + 1`, each plus `add`.
pub(crate) const fn numbers(index: usize, add: u32) -> u64 {
    let low = (index * 2) as u32;
    low.wrapping_add(add) as u64 | (low.wrapping_add(1).wrapping_add(add) as u64) << 32
}

/// Number `index` of a buffer.
pub(crate) fn number(area: Area, index: usize) -> u32 {
    (area.read(index / 2) >> (32 * (index % 2))) as u32
}

/// Writes numbers to `part`, counted from the start of `area` on.
pub(crate) fn fill_part(area: Area, part: Area, add: u32) {
    let first = (part.start() - area.start()) / 8;
    for word in 0..part.len() / 8 {
        part.write(word, numbers(first + word, add));
    }
}

/// Writes numbers to all of it.
pub(crate) fn fill(area: Area) {
    fill_part(area, area, 0);
}

/// Checks the numbers of `part`, counted from the start of `area` on.
#[track_caller]
pub(crate) fn check_part(area: Area, part: Area, add: u32) -> Outcome {
    let first = (part.start() - area.start()) / 8;
    holds(part, |word| numbers(first + word, add))
}

/// Checks the numbers of all of it.
#[track_caller]
pub(crate) fn check(area: Area) -> Outcome {
    check_part(area, area, 0)
}

/// Checks that every word of it is 0.
#[track_caller]
pub(crate) fn check_zero(area: Area) -> Outcome {
    holds(area, |_| 0)
}

/// Checks that each word of it is what `expected` says of its index.
#[track_caller]
pub(crate) fn holds(area: Area, expected: impl Fn(usize) -> u64) -> Outcome {
    for word in 0..area.len() / 8 {
        let (found, right) = (area.read(word), expected(word));
        if found != right {
            return Err(failed(&format_args!(
                "page {}, word {}: found {found:#x}, expected {right:#x}",
                word * 8 / PAGE,
                word % (PAGE / 8)
            )));
        }
    }
    Ok(())
}

/// Adds one to each number, as a program does.
pub(crate) fn increment(area: Area) {
    for word in 0..area.len() / 8 {
        let value = area.read(word);
        let (low, high) = ((value as u32).wrapping_add(1), ((value >> 32) as u32).wrapping_add(1));
        area.write(word, u64::from(low) | u64::from(high) << 32);
    }
}

/// Memory for what the device reads of `area`, with nothing in it that could be right by chance.
pub(crate) fn bounce(area: Area) -> Result<Area, Unmet> {
    let bounce = Area::anon(area.len(), RW)?;
    for word in 0..bounce.len() / 8 {
        bounce.write(word, !0);
    }
    Ok(bounce)
}

/// A command that reads finds what `expected` says of each word's index.
#[track_caller]
pub(crate) fn device_expects(
    area: Area,
    expected: impl Fn(usize) -> u64,
    command: impl FnOnce(Area, Area) -> Result<Done, Errno>,
) -> Result<Done, Unmet> {
    let to = bounce(area)?;
    let done = command(area, to).map_err(|errno| failed(&format_args!("the command: {errno:?}")))?;
    holds(to, expected)?;
    to.unmap()?;
    Ok(done)
}

/// A command that reads finds the numbers that `area` was filled with, each plus `add`.
#[track_caller]
pub(crate) fn device_finds(
    area: Area,
    add: u32,
    command: impl FnOnce(Area, Area) -> Result<Done, Errno>,
) -> Result<Done, Unmet> {
    device_expects(area, |word| numbers(word, add), command)
}

/// The device writes numbers to `area`, each plus `add`.
pub(crate) fn device_writes(device: &Device, area: Area, add: u32) -> Result<Result<Done, Errno>, Unmet> {
    let from = Area::anon(area.len(), RW)?;
    fill_part(from, from, add);
    let done = device.write(area, from);
    from.unmap()?;
    Ok(done)
}

/// Moves a filled area to the device: all of it is found there.
#[track_caller]
pub(crate) fn to_device(device: &Device, area: Area) -> Outcome {
    let done = device_finds(area, 0, |area, to| device.to_device(area, to))?;
    equal(done.cpages, area.pages() as u64, "pages found on the device")
}

/// A command that moves `area` to the device, with its answer alone.
pub(crate) fn try_to_device(device: &Device, area: Area) -> Result<Result<Done, Errno>, Unmet> {
    let to = Area::anon(area.len(), RW)?;
    let done = device.to_device(area, to);
    to.unmap()?;
    Ok(done)
}

/// The device's snapshot of `area`.
#[track_caller]
pub(crate) fn snapshot(device: &Device, area: Area) -> Result<Vec<u8>, Unmet> {
    let to = Area::anon(area.pages().next_multiple_of(PAGE), RW)?;
    let done = device.snapshot(area, to).map_err(|errno| failed(&format_args!("a snapshot: {errno:?}")))?;
    equal(done.cpages, area.pages() as u64, "pages of a snapshot")?;
    let bytes = (0..area.pages()).map(|page| (to.read(page / 8) >> (page % 8 * 8)) as u8).collect();
    to.unmap()?;
    Ok(bytes)
}

/// Each byte of the device's snapshot is `expected`.
#[track_caller]
pub(crate) fn snapshot_is(device: &Device, area: Area, expected: u8) -> Outcome {
    for (page, found) in snapshot(device, area)?.into_iter().enumerate() {
        if found != expected {
            return Err(failed(&format_args!("page {page}: found {found:#04x}, expected {expected:#04x}")));
        }
    }
    Ok(())
}
