//! The commonest steps of loops over many entries, from word to word. Each is what decoding, changing and encoding gives; the
//! tests hold them to that.

use super::{
    A, AD_SHIFT, ADDR, Attrs, COMMON, D, KIND_SHIFT, NO_ACCESS, NX, NX_TO_EXEC, P, PLACE, PLACE_SHIFT, PS,
    SOFT_ATTRS, SPECIAL, SoftKind, US,
};
use crate::types::{Frame, Level, Place};

/// What only one mapping of a page can have.
const SOLE: u64 = Attrs::WRITE.union(Attrs::EXCLUSIVE).bits() as u64;

/// Where a non-present entry keeps attributes.
pub(super) const ATTRS: u64 = SOFT_ATTRS | NO_ACCESS;

/// The frame of a plain PTE leaf: RAM, write-back, not the zero page.
#[inline(always)]
pub(crate) const fn plain_ram(word: u64) -> Option<Frame> {
    let plain = word & (P | SPECIAL | PLACE | PS | 1 << 3 | 1 << 4) == P;
    if plain { Some(Frame::ram(((word & ADDR) >> 12) as u32)) } else { None }
}

/// The frame of a plain PTE leaf that a clone has as it is: it allows no writes, and the page is not known to be this mapping's alone.
#[inline(always)]
pub(crate) const fn plain_shared(word: u64) -> Option<Frame> {
    if word & SOLE == 0 { plain_ram(word) } else { None }
}

/// The frame of a device-private entry.
#[inline(always)]
pub(crate) const fn device_private(word: u64) -> Option<Frame> {
    if word & P != 0 || word >> KIND_SHIFT != SoftKind::DevicePrivate as u64 {
        return None;
    }
    let place = Place::from_raw(((word & PLACE) >> PLACE_SHIFT) as u8);
    Some(Frame::new(place, ((!word & ADDR) >> 12) as u32))
}

/// True when a present leaf was written through.
#[inline(always)]
pub(crate) const fn is_dirty(word: u64) -> bool {
    word & D != 0
}

/// The migration entry for what a plain leaf maps.
#[inline(always)]
pub(crate) const fn leaf_to_migration(word: u64) -> u64 {
    (SoftKind::Migration as u64) << KIND_SHIFT
        | word & (PLACE | COMMON)
        | !word & ADDR
        | (word & (A | D)) >> AD_SHIFT
        | (!word & NX) >> NX_TO_EXEC
}

/// True for a migration entry that names `frame`.
#[inline(always)]
pub(crate) const fn is_migration_of(word: u64, frame: Frame) -> bool {
    let named = (SoftKind::Migration as u64) << KIND_SHIFT
        | (frame.place().raw() as u64) << PLACE_SHIFT
        | !((frame.index() as u64) << 12) & ADDR;
    word & !ATTRS == named
}

/// A migration entry's word, become the entry for `frame`, as [`super::Entry::mapping`] has it.
#[inline(always)]
pub(crate) const fn migration_to(word: u64, frame: Frame, level: Level) -> u64 {
    let address = (frame.index() as u64) << 12;
    let place = (frame.place().raw() as u64) << PLACE_SHIFT;
    let kind = if frame.place().is_mappable() {
        if word & NO_ACCESS == 0 {
            let size = if matches!(level, Level::Pte) { 0 } else { PS };
            let attrs =
                word & COMMON | (word & ((A | D) >> AD_SHIFT)) << AD_SHIFT | !(word << NX_TO_EXEC) & NX;
            return P | US | size | address | place | attrs;
        }
        SoftKind::ProtNone
    } else {
        SoftKind::DevicePrivate
    };
    (kind as u64) << KIND_SHIFT | place | !address & ADDR | word & ATTRS
}
