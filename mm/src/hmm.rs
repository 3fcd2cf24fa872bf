//! Range fault and snapshot: what a device needs to know of a range in order to use it (Linux: `hmm_range_fault`).
//!
//! For every page: is it there, may it be written, where is it, and how large is the mapping that it is part of. A snapshot only
//! looks; a fault also brings in what is missing, as a touch by the CPU would. What is found is true only as long as the
//! interval's sequence number stands ([`NotifierRef::read_retry`]).
//!
//! One routine ([`judge`]) decides for an entry, whatever its level: a huge entry is a small one whose page is at an offset. (On
//! Linux the two levels have a routine each, which disagree on foreign pages, on the frame where a walk begins inside a huge
//! page, and on a write asked of a read-only entry.)

use core::sync::atomic::Ordering::Relaxed;

use crate::cursor::Peek;
use crate::entry::{Attrs, Entry, SoftKind, SoftLeaf};
use crate::error::FaultError;
use crate::fault::FaultInfo;
use crate::machine::Machine;
use crate::notifier::NotifierRef;
use crate::space::Space;
use crate::table::Table;
use crate::types::{Access, Frame, Level, Order, PAGE_SIZE, Place, Prot, VaRange, Vaddr};
use crate::vma::{Vma, VmaKind};

bitflags::bitflags! {
    /// What is wanted of a page. Nothing: a snapshot.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct HmmWant: u8 {
        /// It is to be there, for reading at least.
        const FAULT = 1;
        /// It is to be there for writing.
        const WRITE = 2;
    }
}

/// What was found of one page; before the call, what is wanted of it ([`HmmPfn::wanting`]).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct HmmPfn(u64);

const VALID: u64 = 1 << 63;
const WRITE: u64 = 1 << 62;
const ERROR: u64 = 1 << 61;
const ZERO: u64 = 1 << 60;
const WRITTEN: u64 = 1 << 59;
const WANT_SHIFT: u32 = 48;
const ORDER_SHIFT: u32 = 40;
const FRAME: u64 = (1 << ORDER_SHIFT) - 1;

impl HmmPfn {
    /// Nothing there, nothing wanted.
    pub const NONE: Self = Self(0);

    /// A request for one page.
    #[must_use]
    pub const fn wanting(want: HmmWant) -> Self {
        Self((want.bits() as u64) << WANT_SHIFT)
    }
    const fn wanted(self) -> HmmWant {
        HmmWant::from_bits_truncate((self.0 >> WANT_SHIFT) as u8)
    }
    /// The page is there, in a frame that the asker can use.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }
    /// It may be written.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.0 & WRITE != 0
    }
    /// Nobody may have it: no mapping, or one without access.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & ERROR != 0
    }
    /// It is the shared zero page, or part of the zero folio.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 & ZERO != 0
    }
    /// It is noted as written already, so that a write needs no further note.
    #[must_use]
    pub const fn is_written(self) -> bool {
        self.0 & WRITTEN != 0
    }
    /// The order of the mapping that it is part of: the aligned pages around it are there with the same permission, their frames
    /// one after the other.
    #[must_use]
    pub const fn map_order(self) -> Order {
        Order::from_bits((self.0 >> ORDER_SHIFT) as u32)
    }
    /// Its own frame, when it is valid.
    #[must_use]
    pub const fn frame(self) -> Option<Frame> {
        if self.is_valid() { Some(Frame::from_raw(self.0 & FRAME)) } else { None }
    }
    const fn at_page(self, page: u32) -> Self {
        if self.is_valid() { Self(self.0 + page as u64) } else { self }
    }
}

impl core::fmt::Debug for HmmPfn {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.is_error() {
            return f.write_str("error");
        }
        let Some(frame) = self.frame() else { return f.write_str("none") };
        let write = if self.is_writable() { "w" } else { "-" };
        write!(f, "{frame} r{write} order {}", self.map_order().get())?;
        if self.is_zero() { f.write_str(" zero") } else { Ok(()) }
    }
}

/// Why a range could not be made ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HmmError {
    /// A page is to be written in a mapping that does not allow it (EPERM).
    Perm(Vaddr),
    /// A page is wanted that cannot be had: no mapping, no access, or its device does not give it back (EFAULT).
    Fault(Vaddr),
    /// Entries changed meanwhile: begin again with a new sequence number (EBUSY).
    Busy,
    /// Out of memory (ENOMEM).
    Oom(Vaddr),
}

/// What to look at, and how.
#[derive(Clone, Copy, Debug)]
pub struct RangeFault<'a, M: Machine> {
    /// The pages.
    pub range: VaRange,
    /// What is wanted of all of them.
    pub want: HmmWant,
    /// More may be wanted of single ones: see the output array for it ([`HmmPfn::wanting`]).
    pub per_page: bool,
    /// The asker's own private memory: pages there are reported, not brought back.
    pub owner: Option<Place>,
    /// The sequence number that this is done under: the call ends as soon as it has moved.
    pub under: Option<(&'a NotifierRef<M>, u64)>,
}

