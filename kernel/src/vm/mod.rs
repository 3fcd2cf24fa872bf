//! The memory manager's place in the kernel: what [`mm`](farpage_mm) asks of a machine, answered by this one.
//!
//! This room and `arch/` hold all `unsafe` of the kernel. Here frame numbers become memory: RAM through the direct map,
//! device memory through the window that its BAR is mapped in. That the memory manager names the right frames is its
//! promise, not the compiler's; `audit()` and the host tests check it.

pub(crate) mod bytes;
mod coherent;
pub(crate) mod devmem;
pub(crate) mod raw;
pub(crate) mod rig;
pub(crate) mod shared;
pub(crate) mod skip;
pub(crate) mod trace;
pub(crate) mod user;
pub(crate) mod way;

use core::marker::PhantomData;
use core::mem::size_of;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use farpage_device::mmio::{CopyRoutine, copy_words, store_fence, zero_words};
use farpage_mm::trace::{Open, Phase, Record, Tracing};
use farpage_mm::{
    Access, AddressSpace, Event, FaultBits, FaultError, FaultInfo, FaultOutcome, FlushRequest, FlushScope,
    Frame, FreshFrame, MapStorage, Mm, Object, ObjectRef, Order, OutOfMemory, PAGE_SIZE, Space, TableWords,
    USER_END, Vaddr, WaitKey,
};
use kernel_logic::ranges::OutOfFrames;
use spin::Once;
use x86_64::instructions::interrupts;
use x86_64::{PhysAddr, VirtAddr};

use crate::arch::x86_64::fault::{self, FaultRegs};
use crate::arch::x86_64::{paging, percpu, tlb, tsc};
use crate::{bootmem, task};

/// This machine.
#[derive(Debug)]
pub(crate) struct Machine;

static MM: Mm<Machine> = Mm::new();

/// The per-CPU counter of words moved or cleared by `rep` string instructions: the bulk of every measurement.
const BULK: usize = Event::COUNT;
const _: () = assert!(BULK < 120, "the last counters are the tests'");

/// The words that were moved or cleared so far.
#[inline(always)]
pub(crate) fn bulk_words() -> u64 {
    percpu::counter(BULK)
}

#[inline(always)]
pub(crate) fn count_bulk(words: u64) {
    percpu::count_const::<BULK>(words);
}

/// Where RAM frame `pfn` is mapped.
#[inline(always)]
fn ram<T>(pfn: u32) -> *mut T {
    (paging::DIRECT_MAP + u64::from(pfn) * PAGE_SIZE) as *mut T
}

/// Where a frame of RAM or of coherent memory is mapped.
#[inline(always)]
fn mem<T>(frame: Frame) -> *mut T {
    match frame.place().device_number() {
        None => ram(frame.index()),
        Some(number) => coherent::mem(number, frame.index()),
    }
}

/// The kernel's address of a frame of RAM or of coherent memory.
pub(crate) fn window_of(frame: Frame) -> u64 {
    mem::<u8>(frame) as u64
}

#[inline(always)]
fn words_of(order: Order) -> usize {
    (order.bytes() / 8) as usize
}

/// Clears RAM.
#[inline(always)]
fn zero_ram(first: u32, words: usize) {
    count_bulk(words as u64);
    // SAFETY: the frames belong to whoever asks: a folio or a table that nothing maps yet. The direct map shows them
    // writable and aligned.
    unsafe { zero_words(CopyRoutine::RepMovsq, ram(first), words) };
}

