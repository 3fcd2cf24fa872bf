//! `suite seeds FIRST COUNT STEPS [--trace]`: random steps in one arena, and a digest of what they came to.
//!
//! Each seed is a child process that does `STEPS` steps with memory of [`PAGES`] pages at a fixed address: mappings, protections,
//! moves, advice, reads, writes (also where that faults) and forks. Its line says what came back (folded), what can be read, and
//! what `/proc/self/maps` says of the arena. With `--trace` each step is a line, so that `diff` shows the first difference.
//!
//! What kernels may do differently is not done: nothing depends on where one area ends and another begins, for Linux merges areas
//! when it can, which is not always. `mremap` is only given ranges that are one area however much is merged: a *piece*, which no
//! step since has cut. Addresses are never the kernel's choice, what MADV_FREE leaves is dropped at once, and the result of
//! MADV_COLLAPSE is ignored.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use farpage_programs::memory::{PRIVATE, RW, SHARED, load, madvise, mmap, mprotect, mremap, munmap, store};
use farpage_programs::{PAGE, maps, memory, sys, task};
use libc::{
    MADV_COLLAPSE, MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MAP_FIXED, MAP_FIXED_NOREPLACE,
    MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_EXEC, PROT_NONE, PROT_READ,
};

/// Where the arena is: far below all that a kernel places by itself, so that holes in it stay holes.
const ARENA: u64 = 0x10_0000_0000;
/// Its pages: four large ones.
const PAGES: u64 = 2048;
/// Pages of a large page.
const HUGE_PAGES: u64 = 512;
/// Pages that fork's children add up to: a child's child is the last.
const DEPTH: u32 = 2;

/// Runs seeds from the command line.
pub(crate) fn run(args: &[String]) {
    let number = |n: usize, default| args.get(n).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (first, count, steps) = (number(0, 1), number(1, 20), number(2, 2000));
    let trace = args.iter().any(|arg| arg == "--trace");
    memory::catch_faults();
    for seed in first..first + count {
        let status = task::child(|| {
            let mut arena = Arena::new(seed, trace);
            for step in 0..steps {
                arena.step(step);
            }
            arena.report(seed);
            0
        });
        if status.0 != 0 {
            println!("seed {seed}: {status}");
        }
    }
}

/// A generator of numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Everything that came back, folded into a word.
#[derive(Clone, Copy)]
struct Fold(u64);

impl Fold {
    fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(17);
    }
}

/// What a page is part of.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Piece {
    /// 0: nothing that mremap may be given.
    id: u32,
    shared: bool,
}

const NONE: Piece = Piece { id: 0, shared: false };

struct Arena {
    random: Random,
    results: Fold,
    pieces: Vec<Piece>,
    last_id: u32,
    depth: u32,
    trace: bool,
    /// A word that parent and child share: how far the parent is.
    turn: u64,
}

fn addr(page: u64) -> u64 {
    ARENA + page * PAGE
}

fn bytes(range: &Range<u64>) -> u64 {
    (range.end - range.start) * PAGE
}

impl Arena {
    fn new(seed: u64, trace: bool) -> Self {
        mmap(ARENA, PAGES * PAGE, PROT_NONE, PRIVATE | MAP_FIXED_NOREPLACE).value("the arena");
        let turn = mmap(0, PAGE, RW, SHARED).value("a shared page");
        Self {
            random: Random(seed),
            results: Fold(seed),
            pieces: vec![NONE; PAGES as usize],
            last_id: 0,
            depth: 0,
            trace,
            turn,
        }
    }

    /// Some pages: mostly few, at times a large page or two and a little beside them.
    fn range(&mut self) -> Range<u64> {
        let random = &mut self.random;
        let (start, len) = match random.below(10) {
            0..=5 => (random.below(PAGES), 1 + random.below(12)),
            6..=7 => (random.below(PAGES), 1 + random.below(150)),
            8 => (random.below(4) * HUGE_PAGES, HUGE_PAGES * (1 + random.below(2))),
            _ => (random.below(PAGES), HUGE_PAGES / 2 + random.below(HUGE_PAGES)),
        };
        start..(start + len).min(PAGES)
    }

    /// Cuts the piece that goes through the start of this page.
    fn cut(&mut self, page: u64) {
        let page = page as usize;
        if page == 0 || page >= self.pieces.len() || self.pieces[page].id == 0 {
            return;
        }
        let old = self.pieces[page];
        if self.pieces[page - 1] != old {
            return;
        }
        self.last_id += 1;
        for piece in self.pieces[page..].iter_mut().take_while(|piece| **piece == old) {
            piece.id = self.last_id;
        }
    }

    fn cut_both(&mut self, range: &Range<u64>) {
        self.cut(range.start);
        self.cut(range.end);
    }

    /// The range is one new piece, or none.
    fn set(&mut self, range: &Range<u64>, shared: Option<bool>) {
        self.cut_both(range);
        self.last_id += 1;
        let piece = shared.map_or(NONE, |shared| Piece { id: self.last_id, shared });
        self.pieces[range.start as usize..range.end as usize].fill(piece);
    }

