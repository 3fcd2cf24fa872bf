//! What a caller can ask of a migration, and what it hears of every unit.

use core::fmt;

use crate::entry::{Attrs, Entry, SoftKind};
use crate::machine::Machine;
use crate::migrate::Cause;
use crate::migrate::unit::Batch;
use crate::notifier::Owner;
use crate::types::{Frame, MAX_DEVICES, Order, Place, Vaddr};
use crate::vma::{Vma, VmaKind};

/// A set of places that pages are taken from.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Sources(u16);

impl Sources {
    /// No place.
    pub const NONE: Self = Self(0);
    /// System RAM.
    pub const RAM: Self = Self::of(Place::RAM);

    /// One place.
    #[must_use]
    #[inline(always)]
    pub const fn of(place: Place) -> Self {
        Self(1 << (place.raw() & 15))
    }
    /// The private and coherent memory of every device.
    #[must_use]
    pub const fn devices() -> Self {
        let mut all = Self::NONE;
        let mut n = 0;
        while n < MAX_DEVICES {
            all = all.and(Place::device(n)).and(Place::coherent(n));
            n += 1;
        }
        all
    }
    /// These, and `place`.
    #[must_use]
    pub const fn and(self, place: Place) -> Self {
        Self(self.0 | Self::of(place).0)
    }
    /// These, less `place`.
    #[must_use]
    pub const fn without(self, place: Place) -> Self {
        Self(self.0 & !Self::of(place).0)
    }
    /// What is in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// True when pages of `place` are taken.
    #[must_use]
    #[inline(always)]
    pub const fn contains(self, place: Place) -> bool {
        self.0 & Self::of(place).0 != 0
    }
    /// True when pages of some private device are taken.
    const fn has_private(self) -> bool {
        // The numbers of private devices are 1 to MAX_DEVICES.
        self.0 & ((1 << MAX_DEVICES) - 1) << 1 != 0
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = (0..16).filter(|&raw| Place::is_raw(raw)).map(Place::from_raw);
        f.write_str("{")?;
        for (i, place) in places.filter(|&place| self.contains(place)).enumerate() {
            write!(f, "{}{place}", if i == 0 { "" } else { " " })?;
        }
        f.write_str("}")
    }
}

bitflags::bitflags! {
    /// What a migration does besides moving pages.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct MigrateFlags: u8 {
        /// Fault in what is absent, at the destination at once, and fetch what lies on other devices, in the same walk.
        const FAULT = 1 << 0;
        /// With `FAULT`: the destination is going to write. Pages that may not be written yet become writable, a page that is
        /// shared by a copy for this mapping alone; that counts as a write of each such page. Needs a writable mapping.
        const WRITE = 1 << 1;
        /// The first 2 MiB unit gets single pages, as if no larger memory were free at the destination; for tests.
        const REFUSE_HUGE = 1 << 2;
    }
}

/// What a migration takes, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MigrateOptions {
    /// Where pages are taken from. Pages on a device that is not among them stay, as [`Cause::Foreign`].
    pub from: Sources,
    /// What is done besides.
    pub flags: MigrateFlags,
    /// The largest order of memory for a hole where no 2 MiB page is wanted or fits.
    pub hole_order: Order,
    /// Who looks after its own copies of the translations of what is taken ([`crate::NotifyEvent::Migrate`]). It has to drop
    /// them by itself: see [`crate::Space::migrate_as`].
    pub owner: Option<Owner>,
    /// What folios that arrive on a device carry for its driver ([`crate::Folio::driver_word`]): a name of what the driver keeps
    /// for this call. It hears of each ([`crate::PagemapOps::folio_arrived`]). 0: nothing, and it hears of none.
    pub driver_word: u64,
}

impl MigrateOptions {
    /// What [`crate::Space::migrate`] does: to a device from RAM, to RAM from every device; holes page by page.
    #[must_use]
    pub const fn to(place: Place) -> Self {
        let from = if place.is_ram() { Sources::devices() } else { Sources::RAM };
        Self { from, flags: MigrateFlags::empty(), hole_order: Order::BASE, owner: None, driver_word: 0 }
    }

    /// The same from other places.
    #[must_use]
    pub const fn from(self, from: Sources) -> Self {
        Self { from, ..self }
    }

    /// The same with these flags.
    #[must_use]
    pub const fn with(self, flags: MigrateFlags) -> Self {
        Self { flags, ..self }
    }

    /// The same with a word for the device's driver.
    #[must_use]
    pub const fn with_word(self, driver_word: u64) -> Self {
        Self { driver_word, ..self }
    }

    /// The same for this owner of copies.
    #[must_use]
    pub const fn by(self, owner: Owner) -> Self {
        Self { owner: Some(owner), ..self }
    }

