//! The types of arguments.

use core::fmt;

use super::words::{Arg, Shape, Take, Words};
use super::{Error, Knob, Spec};

/// Declares a type whose values are words.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $word:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$about])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// The word for it.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl Arg<'_> for $name {
            const SHAPE: Shape = Shape::Words(&[$($word,)*]);
            fn parse(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.word() == word)
            }
        }
    )*};
}

words! {
    /// What a mapping allows.
    Prot {
        /// Loads and stores.
        ReadWrite = "rw",
        /// Loads.
        Read = "r",
        /// Nothing.
        None = "none",
    }
    /// Advice on huge pages for a new mapping.
    Huge {
        /// Where one fits.
        Huge = "huge",
        /// Never.
        NoHuge = "nohuge",
    }
    /// A load or a store.
    Access {
        /// A load.
        Read = "r",
        /// A store.
        Write = "w",
    }
    /// What a program says of its memory.
    Advice {
        /// 2 MiB pages are welcome.
        Huge = "huge",
        /// They are not.
        NoHuge = "nohuge",
        /// The contents are not needed any more.
        DontNeed = "dontneed",
        /// The contents may be forgotten.
        Free = "free",
        /// Not to be used soon.
        Cold = "cold",
        /// Not to be used soon, and to be written out.
        PageOut = "pageout",
    }
    /// What is done with the trace.
    TraceWhat {
        /// Faults and units of migrations are recorded.
        On = "on",
        /// The same.
        One = "1",
        /// Single steps too.
        Two = "2",
        /// Nothing is recorded any more.
        Off = "off",
        /// Shows the last records.
        Show = "show",
        /// Sends all of them to a program, and ends it.
        Send = "send",
    }
}

pub(super) use words;

/// An address of the address space that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub u64);

/// Bytes, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(pub u64);

/// The number of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device(pub usize);

/// Where memory lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// System RAM.
    Ram,
    /// A device's memory.
    Device(usize),
}

/// What `folio` looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// What is mapped at this address.
    Address(u64),
    /// What owns this frame.
    Frame(Place, u32),
}

/// A name of anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a>(pub &'a str);

/// A value of anything.
pub type Text<'a> = Name<'a>;

/// The knob that `set` is about, or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Which(pub Option<Knob>);

/// What a knob is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a>(pub &'a str);

/// The command that `help` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic(pub &'static Spec);

/// Digits of `radix`, `_` between them allowed.
fn digits(text: &str, radix: u32) -> Option<u64> {
    if !text.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    text.chars().filter(|c| *c != '_').try_fold(0_u64, |value, c| {
        value.checked_mul(u64::from(radix))?.checked_add(u64::from(c.to_digit(radix)?))
    })
}

/// Decimal, or hexadecimal behind `0x`.
pub(super) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => digits(hex, 16),
        None => digits(text, 10),
    }
}

pub(super) fn size(text: &str) -> Option<u64> {
    let (count, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        b'p' => (&text[..text.len() - 1], 12),
        _ => (text, 0),
    };
    number(count)?.checked_mul(1 << shift).filter(|bytes| *bytes != 0)
}

fn address(text: &str) -> Option<u64> {
    let (base, offset) = match text.split_once('+') {
        Some((base, offset)) => (base, size(offset)?),
        None => (text, 0),
    };
    digits(base.strip_prefix("0x").unwrap_or(base), 16)?.checked_add(offset)
}

fn device(text: &str) -> Option<usize> {
    let number = text.strip_prefix("dev").or_else(|| text.strip_prefix("coh"))?;
    match number.as_bytes() {
        [digit @ b'0'..=b'3'] => Some(usize::from(digit - b'0')),
        _ => None,
    }
}

fn place(text: &str) -> Option<Place> {
    if text == "ram" { Some(Place::Ram) } else { device(text).map(Place::Device) }
}

impl Arg<'_> for Address {
    const SHAPE: Shape = Shape::Address;
    fn parse(word: &str) -> Option<Self> {
        address(word).map(Self)
    }
}

impl Arg<'_> for Size {
    const SHAPE: Shape = Shape::Size;
    fn parse(word: &str) -> Option<Self> {
        size(word).map(Self)
    }
}

impl Arg<'_> for Number {
    const SHAPE: Shape = Shape::Number;
    fn parse(word: &str) -> Option<Self> {
        number(word).map(Self)
    }
}

impl Arg<'_> for Device {
    const SHAPE: Shape = Shape::Device;
    fn parse(word: &str) -> Option<Self> {
        device(word).map(Self)
    }
}

impl Arg<'_> for Place {
    const SHAPE: Shape = Shape::Place;
    fn parse(word: &str) -> Option<Self> {
        place(word)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ram => f.write_str("ram"),
            Self::Device(n) => write!(f, "dev{n}"),
        }
    }
}

impl Arg<'_> for Target {
    const SHAPE: Shape = Shape::Target;
    fn parse(word: &str) -> Option<Self> {
        match word.split_once(':') {
            Some((at, index)) => Some(Self::Frame(place(at)?, number(index)?.try_into().ok()?)),
            None => address(word).map(Self::Address),
        }
    }
}

impl<'a> Arg<'a> for Name<'a> {
    const SHAPE: Shape = Shape::Text;
    fn parse(word: &'a str) -> Option<Self> {
        Some(Self(word))
    }
}

impl<'a> Take<'a> for Which {
    const SHAPE: Shape = Shape::Knob;
    const OPTIONAL: bool = true;
    fn take(words: &mut Words<'a>, name: &'static str) -> Result<Self, Error<'a>> {
        let Some(word) = words.next() else { return Ok(Self(None)) };
        let bad = Error::Bad { spec: words.spec, name, word, shape: Shape::Knob };
        Knob::find(word).map(|knob| Self(Some(knob))).ok_or(bad)
    }
}

impl<'a> Arg<'a> for Value<'a> {
    const SHAPE: Shape = Shape::OfKnob;
    fn parse(word: &'a str) -> Option<Self> {
        Some(Self(word))
    }
}

impl Arg<'_> for Topic {
    const SHAPE: Shape = Shape::Command;
    fn parse(word: &str) -> Option<Self> {
        Spec::find(word).map(Self)
    }
}

/// Declares an option.
macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $flag:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(pub bool);

        impl<'a> Take<'a> for $name {
            const SHAPE: Shape = Shape::Flag($flag);
            const OPTIONAL: bool = true;
            fn take(words: &mut Words<'a>, _name: &'static str) -> Result<Self, Error<'a>> {
                Ok(Self(words.flag($flag)))
            }
        }
    )*};
}

flags! {
    /// `check` looks where the data lies and touches nothing.
    Where = "--where";
    /// `remap` leaves the old mapping, empty.
    Keep = "--keep";
    /// `stat` shows what has changed since the last one.
    Since = "--diff";
}

/// `check` takes the data for what was filled in at this address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin(pub Option<Address>);

impl<'a> Take<'a> for Origin {
    const SHAPE: Shape = Shape::FlagAddress("--as");
    const OPTIONAL: bool = true;
    fn take(words: &mut Words<'a>, name: &'static str) -> Result<Self, Error<'a>> {
        words.flag_with("--as", name).map(Self)
    }
}
