//! The bytes of a snapshot, as Linux's test device gives them.

use crate::hmm::HmmPfn;
use crate::types::{Order, Place};

bitflags::bitflags! {
    /// A byte of a snapshot. The device kinds are numbers, not bits: compare the upper half as a whole.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Snap: u8 {
        /// Readable.
        const READ = 0x01;
        /// Writable.
        const WRITE = 0x02;
        /// Part of a 2 MiB mapping.
        const PMD = 0x04;
        /// Part of a 1 GiB mapping, of which there are none.
        const PUD = 0x08;
        /// The shared zero page.
        const ZERO = 0x10;
        /// In this device's private memory.
        const DEV_PRIVATE_LOCAL = 0x20;
        /// In another device's private memory. It is never seen: what another device has is nothing to this one.
        const DEV_PRIVATE_REMOTE = 0x30;
        /// In this device's coherent memory.
        const DEV_COHERENT_LOCAL = 0x40;
        /// In another device's coherent memory.
        const DEV_COHERENT_REMOTE = 0x50;
        /// Nobody may have it.
        const ERROR = 0xff;
    }
}

impl Snap {
    pub(super) fn of(pfn: HmmPfn, here: Place) -> Self {
        if pfn.is_error() {
            return Self::ERROR;
        }
        let Some(frame) = pfn.frame() else { return Self::empty() };
        let place = frame.place();
        let kind = if place.is_coherent() {
            if place.device_number() == here.device_number() {
                Self::DEV_COHERENT_LOCAL
            } else {
                Self::DEV_COHERENT_REMOTE
            }
        } else if !place.is_ram() {
            Self::DEV_PRIVATE_LOCAL
        } else if pfn.is_zero() {
            Self::ZERO
        } else {
            Self::empty()
        };
        let access = if pfn.is_writable() { Self::WRITE } else { Self::READ };
        let size = if pfn.map_order() == Order::PMD { Self::PMD } else { Self::empty() };
        kind | access | size
    }
}
