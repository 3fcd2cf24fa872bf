//! Devices: an owner that notes what it is told, and an engine that copies late, or fails, when it is asked to.

use crate::device::{CopyEngine, CopyOp, Fence, PagemapOps};
use crate::folio::Folio;
use crate::testing::machine::{POISON, Soft, State, state};
use crate::types::{Frame, Order};

impl State {
    /// After `skip` copy operations, the next `times` fail.
    pub(crate) fn fail_copies(&self, skip: u64, times: u64) {
        self.fail_after.set(skip);
        self.fail_times.set(times);
    }

    /// One operation of the copy engine, a page at a time, with other CPUs at work in between. True when it failed.
    fn run_copy(&self, device: usize, op: CopyOp) -> bool {
        let fails = match self.fail_after.get() {
            0 if self.fail_times.get() > 0 => {
                self.fail_times.set(self.fail_times.get() - 1);
                true
            }
            0 => false,
            n => {
                self.fail_after.set(n - 1);
                false
            }
        };
        let (src, dst, order) = match op {
            CopyOp::Copy { src, dst, order } => (Some(src), dst, order),
            CopyOp::Zero { dst, order } => (None, dst, order),
        };
        let is_here = |frame: Frame| frame.place().device_number() == Some(device);
        if !is_here(dst) && !src.is_some_and(is_here) {
            self.fail(|| format!("engine {device} was given {op:?}, neither end of which is its own"));
        }
        for i in 0..order.pages() {
            match src {
                // A copy that fails leaves rubbish behind.
                _ if fails => self.data(dst.offset(i)).iter().for_each(|word| word.set(POISON)),
                Some(src) => self.copy_page(src.offset(i), dst.offset(i)),
                None => self.zero_page(dst.offset(i)),
            }
            self.disturb();
        }
        fails
    }
}

/// A device's owner and its engine.
pub(crate) struct SoftDevice(usize);

pub(super) static DEVICES: [SoftDevice; 4] = [SoftDevice(0), SoftDevice(1), SoftDevice(2), SoftDevice(3)];

impl SoftDevice {
    /// The owner of device `n`.
    pub(crate) fn number(n: usize) -> &'static Self {
        &DEVICES[n]
    }
}

impl PagemapOps<Soft> for SoftDevice {
    fn folio_free(&self, first: Frame, order: Order, driver_word: u64) {
        let state = state();
        self.change(driver_word, -1);
        if let Some(look) = &mut *state.on_free.borrow_mut() {
            look(first, order);
        }
        state.freed_pages.set(state.freed_pages.get() + u64::from(order.pages()));
        for i in 0..order.pages() {
            state.data(first.offset(i)).iter().for_each(|word| word.set(POISON));
        }
    }

    fn folio_split(&self, head: &Folio, tail: Option<&Folio>) {
        let state = state();
        let Some(tail) = tail else { return };
        if tail.driver_word() != head.driver_word() {
            state.fail(|| format!("folio_split: the tail has the word {:#x}", tail.driver_word()));
        }
        self.change(tail.driver_word(), 1);
        state.split_tails.set(state.split_tails.get() + 1);
        if head.covers(tail.frame()) {
            state.fail(|| {
                format!("folio_split: head {:?} still covers its tail {:?}", head.frame(), tail.frame())
            });
        }
    }

    fn folio_arrived(&self, folio: &Folio) {
        if !folio.is_locked() && folio.refs() > 1 {
            state().fail(|| format!("folio_arrived: {:?} could have been found before", folio.frame()));
        }
        self.change(folio.driver_word(), 1);
    }

    fn folio_merge(&self, _head: &Folio, tail: &Folio) {
        self.change(tail.driver_word(), -1);
    }

    fn engine(&self) -> &dyn CopyEngine {
        self
    }
}

/// The words from here on name things that the driver keeps, with a count of the folios that have the word.
pub(crate) const KEPT: u64 = 1 << 32;

impl SoftDevice {
    /// One more folio has the word, or one fewer; what nobody names any more ends.
    fn change(&self, word: u64, by: i64) {
        if word < KEPT {
            return;
        }
        let state = state();
        let mut kept = state.kept.borrow_mut();
        let count = kept.entry((self.0, word)).or_insert(0);
        *count += by;
        match *count {
            0 => drop(kept.remove(&(self.0, word))),
            1.. => {}
            _ => state.fail(|| format!("device {}: more folios with word {word:#x} went than came", self.0)),
        }
    }
}

impl CopyEngine for SoftDevice {
    fn submit(&self, ops: &[CopyOp]) -> Fence {
        let state = state();
        let meddler = state.on_copy.take();
        if let Some(mut meddler) = meddler {
            meddler();
        }
        if state.config.late_copies {
            let mut late = state.late.borrow_mut();
            assert!(late.is_empty(), "one list at a time");
            late.extend_from_slice(ops);
            return Fence::Pending(self.0 as u64);
        }
        let mut failed = 0;
        for (i, &op) in ops.iter().enumerate() {
            failed |= u32::from(state.run_copy(self.0, op)) << i;
        }
        Fence::Done { failed }
    }

    fn poll(&self, fence: Fence) -> Option<u32> {
        Some(self.wait(fence))
    }

    fn wait(&self, fence: Fence) -> u32 {
        let state = state();
        assert_eq!(fence, Fence::Pending(self.0 as u64), "a fence of this engine");
        let ops = core::mem::take(&mut *state.late.borrow_mut());
        let mut failed = 0;
        for (i, &op) in ops.iter().enumerate() {
            failed |= u32::from(state.run_copy(self.0, op)) << i;
        }
        failed
    }

    fn cancel(&self, fence: Fence) -> u32 {
        assert_eq!(fence, Fence::Pending(self.0 as u64), "a fence of this engine");
        state().late.borrow_mut().clear();
        u32::MAX
    }
}
