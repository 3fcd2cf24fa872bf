//! Machine lines: `@kind key=value key="quoted \"value\""`.
//!
//! One record is one line. A value that is empty, or holds a blank, a quote, a backslash or a control
//! character, is quoted; inside quotes `\"`, `\\`, `\n`, `\r`, `\t` and `\u{..}` stand for what they say.
//! So any text makes the trip and comes back the same, and a line break can never tear a record apart.
//!
//! Parsing checks the whole line first and allocates nothing: a half line, left by a kernel that died
//! while it printed, is no record at all rather than a wrong one.

use core::fmt::{self, Display, Write};
#[cfg(any(test, feature = "std"))]
use std::{borrow::Cow, string::String};

/// Writes one record: `record!(out, "step", n = 1, title = "two words")`; values are anything with `Display`.
///
/// `out` is a `&mut impl core::fmt::Write`; the result is a `core::fmt::Result`. For a number in
/// hexadecimal write `addr = format_args!("{addr:#x}")`.
#[macro_export]
macro_rules! record {
    ($out:expr, $kind:expr $(, $key:ident = $value:expr)* $(,)?) => {
        $crate::wire::Writer::begin($out, $kind)$(.field(stringify!($key), &$value))*.end()
    };
}

/// Writes one record, field by field; the macro [`record!`](crate::record) is the short way to it.
#[must_use = "a record is complete only after `end`"]
pub struct Writer<'a, W: Write + ?Sized> {
    out: &'a mut W,
    result: fmt::Result,
}

impl<'a, W: Write + ?Sized> Writer<'a, W> {
    /// Begins a record. `kind` and all keys are words of letters, digits, `_`, `-` and `.`.
    pub fn begin(out: &'a mut W, kind: &str) -> Self {
        debug_assert!(is_word(kind), "not a record kind: {kind:?}");
        let result = out.write_char('@').and_then(|()| out.write_str(kind));
        Self { out, result }
    }

    /// Adds a field. The value is formatted twice: once to see whether it needs quotes.
    pub fn field(mut self, key: &str, value: &dyn Display) -> Self {
        debug_assert!(is_word(key), "not a record key: {key:?}");
        if self.result.is_ok() {
            self.result = write_field(self.out, key, value);
        }
        self
    }

    /// Ends the line.
    ///
    /// # Errors
    /// The first error that `out` gave.
    pub fn end(self) -> fmt::Result {
        self.result?;
        self.out.write_char('\n')
    }
}

fn write_field<W: Write + ?Sized>(out: &mut W, key: &str, value: &dyn Display) -> fmt::Result {
    out.write_char(' ')?;
    out.write_str(key)?;
    out.write_char('=')?;
    let mut look = Look { empty: true, plain: true };
    write!(look, "{value}")?;
    if look.plain && !look.empty {
        return write!(out, "{value}");
    }
    out.write_char('"')?;
    write!(Escape(out), "{value}")?;
    out.write_char('"')
}

/// Looks at a value as it is formatted.
struct Look {
    empty: bool,
    plain: bool,
}

impl Write for Look {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.empty &= text.is_empty();
        self.plain &= text.chars().all(is_plain);
        Ok(())
    }
}

/// Escapes what passes through.
struct Escape<'a, W: Write + ?Sized>(&'a mut W);

impl<W: Write + ?Sized> Write for Escape<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '"' => self.0.write_str("\\\"")?,
                '\\' => self.0.write_str("\\\\")?,
                '\n' => self.0.write_str("\\n")?,
                '\r' => self.0.write_str("\\r")?,
                '\t' => self.0.write_str("\\t")?,
                c if c.is_control() => write!(self.0, "\\u{{{:x}}}", u32::from(c))?,
                c => self.0.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// May this character stand in a value without quotes?
fn is_plain(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && c != '"' && c != '\\'
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// One parsed record; borrows the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    kind: &'a str,
    fields: &'a str,
}

