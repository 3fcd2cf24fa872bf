//! Commands on mappings and their contents.

use farpage_mm::{
    Entry, Event, Frame, HugeAdvice, Level, Machine as _, PAGE_SIZE, Place, Prot, RemapFlags, RemapTarget,
    Space, USER_END, VaRange, Vaddr,
};
use ktest::monitor::{Access, Address, Advice, Huge, Number, Prot as Allowed, Size as Bytes};

use super::counters::{Changes, Plural};
use super::{Done, Refusal};
use crate::arch::x86_64::uaccess::{copy_words_from_user, copy_words_to_user};
use crate::measure::{Cost, measure};
use crate::println;
use crate::units::{Grouped, Size};
use crate::vm::Machine;
use crate::vm::user::{user_touch_read, user_write_u64};

/// Words of a page.
const WORDS: usize = (PAGE_SIZE / 8) as usize;

fn prot(word: Allowed) -> Prot {
    match word {
        Allowed::ReadWrite => Prot::RW,
        Allowed::Read => Prot::READ,
        Allowed::None => Prot::empty(),
    }
}

pub(super) fn map(
    space: &'static Space<Machine>,
    range: VaRange,
    allowed: Option<Allowed>,
    huge: Option<Huge>,
) -> Done {
    let allowed = allowed.unwrap_or(Allowed::ReadWrite);
    let advice = match huge {
        Some(Huge::Huge) => HugeAdvice::Huge,
        Some(Huge::NoHuge) => HugeAdvice::NoHuge,
        None => HugeAdvice::Default,
    };
    let (result, cost) = measure(|| space.map_anon(range, prot(allowed), advice));
    result?;
    println!(
        "mapped {range}, {}, {}; nothing is in it until it is touched",
        Size(range.len()),
        allowed.word()
    );
    Ok(Some(cost))
}

pub(super) fn unmap(space: &'static Space<Machine>, range: VaRange) -> Done {
    let changes = Changes::begin();
    let (result, cost) = measure(|| space.unmap(range));
    result?;
    println!(
        "unmapped {range}: {} freed, {}",
        Plural(changes.of(Event::PgUnmapped), "page"),
        Plural(changes.of(Event::ThpSplitPage), "folio split")
    );
    Ok(Some(cost))
}

pub(super) fn protect(space: &'static Space<Machine>, range: VaRange, allowed: Allowed) -> Done {
    let changes = Changes::begin();
    let (result, cost) = measure(|| space.protect(range, prot(allowed)));
    result?;
    println!("{range} is {} now; {}", allowed.word(), Plural(changes.of(Event::TlbFlush), "flush round"));
    Ok(Some(cost))
}

pub(super) fn remap(space: &'static Space<Machine>, old: VaRange, new: Address, keep: bool) -> Done {
    let target = RemapTarget { addr: Vaddr(new.0), len: old.len() };
    let flags = if keep { RemapFlags::KEEP_OLD } else { RemapFlags::empty() };
    let (result, cost) = measure(|| space.remap(old, target, flags));
    result?;
    let rest = if keep { "; the old mapping is empty now" } else { "" };
    println!(
        "moved {old} to {}{rest}; its contents are as filled in at {}: check with --as {:#x}",
        target.addr, old.start, old.start.0
    );
    Ok(Some(cost))
}

pub(super) fn advise(space: &'static Space<Machine>, range: VaRange, word: Advice) -> Done {
    let advice = match word {
        Advice::Huge => farpage_mm::Advice::Huge,
        Advice::NoHuge => farpage_mm::Advice::NoHuge,
        Advice::DontNeed => farpage_mm::Advice::DontNeed,
        Advice::Free => farpage_mm::Advice::Free,
        Advice::Cold => farpage_mm::Advice::Cold,
        Advice::PageOut => farpage_mm::Advice::PageOut,
    };
    let (result, cost) = measure(|| space.advise(range, advice));
    result?;
    println!("{range} is advised {}", word.word());
    Ok(Some(cost))
}

