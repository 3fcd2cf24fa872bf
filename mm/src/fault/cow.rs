//! Writes to present pages that do not allow them, in mappings that do: copy-on-write.
//!
//! What an entry says of sharing is one bit. With EXCLUSIVE no other mapping has the page: the write is granted in place.
//! Without it the page may be shared, with a clone or with an object, and is copied, unless this entry turns out to be all that is
//! left of the sharing: one mapping, and no reference besides it (who holds one may be reading, and must not see the write).
//!
//! The old page is referenced while it is copied, with no lock held. So its frame cannot come back as another page's
//! meanwhile, nor can it be moved, and an entry that still names it without EXCLUSIVE stands for what was copied.

use crate::counters::Event;
use crate::cursor::Peek;
use crate::entry::{Attrs, Entry, Leaf};
use crate::error::FaultError;
use crate::fault::{FaultInfo, FaultOutcome, Seen, Step, alloc_event, exec_of};
use crate::folio::{Folio, FolioRef, RmapLink};
use crate::group::NoPage;
use crate::machine::{FlushReason, Machine};
use crate::notifier::NotifyEvent;
use crate::space::Space;
use crate::split::split_pmd_at;
use crate::table::Table;
use crate::trace::copied_if_traced;
use crate::types::{Access, Level, Order, Place, VaRange, Vaddr};
use crate::vma::{Vma, VmaKind};
use crate::zone::Need;

/// What a present page is wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// A store.
    Write,
    /// To be nobody else's, without a store: for a pin (Linux: `FAULT_FLAG_UNSHARE`).
    Own,
}

impl Want {
    /// What the entry gets besides [`Attrs::EXCLUSIVE`].
    const fn attrs(self) -> Attrs {
        match self {
            Self::Write => Attrs::WRITE.union(Attrs::YOUNG).union(Attrs::DIRTY).union(Attrs::SOFT_DIRTY),
            Self::Own => Attrs::YOUNG,
        }
    }

    /// What the entry for a copy of `old` says.
    const fn of_copy(self, old: Attrs) -> Attrs {
        let kept = match self {
            Self::Write => Attrs::EXEC,
            // The copy is in no swap and no file: dirty.
            Self::Own => Attrs::EXEC.union(Attrs::SOFT_DIRTY).union(Attrs::UFFD_WP),
        };
        old.intersection(kept).union(self.attrs()).union(Attrs::EXCLUSIVE).union(Attrs::DIRTY)
    }
}

impl<M: Machine> Space<M> {
    /// A write to a present page that does not allow it, in a VMA that does.
    #[inline(never)]
    pub(super) fn fault_write(
        &'static self,
        vma: &'static Vma,
        fault: &FaultInfo,
        seen: &Seen<M>,
        leaf: Leaf,
    ) -> Result<Step, FaultError> {
        if leaf.attrs.contains(Attrs::UFFD_WP) {
            self.note_tracked_write(seen.table, seen.level, fault.addr, seen.word);
            return Ok(Step::Again);
        }
        if !leaf.attrs.contains(Attrs::EXCLUSIVE) && !vma.kind().is_shared() {
            return self.take_own(vma, fault.addr, seen, leaf, Want::Write);
        }
        let mut cursor = self.cursor_in(seen.table, seen.level, fault.addr);
        if !cursor.is_still(seen.word) {
            return Ok(Step::Again);
        }
        cursor.upgrade(Want::Write.attrs());
        M::count(Event::WriteUpgrade, 1);
        Ok(Step::Done(FaultOutcome::Upgraded))
    }

    /// Makes the page at `addr` this mapping's own: the one that is there, if nobody else has it, else a copy. The zero page
    /// counts as everybody's.
    fn take_own(
        &'static self,
        vma: &'static Vma,
        addr: Vaddr,
        seen: &Seen<M>,
        leaf: Leaf,
        want: Want,
    ) -> Result<Step, FaultError> {
        let (table, level) = (seen.table, seen.level);
        let order = level.order();
        let mut source = None;
        if !leaf.special {
            let mut cursor = self.cursor_in(table, level, addr);
            if !cursor.is_still(seen.word) {
                return Ok(Step::Again);
            }
            let folio = M::mm().mapped_folio(leaf.frame);
            if is_last(vma, folio, order) {
                cursor.upgrade(want.attrs() | Attrs::EXCLUSIVE);
                M::count(Event::WriteUpgrade, 1);
                return Ok(Step::Done(FaultOutcome::Upgraded));
            }
            source = Some(FolioRef::<M>::get(folio));
        }
        // A copy of the same size, if that can be had. A huge mapping may reach over the border of its VMA, or advice may have
        // changed: not with a page of its own.
        let start = addr.align_down(order.bytes());
        let pooled = vma.kind() == VmaKind::Hugetlb;
        let fits = level == Level::Pte || pooled || vma.huge_range(addr, &M::mm().policy).is_some();
        let copy = if fits { self.own_copy(vma, start, leaf, order) } else { Err(NoPage::Memory) };
        let copy = match copy {
            Ok(copy) => copy,
            Err(_) if pooled => return Err(FaultError::NoPage(addr)),
            Err(_) if level == Level::Pmd => return self.split_for_copy(addr, table),
            Err(no_page) => return Err(no_page.at(addr)),
        };
        copied_if_traced::<M>(leaf.frame.place(), &copy);
        let step = self.replace_shared(vma, start, seen, leaf, &copy, want);
        drop(source);
        if matches!(step, Step::Done(_)) {
            copy.into_owned();
        }
        Ok(step)
    }

