//! What the scenarios share: a fixture, a process with a buffer, and memory to bounce data through.

use alloc::sync::Arc;
use alloc::vec::Vec;

use farpage_mm::dmirror::{Dmirror, DmirrorError, Done, PAGE_WORDS, Snap};
use farpage_mm::{HugeAdvice, PAGE_SIZE, Place, Prot, VaRange};

use crate::arch::x86_64::uaccess::{copy_words_from_user, copy_words_to_user};
use crate::mm_tests::support::{BASE, Space, resident};
use crate::task::{self, JoinHandle};
use crate::testing::Unmet;
use crate::vm::{Machine, activate, mm, new_space};

/// Pages of the buffer that most scenarios use: 4 MiB.
pub(super) const PAGES: u64 = 1024;
/// Repetitions of those that repeat.
pub(super) const TIMES: u64 = 10;

/// The devices that a variant of the scenarios runs on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fixture {
    devices: [Place; 2],
}

/// Devices whose memory no CPU can map.
pub(super) const PRIVATE: Fixture = Fixture { devices: [Place::device(0), Place::device(1)] };
/// Devices whose memory CPUs map like RAM.
pub(super) const COHERENT: Fixture = Fixture { devices: [Place::coherent(2), Place::coherent(3)] };

impl From<DmirrorError> for Unmet {
    fn from(error: DmirrorError) -> Self {
        Self::Failed(alloc::format!("a command of the device failed: {error:?}"))
    }
}

impl Fixture {
    /// The CPU maps this fixture's memory.
    pub(super) const fn is_coherent(self) -> bool {
        self.devices[0].is_coherent()
    }

    /// The memory of the first or second device.
    pub(super) const fn place(self, which: usize) -> Place {
        self.devices[which]
    }

    /// Opens the first or second device for a space.
    pub(super) fn open(self, which: usize, space: &Space) -> Result<Dmirror<Machine>, DmirrorError> {
        Dmirror::open(self.devices[which], space)
    }

    /// Pages in use on the first or second device.
    pub(super) fn resident(self, which: usize) -> u64 {
        self.devices[which].device_number().map_or(0, resident)
    }

    /// What a page on this device is in the device's own snapshot.
    pub(super) const fn local(self) -> Snap {
        if self.is_coherent() { Snap::DEV_COHERENT_LOCAL } else { Snap::DEV_PRIVATE_LOCAL }
    }
}

/// Runs a scenario in a new address space that is loaded; afterwards no page is left on a device.
pub(super) fn run(
    fixture: Fixture,
    scenario: fn(Fixture, &Arc<Space>) -> Result<(), Unmet>,
) -> Result<(), Unmet> {
    let space = Arc::new(new_space()?);
    let active = activate(&space);
    let result = scenario(fixture, &space);
    drop(active);
    drop(space);
    result?;
    crate::check_eq!((fixture.resident(0), fixture.resident(1)), (0, 0), "pages left on the devices");
    mm().audit().map_err(|error| Unmet::Failed(alloc::format!("{error}")))
}

/// Runs `work` as a process of its own: a thread with `space` loaded, which ends with it.
pub(super) fn as_process(
    space: Space,
    work: impl FnOnce(&Space) -> Result<(), Unmet> + Send + 'static,
) -> JoinHandle<Result<(), Unmet>> {
    task::spawn("process", move || {
        let active = activate(&space);
        let result = work(&space);
        drop(active);
        result
    })
}

/// `pages` pages from the address where the scenarios map their buffer.
pub(super) const fn buffer(pages: u64) -> VaRange {
    VaRange::new(BASE, pages * PAGE_SIZE)
}

/// The pages of `range` from `first` on.
pub(super) const fn part(range: VaRange, first: u64, pages: u64) -> VaRange {
    VaRange::new(range.start.0 + first * PAGE_SIZE, pages * PAGE_SIZE)
}

/// Maps a buffer of `pages` pages for reading and writing.
pub(super) fn map(space: &Space, pages: u64, advice: HugeAdvice) -> Result<VaRange, Unmet> {
    let range = buffer(pages);
    space.space().map_anon(range, Prot::RW, advice)?;
    Ok(range)
}

/// Words that count the 32-bit numbers of a buffer: word `i` holds the numbers `2i` and `2i + 1`, each plus `add`.
pub(super) const fn ints(word: u64, add: u32) -> u64 {
    let low = (2 * word) as u32;
    (low.wrapping_add(add)) as u64 | ((low + 1).wrapping_add(add) as u64) << 32
}

/// The program writes its numbers to the pages of `range`, counted from `start` on.
pub(super) fn fill_from(start: u64, range: VaRange, add: u32) -> Result<(), Unmet> {
    let mut words = [0; PAGE_WORDS];
    for page in (range.start.0..range.end.0).step_by(PAGE_SIZE as usize) {
        let first = (page - start) / 8;
        for (i, word) in words.iter_mut().enumerate() {
            *word = ints(first + i as u64, add);
        }
        copy_words_to_user(page, &words)?;
    }
    Ok(())
}

