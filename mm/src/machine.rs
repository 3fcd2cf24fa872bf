//! What the memory manager asks of the machine under it.
//!
//! [`Machine`] is implemented twice: by the kernel over real registers and real memory, and by the host tests over
//! arrays and a software MMU. All methods are associated functions: there is one machine per kernel, and one per
//! *thread group* in a test, so no handle has to be carried through every call and stored in every reference.
//!
//! The memory manager forbids `unsafe`; the implementor turns frame numbers into memory. It may rely on this: a
//! [`FreshFrame`] is made once per allocation from the buddy, and `table_words` is asked only for frames that were
//! handed out as page tables.

use core::sync::atomic::AtomicU64;

use crate::counters::Event;
use crate::mm::Mm;
use crate::trace::{Open, Phase, Record, Tracing};
use crate::types::{Frame, Order, PTRS, VaRange};

/// CPUs that per-CPU caches are kept for.
pub const MAX_CPUS: usize = 16;

/// A table's 512 words. Entries are read and written as single atomic words and copied, never borrowed: the CPU sets
/// A and D behind our back.
pub type TableWords = [AtomicU64; PTRS];

/// A RAM frame that was just taken from the buddy and belongs to the caller alone. Made only by this crate, consumed by
/// [`Machine::objects`].
#[derive(Debug)]
pub struct FreshFrame(pub(crate) u32);

impl FreshFrame {
    /// Its page frame number.
    #[must_use]
    pub const fn pfn(&self) -> u32 {
        self.0
    }
}

/// What a flush must remove from the TLBs of one flush domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlushRequest {
    /// Page frame number of the address space's root table.
    pub root: u32,
    /// CPUs that may hold its translations (bit n is CPU n).
    pub cpus: u64,
    /// What to drop.
    pub scope: FlushScope,
    /// Page tables were freed as well: paging-structure caches must go too.
    pub tables: bool,
    /// Why.
    pub reason: FlushReason,
}

/// What a flush is for: every place that owes one. Lets a test or an experiment leave out one kind and see what breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum FlushReason {
    /// A huge mapping is about to become a table: break before make.
    Split,
    /// Pages are about to be copied out.
    Migrate,
    /// A zero page is replaced by a device page.
    ZeroReplaced,
    /// A zero page or shared page is replaced by the writer's own.
    CopyOnWrite,
    /// Entries allow less than before: a clone, a change of protection, tracking.
    Protect,
    /// Pages are about to be freed.
    Unmap,
    /// Page tables are about to be freed.
    FreeTables,
    /// Pages are mapped elsewhere from now on.
    Remap,
    /// A page is about to be lent to a device for atomic access.
    Exclusive,
    /// Somebody else's flush is still owed, and an entry that it concerns is about to change.
    Owed,
}

impl FlushReason {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Split,
        Self::Migrate,
        Self::ZeroReplaced,
        Self::CopyOnWrite,
        Self::Protect,
        Self::Unmap,
        Self::FreeTables,
        Self::Remap,
        Self::Exclusive,
        Self::Owed,
    ];
}

/// The extent of a flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushScope {
    /// Every page of the range, `stride` bytes apart (4 KiB or 2 MiB).
    Range {
        /// The addresses.
        range: VaRange,
        /// Distance between pages, in bytes.
        stride: u64,
    },
    /// Every non-global translation of the space.
    All,
}

/// What a sleeper waits for: an address-like number that is unique per object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WaitKey(pub usize);

/// The machine: memory, TLBs, CPUs, sleep, counters.
pub trait Machine: Sized + Send + Sync + 'static {
    /// The memory manager of this machine.
    fn mm() -> &'static Mm<Self>;

    /// The words of RAM frame `pfn`.
    fn table_words(pfn: u32) -> &'static TableWords;

    /// Turns a fresh frame into as many default `T`s as fit, one after the other from its start. It stays that way for
    /// ever: descriptor memory is type-stable.
    fn objects<T: Default + Send + 'static>(frame: FreshFrame) -> &'static mut [T];

    /// As [`Machine::objects`], for objects that are shared from the start: the only ones that [`Machine::object`] is asked
    /// for.
    fn shared_objects<T: Default + Send + Sync + 'static>(frame: FreshFrame) -> &'static [T] {
        Self::objects(frame)
    }

    /// The object at `key`, which is its physical address in units of 64 bytes. Asked only for keys of objects that
    /// [`Machine::shared_objects`] made of this very type.
    fn object<T: Sync + 'static>(key: u32) -> &'static T;

    /// Clears RAM.
    fn zero(first: Frame, order: Order);

    /// Copies RAM to RAM.
    fn copy(src: Frame, dst: Frame, order: Order);

    /// Reads words of RAM or of device memory, from word `word` of a page on; they end inside the folio that it is part of. Programs
    /// and devices may write it meanwhile: a word is read whole, no more is promised.
    fn read_frame(frame: Frame, word: usize, to: &mut [u64]);

    /// Writes words of such memory. They are there for every other reader on return.
    fn write_frame(frame: Frame, word: usize, from: &[u64]);

    /// The number of the CPU that runs this, below [`MAX_CPUS`]. Stable only while preemption is off.
    fn cpu() -> usize;

    /// Forbids preemption on this CPU; nests.
    fn preempt_disable();

    /// Undoes one [`Machine::preempt_disable`].
    fn preempt_enable();

    /// Removes translations and returns when every CPU named has done so.
    fn flush(request: &FlushRequest);

    /// Sleeps until a [`Machine::wake`] of `key`, as long as `still()` says that there is something to wait for.
    fn wait(key: WaitKey, still: &dyn Fn() -> bool);

    /// Wakes all sleepers on `key`.
    fn wake(key: WaitKey);

    /// Lets others run for a moment. Called, with no spin lock held, in loops that look again for something that nobody tells
    /// of: a reference that is dropped.
    fn relax() {
        core::hint::spin_loop();
    }

    /// Adds to a system-wide counter of this CPU.
    fn count(event: Event, n: u64);

    /// Adds one to a counter whose number is known when this is compiled (`Event::X as usize`): for the hottest paths.
    #[inline(always)]
    fn count_one<const EVENT: usize>() {
        Self::count(Event::ALL[EVENT], 1);
    }

    /// Reads a system-wide counter, summed over the CPUs.
    fn counted(event: Event) -> u64;

    /// How much is recorded ([`crate::trace`]). One load: it is asked at every fault.
    fn tracing() -> Tracing;

    /// The time, in ticks that never run backwards; not 0. Asked only while something is recorded.
    fn now() -> u64;

    /// The record that the running thread fills. Another thread's is another one.
    fn open() -> &'static Open;

    /// A phase of what the running thread does ends now: notes that in its open record.
    #[inline(always)]
    fn mark(phase: Phase) {
        Self::open().mark(phase as usize, Self::now());
    }

    /// What the running thread does ends now, and its open record is taken.
    #[inline(always)]
    fn record_open() {
        Self::mark(Phase::Finalize);
        Self::record(Self::open().get());
    }

    /// Takes a record, whole, in the order of their ends on this CPU. It may come while spin locks are held, and neither
    /// sleeps nor calls back.
    fn record(record: Record);
}
