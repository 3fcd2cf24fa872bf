//! Runs: entries of a PTE table that name one frame after the other, with the same attributes. What a huge mapping was split
//! into is one. Each step costs a few instructions a page, for there is nothing to decode.

use core::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release},
};

use super::{ADDR, KIND_SHIFT, P, SPECIAL, SoftKind, word};
use crate::types::{Frame, Level, PAGE_SIZE};

/// What the word of the next page's entry is more than this one's (modulo 2^64): numbers of non-present entries are inverted,
/// and the zero page is always the same.
#[inline(always)]
pub(crate) const fn step(word: u64) -> u64 {
    if word & P == 0 {
        PAGE_SIZE.wrapping_neg()
    } else if word & SPECIAL == 0 {
        PAGE_SIZE
    } else {
        0
    }
}

/// Bits in which `words` differ from a run that begins with `first`, in any of them.
#[inline(never)]
fn difference(words: &[AtomicU64], first: u64) -> u64 {
    let step = step(first);
    let (mut expected, mut differ) = (first, 0);
    for word in words {
        differ |= word.load(Relaxed) ^ expected;
        expected = expected.wrapping_add(step);
    }
    differ
}

/// Words between two looks for the end of a run.
const UNROLLED: usize = 16;

/// Calls `f` for every word.
#[inline(always)]
pub(crate) fn for_each(words: &[AtomicU64], mut f: impl FnMut(&AtomicU64)) {
    let (chunks, rest) = words.as_chunks::<UNROLLED>();
    for chunk in chunks {
        chunk.iter().for_each(&mut f);
    }
    rest.iter().for_each(f);
}

/// True when `words` are a run that begins with `first`.
#[inline(always)]
pub(crate) fn is_run(words: &[AtomicU64], first: u64) -> bool {
    let step = step(first);
    let mut expected = first;
    // Loops, not closures that the compiler may call: a compare, a branch and an addition a word.
    let (chunks, rest) = words.as_chunks::<UNROLLED>();
    for chunk in chunks {
        for word in chunk {
            if word.load(Relaxed) != expected {
                return false;
            }
            expected = expected.wrapping_add(step);
        }
    }
    for word in rest {
        if word.load(Relaxed) != expected {
            return false;
        }
        expected = expected.wrapping_add(step);
    }
    true
}

/// True when `words` are device-private entries for the frames from `first` on, whatever their attributes.
#[inline(always)]
pub(crate) fn is_device_private(words: &[AtomicU64], first: Frame) -> bool {
    let Some(word) = words.first().map(|word| word.load(Relaxed)) else { return false };
    // The attributes are the same, too, nearly always.
    word::device_private(word) == Some(first)
        && (is_run(words, word) || difference(words, word) & !word::ATTRS == 0)
}

/// Writes a run that begins with `first`. The words are in a locked table, or in one that is not hooked in yet.
#[inline(always)]
pub(crate) fn fill(words: &[AtomicU64], first: u64) {
    let step = step(first);
    let mut next = first;
    for_each(words, |word| {
        word.store(next, Release);
        next = next.wrapping_add(step);
    });
}

/// Empties entries.
#[inline(always)]
pub(crate) fn fill_with_nothing(words: &[AtomicU64]) {
    for_each(words, |word| word.store(0, Release));
}

/// Device-private entries become migration entries.
#[inline(always)]
pub(crate) fn device_private_to_migration(words: &[AtomicU64]) {
    const CHANGE: u64 = (SoftKind::DevicePrivate as u64 ^ SoftKind::Migration as u64) << KIND_SHIFT;
    for_each(words, |word| word.store(word.load(Relaxed) ^ CHANGE, Release));
}

/// Migration entries that are a run and name the frames from `from` on become the entries for those from `to` on; false, and
/// nothing is changed, where they are anything else.
#[inline(always)]
pub(crate) fn name(words: &[AtomicU64], from: Frame, to: Frame) -> bool {
    let Some(first) = words.first().map(|word| word.load(Relaxed)) else { return false };
    if !word::is_migration_of(first, from) || !is_run(words, first) {
        return false;
    }
    fill(words, word::migration_to(first, to, Level::Pte));
    true
}

/// How many of `words`, from the first on, are empty.
#[inline(always)]
pub(crate) fn empty(words: &[AtomicU64]) -> usize {
    let mut n = 0;
    for eight in words.chunks_exact(8) {
        if eight.iter().fold(0, |or, word| or | word.load(Relaxed)) != 0 {
            break;
        }
        n += 8;
    }
    n + words[n..].iter().take_while(|word| word.load(Relaxed) == 0).count()
}

