//! Extended state beyond x87 and SSE: AVX and AVX-512, as far as the CPU offers them (SDM vol. 1, 13).
//!
//! The kernel has no instruction that touches it, so it stays in the registers while the kernel works for a thread, and is
//! exchanged only where threads are. x87 and SSE are kept elsewhere ([`super::user::Context`], trap frames): of what XSAVE could
//! store, only the other components are asked for. An area has the standard form of XSAVE, which is also what a signal's frame
//! holds.

use alloc::alloc::{alloc_zeroed, dealloc};
use alloc::vec::Vec;
use core::alloc::Layout;
use core::arch::asm;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::Relaxed};

use farpage_mm::OutOfMemory;
use raw_cpuid::CpuId;
use x86_64::instructions::interrupts;
use x86_64::registers::control::{Cr4, Cr4Flags};

use super::percpu;
use super::stacks::MAX_THREADS;

/// Components of the extended state (bits of XCR0).
const X87: u64 = 1;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const AVX_512: u64 = 0b111 << 5;

/// Bytes of the FXSAVE area at the start, and of the header behind it.
pub(crate) const LEGACY: usize = 512;
const HEADER: usize = 64;
/// Where MXCSR is; its value after reset.
const MXCSR_AT: usize = 24;
const MXCSR: u32 = 0x1f80;

/// The components that are exchanged here: neither x87 nor SSE.
static OTHERS: AtomicU64 = AtomicU64::new(0);
/// Bytes of an area.
static SIZE: AtomicUsize = AtomicUsize::new(0);
/// The area of each thread that runs a program.
static AREAS: [AtomicPtr<u8>; MAX_THREADS] = [const { AtomicPtr::new(ptr::null_mut()) }; MAX_THREADS];

/// Turns on what the CPU offers.
pub(super) fn init() {
    let cpuid = CpuId::new();
    if !cpuid.get_feature_info().is_some_and(|leaf| leaf.has_xsave()) {
        return;
    }
    let leaf = raw_cpuid::cpuid!(0xd, 0);
    let offered = u64::from(leaf.edx) << 32 | u64::from(leaf.eax);
    let mut wanted = X87 | SSE | offered & AVX;
    if offered & (AVX | AVX_512) == AVX | AVX_512 {
        wanted |= AVX_512;
    }
    let cr4 = Cr4::read() | Cr4Flags::OSXSAVE;
    // SAFETY: the CPU has XSAVE.
    unsafe { Cr4::write(cr4) };
    // SAFETY: x87 and SSE, and what the CPU offers of the others, in one of the combinations that the SDM allows.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") wanted as u32, in("edx") (wanted >> 32) as u32,
             options(nostack, nomem, preserves_flags));
    }
    OTHERS.store(wanted & !(X87 | SSE), Relaxed);
    // With XCR0 set: the size for what is on.
    SIZE.store((raw_cpuid::cpuid!(0xd, 0).ebx as usize).max(LEGACY + HEADER), Relaxed);
}

/// All components that programs may use: what XCR0 says. 0 without XSAVE.
pub(crate) fn components() -> u64 {
    if SIZE.load(Relaxed) == 0 { 0 } else { OTHERS.load(Relaxed) | X87 | SSE }
}

/// Bytes of an area; 0 without XSAVE.
pub(crate) fn size() -> usize {
    SIZE.load(Relaxed)
}

/// Room for a program's extended state, in the form of XSAVE.
#[derive(Debug)]
pub(crate) struct Area(Option<NonNull<u8>>);

// SAFETY: it owns its memory.
unsafe impl Send for Area {}

fn layout() -> Layout {
    let layout = Layout::from_size_align(SIZE.load(Relaxed), 64);
    layout.expect("an area is some KiB large, and 64 is a power of two")
}

