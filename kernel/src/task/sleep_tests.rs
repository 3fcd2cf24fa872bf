//! In-kernel tests of sleeps that end by themselves, of notices, and of threads with a stack of their own making.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use spin::Mutex;

use super::{Event, Woken, notify, number, spawn, take_notice, timer, wait_until, wake, yield_now};
use crate::arch::x86_64::stacks::{self, IN_IMAGE};
use crate::arch::x86_64::tsc;

/// What nobody wakes.
const NOBODY: usize = 0x1040;

crate::ktest! {
    fn sleeps_end_at_their_deadlines_and_in_their_order() {
        let ended = Arc::new(Mutex::new(Vec::new()));
        let now = tsc::now();
        let handles: Vec<_> = [5, 2, 4, 1, 3]
            .into_iter()
            .map(|n| {
                let ended = Arc::clone(&ended);
                spawn("sleeper", move || {
                    let deadline = now + n * 2_000_000;
                    let why = wait_until(NOBODY, deadline, &|| true);
                    let late = tsc::now() >= deadline;
                    ended.lock().push(n);
                    (why, late)
                })
            })
            .collect();
        // This thread waits too, so the CPU has nothing to do in between.
        for handle in handles {
            crate::check_eq!(handle.join(), (Woken::TimedOut, true));
        }
        crate::check_eq!(*ended.lock(), [1, 2, 3, 4, 5]);
        crate::check_eq!(timer::soonest(), timer::NEVER);
    }
}

crate::ktest! {
    fn who_is_woken_in_time_forgets_the_deadline() {
        let far = timer::after_nanoseconds(3_600_000_000_000);
        let sleeper = spawn("sleeper", move || wait_until(NOBODY, far, &|| true));
        yield_now();
        crate::check_eq!(timer::soonest(), far);
        wake(NOBODY);
        crate::check_eq!(sleeper.join(), Woken::ByKey);
        crate::check_eq!(timer::soonest(), timer::NEVER);
        // Nothing to wait for, and a deadline that is over.
        crate::check_eq!(wait_until(NOBODY, far, &|| false), Woken::ByKey);
        crate::check_eq!(wait_until(NOBODY, 0, &|| true), Woken::TimedOut);
    }
}

crate::ktest! {
    fn a_notice_ends_a_sleep_and_the_next_one_before_it_begins() {
        let who = Arc::new(AtomicUsize::new(0));
        let there = Arc::clone(&who);
        let sleeper = spawn("sleeper", move || {
            there.store(number(), Relaxed);
            let first = wait_until(NOBODY, timer::NEVER, &|| true);
            let second = wait_until(NOBODY, timer::NEVER, &|| true);
            let had = take_notice();
            let third = wait_until(NOBODY, tsc::now() + 100_000, &|| true);
            (first, second, had, third)
        });
        yield_now();
        crate::check!(!sleeper.is_done());
        notify(who.load(Relaxed));
        crate::check_eq!(sleeper.join(), (Woken::Noticed, Woken::Noticed, true, Woken::TimedOut));
    }
}

crate::ktest! {
    fn an_event_between_the_look_and_the_sleep_is_not_missed() {
        static EVENT: Event = Event::new();
        let seen = EVENT.seen();
        EVENT.happens();
        crate::check_eq!(EVENT.wait(seen, timer::NEVER), Woken::ByKey);
        let waiter = spawn("waiter", || EVENT.wait(EVENT.seen(), timer::NEVER));
        yield_now();
        crate::check!(!waiter.is_done());
        EVENT.happens();
        crate::check_eq!(waiter.join(), Woken::ByKey);
    }
}

crate::ktest! {
    fn threads_beyond_those_of_the_image_have_stacks_of_their_own() {
        for _ in 0..2 {
            let handles: Vec<_> = (0..3 * IN_IMAGE as u64)
                .map(|n| {
                    spawn("numbered", move || {
                        let mine = core::hint::black_box([n; 1024]);
                        yield_now();
                        let whole = mine.iter().all(|word| *word == n);
                        (whole, core::ptr::from_ref(&mine) as u64, stacks::len_of_current())
                    })
                })
                .collect();
            let mut places: Vec<_> = handles.into_iter().map(super::JoinHandle::join).collect();
            crate::check!(places.iter().all(|(whole, _, len)| *whole && *len == 64 * 1024), "{places:x?}");
            places.sort_by_key(|place| place.1);
            let apart = places.windows(2).all(|pair| pair[1].1 - pair[0].1 >= 64 * 1024);
            crate::check!(apart, "two threads on one stack: {places:x?}");
        }
    }
}

crate::ktest! {
    destructive(expect = "stack-overflow")
    fn a_stack_that_was_made_has_a_guard_page_too() {
        let others: Vec<_> = (0..IN_IMAGE).map(|_| spawn("other", || {})).collect();
        crate::fail!("{} calls returned", spawn("deep", || super::tests::recurse(1)).join() + others.len() as u64);
    }
}
