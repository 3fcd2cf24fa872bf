//! What the tests share: a loaded address space, patterns, a look at the entries, and memory without large chunks.

use alloc::vec::Vec;
use core::hint::black_box;

use farpage_mm::{
    AddressSpace, Entry, Event, FaultError, FolioRef, Frame, HugeAdvice, Level, Machine as _, Need, Order,
    PAGE_SIZE, Place, Prot, SoftKind, VaRange, Vaddr,
};

use crate::arch::x86_64::uaccess::{copy_words_from_user, copy_words_to_user};
use crate::testing::Unmet;
use crate::vm::devmem::register_again;
use crate::vm::user::{UserFault, last_refusal};
use crate::vm::{Active, Machine, activate, mm, new_space};

/// Where the tests map their memory: 2 MiB aligned.
pub(super) const BASE: u64 = 0x10_0000_0000;

/// The first device's memory.
pub(super) const DEV0: Place = Place::device(0);

/// Words of a page.
const WORDS: usize = PAGE_SIZE as usize / 8;

/// An address space of these tests.
pub(super) type Space = AddressSpace<Machine>;

impl From<UserFault> for Unmet {
    fn from(fault: UserFault) -> Self {
        Self::Failed(alloc::format!("{fault} ({:?})", last_refusal()))
    }
}

impl From<farpage_mm::RangeError> for Unmet {
    fn from(error: farpage_mm::RangeError) -> Self {
        Self::Failed(alloc::format!("{error}"))
    }
}

impl From<farpage_mm::OutOfMemory> for Unmet {
    fn from(error: farpage_mm::OutOfMemory) -> Self {
        Self::Failed(alloc::format!("{error}"))
    }
}

/// Runs `test` in a new address space that is loaded on this CPU.
pub(super) fn in_space(test: impl FnOnce(&Space) -> Result<(), Unmet>) -> Result<(), Unmet> {
    let space = new_space()?;
    let active: Active<'_> = activate(&space);
    let result = test(&space);
    drop(active);
    drop(space);
    result
}

/// Passes over a test whose numbers are those of the usual machine: 256 MiB of RAM, and a device of 64 MiB.
pub(super) fn on_the_usual_machine() -> Result<(), Unmet> {
    let (ram, device) = (mm().zone(Place::RAM).stat().managed, mm().device(0).memory().managed);
    if (1 << 15..1 << 16).contains(&ram) && device == 1 << 14 {
        return Ok(());
    }
    crate::skip!("is for a machine with 256 MiB of RAM and 64 MiB of device memory")
}

/// Maps `len` bytes at [`BASE`] for reading and writing.
pub(super) fn map(space: &Space, len: u64, advice: HugeAdvice) -> Result<VaRange, Unmet> {
    let range = VaRange::new(BASE, len);
    space.space().map_anon(range, Prot::RW, advice)?;
    Ok(range)
}

/// The `nr` pages of `range` from page `first` on.
pub(super) fn pages(range: VaRange, first: u64, nr: u64) -> VaRange {
    VaRange::new(range.start.0 + first * PAGE_SIZE, nr * PAGE_SIZE)
}

pub(super) use ktest::watch::pattern;

/// Writes the pattern to every word of `range`.
pub(super) fn fill(range: VaRange, seed: u64) -> Result<(), UserFault> {
    let mut words = [0; WORDS];
    for page in (range.start.0..range.end.0).step_by(PAGE_SIZE as usize) {
        for (i, word) in words.iter_mut().enumerate() {
            // One by one: QEMU emulates vectors by calls, and a vector's 64-bit product takes a dozen of them.
            *word = black_box(pattern(page + i as u64 * 8, seed));
        }
        copy_words_to_user(page, &words)?;
    }
    Ok(())
}

/// Compares every word of `range` with the pattern.
pub(super) fn check(range: VaRange, seed: u64) -> Result<(), Unmet> {
    compare(range, |addr| pattern(addr, seed))
}

/// Makes sure that every word of `range` is zero.
pub(super) fn check_zero(range: VaRange) -> Result<(), Unmet> {
    compare(range, |_| 0)
}

fn compare(range: VaRange, expected: impl Fn(u64) -> u64) -> Result<(), Unmet> {
    let mut words = [0; WORDS];
    for page in (range.start.0..range.end.0).step_by(PAGE_SIZE as usize) {
        copy_words_from_user(&mut words, page)?;
        for (i, word) in words.iter().enumerate() {
            let at = page + i as u64 * 8;
            if *word != expected(at) {
                return Err(Unmet::Failed(alloc::format!(
                    "{at:#x} holds {word:#x}, not {:#x}",
                    expected(at)
                )));
            }
        }
    }
    Ok(())
}

/// How an access to user memory ended, with the memory manager's reason where it refused.
pub(super) fn refusal<T>(access: Result<T, UserFault>) -> Result<T, (u64, Option<FaultError>)> {
    access.map_err(|fault| (fault.addr, last_refusal()))
}

/// A counter, as it stands.
pub(super) fn counted(event: Event) -> u64 {
    Machine::counted(event)
}

/// What `event` has counted while `work` ran.
pub(super) fn counting<R>(event: Event, work: impl FnOnce() -> R) -> (R, u64) {
    let before = counted(event);
    let result = work();
    (result, counted(event) - before)
}

