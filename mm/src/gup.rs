//! User pages for others than the CPU: got (a reference: it stays allocated) or pinned (it stays where it is, and the mapping
//! stays on it). Linux: `get_user_pages`, `pin_user_pages`.
//!
//! A pin is a reference and a count of its own. Three things follow for everybody else, each from what they ask anyway: a folio
//! with more references than mappings is not migrated, not collapsed and not split; a clone copies a pinned page at once; and
//! only an *exclusive* anonymous page is pinned, for from a shared one the next writer copies away, and the pin would hold a page
//! that nobody maps any more.
//!
//! ```text
//!  fast   no lock: read the entry, get the folio, count the pin, read the entry again; undo when it has changed
//!  slow   under the VMA lock and the table's: what is not there yet is faulted in, a shared page unshared, and for a
//!         long-term pin what lies on a device moved to RAM; then looked at again
//! ```
//!
//! The fast way never waits: whoever changes an entry changes it first and reads the counts afterwards, so that one of the two
//! sees the other.

use core::fmt;
use core::sync::atomic::{Ordering::SeqCst, fence};

use crate::counters::Event;
use crate::cursor::Peek;
use crate::entry::{Attrs, Entry, Leaf};
use crate::error::FaultError;
use crate::fault::FaultInfo;
use crate::folio::{Folio, FolioRef};
use crate::machine::Machine;
use crate::migrate::Cause;
use crate::space::Space;
use crate::sync::NoPreempt;
use crate::types::{Access, Frame, Level, PAGE_SIZE, Place, VaRange, Vaddr};
use crate::vma::{Vma, VmaKind};

bitflags::bitflags! {
    /// What a page is wanted for (Linux: `FOLL_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct PinFlags: u8 {
        /// To write it.
        const WRITE = 1 << 0;
        /// For long: not on a device, from which it would have to go when that is short of memory.
        const LONGTERM = 1 << 1;
        /// Try without a lock first.
        const FAST = 1 << 2;
    }
}

/// Why a page could not be had. The address is its; pages before it were had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PinError {
    /// Not whole user pages, or more than there is room for (EINVAL).
    Invalid(VaRange),
    /// The fault that would have brought it failed (EFAULT, or ENOMEM for [`FaultError::Oom`]).
    Fault(FaultError),
    /// A driver's page: nobody counts references to it (EFAULT).
    Driver(Vaddr),
    /// It cannot leave its device now: somebody holds it there (EAGAIN).
    Busy(Vaddr),
    /// There is no RAM for it to move to (ENOMEM).
    NoMemory(Vaddr),
}

impl From<FaultError> for PinError {
    fn from(error: FaultError) -> Self {
        Self::Fault(error)
    }
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(range) => write!(f, "{range} is not a range of user pages, or too long"),
            Self::Fault(error) => write!(f, "{error}"),
            Self::Driver(at) => write!(f, "the page at {at} is a driver's"),
            Self::Busy(at) => write!(f, "the page at {at} is held on its device"),
            Self::NoMemory(at) => write!(f, "no memory to move the page at {at} to"),
        }
    }
}

/// A page of user memory that stays allocated while this lives. What the mapping shows may become another page.
#[derive(Debug)]
pub struct Got<M: Machine> {
    folio: FolioRef<M>,
    frame: Frame,
}

impl<M: Machine> Got<M> {
    /// Its frame. Stable only while the folio is not migrated, which a reference that is held prevents.
    #[must_use]
    pub const fn frame(&self) -> Frame {
        self.frame
    }
    /// Where it lies.
    #[must_use]
    pub const fn place(&self) -> Place {
        self.frame.place()
    }
    /// The folio that it is a page of.
    #[must_use]
    pub fn folio(&self) -> &Folio {
        &self.folio
    }
}

/// A page of user memory that is pinned: it stays where it is, and its mapping stays on it. Dropping this unpins it, and notes
/// that it was written if that was what it was pinned for.
#[derive(Debug)]
pub struct Pinned<M: Machine> {
    got: Got<M>,
    write: bool,
}

impl<M: Machine> core::ops::Deref for Pinned<M> {
    type Target = Got<M>;
    fn deref(&self) -> &Got<M> {
        &self.got
    }
}

impl<M: Machine> Drop for Pinned<M> {
    fn drop(&mut self) {
        if self.write {
            self.got.folio.set_dirty();
        }
        // The reference goes after the pin: pins are never more than references.
        self.got.folio.remove_pins(1);
        M::count(Event::FollPinReleased, 1);
    }
}

