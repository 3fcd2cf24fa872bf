//! The command set of a device that is driven by tests: what Linux's `test_hmm` offers per open file, with the same counts.
//!
//! A [`Dmirror`] is one opening of the device for one address space. Its commands are given kernel memory to bring data from or to;
//! a character device only forwards. Data is moved by words: 512 to a page.
//!
//! Two counts come back. `faults` counts *rounds*: the device reads or writes through its page table until an entry is missing,
//! then faults in all of the rest, and goes on. `cpages` counts pages read or written, also after a migration to the device, where
//! it is the number of pages that the device finds in its table then; after a migration to RAM it counts what moved: a 2 MiB page
//! that stayed one as one, everything else page by page.

use core::sync::atomic::{AtomicBool, Ordering::AcqRel, Ordering::Release};

use crate::error::{OutOfMemory, RangeError};
use crate::hmm::{HmmError, HmmPfn, HmmWant, RangeFault};
use crate::machine::Machine;
use crate::migrate::{MigrateFlags, Report};
pub use crate::mirror::snap::Snap;
use crate::mirror::{MirrorAttrs, MirrorEntry, MirrorRef};
use crate::space::{AddressSpace, SpaceUser};
use crate::types::{Access, Order, PAGE_SIZE, Place, VaRange, Vaddr};

/// Tries to lend a range as a whole.
const ROUNDS: u32 = 16;
/// Words of a page.
pub const PAGE_WORDS: usize = (PAGE_SIZE / 8) as usize;

/// What a command did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Done {
    /// Pages (see the module).
    pub cpages: u64,
    /// Rounds of faults.
    pub faults: u64,
}

/// Why a command failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DmirrorError {
    /// A page is not in the device's page table (ENOENT).
    NotThere,
    /// A page may not be written, or is still lent for atomic access (EPERM).
    Perm,
    /// A page cannot be had (EFAULT).
    Fault,
    /// The range does not come to rest (EBUSY).
    Busy,
    /// A range that is not mapped, or not to be read; or the address space has ended (EINVAL).
    Invalid,
    /// Out of memory (ENOMEM).
    NoMemory,
}

impl DmirrorError {
    /// The number that Linux has for it.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::Perm => 1,
            Self::NotThere => 2,
            Self::NoMemory => 12,
            Self::Fault => 14,
            Self::Busy => 16,
            Self::Invalid => 22,
        }
    }
}

impl From<HmmError> for DmirrorError {
    fn from(error: HmmError) -> Self {
        match error {
            HmmError::Perm(_) => Self::Perm,
            HmmError::Fault(_) => Self::Fault,
            HmmError::Busy => Self::Busy,
            HmmError::Oom(_) => Self::NoMemory,
        }
    }
}

impl From<RangeError> for DmirrorError {
    fn from(error: RangeError) -> Self {
        match error {
            RangeError::Oom(_) => Self::NoMemory,
            RangeError::Busy(_) => Self::Busy,
            _ => Self::Invalid,
        }
    }
}

impl From<OutOfMemory> for DmirrorError {
    fn from(_: OutOfMemory) -> Self {
        Self::NoMemory
    }
}

/// Is handed a piece of what a device has read, with the number of its first page in the range. EXCLUSIVE may begin again, and hand
/// out a piece another time.
pub type Take<'a> = dyn FnMut(u64, &[u64]) -> Result<(), DmirrorError> + 'a;
/// Puts what a device is to write into a piece, whose first page in the range has this number.
pub type Give<'a> = dyn FnMut(u64, &mut [u64]) -> Result<(), DmirrorError> + 'a;

/// One opening of a device, for one address space. It ends as the command CLOSE does ([`Dmirror::close`]); one that is just dropped
/// ends the mirroring alone, and pages that lie on the device stay there.
///
/// A device has its memory from when it was registered, not in chunks that come as they are needed: closing and RELEASE leave all of
/// it free, and who wants it gone takes out the device ([`crate::mm::Mm::unregister_device`]).
#[derive(Debug)]
pub struct Dmirror<M: Machine> {
    mirror: MirrorRef<M>,
    device: Place,
    fail_alloc: AtomicBool,
}

