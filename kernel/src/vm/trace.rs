//! The trace: a ring of records for each CPU, the open record of the running thread, and who may read them.
//!
//! **Nothing tears.** A record is written in one piece with preemption off, into the ring of the CPU that runs; no interrupt
//! handler records anything. What a fault has noted so far stands in an open record in the CPU's block, where a note is one store
//! without an address to be found; each thread switch puts it away and brings the next thread's, so a thread that is preempted or
//! sleeps finds its own again. The ring is read in the same way, record by record, with preemption off.
//!
//! **Nothing is lost unnoticed.** A ring keeps the last records, and counts all: what is missing between the two is what was
//! overwritten.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, Ordering::Relaxed};

use farpage_mm::trace::{Open, Phase, Record, Tracing};

use super::mm;
use crate::arch::x86_64::fault;
use crate::arch::x86_64::percpu::{self, MAX_CPUS, OPEN_WORDS};

/// Records that a ring has room for unless somebody says otherwise: 1 MiB.
pub(crate) const USUAL: u64 = 1 << 14;
/// The most that the heap has room for.
pub(crate) const MOST: u64 = 1 << 16;

static LEVEL: AtomicU8 = AtomicU8::new(0);

/// How much is recorded.
#[inline(always)]
pub(crate) fn level() -> Tracing {
    match LEVEL.load(Relaxed) {
        0 => Tracing::Off,
        1 => Tracing::Units,
        _ => Tracing::Steps,
    }
}

const _: () = assert!(size_of::<Open>() == OPEN_WORDS * 8 && align_of::<Open>() <= 8);

/// The record that the running thread fills.
#[inline(always)]
pub(super) fn open() -> &'static Open {
    let words = ptr::from_ref(percpu::open_record()).cast::<Open>();
    // SAFETY: the words are as large as the record and as much aligned. They were zero at first, which is a record that nobody
    // fills, and only records of threads were put there since. Both are cells. The reference is not `Send`: it stays with a
    // thread, and another one that runs here finds its own record there.
    unsafe { &*words }
}

/// A phase of what the running thread does ends now.
#[inline(always)]
pub(super) fn mark(phase: Phase) {
    const AT: usize = Open::TICKS_OFFSET;
    match phase {
        Phase::Wait => percpu::stamp_open_record::<{ AT + 4 * Phase::Wait as usize }>(),
        Phase::Collect => percpu::stamp_open_record::<{ AT + 4 * Phase::Collect as usize }>(),
        Phase::Unmap => percpu::stamp_open_record::<{ AT + 4 * Phase::Unmap as usize }>(),
        Phase::Flush => percpu::stamp_open_record::<{ AT + 4 * Phase::Flush as usize }>(),
        Phase::Alloc => percpu::stamp_open_record::<{ AT + 4 * Phase::Alloc as usize }>(),
        Phase::Copy => percpu::stamp_open_record::<{ AT + 4 * Phase::Copy as usize }>(),
        Phase::Commit => percpu::stamp_open_record::<{ AT + 4 * Phase::Commit as usize }>(),
        Phase::Finalize => percpu::stamp_open_record::<{ AT + 4 * Phase::Finalize as usize }>(),
    }
}

/// The ring of a CPU. Only that CPU touches it, with preemption off.
///
/// Records go from `first` to `end`, and around. While nothing is recorded that is [`NOWHERE`]: a fault that slept while the trace
/// was ended belongs to none, and its record is dropped without a question.
struct Ring {
    /// The next record goes here.
    next: AtomicPtr<Record>,
    first: AtomicPtr<Record>,
    /// After the last slot.
    end: AtomicPtr<Record>,
    /// How often it was filled.
    laps: AtomicU64,
    /// The slots, and how many there is memory for.
    memory: AtomicPtr<Record>,
    room: AtomicU64,
    /// How many of them are used, and how many records were written until the trace was ended.
    slots: AtomicU64,
    written: AtomicU64,
}

