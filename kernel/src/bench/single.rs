//! Single operations: each row is one operation, measured a few times from the outside, touch or call included.

use farpage_mm::trace::Tracing;
use farpage_mm::{
    AddressSpace, Entry, HugeAdvice, Need, Order, PAGE_SIZE, PMD_SIZE, Place, Prot, RemapFlags, RemapTarget,
    VaRange, Vaddr,
};
use ktest::record;

use super::samples::{Raw, Samples, raw_ns};
use super::{Stop, counted};
use crate::console;
use crate::measure::measure;
use crate::vm::user::{UserFault, user_fill, user_touch_read, user_write_u64};
use crate::vm::{Machine, activate, clone_space, mm, new_space, trace};

/// One operation.
pub(super) struct Row {
    /// What people call it.
    pub(super) name: &'static str,
    /// The most that may go beyond the data, in instructions.
    goal: Option<u64>,
    /// The data itself.
    raw: Raw,
    measure: fn(&AddressSpace<Machine>, &mut Samples) -> Result<(), Stop>,
}

const DEV: Place = Place::device(0);
const BASE: u64 = 0x10_0000_0000;
/// Repetitions with 2 MiB pages.
const HUGE: u64 = 8;
/// 2 MiB pages of the rows that have many at once.
const MANY: u64 = 16;
/// Repetitions with 4 KiB pages.
const SMALL: u64 = 256;

const HUGE_CLEAR: Raw = Raw::Clear { order: Order::PMD, count: 1 };
const SMALL_CLEAR: Raw = Raw::Clear { order: Order::BASE, count: 1 };
const HUGE_IN: Raw = Raw::In { order: Order::PMD, count: 1 };
const HUGE_OUT: Raw = Raw::Out { order: Order::PMD, count: 1 };

/// All rows, in the order in which they are shown.
pub(super) static ROWS: &[Row] = &[
    Row { name: "first touch, 2 MiB", goal: Some(3000), raw: HUGE_CLEAR, measure: first_touch_huge },
    Row {
        name: "first touch, 4 KiB, new table",
        goal: Some(900),
        raw: Raw::Clear { order: Order::BASE, count: 2 },
        measure: first_touch_new_table,
    },
    Row {
        name: "first touch, 4 KiB, table present",
        goal: Some(700),
        raw: SMALL_CLEAR,
        measure: first_touch_small,
    },
    Row { name: "first read, 4 KiB (zero page)", goal: None, raw: Raw::None, measure: zero_page },
    Row {
        name: "fault-back, 2 MiB, by a read",
        goal: Some(3000),
        raw: HUGE_OUT,
        measure: |s, m| fault_back_huge(s, m, user_touch_read),
    },
    Row {
        name: "fault-back, 2 MiB, by a write",
        goal: Some(3000),
        raw: HUGE_OUT,
        measure: |s, m| fault_back_huge(s, m, touch_write),
    },
    Row {
        name: "fault-back, 4 KiB",
        goal: Some(700),
        raw: Raw::Out { order: Order::BASE, count: 1 },
        measure: fault_back_small,
    },
    Row {
        name: "fault-back, 4 KiB, recorded",
        goal: Some(760),
        raw: Raw::Out { order: Order::BASE, count: 1 },
        measure: |s, m| recorded(Tracing::Units, || fault_back_small(s, m)),
    },
    Row {
        name: "fault-back, 4 KiB, every step recorded",
        goal: None,
        raw: Raw::Out { order: Order::BASE, count: 1 },
        measure: |s, m| recorded(Tracing::Steps, || fault_back_small(s, m)),
    },
    Row {
        name: "fault-back, 1 MiB left of 2 MiB",
        goal: Some(5000),
        raw: Raw::Out { order: Order::new(8), count: 1 },
        measure: fault_back_half,
    },
    Row {
        name: "to device, 2 MiB",
        goal: Some(4000),
        raw: HUGE_IN,
        measure: |s, m| migrate(s, m, HugeAdvice::Huge, 1, true),
    },
    Row {
        name: "to device, 512 x 4 KiB",
        goal: Some(512 * 400),
        raw: Raw::In { order: Order::BASE, count: 512 },
        measure: |s, m| migrate(s, m, HugeAdvice::NoHuge, 1, true),
    },
    Row {
        name: "to device, 512 x 4 KiB, recorded",
        goal: None,
        raw: Raw::In { order: Order::BASE, count: 512 },
        measure: |s, m| recorded(Tracing::Units, || migrate(s, m, HugeAdvice::NoHuge, 1, true)),
    },
    Row { name: "to device, hole of 2 MiB", goal: None, raw: HUGE_CLEAR, measure: hole },
    Row {
        name: "to system, 2 MiB, by call",
        goal: None,
        raw: HUGE_OUT,
        measure: |s, m| migrate(s, m, HugeAdvice::Huge, 1, false),
    },
    Row {
        name: "to system, 512 x 4 KiB, by call",
        goal: None,
        raw: Raw::Out { order: Order::BASE, count: 512 },
        measure: |s, m| migrate(s, m, HugeAdvice::NoHuge, 1, false),
    },
    Row {
        name: "to device, 16 x 2 MiB in one call",
        goal: Some(MANY * 2500),
        raw: Raw::In { order: Order::PMD, count: MANY as u32 },
        measure: |s, m| migrate(s, m, HugeAdvice::Huge, MANY, true),
    },
    Row {
        name: "to system, 16 x 2 MiB in one call",
        goal: Some(MANY * 2500),
        raw: Raw::Out { order: Order::PMD, count: MANY as u32 },
        measure: |s, m| migrate(s, m, HugeAdvice::Huge, MANY, false),
    },
    Row {
        name: "alloc and free of 2 MiB on the device",
        goal: Some(300),
        raw: Raw::None,
        measure: alloc_and_free,
    },
    Row { name: "protect 2 MiB on the device", goal: Some(1500), raw: Raw::None, measure: protect },
    Row { name: "remap 2 MiB on the device", goal: Some(2000), raw: Raw::None, measure: remap },
    Row { name: "clone of 16 x 2 MiB on the device", goal: Some(20_000), raw: Raw::None, measure: clone },
    Row {
        name: "split of a present 2 MiB mapping (1 page unmapped)",
        goal: None,
        raw: Raw::None,
        measure: |s, m| unmap_part(s, m, 0, false),
    },
    Row {
        name: "unmap half of 2 MiB on the device",
        goal: Some(6000),
        raw: Raw::None,
        measure: |s, m| unmap_part(s, m, PMD_SIZE / 2, true),
    },
    Row {
        name: "unmap one page of 2 MiB on the device",
        goal: None,
        raw: Raw::None,
        measure: |s, m| unmap_part(s, m, PAGE_SIZE, true),
    },
    Row {
        name: "unmap 2 MiB on the device",
        goal: None,
        raw: Raw::None,
        measure: |s, m| unmap_whole(s, m, 1),
    },
    Row {
        name: "unmap 16 x 2 MiB on the device",
        goal: Some(15_000),
        raw: Raw::None,
        measure: |s, m| unmap_whole(s, m, MANY),
    },
];