pub(super) fn touch(
    space: &'static Space<Machine>,
    addr: Address,
    size: Option<Bytes>,
    access: Option<Access>,
) -> Done {
    let last = addr.0.saturating_add(size.map_or(0, |size| size.0 - 1));
    let (changes, mut sum, mut pages) = (Changes::begin(), Cost::default(), 0);
    let mut result = Ok(());
    let mut at = Some(addr.0);
    while let Some(here) = at.filter(|here| *here <= last && result.is_ok()) {
        let cost;
        (result, cost) = match access {
            Some(Access::Write) => {
                let word = word_at(space, here);
                measure(|| user_write_u64(here & !7, word))
            }
            Some(Access::Read) | None => measure(|| user_touch_read(here)),
        };
        sum += cost;
        pages += u64::from(result.is_ok());
        at = (here & !(PAGE_SIZE - 1)).checked_add(PAGE_SIZE);
    }
    if pages != 0 {
        println!("touched {}: {}", Plural(pages, "page"), Faults(&changes));
    }
    result?;
    Ok(Some(sum))
}

/// The word that `addr` lies in, looked at where it lies, so that a store may leave it as it is: an instruction that reads and
/// writes would be two faults to QEMU.
fn word_at(space: &Space<Machine>, addr: u64) -> u64 {
    let mut word = [0];
    if addr < USER_END
        && let Some(frame) = frame_of(space, Vaddr(addr))
    {
        Machine::read_frame(frame, ((addr & (PAGE_SIZE - 1)) / 8) as usize, &mut word);
    }
    word[0]
}

/// What a touch led to.
struct Faults<'a>(&'a Changes);

impl core::fmt::Display for Faults<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let of = |event| self.0.of(event);
        write!(f, "{}", Plural(of(Event::PgFault), "page fault"))?;
        if of(Event::DeviceFault) != 0 {
            let (faults, pages) = (of(Event::DeviceFault), of(Event::DevicePagesOut));
            write!(f, ", {} on device memory that brought {} back", Grouped(faults), Plural(pages, "page"))?;
        }
        Ok(())
    }
}

/// The words that belong to a range: each another one, by its address, or by the one that it was filled in at.
#[derive(Clone, Copy)]
pub(super) struct Pattern {
    /// What to add to an address, and to all.
    shift: u64,
    seed: u64,
}

impl Pattern {
    /// What `fill` wrote at `origin`, looked for at `addr`.
    pub(super) fn new(addr: Address, origin: Address, seed: Option<Number>) -> Self {
        let seed = seed.map_or(0, |seed| seed.0);
        Self { shift: origin.0.wrapping_sub(addr.0), seed: seed.wrapping_mul(0x2545_f491_4f6c_dd1d) }
    }

