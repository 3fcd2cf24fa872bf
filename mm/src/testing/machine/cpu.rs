//! The machine as the memory manager sees it: [`Machine`].

use core::cell::Cell;

use crate::counters::Event;
use crate::machine::{FlushRequest, FlushScope, FreshFrame, Machine, TableWords, WaitKey};
use crate::mm::Mm;
use crate::testing::machine::{Soft, state};
use crate::trace::{Open, Record, Tracing};
use crate::types::{Frame, Order, PAGE_SIZE};

impl Machine for Soft {
    fn mm() -> &'static Mm<Self> {
        &state().mm
    }

    fn table_words(pfn: u32) -> &'static TableWords {
        let state = state();
        state.disturb();
        state.table(pfn)
    }

    fn objects<T: Default + Send + 'static>(_frame: FreshFrame) -> &'static mut [T] {
        let n = PAGE_SIZE as usize / size_of::<T>();
        Box::leak((0..n).map(|_| T::default()).collect())
    }

    fn shared_objects<T: Default + Send + Sync + 'static>(frame: FreshFrame) -> &'static [T] {
        let state = state();
        let pfn = frame.pfn();
        let objects: &'static [T] = Self::objects(frame);
        let kept = state.ram[(pfn - state.base) as usize].objects.set(Box::new(objects));
        assert!(kept.is_ok(), "frame {pfn:#x} holds objects already");
        objects
    }

    fn object<T: Sync + 'static>(key: u32) -> &'static T {
        let state = state();
        let at = u64::from(key) * 64;
        let frame = &state.ram[(at / PAGE_SIZE) as usize - state.base as usize];
        let objects = frame.objects.get().and_then(|o| o.downcast_ref::<&'static [T]>());
        let objects = objects.expect("objects of this type lie in the key's frame");
        &objects[(at % PAGE_SIZE) as usize / size_of::<T>()]
    }

    fn zero(first: Frame, order: Order) {
        let state = state();
        state.no_lock_is_held("clears", first, order);
        for i in 0..order.pages() {
            state.zero_page(first.offset(i));
        }
        state.disturb();
    }

    fn copy(src: Frame, dst: Frame, order: Order) {
        let state = state();
        state.no_lock_is_held("copies to", dst, order);
        for i in 0..order.pages() {
            state.copy_page(src.offset(i), dst.offset(i));
        }
        state.disturb();
    }

    /// A page here has a few words only: the others read as zero, and what is written to them is lost.
    fn read_frame(frame: Frame, word: usize, to: &mut [u64]) {
        assert!(
            word == 0 || word + to.len() <= crate::dmirror::PAGE_WORDS,
            "a part of a page, or whole pages"
        );
        for (n, to) in to.chunks_mut(crate::dmirror::PAGE_WORDS).enumerate() {
            let page = state().data(frame.offset(n as u32));
            for (i, to) in to.iter_mut().enumerate() {
                *to = page.get(word + i).map_or(0, Cell::get);
            }
        }
    }

    fn write_frame(frame: Frame, word: usize, from: &[u64]) {
        assert!(
            word == 0 || word + from.len() <= crate::dmirror::PAGE_WORDS,
            "a part of a page, or whole pages"
        );
        for (n, from) in from.chunks(crate::dmirror::PAGE_WORDS).enumerate() {
            let page = state().data(frame.offset(n as u32));
            for (cell, from) in page.iter().skip(word).zip(from) {
                cell.set(*from);
            }
        }
    }

    fn cpu() -> usize {
        state().cpu.get()
    }

    fn preempt_disable() {
        let state = state();
        state.before_lock();
        state.disturb();
        state.preempt.set(state.preempt.get() + 1);
    }

    fn preempt_enable() {
        let state = state();
        state.preempt.set(state.preempt.get() - 1);
        state.after_unlock();
    }

    fn flush(request: &FlushRequest) {
        let state = state();
        state.disturb();
        state.flushes.borrow_mut()[request.reason as usize] += 1;
        if state.skip.get() != Some(request.reason) {
            state.mmu.borrow_mut().flush(request);
            match request.scope {
                FlushScope::All => Self::count(Event::TlbFlushAll, 1),
                FlushScope::Range { range, stride } => Self::count(Event::TlbFlushOne, range.len() / stride),
            }
        }
        state.disturb();
    }

    fn wait(_key: WaitKey, still: &dyn Fn() -> bool) {
        let state = state();
        assert_eq!(state.preempt.get(), 0, "nobody sleeps while a spin lock is held");
        if still()
            && let Some(mut let_go) = state.on_wait.take()
        {
            state.as_another(&mut *let_go);
        }
        assert!(!still(), "the only thread would sleep for ever");
    }

    fn wake(_key: WaitKey) {}

    fn relax() {
        let state = state();
        assert_eq!(state.preempt.get(), 0, "others cannot run while a spin lock is held");
        // Taken out while it runs: it may drop what relaxes again.
        let let_go = state.on_relax.take();
        if let Some(mut let_go) = let_go {
            state.as_another(&mut *let_go);
        }
        state.disturb();
    }

    fn count(event: Event, n: u64) {
        let state = state();
        state.disturb();
        let count = &state.events[event as usize];
        count.set(count.get() + n);
    }

    fn counted(event: Event) -> u64 {
        state().counted(event)
    }

    fn tracing() -> Tracing {
        state().tracing.get()
    }

    fn now() -> u64 {
        let clock = &state().clock;
        clock.set(clock.get() + 1);
        clock.get()
    }

    fn open() -> &'static Open {
        state().open()
    }

    fn record(record: Record) {
        state().records.borrow_mut().push(record);
    }
}
