//! What each mapping of a space holds (`/proc/pid/smaps`).

use crate::cursor::Cursor;
use crate::entry::{Attrs, Entry, Leaf};
use crate::machine::Machine;
use crate::space::Space;
use crate::types::{Level, VaRange};
use crate::vma::Vma;

/// What a mapping holds, in bytes. Pages on devices count like those in RAM, as on Linux; zero pages and a driver's do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VmaUse {
    /// All of it.
    pub rss: u64,
    /// All of it, each page divided by how often it is mapped.
    pub pss: u64,
    /// Mapped elsewhere too, and not written.
    pub shared_clean: u64,
    /// Mapped elsewhere too, and written.
    pub shared_dirty: u64,
    /// Mapped only here, and not written.
    pub private_clean: u64,
    /// Mapped only here, and written.
    pub private_dirty: u64,
    /// Touched by a CPU of late.
    pub referenced: u64,
    /// Of no object.
    pub anonymous: u64,
    /// Of no object, by entries of 2 MiB.
    pub anon_huge: u64,
    /// On devices that no CPU reaches.
    pub device_private: u64,
}

impl VmaUse {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: &Self) -> Self {
        Self {
            rss: self.rss + other.rss,
            pss: self.pss + other.pss,
            shared_clean: self.shared_clean + other.shared_clean,
            shared_dirty: self.shared_dirty + other.shared_dirty,
            private_clean: self.private_clean + other.private_clean,
            private_dirty: self.private_dirty + other.private_dirty,
            referenced: self.referenced + other.referenced,
            anonymous: self.anonymous + other.anonymous,
            anon_huge: self.anon_huge + other.anon_huge,
            device_private: self.device_private + other.device_private,
        }
    }

    /// Notes what stands under the cursor, as far as it lies in `range`.
    fn note<M: Machine>(&mut self, cursor: &Cursor<M>, range: VaRange) {
        let (frame, attrs) = match cursor.entry() {
            Entry::Leaf(Leaf { special: true, .. }) | Entry::None | Entry::Table(_) => return,
            Entry::Leaf(leaf) => (leaf.frame, leaf.attrs),
            Entry::NonPresent(soft) => (soft.frame, soft.attrs),
        };
        let mm = M::mm();
        let folio = mm.mapped_folio(frame);
        let size = cursor.level().size();
        let here = VaRange::new(cursor.addr().align_down(size).0, size).intersect(range).len();
        let maps = u64::from(folio.map_count() + folio.migration_entries()).max(1);
        // Each page of a folio that is mapped by PTEs counts for itself there.
        let pages = u64::from(folio.order().pages());
        let maps = if cursor.level() == Level::Pte { maps.div_ceil(pages) } else { maps };
        let is_dirty = attrs.contains(Attrs::DIRTY) || folio.is_dirty();
        self.rss += here;
        self.pss += here / maps;
        let counter = match (maps > 1, is_dirty) {
            (true, false) => &mut self.shared_clean,
            (true, true) => &mut self.shared_dirty,
            (false, false) => &mut self.private_clean,
            (false, true) => &mut self.private_dirty,
        };
        *counter += here;
        if attrs.contains(Attrs::YOUNG) {
            self.referenced += here;
        }
        if frame.place().private_device().is_some() {
            self.device_private += here;
        }
        if !mm.anons.get(folio.link().anon).is_of_object() {
            self.anonymous += here;
            if cursor.level() == Level::Pmd {
                self.anon_huge += here;
            }
        }
    }
}

impl<M: Machine> Space<M> {
    /// Calls `f` with every VMA and what it holds, in address order. The VMA lock is held shared: `f` must not fault in this
    /// space. Each entry counts as it was when it was looked at.
    pub fn for_each_vma_use(&'static self, mut f: impl FnMut(&Vma, &VmaUse)) {
        let vmas = self.vmas.read();
        for vma in vmas.iter() {
            let (range, mut held) = (vma.range(), VmaUse::default());
            self.for_each_mapped(range, |cursor| held.note(cursor, range));
            f(vma, &held);
        }
    }
}
