//! The kernel's heap: `linked_list_allocator` over memory reserved at boot.
//!
//! It serves the boot, the console, commands, tests, and what programs have the kernel keep. The memory manager has memory of its own and never comes here;
//! a test proves it by holding a [`forbid`] guard meanwhile.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use kernel_logic::PAGE_SIZE;
use kernel_logic::ranges::OutOfFrames;
use linked_list_allocator::Heap;
use spin::Mutex;

use super::x86_64::percpu;
use crate::bootmem;

/// The heap's size. It does not grow.
const BYTES: u64 = 8 << 20;
/// The size where programs run, each with files and threads of its own: this part of RAM, between the usual size and
/// [`MOST`].
const PART_OF_RAM: u64 = 16;
const MOST: u64 = 128 << 20;

struct KernelHeap {
    heap: Mutex<Heap>,
    forbidden: AtomicUsize,
}

#[global_allocator]
static HEAP: KernelHeap = KernelHeap { heap: Mutex::new(Heap::empty()), forbidden: AtomicUsize::new(0) };

// SAFETY: memory comes from one `Heap` under a lock, which keeps allocations apart.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.forbidden.load(Ordering::Relaxed) > 0 {
            // The report may allocate.
            self.forbidden.store(0, Ordering::Relaxed);
            panic!("{} bytes were allocated from the kernel heap while that was forbidden", layout.size());
        }
        percpu::preempt_disable();
        let memory = self.heap.lock().allocate_first_fit(layout);
        percpu::preempt_enable();
        memory.map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(pointer) = NonNull::new(pointer) {
            percpu::preempt_disable();
            // SAFETY: the caller gives back what `alloc` gave for this layout.
            unsafe { self.heap.lock().deallocate(pointer, layout) };
            percpu::preempt_enable();
        }
    }
}

/// Gives the heap its memory, from [`bootmem`]. Once.
///
/// # Errors
/// There is not as much.
pub(crate) fn init(for_programs: bool) -> Result<(), OutOfFrames> {
    let ram: u64 = bootmem::ram().map(|range| range.end - range.start).sum();
    let bytes = if for_programs { (ram / PART_OF_RAM).clamp(BYTES, MOST) & !(PAGE_SIZE - 1) } else { BYTES };
    let phys = bootmem::allocate(bytes / PAGE_SIZE, 1)?;
    let start = super::x86_64::paging::phys_to_virt(x86_64::PhysAddr::new(phys));
    // SAFETY: RAM in the direct map, which bootmem has given to nobody else.
    unsafe { HEAP.heap.lock().init(start.as_mut_ptr(), bytes as usize) };
    Ok(())
}

/// Bytes in use, and bytes in all.
pub(crate) fn usage() -> (usize, usize) {
    percpu::preempt_disable();
    let heap = HEAP.heap.lock();
    let usage = (heap.used(), heap.size());
    drop(heap);
    percpu::preempt_enable();
    usage
}

/// While it lives, an allocation is a panic.
#[must_use = "allocation is forbidden only while the guard lives"]
#[derive(Debug)]
pub(crate) struct Forbidden(());

/// Forbids allocation, on all CPUs, until the guard is dropped.
pub(crate) fn forbid() -> Forbidden {
    HEAP.forbidden.fetch_add(1, Ordering::Relaxed);
    Forbidden(())
}

impl Drop for Forbidden {
    fn drop(&mut self) {
        HEAP.forbidden.fetch_sub(1, Ordering::Relaxed);
    }
}

crate::ktest! {
    fn the_heap_gives_aligned_memory_and_takes_it_back() {
        let used = usage().0;
        let mut boxes = alloc::vec::Vec::new();
        for n in 0..100_u64 {
            boxes.push(alloc::boxed::Box::new([n; 16]));
        }
        for (n, words) in boxes.iter().enumerate() {
            crate::check!(words.iter().all(|word| *word == n as u64), "box {n} is {words:?}");
            crate::check_eq!(words.as_ptr() as usize % 8, 0);
        }
        let layout = Layout::from_size_align(64, 4096);
        crate::check!(layout.is_ok());
        drop(boxes);
        crate::check_eq!(usage().0, used);
    }
}

crate::ktest! {
    destructive(expect = "panic")
    fn an_allocation_while_forbidden_is_a_panic() {
        let guard = forbid();
        let boxed = alloc::boxed::Box::new(core::hint::black_box(5));
        drop(guard);
        crate::fail!("allocated {boxed}");
    }
}
