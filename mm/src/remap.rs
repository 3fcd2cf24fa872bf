//! Moving mappings (`mremap`).
//!
//! The pages stay where they are; their entries move to other addresses, and a new VMA takes over their page indices, directly after
//! the old one in the set, so that the reverse map finds each entry at one place or the other. Three rules make that hold:
//! - entries move with the set's lock and both tables held, one table's worth at a time;
//! - a present leaf arrives hidden ([`SoftKind::ProtNone`]): a walk of the reverse map that meets it knows that a flush may be owed.
//!   One flush round pays for all of them, then they are present again;
//! - what the move needs is counted and set aside first, so it cannot stop half way.
//!
//! Where both sides are aligned alike, everything under a PMD entry moves as that entry: a huge mapping stays one, and a table of
//! small ones is hooked in elsewhere. Otherwise huge mappings are split, and PTEs move one by one.

use core::sync::atomic::Ordering::Relaxed;

use crate::cursor::{Cursor, Peek};
use crate::entry::{Attrs, Entry, Leaf, SoftKind, SoftLeaf};
use crate::error::RangeError;
use crate::machine::{FlushReason, Machine};
use crate::notifier::NotifyEvent;
use crate::slab::NIL;
use crate::space::Space;
use crate::split::split_pmd;
use crate::table::{Table, TableStash};
use crate::tlb::TlbGather;
use crate::types::{Level, PMD_SIZE, PUD_SIZE, VaRange, Vaddr};
use crate::vma::{Vma, VmaAttrs, VmaIndex, VmaKind, VmaSpares};
use crate::zone::Need;

/// Where a mapping goes, and how long it is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemapTarget {
    /// The new address. What is mapped there is unmapped first (`MREMAP_FIXED`).
    pub addr: Vaddr,
    /// Its new length in bytes.
    pub len: u64,
}

bitflags::bitflags! {
    /// How a mapping moves.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct RemapFlags: u32 {
        /// The old mapping stays, empty (`MREMAP_DONTUNMAP`). The lengths must be equal.
        const KEEP_OLD = 1 << 0;
    }
}

/// A stretch of a move: addresses that lie under one PMD entry on both sides.
#[derive(Clone, Copy)]
struct Stretch {
    from: Vaddr,
    to: Vaddr,
    len: u64,
}

impl Stretch {
    /// Everything under one PMD entry goes to under one PMD entry.
    const fn is_whole(self) -> bool {
        self.len == PMD_SIZE
    }
}

/// What a move has met.
#[derive(Clone, Copy, Default)]
struct Found {
    /// Leaves that were present, and are hidden at their new place.
    hidden: bool,
    /// PTE tables, which may be empty now.
    tables: bool,
}

/// The VMA that holds `addr`, where one was found under the same hold of the lock.
fn find<M: Machine>(vmas: &VmaIndex<M>, addr: Vaddr) -> &'static Vma {
    match vmas.find(addr) {
        Some(vma) => vma,
        None => unreachable!("the mapping was found under this lock"),
    }
}

/// The stretch that begins at `from`, of a move of `old` to `new`.
fn stretch(old: VaRange, new: Vaddr, from: Vaddr) -> Stretch {
    let to = new.add(from.0 - old.start.0);
    let room = |at: Vaddr| PMD_SIZE - (at.0 & (PMD_SIZE - 1));
    let len = room(from).min(room(to)).min(old.end.0 - from.0);
    Stretch { from, to, len }
}

impl<M: Machine> Space<M> {
    /// Moves the mapping of `old`, which must lie in one VMA, shrinks it or lets it grow (`mremap`). At its old address it shrinks
    /// and grows in place. Pages keep their contents and their place, on a device too; all of them count as soft-dirty.
    ///
    /// # Errors
    /// [`RangeError::Invalid`]: the two ranges overlap, lengths differ where they must not, or the VMA is a driver's and would grow
    /// or be kept. [`RangeError::NotMapped`] with the address where the VMA of `old` ends. [`RangeError::Exists`]: there is no room
    /// to grow in place. [`RangeError::Oom`]. Nothing was changed then.
    pub fn remap(
        &'static self,
        old: VaRange,
        target: RemapTarget,
        flags: RemapFlags,
    ) -> Result<(), RangeError> {
        let new = VaRange::new(target.addr.0, target.len);
        let keep = flags.contains(RemapFlags::KEEP_OLD);
        if !old.is_user_pages() {
            return Err(RangeError::Invalid(old));
        }
        let in_place = new.start == old.start;
        let overlap = old.start < new.end && new.start < old.end;
        if !new.is_user_pages() || (overlap && !in_place) || (keep && (in_place || new.len() != old.len())) {
            return Err(RangeError::Invalid(new));
        }
        let mut vmas = self.vmas.write();
        let vma = vmas.find(old.start).ok_or(RangeError::NotMapped(old.start))?;
        if !vma.range().covers(old) {
            return Err(RangeError::NotMapped(vma.range().end));
        }
        if vma.kind() == VmaKind::Hugetlb || self.cuts_hugetlb(&vmas, new) {
            return Err(RangeError::Invalid(new));
        }
        if vma.kind() == VmaKind::Device && (keep || new.len() > old.len()) {
            return Err(RangeError::Invalid(new));
        }
        if in_place {
            self.resize(&mut vmas, vma, old, new)
        } else {
            self.move_range(&mut vmas, old, new, keep)
        }
    }