/// What is to be done about an entry.
enum Verdict {
    /// It is what is wanted: tell of it. The frame is that of its first page.
    Tell(HmmPfn),
    /// A touch like this is needed first.
    Touch(Access),
    /// It is being moved: wait.
    Wait,
    /// It is to be noted as written first.
    Note,
}

/// What led a look at entries to an end.
enum Look {
    Done,
    Touch(Vaddr, Access),
    Wait(Vaddr),
    Note(Vaddr),
}

/// Decides for an entry of either level what it means to somebody who wants `want` of it.
fn judge(entry: Entry, level: Level, want: HmmWant, owner: Option<Place>, vma: &Vma) -> Verdict {
    let (frame, attrs, special) = match entry {
        Entry::Leaf(leaf) => (leaf.frame, leaf.attrs, leaf.special),
        Entry::NonPresent(soft) if is_own(&soft, owner) => (soft.frame, soft.attrs, false),
        _ if want.is_empty() => return Verdict::Tell(HmmPfn::NONE),
        Entry::NonPresent(SoftLeaf { kind: SoftKind::Migration, .. }) => return Verdict::Wait,
        _ => return Verdict::Touch(access(want)),
    };
    let protected = attrs.contains(Attrs::UFFD_WP);
    let writable = attrs.contains(Attrs::WRITE) && !protected;
    let written = attrs.contains(Attrs::DIRTY | Attrs::SOFT_DIRTY);
    if want.contains(HmmWant::WRITE) {
        // A page of the device's own that nobody shares needs no touch, which would bring it back: the write is granted there.
        let own = !matches!(entry, Entry::Leaf(_)) && attrs.contains(Attrs::EXCLUSIVE) && !protected;
        if !writable && (!own || !vma.prot().contains(Prot::WRITE)) {
            return Verdict::Touch(Access::Write);
        }
        if !writable || !written {
            return Verdict::Note;
        }
    }
    let zero = special && vma.kind() != VmaKind::Device;
    let flag = |is, bit| if is { bit } else { 0 };
    Verdict::Tell(HmmPfn(
        VALID
            | flag(writable, WRITE)
            | flag(zero, ZERO)
            | flag(written, WRITTEN)
            | u64::from(level.order().get()) << ORDER_SHIFT
            | frame.raw(),
    ))
}

fn is_own(soft: &SoftLeaf, owner: Option<Place>) -> bool {
    soft.kind == SoftKind::DevicePrivate
        && Some(soft.frame.place()) == owner
        && !soft.attrs.contains(Attrs::NO_ACCESS)
}

const fn access(want: HmmWant) -> Access {
    if want.contains(HmmWant::WRITE) { Access::Write } else { Access::Read }
}

impl Verdict {
    /// What it leads to, where it is not that all is well.
    fn look(self, vma: &Vma, addr: Vaddr) -> Result<Look, HmmError> {
        match self {
            Self::Tell(_) => Ok(Look::Done),
            Self::Touch(Access::Write) if !vma.prot().contains(Prot::WRITE) => Err(HmmError::Perm(addr)),
            Self::Touch(access) => Ok(Look::Touch(addr, access)),
            Self::Wait => Ok(Look::Wait(addr)),
            Self::Note => Ok(Look::Note(addr)),
        }
    }
}

/// Looks at the entries of a lowest table from `at` on, up to its end or `end`: all of one readable VMA. A range of small pages costs
/// no way down the tables for each.
fn look_at_small<M: Machine>(
    request: &RangeFault<'_, M>,
    vma: &Vma,
    table: &Table<M>,
    at: &mut Vaddr,
    end: Vaddr,
    out: &mut [HmmPfn],
) -> Result<Look, HmmError> {
    let end = at.align_down(Level::Pmd.size()).add(Level::Pmd.size()).min(end);
    let part = VaRange::between(*at, end);
    let first = ((at.0 - request.range.start.0) / PAGE_SIZE) as usize;
    let index = at.index(Level::Pte);
    let words = &table.words()[index..index + part.nr_pages() as usize];
    for (word, page) in words.iter().zip(&mut out[first..]) {
        let want = if request.per_page { request.want | page.wanted() } else { request.want };
        let entry = Entry::decode(word.load(Relaxed), Level::Pte);
        match judge(entry, Level::Pte, want, request.owner, vma) {
            Verdict::Tell(found) => *page = found,
            other => return other.look(vma, *at),
        }
        *at = at.add(PAGE_SIZE);
    }
    Ok(Look::Done)
}

impl<M: Machine> Space<M> {
    /// Looks at every page of the request's range, one element of `out` each, after making it what is wanted. May sleep; the
    /// caller holds no lock. With nothing wanted it neither sleeps on a page nor changes anything.
    ///
    /// # Errors
    /// [`HmmError`]; `out` is undefined then.
    ///
    /// # Panics
    /// When `out` has not one element for each page.
    pub fn range_fault(
        &'static self,
        request: &RangeFault<'_, M>,
        out: &mut [HmmPfn],
    ) -> Result<(), HmmError> {
        let range = request.range;
        assert_eq!(range.nr_pages(), out.len() as u64, "one element for each page");
        if !range.is_user_pages() {
            return Err(HmmError::Fault(range.start));
        }
        let mut at = range.start;
        loop {
            match self.look(request, &mut at, out)? {
                Look::Done => return Ok(()),
                Look::Touch(addr, access) => self.touch(addr, access)?,
                Look::Wait(addr) => self.wait_for_migration(addr),
                Look::Note(addr) => self.note_written(addr, request.owner),
            }
            if request.under.is_some_and(|(notifier, count)| notifier.read_retry(count)) {
                return Err(HmmError::Busy);
            }
        }
    }