impl<'a> Record<'a> {
    /// Parses a line; `None` if it is not exactly one whole record. A line end is ignored.
    #[must_use]
    pub fn parse(line: &'a str) -> Option<Self> {
        let line = line.trim_end().strip_prefix('@')?;
        let (kind, fields) = line.split_at(line.find(' ').unwrap_or(line.len()));
        if !is_word(kind) {
            return None;
        }
        let mut rest = fields;
        while let Some((_, _, after)) = next_field(rest)? {
            rest = after;
        }
        Some(Self { kind, fields })
    }

    /// The word after `@`.
    #[must_use]
    pub fn kind(&self) -> &'a str {
        self.kind
    }

    /// The fields in the order of the line.
    #[must_use]
    pub fn fields(&self) -> Fields<'a> {
        Fields { rest: self.fields }
    }

    /// The value of the first field of this name.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<Value<'a>> {
        self.fields().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// The value as text. Borrowed from the line unless it holds escapes.
    #[cfg(any(test, feature = "std"))]
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Cow<'a, str>> {
        self.value(key).map(Value::text)
    }

    /// The value as a number, decimal or with `0x`; `None` if it is absent or none.
    #[must_use]
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.value(key)?.u64()
    }
}

/// The fields of a record.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a str, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value, rest) = next_field(self.rest)??;
        self.rest = rest;
        Some((key, value))
    }
}

/// One field off the front: `None` if malformed, `Some(None)` at the end.
fn next_field(text: &str) -> Option<Option<(&str, Value<'_>, &str)>> {
    let text = text.trim_start_matches(' ');
    if text.is_empty() {
        return Some(None);
    }
    let (key, rest) = text.split_once('=')?;
    if !is_word(key) {
        return None;
    }
    let (value, rest) = match rest.strip_prefix('"') {
        Some(quoted) => {
            let len = quoted_len(quoted)?;
            (Value { raw: &quoted[..len] }, &quoted[len + 1..])
        }
        None => {
            let len = rest.find(' ').unwrap_or(rest.len());
            let raw = &rest[..len];
            if raw.is_empty() || !raw.chars().all(is_plain) {
                return None;
            }
            (Value { raw }, &rest[len..])
        }
    };
    (rest.is_empty() || rest.starts_with(' ')).then_some(Some((key, value, rest)))
}

/// The length up to the closing quote, if there is one and every escape before it is good.
fn quoted_len(text: &str) -> Option<usize> {
    let mut rest = text;
    loop {
        let (c, after) = next_char(rest)?;
        if c == '"' && rest.starts_with('"') {
            return Some(text.len() - rest.len());
        }
        rest = after;
    }
}

/// One character of a quoted value, unescaped, and what follows it; `None` at the end or at a bad escape.
fn next_char(text: &str) -> Option<(char, &str)> {
    let mut chars = text.chars();
    let first = chars.next()?;
    if first != '\\' {
        return Some((first, chars.as_str()));
    }
    let c = match chars.next()? {
        c @ ('"' | '\\') => c,
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'u' => {
            let (hex, rest) = chars.as_str().strip_prefix('{')?.split_once('}')?;
            return Some((char::from_u32(u32::from_str_radix(hex, 16).ok()?)?, rest));
        }
        _ => return None,
    };
    Some((c, chars.as_str()))
}

/// The value of a field, still as it stands in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    raw: &'a str,
}

impl<'a> Value<'a> {
    /// The characters of the value, unescaped.
    pub fn chars(self) -> impl Iterator<Item = char> + use<'a> {
        let mut rest = self.raw;
        core::iter::from_fn(move || {
            let (c, after) = next_char(rest)?;
            rest = after;
            Some(c)
        })
    }

    /// Is the value this text?
    #[must_use]
    pub fn is(self, text: &str) -> bool {
        self.chars().eq(text.chars())
    }

    /// The value as a number, decimal or with `0x`.
    #[must_use]
    pub fn u64(self) -> Option<u64> {
        match self.raw.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => self.raw.parse().ok(),
        }
    }

    /// The value as text.
    #[cfg(any(test, feature = "std"))]
    #[must_use]
    pub fn text(self) -> Cow<'a, str> {
        if self.raw.contains('\\') {
            Cow::Owned(self.chars().collect::<String>())
        } else {
            Cow::Borrowed(self.raw)
        }
    }
}

impl Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.chars().try_for_each(|c| f.write_char(c))
    }
}