static RINGS: [Ring; MAX_CPUS] = [const { Ring::new() }; MAX_CPUS];

/// Where a record goes that nobody reads.
struct Nowhere(UnsafeCell<Record>);

// SAFETY: it is only written, by `put`, and never read.
unsafe impl Sync for Nowhere {}

static NOWHERE: Nowhere = Nowhere(UnsafeCell::new(Record::EMPTY));

impl Ring {
    const fn new() -> Self {
        let nowhere = NOWHERE.0.get();
        Self {
            next: AtomicPtr::new(nowhere),
            first: AtomicPtr::new(nowhere),
            end: AtomicPtr::new(nowhere.wrapping_add(1)),
            laps: AtomicU64::new(0),
            memory: AtomicPtr::new(nowhere),
            room: AtomicU64::new(0),
            slots: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// This CPU's.
    #[inline(always)]
    fn here() -> &'static Self {
        if MAX_CPUS == 1 { &RINGS[0] } else { &RINGS[percpu::cpu_id() as usize] }
    }

    /// Records go to the first `slots` slots from now on.
    fn begin(&self, slots: u64) {
        percpu::preempt_disable();
        let first = self.memory.load(Relaxed);
        self.first.store(first, Relaxed);
        self.next.store(first, Relaxed);
        self.end.store(first.wrapping_add(slots as usize), Relaxed);
        self.laps.store(0, Relaxed);
        self.slots.store(slots, Relaxed);
        percpu::preempt_enable();
    }

    /// They go nowhere.
    fn end(&self) {
        percpu::preempt_disable();
        self.written.store(self.written(), Relaxed);
        let nowhere = NOWHERE.0.get();
        self.first.store(nowhere, Relaxed);
        self.next.store(nowhere, Relaxed);
        self.end.store(nowhere.wrapping_add(1), Relaxed);
        percpu::preempt_enable();
    }

    /// Records written since the last beginning.
    fn written(&self) -> u64 {
        let first = self.first.load(Relaxed);
        if first == NOWHERE.0.get() {
            return self.written.load(Relaxed);
        }
        let bytes = self.next.load(Relaxed).addr() - first.addr();
        self.laps.load(Relaxed) * self.slots.load(Relaxed) + (bytes / size_of::<Record>()) as u64
    }

    /// Gives the memory back. After [`Ring::end`].
    fn free(&self) {
        let memory = self.memory.swap(NOWHERE.0.get(), Relaxed);
        let room = self.room.swap(0, Relaxed);
        self.slots.store(0, Relaxed);
        self.written.store(0, Relaxed);
        if room != 0 {
            let memory = ptr::slice_from_raw_parts_mut(memory, room as usize);
            // SAFETY: `start` has leaked a box of so many records there. Only this CPU uses a ring, with preemption off: nobody was in
            // the middle of it when records began to go nowhere, and nobody finds it from now on.
            drop(unsafe { Box::from_raw(memory) });
        }
    }

    #[cold]
    fn wrap(&self) {
        self.next.store(self.first.load(Relaxed), Relaxed);
        self.laps.store(self.laps.load(Relaxed) + 1, Relaxed);
    }
}

/// Takes a record.
pub(super) fn put(record: Record) {
    let record = Open::from(record.by(percpu::current_thread() as u64));
    copy_to_ring(&record);
}

/// Takes the running thread's open record.
#[inline(always)]
pub(super) fn put_open() {
    copy_to_ring(open());
}

#[inline(always)]
fn copy_to_ring(record: &Open) {
    percpu::preempt_disable();
    let ring = Ring::here();
    let slot = ring.next.load(Relaxed);
    // SAFETY: `next` is always a slot of a ring that is not freed before records go elsewhere, or `NOWHERE`. Only this CPU writes
    // them, with preemption off. What is copied is a record in a cell, which only this thread changes.
    unsafe { ptr::copy_nonoverlapping(record.as_ptr(), slot, 1) };
    let next = slot.wrapping_add(1);
    ring.next.store(next, Relaxed);
    if next == ring.end.load(Relaxed) {
        ring.wrap();
    }
    percpu::preempt_enable();
}

/// Another thread runs from now on, with a record of its own. With interrupts off.
pub(crate) fn thread_runs(number: usize) {
    open().set_thread(number as u64);
}

/// There is no memory for a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoRoom(u64);

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(records) = self;
        write!(f, "there is no memory for a ring of {records} records; ask for fewer: {MOST} at most")
    }
}

