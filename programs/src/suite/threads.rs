//! Threads of the standard library: what it asks of clone3, futex and CLEARTID; and that they really interleave.

use std::cell::Cell;
use std::process;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, Once, RwLock, mpsc};
use std::thread;
use std::time::Duration;

use farpage_programs::task::child;
use farpage_programs::{PAGE, fact, memory, sys};

/// Runs the group.
pub(crate) fn run() {
    results();
    locks();
    locals();
    interleaving();
    channels();
    identities();
    ends();
    faults();
}

fn results() {
    let answers: Vec<u64> =
        (0..8).map(|n| thread::spawn(move || n * n)).map(|t| t.join().unwrap_or(99)).collect();
    fact!("what threads return", "{answers:?}");
    let many: Vec<_> = (0..64_u64).map(|n| thread::spawn(move || n)).collect();
    fact!("64 at once", "{}", many.into_iter().map(|t| t.join().unwrap_or(0)).sum::<u64>());
    let later: u64 = (0..200_u64).map(|n| thread::spawn(move || n).join().unwrap_or(0)).sum();
    fact!("200 one after the other", "{later}");
    let small = thread::Builder::new().stack_size(64 << 10).spawn(|| deep(50)).expect("a thread");
    fact!("a small stack", "{}", small.join().unwrap_or(0));
    let large = thread::Builder::new().stack_size(16 << 20).spawn(|| deep(50_000)).expect("a thread");
    fact!("a large stack", "{}", large.join().unwrap_or(0));
    let mut words = vec![0_u64; 4096];
    thread::scope(|scope| {
        for (number, part) in words.chunks_mut(512).enumerate() {
            scope.spawn(move || part.fill(number as u64));
        }
    });
    fact!("memory of the parent's", "{}", words.iter().sum::<u64>());
}

#[inline(never)]
fn deep(n: u64) -> u64 {
    let room = std::hint::black_box([n; 8]);
    if n == 0 { 0 } else { 1 + deep(room[3] - 1) }
}

