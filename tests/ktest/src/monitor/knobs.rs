//! The knobs: what can be set, to what, and what for.
//!
//! One table: the kernel turns them by it (`set` in the monitor, `set=` on its command line), the runner takes `--set` by it and
//! refuses what makes no sense before a machine is started, completion and the documentation's table follow it.

use core::fmt;

use super::args::{number, size, words};
use super::error::distance;
use super::words::{Arg, Shape};

/// What is known of a knob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnobSpec {
    /// Its name.
    pub name: &'static str,
    /// What it can be.
    pub values: Shape,
    /// What it is unless somebody turns it.
    pub default: &'static str,
    /// With any other value than the default, what the machine does may be wrong: for experiments only.
    pub is_unsafe: bool,
    /// What it does, in one line.
    pub help: &'static str,
}

macro_rules! knobs {
    ($lt:lifetime; $($(#[$danger:ident])? $knob:ident($type:ty) $name:literal = $default:literal, $help:literal;)*) => {
        /// Something that can be set.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Knob { $(#[doc = $help] $knob,)* }

        /// A knob and what it is set to.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Setting<$lt> { $(#[doc = $help] $knob($type),)* }

        impl Knob {
            /// All of them, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$knob,)*];
        }

        impl<$lt> Setting<$lt> {
            const SPECS: &'static [KnobSpec] = &[$(KnobSpec {
                name: $name,
                values: <$type as Arg<$lt>>::SHAPE,
                default: $default,
                is_unsafe: knobs!(@danger $($danger)?),
                help: $help,
            },)*];

            /// The knob.
            #[must_use]
            pub const fn knob(&self) -> Knob {
                match self { $(Self::$knob(_) => Knob::$knob,)* }
            }

            /// What `word` is to `knob`.
            ///
            /// # Errors
            /// [`SettingError::Bad`].
            pub fn parse(knob: Knob, word: &$lt str) -> Result<Self, SettingError<$lt>> {
                let setting = match knob { $(Knob::$knob => <$type as Arg<$lt>>::parse(word).map(Self::$knob),)* };
                setting.ok_or(SettingError::Bad { knob, word })
            }
        }
    };
    (@danger) => { false };
    (@danger dangerous) => { true };
}

