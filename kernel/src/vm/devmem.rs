//! Device memory: the BARs of the machine's ivshmem devices, mapped, registered with the memory manager, and copied to and
//! from by the CPU.

use core::fmt;
use core::ptr::NonNull;

use farpage_device::ivshmem::{self, Ivshmem, IvshmemError};
use farpage_device::mmio::{CopyRoutine, DeviceMemory, Window, store_fence};
use farpage_device::pci::{ConfigAccess, Ecam, EcamRegion, LegacyPorts, PortIo};
use farpage_device::{DeviceAddr, PhysAddr};
use farpage_mm::{
    COPY_LIST, CopyEngine, CopyOp, DeviceKind, Fence, Folio, Frame, MAX_DEVICES, MapStorage, Order,
    PAGE_SIZE, PagemapOps, Place, RangeError,
};
use kernel_logic::ranges::OutOfFrames;
use spin::Once;

use super::coherent::NoPlace;
use super::rig::{Rigged, is_to_fail};
use super::{Machine, coherent, count_bulk, map_storage, mm, ram, way, words_of};
use crate::arch::x86_64::device_map::{MapDeviceError, map_device};
use crate::arch::x86_64::memtype::MemoryType;
use crate::arch::x86_64::port;

/// One device.
#[derive(Debug)]
pub(crate) struct Device {
    /// What was found.
    pub(crate) function: Ivshmem,
    /// How configuration space was reached.
    pub(crate) config: &'static str,
    memory: DeviceMemory,
    place: Place,
    /// The frame number of its first page.
    base: u32,
    /// Splits of folios that the memory manager told of; a driver with state per folio would copy it here.
    splits: core::sync::atomic::AtomicU64,
}

static DEVICES: [Once<Device>; MAX_DEVICES] = [const { Once::new() }; MAX_DEVICES];
static RIGGED: [Once<Rigged>; MAX_DEVICES] = [const { Once::new() }; MAX_DEVICES];

/// Why a device cannot be used.
#[derive(Debug)]
pub(crate) enum DeviceError {
    /// It is missing or its BAR is no good.
    Ivshmem(IvshmemError),
    /// Its memory cannot be mapped.
    Map(MapDeviceError),
    /// There is no RAM for its frame map.
    NoRam(OutOfFrames),
    /// The memory manager does not take it.
    Refused(RangeError),
    /// There is no address at which CPUs may cache it.
    NoPlace(NoPlace),
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ivshmem(error) => write!(f, "{error}"),
            Self::Map(error) => write!(f, "the device's memory cannot be mapped: {error}"),
            Self::NoRam(error) => {
                write!(
                    f,
                    "too little RAM for the device's frame map ({} frames are missing); give the machine more with \
                     --memory or a smaller device with --device-size",
                    error.frames
                )
            }
            Self::Refused(error) => write!(f, "the device is refused: {error}"),
            Self::NoPlace(error) => write!(f, "the device's memory cannot be coherent: {error}"),
        }
    }
}

struct Ports;

impl PortIo for Ports {
    fn read_u32(&mut self, number: u16) -> u32 {
        if number == 0xcf8 { port::PCI_ADDRESS.read() } else { port::PCI_DATA.read() }
    }
    fn write_u32(&mut self, number: u16, value: u32) {
        if number == 0xcf8 { port::PCI_ADDRESS.write(value) } else { port::PCI_DATA.write(value) }
    }
}

/// Finds, maps and registers all devices; how many. While RAM can still be had from `bootmem`.
///
/// # Errors
/// The first device that is no good, or that there is none; devices before it stay registered.
pub(crate) fn init() -> Result<usize, DeviceError> {
    let ports = LegacyPorts::new(Ports);
    match ecam(&ports) {
        Some(ecam) => init_with(&ecam, "ECAM"),
        None => init_with(&ports, "ports 0xcf8/0xcfc"),
    }
}