fn locks() {
    let (sum, shared) = (Arc::new(Mutex::new(0_u64)), Arc::new(RwLock::new(1_u64)));
    let threads: Vec<_> = (0..16)
        .map(|_| {
            let (sum, shared) = (Arc::clone(&sum), Arc::clone(&shared));
            thread::spawn(move || {
                for _ in 0..500 {
                    *sum.lock().expect("a lock") += *shared.read().expect("a lock");
                }
                *shared.write().expect("a lock") += 0;
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().expect("a thread"));
    fact!("a mutex, 16 threads", "{}", sum.lock().expect("a lock"));
    let turn = Arc::new((Mutex::new(0_u32), Condvar::new()));
    let threads: Vec<_> = (0..3_u32)
        .map(|own| {
            let turn = Arc::clone(&turn);
            thread::spawn(move || {
                let (lock, changed) = &*turn;
                for _ in 0..50 {
                    let mut now = changed
                        .wait_while(lock.lock().expect("a lock"), |now| *now % 3 != own)
                        .expect("a lock");
                    *now += 1;
                    changed.notify_all();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().expect("a thread"));
    fact!("three take turns", "{}", turn.0.lock().expect("a lock"));
    let (lock, changed) = (Mutex::new(()), Condvar::new());
    let (_guard, timeout) =
        changed.wait_timeout(lock.lock().expect("a lock"), Duration::from_millis(5)).expect("a lock");
    fact!("nobody comes", "timed out: {}", timeout.timed_out());
    let barrier = Arc::new(Barrier::new(8));
    let leaders = (0..8)
        .map(|_| Arc::clone(&barrier))
        .map(|barrier| thread::spawn(move || u32::from(barrier.wait().is_leader())))
        .collect::<Vec<_>>();
    fact!("leaders at a barrier", "{}", leaders.into_iter().map(|t| t.join().unwrap_or(9)).sum::<u32>());
    static ONCE: Once = Once::new();
    static TIMES: AtomicUsize = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| ONCE.call_once(|| _ = TIMES.fetch_add(1, Ordering::Relaxed)));
        }
    });
    fact!("once", "{}", TIMES.load(Ordering::Relaxed));
}

thread_local! {
    static OWN: Cell<u64> = const { Cell::new(7) };
}

fn locals() {
    OWN.set(8);
    let found: Vec<u64> = (0..4)
        .map(|n| {
            thread::spawn(move || {
                let first = OWN.get();
                OWN.set(100 + n);
                (0..100).for_each(|_| thread::yield_now());
                first + OWN.get()
            })
        })
        .collect::<Vec<_>>()
        .into_iter()
        .map(|t| t.join().unwrap_or(0))
        .collect();
    fact!("thread-locals", "{found:?} {}", OWN.get());
}

/// Two that spin for each other and never call the kernel: only its timer lets the other one run.
fn interleaving() {
    static TURN: AtomicU64 = AtomicU64::new(0);
    let spin = |own: u64| {
        for round in 0..5 {
            while TURN.load(Ordering::Acquire) != round * 2 + own {
                std::hint::spin_loop();
            }
            TURN.fetch_add(1, Ordering::AcqRel);
        }
    };
    thread::scope(|scope| {
        scope.spawn(move || spin(1));
        spin(0);
    });
    fact!("turns without a call", "{}", TURN.load(Ordering::Relaxed));
}

fn channels() {
    let (to, from) = mpsc::sync_channel(2);
    let senders: Vec<_> = (0..4_u64)
        .map(|n| {
            let to = to.clone();
            thread::spawn(move || (0..100).for_each(|i| to.send(n * 1000 + i).expect("a receiver")))
        })
        .collect();
    drop(to);
    fact!("through a channel", "{}", from.iter().sum::<u64>());
    senders.into_iter().for_each(|t| t.join().expect("a thread"));
    let parked = thread::spawn(|| {
        thread::park();
        5
    });
    parked.thread().unpark();
    fact!("parked", "{}", parked.join().unwrap_or(0));
    let started = std::time::Instant::now();
    thread::spawn(|| thread::sleep(Duration::from_millis(3))).join().expect("a thread");
    fact!("slept at least as long", "{}", started.elapsed() >= Duration::from_millis(3));
}

fn identities() {
    let (pid, tid) = (sys!(SYS_getpid), sys!(SYS_gettid));
    fact!("the first thread has the process's number", "{}", pid == tid);
    let other = thread::spawn(|| (sys!(SYS_getpid), sys!(SYS_gettid))).join().expect("a thread");
    fact!("another", "same process {}, another number {}", other.0 == pid, other.1 != tid);
}

fn ends() {
    let nap = || loop {
        thread::sleep(Duration::from_secs(1));
    };
    fact!("exit in a thread", "{}", child(|| thread::spawn(|| process::exit(7)).join().map_or(1, |()| 2)));
    fact!(
        "exit beside a sleeping one",
        "{}",
        child(|| {
            thread::spawn(nap);
            4
        })
    );
    fact!(
        "exit beside spinning ones",
        "{}",
        child(|| {
            (0..4).for_each(|_| {
                thread::spawn(|| {
                    loop {
                        std::hint::spin_loop();
                    }
                });
            });
            5
        })
    );
    fact!(
        "the first thread ends, another goes on",
        "{}",
        child(|| {
            thread::spawn(|| {
                (0..50).for_each(|_| thread::yield_now());
                process::exit(6)
            });
            sys!(SYS_exit, 0).0 as i32
        })
    );
    fact!(
        "a process of several, killed",
        "{}",
        child(|| {
            thread::spawn(nap);
            thread::spawn(|| sys!(SYS_kill, sys!(SYS_getpid).0, libc::SIGKILL));
            nap();
            0
        })
    );
    fact!("a fork from a thread", "{}", child(|| thread::spawn(|| child(|| 11).0 >> 8).join().unwrap_or(99)));
}

fn faults() {
    fact!(
        "a wild thread ends all",
        "{}",
        child(|| {
            let wild = || {
                // SAFETY: nothing is read: it faults, and ends the child.
                unsafe { std::ptr::read_volatile(0x18 as *const u8) }
            };
            i32::from(thread::spawn(wild).join().unwrap_or(0))
        })
    );
    memory::catch_faults();
    let pages = memory::anon(256 * PAGE);
    thread::scope(|scope| {
        for n in 0..8_u64 {
            scope.spawn(move || {
                (0..256).for_each(|page| {
                    memory::store(pages + page * PAGE + n * 8, n).expect("a page");
                });
            });
        }
    });
    let sum: u64 = (0..256)
        .flat_map(|page| (0..8).map(move |n| memory::load(pages + page * PAGE + n * 8).unwrap_or(0)))
        .sum();
    fact!("eight touch the same new pages", "{sum}");
}
