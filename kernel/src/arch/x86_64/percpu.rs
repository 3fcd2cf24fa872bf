//! The per-CPU block, which `gs:` points to in ring 0.
//!
//! What is needed on every fault is one `gs:`-relative instruction away. Such an instruction cannot be torn by an
//! interrupt on its CPU, so a counter needs no lock prefix and a preemption count no care. Other CPUs only ever read.
//!
//! The GS base is set before the interrupt table is loaded and stays, except between `swapgs` and `iretq` to ring 3.

use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use x86_64::VirtAddr;
use x86_64::registers::model_specific::{GsBase, KernelGsBase};

/// How many event counters a CPU has.
pub(crate) const COUNTERS: usize = 128;
/// Words of what a thread records of its fault.
pub(crate) const OPEN_WORDS: usize = 8;
/// How many CPUs there are blocks for.
pub(crate) const MAX_CPUS: usize = 1;

/// The block. Fields are atomics because other CPUs may read them; the owner writes by `gs:` instructions.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct PerCpu {
    /// The block's own address, to get from `gs:` to a reference.
    this: AtomicU64,
    cpu_id: AtomicU32,
    preempt_count: AtomicU32,
    /// The trap stub moves a frame to the interrupted stack only at or above this address...
    pub(super) stack_floor: AtomicU64,
    /// ...and at most this many bytes above it.
    pub(super) stack_room: AtomicU64,
    /// Where a trap from ring 3 puts its frame.
    pub(super) kernel_stack_top: AtomicU64,
    /// Where SYSCALL's first instructions keep the program's stack pointer.
    scratch: AtomicU64,
    /// A word for whoever manages address spaces: which one is loaded.
    current_space: AtomicU64,
    /// The number of the running thread.
    current_thread: AtomicU32,
    /// Has the running thread a notice?
    notice: AtomicU32,
    /// Room for what the running thread records of its fault; whose layout that is, the trace knows.
    open_record: [AtomicU64; OPEN_WORDS],
    /// Page faults taken, to tell what "running" means for spurious ones.
    pub(super) page_faults: AtomicU64,
    /// The last spurious fault: address, instruction, number, and how many times running.
    pub(super) spurious: [AtomicU64; 4],
    /// Timer interrupts taken.
    pub(super) ticks: AtomicU64,
    counters: [AtomicU64; COUNTERS],
}

pub(super) const STACK_FLOOR: usize = offset_of!(PerCpu, stack_floor);
pub(super) const STACK_ROOM: usize = offset_of!(PerCpu, stack_room);
pub(super) const KERNEL_STACK_TOP: usize = offset_of!(PerCpu, kernel_stack_top);
pub(super) const SCRATCH: usize = offset_of!(PerCpu, scratch);

static BLOCKS: [PerCpu; MAX_CPUS] = [const { PerCpu::new() }; MAX_CPUS];

impl PerCpu {
    const fn new() -> Self {
        Self {
            this: AtomicU64::new(0),
            cpu_id: AtomicU32::new(0),
            preempt_count: AtomicU32::new(0),
            stack_floor: AtomicU64::new(0),
            stack_room: AtomicU64::new(u64::MAX),
            kernel_stack_top: AtomicU64::new(0),
            scratch: AtomicU64::new(0),
            current_space: AtomicU64::new(0),
            current_thread: AtomicU32::new(0),
            notice: AtomicU32::new(0),
            open_record: [const { AtomicU64::new(0) }; OPEN_WORDS],
            page_faults: AtomicU64::new(0),
            spurious: [const { AtomicU64::new(0) }; 4],
            ticks: AtomicU64::new(0),
            counters: [const { AtomicU64::new(0) }; COUNTERS],
        }
    }
}

/// Makes `gs:` point to the block of CPU `cpu`. Once per CPU, before its interrupt table is loaded.
pub(super) fn init(cpu: usize) {
    let block = &BLOCKS[cpu];
    let address = core::ptr::from_ref(block) as u64;
    block.this.store(address, Ordering::Relaxed);
    block.cpu_id.store(cpu as u32, Ordering::Relaxed);
    GsBase::write(VirtAddr::new(address));
    KernelGsBase::write(VirtAddr::zero());
}