const _: () = assert!(ADDR & !word::ATTRS == ADDR, "a number and attributes have no bit in common");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Attrs, Entry, Leaf, SoftLeaf};
    use crate::types::Place;

    fn words(entries: impl Iterator<Item = Entry>) -> Vec<AtomicU64> {
        entries.map(|entry| AtomicU64::new(entry.encode(Level::Pte))).collect()
    }

    fn entries(words: &[AtomicU64]) -> Vec<Entry> {
        words.iter().map(|word| Entry::decode(word.load(Relaxed), Level::Pte)).collect()
    }

    /// Every kind of entry for page `i` of something, with attributes that a run may have.
    fn kinds() -> Vec<Box<dyn Fn(u32) -> Entry>> {
        let mut kinds: Vec<Box<dyn Fn(u32) -> Entry>> = Vec::new();
        for attrs in [Attrs::empty(), Attrs::all() - Attrs::NO_ACCESS, Attrs::WRITE | Attrs::DIRTY] {
            kinds.push(Box::new(move |i| Entry::Leaf(Leaf::ram(Frame::ram(0x1200 + i), attrs))));
            kinds.push(Box::new(move |_| {
                Entry::Leaf(Leaf { special: true, ..Leaf::ram(Frame::ram(7), attrs - Attrs::WRITE) })
            }));
            for kind in [SoftKind::Migration, SoftKind::DevicePrivate] {
                for first in [0, 0xff00, u32::MAX - 511] {
                    let frame = move |i| Frame::new(Place::device(1), first + i);
                    kinds.push(Box::new(move |i| Entry::NonPresent(SoftLeaf::new(kind, frame(i), attrs))));
                }
            }
        }
        kinds
    }

    #[test]
    fn a_run_is_what_encoding_each_page_gives() {
        for make in kinds() {
            let expected: Vec<_> = (0..512).map(&make).collect();
            let filled = words((0..512).map(|_| Entry::None));
            assert_eq!(empty(&filled), 512);
            fill(&filled, make(0).encode(Level::Pte));
            assert_eq!(entries(&filled), expected);
            assert!(is_run(&filled, make(0).encode(Level::Pte)));
            assert_eq!(empty(&filled), 0);
            for (at, bit) in [(0, 1), (1, 2), (255, 9), (511, 12), (300, 63)] {
                filled[at].fetch_xor(1 << bit, Relaxed);
                assert!(!is_run(&filled, make(0).encode(Level::Pte)), "bit {bit} of entry {at}");
                filled[at].fetch_xor(1 << bit, Relaxed);
            }
        }
    }

    #[test]
    fn kinds_and_names_change_as_one_entry_does() {
        let (from, to) =
            (Frame::new(Place::device(0), 512), [Frame::ram(0x800), Frame::new(Place::device(2), 64)]);
        let entry =
            |kind, i| Entry::NonPresent(SoftLeaf::new(kind, from.offset(i), Attrs::WRITE | Attrs::YOUNG));
        for to in to {
            let run = words((0..64).map(|i| entry(SoftKind::DevicePrivate, i)));
            assert!(is_device_private(&run, from) && !is_device_private(&run, from.offset(1)));
            assert!(!name(&run, from, to), "no migration entries");
            device_private_to_migration(&run);
            assert_eq!(entries(&run), (0..64).map(|i| entry(SoftKind::Migration, i)).collect::<Vec<_>>());
            assert!(!is_device_private(&run, from) && !name(&run, from.offset(1), to));
            run[17].fetch_xor(2, Relaxed);
            assert!(!name(&run, from, to), "one of them allows no writes");
            run[17].fetch_xor(2, Relaxed);
            assert!(name(&run, from, to));
            let expected = |i| Entry::mapping(to.offset(i), Attrs::WRITE | Attrs::YOUNG);
            assert_eq!(entries(&run), (0..64).map(expected).collect::<Vec<_>>());
        }
    }

    #[test]
    fn device_private_entries_of_one_folio_need_not_be_alike() {
        let entry = |i: u32| {
            let attrs = if i.is_multiple_of(3) { Attrs::WRITE | Attrs::NO_ACCESS } else { Attrs::DIRTY };
            Entry::NonPresent(SoftLeaf::new(
                SoftKind::DevicePrivate,
                Frame::new(Place::device(3), 8 + i),
                attrs,
            ))
        };
        let run = words((0..8).map(entry));
        assert!(is_device_private(&run, Frame::new(Place::device(3), 8)));
        run[5].store(entry(6).encode(Level::Pte), Relaxed);
        assert!(!is_device_private(&run, Frame::new(Place::device(3), 8)));
    }

    #[test]
    fn empty_entries_are_counted_to_the_first_other() {
        for n in [0, 1, 7, 8, 9, 100, 511] {
            let run = words((0..512).map(|i| if i < n { Entry::None } else { kinds()[0](i) }));
            assert_eq!(empty(&run), n as usize);
        }
    }
}
