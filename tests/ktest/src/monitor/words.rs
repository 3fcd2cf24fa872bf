//! The words of a line, taken one argument at a time.

use super::{Error, Spec};

/// More words than any command has.
const WORDS_MAX: usize = 12;

/// What an argument looks like: for usage lines, errors and completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A user address, in hexadecimal.
    Address,
    /// A number of bytes that is not zero.
    Size,
    /// A number, decimal or with `0x`.
    Number,
    /// `ram` or a device.
    Place,
    /// A device.
    Device,
    /// An address, or a frame as the dump shows it.
    Target,
    /// The name of a command.
    Command,
    /// Any word.
    Text,
    /// The name of a knob.
    Knob,
    /// What the knob before it can be.
    OfKnob,
    /// One of these words.
    Words(&'static [&'static str]),
    /// One of these words, or something of this form.
    Value(&'static [&'static str], &'static str),
    /// An option.
    Flag(&'static str),
    /// An option and an address.
    FlagAddress(&'static str),
}

impl Shape {
    /// What could have been there, for an error.
    pub(super) const fn expected(self) -> &'static str {
        match self {
            Self::Address | Self::FlagAddress(_) => {
                "an address is hexadecimal, like 0x10_0000_0000, and may go on with +SIZE"
            }
            Self::Size => "a size is like 4K, 2M, 1G, 16p (pages), 8192 or 0x2000, and not 0",
            Self::Number => "a number is like 16 or 0x10",
            Self::Place => "a place is ram, dev0, dev1, dev2 or dev3",
            Self::Device => "a device is dev0, dev1, dev2 or dev3",
            Self::Target => "a folio is named by an address, or by a frame like ram:0xfc00 or dev0:0x3e00",
            Self::Command => "help alone lists the commands",
            Self::Knob => "set alone lists the knobs",
            Self::Value(_, form) => form,
            Self::Text | Self::OfKnob | Self::Words(_) | Self::Flag(_) => "its words are in the usage",
        }
    }
}

/// One argument of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name, in small letters.
    pub name: &'static str,
    /// What it looks like.
    pub shape: Shape,
    /// It may be left out.
    pub optional: bool,
}

/// An argument that is one word.
pub(super) trait Arg<'a>: Sized {
    const SHAPE: Shape;
    fn parse(word: &'a str) -> Option<Self>;
}

/// An argument: how it is taken from the words that are left.
pub(super) trait Take<'a>: Sized {
    const SHAPE: Shape;
    const OPTIONAL: bool;
    fn take(words: &mut Words<'a>, name: &'static str) -> Result<Self, Error<'a>>;
}

impl<'a, T: Arg<'a>> Take<'a> for T {
    const SHAPE: Shape = T::SHAPE;
    const OPTIONAL: bool = false;
    fn take(words: &mut Words<'a>, name: &'static str) -> Result<Self, Error<'a>> {
        let word = words.next().ok_or(Error::Missing { spec: words.spec, name })?;
        T::parse(word).ok_or(Error::Bad { spec: words.spec, name, word, shape: T::SHAPE })
    }
}

/// What may be left out is taken if the next word fits.
impl<'a, T: Arg<'a>> Take<'a> for Option<T> {
    const SHAPE: Shape = T::SHAPE;
    const OPTIONAL: bool = true;
    fn take(words: &mut Words<'a>, _name: &'static str) -> Result<Self, Error<'a>> {
        let found = words.peek().and_then(T::parse);
        if found.is_some() {
            words.next();
        }
        Ok(found)
    }
}

/// The words after the name of a command.
#[derive(Debug)]
pub(super) struct Words<'a> {
    pub(super) spec: &'static Spec,
    /// A word that was taken is empty.
    list: [&'a str; WORDS_MAX],
}

impl<'a> Words<'a> {
    pub(super) fn new(spec: &'static Spec, words: impl Iterator<Item = &'a str>) -> Result<Self, Error<'a>> {
        let mut list = [""; WORDS_MAX];
        for (n, word) in words.enumerate() {
            *list.get_mut(n).ok_or(Error::Extra { spec, word })? = word;
        }
        Ok(Self { spec, list })
    }

    /// The place of the first word that is left and is neither an option nor an option's value.
    fn position(&self) -> Option<usize> {
        let is_plain = |at: usize| {
            let word = self.list[at];
            let is_value = at > 0 && self.takes_value(self.list[at - 1]);
            !(word.is_empty() || word.starts_with("--") || is_value)
        };
        (0..WORDS_MAX).find(|at| is_plain(*at))
    }

    fn takes_value(&self, word: &str) -> bool {
        self.spec.params.iter().any(|param| matches!(param.shape, Shape::FlagAddress(flag) if flag == word))
    }

    fn peek(&self) -> Option<&'a str> {
        self.position().map(|at| self.list[at])
    }

    pub(super) fn next(&mut self) -> Option<&'a str> {
        let at = self.position()?;
        Some(core::mem::take(&mut self.list[at]))
    }

    /// Takes an option, wherever it stands; its place.
    fn flag_at(&mut self, flag: &str) -> Option<usize> {
        let at = self.list.iter().position(|word| *word == flag)?;
        self.list[at] = "";
        Some(at)
    }

    pub(super) fn flag(&mut self, flag: &str) -> bool {
        self.flag_at(flag).is_some()
    }

    /// Takes an option and the word behind it.
    pub(super) fn flag_with<T: Arg<'a>>(
        &mut self,
        flag: &str,
        name: &'static str,
    ) -> Result<Option<T>, Error<'a>> {
        let spec = self.spec;
        let Some(at) = self.flag_at(flag) else { return Ok(None) };
        let word = self.list.get_mut(at + 1).map(core::mem::take).unwrap_or_default();
        if word.is_empty() {
            return Err(Error::Missing { spec, name });
        }
        T::parse(word).map(Some).ok_or(Error::Bad { spec, name, word, shape: T::SHAPE })
    }

    /// Nothing may be left.
    pub(super) fn finish(self) -> Result<(), Error<'a>> {
        match self.list.into_iter().find(|word| !word.is_empty()) {
            Some(word) => Err(Error::Extra { spec: self.spec, word }),
            None => Ok(()),
        }
    }
}