impl farpage_mm::Machine for Machine {
    #[inline(always)]
    fn mm() -> &'static Mm<Self> {
        &MM
    }

    #[inline(always)]
    fn table_words(pfn: u32) -> &'static TableWords {
        // SAFETY: a page table is a frame of RAM, mapped in the direct map for ever; its words are only used as atomics
        // by the memory manager, and by the CPU.
        unsafe { &*ram::<TableWords>(pfn) }
    }

    #[inline(always)]
    fn object<T: Sync + 'static>(key: u32) -> &'static T {
        let object = (paging::DIRECT_MAP + u64::from(key) * 64) as *const T;
        // SAFETY: the memory manager made a `T` there with `objects` and has only shared it since; it stays for ever.
        unsafe { &*object }
    }

    fn objects<T: Default + Send + 'static>(frame: FreshFrame) -> &'static mut [T] {
        let first: *mut T = ram(frame.pfn());
        let n = PAGE_SIZE as usize / size_of::<T>();
        for i in 0..n {
            // SAFETY: `i` is below the number of `T`s that fit in the frame.
            let slot = unsafe { first.add(i) };
            // SAFETY: the frame is fresh: it belongs to the caller alone, for ever. Frames are aligned to more than any `T`.
            unsafe { ptr::write(slot, T::default()) };
        }
        // SAFETY: `n` initialised `T`s stand there, and a `FreshFrame` is consumed only once.
        unsafe { core::slice::from_raw_parts_mut(first, n) }
    }

    #[inline(always)]
    fn zero(first: Frame, order: Order) {
        debug_assert!(first.place().is_ram());
        zero_ram(first.index(), words_of(order));
    }

    #[inline(always)]
    fn copy(src: Frame, dst: Frame, order: Order) {
        debug_assert!(src.place().is_mappable() && dst.place().is_mappable());
        count_bulk(words_of(order) as u64);
        let routine = way::routine();
        // SAFETY: both are whole folios, mapped for the kernel for ever; the destination is not mapped for users yet and is
        // another one.
        unsafe { copy_words(routine, mem(dst), mem(src), words_of(order)) };
        if routine == CopyRoutine::Streaming {
            store_fence();
        }
    }

    fn read_frame(frame: Frame, word: usize, to: &mut [u64]) {
        assert!(word + to.len() <= words_of(Order::PMD), "words of one folio");
        match frame.place().device_number() {
            None => {
                let at = ram::<u64>(frame.index()).wrapping_add(word);
                // SAFETY: the words lie in one folio of RAM, which the direct map shows; the target is an exclusive slice. The
                // folio's users may write it meanwhile: no reference to it is made.
                unsafe { copy_words(CopyRoutine::RepMovsq, to.as_mut_ptr(), at, to.len()) };
            }
            Some(number) => devmem::memory_of(number).read_words(frame, word, to),
        }
    }

    fn write_frame(frame: Frame, word: usize, from: &[u64]) {
        assert!(word + from.len() <= words_of(Order::PMD), "words of one folio");
        match frame.place().device_number() {
            None => {
                let at = ram::<u64>(frame.index()).wrapping_add(word);
                // SAFETY: as in `read_frame`, with the parts exchanged.
                unsafe { copy_words(CopyRoutine::RepMovsq, at, from.as_ptr(), from.len()) };
            }
            Some(number) => devmem::memory_of(number).write_words(frame, word, from),
        }
    }

    #[inline(always)]
    fn cpu() -> usize {
        percpu::cpu_id() as usize
    }

    #[inline(always)]
    fn preempt_disable() {
        percpu::preempt_disable();
    }

    #[inline(always)]
    fn preempt_enable() {
        percpu::preempt_enable();
    }

    #[inline]
    fn flush(request: &FlushRequest) {
        if request.cpus & 1 << percpu::cpu_id() == 0 || skip::skips(request.reason) {
            return;
        }
        match request.scope {
            FlushScope::Range { range, stride } => {
                let mut at = range.start.0;
                while at < range.end.0 {
                    tlb::invlpg(VirtAddr::new_truncate(at));
                    at += stride;
                }
                percpu::count(Event::TlbFlushOne as usize, range.len() / stride);
            }
            FlushScope::All => {
                tlb::flush();
                percpu::count_one::<{ Event::TlbFlushAll as usize }>();
            }
        }
    }

    #[cold]
    fn wait(key: WaitKey, still: &dyn Fn() -> bool) {
        task::wait(key.0, still);
    }

    #[cold]
    fn wake(key: WaitKey) {
        task::wake(key.0);
    }

    #[cold]
    fn relax() {
        task::yield_now();
    }

    #[inline(always)]
    fn count(event: Event, n: u64) {
        percpu::count(event as usize, n);
    }

    #[inline(always)]
    fn count_one<const EVENT: usize>() {
        percpu::count_one::<EVENT>();
    }

    fn counted(event: Event) -> u64 {
        percpu::counter(event as usize)
    }

    #[inline(always)]
    fn tracing() -> Tracing {
        trace::level()
    }

    #[inline(always)]
    fn now() -> u64 {
        tsc::now()
    }

    #[inline(always)]
    fn open() -> &'static Open {
        trace::open()
    }

    #[inline(always)]
    fn mark(phase: Phase) {
        trace::mark(phase);
    }

    #[inline(always)]
    fn record_open() {
        trace::mark(Phase::Finalize);
        trace::put_open();
    }

    fn record(record: Record) {
        trace::put(record);
    }
}

