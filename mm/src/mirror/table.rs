//! A device's page table: a radix tree of four levels, shaped like the CPU's, with entries of 4 KiB and 2 MiB.
//!
//! It is a cache: an entry may be dropped at any time, so that nothing here has to succeed but dropping. All of it is guarded by
//! the lock of its mirror; nodes are atomics because `mm` has no `unsafe`.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use crate::error::OutOfMemory;
use crate::machine::Machine;
use crate::mirror::is_own;
use crate::slab::{NIL, Slot, SlotHeader};
use crate::types::{Frame, Level, Order, PTRS, Place, VaRange, Vaddr};

bitflags::bitflags! {
    /// What the device may do with a page besides reading it.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct MirrorAttrs: u8 {
        /// Write it.
        const WRITE = 1 << 2;
        /// Work on it atomically: no CPU can reach it meanwhile.
        const ATOMIC = 1 << 3;
    }
}

/// An entry of the device's page table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MirrorEntry {
    /// The frame of the page asked for.
    pub frame: Frame,
    /// What is allowed.
    pub attrs: MirrorAttrs,
    /// The size of the entry.
    pub order: Order,
}

/// What stands in one place of a node.
#[derive(Clone, Copy)]
enum Word {
    None,
    Table(u32),
    Leaf(Frame, MirrorAttrs),
}

const TABLE: u8 = 1;
const LEAF: u8 = 2;
const KIND: u8 = 3;
const PLACE_SHIFT: u32 = 4;

/// 512 entries: a number each (of a frame, or the key of the node below), and what it means.
#[repr(align(64))]
pub(crate) struct MirrorNode {
    header: SlotHeader,
    /// Entries that are not empty.
    live: AtomicU32,
    numbers: [AtomicU32; PTRS],
    /// Kind, permission, and in the upper half the place of the frame.
    bits: [AtomicU8; PTRS],
}

impl Default for MirrorNode {
    fn default() -> Self {
        Self {
            header: SlotHeader::default(),
            live: AtomicU32::new(0),
            numbers: [const { AtomicU32::new(0) }; PTRS],
            bits: [const { AtomicU8::new(0) }; PTRS],
        }
    }
}

impl Slot for MirrorNode {
    const KIND: u8 = 8;
    fn header(&self) -> &SlotHeader {
        &self.header
    }
}

impl MirrorNode {
    fn word(&self, i: usize) -> Word {
        let (number, bits) = (self.numbers[i].load(Relaxed), self.bits[i].load(Relaxed));
        match bits & KIND {
            TABLE => Word::Table(number),
            LEAF => Word::Leaf(
                Frame::new(Place::from_raw(bits >> PLACE_SHIFT), number),
                MirrorAttrs::from_bits_truncate(bits),
            ),
            _ => Word::None,
        }
    }

    fn set(&self, i: usize, word: Word) {
        let was = self.bits[i].load(Relaxed) != 0;
        let (number, bits) = match word {
            Word::None => (0, 0),
            Word::Table(key) => (key, TABLE),
            Word::Leaf(frame, attrs) => {
                (frame.index(), LEAF | attrs.bits() | frame.place().raw() << PLACE_SHIFT)
            }
        };
        self.numbers[i].store(number, Relaxed);
        self.bits[i].store(bits, Relaxed);
        let live = self.live.load(Relaxed) + u32::from(bits != 0) - u32::from(was);
        self.live.store(live, Relaxed);
    }
}

impl MirrorNode {
    /// Empties a node of small entries. What number an empty one has is nobody's business.
    fn clear_small(&self) {
        self.bits.iter().for_each(|bits| bits.store(0, Relaxed));
        self.live.store(0, Relaxed);
    }
}

const fn below(level: Level) -> Level {
    match level {
        Level::Pgd => Level::Pud,
        Level::Pud => Level::Pmd,
        Level::Pmd | Level::Pte => Level::Pte,
    }
}

/// The tree.
pub(crate) struct MirrorTable {
    root: u32,
    /// Since it was empty, an entry was put that names other memory than private one.
    others: bool,
}

impl Default for MirrorTable {
    fn default() -> Self {
        Self { root: NIL, others: false }
    }
}

