//! Repetitions of one measurement, and the raw copy to hold them against.

use alloc::vec::Vec;

use farpage_mm::{CopyEngine, CopyOp, Fence, FolioRef, Machine as _, Need, Order, Place};

use super::Stop;
use crate::measure::{Cost, measure, nanoseconds};
use crate::vm::{Machine, devmem, mm};

/// The data that an operation has to move or clear, whoever does it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Raw {
    /// None.
    None,
    /// Clearing `count` pieces of RAM.
    Clear { order: Order, count: u32 },
    /// Copying `count` pieces to the device.
    In { order: Order, count: u32 },
    /// Copying `count` pieces from the device.
    Out { order: Order, count: u32 },
}

/// Costs of the repetitions so far.
#[derive(Debug, Default)]
pub(super) struct Samples(Vec<Cost>);

impl Samples {
    pub(super) fn push(&mut self, cost: Cost) {
        self.0.push(cost);
    }
    pub(super) fn len(&self) -> u64 {
        self.0.len() as u64
    }
    pub(super) fn sum(&self) -> Cost {
        let mut sum = Cost::default();
        self.0.iter().for_each(|&cost| sum += cost);
        sum
    }
    /// Nanoseconds of the median repetition.
    pub(super) fn median_ns(&mut self) -> u64 {
        self.0.sort_unstable_by_key(|cost| cost.ticks);
        nanoseconds(self.0.get(self.0.len() / 2).map_or(0, |cost| cost.ticks))
    }
}

/// Writes to all memory once. The host gives memory to the machine when it is first touched, which takes milliseconds per
/// 2 MiB and would be measured as ours.
pub(super) fn touch_all_memory() {
    let places = (0..devmem::devices().count()).map(Place::device).chain([Place::RAM]);
    for place in places {
        let mut all = Vec::new();
        while let Ok(folio) = mm().alloc_folio(place, Order::PMD, Need::User) {
            match place.device_number().and_then(devmem::device) {
                None => Machine::zero(folio.frame(), Order::PMD),
                Some(device) => {
                    let done = device.run(&CopyOp::Zero { dst: folio.frame(), order: Order::PMD });
                    assert!(done, "device memory of {place} cannot be cleared");
                }
            }
            all.push(folio);
        }
    }
}

/// Repetitions of a raw copy.
const RAW_ROUNDS: usize = 7;

/// The median time of moving the data alone, by the same routine and between the same memories.
pub(super) fn raw_ns(raw: Raw) -> Result<u64, Stop> {
    let mut samples = Samples::default();
    let (order, count) = match raw {
        Raw::None => return Ok(0),
        Raw::Clear { order, count } | Raw::In { order, count } | Raw::Out { order, count } => (order, count),
    };
    let ram = scratch(Place::RAM, order)?;
    for round in 0..=RAW_ROUNDS {
        let cost = match raw {
            Raw::None => return Ok(0),
            Raw::Clear { .. } => measure(|| (0..count).for_each(|_| Machine::zero(ram.frame(), order))).1,
            Raw::In { .. } | Raw::Out { .. } => {
                let far = scratch(Place::device(0), order)?;
                let (src, dst) = if matches!(raw, Raw::In { .. }) { (&ram, &far) } else { (&far, &ram) };
                let op = CopyOp::Copy { src: src.frame(), dst: dst.frame(), order };
                let device = devmem::device(0).ok_or(Stop::DoesNotFit("there is no device"))?;
                measure(|| (0..count).all(|_| device.submit(&[op]) == Fence::Done { failed: 0 })).1
            }
        };
        if round > 0 {
            samples.push(cost); // the first warms up
        }
    }
    Ok(samples.median_ns())
}

fn scratch(place: Place, order: Order) -> Result<FolioRef<Machine>, Stop> {
    mm().alloc_folio(place, order, Need::User).map_err(|_| Stop::DoesNotFit("no free page for the raw copy"))
}