/// This CPU's block.
#[inline(always)]
pub(super) fn this() -> &'static PerCpu {
    let address: u64;
    // SAFETY: reads the first word of the block that `gs:` points to.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) address, const offset_of!(PerCpu, this),
             options(nostack, preserves_flags, readonly, pure));
    }
    // SAFETY: `init` stored the address of a static there.
    unsafe { &*(address as *const PerCpu) }
}

/// The number of this CPU.
#[inline(always)]
pub(crate) fn cpu_id() -> u32 {
    let id: u32;
    // SAFETY: reads a word of this CPU's block.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) id, const offset_of!(PerCpu, cpu_id),
             options(nostack, preserves_flags, readonly));
    }
    id
}

/// Keeps the running thread on this CPU until the matching [`preempt_enable`].
#[inline(always)]
pub(crate) fn preempt_disable() {
    // SAFETY: adds to a word of this CPU's block.
    unsafe { asm!("inc dword ptr gs:[{}]", const offset_of!(PerCpu, preempt_count), options(nostack)) };
}

/// Ends what [`preempt_disable`] began.
#[inline(always)]
pub(crate) fn preempt_enable() {
    // SAFETY: subtracts from a word of this CPU's block.
    unsafe { asm!("dec dword ptr gs:[{}]", const offset_of!(PerCpu, preempt_count), options(nostack)) };
}

/// How many times preemption is disabled.
pub(crate) fn preempt_count() -> u32 {
    this().preempt_count.load(Ordering::Relaxed)
}

/// Adds `n` to this CPU's counter `event`.
#[inline(always)]
pub(crate) fn count(event: usize, n: u64) {
    debug_assert!(event < COUNTERS);
    let event = event & (COUNTERS - 1);
    // SAFETY: adds to a counter of this CPU's block; the mask keeps the index inside.
    unsafe {
        asm!("add qword ptr gs:[{at} + {event} * 8], {n}", at = const offset_of!(PerCpu, counters),
             event = in(reg) event, n = in(reg) n, options(nostack));
    }
}

/// Adds `n` to this CPU's counter `EVENT`, in one instruction.
#[inline(always)]
pub(crate) fn count_const<const EVENT: usize>(n: u64) {
    const { assert!(EVENT < COUNTERS) };
    // SAFETY: adds to a counter of this CPU's block.
    unsafe {
        asm!("add qword ptr gs:[{}], {}", const offset_of!(PerCpu, counters) + EVENT * 8, in(reg) n, options(nostack));
    }
}

/// Adds one to this CPU's counter `EVENT`, in one instruction that needs no register.
#[inline(always)]
pub(crate) fn count_one<const EVENT: usize>() {
    const { assert!(EVENT < COUNTERS) };
    // SAFETY: adds to a counter of this CPU's block.
    unsafe {
        asm!("inc qword ptr gs:[{}]", const offset_of!(PerCpu, counters) + EVENT * 8, options(nostack));
    }
}

/// Counts a page fault on this CPU.
#[inline(always)]
pub(crate) fn count_page_fault() {
    // SAFETY: adds to a word of this CPU's block.
    unsafe { asm!("inc qword ptr gs:[{}]", const offset_of!(PerCpu, page_faults), options(nostack)) };
}

/// Counts a timer interrupt on this CPU.
#[inline(always)]
pub(super) fn count_tick() {
    // SAFETY: adds to a word of this CPU's block.
    unsafe { asm!("inc qword ptr gs:[{}]", const offset_of!(PerCpu, ticks), options(nostack)) };
}

/// The sum of counter `event` over all CPUs.
pub(crate) fn counter(event: usize) -> u64 {
    BLOCKS.iter().map(|block| block.counters[event].load(Ordering::Relaxed)).sum()
}

/// The word of the address space loaded on this CPU, whatever [`set_current_space`] put there.
#[inline(always)]
pub(crate) fn current_space() -> u64 {
    let space: u64;
    // SAFETY: reads a word of this CPU's block.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) space, const offset_of!(PerCpu, current_space),
             options(nostack, preserves_flags, readonly));
    }
    space
}

/// Says which address space is loaded on this CPU.
#[inline(always)]
pub(crate) fn set_current_space(space: u64) {
    this().current_space.store(space, Ordering::Relaxed);
}