/// Memory-mapped configuration space, where the chipset has it.
fn ecam(ports: &LegacyPorts<Ports>) -> Option<Ecam> {
    let region = EcamRegion::of_chipset(ports)?;
    let virt = map_device(region.base.as_u64(), region.len_bytes(), MemoryType::Uncached).ok()?;
    let base = NonNull::new(virt.as_mut_ptr())?;
    // SAFETY: mapped just now, for ever, page aligned; device registers are no Rust memory.
    let window = unsafe { Window::new(base, region.len_bytes()) };
    Some(Ecam::new(window))
}

fn init_with(config: &impl ConfigAccess, how: &'static str) -> Result<usize, DeviceError> {
    let mut found = 0;
    for device in ivshmem::find(config).take(MAX_DEVICES) {
        let mut function = device.map_err(DeviceError::Ivshmem)?;
        let place = if crate::boot().command.is_coherent(found) {
            coherent::settle(config, &mut function, found)?;
            Place::coherent(found)
        } else {
            Place::device(found)
        };
        register(found, place, function, how)?;
        found += 1;
    }
    if found == 0 { Err(DeviceError::Ivshmem(IvshmemError::Missing)) } else { Ok(found) }
}

fn register(number: usize, place: Place, function: Ivshmem, config: &'static str) -> Result<(), DeviceError> {
    let bar = function.memory;
    let pages = (bar.size / PAGE_SIZE) as u32;
    let cached = place.is_coherent();
    let memory_type = if cached { MemoryType::WriteBack } else { MemoryType::WriteCombining };
    let virt = map_device(bar.address.as_u64(), bar.size, memory_type).map_err(DeviceError::Map)?;
    let storage = map_storage(pages).map_err(DeviceError::NoRam)?;
    let Some(start) = NonNull::new(virt.as_mut_ptr()) else { unreachable!("the device window is not at 0") };
    // SAFETY: mapped just now, for ever, page aligned; ivshmem's BAR2 is plain memory, and no Rust reference to it is ever
    // made.
    let memory = unsafe { DeviceMemory::new(start, bar.size) };
    let splits = core::sync::atomic::AtomicU64::new(0);
    // `settle` has seen to it that the frame number of a coherent device has 32 bits.
    let base = if cached { (bar.address.as_u64() / PAGE_SIZE) as u32 } else { 0 };
    let device = DEVICES[number].call_once(|| Device { function, config, memory, place, base, splits });
    if cached {
        coherent::settled(number, device, virt.as_u64());
    }
    add(number, device, pages, storage, false).map_err(DeviceError::Refused)?;
    Ok(())
}

/// Registers a device that was taken out, with the first `pages` pages of its memory. A private one may be `plain` then: another
/// owner, whose copies cannot be made to fail.
///
/// # Errors
/// [`Mm::register_device`](farpage_mm::Mm::register_device)'s.
pub(crate) fn register_again(number: usize, pages: u32, plain: bool) -> Result<Place, RangeError> {
    let device = device(number).ok_or(RangeError::NoDevice(number))?;
    add(number, device, pages, MapStorage::new(&[]), plain)
}

fn add(
    number: usize,
    device: &'static Device,
    pages: u32,
    storage: MapStorage,
    plain: bool,
) -> Result<Place, RangeError> {
    if device.place.is_coherent() {
        let kind = DeviceKind::Coherent { base_pfn: device.base };
        return mm().register_device(number, pages, kind, storage, coherent::owner(number, device));
    }
    let ops: &'static dyn PagemapOps<Machine> =
        if number == 0 || plain { device } else { RIGGED[number].call_once(|| Rigged(device)) };
    mm().register_device(number, pages, DeviceKind::Private, storage, ops)
}

/// The devices that were found.
pub(crate) fn devices() -> impl Iterator<Item = &'static Device> {
    DEVICES.iter().filter_map(Once::get)
}

/// Device `number`.
pub(crate) fn device(number: usize) -> Option<&'static Device> {
    DEVICES.get(number)?.get()
}