knobs! { 'a;
    Log(Log) "log" = "warn", "How much the kernel logs";
    Huge(HugePages) "huge" = "madvise", "Who gets 2 MiB pages: every mapping, those that ask for them, or none";
    MaxOrder(MaxOrder) "max-order" = "9", "Largest order of a folio that a fault or a migration makes; what is larger comes in pieces";
    Granule(Granule) "granule" = "2M", "How much of a device folio one touch brings back; the folio is cut around it";
    Batch(Batch) "batch" = "4096", "Units in a batch of a migration; a batch has one flush round";
    FlushPolicy(FlushPolicy) "flush-policy" = "auto", "Ranges leave the TLB page by page, all at once, or up to flush-threshold page by page";
    FlushThreshold(FlushThreshold) "flush-threshold" = "32", "Pages beyond which flush-policy auto flushes all at once";
    Copy(Copy) "copy" = "movsq", "How the CPU copies pages";
    Counters(Counters<'a>) "counters" = "off", "What the CPU's performance counters count of each command";
    GroupLimit(GroupLimit) "group-limit" = "off", "Memory that this address space and new ones may have in common, on devices too";
    FailAlloc(FailAlloc) "fail-alloc" = "0", "So many of the next allocations of the memory manager fail";
    FailPlan(FailPlan) "fail-plan" = "off", "After SKIP allocations at a site, the next COUNT fail";
    FailCopies(FailCopies) "fail-copies" = "0", "So many of the next copies by private devices fail";
    #[dangerous] BreakBeforeMake(BreakBeforeMake) "break-before-make" = "on", "off: a page is mapped anew before its old translation is flushed";
    #[dangerous] SkipFlush(SkipFlush) "skip-flush" = "off", "TLB flushes of this kind are left out";
}

words! {
    /// How much the kernel logs.
    Log {
        /// Nothing.
        Off = "off",
        /// What stops something from working.
        Error = "error",
        /// What somebody should look at.
        Warn = "warn",
        /// What the boot finds and does.
        Info = "info",
        /// What each operation does.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
    /// Who gets 2 MiB pages.
    HugePages {
        /// Every mapping that does not refuse.
        Always = "always",
        /// Mappings that ask for them.
        Madvise = "madvise",
        /// None.
        Never = "never",
    }
    /// What one touch brings back from a device.
    Granule {
        /// A page.
        Page = "4K",
        /// 16 pages.
        Medium = "64K",
        /// The whole unit.
        Whole = "2M",
    }
    /// How a range leaves the TLB.
    FlushPolicy {
        /// By its size.
        Auto = "auto",
        /// Page by page.
        Ranged = "ranged",
        /// All at once.
        Full = "full",
    }
    /// How pages are copied.
    Copy {
        /// `rep movsq`.
        Movsq = "movsq",
        /// `rep movsb`.
        Movsb = "movsb",
        /// SSE loads and stores.
        Sse = "sse",
        /// SSE loads, and stores that go around the caches.
        Streaming = "streaming",
        /// A loop over words.
        Words = "words",
    }
    /// What comes first where a mapping changes its size or its frame.
    BreakBeforeMake {
        /// The old translation goes.
        On = "on",
        /// The new one comes.
        Off = "off",
    }
    /// What flushes are left out.
    SkipFlush {
        /// None.
        Off = "off",
        /// Before a huge mapping becomes a table.
        Split = "split",
        /// Before pages are copied out.
        Migrate = "migrate",
        /// Where a zero page gives way to a device page.
        ZeroReplaced = "zero-replaced",
        /// Where a writer gets a page of its own.
        CopyOnWrite = "copy-on-write",
        /// Where entries allow less than before.
        Protect = "protect",
        /// Before pages are freed.
        Unmap = "unmap",
        /// Before page tables are freed.
        FreeTables = "free-tables",
        /// Where pages are mapped elsewhere from now on.
        Remap = "remap",
        /// Before a page is lent to a device.
        Exclusive = "exclusive",
        /// Those that are owed for somebody else's change.
        Owed = "owed",
    }
    /// What an allocation is for.
    FailSite {
        /// Anything.
        Any = "any",
        /// A folio in RAM.
        RamFolio = "ram-folio",
        /// A folio on a device.
        DeviceFolio = "device-folio",
        /// A page table.
        Table = "table",
        /// A descriptor or a record of work.
        Object = "object",
    }
}

/// Declares numbers with bounds.
macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident($type:ty) = $from:literal, $to:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(pub $type);

        impl Arg<'_> for $name {
            const SHAPE: Shape = Shape::Value(&[], concat!("a number from ", $from, " to ", $to));
            fn parse(word: &str) -> Option<Self> {
                let n = number(word).filter(|n| ($from..=$to).contains(n))?;
                n.try_into().ok().map(Self)
            }
        }
    )*};
}

numbers! {
    /// An order.
    MaxOrder(u8) = 0, 9;
    /// Units.
    Batch(u32) = 1, 4096;
    /// Pages.
    FlushThreshold(u32) = 0, 262144;
    /// Allocations.
    FailAlloc(u64) = 0, 1000000000;
    /// Copies.
    FailCopies(u64) = 0, 1000000000;
}

/// Names of events with commas between them, or none. The kernel knows which there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters<'a>(pub Option<&'a str>);

impl<'a> Arg<'a> for Counters<'a> {
    const SHAPE: Shape = Shape::Value(
        &["off"],
        "events with commas between them, like cycles,page-walks (the command counters lists them)",
    );
    fn parse(word: &'a str) -> Option<Self> {
        match word {
            "" => None,
            "off" => Some(Self(None)),
            list => Some(Self(Some(list))),
        }
    }
}

/// A limit in pages, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimit(pub Option<u64>);

impl Arg<'_> for GroupLimit {
    const SHAPE: Shape = Shape::Value(&["off"], "whole pages, like 16p or 2M");
    fn parse(word: &str) -> Option<Self> {
        match word {
            "off" => Some(Self(None)),
            _ => size(word).filter(|bytes| bytes.is_multiple_of(4096)).map(|bytes| Self(Some(bytes / 4096))),
        }
    }
}

/// Which allocations fail, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailPlan {
    /// None.
    Off,
    /// These.
    At {
        /// What they are for.
        site: FailSite,
        /// How many of them go well first.
        skip: u64,
        /// How many fail then.
        count: u64,
    },
}

