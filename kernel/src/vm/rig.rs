//! A device whose copies can be made to fail or to be late, for tests. Devices from the second on are behind it; the first is as it is,
//! so that what is measured there pays nothing for this. The knob `fail-copies` reaches that one too ([`super::way`]).

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use farpage_mm::{COPY_LIST, CopyEngine, CopyOp, Fence, Folio, PagemapOps};
use spin::Mutex;

use super::Machine;
use super::devmem::Device;
use super::way::let_first_fail;
use crate::task;

/// After so many copies ...
static SKIP: AtomicU64 = AtomicU64::new(0);
/// ... so many fail.
static TIMES: AtomicU64 = AtomicU64::new(0);

/// After `skip` copies by engines that can be told to, the next `times` fail.
pub(crate) fn fail_copies(skip: u64, times: u64) {
    SKIP.store(skip, Relaxed);
    TIMES.store(times, Relaxed);
}

/// Lists of copies that wait for somebody to do them, in the order in which they came.
static LATE: [Mutex<Option<List>>; 8] = [const { Mutex::new(None) }; 8];
static IS_LATE: AtomicBool = AtomicBool::new(false);
static FENCES: AtomicU64 = AtomicU64::new(0);

/// A list that was submitted while copies are late.
struct List {
    fence: u64,
    device: &'static Device,
    ops: [CopyOp; COPY_LIST],
    len: usize,
    /// What failed, once it is done.
    failed: Option<u32>,
}

/// While this lives, lists of copies are done when [`finish_copy`] says so: whoever waits for one sleeps.
#[must_use = "copies are late only while this lives"]
#[derive(Debug)]
pub(crate) struct LateCopies(());

/// Lets copies be late.
pub(crate) fn late_copies() -> LateCopies {
    IS_LATE.store(true, Relaxed);
    LateCopies(())
}

impl Drop for LateCopies {
    fn drop(&mut self) {
        IS_LATE.store(false, Relaxed);
        assert_eq!(pending_copies().count(), 0, "somebody still waits for a copy");
    }
}

/// The lists that wait, as what [`finish_copy`] takes.
pub(crate) fn pending_copies() -> impl Iterator<Item = u64> {
    let waits = |list: &List| list.failed.is_none().then_some(list.fence);
    LATE.iter().filter_map(move |place| place.lock().as_ref().and_then(waits))
}

/// Does the copies of a list, or lets those fail whose bit in `fail` is set, and wakes who waits for it.
pub(crate) fn finish_copy(fence: u64, fail: u32) {
    for place in &LATE {
        let mut list = place.lock();
        let Some(list) = list.as_mut().filter(|list| list.fence == fence && list.failed.is_none()) else {
            continue;
        };
        let mut failed = 0;
        for (i, op) in list.ops[..list.len].iter().enumerate() {
            if fail & 1 << i != 0 || !list.device.run(op) {
                failed |= 1 << i;
            }
        }
        list.failed = Some(failed);
    }
    task::wake(key(fence));
}

/// What is slept on for a fence: no object's address.
const fn key(fence: u64) -> usize {
    fence as usize * 64
}

fn submit_late(device: &'static Device, ops: &[CopyOp]) -> Fence {
    let fence = FENCES.fetch_add(1, Relaxed) + 1;
    let mut list = List { fence, device, ops: [ops[0]; COPY_LIST], len: ops.len(), failed: None };
    list.ops[..ops.len()].copy_from_slice(ops);
    let free = LATE.iter().find_map(|place| Some(place.lock()).filter(|list| list.is_none()));
    *free.expect("not more lists than there are places") = Some(list);
    Fence::Pending(fence)
}

/// Takes a list out that is done, or any if `whatever`; what failed.
fn take(fence: u64, whatever: bool) -> Option<u32> {
    LATE.iter().find_map(|place| {
        let mut place = place.lock();
        let list =
            place.as_ref().filter(|list| list.fence == fence && (whatever || list.failed.is_some()))?;
        let failed = list.failed.unwrap_or(u32::MAX);
        *place = None;
        Some(failed)
    })
}

/// A device and its failures.
#[derive(Debug)]
pub(super) struct Rigged(pub(super) &'static Device);

/// Whether this copy is one of those that fail.
pub(super) fn is_to_fail() -> bool {
    let count = |n: &AtomicU64| n.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok();
    let fails = !count(&SKIP) && count(&TIMES);
    if TIMES.load(Relaxed) == 0 {
        // That was the last: the first device copies as usual again.
        let_first_fail(false);
    }
    fails
}

impl CopyEngine for Rigged {
    fn submit(&self, ops: &[CopyOp]) -> Fence {
        if IS_LATE.load(Relaxed) {
            return submit_late(self.0, ops);
        }
        let mut failed = 0;
        for (i, op) in ops.iter().enumerate() {
            if is_to_fail() || !self.0.run(op) {
                failed |= 1 << i;
            }
        }
        Fence::Done { failed }
    }
    fn poll(&self, fence: Fence) -> Option<u32> {
        match fence {
            Fence::Done { failed } => Some(failed),
            Fence::Pending(number) => take(number, false),
        }
    }
    fn wait(&self, fence: Fence) -> u32 {
        loop {
            match (self.poll(fence), fence) {
                (Some(failed), _) => return failed,
                (None, Fence::Pending(number)) => {
                    task::wait(key(number), &|| pending_copies().any(|waits| waits == number));
                }
                (None, Fence::Done { .. }) => unreachable!("what is done has failed or not"),
            }
        }
    }
    fn cancel(&self, fence: Fence) -> u32 {
        match fence {
            Fence::Done { failed } => failed,
            Fence::Pending(number) => take(number, true).unwrap_or(u32::MAX),
        }
    }
}

impl PagemapOps<Machine> for Rigged {
    fn folio_split(&self, head: &Folio, tail: Option<&Folio>) {
        self.0.folio_split(head, tail);
    }
    fn engine(&self) -> &dyn CopyEngine {
        self
    }
}
