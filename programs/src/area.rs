//! Memory that is mapped to be experimented with: devices, other processes and the kernel change it behind the compiler's back.
//!
//! It is never seen through a reference: every access is one of a volatile word. An [`Area`] knows where it lies and how long it
//! is, nothing more; to touch one that is no longer mapped is what some programs are about, and ends in SIGSEGV.

use std::fmt;
use std::io;
use std::ptr;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Bytes of a large page.
pub const HUGE: usize = 2 << 20;

/// An error number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// That of the call that failed last in this thread.
    #[must_use]
    pub fn last() -> Self {
        Self(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.0))
    }
}

/// What a call without a value has answered.
pub(crate) fn answer(result: libc::c_int) -> Result<(), Errno> {
    if result == -1 { Err(Errno::last()) } else { Ok(()) }
}

/// Pages of this process, mapped for experiments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    start: usize,
    len: usize,
}

impl Area {
    /// Maps `len` bytes; `flags` as of mmap, `file` a descriptor or -1.
    ///
    /// # Errors
    /// What mmap says.
    pub fn map(len: usize, prot: i32, flags: i32, file: i32) -> Result<Self, Errno> {
        // SAFETY: the kernel chooses the place, so nothing that exists is replaced.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, file, 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self { start: start.expose_provenance(), len })
    }

    /// Maps private anonymous memory.
    ///
    /// # Errors
    /// What mmap says.
    pub fn anon(len: usize, prot: i32) -> Result<Self, Errno> {
        Self::map(len, prot, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// Maps private anonymous memory that begins at a multiple of 2 MiB.
    ///
    /// # Errors
    /// What mmap and munmap say.
    pub fn huge(len: usize, prot: i32) -> Result<Self, Errno> {
        let all = Self::anon(len + HUGE, prot)?;
        let before = (all.start.next_multiple_of(HUGE) - all.start) / PAGE;
        for rest in [all.part(0, before), all.part(before + len / PAGE, HUGE / PAGE - before)] {
            if !rest.is_empty() {
                rest.unmap()?;
            }
        }
        Ok(all.part(before, len / PAGE))
    }

    /// Its first address.
    #[must_use]
    pub const fn start(self) -> usize {
        self.start
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn len(self) -> usize {
        self.len
    }

    /// Is it of no length?
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Its pages.
    #[must_use]
    pub const fn pages(self) -> usize {
        self.len / PAGE
    }

    /// `count` of its pages, from page `first` on.
    ///
    /// # Panics
    /// It has fewer.
    #[must_use]
    pub fn part(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.pages(), "the part ends inside");
        Self { start: self.start + first * PAGE, len: count * PAGE }
    }

    /// One page.
    #[must_use]
    pub fn page(self, number: usize) -> Self {
        self.part(number, 1)
    }

    /// Reads word `index` (of 8 bytes).
    ///
    /// # Panics
    /// It lies outside.
    #[must_use]
    #[inline]
    pub fn read(self, index: usize) -> u64 {
        assert!(index < self.len / 8, "a word inside");
        // SAFETY: memory of this area, which no reference points to; if it is not mapped any more, the process ends.
        unsafe { self.word(index).read_volatile() }
    }

    /// Writes word `index`.
    ///
    /// # Panics
    /// It lies outside.
    #[inline]
    pub fn write(self, index: usize, value: u64) {
        assert!(index < self.len / 8, "a word inside");
        // SAFETY: as for `read`.
        unsafe { self.word(index).write_volatile(value) }
    }

    fn word(self, index: usize) -> *mut u64 {
        ptr::with_exposed_provenance_mut(self.start + index * 8)
    }

    fn pointer(self) -> *mut libc::c_void {
        ptr::with_exposed_provenance_mut(self.start)
    }

    /// Changes its protection.
    ///
    /// # Errors
    /// What mprotect says.
    pub fn protect(self, prot: i32) -> Result<(), Errno> {
        // SAFETY: memory that was mapped for experiments; no reference points to it.
        answer(unsafe { libc::mprotect(self.pointer(), self.len, prot) })
    }

    /// Unmaps it.
    ///
    /// # Errors
    /// What munmap says.
    pub fn unmap(self) -> Result<(), Errno> {
        // SAFETY: as for `protect`.
        answer(unsafe { libc::munmap(self.pointer(), self.len) })
    }

    /// Gives the kernel advice about it.
    ///
    /// # Errors
    /// What madvise says.
    pub fn advise(self, advice: i32) -> Result<(), Errno> {
        // SAFETY: as for `protect`.
        answer(unsafe { libc::madvise(self.pointer(), self.len, advice) })
    }

    /// Moves it to where `target` lies, whose mapping goes; `flags` besides `MAYMOVE` and `FIXED`.
    ///
    /// # Errors
    /// What mremap says.
    pub fn move_to(self, target: Self, flags: i32) -> Result<Self, Errno> {
        let flags = flags | libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both were mapped for experiments.
        let start = unsafe { libc::mremap(self.pointer(), self.len, target.len, flags, target.pointer()) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self { start: start.expose_provenance(), len: target.len })
    }
}
