//! In-kernel tests of the threads themselves.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use spin::Mutex;

use super::{current, spawn, wait, wake, with_preemption_every, yield_now};
use crate::arch::x86_64::stacks::IN_IMAGE;
use crate::arch::x86_64::uaccess::user_read_u64;
use crate::arch::x86_64::{fault, percpu, stacks};

crate::ktest! {
    fn threads_run_in_order_and_return_what_they_made() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let handles: Vec<_> = (0..IN_IMAGE - 1)
            .map(|n| {
                let order = Arc::clone(&order);
                spawn("numbered", move || {
                    for round in 0..3 {
                        order.lock().push((round, n));
                        yield_now();
                    }
                    n * n
                })
            })
            .collect();
        crate::check!(order.lock().is_empty(), "nobody runs before this thread gives up the CPU");
        for (n, handle) in handles.into_iter().enumerate() {
            crate::check_eq!(handle.join(), n * n);
        }
        let expected: Vec<_> = (0..3).flat_map(|round| (0..IN_IMAGE - 1).map(move |n| (round, n))).collect();
        crate::check_eq!(*order.lock(), expected);
    }
}

crate::ktest! {
    fn stacks_are_used_again_and_are_their_own() {
        for _ in 0..100 {
            let handle = spawn("short", || {
                let mine = [0_u8; 1024];
                let at = core::hint::black_box(&mine).as_ptr() as u64;
                stacks::guards().all(|guard| !guard.contains(&at)) && stacks::len_of_current() < 512 * 1024
            });
            crate::check!(handle.join());
        }
        crate::check!(stacks::len_of_current() >= 512 * 1024, "the boot thread has its own stack back");
    }
}

crate::ktest! {
    fn a_sleeper_is_woken_by_its_key_alone() {
        let woken = Arc::new(AtomicUsize::new(0));
        let asleep = Arc::new(AtomicBool::new(true));
        // More keys than buckets: some share one.
        let handles: Vec<_> = (0..10_usize)
            .map(|n| {
                let (woken, asleep) = (Arc::clone(&woken), Arc::clone(&asleep));
                spawn("sleeper", move || {
                    wait(0x1000 + n * 64, &|| asleep.load(Relaxed));
                    woken.fetch_add(1, Relaxed)
                })
            })
            .collect();
        yield_now();
        crate::check_eq!(woken.load(Relaxed), 0);
        for n in [7, 3, 9, 0, 1, 2, 4, 5, 6, 8] {
            let before = woken.load(Relaxed);
            wake(0x2000 + n * 64);
            yield_now();
            crate::check_eq!(woken.load(Relaxed), before, "woken by another's key");
            crate::check!(!handles[n].is_done());
            wake(0x1000 + n * 64);
            yield_now();
            crate::check!(handles[n].is_done());
        }
        // Who has nothing to wait for does not sleep.
        asleep.store(false, Relaxed);
        wait(0x1000, &|| asleep.load(Relaxed));
        for handle in handles {
            handle.join();
        }
    }
}

crate::ktest! {
    fn preemption_spoils_no_computation_and_serves_everybody() {
        let sum = |n: u32| (1..3000_u32).map(|i| 1.0 / f64::from(core::hint::black_box(i * n))).sum::<f64>();
        for seed in 0..3 {
            let ((), preempted) = with_preemption_every(2000, seed, || {
                let handles: Vec<_> = (1..9)
                    .map(|n| {
                        spawn("adder", move || {
                            let sums: Vec<_> = (0..10).map(|_| sum(n).to_bits()).collect();
                            // A fault in the middle of others' faults: the frame is on this thread's stack.
                            let refused = user_read_u64(0x1000).is_err();
                            (sums, refused)
                        })
                    })
                    .collect();
                for (handle, n) in handles.into_iter().zip(1..) {
                    let (sums, refused) = handle.join();
                    assert!(refused && sums.iter().all(|&bits| bits == sum(n).to_bits()), "thread {n}");
                }
            });
            crate::check!(preempted > 50, "{preempted} with seed {seed}");
        }
    }
}

crate::ktest! {
    fn preemption_waits_while_it_is_forbidden() {
        let (wrong, preempted) = with_preemption_every(500, 1, || {
            let turns = Arc::new(AtomicU64::new(0));
            let stop = Arc::new(AtomicBool::new(false));
            let other = {
                let (turns, stop) = (Arc::clone(&turns), Arc::clone(&stop));
                spawn("counter", move || {
                    while !stop.load(Relaxed) {
                        turns.fetch_add(1, Relaxed);
                    }
                })
            };
            let (mut wrong, mut moved) = (0, 0);
            for _ in 0..50 {
                percpu::preempt_disable();
                let before = turns.load(Relaxed);
                for n in 0..2000 {
                    core::hint::black_box(n);
                }
                wrong += u64::from(turns.load(Relaxed) != before);
                percpu::preempt_enable();
                for n in 0..2000 {
                    core::hint::black_box(n);
                }
                moved += u64::from(turns.load(Relaxed) != before);
            }
            stop.store(true, Relaxed);
            other.join();
            assert!(moved > 40, "the other thread ran after {moved} of 50");
            wrong
        });
        crate::check_eq!(wrong, 0, "ran while preemption was off");
        crate::check!(preempted > 40, "{preempted}");
    }
}

crate::ktest! {
    fn spurious_faults_of_many_threads_at_one_place_are_no_bug() {
        // Each has a few at the same address by the same instruction, one directly after another's.
        let handles: Vec<_> = (0..8)
            .map(|_| {
                spawn("faulter", || {
                    for _ in 0..4 {
                        percpu::count_page_fault();
                        fault::spurious(&fault::FaultRegs { addr: 0x1000, error_code: 4, rip: 1 });
                        yield_now();
                    }
                })
            })
            .collect();
        for handle in handles {
            handle.join();
        }
    }
}

crate::ktest! {
    destructive(expect = "panic")
    fn spurious_faults_of_one_thread_stay_a_bug_whoever_comes_between() {
        let faulter = |n| move || for _ in 0..8 {
            percpu::count_page_fault();
            fault::spurious(&fault::FaultRegs { addr: n, error_code: 4, rip: 1 });
            yield_now();
        };
        let handles = [spawn("one", faulter(0x1000)), spawn("other", faulter(0x2000))];
        let _ = handles.map(super::JoinHandle::join);
    }
}

crate::ktest! {
    destructive(expect = "panic")
    fn a_deadlock_names_who_sleeps() {
        let handles = [spawn("first", || wait(0x1000, &|| true)), spawn("second", || wait(0x2000, &|| true))];
        let _ = handles.map(super::JoinHandle::join);
    }
}

crate::ktest! {
    destructive(expect = "panic")
    fn sleep_with_preemption_off_is_a_bug() {
        percpu::preempt_disable();
        wait(0x1000, &|| true);
    }
}

crate::ktest! {
    destructive(expect = "panic")
    fn a_panic_names_its_thread() {
        spawn("unlucky", || panic!("on purpose, in {}", current())).join();
    }
}

crate::ktest! {
    destructive(expect = "stack-overflow")
    fn a_thread_that_overflows_its_stack_hits_its_guard_page() {
        crate::fail!("{} calls returned", spawn("deep", || recurse(1)).join());
    }
}

/// Uses the stack up.
#[inline(never)]
pub(super) fn recurse(depth: u64) -> u64 {
    let here = core::hint::black_box([depth; 32]);
    if core::hint::black_box(depth) == 0 { 0 } else { recurse(depth + 1) + here[7] }
}