    /// The places that pages are really taken from on the way to `to`.
    pub(crate) const fn sources(&self, to: Place) -> Sources {
        let mut from = self.from;
        if self.flags.contains(MigrateFlags::FAULT) {
            from = from.union(Sources::devices());
        }
        from.without(to)
    }

    /// True when the destination is going to write.
    pub(crate) const fn writes(&self) -> bool {
        self.flags.contains(MigrateFlags::FAULT) && self.flags.contains(MigrateFlags::WRITE)
    }
}

/// How a unit ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It moved, in one piece.
    Moved,
    /// It moved, into smaller folios.
    InPieces,
    /// It was a hole or a zero page and has memory now.
    Filled,
    /// A copy of it, for this mapping alone, is at the destination; it stayed with its other mappings.
    Copied,
    /// It stayed where it was.
    Stayed(Cause),
}

/// What became of one unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnitReport {
    /// Where it was found.
    pub addr: Vaddr,
    /// Its order. Of a folio that stayed, only a part may lie in the range.
    pub order: Order,
    /// Base pages of it that the report counts.
    pub pages: u32,
    /// How it ended.
    pub verdict: Verdict,
}

/// Entries that a loop over single pages takes without a closer look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fast {
    /// Present pages of RAM.
    Ram,
    /// Device-private pages.
    Private,
    /// None: every entry is looked at closely.
    Nothing,
}

impl Fast {
    pub(crate) const fn of(options: &MigrateOptions, to: Place) -> Self {
        let from = options.sources(to);
        if options.writes() {
            Self::Nothing
        } else if from.contains(Place::RAM) {
            Self::Ram
        } else if from.has_private() {
            Self::Private
        } else {
            Self::Nothing
        }
    }
}

/// What a migration does with an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pick {
    /// The folio that it maps moves.
    Move(Frame),
    /// A copy of what it maps goes, unless nobody else shares that.
    Copy(Frame),
    /// It gets cleared memory.
    Hole,
    /// Its page is there already, and is this mapping's alone: only the permission is missing.
    Grant,
    /// It stays as it is, and that is no failure.
    Leave,
    /// It stays though it was asked for.
    Fail(Cause),
}

impl<M: Machine> Batch<M> {
    /// True when empty entries of `vma` get memory.
    pub(crate) fn fills(&self, vma: &Vma) -> bool {
        let wanted = !self.to.is_ram() || self.options.flags.contains(MigrateFlags::FAULT);
        wanted && vma.kind() == VmaKind::Anon
    }

    /// What is done with an entry of `vma`.
    pub(crate) fn pick(&self, entry: Entry, vma: &Vma) -> Pick {
        match entry {
            Entry::None if self.fills(vma) => Pick::Hole,
            // For reading, a zero page is as good in RAM as any.
            Entry::Leaf(leaf) if leaf.special => {
                let wanted = !self.to.is_ram() || self.options.writes();
                if wanted && self.fills(vma) { Pick::Hole } else { Pick::Leave }
            }
            Entry::Leaf(leaf) => self.pick_page(leaf.frame, leaf.attrs),
            Entry::NonPresent(soft) => match soft.kind {
                // The notifiers were told of the change: no device works any more on a page that was lent.
                SoftKind::DevicePrivate | SoftKind::DeviceExclusive => self.pick_page(soft.frame, soft.attrs),
                SoftKind::Migration => Pick::Fail(Cause::Busy),
                SoftKind::ProtNone => Pick::Leave,
            },
            Entry::None | Entry::Table(_) => Pick::Leave,
        }
    }

    fn pick_page(&self, frame: Frame, attrs: Attrs) -> Pick {
        let place = frame.place();
        let refused = self.options.writes() && !attrs.contains(Attrs::WRITE);
        let shared = refused && !attrs.contains(Attrs::EXCLUSIVE);
        let here = place == self.to;
        if !here && !self.from.contains(place) {
            return if place.is_ram() { Pick::Leave } else { Pick::Fail(Cause::Foreign) };
        }
        match (here, shared) {
            (_, true) => Pick::Copy(frame),
            (false, false) => Pick::Move(frame),
            (true, false) if refused => Pick::Grant,
            (true, false) => Pick::Leave,
        }
    }
}

/// What a write adds to an entry.
pub(crate) const WRITTEN: Attrs =
    Attrs::WRITE.union(Attrs::EXCLUSIVE).union(Attrs::YOUNG).union(Attrs::DIRTY).union(Attrs::SOFT_DIRTY);

/// The attributes of an entry that is written through from now on: a tracker of writes sees it.
pub(crate) const fn written(attrs: Attrs) -> Attrs {
    attrs.difference(Attrs::UFFD_WP).union(WRITTEN)
}