    /// Shrinks a mapping, or lets it grow where it is.
    fn resize(
        &'static self,
        vmas: &mut VmaIndex<M>,
        vma: &'static Vma,
        old: VaRange,
        new: VaRange,
    ) -> Result<(), RangeError> {
        if new.end < old.end {
            return self.unmap_locked(vmas, VaRange::between(new.end, old.end));
        }
        if new.end == old.end {
            return Ok(());
        }
        let more = VaRange::between(old.end, new.end);
        if vmas.first_after(old.end).is_some_and(|next| next.start() < new.end) {
            return Err(RangeError::Exists(more));
        }
        vma.set_end(new.end);
        self.merge_vmas(vmas, more);
        Ok(())
    }

    fn move_range(
        &'static self,
        vmas: &mut VmaIndex<M>,
        old: VaRange,
        new: VaRange,
        keep: bool,
    ) -> Result<(), RangeError> {
        let moved = VaRange::new(old.start.0, old.len().min(new.len()));
        let tail = VaRange::between(moved.end, old.end);
        let mut vma = find(vmas, moved.start);
        let attrs = VmaAttrs { range: new, pgoff: vma.page_index(moved.start), ..vma.attrs() };
        let occupied = vmas.iter_in(new).next().is_some();
        // Where it continues what is there before it, that VMA grows.
        let grows = vmas
            .find(Vaddr(new.start.0.wrapping_sub(1)))
            .filter(|before| !occupied && before.is_continued_by(&attrs));
        let mut stash = self.stash_for_move(moved, new.start)?;
        let cuts_there = if occupied { Some(self.reserve_cuts(new)?) } else { None };
        let cuts_here = if tail.is_empty() { None } else { Some(self.reserve_cuts(tail)?) };
        let splits = !keep && (vma.start() < moved.start || vma.object() != NIL);
        let ends = [new.start, new.end, moved.end, old.end];
        let there = if occupied { 0 } else { 2 };
        let here = if splits || !tail.is_empty() { 4 } else { 2 };
        let more = usize::from(grows.is_none());
        let mut spares =
            VmaSpares::for_cuts(vmas, &ends[there..here], more).map_err(|_| RangeError::Oom(old.start))?;
        // Nothing can fail from here on.
        for (gone, cuts) in [(new, cuts_there), (tail, cuts_here)] {
            if let Some(cuts) = cuts {
                self.split_vma(vmas, gone.start, &mut spares);
                self.split_vma(vmas, gone.end, &mut spares);
                self.cut_mappings(cuts);
                self.unmap_cut(vmas, gone);
                vma = find(vmas, moved.start);
            }
        }
        match grows {
            Some(before) => before.set_end(new.end),
            None => {
                let there = spares.take();
                there.set(&attrs);
                self.link_vma(there, Some(vma));
                vmas.insert(there);
            }
        }
        self.move_between(vmas, vma, moved, new.start, &mut stash);
        if !keep {
            self.leave(vmas, vma, moved, &mut spares);
        }
        if grows.is_none() {
            self.merge_vmas_at(vmas, new.start);
        }
        self.merge_vmas_at(vmas, new.end);
        Ok(())
    }

    /// Moves what is mapped in `old`, which `vma` covers, to addresses from `new` on, where there is a VMA for it and nothing in it.
    fn move_between(
        &'static self,
        vmas: &VmaIndex<M>,
        vma: &Vma,
        old: VaRange,
        new: Vaddr,
        stash: &mut TableStash<M>,
    ) {
        let _change = self.invalidate(old, NotifyEvent::Unmap);
        let mut gather = TlbGather::new(FlushReason::Remap);
        let found = self.move_mappings(vma, old, new, stash, &mut gather);
        if found.tables {
            self.free_empty_tables(vmas, old, &mut gather);
        }
        gather.flush();
        if found.hidden {
            self.reveal(VaRange::new(new.0, old.len()));
        }
    }

