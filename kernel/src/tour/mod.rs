//! `run=tour`: the kernel shows what it does, on the machine it runs on.
//!
//! Every figure is measured in the run that prints it. A step is bracketed by the records `@step` and `@done`; the second
//! carries the cost of the operation alone, taken by [`measure`] around it, and stands right behind it, so that neither
//! printing nor checking is in the figure or in the time that the runner stamps. After each step all data is compared word
//! by word, where it lies, and the memory manager's invariants are audited: a tour that ends well is also a test.

mod contents;
mod facts;
mod steps;

use core::fmt;

use farpage_mm::{
    AddressSpace, AuditError, Event, Machine as _, OutOfMemory, PMD_SIZE, Place, RangeError, Vaddr,
};
use kernel_logic::cmdline::CommandLine;
use ktest::exit::Exit;
use ktest::record;

use crate::measure::{Cost, measure};
use crate::units::{Grouped, Size};
use crate::vm::devmem::DeviceError;
use crate::vm::user::{UserFault, last_refusal};
use crate::vm::{Machine, activate, mm, new_space};
use crate::{console, exit, memory, println};

use contents::Contents;

/// 2 MiB pages that the tour maps and moves.
const HUGE_PAGES: u64 = 4;
/// 2 MiB frames of RAM that must be free for it: its pages, and one for what is left of small allocations.
const RAM_CHUNKS: u32 = HUGE_PAGES as u32 + 2;
const DEV: Place = Place::device(0);
/// Order of a 2 MiB chunk, as an index.
const PMD_CHUNKS: usize = 9;

/// Why the tour ends early.
#[derive(Debug)]
enum Stop {
    /// The device is too small for it.
    SmallDevice { chunks: u32 },
    /// There is too little RAM for it.
    LittleRam { chunks: u32 },
    /// An operation was refused.
    Range(RangeError),
    /// A touch failed.
    Fault(UserFault),
    /// No memory for an address space.
    Oom(OutOfMemory),
    /// An invariant does not hold.
    Audit(AuditError),
    /// A word is not what was written.
    Word { addr: Vaddr, found: Option<u64>, expected: u64 },
    /// What a step is there to show did not happen.
    NotShown(&'static str),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let need = (HUGE_PAGES * PMD_SIZE) >> 20;
        match self {
            Self::SmallDevice { chunks } => write!(
                f,
                "the device is too small for the tour: {} MiB of its memory are free in pieces of 2 MiB and the tour moves {need} \
                 MiB; give it more with --device-size",
                chunks * 2
            ),
            Self::LittleRam { chunks } => write!(
                f,
                "too little RAM for the tour: {chunks} pieces of 2 MiB are free and it needs {RAM_CHUNKS}; give the machine \
                 more with --memory"
            ),
            Self::Range(error) => write!(f, "{error}"),
            Self::Fault(fault) => match last_refusal() {
                Some(why) => write!(f, "{fault}: {why}"),
                None => write!(f, "{fault}"),
            },
            Self::Oom(error) => write!(f, "{error}"),
            Self::Audit(error) => write!(f, "{error}"),
            Self::Word { addr, found: Some(found), expected } => {
                write!(f, "the word at {addr} is {found:#x} and {expected:#x} was written there")
            }
            Self::Word { addr, found: None, .. } => write!(f, "nothing holds the word at {addr}"),
            Self::NotShown(what) => f.write_str(what),
        }
    }
}

impl From<RangeError> for Stop {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}
impl From<UserFault> for Stop {
    fn from(fault: UserFault) -> Self {
        Self::Fault(fault)
    }
}
impl From<OutOfMemory> for Stop {
    fn from(error: OutOfMemory) -> Self {
        Self::Oom(error)
    }
}
impl From<AuditError> for Stop {
    fn from(error: AuditError) -> Self {
        Self::Audit(error)
    }
}

/// Runs the tour and ends the run.
pub(crate) fn run(command: &CommandLine<'_>, devices: Result<usize, DeviceError>) -> ! {
    facts::machine();
    if let Err(error) = devices {
        exit::fail(&error);
    }
    facts::devices();
    let mut tour = Tour { unit: if command.icount { "instructions" } else { "ticks" }, steps: 0, audits: 0 };
    match tour.walk() {
        Ok(()) => {
            println!("audit ok: every invariant held, {} times looked at", tour.audits);
            exit::exit(Exit::Success)
        }
        Err(stop) => exit::fail(&stop),
    }
}

/// The steps so far.
struct Tour {
    /// What a tick of the time-stamp counter is.
    unit: &'static str,
    steps: u64,
    audits: u64,
}

impl Tour {
    /// The whole way, in one address space.
    fn walk(&mut self) -> Result<(), Stop> {
        let chunks = mm().device(0).memory().chunks[PMD_CHUNKS];
        if u64::from(chunks) < HUGE_PAGES {
            return Err(Stop::SmallDevice { chunks });
        }
        let chunks = free_chunks();
        if chunks < RAM_CHUNKS {
            return Err(Stop::LittleRam { chunks });
        }
        let space = new_space()?;
        let active = activate(&space);
        let mut contents = Contents::default();
        self.there_and_back(&space, &mut contents)?;
        self.splits(&space, &mut contents)?;
        drop(active);
        self.end(space)
    }

    /// One step: announced and done. Its cost goes to [`Tour::done`] right after it, then come its results.
    fn step<R>(&mut self, title: &str, work: impl FnOnce() -> Result<R, Stop>) -> Result<(R, Cost), Stop> {
        self.steps += 1;
        let n = self.steps;
        console::with(|out| {
            let _ = record!(out, "step", n = n, title = title);
        });
        let (result, cost) = measure(work);
        Ok((result?, cost))
    }

    /// What the last step cost: `what` it was, and what the words it moved were, the `copy` or the `clearing`.
    fn done(&self, cost: Cost, what: &str, data: &str) {
        console::with(|out| {
            let _ = record!(
                out,
                "done",
                n = self.steps,
                insns = cost.ticks,
                bulk = cost.bulk,
                what = what,
                data = data
            );
        });
    }

    /// Compares all data, where it lies, and audits the memory manager.
    fn check(&mut self, space: &AddressSpace<Machine>, contents: &Contents) -> Result<(), Stop> {
        println!("{}", contents.verify(space)?);
        self.audit()
    }

    fn audit(&mut self) -> Result<(), Stop> {
        memory::mm_audit()?;
        self.audits += 1;
        Ok(())
    }
}

/// The page table of the space, one line per run of equal mappings.
fn dump(space: &AddressSpace<Machine>) {
    space.for_each_run(|run| println!("{run}"));
}

/// Free RAM in pieces of 2 MiB, the CPUs' caches emptied first, since what they hold may complete one.
fn free_chunks() -> u32 {
    let ram = mm().zone(Place::RAM);
    ram.drain();
    ram.stat().chunks[PMD_CHUNKS]
}

/// A counter now.
fn counted(event: Event) -> u64 {
    Machine::counted(event)
}
