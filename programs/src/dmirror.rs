//! The test device of heterogeneous memory, `/dev/hmm_dmirror*`: a device that reads and writes this process's memory through a
//! page table of its own, and to whose memory pages can move.
//!
//! Every command is one ioctl on five words. Data goes through memory of this process that the device is told of.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};

use crate::area::{Area, Errno, answer};

/// The words of a command.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
struct Words {
    addr: u64,
    ptr: u64,
    npages: u64,
    cpages: u64,
    faults: u64,
}

/// Commands, by their number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
#[expect(missing_docs, reason = "the names are the documentation; docs/LINUX.md has what they do")]
pub enum Command {
    Read,
    Write,
    MigrateToDevice,
    MigrateToSystem,
    Snapshot,
    Exclusive,
    CheckExclusive,
    Release,
    Flags,
}

/// The number of an ioctl that reads and writes `size` bytes.
#[must_use]
pub const fn iowr(kind: u8, number: u64, size: usize) -> u64 {
    3 << 30 | (size as u64) << 16 | (kind as u64) << 8 | number
}

/// The flag that makes the next allocation of a large page fail, once.
const FAIL_ALLOC: u64 = 1;

/// What a command did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Done {
    /// Pages.
    pub cpages: u64,
    /// Rounds of faults.
    pub faults: u64,
}

/// A byte of a snapshot.
pub mod snap {
    /// Readable.
    pub const READ: u8 = 1;
    /// Writable.
    pub const WRITE: u8 = 2;
    /// Part of a mapping of 2 MiB.
    pub const PMD: u8 = 4;
    /// The zero page.
    pub const ZERO: u8 = 0x10;
    /// In this device's private memory.
    pub const PRIVATE_LOCAL: u8 = 0x20;
    /// In this device's coherent memory.
    pub const COHERENT_LOCAL: u8 = 0x40;
    /// In another device's coherent memory.
    pub const COHERENT_REMOTE: u8 = 0x50;
    /// Nobody may have it.
    pub const ERROR: u8 = 0xff;
}

/// An open device.
#[derive(Debug)]
pub struct Device(File);

impl Device {
    /// Opens device `number`.
    ///
    /// # Errors
    /// What open says.
    pub fn open(number: usize) -> Result<Self, Errno> {
        let file = OpenOptions::new().read(true).write(true).open(format!("/dev/hmm_dmirror{number}"));
        file.map(Self).map_err(|error| Errno(error.raw_os_error().unwrap_or(0)))
    }

    /// Its descriptor.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// A command as it is, with whatever numbers: the device is to refuse what is wrong.
    ///
    /// # Errors
    /// What ioctl says.
    pub fn raw(&self, command: Command, addr: usize, ptr: usize, npages: u64) -> Result<Done, Errno> {
        let mut words = Words { addr: addr as u64, ptr: ptr as u64, npages, ..Words::default() };
        let number = iowr(b'H', command as u64, size_of::<Words>());
        // SAFETY: the words are ours. What the device writes besides is memory of an `Area`, or nothing that is mapped.
        answer(unsafe { libc::ioctl(self.fd(), number, &raw mut words) })?;
        Ok(Done { cpages: words.cpages, faults: words.faults })
    }

    /// A command whose structure lies at `words`, which need not be memory.
    ///
    /// # Errors
    /// What ioctl says.
    pub fn raw_at(&self, command: Command, words: usize) -> Result<Done, Errno> {
        let number = iowr(b'H', command as u64, size_of::<Words>());
        // SAFETY: the kernel looks whether there is memory that it may use.
        answer(unsafe { libc::ioctl(self.fd(), number, words) }).map(|()| Done::default())
    }

    /// A command of any number.
    ///
    /// # Errors
    /// What ioctl says.
    pub fn raw_number(&self, number: u64, area: Area) -> Result<Done, Errno> {
        let mut words =
            Words { addr: area.start() as u64, ptr: area.start() as u64, npages: 1, ..Words::default() };
        // SAFETY: as for `raw`.
        answer(unsafe { libc::ioctl(self.fd(), iowr(b'H', number, size_of::<Words>()), &raw mut words) })
            .map(|()| Done::default())
    }

    fn command(&self, command: Command, area: Area, ptr: Option<Area>) -> Result<Done, Errno> {
        if let Some(bounce) = ptr {
            let least = if command == Command::Snapshot { area.pages() } else { area.len() };
            assert!(bounce.len() >= least, "room for what the device exchanges");
        }
        self.raw(command, area.start(), ptr.map_or(0, Area::start), area.pages() as u64)
    }

    /// The device reads `area`; what it read is in `to`.
    ///
    /// # Errors
    /// Linux's errors of the command; the same holds for all of them.
    pub fn read(&self, area: Area, to: Area) -> Result<Done, Errno> {
        self.command(Command::Read, area, Some(to))
    }

    /// The device writes what is in `from` to `area`.
    #[expect(clippy::missing_errors_doc, reason = "see `read`")]
    pub fn write(&self, area: Area, from: Area) -> Result<Done, Errno> {
        self.command(Command::Write, area, Some(from))
    }

    /// Moves the pages to the device; what it then reads of them is in `to`.
    #[expect(clippy::missing_errors_doc, reason = "see `read`")]
    pub fn to_device(&self, area: Area, to: Area) -> Result<Done, Errno> {
        self.command(Command::MigrateToDevice, area, Some(to))
    }

    /// Moves the pages to RAM.
    #[expect(clippy::missing_errors_doc, reason = "see `read`")]
    pub fn to_system(&self, area: Area) -> Result<Done, Errno> {
        self.command(Command::MigrateToSystem, area, None)
    }

    /// What the device finds of each page, without a fault: one byte each in `to`.
    #[expect(clippy::missing_errors_doc, reason = "see `read`")]
    pub fn snapshot(&self, area: Area, to: Area) -> Result<Done, Errno> {
        self.command(Command::Snapshot, area, Some(to))
    }

    /// The device borrows the pages for atomic access; what it then reads of them is in `to`.
    #[expect(clippy::missing_errors_doc, reason = "see `read`")]
    pub fn exclusive(&self, area: Area, to: Area) -> Result<Done, Errno> {
        self.command(Command::Exclusive, area, Some(to))
    }

    /// Makes sure that none of the pages is borrowed.
    #[expect(clippy::missing_errors_doc, reason = "see `read`")]
    pub fn check_exclusive(&self, area: Area) -> Result<(), Errno> {
        self.command(Command::CheckExclusive, area, None).map(drop)
    }

    /// Everything on the device goes back to RAM.
    #[expect(clippy::missing_errors_doc, reason = "see `read`")]
    pub fn release(&self) -> Result<(), Errno> {
        self.raw(Command::Release, 0, 0, 1).map(drop)
    }

    /// The next allocation of a large page fails, once.
    #[expect(clippy::missing_errors_doc, reason = "see `read`")]
    pub fn fail_next_huge(&self) -> Result<(), Errno> {
        self.raw(Command::Flags, 0, 0, FAIL_ALLOC).map(drop)
    }
}
