//! What goes wrong without a flush: each case once without and once with it.
//!
//! A case prepares a page, makes a change, and looks at what a program sees afterwards. Where the memory manager owes the flush, it is
//! left out by [`skip_flushes`]; where the case itself changes the entry, it leaves out its own. The translator may forget a translation by
//! itself, so a case is tried up to [`TRIES`] times.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::Ordering::Relaxed;

use farpage_mm::{
    Access, Advice, Attrs, Entry, FaultInfo, FlushReason, Frame, HugeAdvice, Machine as _, PAGE_SIZE, Prot,
    RemapFlags, RemapTarget, Space, VaRange, Vaddr,
};
use x86_64::VirtAddr;

use super::{Axis, Kind, Sheet};
use crate::arch::x86_64::tlb;
use crate::bench::Stop;
use crate::vm::raw::pte_word;
use crate::vm::skip::{Skipping, skip_flushes};
use crate::vm::user::{user_read_u64, user_write_u64};
use crate::vm::{Machine, clone_space};

const TRIES: u32 = 5;
/// What is in memory before.
const OLD: u64 = 0x1111_1111;
/// What is written after.
const NEW: u64 = 0x2222_2222;

/// What was seen.
struct Seen {
    wrong: bool,
    what: String,
}

fn wrong(what: String) -> Seen {
    Seen { wrong: true, what }
}

fn right(what: impl Into<String>) -> Seen {
    Seen { wrong: false, what: what.into() }
}

/// Four small pages, of which the first two hold [`OLD`]; the second keeps the table alive.
fn prepared(sheet: &mut Sheet<'_>) -> Result<(VaRange, u64), Stop> {
    let range = sheet.map(4 * PAGE_SIZE, HugeAdvice::NoHuge)?;
    let at = range.start.0;
    user_write_u64(at, OLD)?;
    user_write_u64(at + PAGE_SIZE, OLD)?;
    Ok((VaRange::new(at, PAGE_SIZE), at))
}

/// Leaves the flushes out, if it is to.
fn without(flush: bool, reason: FlushReason) -> Option<Skipping> {
    (!flush).then(|| skip_flushes(reason))
}

fn unmap(sheet: &mut Sheet<'_>, flush: bool) -> Result<Seen, Stop> {
    let (page, at) = prepared(sheet)?;
    let skipping = without(flush, FlushReason::Unmap);
    sheet.space().unmap(page)?;
    // The next page that is wanted is the one that was freed last.
    user_write_u64(at + 2 * PAGE_SIZE, NEW)?;
    let seen = match user_read_u64(at) {
        Ok(NEW) => wrong(format!("reads {NEW:#x}: what another page holds now")),
        Ok(word) => wrong(format!("reads {word:#x} out of freed memory")),
        Err(_) => right("a load is refused"),
    };
    drop(skipping);
    Ok(seen)
}

fn remap(sheet: &mut Sheet<'_>, flush: bool) -> Result<Seen, Stop> {
    let (page, at) = prepared(sheet)?;
    let there = at + (1 << 29);
    let skipping = without(flush, FlushReason::Remap);
    let target = RemapTarget { addr: Vaddr(there), len: PAGE_SIZE };
    sheet.space().remap(page, target, RemapFlags::empty())?;
    let done = user_write_u64(at, NEW);
    let word = user_read_u64(there)?;
    drop(skipping);
    Ok(match (done, word) {
        (Err(_), OLD) => right("a store to the old address is refused"),
        (_, word) => wrong(format!("a store to the old address made {OLD:#x} at the new one {word:#x}")),
    })
}

fn protect(sheet: &mut Sheet<'_>, flush: bool) -> Result<Seen, Stop> {
    let (page, at) = prepared(sheet)?;
    let skipping = without(flush, FlushReason::Protect);
    sheet.space().protect(page, Prot::READ)?;
    let done = user_write_u64(at, NEW);
    let word = user_read_u64(at)?;
    drop(skipping);
    Ok(match (done, word) {
        (Err(_), OLD) => right("a store is refused"),
        (_, word) => wrong(format!("a store made {OLD:#x} in a read-only page {word:#x}")),
    })
}

