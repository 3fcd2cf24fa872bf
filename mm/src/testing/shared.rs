//! Two and more spaces that map the same folios.

use crate::entry::{Attrs, Entry};
use crate::space::{AddressSpace, Space};
use crate::testing::kit::{BASE, Kit, at};
use crate::testing::machine::Soft;
use crate::types::{Level, PMD_SIZE, VaRange, Vaddr};
use crate::vma::{VmaAttrs, VmaSpares};
use crate::zone::Need;

/// A second space with the mappings of the kit's: the same folios, nobody may write to them.
pub(crate) fn sharer(kit: &Kit) -> AddressSpace<Soft> {
    let child = AddressSpace::new(|_| {}).expect("memory for a space");
    share(kit.space.space(), child.space());
    child
}

fn share(parent: &'static Space<Soft>, child: &'static Space<Soft>) {
    let from = parent.vmas.write();
    let mut to = child.vmas.write();
    for vma in from.iter() {
        let copy = VmaSpares::for_cuts(&mut to, &[], 1).expect("memory for a VMA").take();
        copy.set(&VmaAttrs { space: child.slab_index(), ..vma.attrs() });
        child.link_vma(copy, Some(vma));
        to.insert(copy);
        let mut addr = vma.start().align_down(PMD_SIZE);
        while addr < vma.range().end {
            share_table(parent, child, vma.range(), addr);
            addr = addr.add(PMD_SIZE);
        }
    }
}

fn share_table(parent: &'static Space<Soft>, child: &'static Space<Soft>, range: VaRange, base: Vaddr) {
    let pmd = child.pmd_table_or_alloc(base, Need::User).expect("memory for a table");
    let spare = <Soft as crate::Machine>::mm().spare_pte_table(base, Need::User).expect("memory");
    let Some(mut from) = parent.cursor(base) else { return };
    let mut to = child.cursor_in(pmd, Level::Pmd, base);
    if from.level() == Level::Pte {
        let table = spare.table();
        to.hook(spare);
        drop(to);
        to = child.cursor_in(table, Level::Pte, base);
    }
    loop {
        let shared = |attrs: Attrs| attrs - Attrs::WRITE - Attrs::EXCLUSIVE;
        let entry = match from.entry() {
            _ if !range.contains(from.addr()) => Entry::None,
            Entry::Leaf(mut leaf) => {
                leaf.attrs = shared(leaf.attrs);
                from.clear_leaf().flush(crate::FlushReason::CopyOnWrite);
                from.install(Entry::Leaf(leaf));
                if !leaf.special {
                    <Soft as crate::Machine>::mm().mapped_folio(leaf.frame).add_maps(1);
                }
                Entry::Leaf(leaf)
            }
            Entry::NonPresent(mut soft) => {
                soft.attrs = shared(soft.attrs);
                from.replace_soft(Entry::NonPresent(soft));
                <Soft as crate::Machine>::mm().mapped_folio(soft.frame).add_maps(1);
                Entry::NonPresent(soft)
            }
            other => other,
        };
        if entry != Entry::None {
            to.install(entry);
        }
        if from.level() == Level::Pmd || !from.next() || !to.next() {
            return;
        }
    }
}

/// What is in a page of a space, wherever it lies.
pub(crate) fn contents(kit: &Kit, space: &Space<Soft>, page: u64) -> Option<u64> {
    let (level, entry) = space.entry_at(at(page));
    let frame = match entry {
        Entry::Leaf(leaf) => leaf.frame,
        Entry::NonPresent(soft) => soft.frame,
        _ => return None,
    };
    let inside = if level == Level::Pmd { (at(page).0 & (PMD_SIZE - 1)) / 4096 } else { 0 };
    Some(kit.machine.data(frame.offset(inside as u32))[0].get())
}

/// Asserts that filled pages are as they were, in this space.
pub(crate) fn check_shared(kit: &Kit, space: &Space<Soft>, start: u64, len: u64) {
    for page in start..start + len {
        assert_eq!(contents(kit, space, page), Some(Kit::value(page)), "page {page}");
    }
}

const _: () = assert!(BASE.is_multiple_of(PMD_SIZE));
