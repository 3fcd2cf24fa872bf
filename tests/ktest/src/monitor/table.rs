//! The table.

use core::fmt;

use super::Error;
use super::args::{
    Access, Address, Advice, Device, Huge, Keep, Number, Origin, Place, Prot, Since, Size, Target, Text,
    Topic, TraceWhat, Value, Where, Which,
};
use super::error::Capitals;
use super::words::{Param, Shape, Take, Words};

/// What is known of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name.
    pub name: &'static str,
    /// Its arguments, in order. Options may stand anywhere.
    pub params: &'static [Param],
    /// What it does, in one line.
    pub help: &'static str,
    /// A line that shows it.
    pub example: &'static str,
}

/// Declares the commands: name, arguments by name and type, help, example.
macro_rules! commands {
    ($lt:lifetime; $($variant:ident $name:literal ($($field:ident: $type:ty),*) $help:literal, $example:literal;)*) => {
        /// A command with its arguments.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Command<$lt> {
            $(
                #[doc = $help]
                $variant {
                    $(#[doc = concat!("Argument `", stringify!($field), "`.")] $field: $type,)*
                },
            )*
        }

        impl<$lt> Command<$lt> {
            const SPECS: &'static [Spec] = &[$(Spec {
                name: $name,
                params: &[$(Param {
                    name: stringify!($field),
                    shape: <$type as Take<$lt>>::SHAPE,
                    optional: <$type as Take<$lt>>::OPTIONAL,
                },)*],
                help: $help,
                example: $example,
            },)*];
        }

        /// Takes the arguments of the command.
        pub(super) fn read<$lt>(spec: &'static Spec, words: &mut Words<$lt>) -> Result<Command<$lt>, Error<$lt>> {
            match spec.name {
                $($name => Ok(Command::$variant { $($field: Take::take(words, stringify!($field))?,)* }),)*
                _ => Err(Error::unknown(spec.name)),
            }
        }
    };
}