/// What is wanted of a page.
#[derive(Clone, Copy)]
struct Want {
    flags: PinFlags,
    pin: bool,
}

impl Want {
    const fn access(self) -> Access {
        if self.flags.contains(PinFlags::WRITE) { Access::Write } else { Access::Read }
    }

    /// True for a leaf that can be had as it is, where only exclusive pages can be pinned (or not, in a shared mapping).
    fn takes(self, leaf: &Leaf, shared: bool) -> bool {
        let write = !self.flags.contains(PinFlags::WRITE) || leaf.attrs.contains(Attrs::WRITE);
        write && (!self.pin || !leaf.special && (shared || leaf.attrs.contains(Attrs::EXCLUSIVE)))
    }

    /// True for memory that it cannot stay in.
    fn must_leave(self, frame: Frame) -> bool {
        self.flags.contains(PinFlags::LONGTERM) && !frame.place().is_ram()
    }
}

/// What an address has to offer.
enum Look<M: Machine> {
    Got(Got<M>),
    /// Nothing that can be had: fault it in.
    Absent,
    /// A page that others may have too.
    Shared,
    /// A page of a device's; its folio is mapped around there.
    OnDevice(&'static Folio, VaRange),
}

/// How often a page is asked to leave its device.
const MOVES: u32 = 16;

impl<M: Machine> Space<M> {
    /// Gets references to the pages of `range` (`get_user_pages`), the first into `pages[0]`. Absent pages are faulted in, pages of
    /// private device memory come back, those of coherent memory stay.
    ///
    /// May sleep; the caller holds no lock.
    ///
    /// # Errors
    /// [`PinError`], with the first page that could not be had; those before it are in `pages`.
    pub fn get_pages(
        &'static self,
        range: VaRange,
        flags: PinFlags,
        pages: &mut [Option<Got<M>>],
    ) -> Result<(), PinError> {
        let want = Want { flags, pin: false };
        self.take_pages(range, pages, &|addr| self.take_page(addr, want))
    }

    /// Pins the pages of `range` (`pin_user_pages`), the first into `pages[0]`. As [`Space::get_pages`]; besides, a page that others
    /// may have too is copied, and with [`PinFlags::LONGTERM`] coherent memory is left for RAM, a 2 MiB page as one.
    ///
    /// # Errors
    /// As [`Space::get_pages`].
    pub fn pin_pages(
        &'static self,
        range: VaRange,
        flags: PinFlags,
        pages: &mut [Option<Pinned<M>>],
    ) -> Result<(), PinError> {
        let want = Want { flags, pin: true };
        self.take_pages(range, pages, &|addr| {
            let got = self.take_page(addr, want)?;
            M::count(Event::FollPinAcquired, 1);
            Ok(Pinned { got, write: flags.contains(PinFlags::WRITE) })
        })
    }

    fn take_pages<T>(
        &'static self,
        range: VaRange,
        pages: &mut [Option<T>],
        take: &dyn Fn(Vaddr) -> Result<T, PinError>,
    ) -> Result<(), PinError> {
        if !range.is_user_pages() || range.nr_pages() > pages.len() as u64 {
            return Err(PinError::Invalid(range));
        }
        let addrs = (range.start.0..range.end.0).step_by(PAGE_SIZE as usize);
        for (addr, page) in addrs.zip(pages) {
            *page = Some(take(Vaddr(addr))?);
        }
        Ok(())
    }

    /// One page, with its pin counted if one is wanted.
    fn take_page(&'static self, addr: Vaddr, want: Want) -> Result<Got<M>, PinError> {
        if want.flags.contains(PinFlags::FAST)
            && let Some(got) = self.take_fast(addr, want)
        {
            return Ok(got);
        }
        self.take_slow(addr, want)
    }

    /// Without a lock. `None` where it is not as simple as that.
    fn take_fast(&self, addr: Vaddr, want: Want) -> Option<Got<M>> {
        // No table goes away while preemption is off.
        let _section = NoPreempt::<M>::new();
        let (leaf, level) = self.leaf_at(addr)?;
        if leaf.special || !want.takes(&leaf, false) {
            return None;
        }
        let frame = page_of(&leaf, level, addr);
        if want.must_leave(frame) {
            return None;
        }
        let folio = M::mm().try_get_folio(frame)?;
        if want.pin {
            folio.add_pins(1);
        }
        // Counted first, looked at afterwards.
        fence(SeqCst);
        if self.leaf_at(addr) != Some((leaf, level)) {
            if want.pin {
                folio.remove_pins(1);
            }
            return None;
        }
        Some(Got { folio, frame })
    }

