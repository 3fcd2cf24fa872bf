//! Hands the machine's memory to the memory manager: device memory first, while `bootmem` can still give room for the frame
//! maps, then all RAM that is left.

use core::fmt;

use farpage_mm::{OutOfMemory, PAGE_SIZE};
use kernel_logic::ranges::OutOfFrames;

use crate::vm::devmem::{self, DeviceError};
use crate::vm::{map_storage, mm};
use crate::{bootmem, testing};

/// Why there is no memory manager.
#[derive(Debug)]
pub(crate) enum InitError {
    /// The frame map of RAM does not fit.
    Map(OutOfFrames),
    /// Nothing was left for it.
    Start(OutOfMemory),
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(error) => {
                write!(f, "too little RAM for the frame map: {} frames are missing", error.frames)
            }
            Self::Start(error) => write!(f, "too little RAM: {error}"),
        }
    }
}

/// Block size of the frame map, in frames.
const BLOCK: u64 = 512;

/// Makes the memory manager. Device memory that is missing or no good is returned beside: the rest runs without.
///
/// # Errors
/// [`InitError`].
pub(crate) fn init() -> Result<Result<usize, DeviceError>, InitError> {
    let devices = devmem::init();
    testing::set_devices(testing::Devices {
        count: devmem::devices().count() as u32,
        first_mib: devmem::device(0).map_or(0, |device| (device.len_bytes() >> 20) as u32),
        coherent: devmem::devices().filter(|device| device.place().is_coherent()).count() as u32,
    });

    let frames = |range: &core::ops::Range<u64>| (range.start / PAGE_SIZE)..(range.end / PAGE_SIZE);
    let base = bootmem::ram().map(|r| frames(&r).start).min().unwrap_or(0) / BLOCK * BLOCK;
    let end = bootmem::ram().map(|r| frames(&r).end).max().unwrap_or(0).next_multiple_of(BLOCK);
    let storage = map_storage((end - base) as u32).map_err(InitError::Map)?;
    let mm = mm();
    mm.register_ram(base as u32, storage);
    for range in bootmem::remaining() {
        let range = frames(&range);
        mm.add_ram(range.start as u32..range.end as u32);
    }
    mm.start().map_err(InitError::Start)?;
    testing::set_audit(|| mm_audit().map_err(|error| alloc::format!("{error}")));
    Ok(devices)
}

/// Checks every invariant of the memory manager.
///
/// # Errors
/// The first that does not hold.
pub(crate) fn mm_audit() -> Result<(), farpage_mm::AuditError> {
    mm().audit()
}