fn attrs(space: &Space<Machine>, at: u64) -> Attrs {
    match space.entry_at(Vaddr(at)).1 {
        Entry::Leaf(leaf) => leaf.attrs,
        _ => Attrs::empty(),
    }
}

/// `MADV_COLD` clears A. It is a hint, and nobody flushes for it; here the case itself does.
fn accessed(sheet: &mut Sheet<'_>, flush: bool) -> Result<Seen, Stop> {
    let (page, at) = prepared(sheet)?;
    sheet.space().advise(page, Advice::Cold)?;
    if flush {
        tlb::invlpg(VirtAddr::new_truncate(at));
    }
    user_read_u64(at)?;
    let young = attrs(sheet.space(), at).contains(Attrs::YOUNG);
    tlb::flush();
    Ok(if young {
        right("A is set by the next load")
    } else {
        wrong("A stays 0: a page in use looks idle".into())
    })
}

/// `MADV_FREE` clears D, so that the page may be dropped until it is written again.
fn dirty(sheet: &mut Sheet<'_>, flush: bool) -> Result<Seen, Stop> {
    let (page, at) = prepared(sheet)?;
    let skipping = without(flush, FlushReason::Protect);
    sheet.space().advise(page, Advice::Free)?;
    user_write_u64(at, NEW)?;
    let dirty = attrs(sheet.space(), at).contains(Attrs::DIRTY);
    drop(skipping);
    Ok(if dirty {
        right("D is set by the next store")
    } else {
        wrong(format!("D stays 0 after a store of {NEW:#x}: the page may be dropped"))
    })
}

fn soft_dirty(sheet: &mut Sheet<'_>, flush: bool) -> Result<Seen, Stop> {
    let (page, at) = prepared(sheet)?;
    let skipping = without(flush, FlushReason::Protect);
    sheet.space().clear_soft_dirty(page)?;
    user_write_u64(at, NEW)?;
    let mut noted = false;
    sheet.space().pagemap(page, |_, entry| noted = entry.is_soft_dirty())?;
    drop(skipping);
    Ok(if noted { right("the store is noted") } else { wrong(format!("a store of {NEW:#x} is not noted")) })
}

fn migrate(sheet: &mut Sheet<'_>, flush: bool) -> Result<Seen, Stop> {
    let (page, at) = prepared(sheet)?;
    let skipping = without(flush, FlushReason::Migrate);
    sheet.to_device(page)?;
    // Goes to the device's page after a fault, or to RAM that is free.
    user_write_u64(at, NEW)?;
    drop(skipping);
    Ok(match user_read_u64(at)? {
        NEW => right(format!("a store of {NEW:#x} is read back")),
        word => wrong(format!("a store of {NEW:#x} is lost: reads {word:#x}")),
    })
}

/// The frame at an address, and the word in it.
fn word_at(space: &Space<Machine>, at: u64) -> Option<(Frame, u64)> {
    match space.entry_at(Vaddr(at)).1 {
        Entry::Leaf(leaf) if leaf.frame.place().is_ram() => {
            Some((leaf.frame, Machine::table_words(leaf.frame.index())[0].load(Relaxed)))
        }
        _ => None,
    }
}

fn fork(sheet: &mut Sheet<'_>, flush: bool) -> Result<Seen, Stop> {
    let (_, at) = prepared(sheet)?;
    let skipping = without(flush, FlushReason::Protect);
    let child = clone_space(sheet.address_space())?;
    user_write_u64(at, NEW)?;
    let word = word_at(child.space(), at).map(|(_, word)| word);
    drop(skipping);
    Ok(match word {
        Some(OLD) => right(format!("the child reads {OLD:#x}")),
        Some(word) => wrong(format!("the child reads {word:#x}, which the parent wrote later")),
        None => return Err(Stop::Wrong("the clone has no page")),
    })
}