/// Measures one row and prints it.
pub(super) fn run(row: &Row, wall: bool) -> Result<(), Stop> {
    let mut samples = Samples::default();
    let space = new_space()?;
    let active = activate(&space);
    let counting = counted::begin();
    let result = (row.measure)(&space, &mut samples);
    counted::end(row.name, counting);
    drop(active);
    drop(space);
    result?;
    let sum = samples.sum();
    let n = samples.len();
    let times = if wall { Some((samples.median_ns(), raw_ns(row.raw)?)) } else { None };
    console::with(|out| {
        let _ = match (times, row.goal) {
            (Some((median, copy)), _) => {
                record!(out, "bench", name = row.name, n = n, ns_median = median, ns_copy = copy)
            }
            (None, Some(goal)) => {
                record!(out, "bench", name = row.name, total = sum.ticks, bulk = sum.bulk, n = n, goal = goal)
            }
            (None, None) => record!(out, "bench", name = row.name, total = sum.ticks, bulk = sum.bulk, n = n),
        };
    });
    Ok(())
}

/// `n` times 2 MiB at [`BASE`].
fn map(space: &AddressSpace<Machine>, n: u64, advice: HugeAdvice) -> Result<VaRange, Stop> {
    let range = VaRange::new(BASE, n * PMD_SIZE);
    space.space().map_anon(range, Prot::RW, advice)?;
    Ok(range)
}

/// As [`map`], every word written.
fn filled(space: &AddressSpace<Machine>, n: u64, advice: HugeAdvice) -> Result<VaRange, Stop> {
    let range = map(space, n, advice)?;
    user_fill(range.start.0, range.len() / 8, 0x5a)?;
    Ok(range)
}

/// As [`filled`], then moved to the device.
fn on_device(space: &AddressSpace<Machine>, n: u64, advice: HugeAdvice) -> Result<VaRange, Stop> {
    let range = filled(space, n, advice)?;
    to(space, range, DEV)?;
    Ok(range)
}