impl Arg<'_> for FailPlan {
    const SHAPE: Shape = Shape::Value(
        &["off"],
        "SITE:SKIP:COUNT, where SITE is any, ram-folio, device-folio, table or object, like table:0:1",
    );
    fn parse(word: &str) -> Option<Self> {
        if word == "off" {
            return Some(Self::Off);
        }
        let (site, rest) = word.split_once(':')?;
        let (skip, count) = rest.split_once(':')?;
        Some(Self::At { site: FailSite::parse(site)?, skip: number(skip)?, count: number(count)? })
    }
}

impl Knob {
    /// What is known of it.
    #[must_use]
    pub const fn spec(self) -> &'static KnobSpec {
        &Setting::SPECS[self as usize]
    }

    /// Its name.
    #[must_use]
    pub const fn word(self) -> &'static str {
        self.spec().name
    }

    /// The knob of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|knob| knob.word() == name)
    }

    /// What it can be, as words; those that are no words are not among them.
    pub(crate) fn words(self) -> &'static [&'static str] {
        match self.spec().values {
            Shape::Words(words) | Shape::Value(words, _) => words,
            _ => &[],
        }
    }
}

impl<'a> Setting<'a> {
    /// Reads `KNOB=VALUE`.
    ///
    /// # Errors
    /// [`SettingError`]: what is wrong with it.
    pub fn read(text: &'a str) -> Result<Self, SettingError<'a>> {
        let (name, word) = text.split_once('=').ok_or(SettingError::NoValue(text))?;
        Self::parse(Knob::find(name).ok_or(SettingError::Unknown(name))?, word)
    }

    /// What the machine does with this may be wrong.
    #[must_use]
    pub fn is_unsafe(&self) -> bool {
        let spec = self.knob().spec();
        spec.is_unsafe && Setting::parse(self.knob(), spec.default).as_ref() != Ok(self)
    }

    /// Whether a run of this name takes it: what is unsafe is for experiments.
    ///
    /// # Errors
    /// [`SettingError::Unsafe`].
    pub fn check_for<'r>(&self, run: &'r str) -> Result<(), SettingError<'r>> {
        let is_lab = matches!(run, "shell" | "exp");
        if is_lab || !self.is_unsafe() {
            Ok(())
        } else {
            Err(SettingError::Unsafe { knob: self.knob(), run })
        }
    }
}

/// What is wrong with a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingError<'a> {
    /// Not of the form `KNOB=VALUE`.
    NoValue(&'a str),
    /// There is no such knob.
    Unknown(&'a str),
    /// The knob cannot be that.
    Bad {
        /// The knob.
        knob: Knob,
        /// What was given.
        word: &'a str,
    },
    /// Only experiments may set it so.
    Unsafe {
        /// The knob.
        knob: Knob,
        /// What was to run.
        run: &'a str,
    },
}

impl fmt::Display for SettingError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoValue(text) => write!(f, "\"{text}\" is not of the form KNOB=VALUE, like granule=64K"),
            Self::Unknown(name) => {
                write!(f, "there is no knob \"{name}\"")?;
                let near = |knob: &Knob| distance(name, knob.word()) <= 1 + knob.word().len() / 5;
                match Knob::ALL.iter().copied().find(near) {
                    Some(knob) => write!(f, "; did you mean {}?", knob.word())?,
                    None => write!(f, ";")?,
                }
                f.write_str(" known are ")?;
                Knob::ALL
                    .iter()
                    .enumerate()
                    .try_for_each(|(n, knob)| write!(f, "{}{}", if n == 0 { "" } else { ", " }, knob.word()))
            }
            Self::Bad { knob, word } => {
                write!(f, "{} cannot be \"{word}\": it is {}", knob.word(), Values(knob))
            }
            Self::Unsafe { knob, run } => write!(
                f,
                "{} is unsafe unless it is {}, and for experiments only: the shell and exp take it, {run} does not",
                knob.word(),
                knob.spec().default
            ),
        }
    }
}

/// What a knob can be, in words.
#[derive(Clone, Copy, Debug)]
pub struct Values(pub Knob);

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.0.spec().values {
            Shape::Value(_, form) => form,
            _ => "",
        };
        let all = self.0.words().iter().chain((!form.is_empty()).then_some(&form));
        let last = self.0.words().len() + usize::from(!form.is_empty()) - 1;
        for (n, value) in all.enumerate() {
            let between = match n {
                0 => "",
                n if n == last => " or ",
                _ => ", ",
            };
            write!(f, "{between}{value}")?;
        }
        Ok(())
    }
}