/// The program writes its numbers to a whole buffer.
pub(super) fn fill(range: VaRange) -> Result<(), Unmet> {
    fill_from(range.start.0, range, 0)
}

/// The program reads the pages of `range`, which hold the numbers counted from `start` on, each plus `add`.
pub(super) fn check_from(start: u64, range: VaRange, add: u32) -> Result<(), Unmet> {
    expect(range, |at| ints((at - start) / 8, add))
}

/// The program reads a whole buffer.
pub(super) fn check(range: VaRange) -> Result<(), Unmet> {
    check_from(range.start.0, range, 0)
}

/// The program reads zeros.
pub(super) fn check_zero(range: VaRange) -> Result<(), Unmet> {
    expect(range, |_| 0)
}

fn expect(range: VaRange, expected: impl Fn(u64) -> u64) -> Result<(), Unmet> {
    let mut words = [0; PAGE_WORDS];
    for page in (range.start.0..range.end.0).step_by(PAGE_SIZE as usize) {
        copy_words_from_user(&mut words, page)?;
        for (i, &word) in words.iter().enumerate() {
            let at = page + i as u64 * 8;
            crate::check_eq!(word, expected(at), "at {at:#x}");
        }
    }
    Ok(())
}

/// Lends `f` memory of `pages` pages to bring data from and to.
pub(super) fn with_bounce<R>(pages: u64, f: impl FnOnce(&mut [u64]) -> R) -> R {
    f(&mut alloc::vec![0; pages as usize * PAGE_WORDS])
}

/// A command that reads finds the numbers that a buffer from `start` on was filled with, each plus `add`.
pub(super) fn device_finds(
    start: u64,
    range: VaRange,
    add: u32,
    command: impl FnOnce(&mut [u64]) -> Result<Done, DmirrorError>,
) -> Result<Done, Unmet> {
    device_expects(range, |at| ints((at - start) / 8, add), command)
}

/// A command that reads finds zeros.
pub(super) fn device_finds_zeros(
    range: VaRange,
    command: impl FnOnce(&mut [u64]) -> Result<Done, DmirrorError>,
) -> Result<Done, Unmet> {
    device_expects(range, |_| 0, command)
}

/// A command that reads finds `expected` of each word's address.
pub(super) fn device_expects(
    range: VaRange,
    expected: impl Fn(u64) -> u64,
    command: impl FnOnce(&mut [u64]) -> Result<Done, DmirrorError>,
) -> Result<Done, Unmet> {
    with_bounce(range.nr_pages(), |words| {
        words.fill(!0);
        let done = command(words)?;
        for (i, &word) in words.iter().enumerate() {
            let at = range.start.0 + i as u64 * 8;
            crate::check_eq!(word, expected(at), "the device at {at:#x}");
        }
        Ok(done)
    })
}

/// The device writes the numbers of the pages of `range`, counted from its start, each plus `add`.
pub(super) fn device_writes(
    device: &Dmirror<Machine>,
    range: VaRange,
    add: u32,
) -> Result<Result<Done, DmirrorError>, Unmet> {
    with_bounce(range.nr_pages(), |words| {
        for (i, word) in words.iter_mut().enumerate() {
            *word = ints(i as u64, add);
        }
        Ok(device.write(range.start, words))
    })
}

/// Moves a filled buffer to the device; all of it is found there.
pub(super) fn to_device(device: &Dmirror<Machine>, range: VaRange) -> Result<(), Unmet> {
    let done = device_finds(range.start.0, range, 0, |to| device.migrate_to_device(range.start, to))?;
    crate::check_eq!(done.cpages, range.nr_pages());
    Ok(())
}

/// A command that moves `range` to the device, with its result alone.
pub(super) fn try_to_device(device: &Dmirror<Machine>, range: VaRange) -> Result<Done, DmirrorError> {
    with_bounce(range.nr_pages(), |words| device.migrate_to_device(range.start, words))
}

/// The device's snapshot of `range`.
pub(super) fn snapshot(device: &Dmirror<Machine>, range: VaRange) -> Result<Vec<Snap>, Unmet> {
    let mut bytes = alloc::vec![0; range.nr_pages() as usize];
    device.snapshot(range.start, &mut bytes)?;
    Ok(bytes.into_iter().map(Snap::from_bits_retain).collect())
}

/// All of `snaps` are `expected`.
pub(super) fn all_are(snaps: &[Snap], expected: Snap) -> Result<(), Unmet> {
    for (page, snap) in snaps.iter().enumerate() {
        crate::check_eq!(*snap, expected, "page {page}");
    }
    Ok(())
}
