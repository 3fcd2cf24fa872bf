//! A machine of arrays. One per thread at a time; every case boots a fresh one.
//!
//! RAM and device pages hold [`WORDS`] sampled words each instead of 512, so that moving 2 MiB costs two thousand word
//! copies and a case of thousands of actions runs in milliseconds. Page tables have all their words; a frame that was ever
//! one keeps them, apart from its data words: who mixes the two up is caught by the owner check of the MMU.

mod cpu;
mod device;

use core::any::Any;
use core::cell::{Cell, OnceCell, RefCell};
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::collections::BTreeMap;

use crate::counters::Event;
use crate::device::{CopyOp, DeviceKind};
use crate::exercise::{Model, WORDS};
use crate::machine::{FlushReason, TableWords};
use crate::mm::{MapStorage, Mm};
use crate::policy::FlushPolicy;
use crate::testing::machine::device::DEVICES;
pub(crate) use crate::testing::machine::device::{KEPT, SoftDevice};
use crate::testing::mmu::Mmu;
use crate::trace::{Open, Record, Tracing};
use crate::types::{Frame, Order, Place};

/// The sampled words of one page.
pub(crate) type Page = [Cell<u64>; WORDS];
/// What a freed device page is filled with.
const POISON: u64 = 0xdead_beef_dead_beef;

/// What is done with the policies of a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mood {
    /// Nothing.
    Steady,
    /// They are drawn anew again and again while a list runs.
    Fickle,
    /// The new is mapped before the old is flushed: a mutation.
    MakeFirst,
}

/// What machine to build.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// CPUs, each with a TLB of its own.
    pub(crate) cpus: usize,
    /// Ranges of RAM frames; what lies between them is reserved.
    pub(crate) ram: Vec<Range<u32>>,
    /// Pages of each device.
    pub(crate) devices: Vec<u32>,
    /// The numbers of those that are coherent.
    pub(crate) coherent: Vec<usize>,
    /// One disturbance in so many chances; 0 for a quiet MMU.
    pub(crate) chaos: u64,
    /// Copies finish when they are waited for, not when they are submitted.
    pub(crate) late_copies: bool,
    /// What is done with the policies.
    pub(crate) mood: Mood,
}

/// A list of one range.
pub(crate) fn one(range: Range<u32>) -> Vec<Range<u32>> {
    core::iter::once(range).collect()
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cpus: 1,
            ram: one(512..512 + 8 * 512),
            devices: vec![8 * 512],
            coherent: Vec::new(),
            chaos: 0,
            late_copies: false,
            mood: Mood::Steady,
        }
    }
}

impl Config {
    /// What kind of device number `n` is, and where its memory lies then.
    fn kind(&self, n: usize) -> (DeviceKind, Place) {
        if self.coherent.contains(&n) {
            (DeviceKind::Coherent { base_pfn: coherent_base(n) }, Place::coherent(n))
        } else {
            (DeviceKind::Private, Place::device(n))
        }
    }
}

/// The frame number at which the memory of a coherent device begins.
pub(crate) const fn coherent_base(device: usize) -> u32 {
    0x20_0000 + device as u32 * 0x2_0000
}

/// Somebody else, who comes in between.
pub(crate) type Meddler = Box<dyn FnMut()>;

/// Called with what a driver is told of.
pub(crate) type OnFree = Box<dyn FnMut(Frame, Order)>;

/// The marker type that names this machine.
#[derive(Debug)]
pub(crate) struct Soft;

struct RamFrame {
    table: Cell<Option<&'static TableWords>>,
    /// The shared objects that live in it, a `&'static [T]`.
    objects: OnceCell<Box<dyn Any>>,
    data: Page,
}

/// The machine's state, reached through the thread's current machine.
pub(crate) struct State {
    pub(crate) mm: Mm<Soft>,
    pub(crate) config: Config,
    base: u32,
    ram: Vec<RamFrame>,
    devices: Vec<Vec<Page>>,
    pub(crate) mmu: RefCell<Mmu>,
    pub(crate) model: RefCell<Model>,
    events: [Cell<u64>; Event::COUNT],
    pub(crate) cpu: Cell<usize>,
    preempt: Cell<i32>,
    /// Flushes for this reason are dropped: a mutation.
    pub(crate) skip: Cell<Option<FlushReason>>,
    /// How many flushes of each reason there were.
    flushes: RefCell<[u64; FlushReason::ALL.len()]>,
    /// After so many copy operations ...
    fail_after: Cell<u64>,
    /// ... so many fail.
    fail_times: Cell<u64>,
    late: RefCell<Vec<CopyOp>>,
    /// What somebody else does when a loop waits for something short; once.
    pub(crate) on_relax: RefCell<Option<Meddler>>,
    /// What somebody does while a thread sleeps: once.
    pub(crate) on_wait: RefCell<Option<Meddler>>,
    /// What somebody else does before the n-th lock from now that is taken while no other is held: once.
    pub(crate) on_lock: RefCell<Option<(u64, Meddler)>>,
    /// The same, after the n-th lock that leaves none held is free.
    pub(crate) on_unlock: RefCell<Option<(u64, Meddler)>>,
    /// What somebody else does as an engine begins to copy: once.
    pub(crate) on_copy: RefCell<Option<Meddler>>,
    /// A look at the machine while a driver is told that memory is free.
    pub(crate) on_free: RefCell<Option<OnFree>>,
    /// Calls of `folio_free` (pages) and of `folio_split` (with a tail).
    pub(crate) freed_pages: Cell<u64>,
    pub(crate) split_tails: Cell<u64>,
    /// What drivers keep for those words that name something: folios, by device and word.
    pub(crate) kept: RefCell<BTreeMap<(usize, u64), i64>>,
    /// What is recorded, the clock (a tick each time that it is read), and the records.
    pub(crate) tracing: Cell<Tracing>,
    pub(crate) clock: Cell<u64>,
    pub(crate) records: RefCell<Vec<Record>>,
    /// The open records of a thread and of those that come in between; whose turn it is.
    opens: [Open; 4],
    depth: Cell<usize>,
    /// The first rule that was broken.
    pub(crate) failure: RefCell<Option<String>>,
}

