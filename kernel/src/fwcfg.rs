//! QEMU's fw_cfg device: named files that the host gives the guest. The command line is one.
//!
//! Byte by byte through two ports: a directory of some tens of entries and a line of text need nothing faster.

use crate::arch::x86_64::port::{FW_CFG_DATA, FW_CFG_SELECTOR};

const SIGNATURE: u16 = 0x0000;
const DIRECTORY: u16 = 0x0019;
const NB_CPUS: u16 = 0x0005;
/// Length of a name in the directory, with its closing zero.
const NAME_LEN: usize = 56;

/// Why a file was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FwCfgError {
    /// The machine has no fw_cfg.
    NoDevice,
    /// There is no such file.
    NoFile,
    /// The file is longer than the buffer.
    TooLong {
        /// Its length.
        len: u32,
    },
}

impl core::fmt::Display for FwCfgError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoDevice => f.write_str("the machine has no fw_cfg device"),
            Self::NoFile => f.write_str("fw_cfg has no such file"),
            Self::TooLong { len } => write!(f, "the fw_cfg file is too long: {len} bytes"),
        }
    }
}

/// How many CPUs the machine has; none if the host does not say.
pub(crate) fn cpus() -> Option<u32> {
    FW_CFG_SELECTOR.write(SIGNATURE);
    if &bytes::<4>() != b"QEMU" {
        return None;
    }
    FW_CFG_SELECTOR.write(NB_CPUS);
    Some(u32::from(u16::from_le_bytes(bytes())))
}

/// Reads the file `name` into `buffer` and returns the part that it fills.
///
/// # Errors
/// See [`FwCfgError`].
pub(crate) fn read_file<'a>(name: &str, buffer: &'a mut [u8]) -> Result<&'a [u8], FwCfgError> {
    FW_CFG_SELECTOR.write(SIGNATURE);
    if &bytes::<4>() != b"QEMU" {
        return Err(FwCfgError::NoDevice);
    }
    let (item, len) = find(name).ok_or(FwCfgError::NoFile)?;
    let part = buffer.get_mut(..len as usize).ok_or(FwCfgError::TooLong { len })?;
    FW_CFG_SELECTOR.write(item);
    part.fill_with(|| FW_CFG_DATA.read());
    Ok(part)
}

/// The item and the length of a file.
fn find(name: &str) -> Option<(u16, u32)> {
    FW_CFG_SELECTOR.write(DIRECTORY);
    let count = u32::from_be_bytes(bytes());
    for _ in 0..count {
        let len = u32::from_be_bytes(bytes());
        let item = u16::from_be_bytes(bytes());
        let _reserved: [u8; 2] = bytes();
        let entry: [u8; NAME_LEN] = bytes();
        if entry.split(|byte| *byte == 0).next() == Some(name.as_bytes()) {
            return Some((item, len));
        }
    }
    None
}

/// The next bytes of the selected item.
fn bytes<const N: usize>() -> [u8; N] {
    core::array::from_fn(|_| FW_CFG_DATA.read())
}

crate::ktest! {
    fn a_file_that_is_not_there_is_an_error() {
        crate::check_eq!(read_file("opt/farpage/none", &mut [0; 8]), Err(FwCfgError::NoFile));
    }
}

crate::ktest! {
    fn a_file_too_long_is_not_read() {
        let mut short = [0; 1];
        let error = read_file("opt/farpage/cmd", &mut short);
        crate::check!(matches!(error, Err(FwCfgError::TooLong { len }) if len > 1), "{error:?}");
    }
}