/// The zero page gives way to a page of its own, which another CPU writes.
fn copy_on_write(sheet: &mut Sheet<'_>, flush: bool) -> Result<Seen, Stop> {
    let (_, at) = prepared(sheet)?;
    let at = at + 3 * PAGE_SIZE;
    user_read_u64(at)?;
    let skipping = without(flush, FlushReason::CopyOnWrite);
    let done = sheet.space().handle_fault(&FaultInfo::new(Vaddr(at), Access::Write));
    let Some((frame, _)) = word_at(sheet.space(), at).filter(|_| done.is_ok()) else {
        return Err(Stop::Wrong("the page was not copied"));
    };
    Machine::table_words(frame.index())[0].store(NEW, Relaxed);
    let word = user_read_u64(at)?;
    drop(skipping);
    Ok(match word {
        NEW => right(format!("reads {NEW:#x}, which another CPU wrote")),
        word => wrong(format!("reads {word:#x} of the shared zero page, not {NEW:#x}")),
    })
}

/// Two entries change places by hand, and back.
fn exchange(sheet: &mut Sheet<'_>, flush: bool) -> Result<Seen, Stop> {
    let (page, at) = prepared(sheet)?;
    let other = at + PAGE_SIZE;
    user_write_u64(other, NEW)?;
    let (Some(here), Some(there)) = (pte_word(sheet.space(), at), pte_word(sheet.space(), other)) else {
        return Err(Stop::Wrong("small pages have no PTEs"));
    };
    let words = (here.load(Relaxed), there.load(Relaxed));
    here.store(words.1, Relaxed);
    there.store(words.0, Relaxed);
    if flush {
        tlb::invlpg(VirtAddr::new_truncate(page.start.0));
    }
    let seen = user_read_u64(at);
    here.store(words.0, Relaxed);
    there.store(words.1, Relaxed);
    tlb::flush();
    Ok(match seen? {
        NEW => right(format!("reads {NEW:#x}, of the new frame")),
        word => wrong(format!("reads {word:#x}, of the old frame")),
    })
}

/// A case: its name, and what does it with or without the flush.
type Case = (&'static str, fn(&mut Sheet<'_>, bool) -> Result<Seen, Stop>);

const CASES: [Case; 10] = [
    ("unmap", unmap),
    ("remap", remap),
    ("protect (read-only)", protect),
    ("migrate", migrate),
    ("clone", fork),
    ("copy on write", copy_on_write),
    ("clear A (cold)", accessed),
    ("clear D (free)", dirty),
    ("clear soft-dirty", soft_dirty),
    ("another frame by hand", exchange),
];

crate::experiment! {
    name: "tlb-stale",
    question: "What goes wrong when a flush is left out?",
    measures: "what a program reads, or may still write, after a change of its page table without and with the flush that belongs to it; \
               stale are translations of QEMU's software TLB under TCG, of the CPU's under KVM",
    fn stale(sheet: &mut Sheet<'_>) -> Result<(), Stop> {
        sheet.needs(1 << 20, 1 << 20)?;
        let title = "Changes without their flush and with it";
        let x = Axis::words("change");
        // A translation may be gone by itself.
        let table = sheet.plot_that_varies(Kind::Table, title, x, Axis::words("what is seen"));
        let mut found = 0;
        for (name, case) in CASES {
            let mut seen = case(sheet, false)?;
            for _ in 1..TRIES {
                if !seen.wrong {
                    seen = case(sheet, false)?;
                }
            }
            match seen {
                Seen { wrong: true, what } => {
                    found += 1;
                    sheet.cell(table, "without the flush", name, format_args!("wrong: {what}"));
                }
                Seen { wrong: false, what } => {
                    sheet.cell(table, "without the flush", name, format_args!("not seen here: {what}"));
                }
            }
            let seen = case(sheet, true)?;
            let verdict = if seen.wrong { "wrong" } else { "right" };
            sheet.cell(table, "with it", name, format_args!("{verdict}: {}", seen.what));
            if seen.wrong {
                return Err(Stop::Wrong("a case is wrong with its flush, too"));
            }
        }
        sheet.finding(format_args!("{found} of {} changes go wrong without their flush, none with it", CASES.len()));
        Ok(())
    }
}
