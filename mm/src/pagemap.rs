//! What a program may know of where its pages lie: one word per 4 KiB page, in the form of `/proc/pid/pagemap`.
//!
//! ```text
//!  63 present   62 not present, but kept   61 an object's page   57 uffd-wp   56 mapped once   55 soft-dirty
//!  present:  54:0 page frame number
//!  kept:     4:0 kind (1 migration, 2 device-private, 3 lent to a device), 36:5 number of the page, 40:37 place
//! ```
//!
//! All pages of a huge entry are told apart: each has its own number. A page under `PROT_NONE` is present, as it is for Linux.

use crate::cursor::Cursor;
use crate::entry::{Attrs, Entry, Leaf, SoftKind};
use crate::error::RangeError;
use crate::machine::Machine;
use crate::slab::NIL;
use crate::space::Space;
use crate::types::{Frame, Level, PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, PUD_SIZE, Place, VaRange, Vaddr};

/// What is known of one 4 KiB page. Zero: nothing is there.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct PagemapEntry(u64);

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE: u64 = 1 << 61;
const UFFD_WP: u64 = 1 << 57;
const EXCLUSIVE: u64 = 1 << 56;
const SOFT_DIRTY: u64 = 1 << 55;
const NUMBER: u64 = SOFT_DIRTY - 1;
const KIND_BITS: u32 = 5;
/// Place above the kind and a number of 32 bits.
const PLACE_SHIFT: u32 = KIND_BITS + 32;

impl PagemapEntry {
    /// The word.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// A CPU could use it, if its mapping allows.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }
    /// It is kept where no CPU reaches it, or on its way.
    #[must_use]
    pub const fn is_swapped(self) -> bool {
        self.0 & SWAPPED != 0
    }
    /// It belongs to an object or a driver.
    #[must_use]
    pub const fn is_file(self) -> bool {
        self.0 & FILE != 0
    }
    /// It is write-protected by a tracker: not written since.
    #[must_use]
    pub const fn is_uffd_wp(self) -> bool {
        self.0 & UFFD_WP != 0
    }
    /// No other mapping has it.
    #[must_use]
    pub const fn is_exclusive(self) -> bool {
        self.0 & EXCLUSIVE != 0
    }
    /// It was written since soft-dirty was cleared.
    #[must_use]
    pub const fn is_soft_dirty(self) -> bool {
        self.0 & SOFT_DIRTY != 0
    }
    /// The page frame number of one that is present.
    #[must_use]
    pub const fn pfn(self) -> Option<u64> {
        if self.is_present() { Some(self.0 & NUMBER) } else { None }
    }
    /// The kind and the frame of one that is kept.
    #[must_use]
    pub fn kept(self) -> Option<(SoftKind, Frame)> {
        let kind = match self.0 & ((1 << KIND_BITS) - 1) {
            1 => SoftKind::Migration,
            2 => SoftKind::DevicePrivate,
            3 => SoftKind::DeviceExclusive,
            _ => return None,
        };
        let place = Place::from_raw((self.0 >> PLACE_SHIFT) as u8 & 0xf);
        self.is_swapped().then(|| (kind, Frame::new(place, (self.0 >> KIND_BITS) as u32)))
    }

    /// The entry for the page `index` pages on in the same huge entry.
    const fn at(self, index: u64) -> Self {
        let step = if self.is_swapped() { index << KIND_BITS } else { index };
        if self.0 == 0 { self } else { Self(self.0 + step) }
    }
}

impl core::fmt::Debug for PagemapEntry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// PTEs that are looked at in one hold of their table's lock.
const CHUNK: usize = 64;

impl<M: Machine> Space<M> {
    /// Calls `f` for every page of `range`, in order. It holds no lock of a table, so that `f` may take its time, but the VMA lock:
    /// `f` must not fault in this space. What is said of a page was true when it was looked at.
    ///
    /// # Errors
    /// [`RangeError::Invalid`].
    pub fn pagemap(
        &'static self,
        range: VaRange,
        mut f: impl FnMut(Vaddr, PagemapEntry),
    ) -> Result<(), RangeError> {
        if !range.is_user_pages() {
            return Err(RangeError::Invalid(range));
        }
        let _vmas = self.vmas.read();
        let mut tell = |pages: VaRange, words: &dyn Fn(u64) -> PagemapEntry| {
            for i in 0..pages.nr_pages() {
                f(pages.start.add(i << PAGE_SHIFT), words(i));
            }
            pages.end
        };
        let mut at = range.start;
        while at < range.end {
            let until = |size: u64| VaRange::between(at, at.align_down(size).add(size).min(range.end));
            let Some(mut cursor) = self.cursor(at) else {
                at = tell(until(PUD_SIZE), &|_| PagemapEntry::default());
                continue;
            };
            if cursor.level() == Level::Pmd {
                let first = describe(&cursor).at((at.0 - cursor.addr().0) >> PAGE_SHIFT);
                drop(cursor);
                at = tell(until(PMD_SIZE), &|i| first.at(i));
                continue;
            }
            let chunk = until(PAGE_SIZE * CHUNK as u64);
            let mut words = [PagemapEntry::default(); CHUNK];
            for word in &mut words[..chunk.nr_pages() as usize] {
                *word = describe(&cursor);
                cursor.next();
            }
            drop(cursor);
            at = tell(chunk, &|i| words[i as usize]);
        }
        Ok(())
    }
}

/// The word for the (first) page of an entry. Its table is locked, so that what it names stays.
fn describe<M: Machine>(cursor: &Cursor<M>) -> PagemapEntry {
    let mm = M::mm();
    let (frame, attrs, state) = match cursor.entry() {
        Entry::None | Entry::Table(_) => return PagemapEntry::default(),
        Entry::Leaf(Leaf { special: true, frame, attrs, .. }) => {
            // The zero page belongs to nobody; a driver's page is a file's.
            let file = if mm.zero_frames().contains(&Some(frame)) { 0 } else { FILE };
            return PagemapEntry(PRESENT | file | marks(attrs) & !EXCLUSIVE | u64::from(frame.index()));
        }
        Entry::Leaf(leaf) => (leaf.frame, leaf.attrs, PRESENT),
        Entry::NonPresent(soft) if soft.kind == SoftKind::ProtNone => (soft.frame, soft.attrs, PRESENT),
        Entry::NonPresent(soft) => (soft.frame, soft.attrs, SWAPPED | soft.kind as u64),
    };
    let folio = mm.mapped_folio(frame);
    let mut word = state | marks(attrs);
    word |= if state & SWAPPED == 0 {
        u64::from(frame.index())
    } else {
        u64::from(frame.index()) << KIND_BITS | u64::from(frame.place().raw()) << PLACE_SHIFT
    };
    if folio.map_count() + folio.migration_entries() == 1 {
        word |= EXCLUSIVE;
    }
    let set = folio.link().anon;
    if set != NIL && mm.anons.get(set).is_of_object() {
        word |= FILE;
    }
    PagemapEntry(word)
}

const fn marks(attrs: Attrs) -> u64 {
    let mut word = 0;
    if attrs.contains(Attrs::UFFD_WP) {
        word |= UFFD_WP;
    }
    if attrs.contains(Attrs::SOFT_DIRTY) {
        word |= SOFT_DIRTY;
    }
    if attrs.contains(Attrs::EXCLUSIVE) {
        word |= EXCLUSIVE;
    }
    word
}