/// Begins to record, into an empty ring of at least `records` slots, which are rounded up to a power of two.
///
/// # Errors
/// [`NoRoom`]: the heap has not so much, or more than [`MOST`] were asked for. Nothing is recorded then.
pub(crate) fn start(level: Tracing, records: u64) -> Result<(), NoRoom> {
    stop();
    if records > MOST {
        return Err(NoRoom(records));
    }
    let wanted = records.max(2).next_power_of_two();
    let ring = Ring::here();
    if ring.room.load(Relaxed) < wanted {
        ring.free();
        let mut memory: Vec<Record> = Vec::new();
        memory.try_reserve_exact(wanted as usize).map_err(|_| NoRoom(records))?;
        memory.resize(wanted as usize, Record::EMPTY);
        ring.memory.store(Box::leak(memory.into_boxed_slice()).as_mut_ptr(), Relaxed);
        ring.room.store(wanted, Relaxed);
    }
    ring.begin(wanted);
    mm().watch_allocations(level == Tracing::Steps);
    LEVEL.store(level as u8, Relaxed);
    fault::record_faults(level != Tracing::Off);
    Ok(())
}

/// Records no more. What the rings hold stays.
pub(crate) fn stop() {
    fault::record_faults(false);
    LEVEL.store(Tracing::Off as u8, Relaxed);
    mm().watch_allocations(false);
    Ring::here().end();
}

/// How many records a ring holds, and how many it has lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) records: u64,
    pub(crate) lost: u64,
}

/// What this CPU's ring holds.
pub(crate) fn held() -> Held {
    let ring = Ring::here();
    let written = ring.written();
    let records = written.min(ring.slots.load(Relaxed));
    Held { records, lost: written - records }
}

/// Calls `f` for every record that this CPU's ring holds, in the order of their ends, the oldest first. While nothing is recorded.
pub(crate) fn for_each(f: &mut dyn FnMut(&Record)) {
    let ring = Ring::here();
    let Held { records, lost } = held();
    for number in lost..lost + records {
        percpu::preempt_disable();
        let slot = ring.memory.load(Relaxed).wrapping_add((number % ring.slots.load(Relaxed)) as usize);
        // SAFETY: a ring that holds records has slots, which were all filled when they were made, and the number is below theirs.
        // Only this CPU writes them, and with preemption off nobody does.
        let record = unsafe { ptr::read(slot) };
        percpu::preempt_enable();
        f(&record);
    }
}

/// What a piece of code did, and what was recorded of it.
#[derive(Debug)]
pub(crate) struct Recorded<T> {
    /// What it returned.
    pub(crate) result: T,
    /// The last records, the oldest first.
    pub(crate) records: Vec<Record>,
    /// How many there were before those.
    pub(crate) lost: u64,
}

/// Runs any piece of code with the trace on, and hands over the records: those of all threads that ran meanwhile. A trace that
/// was on before has ended then, and what it recorded is gone.
///
/// # Errors
/// [`NoRoom`]: nothing was done.
pub(crate) fn record<T>(
    level: Tracing,
    records: u64,
    work: impl FnOnce() -> T,
) -> Result<Recorded<T>, NoRoom> {
    start(level, records)?;
    let result = work();
    stop();
    let mut list = Vec::with_capacity(held().records as usize);
    for_each(&mut |record| list.push(*record));
    Ok(Recorded { result, records: list, lost: held().lost })
}