fn to(space: &AddressSpace<Machine>, range: VaRange, place: Place) -> Result<(), Stop> {
    let report = space.space().migrate(range, place)?;
    if report.failed_pages() == 0 { Ok(()) } else { Err(Stop::DoesNotFit("not everything could be moved")) }
}

fn pages(range: VaRange, step: u64) -> impl Iterator<Item = u64> {
    (range.start.0..range.end.0).step_by(step as usize)
}

fn first_touch_huge(space: &AddressSpace<Machine>, samples: &mut Samples) -> Result<(), Stop> {
    let range = map(space, HUGE + 1, HugeAdvice::Huge)?;
    for (i, at) in pages(range, PMD_SIZE).enumerate() {
        let (touched, cost) = measure(|| touch_write(at));
        touched?;
        if i > 0 {
            samples.push(cost); // the first also made the tables above
        }
    }
    Ok(())
}

fn first_touch_new_table(space: &AddressSpace<Machine>, samples: &mut Samples) -> Result<(), Stop> {
    let range = map(space, HUGE + 1, HugeAdvice::NoHuge)?;
    for (i, at) in pages(range, PMD_SIZE).enumerate() {
        let (touched, cost) = measure(|| touch_write(at));
        touched?;
        if i > 0 {
            samples.push(cost);
        }
    }
    Ok(())
}

fn first_touch_small(space: &AddressSpace<Machine>, samples: &mut Samples) -> Result<(), Stop> {
    let range = map(space, 1, HugeAdvice::NoHuge)?;
    touch_write(range.start.0)?;
    for at in pages(range, PAGE_SIZE).skip(1).take(SMALL as usize) {
        let (touched, cost) = measure(|| touch_write(at));
        touched?;
        samples.push(cost);
    }
    Ok(())
}

fn zero_page(space: &AddressSpace<Machine>, samples: &mut Samples) -> Result<(), Stop> {
    let range = map(space, 1, HugeAdvice::NoHuge)?;
    user_touch_read(range.start.0)?;
    for at in pages(range, PAGE_SIZE).skip(1).take(SMALL as usize) {
        let (touched, cost) = measure(|| user_touch_read(at));
        touched?;
        samples.push(cost);
    }
    Ok(())
}

type Touch = fn(u64) -> Result<(), UserFault>;

/// A plain store. (A locked read-modify-write, which needs no value, faults twice under TCG: it loads first.)
#[inline(always)]
fn touch_write(at: u64) -> Result<(), UserFault> {
    user_write_u64(at, 0x5a)
}

fn fault_back_huge(space: &AddressSpace<Machine>, samples: &mut Samples, touch: Touch) -> Result<(), Stop> {
    let range = on_device(space, HUGE, HugeAdvice::Huge)?;
    for at in pages(range, PMD_SIZE) {
        let (touched, cost) = measure(|| touch(at));
        touched?;
        samples.push(cost);
        if !matches!(space.entry_at(Vaddr(at)).1, Entry::Leaf(_)) {
            return Err(Stop::Wrong("the page did not come back"));
        }
    }
    Ok(())
}

fn fault_back_small(space: &AddressSpace<Machine>, samples: &mut Samples) -> Result<(), Stop> {
    let range = on_device(space, 1, HugeAdvice::NoHuge)?;
    for at in pages(range, PAGE_SIZE).take(SMALL as usize) {
        let (touched, cost) = measure(|| user_touch_read(at));
        touched?;
        samples.push(cost);
    }
    Ok(())
}

/// What it costs while it is recorded, in a ring that is too small for it.
fn recorded(level: Tracing, work: impl FnOnce() -> Result<(), Stop>) -> Result<(), Stop> {
    let recorded = trace::record(level, 256, work).map_err(|_| Stop::DoesNotFit("no memory for a trace"))?;
    if recorded.records.len() < 256 {
        return Err(Stop::Wrong("not everything was recorded"));
    }
    recorded.result
}

fn fault_back_half(space: &AddressSpace<Machine>, samples: &mut Samples) -> Result<(), Stop> {
    let range = on_device(space, HUGE, HugeAdvice::Huge)?;
    for at in pages(range, PMD_SIZE) {
        space.space().unmap(VaRange::new(at, PMD_SIZE / 2))?;
        let (touched, cost) = measure(|| user_touch_read(at + PMD_SIZE / 2));
        touched?;
        samples.push(cost);
    }
    Ok(())
}