impl Area {
    /// The state of a program that begins.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        if OTHERS.load(Relaxed) == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the size is not 0.
        let start = unsafe { alloc_zeroed(layout()) };
        let start = NonNull::new(start).ok_or(OutOfMemory { order: 0 })?;
        let mut area = Self(Some(start));
        area.bytes_mut()[MXCSR_AT..MXCSR_AT + 4].copy_from_slice(&MXCSR.to_le_bytes());
        Ok(area)
    }

    /// That of the running thread, as it is now.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn of_running() -> Result<Self, OutOfMemory> {
        let area = Self::new()?;
        if let Some(start) = area.0 {
            // SAFETY: an area, aligned and large enough, that nobody else has.
            unsafe { save(start.as_ptr()) };
        }
        Ok(area)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self.0 {
            // SAFETY: the area's own memory, initialised, borrowed with it.
            Some(start) => unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), SIZE.load(Relaxed)) },
            None => &mut [],
        }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        if let Some(start) = self.0 {
            // SAFETY: `new` has allocated it with this layout, which never changes.
            unsafe { dealloc(start.as_ptr(), layout()) };
        }
    }
}

/// Stores the components into an area.
///
/// # Safety
/// `area` is one, and belongs to the caller.
unsafe fn save(area: *mut u8) {
    let mask = OTHERS.load(Relaxed);
    // SAFETY: by the contract. MXCSR is stored too, the kernel's: it is the same everywhere.
    unsafe {
        asm!("xsave64 [{}]", in(reg) area, in("eax") mask as u32, in("edx") (mask >> 32) as u32,
             options(nostack, preserves_flags));
    }
}

/// Loads the components from an area.
///
/// # Safety
/// `area` is one, with a valid header.
unsafe fn restore(area: *const u8) {
    let mask = OTHERS.load(Relaxed);
    // SAFETY: by the contract. MXCSR is loaded too, the value that the kernel has everywhere.
    unsafe {
        asm!("xrstor64 [{}]", in(reg) area, in("eax") mask as u32, in("edx") (mask >> 32) as u32,
             options(nostack, preserves_flags, readonly));
    }
}

/// The running thread has this state from now on.
pub(super) fn attach(area: Area) {
    let start = area.0.map_or(ptr::null_mut(), NonNull::as_ptr);
    core::mem::forget(area);
    interrupts::without_interrupts(|| {
        let old = AREAS[percpu::current_thread()].swap(start, Relaxed);
        if !start.is_null() {
            // SAFETY: an area that `Area` made or that was saved to since.
            unsafe { restore(start) };
        }
        drop(Area(NonNull::new(old)));
    });
}

/// The running thread has none from now on; where it was kept.
pub(super) fn detach() -> Area {
    let area = AREAS[percpu::current_thread()].swap(ptr::null_mut(), Relaxed);
    Area(NonNull::new(area))
}

/// Another thread runs from now on. With interrupts off.
pub(super) fn exchange(from: usize, to: usize) {
    let (from, to) = (AREAS[from].load(Relaxed), AREAS[to].load(Relaxed));
    if !from.is_null() {
        // SAFETY: the area of the thread that has run until now.
        unsafe { save(from) };
    }
    if !to.is_null() {
        // SAFETY: the area of the thread that runs from now on.
        unsafe { restore(to) };
    }
}

/// The running thread's state with this FXSAVE area, in the form of XSAVE, for the frame of a signal. Empty without XSAVE.
///
/// # Errors
/// Out of memory.
pub(crate) fn snapshot(fx: &[u8; LEGACY]) -> Result<Vec<u8>, OutOfMemory> {
    let mut area = Area::of_running()?;
    let bytes = area.bytes_mut();
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    bytes[..LEGACY].copy_from_slice(fx);
    bytes[LEGACY] |= (X87 | SSE) as u8;
    Ok(bytes.to_vec())
}

/// Gives the running thread the state that a program has had in its hands: what it cannot be is left out.
///
/// # Errors
/// Out of memory.
pub(crate) fn put(image: &[u8]) -> Result<(), OutOfMemory> {
    let mut area = Area::new()?;
    let bytes = area.bytes_mut();
    if image.len() != bytes.len() || bytes.is_empty() {
        return Ok(());
    }
    bytes[LEGACY + HEADER..].copy_from_slice(&image[LEGACY + HEADER..]);
    // Of the header only which components there are: a reserved bit would be #GP.
    let mut present = [0; 8];
    present.copy_from_slice(&image[LEGACY..LEGACY + 8]);
    let present = u64::from_le_bytes(present) & OTHERS.load(Relaxed);
    bytes[LEGACY..LEGACY + 8].copy_from_slice(&present.to_le_bytes());
    attach(area);
    Ok(())
}
