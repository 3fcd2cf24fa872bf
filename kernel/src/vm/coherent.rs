//! Coherent device memory: the BAR is memory like RAM, cached, and mapped for users where it lies.
//!
//! Three things are asked of the place of such a BAR. CPUs must be allowed to cache it: firmware makes the gibibyte below
//! 4 GiB, where it likes to put BARs, uncacheable. A frame number must have 32 bits. And it must not lie in the upper half
//! of what the CPU can address: non-present entries hold their numbers inverted, so to a CPU that speculates through them
//! they name what is up there. A BAR that lies elsewhere is moved.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use farpage_device::ivshmem::Ivshmem;
use farpage_device::pci::{BarError, ConfigAccess};
use farpage_mm::{CopyEngine, CopyOp, Fence, Folio, Frame, MAX_DEVICES, PAGE_SIZE, PagemapOps};
use spin::Once;
use x86_64::PhysAddr;

use super::Machine;
use super::devmem::{Device, DeviceError};
use crate::arch::x86_64::{features, memtype};

/// Frame numbers end here.
const FRAMES_END: u64 = PAGE_SIZE << 32;

/// Why no address is good for a BAR.
#[derive(Debug)]
pub(crate) enum NoPlace {
    /// It is larger than the room for one.
    TooLarge {
        /// Its size.
        size: u64,
        /// The room.
        room: u64,
    },
    /// The device does not move.
    Bar(BarError),
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { size, room } => {
                write!(f, "it has {} MiB, and at most {} MiB can be mapped", size >> 20, room >> 20)
            }
            Self::Bar(error) => write!(f, "{error}"),
        }
    }
}

/// One past the last address that is good for coherent memory.
fn limit() -> u64 {
    (1 << (features::get().phys_bits - 1)).min(FRAMES_END)
}

/// Moves the memory BAR of device `number`, unless it lies well already. Nothing has mapped it yet.
///
/// # Errors
/// [`DeviceError::NoPlace`].
pub(super) fn settle(
    config: &impl ConfigAccess,
    function: &mut Ivshmem,
    number: usize,
) -> Result<(), DeviceError> {
    let bar = function.memory;
    let (start, end) = (bar.address.as_u64(), bar.address.as_u64() + bar.size);
    if end <= limit() && memtype::mtrr_allows_caching(start, end) {
        return Ok(());
    }
    // Firmware puts RAM at the bottom and its windows above RAM or at the top. The second quarter is far from both; every
    // device has its own part of it. That there is no RAM and no other type is checked when it is mapped.
    let quarter = limit() / 2;
    let room = quarter / MAX_DEVICES as u64;
    if bar.size > room {
        return Err(DeviceError::NoPlace(NoPlace::TooLarge { size: bar.size, room }));
    }
    let home = PhysAddr::new(quarter + number as u64 * room);
    let moved = bar.move_to(config, function.address, home).map_err(NoPlace::Bar);
    function.memory = moved.map_err(DeviceError::NoPlace)?;
    log::info!("device {number}: moved from {start:#x} to {home:#x}, to be cached");
    Ok(())
}

/// What to add to a physical address of each device to find it in the kernel's window.
static WINDOWS: [AtomicU64; MAX_DEVICES] = [const { AtomicU64::new(0) }; MAX_DEVICES];

/// Where frame `pfn` of coherent device `number` is mapped.
#[inline(always)]
pub(super) fn mem<T>(number: usize, pfn: u32) -> *mut T {
    WINDOWS[number].load(Relaxed).wrapping_add(u64::from(pfn) * PAGE_SIZE) as *mut T
}

/// The owner of a coherent device's memory. It copies as the device does, and only the numbers of frames are others.
#[derive(Debug)]
pub(super) struct Coherent(&'static Device);

static OWNERS: [Once<Coherent>; MAX_DEVICES] = [const { Once::new() }; MAX_DEVICES];

/// Notes that the memory of device `number` begins at `virt` in the kernel's window.
pub(super) fn settled(number: usize, device: &Device, virt: u64) {
    WINDOWS[number].store(virt.wrapping_sub(u64::from(device.base()) * PAGE_SIZE), Relaxed);
}

/// The owner of device `number`.
pub(super) fn owner(number: usize, device: &'static Device) -> &'static Coherent {
    OWNERS[number].call_once(|| Coherent(device))
}

impl Coherent {
    /// The operation in numbers that count from the start of the device.
    fn local(&self, op: &CopyOp) -> CopyOp {
        let local = |frame: Frame| {
            if frame.place() == self.0.place() {
                Frame::new(frame.place(), frame.index() - self.0.base())
            } else {
                frame
            }
        };
        match *op {
            CopyOp::Copy { src, dst, order } => CopyOp::Copy { src: local(src), dst: local(dst), order },
            CopyOp::Zero { dst, order } => CopyOp::Zero { dst: local(dst), order },
        }
    }
}

impl CopyEngine for Coherent {
    fn run(&self, op: &CopyOp) -> bool {
        self.0.run(&self.local(op))
    }

    fn submit(&self, ops: &[CopyOp]) -> Fence {
        let mut failed = 0;
        for (i, op) in ops.iter().enumerate() {
            failed |= u32::from(!self.0.run(&self.local(op))) << i;
        }
        Fence::Done { failed }
    }

    fn poll(&self, fence: Fence) -> Option<u32> {
        self.0.poll(fence)
    }

    fn wait(&self, fence: Fence) -> u32 {
        self.0.wait(fence)
    }

    fn cancel(&self, fence: Fence) -> u32 {
        self.0.cancel(fence)
    }
}

impl PagemapOps<Machine> for Coherent {
    fn folio_split(&self, head: &Folio, tail: Option<&Folio>) {
        PagemapOps::<Machine>::folio_split(self.0, head, tail);
    }

    fn engine(&self) -> &dyn CopyEngine {
        self
    }
}