    /// Looks at entries from `at` on, as long as they are what is wanted; `at` moves along.
    fn look(
        &'static self,
        request: &RangeFault<'_, M>,
        at: &mut Vaddr,
        out: &mut [HmmPfn],
    ) -> Result<Look, HmmError> {
        let range = request.range;
        let vmas = self.vmas.read();
        while *at < range.end {
            let addr = *at;
            let vma = self.find_vma(&vmas, addr);
            let vma_end = match vma {
                Some(vma) => vma.range().end,
                None => vmas.first_after(addr).map_or(range.end, Vma::start),
            };
            let (level, entry) = match self.peek(addr) {
                Peek::NoTable => (Level::Pmd, Entry::None),
                Peek::Pmd(_, entry) => (Level::Pmd, entry),
                Peek::Pte(table, entry) => match vma.filter(|vma| vma.prot().contains(Prot::READ)) {
                    Some(vma) => match look_at_small(request, vma, table, at, vma_end.min(range.end), out)? {
                        Look::Done => continue,
                        other => return Ok(other),
                    },
                    None => (Level::Pte, entry),
                },
            };
            let end = addr.align_down(level.size()).add(level.size()).min(range.end).min(vma_end);
            let first = ((addr.0 - range.start.0) / PAGE_SIZE) as usize;
            let pages = &mut out[first..first + VaRange::between(addr, end).nr_pages() as usize];
            let want = pages
                .iter()
                .fold(request.want, |want, page| if request.per_page { want | page.wanted() } else { want });
            let Some(vma) = vma.filter(|vma| vma.prot().contains(Prot::READ)) else {
                if !want.is_empty() {
                    return Err(HmmError::Fault(addr));
                }
                pages.fill(HmmPfn(ERROR));
                *at = end;
                continue;
            };
            match judge(entry, level, want, request.owner, vma) {
                Verdict::Tell(found) => {
                    let skipped = ((addr.0 & (level.size() - 1)) / PAGE_SIZE) as u32;
                    for (page, number) in pages.iter_mut().zip(skipped..) {
                        *page = found.at_page(number);
                    }
                    *at = end;
                }
                other => return other.look(vma, addr),
            }
        }
        Ok(Look::Done)
    }

    fn touch(&'static self, addr: Vaddr, access: Access) -> Result<(), HmmError> {
        match self.handle_fault(&FaultInfo::new(addr, access)) {
            Ok(_) => Ok(()),
            Err(FaultError::Access(addr, Access::Write)) => Err(HmmError::Perm(addr)),
            Err(FaultError::Oom(addr) | FaultError::Limit(addr, _)) => Err(HmmError::Oom(addr)),
            Err(_) => Err(HmmError::Fault(addr)),
        }
    }

    /// Sleeps until what is moved from or to `addr` has arrived.
    fn wait_for_migration(&'static self, addr: Vaddr) {
        let vmas = self.vmas.read();
        let Some(cursor) = self.cursor(addr) else { return };
        let Entry::NonPresent(SoftLeaf { kind: SoftKind::Migration, frame, .. }) = cursor.entry() else {
            return;
        };
        let folio = M::mm().mapped_folio(frame);
        drop(cursor);
        drop(vmas);
        folio.wait_unlocked::<M>();
    }

    /// Notes that a device may write the page at `addr` from now on, which lies where it can: dirty and soft-dirty are set before
    /// the first write, and a page of the device's own that nobody shares becomes writable. Does nothing where the entry is
    /// another one by now.
    fn note_written(&'static self, addr: Vaddr, owner: Option<Place>) {
        let marks = Attrs::WRITE | Attrs::DIRTY | Attrs::SOFT_DIRTY;
        let vmas = self.vmas.read();
        if !self.find_vma(&vmas, addr).is_some_and(|vma| vma.prot().contains(Prot::WRITE)) {
            return;
        }
        let Some(mut cursor) = self.cursor(addr) else { return };
        match cursor.entry() {
            Entry::Leaf(leaf) if leaf.attrs.contains(Attrs::WRITE) => cursor.upgrade(marks | Attrs::YOUNG),
            Entry::NonPresent(soft)
                if is_own(&soft, owner)
                    && soft.attrs.intersects(Attrs::WRITE | Attrs::EXCLUSIVE)
                    && !soft.attrs.contains(Attrs::UFFD_WP) =>
            {
                cursor.replace_soft(Entry::NonPresent(SoftLeaf { attrs: soft.attrs | marks, ..soft }));
            }
            _ => {}
        }
    }
}