    /// Takes `gone`, where nothing is mapped any more, out of `vma`.
    fn leave(
        &'static self,
        vmas: &mut VmaIndex<M>,
        vma: &'static Vma,
        gone: VaRange,
        spares: &mut VmaSpares<M>,
    ) {
        let range = vma.range();
        if gone.start == range.start && gone.end < range.end && vma.object() == NIL {
            return self.set_vma_start(vma, gone.end);
        }
        self.split_vma(vmas, gone.end, spares);
        if gone.start == range.start {
            self.drop_vma(vmas, vma);
        } else {
            vma.set_end(gone.start);
        }
    }

    /// Sets aside the tables that a move takes: one for each huge mapping that does not move as a whole, one for each 2 MiB at the
    /// destination that gets PTEs.
    fn stash_for_move(&'static self, old: VaRange, new: Vaddr) -> Result<TableStash<M>, RangeError> {
        let mut stash = TableStash::new();
        let (mut last_split, mut last_filled) = (None, None);
        let mut at = old.start;
        while at < old.end {
            let step = stretch(old, new, at);
            let oom = |_| RangeError::Oom(step.from);
            let huge = match self.peek(at) {
                Peek::NoTable => {
                    at = at.align_down(PUD_SIZE).add(PUD_SIZE);
                    continue;
                }
                // Nothing yet: but where the destination begins under the same entry, what moves there first makes a table of it,
                // and that moves on, empty as it is here.
                Peek::Pmd(_, Entry::None) if at.align_down(PMD_SIZE) == new.align_down(PMD_SIZE) => {
                    Some(false)
                }
                Peek::Pmd(_, Entry::None) => None,
                Peek::Pmd(..) => Some(true),
                Peek::Pte(..) => Some(false),
            };
            at = at.add(step.len);
            let Some(huge) = huge else { continue };
            self.pmd_table_or_alloc(step.to, Need::User).map_err(oom)?;
            if step.is_whole() {
                continue;
            }
            let (split, filled) = (step.from.align_down(PMD_SIZE), step.to.align_down(PMD_SIZE));
            if huge && last_split.replace(split) != Some(split) {
                stash.add(Need::Reserve).map_err(oom)?;
            }
            if last_filled.replace(filled) != Some(filled) {
                stash.add(Need::User).map_err(oom)?;
            }
        }
        Ok(stash)
    }

    /// Moves every entry of `old`, which `vma` covers, to addresses from `new` on, where nothing is.
    fn move_mappings(
        &'static self,
        vma: &Vma,
        old: VaRange,
        new: Vaddr,
        stash: &mut TableStash<M>,
        gather: &mut TlbGather<M>,
    ) -> Found {
        let set = (vma.anon() != NIL).then(|| M::mm().anons.get(vma.anon()));
        let mut found = Found::default();
        let mut at = old.start;
        while at < old.end {
            let step = stretch(old, new, at);
            let Some(pmd) = self.pmd_table(at) else {
                at = at.align_down(PUD_SIZE).add(PUD_SIZE);
                continue;
            };
            let entry = Entry::decode(pmd.words()[at.index(Level::Pmd)].load(Relaxed), Level::Pmd);
            found.tables |= matches!(entry, Entry::Table(_));
            if entry == Entry::None {
                at = at.add(step.len);
                continue;
            }
            let Some(pmd_there) = self.pmd_table(step.to) else {
                unreachable!("a PMD table was made for what is to move")
            };
            match entry {
                _ if step.is_whole() => {
                    let _walks = set.map(|set| set.hold());
                    found.hidden |= Pair::lock(self, Level::Pmd, pmd, pmd_there, step).move_all(step, gather);
                }
                Entry::Table(pfn) => {
                    let there = self.pte_table_there(pmd_there, step.to, stash);
                    let _walks = set.map(|set| set.hold());
                    found.hidden |=
                        Pair::lock(self, Level::Pte, M::mm().table(pfn), there, step).move_all(step, gather);
                }
                _ => {
                    // It stays a table if somebody was faster: look again.
                    if let Some(spare) = stash.take(at) {
                        split_pmd(self, at, spare);
                    }
                    continue;
                }
            }
            at = at.add(step.len);
        }
        found
    }

    /// The PTE table at the destination, made of a spare one if need be.
    fn pte_table_there(
        &'static self,
        pmd: &'static Table<M>,
        to: Vaddr,
        stash: &mut TableStash<M>,
    ) -> &'static Table<M> {
        let mut cursor = self.cursor_in(pmd, Level::Pmd, to);
        if let Entry::Table(pfn) = cursor.entry() {
            return M::mm().table(pfn);
        }
        let Some(spare) = stash.take(to) else { unreachable!("a table was set aside for what is to move") };
        let table = spare.table();
        cursor.hook(spare);
        table
    }

    /// Makes present again what arrived hidden in `range`. After the flush.
    fn reveal(&'static self, range: VaRange) {
        self.for_each_mapped(range, |cursor| {
            if let Entry::NonPresent(soft) = cursor.entry()
                && soft.kind == SoftKind::ProtNone
            {
                cursor.replace_soft(Entry::mapping(soft.frame, soft.attrs));
            }
        });
    }
}

