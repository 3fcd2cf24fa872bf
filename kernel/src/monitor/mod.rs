//! `run=shell`: a person, or a script, types commands and the kernel does them.
//!
//! What there is to type, and how a line becomes a [`Command`], is [`ktest::monitor`]; here it is done. User memory is touched only
//! by the routines that may fault, and addresses are looked at only where they are user addresses: whatever a line says, its worst
//! end is a sentence. Each answer ends with a record (`@ready`) that says whether it was done and what it cost. The cost is that of
//! the operation alone (of `fill`, `check` and `touch` the loads and stores), and the CPU takes interrupts only while it waits for a
//! line: under instruction counting the same commands cost the same, to the last instruction, however fast they are typed.

mod counters;
mod hardware;
mod knobs;
mod line;
mod look;
mod memory;
mod moves;
mod refusal;
mod spaces;
mod trace;

use farpage_mm::trace::Tracing;
use farpage_mm::{USER_END, VaRange, Vaddr};
use ktest::exit::Exit;
use ktest::monitor::{self as commands, Address, COMMANDS, Command, Knob, READY, Size, Spec, Value};
use ktest::record;

use crate::arch::x86_64::serial;
use crate::measure::{Cost, measure};
use crate::vm::devmem;
use crate::{bits, boot, console, counting, exit, lab, memory as all_memory, println};

use counters::{Counters, Plural};
use line::Line;
use refusal::Refusal;
use spaces::Spaces;

/// A command that was done, and what its operation cost if it was measured.
type Done = Result<Option<Cost>, Refusal>;

/// Takes commands until one ends the run.
pub(crate) fn run() -> ! {
    let mut lab = match Lab::new() {
        Ok(lab) => lab,
        Err(refusal) => exit::fail(&refusal),
    };
    let mut line = Line::new();
    serial::listen();
    greet();
    let mut done = Ok(None);
    for n in 0_u64.. {
        lab.ready(n, &done);
        done = match line.read() {
            Ok(text) => lab.obey(text),
            Err(lost) => Err(Refusal::Line(lost)),
        };
        if let Err(refusal) = &done {
            println!("error: {refusal}");
        }
    }
    exit::exit(Exit::Success)
}

fn greet() {
    let unit = if boot().command.icount { "instructions" } else { "ticks of the time-stamp counter" };
    let devices = Plural(devmem::devices().count() as u64, "device");
    println!("{devices}; costs are in {unit}; help lists the commands");
}

/// What the commands work on.
struct Lab {
    spaces: Spaces,
    counters: Counters,
}

impl Lab {
    fn new() -> Result<Self, Refusal> {
        Ok(Self { spaces: Spaces::new()?, counters: Counters::new() })
    }

    /// The record that ends an answer.
    fn ready(&self, n: u64, done: &Done) {
        let (ok, space) = (u8::from(done.is_ok()), self.spaces.current());
        console::with(|out| {
            let _ = match done {
                Ok(Some(cost)) => {
                    record!(out, READY, n = n, ok = ok, space = space, insns = cost.ticks, bulk = cost.bulk)
                }
                _ => record!(out, READY, n = n, ok = ok, space = space),
            };
        });
    }

    fn obey(&mut self, text: &str) -> Done {
        let command = commands::parse(text).map_err(|error| Refusal::said(&error))?;
        let Some(command) = command else { return Ok(None) };
        let counting = if only_looks(&command) {
            None
        } else {
            self.counters.begin();
            crate::knobs::events().map(|events| counting::count_measured(events.as_slice()))
        };
        let done = self.act(command);
        counting.into_iter().for_each(hardware::show);
        done
    }

    /// Turns a knob. A limit is for the spaces that there are, too.
    fn set(&self, knob: Option<Knob>, value: Option<Value<'_>>) -> Done {
        let done = knobs::set(knob, value)?;
        if knob == Some(Knob::GroupLimit) {
            self.spaces.iter().for_each(|(_, space)| crate::knobs::join_group(space));
        }
        Ok(done)
    }

