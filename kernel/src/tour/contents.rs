//! What the tour's program wrote, and whether it is still there: in RAM through its own mapping, on the device through the
//! BAR. Checking touches no page that is away, or it would bring back what it is to find there.

use alloc::vec::Vec;
use core::fmt;

use farpage_device::DeviceAddr;
use farpage_mm::{AddressSpace, Entry, PAGE_SIZE, SoftKind, VaRange, Vaddr};

use super::{Grouped, Stop};
use crate::arch::x86_64::uaccess::{copy_words_from_user, copy_words_to_user};
use crate::vm::Machine;
use crate::vm::devmem;

/// Words of a page.
const WORDS: usize = (PAGE_SIZE / 8) as usize;
type PageWords = [u64; WORDS];

/// The memory that holds the program's data: every word another value, computed from its address.
#[derive(Debug, Default)]
pub(super) struct Contents {
    ranges: Vec<VaRange>,
    /// A word that was written once more.
    changed: Option<(u64, u64)>,
}

/// How many words were right, by where they were found.
#[derive(Debug, Default)]
pub(super) struct Verified {
    ram: u64,
    device: u64,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "data right, word by word: {} words", Grouped(self.ram + self.device))?;
        match (self.ram, self.device) {
            (_, 0) => f.write_str(" in RAM"),
            (0, _) => f.write_str(" on the device, read through its BAR"),
            (ram, device) => write!(f, ", {} in RAM and {} on the device", Grouped(ram), Grouped(device)),
        }
    }
}

impl Contents {
    /// Writes all words of `range`.
    pub(super) fn fill(&mut self, range: VaRange) -> Result<u64, Stop> {
        self.ranges.push(range);
        for page in pages(range) {
            let words: PageWords = core::array::from_fn(|i| pattern(page + 8 * i as u64));
            copy_words_to_user(page, &words)?;
        }
        Ok(range.len() / 8)
    }

    /// Notes that the word at `addr` was written again.
    pub(super) fn note_write(&mut self, addr: u64, value: u64) {
        self.changed = Some((addr, value));
    }

    /// Notes that `hole` was unmapped.
    pub(super) fn note_unmap(&mut self, hole: VaRange) {
        let cut = |range: &VaRange| {
            let below = VaRange::between(range.start, hole.start.min(range.end));
            let above = VaRange::between(hole.end.max(range.start), range.end);
            [below, above].into_iter().filter(|part| !part.is_empty())
        };
        self.ranges = self.ranges.iter().flat_map(cut).collect();
    }

    /// Compares every word.
    pub(super) fn verify(&self, space: &AddressSpace<Machine>) -> Result<Verified, Stop> {
        let mut verified = Verified::default();
        for range in &self.ranges {
            for page in pages(*range) {
                self.verify_page(space, page, &mut verified)?;
            }
        }
        Ok(verified)
    }

    fn verify_page(
        &self,
        space: &AddressSpace<Machine>,
        page: u64,
        verified: &mut Verified,
    ) -> Result<(), Stop> {
        match space.entry_at(Vaddr(page)) {
            (_, Entry::Leaf(_)) => {
                let mut words: PageWords = [0; WORDS];
                copy_words_from_user(&mut words, page)?;
                for (i, word) in words.into_iter().enumerate() {
                    self.compare(page + 8 * i as u64, Some(word))?;
                }
                verified.ram += WORDS as u64;
            }
            (level, Entry::NonPresent(soft)) if soft.kind == SoftKind::DevicePrivate => {
                let device = soft.frame.place().device_number().and_then(devmem::device);
                let at = u64::from(soft.frame.index()) * PAGE_SIZE + (page & (level.size() - 1));
                for offset in (0..PAGE_SIZE).step_by(8) {
                    let word = device.and_then(|device| device.read(DeviceAddr(at + offset)));
                    self.compare(page + offset, word)?;
                }
                verified.device += WORDS as u64;
            }
            _ => self.compare(page, None)?,
        }
        Ok(())
    }

    #[inline(always)]
    fn compare(&self, addr: u64, found: Option<u64>) -> Result<(), Stop> {
        let expected = match self.changed {
            Some((changed, value)) if changed == addr => value,
            _ => pattern(addr),
        };
        if found == Some(expected) { Ok(()) } else { Err(Stop::Word { addr: Vaddr(addr), found, expected }) }
    }
}

fn pages(range: VaRange) -> impl Iterator<Item = u64> {
    (range.start.0..range.end.0).step_by(PAGE_SIZE as usize)
}

/// The word that belongs at `addr`: no two addresses share one, so that a page in another's place is found.
const fn pattern(addr: u64) -> u64 {
    addr.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
