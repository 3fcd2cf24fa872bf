//! What a run is made of: a list of [`Step`]s, each an [`Action`] with its own seed, so that taking one out of the list
//! leaves the disturbances and values of the others as they were.

use alloc::vec::Vec;

use crate::exercise::rng::Rng;
use crate::types::{PAGE_SIZE, VaRange};

/// Pages of a space that actions know: two arenas of 1024 pages, each at a border that matters.
pub const PAGES: u64 = 2048;
/// The first arena lies across a 1 GiB border, so across two PMD tables.
const LOW: u64 = 0x8000_0000 - 512 * PAGE_SIZE;
/// The second is under another PGD entry.
const HIGH: u64 = 0x7f80_0000_0000;

/// A seed and an action.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step(pub u32, pub Action);

/// One action. Pages are numbered from 0 to [`PAGES`]; ranges are cut at the end of their arena, numbers of spaces and CPUs
/// taken as far as there are any.
#[allow(
    missing_docs,
    reason = "the fields are what their names say, and the exceptions stand at the variants"
)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Maps anonymous memory. `prot`: bits of [`crate::Prot`].
    Map { space: u8, start: u16, len: u16, prot: u8, huge: bool },
    /// Unmaps.
    Unmap { space: u8, start: u16, len: u16 },
    /// Advises huge pages or small ones.
    Advise { space: u8, start: u16, len: u16, huge: bool },
    /// Advises on contents. `advice`: 0 for `DontNeed`, 1 `Free`, 2 `Cold`, 3 `PageOut`.
    Contents { space: u8, start: u16, len: u16, advice: u8 },
    /// Changes what is allowed. `prot`: bits of [`crate::Prot`].
    Protect { space: u8, start: u16, len: u16, prot: u8 },
    /// Reads a word of a page.
    Read { cpu: u8, space: u8, page: u16 },
    /// Writes a word of a page.
    Write { cpu: u8, space: u8, page: u16 },
    /// Writes a word of every page.
    Fill { cpu: u8, space: u8, start: u16, len: u16 },
    /// Reads a word of every page.
    Check { cpu: u8, space: u8, start: u16, len: u16 },
    /// Migrates. `to`: 0 for RAM, others for the devices.
    Migrate { space: u8, start: u16, len: u16, to: u8 },
    /// Collects, goes on for `phases` phases, does something meanwhile to `gone.1` pages from page `gone.0` of the range, and
    /// then either finishes or drops the migration. `what`: 0 to unmap, 1 to forbid everything, 2 to allow reads alone, 3 to
    /// allow writes, 4 for `DontNeed`, 5 for `Free`, 6 to 8 to begin to track writes, to clear soft-dirty, to end tracking, 9 to
    /// clone the space, 10 to move the mapping, 11 to end the space, 12 to evict, 13 for a snapshot, 14 to migrate, 15 to collapse,
    /// 16 to take a device out, 17 to unmap for another object.
    Park { space: u8, start: u16, len: u16, to: u8, phases: u8, what: u8, gone: (u16, u16), finish: bool },
    /// Space `to` ends, and a clone of `from` takes its place.
    Fork { from: u8, to: u8 },
    /// Maps one of two objects from its page `index` on, shared or privately.
    MapObject { space: u8, start: u16, len: u16, prot: u8, object: u8, index: u16, shared: bool },
    /// A new, empty object takes the place of an old one.
    Renew { object: u8 },
    /// Moves a mapping to page `to`, where it is `new_len` pages long; `keep` leaves an empty one behind.
    Remap { space: u8, start: u16, len: u16, to: u16, new_len: u16, keep: bool },
    /// Finds out what is written: `what` is 0 to clear soft-dirty, 1 to begin to track writes, 2 to end it.
    Track { space: u8, start: u16, len: u16, what: u8 },
    /// A device begins to mirror a space, or ends it.
    Mirror { space: u8, device: u8 },
    /// The device that mirrors a space reads (0), writes (1), borrows for atomic access (2), or takes a snapshot (3).
    Device { space: u8, start: u16, len: u16, what: u8 },
    /// Empties a range of a device's frames.
    Evict { device: u8, start: u16, len: u16 },
    /// Empties frames of a device, and a few others, that are drawn at random: parts of folios, free ones, some twice.
    EvictFrames { device: u8, count: u8 },
    /// Takes a device out, and puts it in again.
    Replug { device: u8 },
    /// Makes 2 MiB pages of small ones: in RAM, or where they lie on a device.
    Collapse { space: u8, start: u16, len: u16, device: bool },
    /// Pins pages until the next release; `long` leaves no memory of a device pinned.
    PinPages { space: u8, start: u16, len: u16, write: bool, long: bool },
    /// As `Migrate`, from everywhere; `fault` brings in what is absent, `write` makes it writable too.
    Fetch { space: u8, start: u16, len: u16, to: u8, fault: bool, write: bool },
    /// Takes folios until only `keep` frames are free. `reserve`: those under the low-water mark too.
    Hold { place: u8, order: u8, keep: u16, reserve: bool },
    /// Takes a reference of the folio at a page.
    Pin { space: u8, page: u16 },
    /// Gives back all that was held and pinned.
    Release,
    /// Allocation failures in the next action.
    FailAlloc { sites: u8, min_order: u8, skip: u16, times: u16 },
    /// Copy failures in the next action.
    FailCopy { skip: u16, times: u16 },
    /// Speculation, evictions and the accesses of other CPUs.
    Chaos { n: u8 },
    /// A CPU loads another space.
    Switch { cpu: u8, space: u8 },
    /// A space ends, an empty one takes its place.
    Exit { space: u8 },
}