/// Zeroed memory for the map of `frames` frames, for ever. While [`bootmem`] still gives.
///
/// # Errors
/// No range of RAM holds as much.
pub(crate) fn map_storage(frames: u32) -> Result<MapStorage, OutOfFrames> {
    let words = MapStorage::words_for(frames);
    let pages = (words as u64 * 8).div_ceil(PAGE_SIZE);
    let first = (bootmem::allocate(pages, 1)? / PAGE_SIZE) as u32;
    zero_ram(first, (pages * PAGE_SIZE / 8) as usize);
    let first: *const AtomicU64 = ram(first);
    // SAFETY: the frames were given for this and are never taken back; they are zeroed, and used only as atomics.
    Ok(MapStorage::new(unsafe { core::slice::from_raw_parts(first, words) }))
}

/// A frame of RAM for the kernel itself, for ever: its physical address. Once the memory manager has started. The frames are those
/// of an object that nobody maps, so that they are accounted for.
///
/// # Errors
/// Out of memory.
pub(crate) fn kept_frame() -> Result<u64, OutOfMemory> {
    static KEPT: Once<ObjectRef<Machine>> = Once::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let kept = KEPT.try_call_once(|| Object::file(Object::<Machine>::MAX_PAGES))?;
    let page = kept.page_or_alloc(NEXT.load(Ordering::Relaxed))?;
    NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(u64::from(page.frame().index()) * PAGE_SIZE)
}

/// An address space is loaded for this thread while this lives; then the kernel's own table is again.
#[derive(Debug)]
pub(crate) struct Active<'a>(PhantomData<&'a AddressSpace<Machine>>, NotSend);

/// What belongs to one thread.
type NotSend = PhantomData<*const ()>;

/// Loads an address space for the running thread: whenever it runs, until the guard is dropped. Others may load the same.
///
/// # Panics
/// When the thread has one already.
pub(crate) fn activate(space: &AddressSpace<Machine>) -> Active<'_> {
    assert_eq!(percpu::current_space(), 0, "an address space is loaded already");
    interrupts::without_interrupts(|| load(Loaded(ptr::from_ref(space.space()) as u64)));
    Active(PhantomData, PhantomData)
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        interrupts::without_interrupts(|| load(Loaded::NONE));
    }
}

/// An address space that a thread has loaded while it runs, for as long as an [`Active`] of that thread lives; or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Loaded(u64);

impl Loaded {
    /// Only the kernel's half.
    pub(crate) const NONE: Self = Self(0);

    /// What the running thread has loaded.
    #[inline(always)]
    pub(crate) fn now() -> Self {
        Self(percpu::current_space())
    }

    #[inline(always)]
    fn space(self) -> Option<&'static Space<Machine>> {
        if self.0 == 0 {
            return None;
        }
        // SAFETY: `activate` made the word, and its guard takes it away before the space can go. Spaces lie in type-stable
        // memory of their slab.
        Some(unsafe { &*(self.0 as *const Space<Machine>) })
    }
}