/// Pages in use on device `number`.
pub(super) fn resident(number: usize) -> u64 {
    mm().device(number).stat().resident
}

/// The frame that is mapped, or named by a non-present entry, at `addr`.
pub(super) fn frame_at(space: &Space, addr: u64) -> Option<Frame> {
    let (level, entry) = space.entry_at(Vaddr(addr));
    let page = (addr & (level.size() - 1)) / PAGE_SIZE;
    match entry {
        Entry::Leaf(leaf) => Some(leaf.frame.offset(page as u32)),
        Entry::NonPresent(soft) => Some(soft.frame.offset(page as u32)),
        Entry::None | Entry::Table(_) => None,
    }
}

/// The order of the folio that is mapped at `addr`.
pub(super) fn order_at(space: &Space, addr: u64) -> Option<u8> {
    mm().try_get_folio(frame_at(space, addr)?).map(|folio| folio.order().get())
}

/// How many entries of each kind map a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kinds {
    pub(super) huge_present: u32,
    pub(super) huge_device: u32,
    pub(super) huge_zero: u32,
    pub(super) present: u32,
    pub(super) device: u32,
    pub(super) zero: u32,
    pub(super) none: u32,
}

/// Looks at every page's entry.
pub(super) fn kinds(space: &Space, range: VaRange) -> Kinds {
    let mut kinds = Kinds::default();
    let mut at = range.start.0;
    while at < range.end.0 {
        let (level, entry) = space.entry_at(Vaddr(at));
        let huge = level == Level::Pmd;
        let (count, is_mapped) = match entry {
            Entry::Leaf(leaf) if leaf.special && huge => (&mut kinds.huge_zero, true),
            Entry::Leaf(leaf) if leaf.special => (&mut kinds.zero, true),
            Entry::Leaf(_) if huge => (&mut kinds.huge_present, true),
            Entry::Leaf(_) => (&mut kinds.present, true),
            Entry::NonPresent(soft) if soft.kind == SoftKind::DevicePrivate && huge => {
                (&mut kinds.huge_device, true)
            }
            Entry::NonPresent(soft) if soft.kind == SoftKind::DevicePrivate => (&mut kinds.device, true),
            _ => (&mut kinds.none, false),
        };
        *count += 1;
        at += if huge && is_mapped { level.size() } else { PAGE_SIZE };
    }
    kinds
}

/// Folios that are held so that nobody else can have their memory.
pub(super) struct Held(Vec<FolioRef<Machine>>);

impl Held {
    /// Takes all memory of `place`, down to chunks of `order`.
    pub(super) fn all(place: Place, order: Order) -> Self {
        Self::take(place, order, Need::Reserve)
    }

    /// Takes all RAM that user pages may have.
    pub(super) fn all_but_the_reserve() -> Self {
        Self::take(Place::RAM, Order::BASE, Need::User)
    }

    fn take(place: Place, order: Order, need: Need) -> Self {
        let free = mm().zone(place).stat().free as usize;
        let mut held = Vec::with_capacity(free >> order.get());
        while let Ok(folio) = mm().alloc_folio(place, order, need) {
            held.push(folio);
        }
        Self(held)
    }

    /// Leaves `place` with free chunks of `order` and none that is larger: every second one is held, so no two grow
    /// together.
    pub(super) fn every_second(place: Place, order: Order) -> Self {
        let mut all = Self::all(place, order);
        all.0.retain(|folio| folio.frame().index() >> order.get() & 1 == 1);
        mm().zone(place).drain();
        all
    }

    /// Takes the 2 MiB of `place` that begin at frame `first`, if they are free.
    pub(super) fn only(place: Place, first: u32) -> Self {
        mm().zone(place).drain();
        let mut all = Self::all(place, Order::PMD);
        all.0.retain(|folio| folio.frame().index() == first);
        all
    }

    /// Frees `n` of them.
    pub(super) fn give_back(&mut self, n: usize) {
        self.0.truncate(self.0.len().saturating_sub(n));
    }

    /// Frees those whose first frame is wanted.
    pub(super) fn give_back_those(&mut self, wanted: impl Fn(Frame) -> bool) {
        self.0.retain(|folio| !wanted(folio.frame()));
    }

    /// How many they are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The number of a device, which may be taken out: with all of its memory it is there again when this goes.
pub(super) struct Seat {
    number: usize,
    pages: u32,
}

impl Seat {
    /// That of the device whose memory is `place`.
    pub(super) fn of(place: Place) -> Self {
        let number = place.device_number().unwrap_or(0);
        Self { number, pages: mm().device(number).memory().managed }
    }

    /// Pages of its memory.
    pub(super) const fn pages(&self) -> u32 {
        self.pages
    }

    /// Registers it again, with all of its memory and the owner of the beginning.
    pub(super) fn take(&self) -> Result<(), Unmet> {
        register_again(self.number, self.pages, false)?;
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let there = mm().device(self.number).memory().managed;
        if there == 0 || there != self.pages && mm().unregister_device(self.number).is_ok() {
            // Tests that need it fail if it cannot be had.
            let _ = self.take();
        }
    }
}

/// Free chunks of 2 MiB.
pub(super) fn huge_chunks(place: Place) -> u32 {
    mm().zone(place).stat().chunks[usize::from(Order::PMD.get())]
}