    /// A part of some piece, or all of it.
    fn piece(&mut self) -> Option<(Range<u64>, bool)> {
        let at = self.random.below(PAGES) as usize;
        let is_piece = |page: &usize| self.pieces[*page].id != 0;
        let found = (at..PAGES as usize).chain(0..at).find(is_piece)?;
        let piece = self.pieces[found];
        let same = |page: &usize| self.pieces[*page] == piece;
        let start = (0..found).rev().take_while(same).last().unwrap_or(found) as u64;
        let end = (found..PAGES as usize).take_while(same).last().unwrap_or(found) as u64 + 1;
        if self.random.below(2) == 0 {
            return Some((start..end, piece.shared));
        }
        let first = start + self.random.below(end - start);
        let last = first + 1 + self.random.below(end - first);
        Some((first..last, piece.shared))
    }

    /// Notes what a step came to.
    fn note(&mut self, step: u64, what: &str, range: &Range<u64>, result: sys::Ret) {
        // An address is the one that was asked for, or a difference.
        let word = if result.is_ok() && result.0 as u64 >= ARENA {
            result.0 as u64 - ARENA
        } else {
            result.0 as u64
        };
        self.results.add(word);
        if self.trace {
            let (depth, errno) = (self.depth, sys::name(result.errno()));
            let result = if result.is_ok() { format!("{word:#x}") } else { errno.to_owned() };
            println!("{step}.{depth} {what} {}..{}: {result}", range.start, range.end);
        }
    }

    fn step(&mut self, step: u64) {
        match self.random.below(400) {
            0..50 => self.map(step),
            50..75 => self.unmap(step),
            75..115 => self.protect(step),
            115..165 => self.remap(step),
            165..215 => self.advise(step),
            215..320 => self.write(step),
            320..397 => self.read(step),
            _ => self.fork(step),
        }
    }

    fn map(&mut self, step: u64) {
        let range = self.range();
        let prot = self.random.pick(&[RW, RW, RW, RW, PROT_READ, PROT_NONE, RW | PROT_EXEC]);
        let shared = self.random.below(4) == 0;
        let flags = MAP_FIXED | if shared { SHARED } else { PRIVATE };
        let result = mmap(addr(range.start), bytes(&range), prot, flags);
        self.set(&range, Some(shared));
        self.note(step, if shared { "map shared" } else { "map" }, &range, result);
    }

    fn unmap(&mut self, step: u64) {
        let range = self.range();
        let result = munmap(addr(range.start), bytes(&range));
        self.set(&range, None);
        self.note(step, "unmap", &range, result);
    }

    fn protect(&mut self, step: u64) {
        let range = self.range();
        let prot = self.random.pick(&[RW, RW, RW, PROT_READ, PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC]);
        let result = mprotect(addr(range.start), bytes(&range), prot);
        self.cut_both(&range);
        self.note(step, &format!("protect {prot}"), &range, result);
    }

    fn remap(&mut self, step: u64) {
        let Some((from, shared)) = self.piece() else { return };
        let len = from.end - from.start;
        let kind = self.random.below(10);
        let new_len = if kind < 6 { len } else { 1 + self.random.below(len * 2) };
        if kind == 9 {
            return self.resize(step, &from, new_len);
        }
        // Now and then as it lies in its large page, so that a large page can move whole.
        let start = self.random.below(PAGES);
        let start = if self.random.below(2) == 0 {
            start
        } else {
            start / HUGE_PAGES * HUGE_PAGES + from.start % HUGE_PAGES
        };
        let to = start..start + new_len;
        if to.end > PAGES {
            return;
        }
        let both = MREMAP_MAYMOVE | MREMAP_FIXED;
        let keep = kind < 2;
        let again = shared && kind == 5 && to.start != from.start;
        let (flags, old_len) =
            (if keep { both | MREMAP_DONTUNMAP } else { both }, if again { 0 } else { bytes(&from) });
        let result = mremap(addr(from.start), old_len, bytes(&to), flags, addr(to.start));
        if result.is_ok() {
            self.cut_both(&from);
            if !keep && !again {
                self.set(&from, None);
            }
            self.set(&to, Some(shared));
        }
        let what = if keep {
            "move, keeping,"
        } else if again {
            "double"
        } else {
            "move"
        };
        self.note(step, &format!("{what} to {}+{new_len}", to.start), &from, result);
    }

    /// Larger or smaller where it is.
    fn resize(&mut self, step: u64, from: &Range<u64>, new_len: u64) {
        let to = from.start..from.start + new_len;
        if to.end > PAGES {
            return;
        }
        let shared = self.pieces[from.start as usize].shared;
        let result = mremap(addr(from.start), bytes(from), bytes(&to), 0, 0);
        if result.is_ok() {
            if to.end < from.end {
                self.set(&(to.end..from.end), None);
            } else if to.end > from.end {
                // One area or two: what was added is not asked about together with the rest.
                self.set(&(from.end..to.end), Some(shared));
            }
        }
        self.note(step, &format!("resize to {new_len}"), from, result);
    }