impl<M: Machine> Dmirror<M> {
    /// Opens the device whose memory is `device` for `space`.
    ///
    /// # Errors
    /// [`DmirrorError::Invalid`] when there is no such device; [`DmirrorError::NoMemory`].
    pub fn open(device: Place, space: &AddressSpace<M>) -> Result<Self, DmirrorError> {
        let number = device.device_number().ok_or(DmirrorError::Invalid)?;
        if !M::mm().device(number).zone.is_registered() {
            return Err(DmirrorError::Invalid);
        }
        let mirror = MirrorRef::new(space.space(), device)?;
        Ok(Self { mirror, device, fail_alloc: AtomicBool::new(false) })
    }

    /// Its view of the space.
    #[must_use]
    pub const fn mirror(&self) -> &MirrorRef<M> {
        &self.mirror
    }

    /// Where the device's memory lies.
    #[must_use]
    pub const fn device(&self) -> Place {
        self.device
    }

    fn space(&self) -> Result<SpaceUser<M>, DmirrorError> {
        self.mirror.space().ok_or(DmirrorError::Invalid)
    }

    /// Makes the next allocation of a 2 MiB page fail, in a migration either way that this opening is told to do: single pages are
    /// taken for it (the flag `FAIL_ALLOC`). Once, and then only: it waits for a migration that has a 2 MiB page in it.
    pub fn fail_next_huge(&self) {
        self.refuse_next_huge(true);
    }

    /// The same, or takes it back (the command FLAGS).
    pub fn refuse_next_huge(&self, refuse: bool) {
        self.fail_alloc.store(refuse, Release);
    }

    /// READ: the device reads as many pages from `addr` on as `to` has room for.
    ///
    /// # Errors
    /// [`DmirrorError`]; what `to` holds then is undefined.
    pub fn read(&self, addr: Vaddr, to: &mut [u64]) -> Result<Done, DmirrorError> {
        self.read_to(range_of(addr, to.len())?, to, &mut stays)
    }

    /// READ, piece by piece: each is read into `words`, whole pages, and handed to `take`.
    ///
    /// # Errors
    /// [`DmirrorError`], that of `take` too; pieces before the one that failed were handed out.
    pub fn read_to(
        &self,
        range: VaRange,
        words: &mut [u64],
        take: &mut Take<'_>,
    ) -> Result<Done, DmirrorError> {
        self.read_pieces(range, words, take, true)
    }

    /// WRITE: the device writes the pages of `from` from `addr` on.
    ///
    /// # Errors
    /// [`DmirrorError`]; pages before the one that failed are written.
    pub fn write(&self, addr: Vaddr, from: &[u64]) -> Result<Done, DmirrorError> {
        let range = range_of(addr, from.len())?;
        let mut done = Done::default();
        self.write_piece(range, from, &mut done)?;
        Ok(done)
    }

    /// WRITE, piece by piece: each is what `give` has put into `words`, which is told the number of its first page in the range.
    ///
    /// # Errors
    /// [`DmirrorError`], that of `give` too; pages before the one that failed are written.
    pub fn write_from(
        &self,
        range: VaRange,
        words: &mut [u64],
        give: &mut Give<'_>,
    ) -> Result<Done, DmirrorError> {
        let mut done = Done::default();
        while done.cpages < range.nr_pages() {
            let left = rest(range, done.cpages);
            let piece = piece_of(words, left)?;
            give(done.cpages, piece)?;
            self.write_piece(left, piece, &mut done)?;
        }
        Ok(done)
    }

    /// Writes the first pages of `left`; what is missing of any page there is faulted in, in one round.
    fn write_piece(&self, left: VaRange, from: &[u64], done: &mut Done) -> Result<(), DmirrorError> {
        let (mut written, pages) = (0, (from.len() / PAGE_WORDS) as u64);
        loop {
            let piece = VaRange::new(left.start.0 + written * PAGE_SIZE, (pages - written) * PAGE_SIZE);
            let words = &from[words_to(written)..];
            written += self.mirror.access_range(piece, Access::Write, &mut |frame, first, count| {
                M::write_frame(frame, 0, &words[words_to(first)..words_to(first + count)]);
            });
            if written == pages {
                done.cpages += pages;
                return Ok(());
            }
            self.mirror.fault(rest(left, written), HmmWant::FAULT | HmmWant::WRITE)?;
            done.faults += 1;
        }
    }

