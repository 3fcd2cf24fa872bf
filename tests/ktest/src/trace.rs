//! Records of a trace on the serial line: small, since there are thousands.
//!
//! ```text
//!   @trace-names kinds=fault,batch,... phases=wait,collect,... outcomes=done,... places=ram,...
//!   @trace level=1 records=512 lost=0 counted=1
//!   @rec data=AQID...        as often as it takes; the order is that of the records' ends
//!   @trace-end records=512
//! ```
//!
//! Names are sent once, and records name them by number: who reads a trace knows nothing of memory. A record is written as its
//! difference to the one before, in numbers of seven bits a byte, and the bytes in the URL's base 64: about 40 characters each.

use core::fmt::{self, Write};

/// Phases of a record.
pub const PHASES: usize = 8;
/// The record with the names.
pub const NAMES: &str = "trace-names";
/// The record before the data.
pub const HEAD: &str = "trace";
/// The records with the data.
pub const DATA: &str = "rec";
/// The record after the data.
pub const END: &str = "trace-end";

/// One record, all of it numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// When it began, in ticks.
    pub start: u64,
    /// The address; 0 for none.
    pub addr: u64,
    /// Ticks from the beginning to the end of each phase; 0 for one that was not gone through.
    pub ends: [u32; PHASES],
    /// A frame, or a count.
    pub number: u32,
    /// The number of its kind's name.
    pub kind: u8,
    /// The number of its outcome's name.
    pub outcome: u8,
    /// log2 of its pages.
    pub order: u8,
    /// Where the page was.
    pub from: u8,
    /// Where it is.
    pub to: u8,
    /// The thread.
    pub thread: u8,
}

/// More bytes than a record ever takes.
pub const MOST_BYTES: usize = 128;

/// The bytes of a record.
#[derive(Clone, Copy, Debug)]
pub struct Bytes {
    bytes: [u8; MOST_BYTES],
    len: usize,
}

impl Bytes {
    /// Them.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn byte(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.byte(number as u8 | 0x80);
            number >>= 7;
        }
        self.byte(number as u8);
    }

    /// A difference: small whichever sign it has.
    fn difference(&mut self, from: u64, to: u64) {
        let by = to.wrapping_sub(from).cast_signed();
        self.number(((by << 1) ^ (by >> 63)).cast_unsigned());
    }
}

/// Takes numbers off the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn number(&mut self) -> Option<u64> {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = self.byte()?;
            if shift > 63 {
                return None;
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
            shift += 7;
        }
    }

    fn difference(&mut self, from: u64) -> Option<u64> {
        let by = self.number()?;
        Some(from.wrapping_add((by >> 1) ^ (by & 1).wrapping_neg()))
    }
}

/// Writes records after each other, or reads them: both know the one before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Codec {
    last: Packed,
}

impl Codec {
    /// The bytes of the next record.
    pub fn encode(&mut self, record: &Packed) -> Bytes {
        let mut out = Bytes { bytes: [0; MOST_BYTES], len: 0 };
        out.difference(self.last.start, record.start);
        out.difference(self.last.addr, record.addr);
        out.difference(u64::from(self.last.number), u64::from(record.number));
        for byte in
            [record.kind, record.outcome, record.order, record.from << 4 | record.to & 15, record.thread]
        {
            out.byte(byte);
        }
        let gone = record.ends.iter().enumerate().fold(0, |set, (n, end)| set | u64::from(*end != 0) << n);
        out.number(gone);
        let mut last = 0;
        for end in record.ends.iter().filter(|end| **end != 0) {
            out.difference(last, u64::from(*end));
            last = u64::from(*end);
        }
        self.last = *record;
        out
    }

    /// Reads all records of some bytes; false if they are not what [`Codec::encode`] writes.
    pub fn decode(&mut self, bytes: &[u8], f: &mut dyn FnMut(Packed)) -> bool {
        let mut bytes = Reader(bytes);
        while !bytes.0.is_empty() {
            let Some(record) = self.decode_one(&mut bytes) else { return false };
            self.last = record;
            f(record);
        }
        true
    }

    fn decode_one(&self, bytes: &mut Reader<'_>) -> Option<Packed> {
        let start = bytes.difference(self.last.start)?;
        let addr = bytes.difference(self.last.addr)?;
        let number = bytes.difference(u64::from(self.last.number))?.try_into().ok()?;
        let (kind, outcome, order) = (bytes.byte()?, bytes.byte()?, bytes.byte()?);
        let (places, thread) = (bytes.byte()?, bytes.byte()?);
        let gone = bytes.number()?;
        let (mut ends, mut last) = ([0; PHASES], 0);
        for (n, end) in ends.iter_mut().enumerate() {
            if gone >> n & 1 != 0 {
                last = bytes.difference(last)?;
                *end = last.try_into().ok()?;
            }
        }
        let (from, to) = (places >> 4, places & 15);
        Some(Packed { start, addr, ends, number, kind, outcome, order, from, to, thread })
    }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Bytes as base 64, without padding.
#[derive(Clone, Copy, Debug)]
pub struct Base64<'a>(pub &'a [u8]);

impl fmt::Display for Base64<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for three in self.0.chunks(3) {
            let mut word = [0; 4];
            word[1..=three.len()].copy_from_slice(three);
            let word = u32::from_be_bytes(word);
            let mut text = [0; 4];
            for (n, to) in text.iter_mut().enumerate() {
                *to = DIGITS[(word >> (18 - 6 * n) & 63) as usize];
            }
            // Digits of base 64 are text.
            f.write_str(core::str::from_utf8(&text[..=three.len()]).unwrap_or_default())?;
        }
        Ok(())
    }
}

/// Calls `f` with the bytes that [`Base64`] wrote; false if it is something else.
pub fn from_base64(text: &str, f: &mut dyn FnMut(u8)) -> bool {
    let digit = |c: &u8| DIGITS.iter().position(|digit| digit == c);
    for four in text.as_bytes().chunks(4) {
        let mut word = 0;
        for n in 0..4 {
            let value = match four.get(n) {
                Some(c) => match digit(c) {
                    Some(value) => value,
                    None => return false,
                },
                None => 0,
            };
            word = word << 6 | value as u32;
        }
        if four.len() < 2 {
            return false;
        }
        word.to_be_bytes()[1..four.len()].iter().for_each(|byte| f(*byte));
    }
    true
}

/// Names for a field of [`NAMES`], with commas between them.
#[derive(Clone, Copy, Debug)]
pub struct List<I>(pub I);

impl<I: Iterator<Item = &'static str> + Clone> fmt::Display for List<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, name) in self.0.clone().enumerate() {
            if n > 0 {
                f.write_char(',')?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}