    /// One to one for a seed: a page in another's place is found.
    fn word(self, addr: u64) -> u64 {
        (addr.wrapping_add(self.shift) ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// The pieces of a range that lie in one page: first address and words.
fn pieces(range: VaRange) -> Result<impl Iterator<Item = (u64, usize)>, Refusal> {
    if !range.start.is_aligned(8) || !range.end.is_aligned(8) {
        return Err(Refusal::said("words have 8 bytes: address and size must be multiples of 8"));
    }
    if range.end.0 > USER_END {
        return Err(Refusal::NotUser(range.start.0.max(USER_END)));
    }
    let mut at = range.start.0;
    Ok(core::iter::from_fn(move || {
        let first = at;
        at = ((at & !(PAGE_SIZE - 1)) + PAGE_SIZE).min(range.end.0);
        (first < range.end.0).then_some((first, ((at - first) / 8) as usize))
    }))
}

pub(super) fn fill(range: VaRange, seed: Option<Number>) -> Done {
    let start = Address(range.start.0);
    let pattern = Pattern::new(start, start, seed);
    let (changes, mut sum) = (Changes::begin(), Cost::default());
    for (at, len) in pieces(range)? {
        let mut words = [0; WORDS];
        let words = &mut words[..len];
        words.iter_mut().zip((at..).step_by(8)).for_each(|(word, addr)| *word = pattern.word(addr));
        let (result, cost) = measure(|| copy_words_to_user(at, words));
        result?;
        sum += cost;
    }
    println!("filled {} words: {}", Grouped(range.len() / 8), Faults(&changes));
    Ok(Some(sum))
}

/// Words that were compared.
#[derive(Default)]
struct Compared {
    right: u64,
    wrong: u64,
    first: Option<(u64, Option<u64>, u64)>,
}

impl Compared {
    /// Compares words that lie at `at`; `None` for words that are nowhere.
    fn add(&mut self, at: u64, words: &[u64], there: bool, pattern: Pattern) {
        for (&word, addr) in words.iter().zip((at..).step_by(8)) {
            let expected = pattern.word(addr);
            if there && word == expected {
                self.right += 1;
            } else {
                self.wrong += 1;
                self.first.get_or_insert((addr, there.then_some(word), expected));
            }
        }
    }

    fn verdict(&self) -> Result<(), Refusal> {
        match self.first {
            None => Ok(()),
            Some((addr, found, expected)) => {
                Err(Refusal::Words { first: Vaddr(addr), found, expected, wrong: self.wrong })
            }
        }
    }
}

pub(super) fn check(space: &'static Space<Machine>, range: VaRange, pattern: Pattern, lies: bool) -> Done {
    if lies { check_where_it_lies(space, range, pattern) } else { check_by_loads(range, pattern) }
}

/// As a program sees it: what is on a device comes back.
fn check_by_loads(range: VaRange, pattern: Pattern) -> Done {
    let (changes, mut sum, mut compared) = (Changes::begin(), Cost::default(), Compared::default());
    for (at, len) in pieces(range)? {
        let mut words = [0; WORDS];
        let words = &mut words[..len];
        let (result, cost) = measure(|| copy_words_from_user(words, at));
        result?;
        sum += cost;
        compared.add(at, words, true, pattern);
    }
    println!("{} words are right: {}", Grouped(compared.right), Faults(&changes));
    compared.verdict()?;
    Ok(Some(sum))
}

/// The frame that a page of the space lies in, RAM or not, whatever its entry allows.
pub(super) fn frame_of(space: &Space<Machine>, addr: Vaddr) -> Option<Frame> {
    let (level, entry) = space.entry_at(addr);
    let inside = if level == Level::Pmd { (addr.0 & (level.size() - 1)) / PAGE_SIZE } else { 0 };
    let first = match entry {
        Entry::Leaf(leaf) => leaf.frame,
        Entry::NonPresent(soft) => soft.frame,
        Entry::None | Entry::Table(_) => return None,
    };
    Some(first.offset(inside as u32))
}

/// By the page table alone: nothing is touched, nothing moves.
fn check_where_it_lies(space: &'static Space<Machine>, range: VaRange, pattern: Pattern) -> Done {
    let pieces = pieces(range)?;
    let (mut ram, mut devices) = (Compared::default(), Compared::default());
    let mut nowhere = Compared::default();
    for (at, len) in pieces {
        let mut words = [0; WORDS];
        let words = &mut words[..len];
        match frame_of(space, Vaddr(at)) {
            Some(frame) => {
                Machine::read_frame(frame, ((at & (PAGE_SIZE - 1)) / 8) as usize, words);
                let compared = if frame.place() == Place::RAM { &mut ram } else { &mut devices };
                compared.add(at, words, true, pattern);
            }
            None => nowhere.add(at, words, false, pattern),
        }
    }
    let right = ram.right + devices.right;
    println!(
        "{} words are right where they lie: {} in RAM, {} on devices; nothing was touched",
        Grouped(right),
        Grouped(ram.right),
        Grouped(devices.right)
    );
    [ram, devices, nowhere].iter().try_for_each(Compared::verdict)?;
    Ok(None)
}