/// Loads what the thread that runs from now on wants. A space is noted as loaded on this CPU exactly while it is, so any
/// number of threads may have it. With interrupts off.
pub(crate) fn load(to: Loaded) {
    let from = Loaded::now();
    if from == to {
        return;
    }
    let cpu = percpu::cpu_id() as usize;
    let root = match to.space() {
        Some(space) => {
            space.loaded_on(cpu);
            frame_of(space.root_pfn())
        }
        None => paging::kernel_root(),
    };
    percpu::set_current_space(to.0);
    // SAFETY: the kernel's own table lives for ever; a space's root was made with `fill_kernel_half`, and the guard's borrow
    // keeps the space alive as long as the thread may have it loaded.
    unsafe { tlb::load_root(root) };
    if let Some(space) = from.space() {
        space.unloaded_from(cpu);
    }
}

fn frame_of(pfn: u32) -> x86_64::structures::paging::PhysFrame {
    x86_64::structures::paging::PhysFrame::containing_address(PhysAddr::new(u64::from(pfn) * PAGE_SIZE))
}

/// A new address space with the kernel's half.
///
/// # Errors
/// Out of memory.
pub(crate) fn new_space() -> Result<AddressSpace<Machine>, OutOfMemory> {
    let space = AddressSpace::new(paging::fill_kernel_half)?;
    crate::knobs::join_group(space.space());
    Ok(space)
}

/// A clone of an address space, with the kernel's half.
///
/// # Errors
/// Out of memory.
pub(crate) fn clone_space(space: &AddressSpace<Machine>) -> Result<AddressSpace<Machine>, OutOfMemory> {
    space.clone_of(paging::fill_kernel_half)
}

/// The memory manager.
#[inline(always)]
pub(crate) fn mm() -> &'static Mm<Machine> {
    &MM
}

/// Handles a fault on a user address, taken in ring 3 or in a user-access routine.
///
/// # Errors
/// Nothing can be done about it: the access fails.
#[inline(always)]
pub(crate) fn user_fault<const TRACED: bool>(regs: FaultRegs) -> Result<(), ()> {
    let Some(space) = Loaded::now().space() else { return Err(()) };
    match space.handle_fault_as::<TRACED>(&fault_info(&regs)) {
        Ok(FaultOutcome::Spurious) => spurious(&regs),
        Ok(_) => Ok(()),
        Err(error) => refused(&regs, error),
    }
}

/// The entry allows it: a translation was stale. Unless an instruction of ring 3 was refused that the CPU does with the kernel's
/// rights (QEMU's `iretq` and far returns read the stack so, which SMAP forbids): then it is the program's fault for ever.
#[cold]
fn spurious(regs: &FaultRegs) -> Result<(), ()> {
    const BY_USER: u64 = 1 << 2;
    if regs.error_code & BY_USER == 0 && regs.rip < USER_END {
        // What was refused before is about something else.
        let _ = user::last_refusal();
        return Err(());
    }
    fault::spurious(regs);
    Ok(())
}

#[cold]
fn refused(regs: &FaultRegs, error: FaultError) -> Result<(), ()> {
    log::debug!("fault at {:#x} from {:#x} refused: {error}", regs.addr, regs.rip);
    user::note_refusal(error);
    Err(())
}

/// The error code of a page fault (SDM vol. 3, 4.7) in the memory manager's terms.
#[inline(always)]
fn fault_info(regs: &FaultRegs) -> FaultInfo {
    let code = regs.error_code;
    let access = if code & 1 << 1 != 0 {
        Access::Write
    } else if code & 1 << 4 != 0 {
        Access::Exec
    } else {
        Access::Read
    };
    // The memory manager's bits stand where the SDM has them.
    FaultInfo { addr: Vaddr(regs.addr), access, bits: FaultBits::from_bits_truncate(code as u8) }
}