/// The address of a page.
#[must_use]
pub const fn addr(page: u16) -> u64 {
    let page = page as u64 % PAGES;
    if page < PAGES / 2 { LOW + page * PAGE_SIZE } else { HIGH + (page - PAGES / 2) * PAGE_SIZE }
}

/// The addresses of `len` pages from `start`, inside one arena; at least one page.
#[must_use]
pub fn range(start: u16, len: u16) -> VaRange {
    let at = u64::from(start) % (PAGES / 2);
    let len = u64::from(len).clamp(1, PAGES / 2 - at);
    VaRange::new(addr(start), len * PAGE_SIZE)
}

/// Cases with even seeds are mostly about huge pages, the others mostly about small ones and crooked borders.
#[must_use]
pub const fn about_huge(seed: u64) -> bool {
    seed.is_multiple_of(2)
}

/// `n` steps.
#[must_use]
pub fn generate(seed: u64, n: usize) -> Vec<Step> {
    let huge = about_huge(seed);
    let mut rng = Rng::new(seed);
    let mut steps = Vec::with_capacity(n);
    while steps.len() < n {
        let seed = rng.next() as u32;
        let action = action(&mut rng, huge);
        if let Action::Device { space, start, len, .. } = action
            && rng.one_in(2)
        {
            // The same seed aims at the same pages: they are written, and brought to some device before this one uses them.
            let to = 1 + rng.below(3) as u8;
            if rng.one_in(3) {
                steps.push(Step(seed, Action::Mirror { space, device: rng.below(3) as u8 }));
            }
            steps.push(Step(seed, Action::Fill { cpu: space, space, start, len: len.min(9) }));
            steps.push(Step(seed, Action::Migrate { space, start, len, to }));
        }
        steps.push(Step(seed, action));
        if let Action::Device { space, start, len, what: 2 } = action {
            steps.push(Step(seed, Action::Device { space, start, len, what: 3 }));
        }
        // What holds memory back is released soon, so that audits can run.
        if matches!(action, Action::Hold { .. } | Action::Pin { .. } | Action::PinPages { .. }) {
            for _ in 0..rng.below(5) {
                steps.push(Step(rng.next() as u32, self::action(&mut rng, huge)));
            }
            steps.push(Step(0, Action::Release));
        }
    }
    steps.truncate(n);
    steps
}

/// A place to begin at: mostly at or near the start of a huge page.
fn start(rng: &mut Rng, huge: bool) -> u16 {
    let block = rng.below(PAGES / 512) * 512;
    let at = match rng.below(if huge { 30 } else { 8 }) {
        8.. => 0,
        0..=4 => 0,
        5 => rng.below(4),
        6 => rng.pick(&[1, 64, 128, 255, 256, 257, 384, 448, 508, 511]),
        _ => rng.below(512),
    };
    (block + at) as u16
}

fn len(rng: &mut Rng, huge: bool) -> u16 {
    let len = match rng.below(if huge { 30 } else { 8 }) {
        8.. => 512 * (1 + rng.below(2)),
        0 => 1,
        1 => 1 + rng.below(8),
        2 => rng.pick(&[64, 128, 256, 511, 513]),
        3..=5 => 512 * (1 + rng.below(2)),
        _ => 1 + rng.below(700),
    };
    len as u16
}

