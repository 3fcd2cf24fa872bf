//! The only `unsafe` of this crate: windows over memory that the kernel has mapped for a device.
//!
//! Whoever makes a window vouches once for the mapping; after that every access is checked against its
//! bounds and alignment and can only fail with a value. [`Window`] is for registers: each access is one
//! volatile instruction of the asked width. [`DeviceMemory`] is for bulk: whole 8-byte words, by a routine
//! that can be chosen ([`CopyRoutine`]). `rep movsq` is the default since under `-icount` it counts exactly
//! one per word, so that what a migration costs beyond its data can be read off as a difference.
//!
//! Nothing here ever makes a Rust reference to device memory: another CPU, the device or a program on
//! the host may write it at any time.

#![allow(unsafe_code)] // This module is the place for it; everywhere else in the crate it is denied.

mod copy;

use core::{fmt, ptr::NonNull};

use pci_types::{ConfigRegionAccess, PciAddress};
use volatile::VolatilePtr;

use crate::{DeviceAddr, pci::ConfigAccess};

pub use copy::{CopyRoutine, copy_words, store_fence, zero_words};

const WORD: u64 = 8;

/// Why an access was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessError {
    /// It does not lie inside the window.
    OutOfRange {
        /// Its first byte.
        offset: u64,
        /// Its length.
        len_bytes: u64,
        /// The window's length.
        window_bytes: u64,
    },
    /// Its offset is no multiple of its width.
    Unaligned {
        /// The offset.
        offset: u64,
        /// The width.
        align: u64,
    },
    /// Source and destination of a copy inside the device overlap.
    Overlap {
        /// The source.
        from: u64,
        /// The destination.
        to: u64,
        /// The length.
        len_bytes: u64,
    },
    /// The length is no whole number of words.
    Length {
        /// The length.
        len_bytes: u64,
    },
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OutOfRange { offset, len_bytes, window_bytes } => {
                write!(
                    f,
                    "{len_bytes:#x} bytes at {offset:#x} are not inside a window of {window_bytes:#x} bytes"
                )
            }
            Self::Unaligned { offset, align } => {
                write!(f, "offset {offset:#x} is not aligned to {align} bytes")
            }
            Self::Overlap { from, to, len_bytes } => {
                write!(f, "{len_bytes:#x} bytes from {from:#x} to {to:#x} overlap")
            }
            Self::Length { len_bytes } => {
                write!(f, "{len_bytes:#x} bytes are no whole number of 8-byte words")
            }
        }
    }
}

impl core::error::Error for AccessError {}

/// A checked window over mapped device registers.
#[derive(Debug)]
pub struct Window {
    base: NonNull<u8>,
    len_bytes: u64,
}

// SAFETY: the maker of a window vouches that its memory may be accessed from any CPU (`Window::new`).
unsafe impl Send for Window {}
// SAFETY: as above; an access is one aligned load or store, which the hardware orders among CPUs.
unsafe impl Sync for Window {}

impl Window {
    /// Makes a window over `len_bytes` bytes at `base`.
    ///
    /// # Safety
    /// 1. `[base, base + len_bytes)` is mapped, readable and writable, for as long as the window lives, on
    ///    every CPU.
    /// 2. No Rust reference to any of it exists meanwhile, and it is no memory that Rust has allocated, unless
    ///    it was allocated for this window.
    /// 3. `base` is aligned to 8 bytes.
    #[must_use]
    pub const unsafe fn new(base: NonNull<u8>, len_bytes: u64) -> Self {
        Self { base, len_bytes }
    }

    /// Its length.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Reads one 32-bit register.
    ///
    /// # Errors
    /// Outside the window, or unaligned.
    pub fn read_u32(&self, offset: u64) -> Result<u32, AccessError> {
        Ok(self.at::<u32>(offset)?.read())
    }

    /// Writes one 32-bit register.
    ///
    /// # Errors
    /// Outside the window, or unaligned.
    pub fn write_u32(&self, offset: u64, value: u32) -> Result<(), AccessError> {
        self.at::<u32>(offset)?.write(value);
        Ok(())
    }

    /// Reads one 64-bit word.
    ///
    /// # Errors
    /// Outside the window, or unaligned.
    pub fn read_u64(&self, offset: u64) -> Result<u64, AccessError> {
        Ok(self.at::<u64>(offset)?.read())
    }

    /// Writes one 64-bit word.
    ///
    /// # Errors
    /// Outside the window, or unaligned.
    pub fn write_u64(&self, offset: u64, value: u64) -> Result<(), AccessError> {
        self.at::<u64>(offset)?.write(value);
        Ok(())
    }

    /// One register.
    fn at<T: Copy>(&self, offset: u64) -> Result<VolatilePtr<'_, T>, AccessError> {
        let width = size_of::<T>() as u64;
        let pointer = self.check(offset, width, width)?.cast::<T>();
        // SAFETY: `check` has placed the access inside the window and aligned it (base is aligned to 8, no
        // `T` here is wider); the window's maker vouched for the mapping and for no reference to it.
        Ok(unsafe { VolatilePtr::new(pointer) })
    }

    /// A pointer to `len_bytes` bytes at `offset`, if they lie inside the window.
    fn check(&self, offset: u64, len_bytes: u64, align: u64) -> Result<NonNull<u8>, AccessError> {
        if !offset.is_multiple_of(align) {
            return Err(AccessError::Unaligned { offset, align });
        }
        let window_bytes = self.len_bytes;
        if offset.checked_add(len_bytes).is_none_or(|end| end > window_bytes) {
            return Err(AccessError::OutOfRange { offset, len_bytes, window_bytes });
        }
        // SAFETY: `offset` is at most the length of the window, all of which is one mapped range.
        Ok(unsafe { self.base.add(offset as usize) })
    }
}