    /// Maps `copy` instead of the page that `leaf` names, if that is still there. The copy's handle becomes the mapping's.
    fn replace_shared(
        &'static self,
        vma: &'static Vma,
        start: Vaddr,
        seen: &Seen<M>,
        leaf: Leaf,
        copy: &FolioRef<M>,
        want: Want,
    ) -> Step {
        let order = seen.level.order();
        let _change = self.invalidate(VaRange::new(start.0, order.bytes()), NotifyEvent::Clear);
        let mut cursor = self.cursor_in(seen.table, seen.level, start);
        match cursor.entry() {
            Entry::Leaf(now)
                if now.frame == leaf.frame
                    && now.special == leaf.special
                    && !now.attrs.contains(Attrs::EXCLUSIVE) => {}
            _ => return Step::Again,
        }
        // Another frame: not present, flush, new entry. The old page's reference goes last.
        let (old, late) = cursor.clear_leaf().flush_before_make(FlushReason::CopyOnWrite);
        let attrs = want.of_copy((old.attrs - Attrs::EXEC) | exec_of(vma));
        copy.set_maps(1);
        cursor.install(Entry::Leaf(Leaf::ram(copy.frame(), attrs)));
        drop(late);
        drop(cursor);
        if old.special {
            M::count(alloc_event(order), 1);
            return Step::Done(FaultOutcome::Allocated(order));
        }
        let folio = M::mm().mapped_folio(old.frame);
        if old.attrs.contains(Attrs::DIRTY) {
            folio.set_dirty();
        }
        folio.remove_maps(1);
        drop(FolioRef::<M>::from_owned(folio));
        M::count(Event::CowCopy, 1);
        Step::Done(FaultOutcome::Copied(order))
    }

    /// A folio with the contents of `leaf`, which the caller holds, not mapped yet.
    fn own_copy(
        &self,
        vma: &'static Vma,
        start: Vaddr,
        leaf: Leaf,
        order: Order,
    ) -> Result<FolioRef<M>, NoPage> {
        if leaf.special {
            return self.fresh_folio::<false>(vma, start, order);
        }
        if vma.kind() == VmaKind::Hugetlb {
            return Ok(self.hugetlb_copy(vma, start, leaf.frame)?);
        }
        let folio = self.charge(M::mm().alloc_folio(Place::RAM, order, Need::User)?)?;
        M::copy(leaf.frame, folio.frame(), order);
        folio.set_link(RmapLink { anon: vma.anon(), index: vma.page_index(start) });
        Ok(folio)
    }

    /// No 2 MiB page for a copy: small pages then.
    fn split_for_copy(&'static self, addr: Vaddr, table: &'static Table<M>) -> Result<Step, FaultError> {
        let spare = M::mm().spare_pte_table(addr, Need::Reserve).map_err(|_| FaultError::Oom(addr))?;
        M::count(Event::ThpFaultFallback, 1);
        let mut cursor = self.cursor_in(table, Level::Pmd, addr);
        split_pmd_at(&mut cursor, spare);
        Ok(Step::Again)
    }

    /// Makes sure that the page at `addr` is present and this mapping's own (exclusive), without allowing a write: a pin must
    /// not find itself on a page that the next writer copies away from. Pages of shared and driver's mappings are everybody's by
    /// design and stay as they are. What was found may have changed on return: look again under the table's lock.
    ///
    /// May sleep; the caller holds no lock.
    ///
    /// # Errors
    /// As [`Space::handle_fault`] for a read.
    pub fn unshare(&'static self, addr: Vaddr) -> Result<(), FaultError> {
        loop {
            match self.try_unshare(addr) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(FaultError::Oom(_)) if M::mm().relieve(Place::RAM) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// One look, with no lock held afterwards. True when the page is this mapping's own.
    fn try_unshare(&'static self, addr: Vaddr) -> Result<bool, FaultError> {
        let vmas = self.vmas.read();
        let vma = self.find_vma(&vmas, addr).ok_or(FaultError::NoVma(addr))?;
        if !vma.prot().allows(Access::Read) {
            return Err(FaultError::Access(addr, Access::Read));
        }
        let (table, level, leaf) = match self.peek(addr) {
            Peek::Pte(table, Entry::Leaf(leaf)) => (table, Level::Pte, leaf),
            Peek::Pmd(table, Entry::Leaf(leaf)) => (table, Level::Pmd, leaf),
            _ => {
                drop(vmas);
                self.handle_fault(&FaultInfo::new(addr, Access::Read))?;
                return Ok(false);
            }
        };
        if leaf.attrs.contains(Attrs::EXCLUSIVE) || vma.kind().is_shared() {
            return Ok(true);
        }
        let seen = Seen { table, level, word: Entry::Leaf(leaf).encode(level) };
        let done = matches!(self.take_own(vma, addr, &seen, leaf, Want::Own)?, Step::Done(_));
        if done {
            // Its outcome was counted as a fault's.
            M::count(Event::PgFault, 1);
        }
        Ok(done)
    }
}

/// True when one entry of `order` is all that maps `folio`, nobody else holds it, and it belongs to this mapping's family: then
/// nobody can be sharing it. With the entry's table locked and the VMA lock held, so that no clone makes a second one.
fn is_last(vma: &Vma, folio: &Folio, order: Order) -> bool {
    folio.order() == order
        && folio.map_count() == 1
        && folio.migration_entries() == 0
        && folio.refs() == 1
        && folio.link().anon == vma.anon()
}

impl VmaKind {
    /// True where everybody sees everybody's writes: there is nothing to copy.
    const fn is_shared(self) -> bool {
        matches!(self, Self::Shared | Self::Device)
    }
}
