//! The copies of a batch, in lists for an engine.

use core::marker::PhantomData;

use crate::device::{COPY_LIST, CopyEngine, CopyOp, Fence};
use crate::machine::Machine;
use crate::migrate::unit::MAX_UNITS;
use crate::trace::{Kind, Step};
use crate::types::{Frame, Order, Place, Vaddr};

/// Copies on their way to one device's engine, and which unit each belongs to.
pub(super) struct List<M: Machine> {
    /// The device; all of a batch's copies have the same one, nearly always.
    place: Place,
    engine: Option<&'static dyn CopyEngine>,
    ops: [CopyOp; COPY_LIST],
    units: [u32; COPY_LIST],
    len: usize,
    /// One bit per unit of the batch whose copy failed.
    pub(super) failed: [u64; MAX_UNITS / 64],
    pub(super) any_failed: bool,
    /// There was no memory, and nothing more could be done about that.
    exhausted: bool,
    /// Where the batch goes, in which registration, and whether that device is another's by now.
    to: Place,
    generation: u32,
    pub(super) gone: bool,
    /// The next 2 MiB unit gets single pages ([`crate::MigrateFlags::REFUSE_HUGE`]).
    pub(super) refuse_huge: bool,
    /// The batch is recorded, and the ticks that engines took.
    pub(super) traced: bool,
    pub(super) copying: u32,
    machine: PhantomData<fn() -> M>,
}

impl<M: Machine> List<M> {
    pub(super) const fn new(to: Place, generation: u32, refuse_huge: bool, traced: bool) -> Self {
        let unused = CopyOp::Zero { dst: Frame::ram(0), order: Order::BASE };
        Self {
            place: Place::RAM,
            engine: None,
            ops: [unused; COPY_LIST],
            units: [0; COPY_LIST],
            len: 0,
            failed: [0; MAX_UNITS / 64],
            any_failed: false,
            exhausted: false,
            to,
            generation,
            gone: false,
            refuse_huge,
            traced,
            copying: 0,
            machine: PhantomData,
        }
    }

    #[inline(always)]
    pub(super) fn push(&mut self, op: CopyOp, unit: usize, place: Place) {
        if place != self.place || self.len == COPY_LIST {
            self.next_list(place);
        }
        let len = self.len;
        self.ops[len] = op;
        self.units[len] = unit as u32;
        self.len = len + 1;
    }

    #[inline(never)]
    fn next_list(&mut self, place: Place) {
        self.run();
        self.place = place;
        // The unit that comes has its memory: from here on the device at the other end stays registered as it is.
        self.gone = M::mm().generation(self.to) != self.generation;
        self.engine = place.device_number().filter(|_| !self.gone).map(|n| M::mm().device(n).engine());
    }

    /// A unit without memory may try again for as long as something is found that others keep for nothing: where it goes, or in
    /// RAM, where its descriptors and tables lie. Once nothing is found, the rest of the batch need not ask.
    #[cold]
    #[inline(never)]
    pub(super) fn relieve(&mut self, to: Place) -> bool {
        let mm = M::mm();
        self.exhausted = self.exhausted || !(mm.relieve(to) | (!to.is_ram() && mm.relieve(Place::RAM)));
        !self.exhausted
    }

    /// [`submit`], with a look at the clock before and after.
    #[cold]
    #[inline(never)]
    fn submit_traced(&mut self, engine: &dyn CopyEngine, len: usize) -> u32 {
        let began = M::now();
        let failed = submit(engine, &self.ops[..len]);
        self.copying = self.copying.wrapping_add((M::now() - began) as u32);
        let (CopyOp::Copy { order, .. } | CopyOp::Zero { order, .. }) = self.ops[0];
        let count = Frame::new(self.to, len as u32);
        Step::since::<M>(began).end::<M>(Kind::Copies, failed == 0, Vaddr(0), order, self.place, count);
        failed
    }

    /// Copies, waits, and notes what failed.
    pub(super) fn run(&mut self) {
        let len = core::mem::take(&mut self.len);
        let Some(engine) = self.engine.filter(|_| len != 0) else { return };
        let failed =
            if self.traced { self.submit_traced(engine, len) } else { submit(engine, &self.ops[..len]) };
        if failed == 0 {
            return;
        }
        self.any_failed = true;
        for (i, &unit) in self.units[..len].iter().enumerate() {
            if failed & 1 << i != 0 {
                self.failed[unit as usize / 64] |= 1 << (unit % 64);
            }
        }
    }
}

/// Copies, and waits; one bit for each copy that failed.
#[inline(always)]
fn submit(engine: &dyn CopyEngine, ops: &[CopyOp]) -> u32 {
    match engine.submit(ops) {
        Fence::Done { failed } => failed,
        fence @ Fence::Pending(_) => engine.wait(fence),
    }
}