impl MirrorTable {
    /// The entry for the page at `addr`.
    pub(crate) fn get<M: Machine>(&self, addr: Vaddr) -> Option<MirrorEntry> {
        let mut key = self.root;
        let mut level = Level::Pgd;
        while key != NIL {
            match node::<M>(key).word(addr.index(level)) {
                Word::None => return None,
                Word::Leaf(first, attrs) => {
                    let page = (addr.0 & (level.size() - 1)) >> crate::types::PAGE_SHIFT;
                    return Some(MirrorEntry {
                        frame: first.offset(page as u32),
                        attrs,
                        order: level.order(),
                    });
                }
                Word::Table(next) => (key, level) = (next, below(level)),
            }
        }
        None
    }

    /// The pages from `addr` on, at most `most`, whose frames follow each other: the first frame, and how many. `None` when the first
    /// has no entry, or one that does not allow `write`.
    pub(crate) fn run<M: Machine>(&self, addr: Vaddr, most: u64, write: bool) -> Option<(Frame, u64)> {
        let allows = |attrs: MirrorAttrs| !write || attrs.contains(MirrorAttrs::WRITE);
        let mut key = self.root;
        let mut level = Level::Pgd;
        while key != NIL {
            let here = node::<M>(key);
            let first = addr.index(level);
            match here.word(first) {
                Word::Table(next) => (key, level) = (next, below(level)),
                Word::None => return None,
                Word::Leaf(_, attrs) if !allows(attrs) => return None,
                Word::Leaf(frame, _) if level != Level::Pte => {
                    let page = (addr.0 & (level.size() - 1)) >> crate::types::PAGE_SHIFT;
                    let left = u64::from(level.order().pages()) - page;
                    return Some((frame.offset(page as u32), left.min(most)));
                }
                Word::Leaf(frame, _) => {
                    let last = PTRS.min(first + most as usize);
                    let follows = |&i: &usize| match here.word(i) {
                        Word::Leaf(next, attrs) => next == frame.offset((i - first) as u32) && allows(attrs),
                        _ => false,
                    };
                    return Some((frame, 1 + (first + 1..last).take_while(follows).count() as u64));
                }
            }
        }
        None
    }

    /// Enters `frame` for the page of `level` at `addr`, in place of what stands there.
    pub(crate) fn put<M: Machine>(
        &mut self,
        addr: Vaddr,
        level: Level,
        frame: Frame,
        attrs: MirrorAttrs,
    ) -> Result<(), OutOfMemory> {
        self.others |= !is_own(frame);
        let here = node::<M>(self.node_of::<M>(addr, level)?);
        if let Word::Table(old) = here.word(addr.index(level)) {
            free::<M>(old, below(level));
        }
        here.set(addr.index(level), Word::Leaf(frame, attrs));
        Ok(())
    }

    /// The node that the small entries around `addr` stand in, for [`MirrorTable::put_small`]. It stays until an entry is cleared, or
    /// put for a larger page.
    pub(crate) fn small_node<M: Machine>(&mut self, addr: Vaddr) -> Result<u32, OutOfMemory> {
        self.node_of::<M>(addr, Level::Pte)
    }

    /// As [`MirrorTable::put`] of a small page, in its node.
    pub(crate) fn put_small<M: Machine>(&mut self, key: u32, addr: Vaddr, frame: Frame, attrs: MirrorAttrs) {
        self.others |= !is_own(frame);
        node::<M>(key).set(addr.index(Level::Pte), Word::Leaf(frame, attrs));
    }

    /// The key of the node for entries of `level` around `addr`, made if it is not there.
    fn node_of<M: Machine>(&mut self, addr: Vaddr, level: Level) -> Result<u32, OutOfMemory> {
        if self.root == NIL {
            self.root = alloc::<M>()?;
        }
        let (mut key, mut at) = (self.root, Level::Pgd);
        while at != level {
            let here = node::<M>(key);
            let i = addr.index(at);
            key = match here.word(i) {
                Word::Table(next) => next,
                Word::None => {
                    let next = alloc::<M>()?;
                    here.set(i, Word::Table(next));
                    next
                }
                Word::Leaf(..) => split::<M>(here, i)?,
            };
            at = below(at);
        }
        Ok(key)
    }

    /// Has it (or had it) entries that name other memory than private one?
    pub(crate) const fn has_others(&self) -> bool {
        self.others
    }