    /// Reads through the device's page table. A page that is not there is an error, or begins a round of faults.
    fn read_pieces(
        &self,
        range: VaRange,
        words: &mut [u64],
        take: &mut Take<'_>,
        fault: bool,
    ) -> Result<Done, DmirrorError> {
        let mut done = Done::default();
        while done.cpages < range.nr_pages() {
            let left = rest(range, done.cpages);
            let piece = piece_of(words, left)?;
            let (mut read, pages) = (0, (piece.len() / PAGE_WORDS) as u64);
            loop {
                let missing = VaRange::new(left.start.0 + read * PAGE_SIZE, (pages - read) * PAGE_SIZE);
                let words = &mut piece[words_to(read)..];
                read += self.mirror.access_range(missing, Access::Read, &mut |frame, first, count| {
                    M::read_frame(frame, 0, &mut words[words_to(first)..words_to(first + count)]);
                });
                if read == pages {
                    break;
                }
                if !fault {
                    return Err(DmirrorError::NotThere);
                }
                self.mirror.fault(rest(left, read), HmmWant::FAULT)?;
                done.faults += 1;
            }
            take(done.cpages, piece)?;
            done.cpages += pages;
        }
        Ok(done)
    }

    /// `MIGRATE_TO_DEV`: moves the pages to the device, enters those that are there then in its page table, and reads all of
    /// them through it.
    ///
    /// # Errors
    /// [`DmirrorError::NotThere`] when a page did not move; [`DmirrorError::Invalid`] when part of the range is not mapped or
    /// not to be read.
    pub fn migrate_to_device(&self, addr: Vaddr, to: &mut [u64]) -> Result<Done, DmirrorError> {
        self.migrate_and_read(range_of(addr, to.len())?, to, &mut stays)
    }

    /// `MIGRATE_TO_DEV`, which reads piece by piece.
    ///
    /// # Errors
    /// As [`Dmirror::migrate_to_device`]; that of `take`, when all has moved.
    pub fn migrate_and_read(
        &self,
        range: VaRange,
        words: &mut [u64],
        take: &mut Take<'_>,
    ) -> Result<Done, DmirrorError> {
        self.migrate(range, self.device)?;
        self.enter_own(range)?;
        self.read_pieces(range, words, take, false)
    }

    /// `MIGRATE_TO_SYS`: moves the pages of the range that lie on a device to RAM. `cpages` counts what moved, a 2 MiB page that
    /// stayed one as one.
    ///
    /// # Errors
    /// [`DmirrorError::Invalid`] as above.
    pub fn migrate_to_system(&self, range: VaRange) -> Result<Done, DmirrorError> {
        let report = self.migrate(range, Place::RAM)?;
        // The entries that a driver would have had: one for a 2 MiB page in one piece, else one for each page.
        let huge = report.huge_pages;
        Ok(Done { cpages: report.pages - huge + huge / u64::from(Order::PMD.pages()), faults: 0 })
    }

    fn migrate(&self, range: VaRange, to: Place) -> Result<Report, DmirrorError> {
        let mut flags = MigrateFlags::empty();
        flags.set(MigrateFlags::REFUSE_HUGE, self.fail_alloc.swap(false, AcqRel));
        let report = self.mirror.migrate_with(range, to, &mut flags);
        if flags.contains(MigrateFlags::REFUSE_HUGE) {
            self.fail_alloc.store(true, Release); // there was none to refuse
        }
        Ok(report?)
    }

    /// Enters the pages of the range that lie in the device's own memory.
    fn enter_own(&self, range: VaRange) -> Result<(), DmirrorError> {
        Ok(self.mirror.enter_own(range)?)
    }

    /// SNAPSHOT: what the device would find, without faults; one byte for each page from `addr` on.
    ///
    /// # Errors
    /// [`DmirrorError`].
    pub fn snapshot(&self, addr: Vaddr, out: &mut [u8]) -> Result<Done, DmirrorError> {
        let range = range_of(addr, out.len() * PAGE_WORDS)?;
        let user = self.space()?;
        let mut pfns = [HmmPfn::NONE; 32];
        let mut at = range.start;
        for bytes in out.chunks_mut(pfns.len()) {
            let range = VaRange::new(at.0, bytes.len() as u64 * PAGE_SIZE);
            let request = RangeFault {
                range,
                want: HmmWant::empty(),
                per_page: false,
                owner: Some(self.device),
                under: None,
            };
            let pfns = &mut pfns[..bytes.len()];
            user.space().range_fault(&request, pfns)?;
            for (byte, pfn) in bytes.iter_mut().zip(pfns) {
                *byte = Snap::of(*pfn, self.device).bits();
            }
            at = range.end;
        }
        Ok(Done { cpages: range.nr_pages(), faults: 0 })
    }

