//! A device whose copies can be made to fail, for tests. Devices from the second on are behind it; the first is as it is,
//! so that what is measured there pays nothing for this.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use farpage_mm::{CopyEngine, CopyOp, Fence, Folio, PagemapOps};

use super::Machine;
use super::devmem::Device;

/// After so many copies ...
static SKIP: AtomicU64 = AtomicU64::new(0);
/// ... so many fail.
static TIMES: AtomicU64 = AtomicU64::new(0);

/// After `skip` copies by engines that can be told to, the next `times` fail.
pub(crate) fn fail_copies(skip: u64, times: u64) {
    SKIP.store(skip, Relaxed);
    TIMES.store(times, Relaxed);
}

/// A device and its failures.
#[derive(Debug)]
pub(super) struct Rigged(pub(super) &'static Device);

fn is_to_fail() -> bool {
    let count = |n: &AtomicU64| n.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok();
    !count(&SKIP) && count(&TIMES)
}

impl CopyEngine for Rigged {
    fn submit(&self, ops: &[CopyOp]) -> Fence {
        let mut failed = 0;
        for (i, op) in ops.iter().enumerate() {
            if is_to_fail() || !self.0.run(op) {
                failed |= 1 << i;
            }
        }
        Fence::Done { failed }
    }
    fn poll(&self, fence: Fence) -> Option<u32> {
        self.0.poll(fence)
    }
    fn wait(&self, fence: Fence) -> u32 {
        self.0.wait(fence)
    }
    fn cancel(&self, fence: Fence) -> u32 {
        self.0.cancel(fence)
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
