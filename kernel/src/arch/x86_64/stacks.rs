//! The stacks: one for the thread that boots, one for each other thread there can be, and one for each use of the interrupt
//! stack table of the boot CPU.
//!
//! The first [`IN_IMAGE`] threads have theirs in the kernel's image. Those of the others lie in a window of their own and get
//! memory when a thread of that number is made first; they keep it.
//!
//! Each has a guard page below, which is not mapped, so that running over the end is a page fault and not a silent write into
//! the next object. The compiler probes large frames page by page, so no frame
//! jumps over a guard page.

use core::cell::UnsafeCell;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use farpage_mm::{OutOfMemory, PAGE_SIZE};

use super::paging::{self, STACK_WINDOW};
use super::percpu;

/// Bytes of a guard page.
const GUARD: usize = 4096;
/// Bytes of the thread's stack. Nested faults are the deepest use: about 1.3 KiB each.
const THREAD_STACK: usize = 512 * 1024;
/// Bytes of the stack of another thread.
const SPAWNED_STACK: usize = 64 * 1024;
/// How many threads there can be, the boot thread among them.
pub(crate) const MAX_THREADS: usize = 2048;
/// How many of them have a stack from the start.
pub(crate) const IN_IMAGE: usize = 17;
/// From one stack of the window to the next.
const STRIDE: u64 = (GUARD + SPAWNED_STACK) as u64;
/// Bytes of an interrupt stack. The report of a fatal fault runs on it.
const INTERRUPT_STACK: usize = 24 * 1024;

/// What the trap stub itself and the beginning of its handler need: a frame is moved to a stack only above this.
const FRAME_RESERVE: u64 = 2048;

/// A stack above its guard page.
#[repr(C, align(4096))]
struct Stack<const N: usize> {
    guard: [u8; GUARD],
    bytes: UnsafeCell<[u8; N]>,
}

// SAFETY: nobody in Rust reads or writes the bytes; the CPU does, on one CPU.
unsafe impl<const N: usize> Sync for Stack<N> {}

impl<const N: usize> Stack<N> {
    const fn new() -> Self {
        Self { guard: [0; GUARD], bytes: UnsafeCell::new([0; N]) }
    }

    fn guard(&self) -> Range<u64> {
        let start = core::ptr::from_ref(&self.guard) as u64;
        start..start + GUARD as u64
    }

    fn bytes(&self) -> Range<u64> {
        let start = self.bytes.get() as u64;
        start..start + N as u64
    }
}

/// Which stack of the interrupt stack table an entry uses (the number is the gate's IST field).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Ist {
    /// Every vector that is not named below; the frame leaves it at once.
    Common = 1,
    /// #NMI.
    Nmi = 2,
    /// #DF.
    DoubleFault = 3,
    /// #MC.
    MachineCheck = 4,
    /// #DB: on its own, so that a breakpoint right after `mov ss` cannot land on a stack of the interrupted code's choice.
    Debug = 5,
}

impl Ist {
    /// All of them.
    pub(super) const ALL: [Self; 5] =
        [Self::Common, Self::Nmi, Self::DoubleFault, Self::MachineCheck, Self::Debug];
}

static THREAD: Stack<THREAD_STACK> = Stack::new();
static SPAWNED: [Stack<SPAWNED_STACK>; IN_IMAGE - 1] = [const { Stack::new() }; IN_IMAGE - 1];
static INTERRUPT: [Stack<INTERRUPT_STACK>; 5] = [const { Stack::new() }; 5];

/// Where the traps and calls of each thread's program put their frames; 0 while there is no program.
static PROGRAM_TOP: [AtomicU64; MAX_THREADS] = [const { AtomicU64::new(0) }; MAX_THREADS];

/// The running thread's.
pub(super) fn kernel_top_of_current() -> &'static AtomicU64 {
    &PROGRAM_TOP[percpu::current_thread()]
}

/// The end of the stack of an IST entry, where the CPU begins to push.
pub(super) fn interrupt_top(ist: Ist) -> u64 {
    INTERRUPT[ist as usize - 1].bytes().end
}

/// The end of the boot thread's stack.
pub(super) fn thread_top() -> u64 {
    THREAD.bytes().end
}

/// The stack of thread `number`; 0 is the boot thread.
///
/// # Panics
/// There is no such thread.
pub(super) fn of_thread(number: usize) -> Range<u64> {
    match number {
        0 => THREAD.bytes(),
        1..IN_IMAGE => SPAWNED[number - 1].bytes(),
        _ => {
            assert!(number < MAX_THREADS, "there is no thread {number}");
            let start = STACK_WINDOW + (number - IN_IMAGE) as u64 * STRIDE + GUARD as u64;
            start..start + SPAWNED_STACK as u64
        }
    }
}

/// Gives the stack of thread `number` its memory, if it has none yet. For one caller at a time, which [`super::switch::prepare`]
/// is.
///
/// # Errors
/// Out of memory; what was mapped stays for the next time.
pub(super) fn provide(number: usize) -> Result<(), OutOfMemory> {
    if number < IN_IMAGE {
        return Ok(());
    }
    for virt in of_thread(number).step_by(PAGE_SIZE as usize) {
        paging::map_kept(virt)?;
    }
    Ok(())
}

/// Tells the trap stub that the stack of thread `number` is in use from now on.
pub(super) fn use_stack_of(number: usize) {
    let stack = of_thread(number);
    let block = percpu::this();
    block.stack_floor.store(stack.start + FRAME_RESERVE, Ordering::Relaxed);
    block.stack_room.store(stack.end - stack.start - FRAME_RESERVE, Ordering::Relaxed);
    let top = match PROGRAM_TOP[number].load(Ordering::Relaxed) {
        0 => stack.end,
        top => top,
    };
    block.kernel_stack_top.store(top, Ordering::Relaxed);
}

/// The pages that must not be mapped.
pub(crate) fn guards() -> impl Iterator<Item = Range<u64>> {
    let threads = core::iter::once(THREAD.guard()).chain(SPAWNED.iter().map(Stack::guard));
    threads.chain(INTERRUPT.iter().map(Stack::guard))
}

/// Bytes of the running thread's stack.
pub(crate) fn len_of_current() -> u64 {
    percpu::this().stack_room.load(Ordering::Relaxed) + FRAME_RESERVE
}

/// Is this a stack pointer, or an address, at the end of the running thread's stack: in its guard page or in the reserve
/// above?
pub(crate) fn is_overflow(address: u64) -> bool {
    let floor = percpu::this().stack_floor.load(Ordering::Relaxed);
    (floor.saturating_sub(FRAME_RESERVE + GUARD as u64)..floor).contains(&address)
}