/// Room for what the running thread records of its fault. Kept for it while others run ([`OpenRecord`]).
#[inline(always)]
pub(crate) fn open_record() -> &'static [AtomicU64; OPEN_WORDS] {
    &this().open_record
}

/// Writes the low half of the time-stamp counter to byte `AT` of the running thread's record, in two instructions.
#[inline(always)]
pub(crate) fn stamp_open_record<const AT: usize>() {
    const { assert!(AT + 4 <= OPEN_WORDS * 8 && AT.is_multiple_of(4)) };
    // SAFETY: writes a word of this CPU's block. A thread that is preempted in between finds its own record there again.
    unsafe {
        asm!("rdtsc", "mov dword ptr gs:[{}], eax", const offset_of!(PerCpu, open_record) + AT,
             out("eax") _, out("edx") _, options(nostack, preserves_flags));
    }
}

/// What the running thread has recorded of its fault; kept for it while others run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenRecord([u64; OPEN_WORDS]);

impl OpenRecord {
    /// That of a thread that has begun none.
    pub(crate) const NONE: Self = Self([0; OPEN_WORDS]);

    /// Takes the running thread's.
    pub(crate) fn take() -> Self {
        Self(open_record().each_ref().map(|word| word.load(Ordering::Relaxed)))
    }

    /// Makes it that of the thread that runs from now on.
    pub(crate) fn put(self) {
        for (word, value) in open_record().iter().zip(self.0) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

/// The number of the thread that runs on this CPU.
#[inline(always)]
pub(crate) fn current_thread() -> usize {
    this().current_thread.load(Ordering::Relaxed) as usize
}

/// Says which thread runs on this CPU, and whether it has a notice. With interrupts off.
pub(crate) fn set_current_thread(number: usize, has_notice: bool) {
    this().current_thread.store(number as u32, Ordering::Relaxed);
    set_notice(has_notice);
}

/// Has the running thread a notice?
#[inline(always)]
pub(crate) fn has_notice() -> bool {
    let notice: u32;
    // SAFETY: reads a word of this CPU's block.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) notice, const offset_of!(PerCpu, notice),
             options(nostack, preserves_flags, readonly));
    }
    notice != 0
}

/// Says whether it has. With interrupts off.
pub(crate) fn set_notice(on: bool) {
    this().notice.store(u32::from(on), Ordering::Relaxed);
}

/// What the running thread knows of its last spurious fault; kept for it while others run. See [`super::fault::spurious`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spurious([u64; 4]);

impl Spurious {
    /// That of a thread that has had none.
    pub(crate) const NONE: Self = Self([0; 4]);

    /// Takes the running thread's, with the number of its last fault counted from now.
    pub(crate) fn take() -> Self {
        let block = this();
        let now = block.page_faults.load(Ordering::Relaxed);
        let [addr, rip, last, running] = block.spurious.each_ref().map(|word| word.load(Ordering::Relaxed));
        Self([addr, rip, now.wrapping_sub(last), running])
    }

    /// Makes it that of the thread that runs from now on: faults of others in between do not count.
    pub(crate) fn put(self) {
        let block = this();
        let now = block.page_faults.load(Ordering::Relaxed);
        let [addr, rip, before, running] = self.0;
        for (word, value) in block.spurious.iter().zip([addr, rip, now.wrapping_sub(before), running]) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

crate::ktest! {
    fn counters_add_up_and_keep_apart() {
        let before = (counter(126), counter(127));
        count(126, 5);
        count(126, 7);
        count_const::<127>(1);
        crate::check_eq!((counter(126) - before.0, counter(127) - before.1), (12, 1));
    }
}

crate::ktest! {
    fn the_block_belongs_to_this_cpu() {
        crate::check_eq!(cpu_id(), 0);
        crate::check_eq!(core::ptr::from_ref(this()) as u64, GsBase::read().as_u64());
        let depth = preempt_count();
        preempt_disable();
        preempt_disable();
        crate::check_eq!(preempt_count(), depth + 2);
        preempt_enable();
        preempt_enable();
        crate::check_eq!(preempt_count(), depth);
    }
}