fn action(rng: &mut Rng, huge: bool) -> Action {
    let space = rng.below(8) as u8;
    let cpu = rng.below(8) as u8;
    let (start, len) = (start(rng, huge), len(rng, huge));
    let swept = if huge { len.min(8) } else { len };
    let page = if rng.one_in(2) { start } else { rng.below(PAGES) as u16 };
    let to = rng.pick(&[0, 0, 0, 1, 1, 1, 2, 3]);
    let prot = rng.pick(&[3, 3, 3, 3, 3, 7, 1, 0]);
    let few = len.min(1 + rng.below(9) as u16);
    match rng.below(150) {
        0..=13 => Action::Map { space, start, len, prot, huge: !rng.one_in(if huge { 20 } else { 3 }) },
        14..=20 => Action::Unmap { space, start, len },
        21..=22 => Action::Advise { space, start, len, huge: rng.one_in(2) },
        23..=30 => Action::Read { cpu, space, page },
        31..=44 => Action::Write { cpu, space, page },
        45..=49 => Action::Fill { cpu, space, start, len: swept },
        50..=53 => Action::Check { cpu, space, start, len: swept },
        54..=70 => Action::Migrate { space, start, len, to },
        71..=78 => park(rng, space, start, len, to),
        79..=81 => Action::Hold {
            place: rng.pick(&[0, 0, 1, 2, 3]),
            order: rng.pick(&[0, 0, 4, 9, 9]),
            keep: rng.pick(&[0, 0, 1, 40, 300, 520, 1100]),
            reserve: rng.one_in(3),
        },
        82 => Action::Pin { space, page },
        83..=87 => Action::FailAlloc {
            sites: 1 + rng.below(15) as u8,
            min_order: rng.pick(&[0, 0, 0, 9]),
            skip: rng.pick(&[0, 0, 1, 2, 3, 5, 8, 20, 100]),
            times: rng.pick(&[1, 1, 2, 10, 1000]),
        },
        88..=89 => Action::FailCopy { skip: rng.below(6) as u16, times: rng.pick(&[1, 1, 3, 1000]) },
        90..=92 => Action::Chaos { n: rng.below(60) as u8 },
        93..=94 => Action::Switch { cpu, space },
        95..=96 => Action::Exit { space },
        97..=103 => Action::Protect { space, start, len, prot: rng.pick(&[3, 3, 1, 1, 7, 5, 0, 0]) },
        108..=112 => Action::Fork { from: space, to: rng.below(3) as u8 },
        113..=115 => {
            let index = if rng.one_in(2) { 0 } else { rng.below(1024) as u16 };
            Action::MapObject { space, start, len, prot, object: cpu % 2, index, shared: rng.one_in(2) }
        }
        116 => Action::Renew { object: cpu },
        117..=120 => {
            let to = self::start(rng, huge);
            let new_len = if rng.one_in(4) { self::len(rng, huge) } else { len };
            Action::Remap { space, start, len, to, new_len, keep: rng.one_in(4) }
        }
        121..=124 => Action::Track { space, start, len, what: rng.pick(&[0, 0, 1, 1, 2]) },
        125..=127 => Action::Mirror { space, device: rng.below(3) as u8 },
        128..=132 => {
            let what = rng.below(4) as u8;
            Action::Device { space, start, len: if what == 3 { len } else { few }, what }
        }
        136..=138 => Action::Collapse { space, start, len, device: rng.one_in(2) },
        139..=140 => Action::PinPages { space, start, len: few, write: rng.one_in(2), long: rng.one_in(3) },
        141..=145 => {
            let fault = rng.one_in(2);
            Action::Fetch { space, start, len, to, fault, write: fault && rng.one_in(2) }
        }
        133..=135 => Action::Evict { device: rng.below(3) as u8, start, len },
        146..=148 => Action::EvictFrames { device: rng.below(3) as u8, count: 1 + rng.below(64) as u8 },
        149 if rng.one_in(2) => Action::Replug { device: rng.below(3) as u8 },
        _ => Action::Contents { space, start, len, advice: rng.pick(&[0, 0, 1, 1, 2, 3]) },
    }
}

fn park(rng: &mut Rng, space: u8, start: u16, len: u16, to: u8) -> Action {
    let gone = if rng.one_in(2) { (0, len) } else { (rng.below(600) as u16, 1 + rng.below(300) as u16) };
    let gone = if rng.one_in(3) { (0, 0) } else { gone };
    // Mostly what takes pages away or forbids them.
    let what =
        rng.pick(&[0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 10, 11, 12, 13, 14, 15, 16, 17]);
    Action::Park { space, start, len, to, phases: rng.below(4) as u8, what, gone, finish: rng.one_in(2) }
}
