//! Why a boot stopped: each reason is one sentence for the person at the console.

use core::fmt;

/// Everything that ends a boot before the kernel runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadError {
    /// The start info does not carry PVH's magic.
    NotPvh {
        /// What stood in its place.
        magic: u32,
    },
    /// A start info of version 0: it has no memory map.
    NoMemoryMap,
    /// No module was handed over.
    NoModule,
    /// The module is not a newc archive, or breaks off.
    BadArchive {
        /// Where in the archive.
        offset: usize,
    },
    /// The archive has no file named `kernel`.
    NoKernel,
    /// The kernel file is not an ELF this loader can run.
    BadKernel(&'static str),
    /// The kernel's `.bootloader-config` section does not parse.
    BadConfig(&'static str),
    /// A segment asks for write and execute rights at once.
    WritableCode {
        /// The segment's address.
        virt: u64,
    },
    /// Two things were to be mapped at one address.
    AlreadyMapped {
        /// That address.
        virt: u64,
    },
    /// An address that is not canonical, not aligned, or past the end.
    BadAddress {
        /// That address.
        virt: u64,
    },
    /// The addresses left to the loader's choice do not fit the dynamic range.
    NoAddressSpace {
        /// How much was wanted.
        len_bytes: u64,
    },
    /// RAM ran out.
    NotEnoughMemory {
        /// Bytes the loader needed in all up to the failing request.
        needed: u64,
        /// Bytes of the largest free range below 4 GiB.
        available: u64,
    },
    /// A structure lies where the loader cannot reach it.
    OutOfReach {
        /// Its physical address.
        phys: u64,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotPvh { magic } => {
                write!(f, "not started by PVH: the start info begins with {magic:#x}, not 0x336ec578")
            }
            Self::NoMemoryMap => {
                write!(f, "the PVH start info has no memory map: version 1 or later is needed")
            }
            Self::NoModule => {
                write!(
                    f,
                    "no boot module: pass -initrd ARCHIVE, a newc cpio archive with the file \"kernel\""
                )
            }
            Self::BadArchive { offset } => {
                write!(f, "the boot module is not a whole newc cpio archive (bad at offset {offset})")
            }
            Self::NoKernel => write!(f, "no kernel in the boot module: the archive has no file \"kernel\""),
            Self::BadKernel(why) => write!(f, "the file \"kernel\" cannot be run: {why}"),
            Self::BadConfig(why) => write!(f, "the kernel's .bootloader-config section is not usable: {why}"),
            Self::WritableCode { virt } => {
                write!(f, "the kernel's segment at {virt:#x} is both writable and executable")
            }
            Self::AlreadyMapped { virt } => write!(f, "two mappings were asked for at {virt:#x}"),
            Self::BadAddress { virt } => write!(f, "cannot map at {virt:#x}: not canonical or not aligned"),
            Self::NoAddressSpace { len_bytes } => {
                write!(f, "no {len_bytes:#x} bytes of address space left in the kernel's dynamic range")
            }
            Self::NotEnoughMemory { needed, available } => write!(
                f,
                "not enough memory: loading the kernel needs at least {} KiB in one piece below 4 GiB, found {} KiB",
                needed.div_ceil(1024),
                available / 1024
            ),
            Self::OutOfReach { phys } => {
                write!(f, "a boot structure at {phys:#x} lies above the 4 GiB that the loader can reach")
            }
        }
    }
}

impl core::error::Error for LoadError {}