/// The device that holds a frame.
///
/// # Panics
/// When there is none: frames come from devices that were registered.
pub(super) fn memory_of(number: usize) -> &'static Device {
    match device(number) {
        Some(device) => device,
        None => panic!("a frame of device {number}, which is not there"),
    }
}

impl Device {
    /// Words of a page of device memory, from word `word` on.
    pub(super) fn read_words(&self, frame: Frame, word: usize, to: &mut [u64]) {
        let at = DeviceAddr(self.address_of(frame).0 + word as u64 * 8);
        assert!(self.memory.copy_out(at, to).is_ok(), "{frame} lies on the device");
    }

    /// Writes them; they are there when this returns.
    pub(super) fn write_words(&self, frame: Frame, word: usize, from: &[u64]) {
        let at = DeviceAddr(self.address_of(frame).0 + word as u64 * 8);
        assert!(self.memory.copy_in(at, from).is_ok(), "{frame} lies on the device");
        store_fence();
    }

    /// Bytes of device memory.
    pub(crate) const fn len_bytes(&self) -> u64 {
        self.memory.len_bytes()
    }

    /// What place it is to the memory manager.
    pub(crate) const fn place(&self) -> Place {
        self.place
    }

    /// The frame number of its first page.
    pub(crate) const fn base(&self) -> u32 {
        self.base
    }

    /// Where one of its frames lies in it.
    #[inline(always)]
    pub(crate) const fn address_of(&self, frame: Frame) -> DeviceAddr {
        DeviceAddr((frame.index() - self.base) as u64 * PAGE_SIZE)
    }

    /// Where the memory lies, physically.
    pub(crate) const fn phys(&self) -> PhysAddr {
        self.function.memory.address
    }

    /// One word of device memory, read through the BAR.
    pub(crate) fn read(&self, at: DeviceAddr) -> Option<u64> {
        self.memory.read(at).ok()
    }

    /// Folio splits that the memory manager told of.
    pub(crate) fn splits(&self) -> u64 {
        self.splits.load(core::sync::atomic::Ordering::Relaxed)
    }

    #[inline(always)]
    fn copy(&self, op: &CopyOp) -> bool {
        if way::is_usual() { self.copy_by(op, 1, CopyRoutine::RepMovsq) } else { self.copy_unusually(op) }
    }

    /// Single pages that follow each other at both ends are one copy.
    #[inline(always)]
    fn copy_list(&self, ops: &[CopyOp]) -> u32 {
        if !way::is_usual() {
            return ops.iter().zip(0..).fold(0, |failed, (op, i)| failed | u32::from(!self.copy(op)) << i);
        }
        let (mut failed, mut at) = (0, 0);
        while let Some(op) = ops.get(at) {
            let count = run_of(&ops[at..]);
            if !self.copy_by(op, count, CopyRoutine::RepMovsq) {
                failed |= (u32::MAX >> (COPY_LIST - count)) << at;
            }
            at += count;
        }
        failed
    }

    /// By another routine, or not at all.
    #[cold]
    #[inline(never)]
    fn copy_unusually(&self, op: &CopyOp) -> bool {
        // Other devices ask for themselves.
        let fails = way::first_fails() && self.place == Place::device(0) && is_to_fail();
        !fails && self.copy_by(op, 1, way::routine())
    }

