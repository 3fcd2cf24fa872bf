//! The walk to an address, every bit of every word by name.
//!
//! The layout is that of `docs/PTE-FORMAT.md`. What the fields mean together is the memory manager's decoder's answer, not this
//! file's: an entry whose decoding does not encode to its word again is called bad.

use alloc::format;
use alloc::string::String;

use farpage_mm::{Entry, Frame, Level, SoftKind, Space, Vaddr};

use crate::println;
use crate::vm::Machine;

/// A field of a word: first bit, how many, and its name.
type Field = (u32, u32, &'static str);

/// Bits that mean the same in every present word, and in both kinds of leaf.
const TABLE_BITS: [(u32, &str); 9] = [
    (0, "present"),
    (1, "writable"),
    (2, "user"),
    (3, "PWT"),
    (4, "PCD"),
    (5, "accessed"),
    (7, "PS"),
    (8, "global"),
    (63, "no-execute"),
];

const PMD_LEAF: [Field; 19] = [
    (63, 1, "no-execute"),
    (57, 6, "-"),
    (53, 4, "place"),
    (52, 1, "not counted"),
    (21, 31, "frame / 512"),
    (13, 8, "-"),
    (12, 1, "PAT"),
    (11, 1, "uffd-wp"),
    (10, 1, "soft-dirty"),
    (9, 1, "exclusive"),
    (8, 1, "global"),
    (7, 1, "PS"),
    (6, 1, "dirty"),
    (5, 1, "accessed"),
    (4, 1, "PCD"),
    (3, 1, "PWT"),
    (2, 1, "user"),
    (1, 1, "writable"),
    (0, 1, "present"),
];

const PTE_LEAF: [Field; 17] = [
    (63, 1, "no-execute"),
    (57, 6, "-"),
    (53, 4, "place"),
    (52, 1, "not counted"),
    (12, 40, "frame"),
    (11, 1, "uffd-wp"),
    (10, 1, "soft-dirty"),
    (9, 1, "exclusive"),
    (8, 1, "global"),
    (7, 1, "PAT"),
    (6, 1, "dirty"),
    (5, 1, "accessed"),
    (4, 1, "PCD"),
    (3, 1, "PWT"),
    (2, 1, "user"),
    (1, 1, "writable"),
    (0, 1, "present"),
];

const NON_PRESENT: [Field; 14] = [
    (61, 3, "kind"),
    (57, 4, "-"),
    (53, 4, "place"),
    (52, 1, "no access"),
    (12, 40, "~frame"),
    (11, 1, "uffd-wp"),
    (10, 1, "soft-dirty"),
    (9, 1, "exclusive"),
    (5, 4, "-"),
    (4, 1, "dirty"),
    (3, 1, "young"),
    (2, 1, "execute"),
    (1, 1, "write"),
    (0, 1, "present"),
];

/// The CPU sets it in entries that point to tables, and nobody reads it there.
const ACCESSED: u64 = 1 << 5;

/// Prints the entries on the way to `addr`: the last in full, those above it in one line each.
pub(crate) fn show_walk(space: &Space<Machine>, addr: Vaddr) {
    space.walk_words(addr, |level, word| {
        let name = match level {
            Level::Pgd => "PGD",
            Level::Pud => "PUD",
            Level::Pmd => "PMD",
            Level::Pte => "PTE",
        };
        let head = format!("{name} [{:3}] {word:#018x}", addr.index(level));
        match Entry::try_decode(word, level) {
            Ok(Entry::None) => println!("{head}  nothing: a touch makes a page if a mapping allows it"),
            Ok(Entry::Table(pfn)) if word & !ACCESSED == Entry::Table(pfn).encode(level) => {
                println!("{head}  table in frame {pfn:#x}:{}", set_bits(word));
            }
            Ok(entry @ Entry::Leaf(leaf)) if entry.encode(level) == word => {
                let whose = if leaf.special { ", the shared zero page or a driver's" } else { "" };
                println!("{head}  present: {} at {}{whose}", size(level), leaf.frame);
                say(word, if level == Level::Pmd { &PMD_LEAF } else { &PTE_LEAF }, "", leaf.frame);
            }
            Ok(entry @ Entry::NonPresent(soft)) if entry.encode(level) == word => {
                let (kind, meaning) = kind(soft.kind);
                println!("{head}  not present: {} at {}; {meaning}", size(level), soft.frame);
                say(word, &NON_PRESENT, kind, soft.frame);
            }
            _ => println!("{head}  BAD: no encoder writes this"),
        }
    });
}

fn size(level: Level) -> &'static str {
    if level == Level::Pmd { "2 MiB" } else { "4 KiB" }
}

fn kind(kind: SoftKind) -> (&'static str, &'static str) {
    match kind {
        SoftKind::Migration => ("migration", "it is being moved, and a touch waits for that"),
        SoftKind::DevicePrivate => ("device-private", "a touch is a fault that brings it back"),
        SoftKind::DeviceExclusive => ("exclusive", "it is lent to a device, and a touch takes it back"),
        SoftKind::ProtNone => ("prot-none", "it is there and may not be touched"),
    }
}

fn set_bits(word: u64) -> String {
    let mut names = String::new();
    for (bit, name) in TABLE_BITS {
        if word >> bit & 1 != 0 {
            names.push(' ');
            names.push_str(name);
        }
    }
    names
}

/// The fields of a word; `kind` and `frame` are what the decoder says of those that need words.
fn say(word: u64, fields: &[Field], kind: &str, frame: Frame) {
    for &(low, width, name) in fields {
        let value = word >> low & (u64::MAX >> (64 - width));
        let bits = if width == 1 { format!("{low}") } else { format!("{}:{low}", low + width - 1) };
        let meaning = match name {
            "kind" => kind.into(),
            "place" => format!("{}", frame.place()),
            "~frame" => format!("inverted, against L1TF: {:#x}", frame.index()),
            "frame / 512" => format!("{:#x}", frame.index()),
            "-" => "clear in every entry".into(),
            _ => String::new(),
        };
        println!("{}", format!("    {bits:>5}  {name:<14} {value:<#13x} {meaning}").trim_end());
    }
}