commands! { 'a;
    Map "map" (addr: Address, size: Size, prot: Option<Prot>, huge: Option<Huge>)
        "Map anonymous memory; rw unless said otherwise", "map 0x10_0000_0000 2M rw huge";
    Unmap "unmap" (addr: Address, size: Size)
        "Unmap a range, or a part of one", "unmap 0x10_0010_0000 64K";
    Fill "fill" (addr: Address, size: Size, seed: Option<Number>)
        "Write every word, each another value", "fill 0x10_0000_0000 2M 7";
    Check "check" (addr: Address, size: Size, seed: Option<Number>, at: Where, origin: Origin)
        "Compare every word with what fill wrote (at ORIGIN): by loads, or --where it lies, untouched",
        "check 0x10_0000_0000 2M 7 --where";
    Touch "touch" (addr: Address, size: Option<Size>, access: Option<Access>)
        "Load or store one byte of every page, from ADDR on", "touch 0x10_0000_1238 r";
    Migrate "migrate" (addr: Address, size: Size, place: Place)
        "Move memory to a device, or back to RAM", "migrate 0x10_0000_0000 2M dev0";
    Evict "evict" (device: Device, first: Option<Number>, count: Option<Number>)
        "Move what is on a device to RAM, or what is in COUNT of its pages from FIRST on", "evict dev0";
    Split "split" (addr: Address)
        "Cut the huge mapping at ADDR into 4 KiB entries", "split 0x10_0000_0000";
    Collapse "collapse" (addr: Address, size: Option<Size>)
        "Make pages of 2 MiB out of small ones, in RAM or on their device", "collapse 0x10_0000_0000";
    Protect "protect" (addr: Address, size: Size, prot: Prot)
        "Change what a range allows", "protect 0x10_0000_0000 2M r";
    Remap "remap" (old: Address, size: Size, new: Address, keep: Keep)
        "Move a mapping; with --keep the old one stays, empty", "remap 0x10_0000_0000 2M 0x20_0000_0000";
    Advise "advise" (addr: Address, size: Size, advice: Advice)
        "Say what is going to happen to a range", "advise 0x10_0000_0000 2M dontneed";
    Fork "fork" ()
        "Make a new address space that is a clone of this one", "fork";
    Spaces "spaces" ()
        "List the address spaces and their mappings", "spaces";
    Use "use" (space: Number)
        "Go to another address space", "use 2";
    ExitSpace "exit-space" ()
        "End this address space, and go to one that is left or to a new one", "exit-space";
    Pt "pt" (addr: Option<Address>, size: Option<Size>)
        "Show the page table, one line for each run of equal entries", "pt";
    Walk "walk" (addr: Address)
        "Show the entries on the way to ADDR, every bit by name", "walk 0x10_0000_0000";
    Folio "folio" (target: Target)
        "Show a folio: order, place, counts, who maps it", "folio dev0:0x3e00";
    Dev "dev" ()
        "Show each device: memory, what is free, what came and went", "dev";
    Stat "stat" (diff: Since)
        "Show the counters of /proc/vmstat, or what has changed since the last stat", "stat --diff";
    Events "events" ()
        "Show the counters that the last command which does something has changed", "events";
    Counters "counters" ()
        "Show the CPU's performance counters, and which events they can count", "counters";
    Audit "audit" ()
        "Check every invariant of the memory manager", "audit";
    Trace "trace" (what: TraceWhat, records: Option<Number>)
        "Record faults and migrations (2: and single steps), the last RECORDS of them; show or send them",
        "trace on";
    Bench "bench" (name: Text<'a>)
        "Measure the single operations with NAME in their names, in a space of their own", "bench fault-back";
    Exp "exp" (name: Option<Text<'a>>)
        "Do an experiment in a space of its own; alone: list them", "exp example";
    Set "set" (knob: Which, value: Option<Value<'a>>)
        "Turn a knob; alone: list them", "set granule 64K";
    Help "help" (cmd: Option<Topic>)
        "List the commands, or explain one", "help migrate";
    Panic "panic" ()
        "Let the kernel die, to see how it reports that", "panic";
    Exit "exit" ()
        "Switch the machine off", "exit";
}

/// Every command, in the order of `help`.
pub const COMMANDS: &[Spec] = Command::SPECS;

impl Spec {
    /// The command of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        COMMANDS.iter().find(|spec| spec.name == name)
    }

    /// The command and its arguments, in one line.
    #[must_use]
    pub const fn usage(&'static self) -> Usage {
        Usage { name: self.name, params: self.params }
    }
}

/// A usage line, or the part of one that is still to be typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub(super) name: &'static str,
    pub(super) params: &'static [Param],
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        self.params.iter().enumerate().try_for_each(|(n, param)| {
            let blank = if n == 0 && self.name.is_empty() { "" } else { " " };
            write!(f, "{blank}{param}")
        })
    }
}

impl fmt::Display for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.optional { ("[", "]") } else { ("", "") };
        f.write_str(open)?;
        match self.shape {
            Shape::Words(words) => {
                for (n, word) in words.iter().enumerate() {
                    write!(f, "{}{word}", if n == 0 { "" } else { "|" })?;
                }
            }
            Shape::Place => f.write_str("ram|dev0")?,
            Shape::Device => f.write_str("dev0")?,
            Shape::Target => f.write_str("ADDR|FRAME")?,
            Shape::Value(_, form) => f.write_str(form)?,
            Shape::Flag(flag) => f.write_str(flag)?,
            Shape::FlagAddress(flag) => write!(f, "{flag} {}", Capitals(self.name))?,
            Shape::Address
            | Shape::Size
            | Shape::Number
            | Shape::Command
            | Shape::Knob
            | Shape::OfKnob
            | Shape::Text => {
                write!(f, "{}", Capitals(self.name))?;
            }
        }
        f.write_str(close)
    }
}