    fn advise(&mut self, step: u64) {
        let range = self.range();
        let advice = self.random.pick(&[
            MADV_DONTNEED,
            MADV_HUGEPAGE,
            MADV_HUGEPAGE,
            MADV_NOHUGEPAGE,
            MADV_FREE,
            MADV_COLLAPSE,
        ]);
        let (at, len) = (addr(range.start), bytes(&range));
        if matches!(advice, MADV_FREE | MADV_COLLAPSE) {
            // What FREE leaves is either or, and what COLLAPSE says depends on memory.
            let _ = madvise(at, len, advice);
        }
        let second = if advice == MADV_FREE { MADV_DONTNEED } else { advice };
        let result = if advice == MADV_COLLAPSE { sys::Ret(0) } else { madvise(at, len, second) };
        if matches!(advice, MADV_HUGEPAGE | MADV_NOHUGEPAGE) {
            self.cut_both(&range);
        }
        self.note(step, &format!("advise {advice}"), &range, result);
    }

    /// A word of some pages.
    fn write(&mut self, step: u64) {
        let mut range = self.range();
        range.end = range.end.min(range.start + 6);
        let word = self.random.pick(&[0, 8, 2048, 4088]);
        let mut faults = 0;
        for page in range.clone() {
            let value = self.random.next();
            if let Err(fault) = store(addr(page) + word, value) {
                faults += 1 + (fault.signal as i64) * 100 + i64::from(fault.code) * 10_000;
            }
        }
        self.note(step, "write", &range, sys::Ret(faults));
    }

    fn read(&mut self, step: u64) {
        let mut range = self.range();
        range.end = range.end.min(range.start + 4);
        let mut found = Fold(0);
        for page in range.clone() {
            found.add(seen(addr(page)));
            found.add(seen(addr(page) + 2048));
        }
        self.note(step, "read", &range, sys::Ret((found.0 >> 24) as i64));
    }

    /// A child that looks at all, changes something, and has its own steps; its parent goes on meanwhile, or waits at once.
    fn fork(&mut self, step: u64) {
        if self.depth >= DEPTH {
            return;
        }
        let (random, own) = (self.random.next(), 1 + self.random.below(20));
        let meanwhile = self.random.below(3);
        let turn = self.turn;
        store(turn, 0).expect("a shared page");
        let pid = task::spawn(|| {
            // The child is not to run before its turn, and sees nothing of what its parent does to private memory.
            await_turn(turn);
            self.random = Random(random);
            self.depth += 1;
            self.turn = mmap(0, PAGE, RW, SHARED).value("a shared page");
            (0..own).for_each(|step| self.step(step));
            self.results.add(self.contents(16));
            (self.results.0 >> 33) as i32 & 0xff
        });
        for _ in 0..meanwhile {
            self.write(step);
        }
        give_turn(turn);
        let status = task::wait(pid);
        self.note(step, "fork", &(0..own), sys::Ret(i64::from(status.0)));
    }

    /// What can be read of each n-th page, folded.
    fn contents(&self, nth: u64) -> u64 {
        let mut found = Fold(0);
        for run in maps::runs(ARENA, PAGES * PAGE) {
            if run.kind.starts_with('r') {
                for at in (run.offset..run.offset + run.len).step_by((nth * PAGE) as usize) {
                    found.add(at);
                    found.add(seen(ARENA + at));
                    found.add(seen(ARENA + at + 4088));
                }
            }
        }
        found.0
    }

    fn report(&self, seed: u64) {
        let mut shape = Fold(0);
        let runs = maps::runs(ARENA, PAGES * PAGE);
        for run in &runs {
            shape.add(run.offset);
            shape.add(run.len);
            run.kind.bytes().for_each(|byte| shape.add(u64::from(byte)));
            if self.trace {
                println!("{run}");
            }
        }
        let (results, contents) = (self.results.0, self.contents(1));
        println!(
            "seed {seed}: results {results:016x} contents {contents:016x} maps {} {:016x}",
            runs.len(),
            shape.0
        );
    }
}

/// A word, or which fault.
fn seen(addr: u64) -> u64 {
    load(addr).unwrap_or_else(|fault| 0xdead_0000 + fault.signal as u64 * 256 + fault.code as u64)
}

fn word(turn: u64) -> &'static AtomicU32 {
    // SAFETY: a page that both processes have mapped, and that is never unmapped.
    unsafe { AtomicU32::from_ptr(turn as *mut u32) }
}

fn await_turn(turn: u64) {
    while word(turn).load(Ordering::Acquire) == 0 {
        let _ = sys!(SYS_futex, turn, libc::FUTEX_WAIT, 0, 0);
    }
}

fn give_turn(turn: u64) {
    word(turn).store(1, Ordering::Release);
    let _ = sys!(SYS_futex, turn, libc::FUTEX_WAKE, 1);
}
