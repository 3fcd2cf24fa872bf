//! Two megabytes of memory in every state that an entry can be in, for tests that go through all of them.

use crate::entry::{Attrs, Entry, SoftKind, SoftLeaf};
use crate::machine::FlushReason;
use crate::migrate::{Collected, Migration};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, Soft};
use crate::types::{Level, Prot, VaRange};
use crate::vma::HugeAdvice;

/// What the entries are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Present,
    Device,
    /// Collected by a migration that is parked, from RAM.
    Migration,
    /// The same, from the device.
    Returning,
    Exclusive,
    ProtNone,
    Zero,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] = [
        Self::Present,
        Self::Device,
        Self::Migration,
        Self::Returning,
        Self::Exclusive,
        Self::ProtNone,
        Self::Zero,
    ];

    /// Whether an operation on it may owe a flush of its own.
    pub(crate) const fn is_present(self) -> bool {
        matches!(self, Self::Present | Self::Zero)
    }

    /// Whether there is anything but zeros.
    pub(crate) const fn has_data(self) -> bool {
        !matches!(self, Self::Zero)
    }
}

/// A machine with pages 0..512 in one state.
pub(crate) struct Setup {
    pub(crate) kit: Kit,
    pub(crate) kind: Kind,
    parked: Option<Migration<Soft, Collected>>,
}

/// Every kind at both levels.
pub(crate) fn all() -> impl Iterator<Item = (Kind, Level)> {
    Kind::ALL.into_iter().flat_map(|kind| [(kind, Level::Pmd), (kind, Level::Pte)])
}

impl Setup {
    pub(crate) fn new(kind: Kind, level: Level) -> Self {
        let config = Config { cpus: 2, ..Config::default() };
        let kit = Kit::on(&config);
        kit.map(0, 512, if level == Level::Pmd { HugeAdvice::Huge } else { HugeAdvice::Default });
        let space = kit.space.space();
        let whole = range(0, 512);
        if kind == Kind::Zero {
            (0..512).for_each(|page| assert_eq!(kit.try_read(page), Ok(0)));
        } else {
            kit.fill(0, 512);
        }
        let mut parked = None;
        match kind {
            Kind::Present | Kind::Zero => {}
            Kind::Device => drop(space.migrate(whole, DEV)),
            Kind::Migration => parked = space.migrate_collect(whole, DEV).ok(),
            Kind::Returning => {
                space.migrate(whole, DEV).expect("all of it is mapped");
                parked = space.migrate_collect(whole, crate::types::Place::RAM).ok();
            }
            Kind::Exclusive => make_exclusive(&kit, whole),
            Kind::ProtNone => space.protect(whole, Prot::empty()).expect("all of it is mapped"),
        }
        let parked = parked.map(|(migration, _)| migration);
        let setup = Self { kit, kind, parked };
        assert_eq!(setup.entry(0).0, level);
        assert!(setup.is(0, kind), "{kind:?}: {:?}", setup.entry(0));
        setup
    }

    pub(crate) fn entry(&self, page: u64) -> (Level, Entry) {
        self.kit.space.entry_at(at(page))
    }

    pub(crate) fn attrs(&self, page: u64) -> Attrs {
        attrs_of(self.entry(page).1)
    }

    /// Whether a page's entry is of this kind.
    pub(crate) fn is(&self, page: u64, kind: Kind) -> bool {
        match self.entry(page).1 {
            Entry::Leaf(leaf) if leaf.special => kind == Kind::Zero,
            Entry::Leaf(_) => kind == Kind::Present,
            Entry::NonPresent(soft) => match soft.kind {
                SoftKind::Migration => matches!(kind, Kind::Migration | Kind::Returning),
                SoftKind::DevicePrivate => kind == Kind::Device,
                SoftKind::DeviceExclusive => kind == Kind::Exclusive,
                SoftKind::ProtNone => kind == Kind::ProtNone,
            },
            Entry::None | Entry::Table(_) => false,
        }
    }

    /// Lets a parked migration go on to its end.
    pub(crate) fn finish(&mut self) {
        if let Some(migration) = self.parked.take() {
            migration.unmap().copy().commit().finalize();
        }
    }

    /// Gives a parked migration up.
    pub(crate) fn give_up(&mut self) {
        self.parked = None;
    }

    /// Contents of what is mapped, and all invariants; with a migration under way, its end.
    pub(crate) fn check(&mut self, start: u64, len: u64) {
        self.finish();
        self.kit.audit();
        if self.kind.has_data() {
            self.kit.check_in_place(start, len);
        }
    }

    pub(crate) fn flushes(&self) -> u64 {
        self.kit.machine.counted(crate::counters::Event::TlbFlush)
    }
}

pub(crate) fn attrs_of(entry: Entry) -> Attrs {
    match entry {
        Entry::Leaf(leaf) => leaf.attrs,
        Entry::NonPresent(soft) => soft.attrs,
        Entry::None | Entry::Table(_) => panic!("nothing is there"),
    }
}

/// Lends all present pages of a range to a device.
pub(crate) fn make_exclusive(kit: &Kit, range: VaRange) {
    let space = kit.space.space();
    let mut addr = range.start;
    while addr < range.end {
        let mut cursor = space.cursor(addr).expect("something is mapped");
        let lend =
            |leaf: crate::entry::Leaf| SoftLeaf::new(SoftKind::DeviceExclusive, leaf.frame, leaf.attrs);
        let size = cursor.level().size();
        let leaf = cursor.leaf_to_soft(lend).flush(FlushReason::Migrate);
        if leaf.attrs.contains(Attrs::DIRTY) {
            kit.machine.mm.mapped_folio(leaf.frame).set_dirty();
        }
        addr = addr.add(size);
    }
}