/// One call for `n` times 2 MiB, there or back.
fn migrate(
    space: &AddressSpace<Machine>,
    samples: &mut Samples,
    advice: HugeAdvice,
    n: u64,
    there: bool,
) -> Result<(), Stop> {
    let range = filled(space, n, advice)?;
    for round in 0..=(HUGE / n).max(2) {
        let (moved, cost) = measure(|| to(space, range, DEV));
        moved?;
        let (back, cost_back) = measure(|| to(space, range, Place::RAM));
        back?;
        if round > 0 {
            samples.push(if there { cost } else { cost_back }); // the first round makes descriptors
        }
    }
    Ok(())
}

fn hole(space: &AddressSpace<Machine>, samples: &mut Samples) -> Result<(), Stop> {
    let range = map(space, HUGE + 1, HugeAdvice::Huge)?;
    for (i, at) in pages(range, PMD_SIZE).enumerate() {
        let (moved, cost) = measure(|| to(space, VaRange::new(at, PMD_SIZE), DEV));
        moved?;
        if i > 0 {
            samples.push(cost);
        }
    }
    Ok(())
}

/// Unmaps `len` bytes from the start of each 2 MiB, or its middle page when `len` is 0.
fn unmap_part(
    space: &AddressSpace<Machine>,
    samples: &mut Samples,
    len: u64,
    device: bool,
) -> Result<(), Stop> {
    let range = if device {
        on_device(space, HUGE + 1, HugeAdvice::Huge)?
    } else {
        filled(space, HUGE + 1, HugeAdvice::Huge)?
    };
    for (i, at) in pages(range, PMD_SIZE).enumerate() {
        let part = if len == 0 { VaRange::new(at + PMD_SIZE / 2, PAGE_SIZE) } else { VaRange::new(at, len) };
        let (done, cost) = measure(|| space.space().unmap(part));
        done?;
        if i > 0 {
            samples.push(cost);
        }
    }
    Ok(())
}

/// Unmaps `n` times 2 MiB in one call.
fn unmap_whole(space: &AddressSpace<Machine>, samples: &mut Samples, n: u64) -> Result<(), Stop> {
    let rounds = if n == 1 { HUGE } else { 3 };
    for _ in 0..rounds {
        let range = on_device(space, n, HugeAdvice::Huge)?;
        let (done, cost) = measure(|| space.space().unmap(range));
        done?;
        samples.push(cost);
    }
    Ok(())
}

/// A folio of device memory, taken and given back, with its descriptor and frame map.
fn alloc_and_free(_: &AddressSpace<Machine>, samples: &mut Samples) -> Result<(), Stop> {
    for round in 0..=HUGE {
        let (folio, cost) = measure(|| mm().alloc_folio(DEV, Order::PMD, Need::User).map(drop));
        folio?;
        if round > 0 {
            samples.push(cost);
        }
    }
    Ok(())
}

/// Takes the write permission of one page after the other, which share a VMA before and after.
fn protect(space: &AddressSpace<Machine>, samples: &mut Samples) -> Result<(), Stop> {
    let range = on_device(space, HUGE + 1, HugeAdvice::Huge)?;
    for (i, at) in pages(range, PMD_SIZE).enumerate() {
        let (done, cost) = measure(|| space.space().protect(VaRange::new(at, PMD_SIZE), Prot::READ));
        done?;
        if i > 0 {
            samples.push(cost);
        }
    }
    Ok(())
}

/// Moves one page after the other, huge as it is, to another gigabyte.
fn remap(space: &AddressSpace<Machine>, samples: &mut Samples) -> Result<(), Stop> {
    let range = on_device(space, HUGE + 1, HugeAdvice::Huge)?;
    for (i, at) in pages(range, PMD_SIZE).enumerate() {
        let target = RemapTarget { addr: Vaddr(at + (1 << 30)), len: PMD_SIZE };
        let (done, cost) =
            measure(|| space.space().remap(VaRange::new(at, PMD_SIZE), target, RemapFlags::empty()));
        done?;
        if i > 0 {
            samples.push(cost); // the first made the tables there
        }
    }
    Ok(())
}

fn clone(space: &AddressSpace<Machine>, samples: &mut Samples) -> Result<(), Stop> {
    on_device(space, MANY, HugeAdvice::Huge)?;
    for round in 0..4 {
        let (child, cost) = measure(|| clone_space(space));
        drop(child?);
        if round > 0 {
            samples.push(cost);
        }
    }
    Ok(())
}