thread_local! {
    static CURRENT: Cell<Option<&'static State>> = const { Cell::new(None) };
    /// Table words of machines that are gone.
    static TABLES: RefCell<Vec<&'static TableWords>> = const { RefCell::new(Vec::new()) };
}

/// The thread's machine.
pub(crate) fn state() -> &'static State {
    CURRENT.with(Cell::get).expect("a machine was booted on this thread")
}

/// A booted machine; its big arrays are used again after it.
pub(crate) struct Session(&'static State);

impl core::ops::Deref for Session {
    type Target = State;
    fn deref(&self) -> &State {
        self.0
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        TABLES.with(|pool| {
            let mut pool = pool.borrow_mut();
            pool.extend(self.0.ram.iter().filter_map(|frame| frame.table.take()));
        });
        // A panic may unwind through handles that are dropped after this: they still find their machine.
    }
}

impl Session {
    pub(crate) fn state(&self) -> &'static State {
        self.0
    }
}

fn leak_words(n: usize) -> &'static [AtomicU64] {
    Box::leak((0..n).map(|_| AtomicU64::new(0)).collect())
}

fn page(word: u64) -> Page {
    core::array::from_fn(|_| Cell::new(word))
}

impl Soft {
    /// Boots a machine on this thread.
    pub(crate) fn boot(config: &Config) -> Session {
        let first = config.ram.iter().map(|r| r.start).min().unwrap_or(0) & !511;
        let last = config.ram.iter().map(|r| r.end).max().unwrap_or(512).next_multiple_of(512);
        let frames = last - first;
        let state: &'static State = Box::leak(Box::new(State {
            mm: Mm::new(),
            config: config.clone(),
            base: first,
            ram: (0..frames)
                .map(|_| RamFrame { table: Cell::new(None), objects: OnceCell::new(), data: page(POISON) })
                .collect(),
            devices: config.devices.iter().map(|&n| (0..n).map(|_| page(POISON)).collect()).collect(),
            mmu: RefCell::new(Mmu::new(config)),
            model: RefCell::new(Model::default()),
            events: [const { Cell::new(0) }; Event::COUNT],
            cpu: Cell::new(0),
            preempt: Cell::new(0),
            skip: Cell::new(None),
            flushes: RefCell::default(),
            fail_after: Cell::new(0),
            fail_times: Cell::new(0),
            late: RefCell::default(),
            on_relax: RefCell::default(),
            on_wait: RefCell::default(),
            on_lock: RefCell::default(),
            on_unlock: RefCell::default(),
            on_copy: RefCell::default(),
            on_free: RefCell::default(),
            freed_pages: Cell::new(0),
            split_tails: Cell::new(0),
            kept: RefCell::default(),
            tracing: Cell::new(Tracing::Off),
            clock: Cell::new(0),
            records: RefCell::default(),
            opens: [const { Open::new() }; 4],
            depth: Cell::new(0),
            failure: RefCell::new(None),
        }));
        CURRENT.with(|current| current.set(Some(state)));
        // A range that is too small is to be seen, however large the range.
        state.mm.policy.set_flush(FlushPolicy::Ranged);
        state.mm.policy.set_break_before_make(config.mood != Mood::MakeFirst);
        state.mm.register_ram(first, MapStorage::new(leak_words(MapStorage::words_for(frames))));
        for range in &config.ram {
            state.mm.add_ram(range.clone());
        }
        for (n, &pages) in config.devices.iter().enumerate() {
            let map = MapStorage::new(leak_words(MapStorage::words_for(pages)));
            let (kind, _) = config.kind(n);
            state.mm.register_device(n, pages, kind, map, &DEVICES[n]).expect("the number is free");
        }
        state.mm.start().expect("there is memory");
        Session(state)
    }
}