/// The two tables of a stretch, locked.
struct Pair<M: Machine> {
    from: Cursor<M>,
    /// `None` where one table is both.
    to: Option<Cursor<M>>,
}

impl<M: Machine> Pair<M> {
    /// Locks both, in order of their descriptors.
    fn lock(
        space: &'static Space<M>,
        level: Level,
        from: &'static Table<M>,
        to: &'static Table<M>,
        step: Stretch,
    ) -> Self {
        let source = || space.cursor_in(from, level, step.from);
        let there = || space.cursor_in(to, level, step.to);
        if core::ptr::eq(from, to) {
            Self { from: source(), to: None }
        } else if from.slab_index() < to.slab_index() {
            let from = source();
            Self { from, to: Some(there()) }
        } else {
            let to = Some(there());
            Self { from: source(), to }
        }
    }

    /// The cursor on the destination's entry.
    fn there(&mut self, at: Vaddr) -> &mut Cursor<M> {
        let cursor = match &mut self.to {
            Some(to) => to,
            None => &mut self.from,
        };
        let found = cursor.seek(at);
        debug_assert!(found, "a stretch lies in one table on both sides");
        cursor
    }

    /// Moves all entries of the stretch; true when one is hidden now.
    fn move_all(mut self, step: Stretch, gather: &mut TlbGather<M>) -> bool {
        let mut hidden = false;
        let mut done = 0;
        while done < step.len {
            self.from.seek(step.from.add(done));
            hidden |= self.move_one(step.to.add(done), gather);
            done += self.from.level().size();
        }
        hidden
    }

    fn move_one(&mut self, to: Vaddr, gather: &mut TlbGather<M>) -> bool {
        let (space, addr) = (self.from.space(), self.from.addr());
        let (entry, hidden) = match self.from.entry() {
            Entry::None => return false,
            Entry::Leaf(_) => {
                let leaf = gather.defer(self.from.clear_leaf());
                (arriving(leaf), !leaf.special)
            }
            Entry::NonPresent(soft) => {
                TlbGather::settle(Some(gather), space);
                self.from.clear_soft();
                (Entry::NonPresent(moved(soft)), false)
            }
            Entry::Table(pfn) => {
                let table = M::mm().table(pfn);
                let mut ptes = space.cursor_in(table, Level::Pte, addr);
                let hidden = hide_all(&mut ptes, gather);
                // Still under its lock: who waits for it sees that the table is elsewhere now, and looks again.
                table.set_place(Level::Pte, to);
                drop(ptes);
                self.from.clear_table();
                gather.moved_table(space, addr);
                (Entry::Table(pfn), hidden)
            }
        };
        self.there(to).install(entry);
        hidden
    }
}

/// What stands for a leaf at its new place until the flush. A zero page belongs to nobody and needs no hiding.
fn arriving(leaf: Leaf) -> Entry {
    let attrs = leaf.attrs | Attrs::SOFT_DIRTY;
    if leaf.special {
        Entry::Leaf(Leaf { attrs, ..leaf })
    } else {
        Entry::NonPresent(SoftLeaf::new(SoftKind::ProtNone, leaf.frame, attrs))
    }
}

/// A non-present entry at its new place.
fn moved(soft: SoftLeaf) -> SoftLeaf {
    SoftLeaf { attrs: soft.attrs | Attrs::SOFT_DIRTY, ..soft }
}

/// Does to all entries of a table what a move does to one, in place: the table itself is about to move. True when one is hidden now.
fn hide_all<M: Machine>(cursor: &mut Cursor<M>, gather: &mut TlbGather<M>) -> bool {
    let mut hidden = false;
    loop {
        match cursor.entry() {
            Entry::Leaf(leaf) if leaf.special => {
                cursor.upgrade(Attrs::SOFT_DIRTY);
                gather.defer(cursor.restrict(Attrs::empty()));
            }
            Entry::Leaf(_) => {
                let hide = |leaf: Leaf| {
                    SoftLeaf::new(SoftKind::ProtNone, leaf.frame, leaf.attrs | Attrs::SOFT_DIRTY)
                };
                gather.defer(cursor.leaf_to_soft(hide));
                hidden = true;
            }
            Entry::NonPresent(soft) => {
                TlbGather::settle(Some(gather), cursor.space());
                cursor.replace_soft(Entry::NonPresent(moved(soft)));
            }
            Entry::None | Entry::Table(_) => {}
        }
        if !cursor.next() {
            return hidden;
        }
    }
}
