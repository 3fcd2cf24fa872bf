//! The locks in every order of accesses.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicUsize};
use std::boxed::Box;
use std::sync::Arc;
use std::vec::Vec;

use crate::explore::{Part, Sleepers, Traced, explore, point};
use crate::{RawBitLock, RawRwLock, RwLock, Word};

/// What a lock protects: who is inside.
#[derive(Default)]
struct Inside {
    readers: AtomicUsize,
    writers: AtomicUsize,
    /// How many have been there.
    visits: AtomicUsize,
}

impl Inside {
    fn read(&self) {
        self.readers.fetch_add(1, Relaxed);
        point();
        assert_eq!(self.writers.load(Relaxed), 0, "a writer beside a reader");
        self.readers.fetch_sub(1, Relaxed);
        self.visits.fetch_add(1, Relaxed);
    }

    fn write(&self) {
        assert_eq!(self.writers.fetch_add(1, Relaxed), 0, "two writers");
        point();
        assert_eq!(self.readers.load(Relaxed), 0, "a reader beside a writer");
        self.writers.fetch_sub(1, Relaxed);
        self.visits.fetch_add(1, Relaxed);
    }
}

type Shared = Arc<(RawRwLock<Traced>, Inside)>;

fn reader(shared: &Shared, times: usize) -> Part {
    let shared = Arc::clone(shared);
    Box::new(move || {
        for _ in 0..times {
            shared.0.lock_read::<Sleepers>();
            shared.1.read();
            shared.0.unlock_read::<Sleepers>();
        }
    })
}

fn writer(shared: &Shared, times: usize) -> Part {
    let shared = Arc::clone(shared);
    Box::new(move || {
        for _ in 0..times {
            shared.0.lock_write::<Sleepers>();
            shared.1.write();
            shared.0.unlock_write::<Sleepers>();
        }
    })
}

/// All orders of `readers` and `writers` that each take the lock `times` times.
fn every_order(readers: usize, writers: usize, times: usize, preemptions: usize) -> usize {
    let runs = explore(preemptions, || {
        let shared = Shared::default();
        let readers = (0..readers).map(|_| reader(&shared, times));
        readers.chain((0..writers).map(|_| writer(&shared, times))).collect()
    });
    match runs {
        Ok(runs) => runs,
        Err(why) => panic!("{why}"),
    }
}

#[test]
fn a_reader_and_a_writer_exclude_each_other_and_both_end() {
    assert!(every_order(1, 1, 2, 4) > 1000);
}

#[test]
fn two_writers_exclude_each_other_and_both_end() {
    assert!(every_order(0, 2, 2, 4) > 100);
}

#[test]
fn readers_beside_a_writer_all_end() {
    assert!(every_order(2, 1, 1, 3) > 1000);
}

#[test]
fn writers_beside_a_reader_all_end() {
    assert!(every_order(1, 2, 1, 3) > 1000);
}

#[test]
fn a_waiting_writer_holds_new_readers_back() {
    // The reader that comes second must not get in before the writer that waits already.
    let runs = explore(3, || {
        let shared = Shared::default();
        let order = Arc::new(AtomicU32::new(0));
        shared.0.lock_read::<Sleepers>();
        let first: Part = {
            let shared = Arc::clone(&shared);
            Box::new(move || shared.0.unlock_read::<Sleepers>())
        };
        let second: Part = {
            let (shared, order) = (Arc::clone(&shared), Arc::clone(&order));
            Box::new(move || {
                let queued = shared.0.is_queued();
                shared.0.lock_read::<Sleepers>();
                assert!(!queued || order.load(Relaxed) != 0, "a reader overtook a writer that had queued");
                shared.0.unlock_read::<Sleepers>();
            })
        };
        let writes: Part = {
            let (shared, order) = (Arc::clone(&shared), order);
            Box::new(move || {
                shared.0.lock_write::<Sleepers>();
                order.store(1, Relaxed);
                shared.0.unlock_write::<Sleepers>();
            })
        };
        [writes, second, first].into_iter().collect()
    });
    assert!(runs.is_ok_and(|runs| runs > 100));
}

/// Threads that take a bit lock as a fault takes a folio: tried, waited for, tried again.
fn takers(n: usize, times: usize) -> Vec<Part> {
    let shared = Arc::new((RawBitLock::<Traced>::new(), Inside::default()));
    (0..n)
        .map(|_| {
            let shared = Arc::clone(&shared);
            let part: Part = Box::new(move || {
                for _ in 0..times {
                    while !shared.0.try_lock() {
                        shared.0.wait_free::<Sleepers>(64);
                    }
                    shared.1.write();
                    shared.0.unlock::<Sleepers>(|| 64);
                }
            });
            part
        })
        .collect()
}

#[test]
fn a_bit_lock_excludes_and_loses_no_wake_up() {
    assert_eq!(explore(5, || takers(2, 2)).map(|runs| runs > 1000), Ok(true));
    assert_eq!(explore(3, || takers(3, 1)).map(|runs| runs > 1000), Ok(true));
}

/// The bit lock with a mistake: the mark is made before the lock is asked for again, in another access.
fn forgetful(shared: &(Traced, Inside)) {
    let (word, inside) = shared;
    while word.fetch_or(1, Acquire) & 1 != 0 {
        let locked = word.load(Relaxed) & 1 != 0;
        <Sleepers as crate::Sleeper>::wait(64, &|| {
            word.fetch_or(2, AcqRel);
            locked
        });
    }
    inside.write();
    if word.swap(0, Release) & 2 != 0 {
        <Sleepers as crate::Sleeper>::wake(64);
    }
}

#[test]
fn the_search_finds_a_lost_wake_up() {
    let found = explore(2, || {
        let shared = Arc::new((Traced::new(0), Inside::default()));
        (0..2)
            .map(|_| {
                let shared = Arc::clone(&shared);
                let part: Part = Box::new(move || forgetful(&shared));
                part
            })
            .collect()
    });
    assert!(found.is_err_and(|why| why.contains("nobody can go on")));
}

#[test]
fn the_search_finds_two_in_one_place() {
    let found = explore(2, || {
        let shared = Arc::new((Traced::new(0), Inside::default()));
        (0..2)
            .map(|_| {
                let shared = Arc::clone(&shared);
                let part: Part = Box::new(move || {
                    // Looks, and takes it in another access.
                    if shared.0.load(Relaxed) == 0 {
                        shared.0.fetch_or(1, Acquire);
                        shared.1.write();
                    }
                });
                part
            })
            .collect()
    });
    assert!(found.is_err_and(|why| why.contains("two writers")));
}

struct Nobody;

impl crate::Sleeper for Nobody {
    fn wait(_key: usize, still: &dyn Fn() -> bool) {
        assert!(!still(), "nobody else is there");
    }
    fn wake(_key: usize) {}
}

#[test]
fn guards_give_the_data_and_the_lock_back() {
    let lock = RwLock::<Nobody, Vec<u32>>::default();
    lock.write().push(5);
    {
        let (one, two) = (lock.read(), lock.read());
        assert_eq!((one[0], two.len()), (5, 1));
        assert!(lock.is_locked());
    }
    assert!(!lock.is_locked());
    lock.write().push(6);
    assert_eq!(*lock.read(), [5, 6]);
}
