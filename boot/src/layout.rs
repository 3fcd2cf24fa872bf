//! Where the things go whose address the kernel leaves open (`Mapping::Dynamic`).
//!
//! By whole 512 GiB slots of the top table, as the official loader does: nothing dynamic ever shares a table with
//! anything else, so a kernel can drop a mapping by one entry. The same input gives the same layout, always: runs
//! stay comparable to the instruction. (`aslr` in the configuration is therefore not followed.)

use crate::error::LoadError;
use bootloader_api::config::Mapping;
use core::ops::Range;

const SLOT_SHIFT: u32 = 39;
const SLOT_BYTES: u64 = 1 << SLOT_SHIFT;
const NR_SLOTS: usize = 512;

/// Which slots of the top table are taken, and which may be given out.
pub struct Slots {
    taken: [bool; NR_SLOTS],
    dynamic: Range<usize>,
}

impl Slots {
    /// All slots free; dynamic addresses come from `start..=end`, by default from the kernel half.
    #[must_use]
    pub fn new(start: Option<u64>, end: Option<u64>) -> Self {
        let first = start.map_or(NR_SLOTS / 2, |start| {
            let inside = start & (SLOT_BYTES - 1) != 0;
            slot_of(start) + usize::from(inside)
        });
        let last = end.map_or(NR_SLOTS, |end| slot_of(end) + 1);
        Self { taken: [false; NR_SLOTS], dynamic: first..last }
    }

    /// Marks the slots of an address range as taken.
    pub fn mark(&mut self, start: u64, len_bytes: u64) {
        let last = slot_of(start.saturating_add(len_bytes.saturating_sub(1)));
        for slot in slot_of(start)..=last {
            self.taken[slot] = true;
        }
    }

    /// Marks a mapping whose address is fixed.
    pub fn mark_fixed(&mut self, mapping: Mapping, len_bytes: u64) {
        if let Mapping::FixedAddress(start) = mapping {
            self.mark(start, len_bytes);
        }
    }

    /// The address for a mapping: as configured, or the lowest free slots.
    ///
    /// # Errors
    /// [`LoadError::NoAddressSpace`] if the dynamic range has no room.
    pub fn place(&mut self, mapping: Mapping, len_bytes: u64) -> Result<u64, LoadError> {
        if let Mapping::FixedAddress(start) = mapping {
            return Ok(start);
        }
        let wanted = usize::try_from(len_bytes.div_ceil(SLOT_BYTES)).unwrap_or(usize::MAX).max(1);
        let mut free = 0;
        for slot in self.dynamic.clone() {
            free = if self.taken[slot] { 0 } else { free + 1 };
            if free == wanted {
                let first = slot + 1 - wanted;
                self.taken[first..=slot].fill(true);
                return Ok(slot_address(first));
            }
        }
        Err(LoadError::NoAddressSpace { len_bytes })
    }
}

fn slot_of(virt: u64) -> usize {
    (virt >> SLOT_SHIFT) as usize % NR_SLOTS
}

/// The canonical address at which a slot begins.
fn slot_address(slot: usize) -> u64 {
    ((((slot as u64) << SLOT_SHIFT) << 16).cast_signed() >> 16).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_addresses_are_canonical_slots_of_the_kernel_half() {
        let mut slots = Slots::new(None, None);
        assert_eq!(slots.place(Mapping::Dynamic, 1), Ok(0xffff_8000_0000_0000));
        assert_eq!(slots.place(Mapping::Dynamic, SLOT_BYTES + 1), Ok(0xffff_8080_0000_0000));
        assert_eq!(slots.place(Mapping::Dynamic, 1), Ok(0xffff_8180_0000_0000));
    }

    #[test]
    fn taken_slots_are_skipped() {
        let mut slots = Slots::new(Some(0xffff_8000_0000_0000), None);
        slots.mark(0xffff_8080_0000_0000, 4096);
        slots.mark_fixed(Mapping::FixedAddress(0xffff_8100_0000_0000), 4096);
        assert_eq!(slots.place(Mapping::Dynamic, 2 * SLOT_BYTES), Ok(0xffff_8180_0000_0000));
        assert_eq!(slots.place(Mapping::Dynamic, 4096), Ok(0xffff_8000_0000_0000));
    }

    #[test]
    fn fixed_addresses_are_honoured_and_a_full_range_is_an_error() {
        let mut slots = Slots::new(Some(0xffff_8000_0000_0001), Some(0xffff_80ff_ffff_ffff));
        assert_eq!(slots.place(Mapping::FixedAddress(0x1234_5000), 1), Ok(0x1234_5000));
        assert_eq!(slots.place(Mapping::Dynamic, 1), Ok(0xffff_8080_0000_0000));
        assert_eq!(slots.place(Mapping::Dynamic, 1), Err(LoadError::NoAddressSpace { len_bytes: 1 }));
    }

    #[test]
    fn the_last_slot_is_marked_without_wrapping() {
        let mut slots = Slots::new(Some(0xffff_ff80_0000_0000), None);
        slots.mark(0xffff_ffff_8000_0000, u64::MAX);
        assert!(slots.place(Mapping::Dynamic, 1).is_err());
    }
}