    fn act(&mut self, command: Command<'_>) -> Done {
        let space = self.spaces.space();
        match command {
            Command::Map { addr, size, prot, huge } => memory::map(space, range(addr, size), prot, huge),
            Command::Unmap { addr, size } => memory::unmap(space, range(addr, size)),
            Command::Fill { addr, size, seed } => memory::fill(range(addr, size), seed),
            Command::Check { addr, size, seed, at, origin } => {
                let origin = origin.0.unwrap_or(addr);
                memory::check(space, range(addr, size), memory::Pattern::new(addr, origin, seed), at.0)
            }
            Command::Touch { addr, size, access } => memory::touch(space, addr, size, access),
            Command::Protect { addr, size, prot } => memory::protect(space, range(addr, size), prot),
            Command::Remap { old, size, new, keep } => memory::remap(space, range(old, size), new, keep.0),
            Command::Advise { addr, size, advice } => memory::advise(space, range(addr, size), advice),
            Command::Migrate { addr, size, place } => moves::migrate(space, range(addr, size), place),
            Command::Evict { device, first, count } => moves::evict(device, first, count),
            Command::Split { addr } => moves::split(space, user(addr)?),
            Command::Collapse { addr, size } => moves::collapse(space, user(addr)?, size),
            Command::Fork {} => self.spaces.fork(),
            Command::Spaces {} => self.spaces.list(),
            Command::Use { space } => self.spaces.switch_to(space.0),
            Command::ExitSpace {} => self.spaces.end(),
            Command::Pt { addr, size } => look::page_table(space, addr, size),
            Command::Walk { addr } => {
                bits::show_walk(space, user(addr)?);
                Ok(None)
            }
            Command::Folio { target } => look::folio(&self.spaces, target),
            Command::Dev {} => look::devices(),
            Command::Stat { diff } => self.counters.stat(diff.0),
            Command::Events {} => self.counters.events(),
            Command::Counters {} => hardware::list(),
            Command::Audit {} => audit(),
            Command::Exp { name } => self.spaces.aside(|| experiment(name.map(|name| name.0))),
            Command::Trace { what, records } => trace::trace(what, records),
            Command::Bench { name } => self.spaces.aside(|| bench(name.0)),
            Command::Set { knob, value } => self.set(knob.0, value),
            Command::Help { cmd } => help(cmd.map(|topic| topic.0)),
            Command::Panic {} => panic!("a command asked for it"),
            Command::Exit {} => exit::exit(Exit::Success),
        }
    }
}

/// Is this a command whose own counters nobody asks for?
fn only_looks(command: &Command<'_>) -> bool {
    matches!(
        command,
        Command::Spaces {}
            | Command::Pt { .. }
            | Command::Walk { .. }
            | Command::Folio { .. }
            | Command::Dev {}
            | Command::Stat { .. }
            | Command::Events {}
            | Command::Counters {}
            | Command::Audit {}
            | Command::Trace { .. }
            | Command::Set { .. }
            | Command::Help { .. }
    )
}

/// The range of a command; the memory manager refuses what is no range of user pages.
fn range(addr: Address, size: Size) -> VaRange {
    VaRange::new(addr.0, size.0)
}

/// An address whose entries may be looked at.
fn user(addr: Address) -> Result<Vaddr, Refusal> {
    if addr.0 < USER_END { Ok(Vaddr(addr.0)) } else { Err(Refusal::NotUser(addr.0)) }
}

fn bench(part: &str) -> Done {
    knobs::must_be_safe("bench")?;
    // Its figures would be those of recording too, and some of its rows have a trace of their own.
    if crate::vm::trace::level() != Tracing::Off {
        return Err(Refusal::Said("bench measures nothing while the trace is on; first: trace off".into()));
    }
    if devmem::device(0).is_none() {
        return Err(Refusal::NoDevice { number: 0, there_are: 0 });
    }
    match crate::bench::rows(part) {
        Ok(0) => Err(Refusal::Said(alloc::format!(
            "no operation has \"{part}\" in its name; try touch, fault-back or unmap"
        ))),
        Ok(_) => Ok(None),
        Err(stop) => Err(Refusal::said(&stop)),
    }
}

/// Does an experiment, or lists them.
fn experiment(name: Option<&str>) -> Done {
    let all = lab::all();
    let Some(name) = name else {
        all.iter().for_each(|experiment| println!("{:<20} {}", experiment.name, experiment.question));
        return Ok(None);
    };
    if devmem::device(0).is_none() {
        return Err(Refusal::NoDevice { number: 0, there_are: 0 });
    }
    match all.iter().find(|experiment| experiment.name == name) {
        None => Err(Refusal::Said(alloc::format!("there is no experiment \"{name}\"; exp lists them"))),
        Some(experiment) if lab::one(experiment, !boot().command.icount) => Ok(None),
        Some(_) => Err(Refusal::Said("the experiment did not come to its end".into())),
    }
}

fn audit() -> Done {
    let (result, cost) = measure(all_memory::mm_audit);
    result?;
    println!("audit ok: every invariant holds");
    Ok(Some(cost))
}

fn help(about: Option<&'static Spec>) -> Done {
    match about {
        Some(spec) => {
            println!("{}", spec.usage());
            println!("  {}", spec.help);
            println!("  example: {}", spec.example);
        }
        None => {
            for spec in COMMANDS {
                println!("{:<46} {}", alloc::format!("{}", spec.usage()), spec.help);
            }
            println!(
                "addresses are hexadecimal (0x10_0000_0000, with +SIZE behind it if you like), sizes like 4K, 2M, 16p (pages)"
            );
        }
    }
    Ok(None)
}