    /// Does `count` operations like this one, each for the frames after those of the one before.
    #[inline(always)]
    fn copy_by(&self, op: &CopyOp, count: usize, routine: CopyRoutine) -> bool {
        let memory = self.memory.by(routine);
        let (CopyOp::Copy { order, .. } | CopyOp::Zero { order, .. }) = *op;
        let words = words_of(order) * count;
        count_bulk(words as u64);
        let done = match *op {
            CopyOp::Copy { src, dst, .. } if src.place() == Place::RAM => {
                // SAFETY: the source folios are unmapped and flushed everywhere (`Migration<Unmapped>`): nobody writes them
                // now. They are whole folios in the direct map, one after the other.
                let from = unsafe { core::slice::from_raw_parts(ram::<u64>(src.index()), words) };
                memory.copy_in(device_addr(dst), from)
            }
            CopyOp::Copy { src, dst, .. } if dst.place() == Place::RAM => {
                // SAFETY: the destinations were just allocated and are not mapped: they are the caller's alone.
                let to = unsafe { core::slice::from_raw_parts_mut(ram::<u64>(dst.index()), words) };
                memory.copy_out(device_addr(src), to)
            }
            CopyOp::Copy { src, dst, .. } if src.place() != dst.place() => {
                return self.copy_between(src, dst, words);
            }
            CopyOp::Copy { src, dst, .. } => {
                memory.copy_within(device_addr(src), device_addr(dst), words as u64 * 8)
            }
            CopyOp::Zero { dst, .. } => memory.zero(device_addr(dst), words as u64 * 8),
        };
        done.is_ok()
    }

    /// From one device's memory to another's, one of which is this one, by way of the CPU. Frames of this device count from its
    /// start already ([`super::coherent`] sees to that), those of the other one are as the memory manager has them.
    #[cold]
    fn copy_between(&self, src: Frame, dst: Frame, words: usize) -> bool {
        let (Some((from, src)), Some((to, dst))) = (self.end(src), self.end(dst)) else { return false };
        let mut part = [0; 64];
        (0..words).step_by(part.len()).all(|at| {
            let offset = at as u64 * 8;
            from.memory.copy_out(DeviceAddr(src.0 + offset), &mut part).is_ok()
                && to.memory.copy_in(DeviceAddr(dst.0 + offset), &part).is_ok()
        })
    }

    /// The device that one end of a copy lies on, and where in it.
    fn end(&self, frame: Frame) -> Option<(&Self, DeviceAddr)> {
        if frame.place() == self.place {
            return Some((self, device_addr(frame)));
        }
        let peer = device(frame.place().device_number()?)?;
        Some((peer, peer.address_of(frame)))
    }
}

/// How many of the operations, the first included, copy single pages that follow each other at both ends.
#[inline(always)]
fn run_of(ops: &[CopyOp]) -> usize {
    let Some(&CopyOp::Copy { src, dst, order: Order::BASE }) = ops.first() else { return 1 };
    if src.place() == dst.place() {
        return 1; // the pages of one may be those of another's other end
    }
    let next = |n| CopyOp::Copy { src: src.offset(n), dst: dst.offset(n), order: Order::BASE };
    1 + ops[1..].iter().zip(1..).take_while(|&(op, n)| *op == next(n)).count()
}

/// Where a frame whose number counts from the start of its device lies in it.
#[inline(always)]
const fn device_addr(frame: Frame) -> DeviceAddr {
    DeviceAddr(frame.index() as u64 * PAGE_SIZE)
}

impl CopyEngine for Device {
    #[inline]
    fn run(&self, op: &CopyOp) -> bool {
        let done = self.copy(op);
        store_fence();
        done
    }

    #[inline]
    fn submit(&self, ops: &[CopyOp]) -> Fence {
        debug_assert!(ops.len() <= COPY_LIST);
        let failed = self.copy_list(ops);
        // The BAR is write-combining: what was stored must be there before an entry leads to it.
        store_fence();
        Fence::Done { failed }
    }

    fn poll(&self, fence: Fence) -> Option<u32> {
        Some(self.wait(fence))
    }

    fn wait(&self, fence: Fence) -> u32 {
        match fence {
            Fence::Done { failed } => failed,
            Fence::Pending(_) => unreachable!("the CPU engine finishes what it is given"),
        }
    }

    fn cancel(&self, fence: Fence) -> u32 {
        self.wait(fence)
    }
}

impl PagemapOps<Machine> for Device {
    fn folio_split(&self, _head: &Folio, tail: Option<&Folio>) {
        if tail.is_none() {
            self.splits.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn engine(&self) -> &dyn CopyEngine {
        self
    }
}

const _: () = assert!(Order::PMD.bytes() == 512 * PAGE_SIZE);
