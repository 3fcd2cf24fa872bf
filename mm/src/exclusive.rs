//! Exclusive access: a page of RAM is lent to a device for atomic work (Linux: `make_device_exclusive`).
//!
//! The entry becomes non-present, of a kind of its own, with all attributes kept; it goes on to count as a mapping. The folio's
//! lock says that the loan must stand: a CPU's touch takes the page back, but sleeps while the folio is locked. After that the
//! loan lasts until somebody touches, moves, protects or unmaps the page; the device hears of it by its notifier.
//!
//! A huge page is lent as one: the PMD entry has the same form.

use crate::cursor::{Cursor, Peek};
use crate::entry::{Attrs, Entry, SoftKind, SoftLeaf};
use crate::error::FaultError;
use crate::fault::FaultInfo;
use crate::folio::{Folio, FolioRef, LockedFolio};
use crate::hmm::HmmError;
use crate::machine::{FlushReason, Machine};
use crate::notifier::NotifyEvent;
use crate::space::Space;
use crate::types::{Access, Frame, Level, Place, Prot, VaRange, Vaddr};
use crate::vma::{Vma, VmaKind};

/// A loan that stands at least as long as this lives: the folio is locked.
#[must_use = "the loan may be taken back when this is dropped"]
pub struct ExclusiveGuard<M: Machine> {
    folio: LockedFolio<M>,
    space: &'static Space<M>,
    addr: Vaddr,
    level: Level,
    frame: Frame,
}

impl<M: Machine> core::fmt::Debug for ExclusiveGuard<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} lent at {}", self.frame, self.addr)
    }
}

impl<M: Machine> ExclusiveGuard<M> {
    /// First address of the pages lent.
    #[must_use]
    pub const fn addr(&self) -> Vaddr {
        self.addr
    }
    /// The pages lent: one, or the 512 of a huge entry.
    #[must_use]
    pub const fn range(&self) -> VaRange {
        VaRange::new(self.addr.0, self.level.size())
    }
    /// The level of the entry.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }
    /// The first frame.
    #[must_use]
    pub const fn frame(&self) -> Frame {
        self.frame
    }
    /// The folio, which is locked.
    #[must_use]
    pub fn folio(&self) -> &Folio {
        &self.folio
    }

    /// True while the entry is the one that was made. An unmap does not ask for the folio's lock.
    #[must_use]
    pub fn stands(&self) -> bool {
        let _vmas = self.space.vmas.read();
        let Some(cursor) = self.space.cursor(self.addr) else { return false };
        cursor.level() == self.level
            && matches!(cursor.entry(), Entry::NonPresent(soft)
                if soft.kind == SoftKind::DeviceExclusive && soft.frame == self.frame)
    }
}

/// What one attempt led to.
enum Step<M: Machine> {
    Done(ExclusiveGuard<M>),
    /// It must be written to first.
    Touch,
    Sleep(&'static Folio),
    Again,
}

impl<M: Machine> Space<M> {
    /// Lends the page at `addr` to the device whose private memory is `owner`, for atomic access: the whole 2 MiB where it is
    /// mapped huge. It is faulted in for writing first, and counts as written from now on. May sleep; the caller holds no lock,
    /// and no other loan of the same folio.
    ///
    /// # Errors
    /// [`HmmError::Fault`]: no mapping, or no anonymous page; [`HmmError::Perm`]: it may not be written; [`HmmError::Oom`].
    pub fn make_exclusive(&'static self, addr: Vaddr, owner: Place) -> Result<ExclusiveGuard<M>, HmmError> {
        loop {
            match self.try_make_exclusive(addr, owner)? {
                Step::Done(guard) => return Ok(guard),
                Step::Again => {}
                Step::Sleep(folio) => folio.wait_unlocked::<M>(),
                Step::Touch => match self.handle_fault(&FaultInfo::new(addr, Access::Write)) {
                    Ok(_) => {}
                    Err(FaultError::Access(..)) => return Err(HmmError::Perm(addr)),
                    Err(FaultError::Oom(_) | FaultError::Limit(..)) => return Err(HmmError::Oom(addr)),
                    Err(_) => return Err(HmmError::Fault(addr)),
                },
            }
        }
    }

    fn try_make_exclusive(&'static self, addr: Vaddr, owner: Place) -> Result<Step<M>, HmmError> {
        let vmas = self.vmas.read();
        let vma = self.find_vma(&vmas, addr).ok_or(HmmError::Fault(addr))?;
        if !matches!(vma.kind(), VmaKind::Anon | VmaKind::Private) {
            return Err(HmmError::Fault(addr));
        }
        if !vma.prot().contains(Prot::WRITE) {
            return Err(HmmError::Perm(addr));
        }
        let (table, level) = match self.peek(addr) {
            Peek::Pmd(table, Entry::Leaf(_)) => (table, Level::Pmd),
            Peek::Pte(table, Entry::Leaf(_)) => (table, Level::Pte),
            _ => return Ok(Step::Touch),
        };
        let mut cursor = self.cursor_in(table, level, addr);
        let leaf = match cursor.entry() {
            Entry::Leaf(leaf) if leaf.attrs.contains(Attrs::WRITE) && !leaf.special => leaf,
            Entry::Leaf(_) => return Ok(Step::Touch),
            _ => return Ok(Step::Again),
        };
        let folio = M::mm().mapped_folio(leaf.frame);
        let Ok(folio) = LockedFolio::try_lock(FolioRef::get(folio)) else { return Ok(Step::Sleep(folio)) };
        let range = VaRange::new(cursor.addr().0, level.size());
        let _change = self.invalidate(range, NotifyEvent::Exclusive(owner));
        // The device writes unseen: it is noted now.
        let noted = Attrs::DIRTY | Attrs::SOFT_DIRTY;
        let owed = cursor.leaf_to_soft(|leaf| {
            SoftLeaf::new(SoftKind::DeviceExclusive, leaf.frame, leaf.attrs.difference(Attrs::YOUNG) | noted)
        });
        folio.set_dirty();
        // No CPU may reach it once the device begins.
        let leaf = owed.flush(FlushReason::Exclusive);
        let addr = cursor.addr();
        Ok(Step::Done(ExclusiveGuard { folio, space: self, addr, level, frame: leaf.frame }))
    }
}

/// Takes a loan back: the entry under the cursor, which is `soft`, maps its page again, as far as `vma` allows. The caller holds
/// the folio's lock, or knows otherwise that no device works on it, and has told the notifiers.
pub(crate) fn take_back<M: Machine>(cursor: &mut Cursor<M>, soft: &SoftLeaf, vma: &Vma) {
    debug_assert_eq!(soft.kind, SoftKind::DeviceExclusive);
    let mut attrs = soft.attrs;
    if !vma.prot().contains(Prot::WRITE) {
        attrs.remove(Attrs::WRITE);
    }
    cursor.replace_soft(Entry::mapping(soft.frame, attrs));
}