    /// EXCLUSIVE: borrows the pages for atomic access, and reads them through the device's page table.
    ///
    /// # Errors
    /// [`DmirrorError`]; [`DmirrorError::NotThere`] when one was taken back before it could be read.
    pub fn exclusive(&self, addr: Vaddr, to: &mut [u64]) -> Result<Done, DmirrorError> {
        self.exclusive_to(range_of(addr, to.len())?, to, &mut stays)
    }

    /// EXCLUSIVE, which reads piece by piece.
    ///
    /// # Errors
    /// As [`Dmirror::exclusive`]; that of `take`, when all are lent.
    pub fn exclusive_to(
        &self,
        range: VaRange,
        words: &mut [u64],
        take: &mut Take<'_>,
    ) -> Result<Done, DmirrorError> {
        let user = self.space()?;
        // A page that is brought in for its loan may take neighbours along that were lent already.
        for _ in 0..ROUNDS {
            let mut at = range.start;
            while at < range.end {
                if self.mirror.entry(at).is_some_and(|entry| entry.attrs.contains(MirrorAttrs::ATOMIC)) {
                    at = at.add(PAGE_SIZE);
                    continue;
                }
                let lent = user.space().make_exclusive(at, self.device)?;
                if self.mirror.enter_exclusive(&lent)? {
                    at = lent.range().end;
                }
            }
            match self.read_pieces(range, words, take, false) {
                Err(DmirrorError::NotThere) => {}
                done => return done,
            }
        }
        Err(DmirrorError::NotThere)
    }

    /// `CHECK_EXCLUSIVE`: makes sure that no page of the range is lent to the device any more.
    ///
    /// # Errors
    /// [`DmirrorError::Perm`] when one is.
    pub fn check_exclusive(&self, range: VaRange) -> Result<(), DmirrorError> {
        let lent = |entry: MirrorEntry| entry.attrs.contains(MirrorAttrs::ATOMIC);
        if self.mirror.any(range, &lent) { Err(DmirrorError::Perm) } else { Ok(()) }
    }

    /// RELEASE: brings everything that lies on the device back to RAM, whoever maps it.
    ///
    /// # Errors
    /// [`DmirrorError::Busy`] when pages stayed.
    pub fn release(&self) -> Result<Report, DmirrorError> {
        bring_back::<M>(self.device)
    }

    /// The file is closed: the mirroring ends, and everything that lies on the device comes back to RAM, what other openings have
    /// put there as well. Those go on, and find their pages in RAM.
    ///
    /// # Errors
    /// [`DmirrorError::Busy`] when pages stayed; the mirroring has ended.
    pub fn close(self) -> Result<Report, DmirrorError> {
        let device = self.device;
        drop(self);
        bring_back::<M>(device)
    }
}

/// Brings everything on a device to RAM.
fn bring_back<M: Machine>(device: Place) -> Result<Report, DmirrorError> {
    let mm = M::mm();
    let report = mm.evict_range(device, mm.zone(device).frames());
    if report.failed_pages() == 0 { Ok(report) } else { Err(DmirrorError::Busy) }
}

/// The pages from `addr` on that so many words fill.
fn range_of(addr: Vaddr, words: usize) -> Result<VaRange, DmirrorError> {
    let range = VaRange::new(addr.0, words as u64 * 8);
    if range.is_user_pages() { Ok(range) } else { Err(DmirrorError::Invalid) }
}

/// What is left of a range after so many pages.
fn rest(range: VaRange, pages: u64) -> VaRange {
    VaRange::between(range.start.add(pages * PAGE_SIZE), range.end)
}

/// What was read stays in the words, which are one piece.
fn stays(_: u64, _: &[u64]) -> Result<(), DmirrorError> {
    Ok(())
}

/// The words of so many pages.
const fn words_to(pages: u64) -> usize {
    pages as usize * PAGE_WORDS
}

/// The part of `words` that the first pages of `left` fill.
fn piece_of(words: &mut [u64], left: VaRange) -> Result<&mut [u64], DmirrorError> {
    let pages = ((words.len() / PAGE_WORDS) as u64).min(left.nr_pages());
    if pages == 0 { Err(DmirrorError::Invalid) } else { Ok(&mut words[..words_to(pages)]) }
}