/// A device's memory: plain memory behind a BAR, reached in whole words.
#[derive(Debug)]
pub struct DeviceMemory {
    window: Window,
}

impl DeviceMemory {
    /// Takes a mapped memory BAR.
    ///
    /// # Safety
    /// As for [`Window::new`]; and the memory behaves like RAM: a read has no side effect and gives what was
    /// last written.
    #[must_use]
    pub const unsafe fn new(base: NonNull<u8>, len_bytes: u64) -> Self {
        // SAFETY: the caller's promise is the one that `Window::new` asks for.
        let window = unsafe { Window::new(base, len_bytes) };
        Self { window }
    }

    /// The same memory, moved by this routine.
    #[must_use]
    #[inline(always)]
    pub const fn by(&self, routine: CopyRoutine) -> Mover<'_> {
        Mover { memory: self, routine }
    }

    /// Its length.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.window.len_bytes
    }

    /// Reads one word.
    ///
    /// # Errors
    /// Outside the memory, or unaligned.
    pub fn read(&self, at: DeviceAddr) -> Result<u64, AccessError> {
        self.window.read_u64(at.0)
    }

    /// Writes one word.
    ///
    /// # Errors
    /// Outside the memory, or unaligned.
    pub fn write(&self, at: DeviceAddr, value: u64) -> Result<(), AccessError> {
        self.window.write_u64(at.0, value)
    }

    /// [`Mover::copy_in`] by the usual routine.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn copy_in(&self, to: DeviceAddr, from: &[u64]) -> Result<(), AccessError> {
        self.by(CopyRoutine::RepMovsq).copy_in(to, from)
    }

    /// [`Mover::copy_out`] by the usual routine.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn copy_out(&self, from: DeviceAddr, to: &mut [u64]) -> Result<(), AccessError> {
        self.by(CopyRoutine::RepMovsq).copy_out(from, to)
    }

    fn check_words(&self, at: DeviceAddr, len_bytes: u64) -> Result<NonNull<u64>, AccessError> {
        if !len_bytes.is_multiple_of(WORD) {
            return Err(AccessError::Length { len_bytes });
        }
        Ok(self.window.check(at.0, len_bytes, WORD)?.cast())
    }
}

/// Device memory and the routine that moves its data.
#[derive(Clone, Copy, Debug)]
pub struct Mover<'a> {
    memory: &'a DeviceMemory,
    routine: CopyRoutine,
}

impl Mover<'_> {
    /// Copies words from RAM to the device.
    ///
    /// # Errors
    /// Outside the memory, or unaligned; nothing was copied then.
    #[inline]
    pub fn copy_in(&self, to: DeviceAddr, from: &[u64]) -> Result<(), AccessError> {
        let target = self.memory.window.check(to.0, size_of_val(from) as u64, WORD)?;
        // SAFETY: `check` has placed the whole target inside the mapped window and aligned it to a word; the
        // source is a slice; they do not overlap, since no reference to device memory exists.
        unsafe { copy_words(self.routine, target.cast().as_ptr(), from.as_ptr(), from.len()) };
        Ok(())
    }

    /// Copies words from the device to RAM.
    ///
    /// # Errors
    /// Outside the memory, or unaligned; nothing was copied then.
    #[inline]
    pub fn copy_out(&self, from: DeviceAddr, to: &mut [u64]) -> Result<(), AccessError> {
        let source = self.memory.window.check(from.0, size_of_val(to) as u64, WORD)?;
        // SAFETY: as in `copy_in`, with the parts exchanged; the target is an exclusive slice.
        unsafe { copy_words(self.routine, to.as_mut_ptr(), source.cast().as_ptr(), to.len()) };
        Ok(())
    }

    /// Copies inside the device.
    ///
    /// # Errors
    /// Outside the memory, unaligned, overlapping, or no whole number of words; nothing was copied then.
    #[inline]
    pub fn copy_within(&self, from: DeviceAddr, to: DeviceAddr, len_bytes: u64) -> Result<(), AccessError> {
        let source = self.memory.check_words(from, len_bytes)?;
        let target = self.memory.check_words(to, len_bytes)?;
        if from.0.abs_diff(to.0) < len_bytes {
            return Err(AccessError::Overlap { from: from.0, to: to.0, len_bytes });
        }
        let count = (len_bytes / WORD) as usize;
        // SAFETY: both ranges lie inside the mapped window, aligned to words, and do not overlap.
        unsafe { copy_words(self.routine, target.as_ptr(), source.as_ptr(), count) };
        Ok(())
    }

    /// Fills a range with zeros.
    ///
    /// # Errors
    /// Outside the memory, unaligned, or no whole number of words; nothing was written then.
    #[inline]
    pub fn zero(&self, at: DeviceAddr, len_bytes: u64) -> Result<(), AccessError> {
        let target = self.memory.check_words(at, len_bytes)?;
        // SAFETY: the range lies inside the mapped window and is aligned to words.
        unsafe { zero_words(self.routine, target.as_ptr(), (len_bytes / WORD) as usize) };
        Ok(())
    }
}

/// A [`ConfigAccess`] in the shape that `pci_types` reads headers through.
pub(crate) struct Typed<'a, C: ?Sized>(pub(crate) &'a C);

impl<C: ConfigAccess + ?Sized> ConfigRegionAccess for Typed<'_, C> {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        self.0.read(address, offset)
    }

    unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
        self.0.write(address, offset, value);
    }
}
