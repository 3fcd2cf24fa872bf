//! One page-table entry, taken apart: the words met on the way to it, and the fields of the last by name.
//!
//! The layout is that of `docs/PTE-FORMAT.md`. What the fields mean is the memory manager's decoder's answer, not this
//! file's, and the word is shown only if the decoder's answer encodes to it again.

use farpage_mm::{AddressSpace, Attrs, Entry, Level, NON_PRESENT_CLEAR, PAGE_SIZE, SoftLeaf, Vaddr};

use super::Stop;
use crate::println;
use crate::vm::Machine;

/// Attributes in the order of their bits, highest first.
const ATTRS: [(Attrs, &str); 7] = [
    (Attrs::UFFD_WP, "uffd-wp"),
    (Attrs::SOFT_DIRTY, "soft-dirty"),
    (Attrs::EXCLUSIVE, "exclusive"),
    (Attrs::DIRTY, "dirty"),
    (Attrs::YOUNG, "young"),
    (Attrs::EXEC, "exec"),
    (Attrs::WRITE, "write"),
];

/// Prints the walk to `addr` and takes its non-present entry apart.
pub(super) fn show(space: &AddressSpace<Machine>, addr: Vaddr) -> Result<(), Stop> {
    println!("the walk to {addr}, as the CPU does it:");
    let mut last = (Level::Pgd, 0);
    space.walk_words(addr, |level, word| {
        last = (level, word);
        let name = match level {
            Level::Pgd => "PGD",
            Level::Pud => "PUD",
            Level::Pmd => "PMD",
            Level::Pte => "PTE",
        };
        match Entry::try_decode(word, level) {
            Ok(Entry::Table(pfn)) => {
                println!(
                    "  {name} [{:3}] {word:#018x}  present: next table in frame {pfn:#x}",
                    addr.index(level)
                );
            }
            _ => {
                println!(
                    "  {name} [{:3}] {word:#018x}  not present: the walk ends in #PF",
                    addr.index(level)
                );
            }
        }
    });
    let (level, word) = last;
    match Entry::try_decode(word, level) {
        Ok(entry @ Entry::NonPresent(soft)) if entry.encode(level) == word => fields(word, soft),
        _ => return Err(Stop::NotShown("the entry that should be device-private is not")),
    }
    Ok(())
}

fn fields(word: u64, soft: SoftLeaf) {
    let device = soft.frame.place();
    let index = soft.frame.index();
    println!("  bits 63:61  kind    {:<12} {:?}", word >> 61, soft.kind);
    println!("  bits 56:53  place   {:<12} {device}", word >> 53 & 0xf);
    println!(
        "  bits 51:12  ~index  {:<#12x} inverted, against L1TF: page {index:#x} of {device}, {} KiB into its memory",
        word >> 12 & 0xff_ffff_ffff,
        (u64::from(index) * PAGE_SIZE) >> 10
    );
    let mut names = alloc::string::String::new();
    for (attr, name) in ATTRS {
        if soft.attrs.contains(attr) {
            names.push(' ');
            names.push_str(name);
        }
    }
    println!("  bits 11:1   attrs   {:<#12x}{names}", word & 0xfff & !NON_PRESENT_CLEAR);
    println!(
        "  bits 8:5,0  clear   {:<12} not present, and free of A and D, PS and G",
        word & NON_PRESENT_CLEAR
    );
}