    /// Drops the entries of `range`. A huge one that lies partly in it is split, or dropped whole without memory for that; one of
    /// private memory, which is looked at when it is used, is left.
    pub(crate) fn clear<M: Machine>(&mut self, range: VaRange) {
        if self.root != NIL && clear_in::<M>(self.root, Level::Pgd, Vaddr(0), range) {
            *self = Self::default();
        }
    }

    /// Calls `f` for every entry, by its first address.
    pub(crate) fn for_each<M: Machine>(&self, f: &mut dyn FnMut(Vaddr, MirrorEntry)) {
        self.for_each_in::<M>(VaRange::between(Vaddr(0), Vaddr(u64::MAX)), f);
    }

    /// Calls `f` for every entry that lies in `range` or reaches into it.
    pub(crate) fn for_each_in<M: Machine>(&self, range: VaRange, f: &mut dyn FnMut(Vaddr, MirrorEntry)) {
        if self.root != NIL {
            each_in::<M>(self.root, Level::Pgd, Vaddr(0), range, f);
        }
    }
}

fn node<M: Machine>(key: u32) -> &'static MirrorNode {
    M::mm().mirror_nodes.get(key)
}

/// An empty node. One that is given back is empty, so a fresh one is too.
fn alloc<M: Machine>() -> Result<u32, OutOfMemory> {
    let node = M::mm().mirror_nodes.alloc(M::mm())?;
    debug_assert_eq!(node.live.load(Relaxed), 0, "nodes come back empty");
    Ok(node.header.key())
}

/// A 2 MiB entry becomes 512 small ones; the key of their node.
fn split<M: Machine>(pmd: &MirrorNode, i: usize) -> Result<u32, OutOfMemory> {
    let Word::Leaf(first, attrs) = pmd.word(i) else { unreachable!("the caller has seen a leaf") };
    let key = alloc::<M>()?;
    for page in 0..PTRS {
        node::<M>(key).set(page, Word::Leaf(first.offset(page as u32), attrs));
    }
    pmd.set(i, Word::Table(key));
    Ok(key)
}

/// Empties a node and all below it, and gives them back.
fn free<M: Machine>(key: u32, level: Level) {
    let here = node::<M>(key);
    for i in 0..PTRS {
        if let Word::Table(next) = here.word(i) {
            free::<M>(next, below(level));
        }
        here.set(i, Word::None);
    }
    M::mm().mirror_nodes.free(here);
}

/// Drops what lies in `range`; true when the node is empty then, and was given back.
fn clear_in<M: Machine>(key: u32, level: Level, base: Vaddr, range: VaRange) -> bool {
    let here = node::<M>(key);
    let size = level.size();
    let span = VaRange::new(base.0, size << 9).intersect(range);
    if level == Level::Pte && span.len() == size << 9 {
        here.clear_small();
    }
    let mut at = span.start.align_down(size);
    while at < span.end && here.live.load(Relaxed) != 0 {
        let i = at.index(level);
        let entry = VaRange::new(at.0, size);
        match here.word(i) {
            Word::None => {}
            Word::Leaf(..) if range.covers(entry) => here.set(i, Word::None),
            Word::Leaf(frame, _) if is_own(frame) => {}
            Word::Leaf(..) => match split::<M>(here, i) {
                Ok(_) => continue, // a table now
                Err(OutOfMemory { .. }) => here.set(i, Word::None),
            },
            Word::Table(next) => {
                if clear_in::<M>(next, below(level), at, range) {
                    here.set(i, Word::None);
                }
            }
        }
        at = at.add(size);
    }
    let empty = here.live.load(Relaxed) == 0;
    if empty {
        M::mm().mirror_nodes.free(here);
    }
    empty
}

fn each_in<M: Machine>(
    key: u32,
    level: Level,
    base: Vaddr,
    range: VaRange,
    f: &mut dyn FnMut(Vaddr, MirrorEntry),
) {
    let here = node::<M>(key);
    let size = level.size();
    let span = VaRange::new(base.0, size << 9).intersect(range);
    let mut at = span.start.align_down(size);
    while at < span.end {
        match here.word(at.index(level)) {
            Word::None => {}
            Word::Table(next) => each_in::<M>(next, below(level), at, range, f),
            Word::Leaf(frame, attrs) => f(at, MirrorEntry { frame, attrs, order: level.order() }),
        }
        at = at.add(size);
    }
}