impl State {
    /// Registers a device that was taken out.
    pub(crate) fn register_again(&self, n: usize) {
        let pages = self.config.devices[n];
        let map = MapStorage::new(leak_words(MapStorage::words_for(pages)));
        let (kind, expected) = self.config.kind(n);
        let place = self.mm.register_device(n, pages, kind, map, &DEVICES[n]);
        assert_eq!(place, Ok(expected));
    }

    /// Notes that a rule was broken; the first one counts.
    pub(crate) fn fail(&self, what: impl FnOnce() -> String) {
        let mut failure = self.failure.borrow_mut();
        if failure.is_none() {
            *failure = Some(what());
        }
    }

    /// The first rule that was broken.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    /// The words of a RAM frame as a page table, without a chance for a disturbance.
    pub(crate) fn table(&self, pfn: u32) -> &'static TableWords {
        let frame = &self.ram[(pfn - self.base) as usize];
        if let Some(words) = frame.table.get() {
            return words;
        }
        let words: &'static TableWords = TABLES
            .with(|pool| pool.borrow_mut().pop())
            .unwrap_or_else(|| Box::leak(Box::new([const { AtomicU64::new(0) }; 512])));
        // The frame may have been cleared before it had words.
        words.iter().for_each(|word| word.store(0, Relaxed));
        frame.table.set(Some(words));
        words
    }

    /// The sampled words of a page.
    pub(crate) fn data(&self, frame: Frame) -> &Page {
        match frame.place().device_number() {
            None => &self.ram[(frame.index() - self.base) as usize].data,
            Some(n) if frame.place().is_coherent() => {
                &self.devices[n][(frame.index() - coherent_base(n)) as usize]
            }
            Some(n) => &self.devices[n][frame.index() as usize],
        }
    }

    /// The memory that CPUs reach by this frame number.
    pub(crate) fn mappable(&self, pfn: u32) -> Option<Frame> {
        if self.has_ram(pfn) {
            return Some(Frame::ram(pfn));
        }
        let on = |n: &&usize| self.devices[**n].len() as u32 > pfn.wrapping_sub(coherent_base(**n));
        self.config.coherent.iter().find(on).map(|&n| Frame::new(Place::coherent(n), pfn))
    }

    /// True when the machine has this frame.
    pub(crate) fn has_ram(&self, pfn: u32) -> bool {
        pfn.checked_sub(self.base).is_some_and(|i| (i as usize) < self.ram.len())
    }

    pub(crate) fn counted(&self, event: Event) -> u64 {
        self.events[event as usize].get()
    }

    /// A spin lock is about to be taken: the last moment at which a thread can lose its CPU.
    fn before_lock(&self) {
        self.meddle(&self.on_lock);
    }

    /// A spin lock was freed: the first moment at which others can run.
    fn after_unlock(&self) {
        self.meddle(&self.on_unlock);
    }

    fn meddle(&self, when: &RefCell<Option<(u64, Meddler)>>) {
        if self.preempt.get() != 0 {
            return;
        }
        let Ok(mut due) = when.try_borrow_mut() else { return };
        match &mut *due {
            None => {}
            Some((0, _)) => {
                let meddler = due.take();
                drop(due);
                if let Some((_, mut meddler)) = meddler {
                    self.as_another(&mut *meddler);
                }
            }
            Some((n, _)) => *n -= 1,
        }
    }

    /// Another thread runs.
    fn as_another(&self, work: &mut dyn FnMut()) {
        self.depth.set(self.depth.get() + 1);
        work();
        self.depth.set(self.depth.get() - 1);
    }

    /// The open record of the thread that runs.
    fn open(&self) -> &Open {
        &self.opens[self.depth.get() % self.opens.len()]
    }

    /// Flushes asked for, for this reason.
    pub(crate) fn flushed(&self, reason: FlushReason) -> u64 {
        self.flushes.borrow()[reason as usize]
    }

    /// No spin lock is held, nothing is half done.
    pub(crate) fn at_rest(&self) -> bool {
        self.preempt.get() == 0 && self.late.borrow().is_empty()
    }

    /// Spin locks are held for as long as it takes to change entries, not to move data.
    fn no_lock_is_held(&self, what: &str, frame: Frame, order: Order) {
        if self.preempt.get() != 0 {
            self.fail(|| format!("somebody {what} {frame} ({order:?}) while a spin lock is held"));
        }
    }

    fn copy_page(&self, src: Frame, dst: Frame) {
        let (src, dst) = (self.data(src), self.data(dst));
        for (from, to) in src.iter().zip(dst) {
            to.set(from.get());
        }
    }

    fn zero_page(&self, frame: Frame) {
        if frame.place().is_ram()
            && let Some(words) = self.ram[(frame.index() - self.base) as usize].table.get()
        {
            words.iter().for_each(|word| word.store(0, Relaxed));
        }
        self.data(frame).iter().for_each(|word| word.set(0));
    }
}