    /// The present leaf over `addr` and its level, without a lock. What the CPU notes in it is left out.
    fn leaf_at(&self, addr: Vaddr) -> Option<(Leaf, Level)> {
        let (leaf, level) = match self.peek(addr) {
            Peek::Pmd(_, Entry::Leaf(leaf)) => (leaf, Level::Pmd),
            Peek::Pte(_, Entry::Leaf(leaf)) => (leaf, Level::Pte),
            _ => return None,
        };
        Some((Leaf { attrs: leaf.attrs - (Attrs::YOUNG | Attrs::DIRTY), ..leaf }, level))
    }

    /// With locks, as often as it takes.
    fn take_slow(&'static self, addr: Vaddr, want: Want) -> Result<Got<M>, PinError> {
        let mut moves = 0;
        loop {
            let vmas = self.vmas.read();
            let vma = self.find_vma(&vmas, addr).ok_or(FaultError::NoVma(addr))?;
            if !vma.prot().allows(want.access()) {
                return Err(FaultError::Access(addr, want.access()).into());
            }
            if vma.kind() == VmaKind::Device {
                return Err(PinError::Driver(addr));
            }
            let look = self.try_take(vma, addr, want);
            drop(vmas);
            match look {
                Look::Got(got) => return Ok(got),
                Look::Absent => drop(self.handle_fault(&FaultInfo::new(addr, want.access()))?),
                Look::Shared => self.unshare(addr)?,
                Look::OnDevice(..) if moves == MOVES => return Err(PinError::Busy(addr)),
                Look::OnDevice(folio, range) => {
                    moves += 1;
                    self.leave_device(addr, folio, range)?;
                }
            }
        }
    }

    /// Looks at what maps `addr`, with its table locked, and takes it if it will do.
    fn try_take(&'static self, vma: &Vma, addr: Vaddr, want: Want) -> Look<M> {
        let Some(cursor) = self.cursor(addr) else { return Look::Absent };
        let Entry::Leaf(leaf) = cursor.entry() else { return Look::Absent };
        if want.access() == Access::Write && !leaf.attrs.contains(Attrs::WRITE) {
            return Look::Absent;
        }
        if !want.takes(&leaf, vma.kind() == VmaKind::Shared) {
            return Look::Shared;
        }
        let frame = page_of(&leaf, cursor.level(), addr);
        let folio = M::mm().mapped_folio(frame);
        if want.must_leave(frame) {
            // All of the folio that is mapped here: a part would tear it.
            let page = u64::from(frame.index() - folio.frame().index());
            let first = addr.align_down(PAGE_SIZE).0.saturating_sub(page * PAGE_SIZE);
            let around = VaRange::new(first, folio.order().bytes()).intersect(vma.range());
            return Look::OnDevice(folio, around);
        }
        let folio = FolioRef::get(folio);
        if want.pin {
            folio.add_pins(1);
        }
        Look::Got(Got { folio, frame })
    }

    /// Asks a folio of a device to go to RAM. Whether it has gone is seen when the entry is looked at again.
    #[cold]
    fn leave_device(
        &'static self,
        addr: Vaddr,
        folio: &'static Folio,
        range: VaRange,
    ) -> Result<(), PinError> {
        let Ok(report) = self.migrate(range, Place::RAM) else { return Ok(()) }; // unmapped meanwhile: look again
        if report.failed[Cause::Busy as usize] != 0 {
            folio.wait_unlocked::<M>();
        } else if report.failed[Cause::NoMemory as usize] != 0 {
            return Err(PinError::NoMemory(addr));
        } else if report.failed_pages() != 0 {
            M::relax();
        }
        Ok(())
    }
}

/// The frame of the page at `addr` that a leaf of `level` maps. Every page of a 2 MiB zero page is as good.
fn page_of(leaf: &Leaf, level: Level, addr: Vaddr) -> Frame {
    let page = (addr.0 & (level.size() - 1)) / PAGE_SIZE;
    leaf.frame.offset(page as u32)
}
